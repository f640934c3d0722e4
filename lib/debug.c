/* F8 debug: the library's figures, gathered from the floors below. */
#include "check.h"
#include "guard.h"

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
    };
    /* A program built against newer headers gets zeros for what this library does not know. */
    memset(stats, 0, size);
    memcpy(stats, &all, size < sizeof all ? size : sizeof all);
}

void wr_set_warn(void (*warn)(const char *message, void *ctx), void *ctx)
{
    wr_check_set_warn(warn, ctx);
}
