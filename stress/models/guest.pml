/* guest.pml: a SPIN model of the death of an object that is in one dictionary, in every interleaving; `run` proves it.
 *
 * The entry stands in the object's meta word (a guest) and owns one weak count, which it gives back a grace period after it
 * was taken out of its table. Who takes it out:
 *     a verb     under the shard's lock: unlinks it, then brings the meta word from GUEST to TYPE by a CAS, or finds that a
 *                second watcher has made it one of a list (SIDE), and takes it off that
 *     the death  in a guard, GUEST: under the shard's lock, unless the verb was there first, unlinks it and stores TYPE.
 *                SIDE: takes the list, out of the guard, then unlinks the entry, and retires it in any case
 * The word is that of word.pml, cut short: strong, weak, CLOSED, the token and its repayment.
 *
 * A light death, that of an object with nothing to run, gives its token up in the CAS that closes the word. It is in a guard, in which
 * it has seen the guest; so the guest's weak count keeps the header until it leaves. If it finds a watch then, which came
 * between the look and the close, it takes a weak count again before it leaves.
 *
 * The threads: an owner with the only strong reference, who lets go; a reader, who looks the object up in the dictionary; a holder with
 * a weak handle; a verb, which takes the entry out or does not; the reclaimer. Who gets a strong reference may hang one watch on the
 * object, for good; the holder may ask for the object's type, which leads through the guest.
 *
 * Proven, for these threads:
 *     A  No thread touches the header after it was freed, nor the entry.
 *     B  The entry is retired exactly once, and given back exactly once; it is out of the table in the end.
 *     C  The watch, if there is one, fires exactly once.
 *     D  Header and entry are freed; nothing is leaked; there is no deadlock.
 *
 * As in word.pml the steps are sequentially consistent, and the grace period is its contract: it waits for the guards that
 * stand when the entry is retired, and no longer. Mutants and cover points: as there.
 */

#define CLOSE_LIGHT 1
#define CLOSE_HEAVY 2      /* the look came after the verb, or after a watch */
#define TURNS_HEAVY 3      /* a light one finds a watch */
#define TURNS_LONE 4       /* the same, and the guest has left */
#define DEATH_UNLINKS 5
#define VERB_BEFORE_DEATH 6 /* the death goes to the shard, and finds that the verb was there */
#define VERB_AT_DEAD 7     /* the verb takes the guest off a closed object */
#define VERB_LOSES_CAS 8   /* to a second watcher */
#define VERB_ON_LIST 9
#define ORPHAN 10          /* the verb unlinks what the death has detached */
#define GUEST_KEEPS 11     /* only the guest's weak count keeps the header while the death goes on */
#define UPGRADE_FROM_ZERO 12
#define LOSER_LEAVES 13    /* strong came back, or another thread closed */
#define GRACE_WAITS 14

#ifdef COVER
bool reached;
#define COVER_IF(point, condition)                       \
    if                                                   \
    :: COVER == point && (condition) -> reached = true   \
    :: else                                              \
    fi;                                                  \
    assert(!reached)
#else
#define COVER_IF(point, condition) skip
#endif

#define N_THREADS 5

mtype = { TYPE, GUEST, SIDE, LONE };

/* -- the header -- */

byte strong = 1;
byte weak = 3; /* the token, the guest's, the holder's */
bool closed;
bool freed;
mtype meta = GUEST;
bool guest_listed, watch_listed; /* on the list, with SIDE; or the watch alone, with LONE */
bool detached;                   /* the list is the death's */

/* -- the entry -- */

bool linked = true;
bool locked; /* its shard */
bool entry_retired, entry_freed;

bool watch_made, watch_fired;

byte in_guard, waited_for;
byte n_done;

#define ME (1 << id)

inline guard_enter()
{
    in_guard = in_guard | ME
}

inline guard_exit()
{
    d_step {
        in_guard = in_guard & ~ME;
        waited_for = waited_for & ~ME;
    }
}

inline lock()
{
    d_step { !locked -> locked = true; }
}

inline unlock()
{
    locked = false
}

inline retire()
{
    d_step {
        assert(!entry_retired);
        entry_retired = true;
        waited_for = in_guard;
    }
}

inline weak_release()
{
    d_step {
        assert(!freed && weak > 0);
        weak--;
        if
        :: weak == 0 ->
            assert(closed && meta != GUEST); /* the type is read */
            freed = true
        :: else
        fi;
    }
}

/* got: whether the caller has a strong reference now. */
inline upgrade()
{
    d_step {
        assert(!freed);
        repay = !closed && strong == 0;
        COVER_IF(UPGRADE_FROM_ZERO, repay);
        got = !closed;
        if
        :: !closed -> strong++
        :: else
        fi;
    }
    if
    :: repay ->
        d_step {
            assert(!freed);
            weak++;
            repay = false;
        }
    :: else
    fi
}

/* A watch for good, which has no weak count. At most one. */
inline attach()
{
    d_step {
        assert(!freed && !closed);
        mine = !watch_made;
        watch_made = true;
        seen = meta;
    }
    if
    :: !mine
    :: mine ->
        if
        :: d_step { seen == TYPE && meta == TYPE -> meta = LONE; watch_listed = true; }
        :: else ->
            do
            :: d_step { meta == SIDE -> assert(!freed && !detached); watch_listed = true; } break
            :: d_step { meta == GUEST -> assert(!entry_freed); meta = SIDE; guest_listed = true; }
            :: d_step { meta == TYPE -> meta = SIDE; }
            od
        fi
    fi;
    mine = false
}

