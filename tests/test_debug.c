/* Tests of the library's figures. */
#include "expect.h"

#include <weakref/debug.h>
#include <weakref/guard.h>
#include <weakref/object.h>

static const wr_type plain_type = {.name = "plain", .size = 8};

Test(debug, quiet_library_has_nothing_deferred_saturated_or_leaked)
{
    struct wr_stats stats;
    memset(&stats, 0xff, sizeof stats);
    wr_stats(&stats);
    cr_assert_eq(stats.deferred, 0);
    cr_assert_gt(stats.epoch, 0);
    cr_assert_eq(stats.oldest_guard_ns, 0);
    cr_assert_eq(stats.oldest_guard_thread, 0);
    cr_assert_leq(stats.membarrier, 1);
    cr_assert_eq(stats.saturated, 0);
    cr_assert_eq(stats.leaked, 0);
}

Test(debug, deferred_counts_what_waits_and_the_epoch_what_was_begun)
{
    struct wr_stats stats, later;
    wr_stats(&stats);
    WR_GUARD {
        for (uint64_t i = 1; i <= 1000; i++) {
            wr_release_later(wr_new(&plain_type));
            if (i % 100 == 0) {
                wr_stats(&later);
                cr_assert_eq(later.deferred, i);
            }
        }
    }
    cr_assert_eq(wr_barrier(), 0);
    wr_stats(&later);
    cr_assert_eq(later.deferred, 0);
    cr_assert_gt(later.epoch, stats.epoch);
}

Test(debug, callers_of_other_versions_get_what_they_know_and_zeros)
{
    struct {
        struct wr_stats stats;
        uint64_t newer[4];
    } large;
    memset(&large, 0xff, sizeof large);
    wr_stats_sized(&large.stats, sizeof large);
    cr_assert_gt(large.stats.epoch, 0);
    for (unsigned i = 0; i < 4; i++)
        cr_assert_eq(large.newer[i], 0);

    memset(&large, 0xff, sizeof large);
    wr_stats_sized(&large.stats, 2 * sizeof(uint64_t));
    cr_assert_eq(large.stats.deferred, 0);
    cr_assert_gt(large.stats.epoch, 0);
    cr_assert_eq(large.stats.oldest_guard_ns, UINT64_MAX, "not touched");
}

static atomic_bool inside, leave;

static void *stall_main(void *unused)
{
    wr_guard_enter();
    atomic_store(&inside, true);
    while (!atomic_load(&leave))
        nanosleep(&(const struct timespec){.tv_nsec = 1000000}, NULL);
    wr_guard_exit();
    return unused;
}

Test(debug, oldest_guard_that_holds_something_back_is_shown_with_its_age)
{
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, stall_main, NULL), 0);
    await(atomic_load(&inside));
    wr_release_later(wr_new(&plain_type));
    struct wr_stats stats;
    await((wr_stats(&stats), stats.oldest_guard_ns > 20000000));
    uint64_t before = stats.oldest_guard_ns, tid = stats.oldest_guard_thread;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%llu", (unsigned long long)tid);
    cr_assert_eq(access(path, F_OK), 0, "no such thread: %s", path);
    cr_assert_neq(tid, (uint64_t)gettid());
    await((wr_stats(&stats), stats.oldest_guard_ns > before));
    atomic_store(&leave, true);
    pthread_join(thread, NULL);
    await((wr_stats(&stats), stats.deferred == 0 && stats.oldest_guard_ns == 0));
}
