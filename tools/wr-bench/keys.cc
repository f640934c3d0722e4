/* wr-bench: keys. */
#include "bench.h"

#include <cstdio>
#include <random>

namespace bench
{

Keys::Keys(size_t n, const char *prefix)
{
    std::mt19937_64 random(n); /* the same in each run */
    keys.reserve(n);
    for (size_t i = 0; i < n; i++) {
        char text[64];
        snprintf(text, sizeof text, "%.4s-%08x-%09zu", prefix, unsigned(random()), i);
        keys.emplace_back(text, 23);
    }
    size_t size = 1;
    while (size < 4 * n)
        size *= 2;
    for (size_t i = 0; i < size; i++)
        order.push_back(&keys[random() % n]);
}

} /* namespace bench */
