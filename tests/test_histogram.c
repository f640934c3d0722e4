/* Tests of the histogram: known spreads, the bounds of every cell, and a reader beside the adder. */
#include "histogram.h"

#include <criterion/criterion.h>
#include <math.h>
#include <pthread.h>

#include "race.h"

TestSuite(histogram, .timeout = 60);

static wr_histogram h;

static void add(uint64_t value, uint64_t times)
{
    while (times-- > 0)
        wr_histogram_add(&h, value);
}

/* The bound of a value's cell, as seen from outside: the median of it and something greater. */
static uint64_t bound_of(uint64_t value)
{
    wr_histogram own = {0};
    wr_histogram_add(&own, value);
    wr_histogram_add(&own, UINT64_MAX);
    return wr_histogram_quantile(&own, 0.5);
}

Test(histogram, empty_is_zero)
{
    cr_assert_eq(wr_histogram_count(&h), 0);
    cr_assert_eq(wr_histogram_max(&h), 0);
    for (int i = 0; i <= 10; i++)
        cr_assert_eq(wr_histogram_quantile(&h, i / 10.0), 0);
}

Test(histogram, one_value_is_every_quantile_exactly)
{
    const uint64_t values[] = {0, 1, 3, 4, 7, 8, 9, 1000, UINT64_C(1) << 40, UINT64_MAX - 1, UINT64_MAX};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        wr_histogram own = {0};
        wr_histogram_add(&own, values[i]);
        cr_assert_eq(wr_histogram_quantile(&own, 0), values[i]);
        cr_assert_eq(wr_histogram_quantile(&own, 0.5), values[i]);
        cr_assert_eq(wr_histogram_quantile(&own, 1), values[i]);
        cr_assert_eq(wr_histogram_max(&own), values[i]);
    }
}

Test(histogram, cells_are_in_order_and_without_gaps)
{
    cr_assert_eq(wr_histogram_cell(0), 0);
    cr_assert_eq(wr_histogram_cell(UINT64_MAX), WR_HISTOGRAM_CELLS - 1);
    uint64_t value = 0;
    for (unsigned cell = 0; cell < WR_HISTOGRAM_CELLS; cell++) {
        cr_assert_eq(wr_histogram_cell(value), cell, "the first value of cell %u", cell);
        if (cell + 1 == WR_HISTOGRAM_CELLS)
            break;
        uint64_t bound = bound_of(value);
        cr_assert_eq(wr_histogram_cell(bound), cell, "the last value of cell %u", cell);
        value = bound + 1;
    }
}

Test(histogram, bounds_are_less_than_a_quarter_above)
{
    for (uint64_t value = 0; value < 8; value++)
        cr_assert_eq(bound_of(value), value);
    uint64_t random = 7;
    for (int i = 0; i < 100000; i++) {
        uint64_t value = race_draw(&random) >> (race_draw(&random) % 61);
        uint64_t bound = bound_of(value);
        cr_assert_geq(bound, value);
        cr_assert_leq(bound - value, value / 4, "%llu has the bound %llu", (unsigned long long)value,
                      (unsigned long long)bound);
    }
}

static void check_quantile(double q, uint64_t exact)
{
    uint64_t said = wr_histogram_quantile(&h, q);
    cr_assert_geq(said, exact, "quantile %g", q);
    cr_assert_leq(said, exact + exact / 4, "quantile %g", q);
}

Test(histogram, quantiles_of_an_even_spread)
{
    for (uint64_t value = 1; value <= 100000; value++)
        wr_histogram_add(&h, value);
    cr_assert_eq(wr_histogram_count(&h), 100000);
    for (int percent = 1; percent <= 100; percent++)
        check_quantile(percent / 100.0, (uint64_t)percent * 1000);
    check_quantile(0.999, 99900);
    cr_assert_eq(wr_histogram_quantile(&h, 0), 1);
    cr_assert_eq(wr_histogram_quantile(&h, 1), 100000);
}

Test(histogram, quantiles_of_a_spread_with_a_long_tail)
{
    add(100, 9000);
    add(5000, 900);
    add(1000000, 99);
    add(123456789, 1);
    check_quantile(0, 100);
    check_quantile(0.5, 100);
    check_quantile(0.9, 100);
    check_quantile(0.9001, 5000);
    check_quantile(0.99, 5000);
    check_quantile(0.9999, 1000000);
    cr_assert_eq(wr_histogram_quantile(&h, 1), 123456789);
    cr_assert_eq(wr_histogram_max(&h), 123456789);
}

Test(histogram, two_values_part_at_the_median)
{
    add(3, 1);
    add(6, 1);
    cr_assert_eq(wr_histogram_quantile(&h, 0.5), 3);
    cr_assert_eq(wr_histogram_quantile(&h, 0.51), 6);
}

Test(histogram, a_share_outside_of_zero_to_one_is_its_nearest_end)
{
    add(10, 10);
    add(2, 10);
    cr_assert_eq(wr_histogram_quantile(&h, -1), 2);
    cr_assert_eq(wr_histogram_quantile(&h, NAN), 2);
    cr_assert_eq(wr_histogram_quantile(&h, 7), 10);
    cr_assert_eq(wr_histogram_quantile(&h, INFINITY), 10);
}

enum { ADDS = RACE_SIZE(1000000, 50000) };

static _Atomic bool looked; /* the reader has seen a part */

static void *add_many(void *unused)
{
    /* At least ADDS, and until the reader has looked. Relaxed, for it must not order the adds. */
    for (uint64_t i = 0; i < ADDS || !atomic_load_explicit(&looked, memory_order_relaxed); i++)
        wr_histogram_add(&h, i % 1000);
    return unused;
}

Test(histogram, a_reader_beside_the_adder_sees_it_grow)
{
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, add_many, NULL), 0);
    uint64_t last = 0;
    while (last < ADDS / 2) {
        uint64_t n = wr_histogram_count(&h), max = wr_histogram_max(&h), median = wr_histogram_quantile(&h, 0.5);
        cr_assert_geq(n, last);
        cr_assert_leq(max, 999);
        cr_assert_leq(median, 1023);
        last = n;
        atomic_store_explicit(&looked, true, memory_order_relaxed);
    }
    pthread_join(thread, NULL);
    cr_assert_geq(wr_histogram_count(&h), ADDS);
}
