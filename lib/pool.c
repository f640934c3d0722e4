/* F3 pool: the depot, and when there is none.
 *
 * A thread's two magazines of a class, loaded and previous, by what a call needs that finds the loaded one unfit:
 *
 *     previous    alloc, the loaded one is empty                free, the loaded one is full
 *     full        change places                                 give it to the depot for an empty one; no room: empty it
 *     empty       give it to the depot for a full one, or       change places
 *     none        wr_alloc()                                    get an empty one, or wr_free()
 *
 * The depot's lists are changed under its lock of the class; magazines and blocks are allocated and freed outside.
 */
#include "pool.h"

#include <stdlib.h>
#include <string.h>

/* ---- on or off --------------------------------------------------------------------------------- */

/* There is no such function unless a sanitizer's runtime is in the process: this library itself need not be built with
 * one. */
#define RUNTIME(init) extern __attribute__((weak, visibility("default"))) void init(void)
RUNTIME(__asan_init);
RUNTIME(__hwasan_init);
RUNTIME(__lsan_init);
RUNTIME(__msan_init);
RUNTIME(__tsan_init);

enum { UNSTARTED, OFF, UNDECIDED, ON };
static wr_atomic_u32 mode;

static unsigned stock = 8; /* new blocks at once; changed by tests only */

static bool is_set(const char *name, const char *to)
{
    const char *value = getenv(name);
    return value != NULL && strcmp(value, to) == 0;
}

/* Valgrind preloads a library of its own into what it runs. */
static bool under_valgrind(void)
{
    const char *preload = getenv("LD_PRELOAD");
    return preload != NULL && strstr(preload, "vgpreload") != NULL;
}

__attribute__((constructor(101))) static void pool_start(void)
{
    bool sanitized = __asan_init != NULL || __hwasan_init != NULL || __lsan_init != NULL || __msan_init != NULL ||
                     __tsan_init != NULL;
    bool seen_through = sanitized || (under_valgrind() && !is_set("WR_NO_POOL", "0"));
    bool may = !seen_through && !is_set("WR_NO_POOL", "1");
    wr_atomic_init(&mode, may ? UNDECIDED : OFF);
}

static bool is_on(void)
{
    /* Relaxed: nothing hangs on it; threads that decide at once come to the same. */
    uint32_t now = wr_atomic_load_relaxed(&mode);
    if (wr_unlikely(now == UNDECIDED)) {
        now = wr_alloc_is_hooked() ? OFF : ON;
        wr_atomic_store_relaxed(&mode, now);
    }
    return now == ON;
}

void wr_pool_force(bool on)
{
    /* Relaxed: see is_on(). */
    wr_atomic_store_relaxed(&mode, on ? ON : OFF);
    stock = 1;
}

void wr_pool_set_stock(unsigned n)
{
    stock = n;
}

/* ---- the depot --------------------------------------------------------------------------------- */

struct stack {
    struct wr_pool_magazine *first;
    wr_atomic_u32 n; /* changed under the lock; hints without it */
};

static struct depot {
    wr_spin lock;
    struct stack full, empty;                     /* Guarded by the lock */
} __attribute__((aligned(64))) depots[WR_POOL_N]; /* all zero: unlocked */

static wr_pool_settle *settle; /* written by a constructor, before threads */

void wr_pool_set_settle(wr_pool_settle *given)
{
    settle = given;
}

static unsigned capacity_of(unsigned i)
{
    size_t n = WR_POOL_MAGAZINE_BYTES / wr_pool_block_size(i);
    return n < WR_POOL_ROUNDS ? (unsigned)n : WR_POOL_ROUNDS;
}

/* Relaxed: a hint without the lock; with it, the lock orders. */
static uint32_t count(const struct stack *stack)
{
    return wr_atomic_load_relaxed(&stack->n);
}

/* Requires: the depot's lock held. */
static bool push(struct stack *stack, struct wr_pool_magazine *magazine)
{
    uint32_t n = count(stack);
    if (n >= WR_POOL_DEPOT)
        return false;
    magazine->next = stack->first;
    stack->first = magazine;
    /* Relaxed: see count(). */
    wr_atomic_store_relaxed(&stack->n, n + 1);
    return true;
}

/* Requires: the depot's lock held. */
static struct wr_pool_magazine *pop(struct stack *stack)
{
    struct wr_pool_magazine *magazine = stack->first;
    if (magazine == NULL)
        return NULL;
    stack->first = magazine->next;
    /* Relaxed: see count(). */
    wr_atomic_store_relaxed(&stack->n, count(stack) - 1);
    return magazine;
}

/* Out of the pool. */
static void free_block(void *block, unsigned i)
{
    size_t size;
    if (i == WR_POOL_SPENT)
        wr_free(settle(block, &size));
    wr_free(block);
}

