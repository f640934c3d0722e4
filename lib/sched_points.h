/* F1 sched: schedule points, where a test build lets another thread run.
 *
 * Only in builds with WR_SCHED_POINTS. There every atomic operation calls wr_sched_point() first, which is off until
 * the environment variable WR_SCHED_SEED or wr_sched_seed() switches it on. Then each thread spins, yields or sleeps
 * at some of its points, drawn from a generator of its own that starts from (seed, thread's ordinal): races whose
 * window is two instructions wide open far.
 * (Not sched.h: that is the name of a system header, which <pthread.h> includes.)
 */
#ifndef WR_LIB_SCHED_POINTS_H
#define WR_LIB_SCHED_POINTS_H

#include <stdint.h>

#if !defined(WR_SCHED_POINTS) || !WR_SCHED_POINTS
#error "schedule points are not part of this build"
#endif

/* From now on every thread draws from @seed; 0: off. A thread that is running notices within some thousand points,
 * the calling one and new ones at once. */
__attribute__((visibility("default"))) void wr_sched_seed(uint64_t seed);

#endif
