/* F8 debug: what the library counts, and where its warnings go.
 *
 * Example:
 *     struct wr_stats stats;
 *     wr_stats(&stats);
 *     printf("%llu deferred\n", (unsigned long long)stats.deferred);
 */
#ifndef WEAKREF_DEBUG_H
#define WEAKREF_DEBUG_H

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

WR_END_DECLS

#endif
