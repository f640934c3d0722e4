/* F3 thread: the part of a thread's own record that inline read sections touch.
 *
 * A guard is a store of the epoch into this record; see guard.h. The rest of a thread's record is private to
 * the library. Both live in thread-local storage, so that registering a thread cannot fail.
 */
#ifndef WEAKREF_DETAIL_THREAD_H
#define WEAKREF_DETAIL_THREAD_H

#include <weakref/detail/header.h>

/* How a thread's sections begin, and what its section word says while it is in none. */
enum wr_guard_mode {
    WR_GUARD_COLD,      /* out of line: not registered yet, after the thread's teardown, or with fences */
    WR_GUARD_ASYMMETRIC /* inline: a store here, membarrier(2) there */
};

/* The section word says all that enter and exit have to know, so that each looks at it once:
 *     0 or 1   in no section; the next enter is as the mode says
 *     t        in a section that began out of line in epoch t, and is left so
 *     t | 2    in a section that began inline in epoch t
 * Always read and written whole: a store forwards only to loads that lie in it. */
#define WR_SECTION_INLINE UINT64_C(2)
#define WR_SECTION_EPOCH (~UINT64_C(3)) /* what is left of the word is 0 in no section */
#define WR_EPOCH_STEP UINT64_C(4)

struct wr_guard_record {
    wr_atomic_u64 section; /* only its own thread writes it; reclaimers read it */
    uint64_t nested;       /* how many sections are open in the outermost one; only its own thread looks */
};

WR_BEGIN_DECLS

extern WR_API __thread struct wr_guard_record WR_LAYOUT(wr_self) __attribute__((tls_model("initial-exec")));

/* The epoch, on a cache line of its own: read by every guard, written once a grace period. */
struct wr_epoch_line {
    wr_atomic_u64 now; /* with WR_SECTION_INLINE, as an inline enter stores it */
} __attribute__((aligned(64)));

extern WR_API struct wr_epoch_line WR_LAYOUT(wr_epoch);

/* Whether the calling thread is in a section. */
static inline bool wr_section_is_open(void)
{
    /* Relaxed: its own thread's. */
    return wr_atomic_load_relaxed(&WR_LAYOUT(wr_self).section) > WR_GUARD_ASYMMETRIC;
}

WR_END_DECLS

#endif
