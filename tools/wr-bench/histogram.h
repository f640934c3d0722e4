/* wr-bench: how the times of single operations are spread: logarithmic buckets, four to each power of two.
 *
 * A bucket's upper bound is less than 25 % above each value in it. The least and the greatest value are kept exactly.
 */
#ifndef WR_BENCH_HISTOGRAM_H
#define WR_BENCH_HISTOGRAM_H

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace bench
{

class Histogram
{
  public:
    static constexpr size_t n_cells = 4 + 62 * 4; /* 0 to 3, then four for each of the powers 2^2 to 2^63 */

    void add(uint64_t value)
    {
        cells[cell_of(value)]++;
        n++;
        least = std::min(least, value);
        greatest = std::max(greatest, value);
    }

    uint64_t count() const
    {
        return n;
    }
    uint64_t min() const
    {
        return n == 0 ? 0 : least;
    }
    uint64_t max() const
    {
        return greatest;
    }
    uint64_t in_cell(size_t cell) const
    {
        return cells[cell];
    }

    /* The greatest value of a cell. */
    static uint64_t up_to(size_t cell)
    {
        if (cell < 4)
            return cell;
        size_t high = cell / 4 + 1;
        return (uint64_t(1) << high) + ((cell % 4 + 1) << (high - 2)) - 1;
    }

    /* What the share @q (0 to 1) of the values does not exceed, at most 25 % too high: 0.5 is the median. 0 of none. */
    uint64_t quantile(double q) const
    {
        uint64_t below = 0;
        for (size_t cell = 0; cell < n_cells; cell++) {
            below += cells[cell];
            if (below > 0 && double(below) >= q * double(n))
                return std::min(up_to(cell), greatest);
        }
        return greatest;
    }

  private:
    static size_t cell_of(uint64_t value)
    {
        if (value < 4)
            return size_t(value);
        unsigned high = 63u - unsigned(__builtin_clzll(value));
        return (high - 1) * size_t(4) + size_t(value >> (high - 2) & 3);
    }

    std::array<uint64_t, n_cells> cells = {};
    uint64_t n = 0, least = UINT64_MAX, greatest = 0;
};

} /* namespace bench */

#endif
