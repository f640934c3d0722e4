/* word.pml: a SPIN model of the count word, one owner and two weak holders in every interleaving; `run` proves it.
 *
 * The word: strong, weak, CLOSED, and DEFERRED, which is a constant here (-DDEFERRED). Each atomic operation on the
 * real word is one d_step on the fields; between two of them anything may happen on the other threads.
 *
 *     state  strong  CLOSED  who owns the token (one weak)
 *     LIVE   > 0     no      all strong references together
 *     ZERO   0       no      the thread that took strong to zero
 *     DEAD   stray   yes     the thread that set CLOSED, until destroy is over
 *     FREED                  nobody: weak is 0, and no one may look at the word again
 *
 *     from   operation                    to     what else happens
 *     LIVE   release, strong > 1          LIVE
 *     LIVE   release, strong 1            ZERO   the token passes to that thread, which goes on to close
 *     LIVE   release, strong 1, weak 1,   DEAD   the shortcut: a plain store of CLOSED. No other reference of either
 *            not DEFERRED                        kind is left, so no other thread can reach the word meanwhile
 *     ZERO   upgrade                      LIVE   then adds one weak, the new token: the old one belongs to a thread
 *                                                that will lose (there may be several such threads at a time)
 *     ZERO   retain_live                  LIVE   as upgrade, but with strong + 1 and weak + 1 in one addition
 *     ZERO   close                        DEAD   destroy, then release of the token. DEFERRED: both by the reclaimer,
 *                                                when each guard that was entered before the death has been left
 *     LIVE   close                        LIVE   lost, strong came back: release one token
 *     DEAD   close                        DEAD   lost, another thread closed: release one token
 *     DEAD   upgrade, retain_live         DEAD   NULL; strong keeps a stray increment that means nothing
 *     DEAD   weak release, weak 1         FREED
 *     ZERO   release, retain              cannot happen: the caller would have to own a strong reference
 *     DEAD   release, retain              cannot happen, for the same reason
 *     LIVE   weak release, weak 1         cannot happen: the token is in weak, or whoever owes it has a handle
 *     ZERO   weak release, weak 1         cannot happen: the token is in weak
 *
 * The threads: an owner with the first strong reference and two holders with a weak handle each. A thread may release
 * whatever it has at any time, and ends with nothing. What it may acquire (upgrade, retain, downgrade or weak retain;
 * with -DDEFERRED also enter a guard and peek, then retain_live) is limited by its budget. destroy may make a weak
 * handle, which any thread may take, try to upgrade, and drop, even before destroy returns.
 *
 * Proven, for these threads and budgets:
 *     A  destroy runs exactly once.
 *     B  The header is freed exactly once, not before destroy has returned.
 *     C  No thread touches the word after that.
 *     D  After CLOSED nobody gets a strong reference, and nobody has one while destroy runs.
 *     E  With DEFERRED a borrowed pointer is good until its guard is left, also if the object dies meanwhile.
 *     F  Nothing is leaked, there is no deadlock, and no legal call meets the panics of retain and release.
 *     G  With -DLAW, after every operation on the word:
 *            INV-1  strong == strong references held, until CLOSED
 *            INV-2  weak + debts == handles + tokens + spares + (1 while a strong reference is held)
 *        tokens: with threads that took strong to zero, and with whoever closed. debts: upgrades from zero that have
 *        yet to add their one. spares: retain_live's one where it repaid nobody, until it is taken back.
 *
 * What SPIN covers: all interleavings of sequentially consistent steps. What it does not: weak memory; that each order
 * in word.h is strong enough is argued there and checked by other tools. Nor saturation, more threads, and longer
 * lives than the budgets allow. The grace period is modelled by its contract, not by epochs: it waits for as few
 * guards as it may, those entered before CLOSED, so that waiting for more is covered too.
 *
 * Mutants: a macro named in `run` breaks one rule, and an assertion must refute it. They go without -DLAW, so that
 * harm refutes them and not bookkeeping.
 * Cover points: COVER_IF(point, condition) fails under -DCOVER=point where the condition holds. Each point must be
 * reached, else the proof says nothing about what follows it.
 */

#ifdef DEFERRED
#define N_THREADS 4 /* the reclaimer too */
#define OWNER_BUDGET 0
#define HOLDER_1_BUDGET 3
#define HOLDER_2_BUDGET 2
#else
#define N_THREADS 3
#define OWNER_BUDGET 1
#define HOLDER_1_BUDGET 3
#define HOLDER_2_BUDGET 3
#endif

/* -- cover points: numbered, so that the preprocessor can compare -DCOVER=NAME with them -- */

