/* F5 keep: which of its objects a dictionary holds on to, and which it lets go.
 *
 * A keep holds strong references, up to so many, or so many bytes, or for so long after the last use. Which one goes is
 * decided by SIEVE (Zhang, Yang, Yue, Vigfusson and Rashmi, "SIEVE is Simpler than LRU", NSDI 2024): what is kept
 * stands in a queue by age; a use sets a mark; a hand walks from the oldest to the newest and round again, takes the
 * mark from who has one, and lets go the first who has none. It does not move what was used, so a use takes no lock, and
 * one that finds the mark set, as most uses of what is used most, writes nothing at all.
 *
 * Time: a use notes the tick it came in, ticks being an eighth of the time that is allowed. By the tick that was known
 * when it was last looked at each kept object stands in one of some buckets; when a bucket's time has come, who was used
 * since goes to another bucket and the rest is let go. So time costs no thread, and nothing happens between calls.
 *
 * Threads: the lock of the keep guards all but marks and ticks. References are given up by the caller of take and settle, after the
 * lock; so user code runs under none. A record that is let go may come back with its next use; one that is gone does not.
 *
 *     LOOSE --add--> KEPT --use--> VISITED        KEPT, VISITED, LOOSE --gone--> GONE
 *     KEPT  --hand--> LOOSE       VISITED --hand--> KEPT      KEPT, VISITED --time--> LOOSE
 *
 * All keeps of the process stand in a list, most idle first, for pressure.h.
 */
#ifndef WR_LIB_KEEP_H
#define WR_LIB_KEEP_H

#include "lock.h"

#include <weakref/object.h>

typedef struct wr_keep wr_keep;

typedef struct wr_keep_link {
    struct wr_keep_link *prev, *next;
} wr_keep_link;

enum { WR_KEPT_LOOSE, WR_KEPT_KEPT, WR_KEPT_VISITED, WR_KEPT_GONE };

/* Of one entry of a dictionary, whose memory it shares. */
typedef struct wr_kept {
    wr_keep_link by_age;  /* KEPT, VISITED: in the queue. Guarded by the keep's lock */
    wr_keep_link by_tick; /* and in a bucket, where time is limited. Guarded by the keep's lock */
    void *obj;            /* or NULL: never to be kept. Set before add */
    size_t size;          /* what it counts for. Set before add */
    wr_atomic_u64 tick;   /* of the last use, where time is limited */
    wr_atomic_u32 state;  /* changed under the keep's lock, but for KEPT -> VISITED */
    bool owed;            /* GONE: the reference, that was the keep's, is the entry's */
} wr_kept;

_Static_assert(sizeof(void *) != 8 || sizeof(wr_kept) == 64, "what an entry takes more where it may be kept");

typedef struct wr_keep_limits {
    size_t objects; /* SIZE_MAX: no limit */
    size_t size;    /* SIZE_MAX: no limit, and nothing has a size */
    uint64_t ms;    /* UINT64_MAX: no limit */
} wr_keep_limits;

/* What uses look at. The rest is in keep.c, on other cache lines. */
struct wr_keep_uses {
    uint64_t tick_ns;      /* 0: time is not limited. Set at init */
    wr_atomic_u32 touched; /* something was used since wr_keep_age() */
} __attribute__((aligned(64)));

/* ---- life ------------------------------------------------------------------------------------------------- */

/* [owned] a keep in the list of all, for wr_keep_end() and wr_keep_release(); or NULL: no memory. */
wr_keep *wr_keep_new(const wr_keep_limits *limits);

/* Takes it off the list, and waits until wr_keep_trim_all() has left it on other threads; from here on nothing new is kept.
 * Requires: no other call beside it, but from destroys that such a trim runs. */
void wr_keep_end(wr_keep *k);

/* Requires: nothing is kept any more. */
void wr_keep_release(wr_keep *k);

/* ---- records ---------------------------------------------------------------------------------------------- */

