/* F3 guard: read sections and what waits for them (public half: <weakref/guard.h>).
 *
 * The grace period, in five lines:
 *   1. Who unlinks X then retires it: unlink -> push (release) -> taken by a collector (acquire), which then moves
 *      the epoch from t to t+1 (release), issues membarrier, and scans all records. X is tagged t.
 *   2. A reader stores its record, then (compiler barrier) loads pointers. If that store is not visible to the
 *      scan, the membarrier stands before those loads: they see the unlink, the reader cannot find X.
 *   3. If it is visible and is above t, the reader's acquire load of the epoch saw t+1: it sees the unlink too.
 *   4. If it is visible and t or less, X waits. X goes when every record is in no section or above t.
 *   5. The word of a record that is in none is a release store after the section's last read; the scan's acquire load sees
 *      it before the free. Nested sections do not touch the word.
 * One step, not the usual two epochs: the collector alone moves the epoch, after taking, so a tag is never late.
 * Where fences stand in for membarrier, line 2 is the rule of C++20 (and of every machine), by which what happens before a
 * fence counts as what is sequenced before it; C11's own text asks for the latter.
 */
#ifndef WR_LIB_GUARD_H
#define WR_LIB_GUARD_H

#include "thread.h"

#include <weakref/guard.h>

/* Calls r->reclaim(r) after every read section that runs now has ended.
 * _memory: reclaim frees the library's own memory (and may release weak counts); it may run on any thread, at
 *          any call, but under no lock. It retires nothing itself.
 * _user:   reclaim runs user code: on the reclaimer thread, or in wr_synchronize(), wr_barrier(), wr_shutdown().
 * @r: [consumed] memory of the caller, untouched until reclaim gets it. Both may be called under any lock but the
 *     reclaim and threads locks, inside a guard or not; neither allocates nor blocks. */
void wr_retire_memory(wr_retired *r, void (*reclaim)(wr_retired *r));
void wr_retire_user(wr_retired *r, void (*reclaim)(wr_retired *r));

/* As wr_retire_user(), for the library's own work that wants the reclaimer thread: it goes on in a forked child, whoever
 * retired it. */
void wr_retire_chore(wr_retired *r, void (*reclaim)(wr_retired *r));

/* After the locks are left: frees what is due if much has piled up. Cheap otherwise. Retiring under a lock does
 * not collect by itself; whoever retired calls this once it holds none. Behind the gate it does nothing. */
void wr_retire_relax(void);

/* Makes sure the reclaimer thread runs: where failure can still be reported. 0, or -EAGAIN. */
int wr_reclaimer_start(void);

/* Calls run(pointer) after every read section that runs now, for what brings no record of its own (slot stores,
 * wr_release_later()). @user: whether run is user code, as for wr_retire_user().
 * Returns true; where there is no memory for a record it waits for a grace period to bring one back. False: no memory, and
 * inside a guard or after membarrier broke, where it cannot wait: nothing was done (the caller leaks, and says so). Requires: no wr lock held. */
bool wr_defer(void (*run)(void *pointer), void *pointer, bool user);

/* wr_barrier() that gives up at @until_ns (WR_EVENT_FOREVER: never): -ETIMEDOUT. */
int wr_barrier_until(uint64_t until_ns);

bool wr_guard_is_inside(void);

/* Whether the caller is deferred work, which cannot wait for deferred work. */
bool wr_guard_is_deferred(void);

/* Figures for wr_stats(). */
struct wr_guard_stats {
    uint64_t epoch;
    uint64_t pending;         /* retired, not yet reclaimed */
    uint64_t oldest_guard_ns; /* age of the oldest guard as far as reclaimers saw it; 0: none */
    int oldest_guard_tid;
    bool membarrier; /* asymmetric guards in use */
};
void wr_guard_get_stats(struct wr_guard_stats *stats);

#endif