#define RELEASE_ALONE 1      /* the shortcut: strong 1, weak 1 */
#define ALONE_FREES 2        /* after it the word is as it was: freed without another RMW */
#define ALONE_LEFT_HANDLE 3  /* destroy made a handle that is still there */
#define ALONE_LEFT_STRAY 4   /* that handle has come and gone, a stray increment is left */
#define CLOSE_WINS 5
#define CLOSE_RETRIES 6      /* only the weak part moved */
#define CLOSE_OVERTAKES 7    /* strong came back and went: an earlier thread is still on its way to close */
#define LOSER_SEES_BACK 8    /* lost by the load: strong came back */
#define LOSER_SEES_CLOSED 9  /* lost by the load: another thread closed */
#define LOSER_CAS_BACK 10    /* lost by the CAS: strong came back */
#define LOSER_CAS_CLOSED 11  /* lost by the CAS: another thread closed */
#define LOSER_FREES 12       /* lost, and the last to let go of the header */
#define TOKEN_FREES 13       /* the winner's token is the last weak */
#define HANDLE_FREES 14      /* a weak handle is the last weak */
#define THREE_TOKENS 15      /* three threads have taken strong to zero, none has closed */
#define UPGRADE_DEAD 16
#define UPGRADE_FROM_ZERO 17
#define REPAY_AFTER_LOSER 18 /* the loser has given its token back before upgrade repays it */
#define DESTROY_HANDLE 19    /* a thread takes destroy's handle before destroy returns */
#define PEEK_DEAD 20
#define BORROWED_DIES 21     /* the object dies under a borrowed pointer */
#define GRACE_WAITS 22       /* the reclaimer has to wait for a reader */
#define LIVE_DEAD 23         /* retain_live: it died meanwhile */
#define LIVE_REPAYS 24       /* retain_live: from zero */
#define LIVE_REPAYS_ALONE 25 /* retain_live: from zero, no handle left: only the token keeps the header */
#define LIVE_TAKES_BACK 26   /* retain_live: beside a strong reference */

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

/* -- the word, and what has become of its object -- */

byte strong = 1;
byte weak = 3; /* the token and the holders' handles */
bool closed;
bool freed;
byte destroys_begun;
byte destroys_ended;
bool left_handle; /* made by destroy, not yet taken by a thread */
byte n_done;
bool leaked;

/* -- what the threads have: read by assertions and cover points only -- */

byte held = 1; /* strong references */
byte handles = 2;
byte tokens;
byte debts;
byte spares;

#ifdef LAW
#define CHECK_LAW()                   \
    assert(closed || strong == held); \
    assert(weak + debts == handles + tokens + spares + (held > 0))
#else
#define CHECK_LAW() skip
#endif

/* -- guards and the grace period -- */

#ifdef DEFERRED
byte in_guard;   /* one bit for each thread */
byte waited_for; /* of those in their guard at death, the ones that have not left it since */
bool retired;    /* the dead object has been handed to the reclaimer */
#endif

/* -- the word's operations; s, w, last, repay and outcome are the calling thread's own -- */

mtype = { DONE, ALONE, ZERO, WON, LOST };

inline header_free()
{
    d_step {
        assert(!freed);
        assert(destroys_ended == 1);
        freed = true;
    }
}

/* given: the count of what is given back: handles, tokens or spares. */
inline word_weak_release(given, point)
{
    d_step {
        assert(!freed);
        assert(weak > 0);
        last = (weak == 1);
        weak--;
        given--;
        CHECK_LAW();
        COVER_IF(point, last);
    }
    if
    :: last ->
        last = false;
        header_free()
    :: else
    fi
}

/* Downgrade and weak retain are the same addition. */
inline word_weak_retain()
{
    d_step {
        assert(!freed);
        weak++;
        w++;
        handles++;
        CHECK_LAW();
    }
}

/* The caller gets a strong reference. */
inline grant()
{
    assert(destroys_begun == 0);
    s++;
    held++
}

inline word_retain()
{
    d_step {
        assert(!freed);
        assert(!closed && strong > 0);
        strong++;
        grant();
        CHECK_LAW();
    }
}

#if defined(NO_TOKEN) || defined(NO_REPAY)
#define OWES (false)
#elif defined(REPAY_ALWAYS)
#define OWES (true)
#else
#define OWES (strong == 0)
#endif

#ifdef UPGRADE_IGNORES_CLOSED
#define UPGRADE_SEES_CLOSED (false)
#else
#define UPGRADE_SEES_CLOSED (closed)
#endif

inline word_upgrade()
{
    d_step {
        assert(!freed);
        if
        :: UPGRADE_SEES_CLOSED ->
            strong++;
            COVER_IF(UPGRADE_DEAD, true)
        :: else ->
            COVER_IF(UPGRADE_FROM_ZERO, strong == 0);
            repay = OWES;
            debts = debts + repay;
            strong++;
            grant()
        fi;
        CHECK_LAW();
    }
    if
    :: repay ->
        d_step {
            assert(!freed);
            repay = false;
            weak++;
            debts--;
            CHECK_LAW();
            COVER_IF(REPAY_AFTER_LOSER, tokens == 0);
        }
    :: else
    fi
}