static inline void wr_kept_init(wr_kept *r)
{
    r->obj = NULL;
    r->owed = false;
    wr_atomic_init(&r->tick, 0);
    wr_atomic_init(&r->state, WR_KEPT_LOOSE);
}

/* Makes @r ready to be added, with a reference that is the record's until then; not if it could not be kept anyway.
 * Requires: no wr lock held; the caller holds @obj. */
void wr_keep_prepare(wr_keep *k, wr_kept *r, void *obj, size_t size);

/* The record is not going to be added. Requires: as prepare. */
static inline void wr_kept_undo(wr_kept *r)
{
    wr_release(r->obj);
    r->obj = NULL;
}

/* Keeps what was prepared: the newest. wr_keep_settle() is to follow if it returns true. A shard lock may be held. */
bool wr_keep_add(wr_keep *k, wr_kept *r);

/* Its entry is being taken out. If it was kept, the reference is owed to whom wr_kept_owed() gives it. A shard lock may be held. */
void wr_keep_gone(wr_keep *k, wr_kept *r);

/* [owned] the reference, once; or NULL. Requires: the caller took the entry out. */
static inline void *wr_kept_owed(wr_kept *r)
{
    void *obj = r->owed ? r->obj : NULL;
    r->owed = false;
    return obj;
}

/* ---- uses ------------------------------------------------------------------------------------------------- */

WR_COLD void wr_keep_tick(wr_keep *k, wr_kept *r);
WR_COLD bool wr_keep_again(wr_keep *k, wr_kept *r);

/* Notes a use of what is kept. Returns whether it was loose. Lock-free. Requires: the record stays, by a guard. */
static inline bool wr_keep_mark(wr_keep *k, wr_kept *r)
{
    struct wr_keep_uses *uses = (struct wr_keep_uses *)k;
    if (uses->tick_ns != 0)
        wr_keep_tick(k, r);
    /* Relaxed, all of them: marks, by which nothing is read. A compare-exchange, since KEPT may have become LOOSE or GONE. */
    if (wr_unlikely(wr_atomic_load_relaxed(&uses->touched) == 0))
        wr_atomic_store_relaxed(&uses->touched, 1);
    uint32_t state = wr_atomic_load_relaxed(&r->state);
    if (state == WR_KEPT_KEPT)
        (void)wr_atomic_cas_relaxed(&r->state, &state, WR_KEPT_VISITED);
    return state == WR_KEPT_LOOSE;
}

/* The same, and what is loose is kept again. Lock-free if it is not. True: wr_keep_settle() is to follow. Requires: as mark; the caller holds the object. */
static inline bool wr_keep_use(wr_keep *k, wr_kept *r)
{
    return wr_unlikely(wr_keep_mark(k, r)) && wr_keep_again(k, r);
}

/* ---- letting go ------------------------------------------------------------------------------------------- */

/* Lets go what is too much, and some of what was not used for too long. Requires: no wr lock held, and no guard of the
 * library's own (runs user code). */
void wr_keep_settle(wr_keep *k);

/* Lets go what was not used for too long, and of the rest so much that at least @fraction (0 to 1) is gone of what there was:
 * by size where sizes count, else by number. How many. Requires: as settle. */
size_t wr_keep_trim(wr_keep *k, double fraction);

/* How many are kept, and their size. */
size_t wr_keep_count(wr_keep *k, size_t *size);

/* ---- all of them ------------------------------------------------------------------------------------------ */

/* Those that were used since the last time go to the end of the list. */
void wr_keep_age(void);

/* Trims every keep, those first that have been idle for longest. How many were let go. Requires: as settle. */
size_t wr_keep_trim_all(double fraction);

/* For tests: what keeps made from now on take for the time, in nanoseconds; NULL: CLOCK_MONOTONIC_COARSE. */
void wr_keep_set_clock(uint64_t (*clock_ns)(void));

#endif
