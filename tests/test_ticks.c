/* Tests of ticks: the clock that is chosen, and the one of machines that have no better. */
#include "ticks.h"

#include <criterion/criterion.h>
#include <pthread.h>

TestSuite(ticks, .timeout = 60);

/* As on a machine without a counter. Nothing else in this process looks at ticks. */
static void use_clock(void)
{
    wr_ticks_counter = false;
}

static void check_never_back(void)
{
    uint64_t last = wr_ticks();
    for (int i = 0; i < 100000; i++) {
        uint64_t now = wr_ticks();
        cr_assert((int64_t)(now - last) > -100000, "a step of %lld ticks", (long long)(now - last));
        last = now;
    }
}

Test(ticks, never_go_back_by_more_than_processors_differ)
{
    check_never_back();
    use_clock();
    check_never_back();
}

static void burn_ns(uint64_t ns)
{
    for (uint64_t start = wr_ticks_clock_ns(); wr_ticks_clock_ns() - start < ns;)
        ;
}

/* Looks at the clock on both sides of both ticks: whatever preempts this thread is between the bounds. */
static void check_length(uint64_t ns)
{
    uint64_t a = wr_ticks_clock_ns();
    uint64_t then = wr_ticks();
    uint64_t b = wr_ticks_clock_ns();
    burn_ns(ns);
    uint64_t c = wr_ticks_clock_ns();
    uint64_t ticks = wr_ticks_since(then);
    uint64_t d = wr_ticks_clock_ns();
    uint64_t said = wr_ticks_to_ns(ticks), least = c - b, most = d - a;
    cr_assert_geq(said, least - least / 50 - 1000, "%llu ns, at least %llu", (unsigned long long)said,
                  (unsigned long long)least);
    cr_assert_leq(said, most + most / 50 + 1000, "%llu ns, at most %llu", (unsigned long long)said,
                  (unsigned long long)most);
}

Test(ticks, in_nanoseconds_agree_with_the_clock)
{
    for (uint64_t ns = 100000; ns <= 20000000; ns *= 2)
        check_length(ns);
    use_clock();
    check_length(1000000);
}

Test(ticks, of_the_clock_are_nanoseconds)
{
    use_clock();
    uint64_t a = wr_ticks_clock_ns(), ticks = wr_ticks(), b = wr_ticks_clock_ns();
    cr_assert(a <= ticks && ticks <= b);
    cr_assert_eq(wr_ticks_to_ns(12345), 12345);
    cr_assert_eq(wr_ticks_to_ns(UINT64_MAX), UINT64_MAX);
}

Test(ticks, conversion_keeps_order_and_zero)
{
    cr_assert_eq(wr_ticks_to_ns(0), 0);
    uint64_t last = 0;
    for (int bit = 4; bit < 64; bit += 4) { /* each is so much more than the last that calibration does not matter */
        uint64_t ns = wr_ticks_to_ns(UINT64_C(1) << bit);
        cr_assert_gt(ns, last, "bit %d", bit);
        last = ns;
    }
    cr_assert_geq(wr_ticks_to_ns(UINT64_MAX), last);
}

Test(ticks, since_the_future_is_zero)
{
    uint64_t now = wr_ticks();
    cr_assert_eq(wr_ticks_since(now + (UINT64_C(1) << 50)), 0);
    cr_assert_gt(wr_ticks_since(now - (UINT64_C(1) << 50)), 0);
    use_clock();
    now = wr_ticks();
    cr_assert_eq(wr_ticks_since(now + (UINT64_C(1) << 50)), 0);
}

struct relay {
    uint64_t then;
};

static void *look(void *arg)
{
    struct relay *relay = arg;
    return (void *)(uintptr_t)(wr_ticks_since(relay->then) < UINT64_C(1) << 50);
}

Test(ticks, of_another_thread_make_no_huge_difference)
{
    for (int i = 0; i < 200; i++) {
        struct relay relay = {wr_ticks()};
        pthread_t thread;
        void *sane;
        cr_assert_eq(pthread_create(&thread, NULL, look, &relay), 0);
        pthread_join(thread, &sane);
        cr_assert_not_null(sane);
    }
}
