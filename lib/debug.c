/* F8 debug: the library's figures, gathered from the floors below, and its shutdown. */
#include "check.h"
#include "event.h"
#include "finalize.h"
#include "guard.h"
#include "pool.h"
#include "queue.h"

#include <errno.h>
#include <string.h>

#include <weakref/debug.h>

void wr_stats_sized(struct wr_stats *stats, size_t size)
{
    struct wr_guard_stats guard;
    wr_guard_get_stats(&guard);
    struct wr_stats all = {
        .deferred = guard.pending,
        .epoch = guard.epoch,
        .oldest_guard_ns = guard.oldest_guard_ns,
        .oldest_guard_thread = (uint64_t)guard.oldest_guard_tid,
        .membarrier = guard.membarrier,
        .saturated = wr_warning_count(WR_WARN_SATURATED),
        .leaked = wr_warning_count(WR_WARN_LEAKED),
        .at_exit = wr_finalize_count(),
    };
    /* A program built against newer headers gets zeros for what this library does not know. */
    memset(stats, 0, size);
    memcpy(stats, &all, size < sizeof all ? size : sizeof all);
}

void wr_set_warn(void (*warn)(const char *message, void *ctx), void *ctx)
{
    wr_check_set_warn(warn, ctx);
}

int wr_shutdown(unsigned timeout_ms)
{
    const uint64_t ns_per_ms = 1000000;
    wr_queue *queue = wr_queue_default();
    if (wr_guard_is_inside() || wr_guard_is_deferred() || wr_queue_is_below(queue))
        return -EDEADLK;
    uint64_t until_ns = timeout_ms == WR_NO_TIMEOUT ? WR_EVENT_FOREVER : wr_clock_ns() + timeout_ms * ns_per_ms;
    for (;;) {
        if (!wr_finalize_flush(until_ns) || !wr_queue_flush(queue, until_ns))
            return -ETIMEDOUT;
        int error = wr_barrier_until(until_ns);
        if (error != 0)
            return error;
        struct wr_queue_stats stats;
        wr_queue_stats(queue, &stats);
        if (stats.pending == 0 && stats.running == 0 && wr_finalize_count() == 0)
            break;
    }
    wr_pool_trim();
    return 0;
}
