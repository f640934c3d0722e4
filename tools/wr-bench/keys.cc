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

template <class K> static void fill_order(Ring<K> *ring)
{
    std::mt19937_64 random(ring->keys.size());
    size_t size = 1;
    while (size < ring->keys.size())
        size *= 2;
    ring->order.reserve(size);
    for (size_t i = 0; i < size; i++)
        ring->order.push_back(ring->keys[random() % ring->keys.size()]);
}

template <> Ring<std::string>::Ring(size_t n) : keys(Keys(n).keys)
{
    fill_order(this);
}

template <> Ring<uint64_t>::Ring(size_t n)
{
    std::mt19937_64 random(~n);
    for (size_t i = 0; i < n; i++)
        keys.push_back(random());
    fill_order(this);
}

} /* namespace bench */
