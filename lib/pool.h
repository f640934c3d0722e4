/* F3 pool: small blocks kept for reuse, in front of wr_alloc() and wr_free().
 *
 * For the library's own hot blocks, which are made on one thread and freed on another: there the caches of malloc run dry
 * on one side and over on the other. These are magazines (Bonwick and Adams, "Magazines and Vmem", USENIX 2001): for each
 * class of sizes a thread has an array of free blocks, the loaded magazine, and a previous one, which is full or empty.
 * Most calls push to or pop from the loaded one, with no atomic operation and no look at the block itself, which may lie
 * in another processor's cache. A thread whose two magazines are both full, or both empty, changes one for its opposite
 * in the depot, which all threads share: once for dozens of calls, at the price of one lock.
 *
 * Every block is one of wr_alloc(), so either can free it: without a cache (no memory for one, or after a thread's
 * teardown) a call goes straight through, and no free can fail.
 *
 * Bounds: a magazine holds at most 63 blocks or 4 KiB. A thread keeps two a class, at most 8 KiB and only of classes that
 * it frees or gets from the depot. The depot keeps 128 full ones a class, at most 512 KiB: some thousands of blocks on
 * their way round from a producer to a consumer, and what is idle after a mass death. What is more goes to wr_free(). A
 * thread that ends gives its full magazines to the depot.
 *
 * Off, that is, straight through, are all calls: with an allocator of the program's own, which wants to see each block;
 * where a sanitizer's runtime is in the process, and under valgrind, since to both a block in a magazine looks alive, so
 * that they would miss its use after its free; with WR_NO_POOL=1 in the environment. WR_NO_POOL=0 there keeps them on under
 * valgrind, whose profiles then are of what users run. Decided once.
 *
 * Spent blocks are the exception to "free": they still owe something that the thread which allocates next does at less cost
 * than the one that frees (see watch.c). They are kept apart, and settled when they are allocated or leave the pool.
 *
 * After fork() the child has the cache of the thread that forked, and the depot. The other threads' magazines are lost
 * to it: within the bounds above.
 */
#ifndef WR_LIB_POOL_H
#define WR_LIB_POOL_H

#include "alloc.h"
#include "thread.h"

#if defined(__SANITIZE_ADDRESS__)
#define WR_POOL_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WR_POOL_ASAN 1
#endif
#endif

#ifdef WR_POOL_ASAN
#include <sanitizer/asan_interface.h>
#define wr_pool_hide_(block, size) __asan_poison_memory_region(block, size)
#define wr_pool_show_(block, size) __asan_unpoison_memory_region(block, size)
#else
#define wr_pool_hide_(block, size) ((void)(block), (void)(size))
#define wr_pool_show_(block, size) ((void)(block), (void)(size))
#endif

/* Classes as malloc() of the GNU C library has them, whose blocks have room for 8 bytes more than a multiple of 16: none is lost. */
enum {
    WR_POOL_STEP = 16,                                      /* bytes from class to class, and a block's alignment */
    WR_POOL_MAX = 264,                                      /* the greatest size that is kept */
    WR_POOL_CLASSES = (WR_POOL_MAX + 7) / WR_POOL_STEP + 1, /* class i: blocks of i * WR_POOL_STEP + 8 bytes */
    WR_POOL_ROUNDS = 63,                                    /* the most blocks in a magazine */
    WR_POOL_MAGAZINE_BYTES = 4096,                          /* the most bytes of blocks in one */
    WR_POOL_DEPOT = 128,                                    /* the most full ones, and the most empty ones, a class */
    WR_POOL_SPENT = WR_POOL_CLASSES,                        /* the class of spent blocks */
    WR_POOL_N,                                              /* of all classes */
    WR_POOL_SPENT_SIZE = 104,                               /* their size */
    WR_POOL_AHEAD = 6 /* how many blocks before its use one is fetched into the cache */
};

struct wr_pool_magazine {
    struct wr_pool_magazine *next; /* in the depot */
    void *blocks[WR_POOL_ROUNDS];  /* how many: whoever has it knows */
};

/* A thread's magazines of one class. */
struct wr_pool_class {
    unsigned n;                        /* blocks in the loaded one */
    unsigned short capacity;           /* of the loaded one; 0: there is none */
    bool previous_full;                /* else it is empty, or there is none */
    struct wr_pool_magazine *loaded;   /* or NULL */
    struct wr_pool_magazine *previous; /* or NULL */
};

struct wr_pool_cache {
    struct wr_thread_cache base;
    struct wr_pool_class classes[WR_POOL_N];
};

/* The cold halves. */
WR_OUT_OF_LINE void *wr_pool_alloc_cold(size_t size);
WR_OUT_OF_LINE void wr_pool_free_cold(void *block, size_t size);

/* The calling thread's, or NULL. By name and not by wr_thread_stack(): gcc 12 with UBSan tests the flags of the addition
 * that makes a thread-local variable's address, and ld may turn that into an instruction which sets none. */
static inline struct wr_pool_cache *wr_pool_mine(void)
{
    return (struct wr_pool_cache *)wr_thread_record.cache;
}

/* Whether blocks of this size are kept; not if it is 0. */
static inline bool wr_pool_keeps(size_t size)
{
    return size - 1 < WR_POOL_MAX;
}

