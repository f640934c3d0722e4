/* wr-bench: keys. */
#include "bench.h"

#include <cstdio>
#include <random>

namespace bench
{

static size_t order_size(size_t n)
{
    size_t size = 1;
    while (size < 4 * n)
        size *= 2;
    return size;
}

Keys::Keys(size_t n, const char *prefix)
{
    std::mt19937_64 random(n); /* the same in each run */
    keys.reserve(n);
    for (size_t i = 0; i < n; i++) {
        char text[64];
        snprintf(text, sizeof text, "%.4s-%08x-%09zu", prefix, unsigned(random()), i);
        keys.emplace_back(text, 23);
    }
    for (size_t i = order_size(n); i > 0; i--)
        order.push_back(&keys[random() % n]);
}

Numbers::Numbers(size_t n)
{
    std::mt19937_64 random(n);
    for (size_t i = 0; i < n; i++)
        keys.push_back(random());
    for (size_t i = order_size(n); i > 0; i--)
        order.push_back(keys[random() % n]);
}

} /* namespace bench */
