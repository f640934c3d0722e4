/* F1 histogram: how values are spread, in a fixed amount of memory: logarithmic buckets, four to each power of two.
 *
 * A bucket's upper bound is less than 25 % above each value in it; values below 8 have buckets of their own. The
 * greatest value is kept exactly.
 *
 * Whoever adds holds a lock of its own, so that adds do not meet; cells are atomics only so that who reads without that
 * lock is no data race. Such a reader sees each cell at some moment of its reading, and cells only grow.
 *
 * All zero bytes are an empty histogram.
 */
#ifndef WR_LIB_HISTOGRAM_H
#define WR_LIB_HISTOGRAM_H

#include "atomics.h"

#include <weakref/types.h>

/* 0 to 3, then four for each of the powers 2^2 to 2^63. */
#define WR_HISTOGRAM_CELLS (4 + 62 * 4)

typedef struct wr_histogram {
    wr_atomic_u64 cells[WR_HISTOGRAM_CELLS];
    wr_atomic_u64 max;
} wr_histogram;

/* Which cell counts @value: its highest bit, and the two bits below that. */
static inline unsigned wr_histogram_cell(uint64_t value)
{
    if (value < 4)
        return (unsigned)value;
    unsigned high = 63u - (unsigned)__builtin_clzll(value);
    return (high - 1) * 4 + (unsigned)(value >> (high - 2) & 3);
}

/* Requires: the caller's lock, against other adds. */
static inline void wr_histogram_add(wr_histogram *h, uint64_t value)
{
    wr_atomic_u64 *cell = &h->cells[wr_histogram_cell(value)];
    /* Relaxed: the caller's lock orders the adds; readers want figures, no order. */
    wr_atomic_store_relaxed(cell, wr_atomic_load_relaxed(cell) + 1);
    if (value > wr_atomic_load_relaxed(&h->max))
        wr_atomic_store_relaxed(&h->max, value);
}

/* How many values were added. */
uint64_t wr_histogram_count(const wr_histogram *h);
/* The greatest value, exactly; 0 of none. */
uint64_t wr_histogram_max(const wr_histogram *h);
/* The least bound, among the upper bounds of the cells and the greatest value, that the share @q (0 to 1) of the values
 * does not exceed: 0.5 is the median. 0 of none. @q outside of its range is taken as its nearest end. */
uint64_t wr_histogram_quantile(const wr_histogram *h, double q);

#endif