static inline unsigned wr_pool_class_of(size_t size)
{
    return (unsigned)(size + 7) / WR_POOL_STEP;
}

static inline size_t wr_pool_block_size(unsigned i)
{
    return i == WR_POOL_SPENT ? WR_POOL_SPENT_SIZE : i * (size_t)WR_POOL_STEP + 8;
}

static inline void *wr_pool_pop(struct wr_pool_class *class, unsigned i)
{
    unsigned n = --class->n;
    void *block = class->loaded->blocks[n];
    if (wr_likely(n >= WR_POOL_AHEAD)) {
        /* Another processor wrote it last, most likely. */
        char *ahead = class->loaded->blocks[n - WR_POOL_AHEAD];
        __builtin_prefetch(ahead, 1);
        __builtin_prefetch(ahead + 64, 1);
    }
    wr_pool_show_(block, wr_pool_block_size(i));
    return block;
}

static inline void wr_pool_push(struct wr_pool_class *class, unsigned i, void *block)
{
    WR_ASSERT(block != NULL && (class->n == 0 || class->loaded->blocks[class->n - 1] != block));
    class->loaded->blocks[class->n++] = block;
    wr_pool_hide_(block, wr_pool_block_size(i));
}

/* [owned] @size bytes at a multiple of 16, not zeroed, for wr_pool_free(); or NULL. Requires: no wr lock held. */
static inline void *wr_pool_alloc(size_t size)
{
    struct wr_pool_cache *cache = wr_pool_mine();
    if (wr_likely(cache != NULL && wr_pool_keeps(size))) {
        unsigned i = wr_pool_class_of(size);
        if (wr_likely(cache->classes[i].n > 0))
            return wr_pool_pop(&cache->classes[i], i);
    }
    return wr_pool_alloc_cold(size);
}

/* @block: [consumed] from wr_pool_alloc(@size), not NULL. Cannot fail. Requires: no wr lock held. */
static inline void wr_pool_free(void *block, size_t size)
{
    struct wr_pool_cache *cache = wr_pool_mine();
    if (wr_likely(cache != NULL && wr_pool_keeps(size))) {
        unsigned i = wr_pool_class_of(size);
        if (wr_likely(cache->classes[i].n < cache->classes[i].capacity)) {
            wr_pool_push(&cache->classes[i], i, block);
            return;
        }
    }
    wr_pool_free_cold(block, size);
}

/* ---- spent blocks ------------------------------------------------------------------------------------ */

/* Does what a spent block owes. Returns [owned] memory that this sets free besides, and its size for wr_pool_free(); or
 * NULL. Runs no user code. From a constructor. */
typedef void *wr_pool_settle(void *block, size_t *size);
void wr_pool_set_settle(wr_pool_settle *settle);

void *wr_pool_alloc_spent_cold(void);
void wr_pool_free_spent_cold(void *block);

/* [owned] WR_POOL_SPENT_SIZE bytes that the caller settles; or NULL. Requires: no wr lock held. */
static inline void *wr_pool_alloc_spent(void)
{
    struct wr_pool_cache *cache = wr_pool_mine();
    if (wr_likely(cache != NULL && cache->classes[WR_POOL_SPENT].n > 0))
        return wr_pool_pop(&cache->classes[WR_POOL_SPENT], WR_POOL_SPENT);
    return wr_pool_alloc_spent_cold();
}

/* A spent block that wr_pool_alloc_spent() will give soon, and that has been fetched by now; or NULL. Stays the pool's: for
 * fetching what it leads to. */
static inline const void *wr_pool_next_spent(void)
{
#ifdef WR_POOL_ASAN
    return NULL; /* it must not be looked into */
#else
    const struct wr_pool_cache *cache = wr_pool_mine();
    const struct wr_pool_class *class = cache != NULL ? &cache->classes[WR_POOL_SPENT] : NULL;
    return class != NULL && class->n >= WR_POOL_AHEAD / 2 ? class->loaded->blocks[class->n - WR_POOL_AHEAD / 2] : NULL;
#endif
}

/* @block: [consumed] from wr_pool_alloc() with that size, or from wr_pool_alloc_spent(). Requires: no wr lock held. */
static inline void wr_pool_free_spent(void *block)
{
    struct wr_pool_cache *cache = wr_pool_mine();
    if (wr_likely(cache != NULL && cache->classes[WR_POOL_SPENT].n < cache->classes[WR_POOL_SPENT].capacity))
        wr_pool_push(&cache->classes[WR_POOL_SPENT], WR_POOL_SPENT, block);
    else
        wr_pool_free_spent_cold(block);
}

/* Gives all that the depot and the calling thread keep to wr_free(); other threads keep theirs. */
void wr_pool_trim(void);

struct wr_pool_figures {
    size_t own_blocks;   /* kept by the calling thread */
    size_t depot_blocks; /* kept in the depot */
    size_t bytes;        /* of both */
};
void wr_pool_figures(struct wr_pool_figures *figures);

/* For tests, before the first block: on or off whatever the surroundings say, an allocator of the program's own and
 * sanitizers included; the address sanitizer is told then which blocks are kept. And blocks are made one by one, unless that is
 * set to another number afterwards. */
void wr_pool_force(bool on);
void wr_pool_set_stock(unsigned n);

#endif