static void free_blocks(struct wr_pool_magazine *magazine, unsigned n, unsigned i)
{
    while (n > 0) {
        void *block = magazine->blocks[--n];
        wr_pool_show_(block, wr_pool_block_size(i));
        free_block(block, i);
    }
}

/* A full magazine of the depot's, or NULL. @surplus: [consumed] an empty one, or NULL; not if the answer is NULL. */
static struct wr_pool_magazine *get_full(unsigned i, struct wr_pool_magazine *surplus)
{
    struct depot *depot = &depots[i];
    if (count(&depot->full) == 0)
        return NULL;
    wr_spin_lock(&depot->lock, WR_RANK_POOL);
    struct wr_pool_magazine *full = pop(&depot->full);
    if (full != NULL && surplus != NULL && push(&depot->empty, surplus))
        surplus = NULL;
    wr_spin_unlock(&depot->lock, WR_RANK_POOL);
    if (full != NULL)
        wr_free(surplus);
    return full;
}

/* An empty magazine, or NULL if there is no memory for one. @full: [consumed] one for the depot, or NULL. */
static struct wr_pool_magazine *get_empty(unsigned i, struct wr_pool_magazine *full)
{
    struct depot *depot = &depots[i];
    struct wr_pool_magazine *empty = NULL;
    if (full == NULL || count(&depot->full) < WR_POOL_DEPOT) {
        wr_spin_lock(&depot->lock, WR_RANK_POOL);
        if (full == NULL || push(&depot->full, full)) {
            full = NULL;
            empty = pop(&depot->empty);
        }
        wr_spin_unlock(&depot->lock, WR_RANK_POOL);
    }
    if (full != NULL) {
        free_blocks(full, capacity_of(i), i);
        return full;
    }
    return empty != NULL ? empty : wr_alloc(sizeof *empty);
}

/* ---- a thread's cache --------------------------------------------------------------------------- */

/* @magazine: with @n blocks; or NULL, with none. */
static void load(struct wr_pool_class *class, unsigned i, struct wr_pool_magazine *magazine, unsigned n)
{
    class->loaded = magazine;
    class->n = n;
    class->capacity = (unsigned short)(magazine != NULL ? capacity_of(i) : 0);
}

/* The loaded magazine is empty, or there is none. Returns whether there are blocks in it now. */
static bool refill(struct wr_pool_class *class, unsigned i)
{
    struct wr_pool_magazine *full = class->previous_full ? class->previous : get_full(i, class->previous);
    if (full == NULL)
        return false;
    class->previous = class->loaded;
    class->previous_full = false;
    load(class, i, full, capacity_of(i));
    return true;
}

/* The same, with new blocks: some at once, so that neighbours in memory, which share cache lines, are of one class and
 * travel together. */
static bool stock_up(struct wr_pool_class *class, unsigned i)
{
    if (class->loaded == NULL)
        load(class, i, get_empty(i, NULL), 0);
    while (class->n < stock && class->n < class->capacity) {
        void *block = wr_alloc_aligned(WR_POOL_STEP, wr_pool_block_size(i));
        if (block == NULL)
            break;
        wr_pool_push(class, i, block);
    }
    return class->n > 0;
}

/* The loaded magazine is full, or there is none. Returns whether there is room in it now. */
static bool make_room(struct wr_pool_class *class, unsigned i)
{
    struct wr_pool_magazine *empty;
    if (class->loaded == NULL) {
        empty = get_empty(i, NULL);
    } else {
        empty = class->previous != NULL && !class->previous_full ? class->previous : get_empty(i, class->previous);
        class->previous = class->loaded;
        class->previous_full = true;
    }
    load(class, i, empty, 0);
    return empty != NULL;
}

/* A magazine of a thread that ends: the depot has no use for a part of one. */
static void hand_on(struct wr_pool_magazine *magazine, unsigned n, unsigned i)
{
    struct depot *depot = &depots[i];
    if (n > 0 && n == capacity_of(i) && count(&depot->full) < WR_POOL_DEPOT) {
        wr_spin_lock(&depot->lock, WR_RANK_POOL);
        bool taken = push(&depot->full, magazine);
        wr_spin_unlock(&depot->lock, WR_RANK_POOL);
        if (taken)
            return;
    }
    free_blocks(magazine, n, i);
    wr_free(magazine);
}

static void free_magazine(struct wr_pool_magazine *magazine, unsigned n, unsigned i)
{
    free_blocks(magazine, n, i);
    wr_free(magazine);
}