inline destroy()
{
    d_step {
        assert(!freed);
        assert(held == 0);
        assert(destroys_begun == 0);
        destroys_begun++;
    }
    if
    :: d_step {
            assert(!freed);
            weak++;
            handles++;
            left_handle = true;
            CHECK_LAW();
        }
    :: skip
    fi;
    d_step {
        assert(!freed);
        assert(held == 0);
        destroys_ended++;
    }
}

/* Strong 1, weak 1, not DEFERRED: nobody else can reach the word before destroy makes a handle. */
inline word_close_alone()
{
    d_step {
        assert(!freed);
#ifndef NO_CLOSED_IN_SHORTCUT
        closed = true;
#endif
        strong = 0;
        weak = 1;
        CHECK_LAW();
        COVER_IF(RELEASE_ALONE, true);
    }
    destroy();
    d_step { /* the reload */
        assert(!freed);
#ifdef NO_RELOAD
        last = true;
#else
        last = (weak == 1 && strong == 0);
#endif
        COVER_IF(ALONE_FREES, last);
        COVER_IF(ALONE_LEFT_HANDLE, weak > 1);
        COVER_IF(ALONE_LEFT_STRAY, weak == 1 && strong > 0);
    }
    if
    :: last ->
        d_step {
            last = false;
            tokens--;
        }
        header_free()
    :: else -> word_weak_release(tokens, 0)
    fi
}

#ifdef CLOSE_BLIND
#define STILL_ZERO (!closed)
#elif defined(CLOSE_TWICE)
#define STILL_ZERO (strong == 0)
#else
#define STILL_ZERO (!closed && strong == 0)
#endif

/* A load, then CAS after CAS until it wins or the word is no longer at zero. */
inline word_close()
{
    d_step {
        assert(!freed);
        seen = weak;
        if
        :: STILL_ZERO
        :: else -> outcome = LOST
        fi;
        COVER_IF(LOSER_SEES_BACK, outcome == LOST && !closed);
        COVER_IF(LOSER_SEES_CLOSED, outcome == LOST && closed);
    }
    do
    :: outcome == ZERO ->
        d_step {
            assert(!freed);
            if
            :: STILL_ZERO && weak == seen ->
                closed = true;
                outcome = WON;
#ifdef DEFERRED
                waited_for = in_guard;
#endif
                COVER_IF(CLOSE_WINS, true);
                COVER_IF(CLOSE_OVERTAKES, tokens > 1)
            :: STILL_ZERO && weak != seen ->
                seen = weak;
                COVER_IF(CLOSE_RETRIES, true)
            :: else ->
                outcome = LOST;
                COVER_IF(LOSER_CAS_BACK, !closed);
                COVER_IF(LOSER_CAS_CLOSED, closed)
            fi
        }
    :: else -> break
    od;
    seen = 0
}

#if !defined(DEFERRED) || defined(SHORTCUT_DEFERRED)
#define HAS_SHORTCUT
#endif

#ifdef SHORTCUT_ANY_WEAK
#define IS_ALONE (strong == 1)
#else
#define IS_ALONE (strong == 1 && weak == 1)
#endif

inline word_release()
{
    d_step {
        assert(!freed);
        assert(!closed && strong > 0);
        if
        :: strong > 1
#ifdef HAS_SHORTCUT
        :: IS_ALONE -> outcome = ALONE; tokens++
#endif
        :: else -> outcome = ZERO; tokens++
        fi;
        strong--;
        s--;
        held--;
        CHECK_LAW();
        COVER_IF(THREE_TOKENS, tokens == 3 && !closed);
    }
    if
#ifdef HAS_SHORTCUT
    :: outcome == ALONE -> word_close_alone()
#endif
    :: outcome == ZERO ->
        word_close();
        if
        :: outcome == WON ->
#ifdef DEFERRED
#ifdef TOKEN_BEFORE_GRACE
            word_weak_release(tokens, 0);
#endif
            d_step {
                assert(!retired);
                retired = true;
                COVER_IF(GRACE_WAITS, waited_for != 0);
            }
#elif defined(TOKEN_BEFORE_DESTROY)
            word_weak_release(tokens, 0);
            destroy()
#elif defined(FREE_EARLY)
            destroy();
            header_free()
#else
            destroy();
            word_weak_release(tokens, TOKEN_FREES)
#endif
        :: outcome == LOST ->
#if defined(NO_TOKEN) || defined(LOSER_KEEPS_TOKEN)
            tokens--
#else
            word_weak_release(tokens, LOSER_FREES)
#endif
        fi
    :: else
    fi;
    outcome = DONE
}

