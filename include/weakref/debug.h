/* F8 debug: what the library counts, where its warnings go, and how it is brought to rest.
 *
 * Example:
 *     struct wr_stats stats;
 *     wr_stats(&stats);
 *     printf("%llu deferred\n", (unsigned long long)stats.deferred);
 */
#ifndef WEAKREF_DEBUG_H
#define WEAKREF_DEBUG_H

#include <limits.h>

#include <weakref/alloc.h>
#include <weakref/types.h>

WR_BEGIN_DECLS

/** Figures of the whole library; grows at its end. */
struct wr_stats {
    uint64_t deferred;            /* releases and memory that wait for a grace period */
    uint64_t epoch;               /* grace periods begun so far */
    uint64_t oldest_guard_ns;     /* age of the oldest guard, as far as reclaimers saw it; 0: none */
    uint64_t oldest_guard_thread; /* its thread id (gettid) */
    uint64_t membarrier;          /* 1: guards are asymmetric; 0: they use fences */
    uint64_t saturated;           /* operations that found a count at its limit */
    uint64_t leaked;              /* references leaked inside a guard for want of memory */
    uint64_t at_exit;             /* finalizers with WR_FINALIZE_ATEXIT that this process made and that are alive */
};

#ifdef __GNUC__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow" /* C++: a struct and a function of one name */
#endif

WR_API void wr_stats_sized(struct wr_stats *stats, size_t size);

/**
 * wr_stats() - the figures as they are now.
 * @stats: [borrowed] not NULL; filled.
 *
 * Returns: nothing.
 * Errors:  none.
 * Threads: any. Takes short internal locks.
 * Order:   none.
 */
static inline void wr_stats(struct wr_stats *stats)
{
    wr_stats_sized(stats, sizeof *stats);
}

#ifdef __GNUC__
#pragma GCC diagnostic pop
#endif

/**
 * wr_set_warn() - where warnings go; each kind is reported once and counted for ever.
 * @warn: [kept] gets a line without newline; NULL: standard error again. It may run on any thread and must not call back.
 * @ctx:  [kept] handed to it.
 *
 * Returns: nothing.
 * Errors:  none.
 * Threads: before other threads use the library.
 * Order:   none.
 */
WR_API void wr_set_warn(void (*warn)(const char *message, void *ctx), void *ctx);

/** For wr_shutdown(): as long as it takes. */
#define WR_NO_TIMEOUT UINT_MAX

/**
 * wr_shutdown() - bring everything to an end that is under way, as before the exit or before a leak check.
 * @timeout_ms: milliseconds after which nothing more is begun or waited for; what is running is not interrupted. WR_NO_TIMEOUT: none.
 *
 * Runs the finalizers with WR_FINALIZE_ATEXIT that are alive, newest first; then waits until the default queue has nothing
 * pending or running, and runs its callbacks here if it has no thread; then until all deferred memory is free (wr_barrier()); and
 * again, if that brought about more. Last, what is kept for reuse goes back to the allocator. It may be called more than
 * once, and the library stays usable. Other queues are their owners' affair.
 *
 * Returns: 0: nothing was left when it looked last.
 * Errors:  -ETIMEDOUT: something is left: see at_exit and deferred in wr_stats(), and wr_queue_stats() of the default queue.
 *          -EDEADLK: called inside a guard, from a callback of the default queue, or from deferred work; nothing has changed.
 *          -ENOTSUP as wr_barrier().
 * Threads: any; blocks. Runs user code under no lock of the library. Two finalizers with WR_FINALIZE_ATEXIT that call it without a
 *          time on two threads wait for each other. With other threads at work it may never find an end:
 *          give it a time.
 * Order:   all that it ran or waited for happens before its return.
 */
WR_API int wr_shutdown(unsigned timeout_ms);

WR_END_DECLS

#endif