/* The entry leaves with its object. */
inline fire_guest()
{
    assert(!entry_freed);
    lock();
    d_step {
        assert(!entry_freed);
#ifdef DEATH_DOES_NOT_ASK
        mine = true;
#else
        mine = linked;
#endif
        COVER_IF(DEATH_UNLINKS, linked);
        COVER_IF(VERB_BEFORE_DEATH, !linked);
        linked = false;
    }
#ifdef STORE_AFTER_RETIRE
    unlock();
    if
    :: mine -> retire(); d_step { assert(!freed); meta = TYPE; }
    :: else
    fi;
#else
    if
#ifndef META_STAYS
    :: mine -> d_step { assert(!freed); meta = TYPE; }
#endif
    :: else
    fi;
    unlock();
    if
    :: mine -> retire()
    :: else
    fi;
#endif
    mine = false
}

inline fire_listed()
{
    d_step {
        assert(!freed);
        detached = true;
        mine = guest_listed;
    }
    if
    :: mine ->
        lock();
        linked = false;
        unlock();
        retire()
    :: else
    fi;
    mine = false
}

inline look_lightly()
{
    d_step {
        assert(!freed);
        light = (meta == GUEST);
    }
}

/* The caller's strong reference goes. */
inline release()
{
    d_step {
        assert(!freed && !closed && strong > 0);
        strong--;
        zero = (strong == 0);
    }
    if
    :: zero ->
#ifdef LOOK_BEFORE_GUARD
        look_lightly();
        guard_enter();
#elif defined(NO_GUARD)
        look_lightly();
#else
        guard_enter();
        look_lightly();
#endif
        d_step {
            assert(!freed);
            won = (strong == 0 && !closed); /* the CAS, with the load and the tries before it */
            if
            :: won ->
                closed = true;
                weak = weak - light;
                COVER_IF(CLOSE_LIGHT, light);
                COVER_IF(CLOSE_HEAVY, !light);
                COVER_IF(GUEST_KEEPS, weak == 1)
            :: else -> COVER_IF(LOSER_LEAVES, true)
            fi;
        }
        if
        :: won ->
            d_step { assert(!freed); seen = meta; }
            if
            :: seen == GUEST -> fire_guest()
            :: else
            fi;
            d_step {
                assert(!freed);
                COVER_IF(TURNS_HEAVY, light && meta == SIDE);
                COVER_IF(TURNS_LONE, light && meta == LONE);
                won = !(light && meta == TYPE); /* else it is over */
                if
                :: light && won ->
#ifndef NO_TAKE_BACK
                    weak++;
#endif
                    light = false
                :: else
                fi;
            }
        :: else -> light = false
        fi;
        guard_exit();
        if
        :: won ->
            if
            :: seen == SIDE -> fire_listed()
            :: else
            fi;
            d_step {
                assert(!freed);
                assert(!watch_fired);
                watch_fired = watch_listed;
            }
        :: else
        fi;
        if
        :: !light -> weak_release()
        :: else
        fi;
        light = false;
        won = false;
        zero = false
    :: else
    fi
}

inline thread_ends()
{
    d_step {
        n_done++;
        if
        :: n_done == N_THREADS ->
            assert(closed && freed && weak == 0);
            assert(entry_retired && entry_freed && !linked);
            assert(watch_made == watch_fired)
        :: else
        fi
    }
}

proctype owner(byte id)
{
    bool light, won, zero, mine;
    mtype seen = TYPE;

    release();
    thread_ends()
}

proctype reader(byte id; byte budget)
{
    bool light, won, zero, mine, got, repay;
    mtype seen = TYPE;

    do
    :: budget > 0 ->
        budget--;
        guard_enter();
        if
        :: linked ->
            assert(!entry_freed);
            upgrade()
        :: else
        fi;
        guard_exit();
        if
        :: got ->
            if
            :: attach()
            :: skip
            fi;
            release();
            got = false
        :: else
        fi
    :: break
    od;
    thread_ends()
}

proctype holder(byte id; byte budget)
{
    bool light, won, zero, mine, got, repay;
    mtype seen = TYPE;

    do
    :: budget > 0 ->
        budget--;
        upgrade();
        if
        :: got ->
            if
            :: attach()
            :: skip
            fi;
            release();
            got = false
        :: else
        fi
    :: budget > 0 -> /* which type? */
        budget--;
        guard_enter();
        d_step { assert(!freed); seen = meta; }
        assert(seen != GUEST || !entry_freed);
        guard_exit()
    :: break
    od;
    weak_release();
    thread_ends()
}

proctype verb(byte id)
{
    bool mine;
    mtype seen = TYPE;

    if
    :: lock();
        if
        :: linked ->
            linked = false;
            d_step { assert(!freed); seen = meta; }
            if
            :: d_step {
                    seen == GUEST && meta == GUEST ->
                    COVER_IF(VERB_AT_DEAD, closed);
                    meta = TYPE;
                    mine = true;
                }
            :: else ->
                d_step {
                    assert(!freed && meta == SIDE);
                    COVER_IF(VERB_LOSES_CAS, seen == GUEST);
                    COVER_IF(VERB_ON_LIST, !detached);
                    COVER_IF(ORPHAN, detached);
                    mine = !detached;
                    if
                    :: mine -> guest_listed = false
                    :: else
                    fi;
                }
            fi
        :: else
        fi;
        unlock();
        if
        :: mine -> retire()
        :: else
        fi
    :: skip
    fi;
    thread_ends()
}

proctype reclaimer()
{
    d_step { entry_retired -> COVER_IF(GRACE_WAITS, waited_for != 0); }
    (waited_for == 0);
    weak_release();
    entry_freed = true;
    thread_ends()
}

init
{
    atomic {
        run owner(0);
        run reader(1, 1);
        run holder(2, 1);
        run verb(3);
        run reclaimer();
    }
}
