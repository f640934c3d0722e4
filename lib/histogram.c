/* F1 histogram: reading it. */
#include "histogram.h"

/* The greatest value that falls into the cell @i. */
static uint64_t upper_bound(unsigned i)
{
    if (i < 4)
        return i;
    unsigned high = i / 4 + 1;
    return ((uint64_t)(4 + i % 4) << (high - 2)) + ((UINT64_C(1) << (high - 2)) - 1);
}

static uint64_t cell_count(const wr_histogram *h, unsigned i)
{
    /* Relaxed: a figure. */
    return wr_atomic_load_relaxed(&h->cells[i]);
}

uint64_t wr_histogram_count(const wr_histogram *h)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < WR_HISTOGRAM_CELLS; i++)
        n += cell_count(h, i);
    return n;
}

uint64_t wr_histogram_max(const wr_histogram *h)
{
    /* Relaxed: a figure. */
    return wr_atomic_load_relaxed(&h->max);
}

/* The rank of the value that is asked for, from 1 to @n. */
static uint64_t rank_of(double q, uint64_t n)
{
    if (!(q > 0))
        return 1;
    double rank = q * (double)n;
    if (rank >= (double)n)
        return n;
    uint64_t whole = (uint64_t)rank;
    return whole + ((double)whole < rank || whole == 0);
}

uint64_t wr_histogram_quantile(const wr_histogram *h, double q)
{
    uint64_t n = wr_histogram_count(h), max = wr_histogram_max(h), below = 0;
    if (n == 0)
        return 0;
    uint64_t rank = rank_of(q, n);
    for (unsigned i = 0; i < WR_HISTOGRAM_CELLS; i++) {
        below += cell_count(h, i); /* cells only grow: at the last one at the latest this is n or more */
        if (below >= rank) {
            uint64_t bound = upper_bound(i);
            /* Where an add runs beside this, the greatest value may lag behind the cells. */
            return max < bound && wr_histogram_cell(max) == i ? max : bound;
        }
    }
    return max;
}
