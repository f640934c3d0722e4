/* F3 thread: the part of a thread's own record that inline read sections touch.
 *
 * A guard is a store of the epoch into this record; see guard.h. The rest of a thread's record is private to
 * the library. Both live in thread-local storage, so that registering a thread cannot fail.
 */
#ifndef WEAKREF_DETAIL_THREAD_H
#define WEAKREF_DETAIL_THREAD_H

#include <weakref/detail/header.h>

enum wr_guard_mode {
    WR_GUARD_COLD,      /* out of line: not registered yet, after the thread's teardown, or with fences */
    WR_GUARD_ASYMMETRIC /* inline: a store here, membarrier(2) there */
};

struct wr_guard_record {
    uint32_t mode;       /* enum wr_guard_mode; only its own thread looks */
    uint32_t depth;      /* how many guards are nested; only its own thread looks */
    wr_atomic_u64 epoch; /* the epoch at entry of the outermost guard; 0: in none. Reclaimers read it */
};

WR_BEGIN_DECLS

extern WR_API __thread struct wr_guard_record WR_LAYOUT(wr_self) __attribute__((tls_model("initial-exec")));

/* The epoch, on a cache line of its own: read by every guard, written once a grace period. */
struct wr_epoch_line {
    wr_atomic_u64 now;
} __attribute__((aligned(64)));

extern WR_API struct wr_epoch_line WR_LAYOUT(wr_epoch);

WR_END_DECLS

#endif