/* @dispose: what is done with each magazine and its blocks. */
static void free_cache(struct wr_pool_cache *cache, void (*dispose)(struct wr_pool_magazine *, unsigned n, unsigned i))
{
    for (unsigned i = 0; i < WR_POOL_N; i++) {
        struct wr_pool_class *class = &cache->classes[i];
        if (class->loaded != NULL)
            dispose(class->loaded, class->n, i);
        if (class->previous != NULL)
            dispose(class->previous, class->previous_full ? capacity_of(i) : 0, i);
    }
    wr_free(cache);
}

static void at_exit(struct wr_thread_cache *cache)
{
    free_cache((struct wr_pool_cache *)cache, hand_on);
}

/* The calling thread's cache. NULL: the pool is off, the thread's teardown is over, or there is no memory. */
static struct wr_pool_cache *cache_now(void)
{
    struct wr_pool_cache *cache = wr_pool_mine();
    if (cache != NULL)
        return cache;
    if (!is_on() || wr_thread_self() != wr_thread_stack()) /* without a registration nobody would give the cache back */
        return NULL;
    cache = wr_alloc_zero(sizeof *cache);
    if (cache != NULL) {
        cache->base.at_exit = at_exit;
        wr_thread_record.cache = &cache->base;
    }
    return cache;
}

/* ---- the cold halves ---------------------------------------------------------------------------- */

void *wr_pool_alloc_cold(size_t size)
{
    if (!wr_pool_keeps(size))
        return wr_alloc(size);
    unsigned i = wr_pool_class_of(size);
    struct wr_pool_cache *cache = cache_now();
    if (cache != NULL && (refill(&cache->classes[i], i) || stock_up(&cache->classes[i], i)))
        return wr_pool_pop(&cache->classes[i], i);
    /* Where blocks are kept, each has its class's size, whoever made it: it may serve any size of the class later. */
    /* Relaxed: see is_on(). */
    return wr_alloc_aligned(WR_POOL_STEP, wr_atomic_load_relaxed(&mode) != OFF ? wr_pool_block_size(i) : size);
}

void wr_pool_free_cold(void *block, size_t size)
{
    if (wr_pool_keeps(size)) {
        unsigned i = wr_pool_class_of(size);
        struct wr_pool_cache *cache = cache_now();
        if (cache != NULL && make_room(&cache->classes[i], i)) {
            wr_pool_push(&cache->classes[i], i, block);
            return;
        }
    }
    wr_free(block);
}

void *wr_pool_alloc_spent_cold(void)
{
    struct wr_pool_cache *cache = cache_now();
    if (cache == NULL || !refill(&cache->classes[WR_POOL_SPENT], WR_POOL_SPENT))
        return NULL;
    return wr_pool_pop(&cache->classes[WR_POOL_SPENT], WR_POOL_SPENT);
}

void wr_pool_free_spent_cold(void *block)
{
    struct wr_pool_cache *cache = cache_now();
    if (cache != NULL && make_room(&cache->classes[WR_POOL_SPENT], WR_POOL_SPENT))
        wr_pool_push(&cache->classes[WR_POOL_SPENT], WR_POOL_SPENT, block);
    else
        free_block(block, WR_POOL_SPENT);
}

/* ---- all of it ---------------------------------------------------------------------------------- */

static void free_all(struct wr_pool_magazine *magazine, unsigned n, unsigned i)
{
    while (magazine != NULL) {
        struct wr_pool_magazine *next = magazine->next;
        free_magazine(magazine, n, i);
        magazine = next;
    }
}

void wr_pool_trim(void)
{
    struct wr_pool_cache *cache = wr_pool_mine();
    wr_thread_record.cache = NULL;
    if (cache != NULL)
        free_cache(cache, free_magazine);
    for (unsigned i = 0; i < WR_POOL_N; i++) {
        struct depot *depot = &depots[i];
        wr_spin_lock(&depot->lock, WR_RANK_POOL);
        struct wr_pool_magazine *full = depot->full.first, *empty = depot->empty.first;
        depot->full.first = depot->empty.first = NULL;
        /* Relaxed: see count(). */
        wr_atomic_store_relaxed(&depot->full.n, 0);
        wr_atomic_store_relaxed(&depot->empty.n, 0);
        wr_spin_unlock(&depot->lock, WR_RANK_POOL);
        free_all(full, capacity_of(i), i);
        free_all(empty, 0, i);
    }
}

void wr_pool_figures(struct wr_pool_figures *figures)
{
    const struct wr_pool_cache *cache = wr_pool_mine();
    *figures = (struct wr_pool_figures){0};
    for (unsigned i = 0; i < WR_POOL_N; i++) {
        size_t own = 0, kept = count(&depots[i].full) * (size_t)capacity_of(i);
        if (cache != NULL)
            own = cache->classes[i].n + (cache->classes[i].previous_full ? capacity_of(i) : 0);
        figures->own_blocks += own;
        figures->depot_blocks += kept;
        figures->bytes += (own + kept) * wr_pool_block_size(i);
    }
}
