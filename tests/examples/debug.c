/* debug.h: memory from a function of one's own, and what the library counts. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* posix_memalign */
#endif
#include "check.h"

#include <weakref/debug.h>
#include <weakref/guard.h>
#include <weakref/object.h>
#include <weakref/weak.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

static atomic_long n_blocks; /* now */

static void *count_alloc(size_t size, size_t align, void *ctx)
{
    (void)ctx;
    void *memory;
    if (posix_memalign(&memory, align < sizeof(void *) ? sizeof(void *) : align, size) != 0)
        return NULL;
    n_blocks++;
    return memory;
}

static void count_free(void *memory, void *ctx)
{
    (void)ctx;
    n_blocks--;
    free(memory);
}

static const wr_type item_type = {.name = "item", .size = 100};

int main(void)
{
    struct wr_allocator counting = {.alloc = count_alloc, .free = count_free};
    CHECK(wr_set_allocator(&counting) == 0); /* before the library takes memory */

    long before = n_blocks;
    void *item = wr_new(&item_type);
    CHECK(item != NULL && n_blocks == before + 1); /* header and payload in one block */
    wr_weak *weak = wr_downgrade(item);
    CHECK(n_blocks == before + 1); /* a weak handle costs none */
    CHECK(wr_set_allocator(NULL) == -EBUSY);

    wr_release(item);
    CHECK(n_blocks == before + 1); /* `weak` remembers it */
    wr_weak_release(weak);
    CHECK(n_blocks == before);

    struct wr_stats stats;
    CHECK(wr_barrier() == 0);
    wr_stats(&stats);
    CHECK(stats.deferred == 0 && stats.saturated == 0 && stats.leaked == 0);
    return 0;
}