/* -- guards, peek and retain_live -- */

#ifdef DEFERRED
#define ME (1 << id)

#ifdef PEEK_IGNORES_CLOSED
#define PEEK_SEES_CLOSED (false)
#else
#define PEEK_SEES_CLOSED (closed)
#endif

inline word_peek()
{
    d_step {
        assert(!freed);
        borrowed = !PEEK_SEES_CLOSED;
        COVER_IF(PEEK_DEAD, !borrowed);
    }
}

/* The last look at what was borrowed is the latest one, so it stands for all. */
inline guard_exit()
{
    d_step {
        assert(!borrowed || !freed);
        assert(!borrowed || destroys_begun == 0);
        COVER_IF(BORROWED_DIES, borrowed && closed);
        borrowed = false;
        in_guard = in_guard & ~ME;
        waited_for = waited_for & ~ME;
    }
}

#if defined(LIVE_NEVER_REPAYS) || defined(NO_TOKEN)
#define HAS_SPARE (true)
#elif defined(LIVE_NEVER_TAKES_BACK)
#define HAS_SPARE (false)
#else
#define HAS_SPARE (strong > 0)
#endif

inline word_retain_live()
{
#ifdef LIVE_REPAYS_LATE
    word_upgrade()
#else
    d_step {
        assert(!freed);
        if
        :: closed ->
            outcome = LOST;
            spares++;
            COVER_IF(LIVE_DEAD, true)
        :: else ->
            COVER_IF(LIVE_REPAYS, strong == 0);
            COVER_IF(LIVE_REPAYS_ALONE, strong == 0 && handles == 0);
            if
            :: HAS_SPARE -> outcome = WON; spares++
            :: else
            fi;
            grant()
        fi;
        strong++;
        weak++;
        CHECK_LAW();
    }
    if
    :: outcome == LOST -> word_weak_release(spares, 0)
    :: outcome == WON ->
        d_step {
            assert(!freed);
            assert(weak > 0);
            weak--;
            spares--;
            CHECK_LAW();
            COVER_IF(LIVE_TAKES_BACK, true);
        }
    :: else
    fi;
    outcome = DONE
#endif
}
#endif

/* -- the threads -- */

/* The last one to end looks at what is left. */
inline thread_ends()
{
    d_step {
        n_done++;
        if
        :: n_done == N_THREADS ->
            assert(destroys_begun == 1 && destroys_ended == 1);
            leaked = !freed || held + handles + tokens + debts + spares > 0;
            assert(!leaked)
        :: else
        fi
    }
}

/* s, w: the strong references and weak handles it has. */
proctype actor(byte id; byte s; byte w; byte budget)
{
    bool last, repay;
    byte seen;
    mtype outcome = DONE;
#ifdef DEFERRED
    bool borrowed;
#endif

    do
    :: s > 0 -> word_release()
    :: w > 0 -> w--; word_weak_release(handles, HANDLE_FREES)
    :: s > 0 && budget > 0 -> budget--; word_retain()
    :: w > 0 && budget > 0 -> budget--; word_upgrade()
    :: (s > 0 || w > 0) && budget > 0 -> budget--; word_weak_retain()
    :: d_step {
            left_handle ->
            left_handle = false;
            w++;
            COVER_IF(DESTROY_HANDLE, destroys_ended == 0);
        }
#ifdef DEFERRED
    :: w > 0 && budget > 0 && !(in_guard & ME) ->
        budget--;
        in_guard = in_guard | ME;
        word_peek()
    :: (in_guard & ME) -> guard_exit()
    :: borrowed && budget > 0 -> budget--; word_retain_live()
    :: s == 0 && w == 0 && !left_handle && !(in_guard & ME) -> break
#else
    :: s == 0 && w == 0 && !left_handle -> break
#endif
    od;
    thread_ends()
}

#ifdef DEFERRED
#ifdef NO_GRACE
#define GRACE_IS_OVER (true)
#else
#define GRACE_IS_OVER (waited_for == 0)
#endif

proctype reclaimer()
{
    bool last;

    (retired && GRACE_IS_OVER);
    destroy();
#ifndef TOKEN_BEFORE_GRACE
    word_weak_release(tokens, TOKEN_FREES);
#endif
    if
    :: d_step { left_handle -> left_handle = false; }
        word_weak_release(handles, 0)
    :: !left_handle
    fi;
    thread_ends()
}
#endif

init
{
    atomic {
        run actor(0, 1, 0, OWNER_BUDGET);
        run actor(1, 0, 1, HOLDER_1_BUDGET);
        run actor(2, 0, 1, HOLDER_2_BUDGET);
#ifdef DEFERRED
        run reclaimer();
#endif
    }
}
