/* Tests of the pool: reuse, bounds, threads that end, no memory, and when it stays off. */
#include <weakref/watch.h>

#include "deaths.h"
#include "expect.h"
#include "fail_alloc.h"
#include "pool.h"

TestSuite(pool, .timeout = 120);

/* A class in the middle: its magazines are bounded by bytes. */
enum { SIZE = 88, ROUNDS = WR_POOL_MAGAZINE_BYTES / SIZE };

static struct wr_pool_figures figures_now(void)
{
    struct wr_pool_figures figures;
    wr_pool_figures(&figures);
    return figures;
}

/* On, and each block of the library's is counted. */
static void counted_pool(void)
{
    fail_alloc_install();
    wr_pool_force(true);
}

static void *alloc_filled(size_t size)
{
    void *block = wr_pool_alloc(size);
    cr_assert_not_null(block);
    memset(block, 0x5a, size);
    return block;
}

/* ---- life -------------------------------------------------------------------------------------------------- */

Test(pool, every_size_is_aligned_and_ones_own)
{
    wr_pool_force(true);
    enum { N = 200 };
    static unsigned char *blocks[N];
    for (unsigned round = 0; round < 3; round++)
        for (size_t size = 1; size <= WR_POOL_MAX + 40; size++) {
            for (unsigned i = 0; i < N; i++) {
                blocks[i] = wr_pool_alloc(size);
                cr_assert_not_null(blocks[i]);
                cr_assert_eq((uintptr_t)blocks[i] % 16, 0);
                memset(blocks[i], (int)i, size);
            }
            for (unsigned i = 0; i < N; i++) {
                cr_assert_eq(blocks[i][0], i);
                cr_assert_eq(blocks[i][size - 1], i);
                wr_pool_free(blocks[i], size);
            }
        }
    wr_pool_trim();
}

Test(pool, last_freed_comes_first_and_nothing_is_asked_of_malloc)
{
    counted_pool();
    void *a = alloc_filled(SIZE), *b = alloc_filled(SIZE);
    wr_pool_free(a, SIZE);
    wr_pool_free(b, SIZE);
    long calls = fail_alloc_calls();
    cr_assert_eq(wr_pool_alloc(SIZE), b);
    cr_assert_eq(wr_pool_alloc(SIZE), a);
    cr_assert_eq(fail_alloc_calls(), calls);
    wr_pool_free(a, SIZE);
    wr_pool_free(b, SIZE);
    cr_assert_eq(figures_now().own_blocks, 2);
    cr_assert_eq(figures_now().bytes, 2 * SIZE);
    wr_pool_trim();
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(pool, new_blocks_are_made_some_at_once)
{
    counted_pool();
    wr_pool_set_stock(8);
    void *blocks[9];
    for (unsigned i = 0; i < 9; i++) {
        blocks[i] = alloc_filled(SIZE);
        cr_assert_eq(figures_now().own_blocks, i < 8 ? 7 - i : 7);
    }
    for (unsigned i = 0; i < 9; i++)
        wr_pool_free(blocks[i], SIZE);
    cr_assert_eq(figures_now().own_blocks, 16);
    wr_pool_trim();
    cr_assert_eq(fail_alloc_live(), 0);
}

static unsigned n_settled;

static void *settle_with(void *block, size_t *size)
{
    n_settled++;
    *size = SIZE;
    return *(void **)block;
}

Test(pool, spent_blocks_are_settled_when_they_leave)
{
    counted_pool();
    wr_pool_set_settle(settle_with);
    void *spent = wr_pool_alloc(WR_POOL_SPENT_SIZE), *other = wr_pool_alloc(WR_POOL_SPENT_SIZE);
    *(void **)spent = wr_pool_alloc(SIZE);
    *(void **)other = NULL;
    cr_assert_null(wr_pool_alloc_spent());
    wr_pool_free_spent(spent);
    wr_pool_free_spent(other);
    cr_assert_eq(figures_now().own_blocks, 2);
    cr_assert_eq(wr_pool_alloc_spent(), other, "as it is: who allocates settles");
    cr_assert_eq(n_settled, 0);
    wr_pool_free_spent(other);
    wr_pool_trim();
    cr_assert_eq(n_settled, 2);
    cr_assert_eq(fail_alloc_live(), 0, "and what they held is free");
}

/* ---- spent blocks, as watches leave them ------------------------------------------------------------------ */

static const wr_type plain_type = {.name = "plain",
                                   .size = sizeof(thing)}; /* its block may be settled with its watch */

static void keep_handle(wr_weak *dead, void *ctx)
{
    *(wr_weak **)ctx = wr_weak_retain(dead);
}

/* Once @round is over, whatever comes next is served from what is kept. */
static void expect_nothing_new(unsigned round, long *calls)
{
    if (round == 2)
        *calls = fail_alloc_calls();
    else if (round > 2)
        cr_assert_eq(fail_alloc_calls(), *calls, "in round %u", round);
}

Test(pool, the_object_of_a_spent_watch_serves_again)
{
    counted_pool();
    wr_queue *queue = wr_queue_new("test");
    long calls = 0;
    for (unsigned round = 0; round < 200; round++) {
        thing *t = wr_new(&plain_type);
        cr_assert_eq(wr_on_death(t, queue, LOG(1)), 0);
        wr_release(t);
        cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
        expect_nothing_new(round, &calls);
    }
    wr_queue_free(queue);
    wr_pool_trim();
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(pool, a_handle_kept_by_the_callback_outlasts_its_spent_watch)
{
    counted_pool();
    wr_queue *queue = wr_queue_new("test");
    wr_weak *kept = NULL, *before = NULL;
    long calls = 0;
    for (unsigned round = 0; round < 200; round++) {
        thing *t = wr_new(&plain_type);
        cr_assert_eq(wr_on_death(t, queue, keep_handle, &kept), 0); /* settles the watch before */
        if (before != NULL) {
            cr_assert(wr_weak_is_dead(before));
            cr_assert(!wr_weak_is(before, t));
            wr_weak_release(before);
        }
        wr_release(t);
        cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
        before = kept;
        if (round % 3 == 0) {
            wr_weak_release(before); /* while the watch is spent */
            before = NULL;
        }
        expect_nothing_new(round, &calls);
    }
    wr_weak_release(before);
    wr_queue_free(queue);
    wr_pool_trim();
    cr_assert_eq(fail_alloc_live(), 0);
}

/* An object with @goods watches without handle and @watches with one; @held: a handle besides, which is released @late. */
static void one_watched(wr_queue *queue, const wr_type *type, bool sized, int goods, int watches, bool held, bool late)
{
    wr_watch *handles[2];
    thing *t = sized ? wr_new_sized(type, 100) : wr_new(type);
    wr_weak *weak = held ? wr_downgrade(t) : NULL;
    for (int i = 0; i < goods || i < watches; i++) {
        if (i < watches)
            cr_assert_not_null(handles[i] = wr_watch_new(t, queue, LOG(1)));
        if (i < goods)
            cr_assert_eq(wr_on_death(t, queue, LOG(2)), 0);
    }
    cr_assert_eq(wr_weak_count(t), held);
    wr_release(t);
    if (!late)
        wr_weak_release(weak);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), (size_t)(goods + watches));
    if (held && late) {
        cr_assert(wr_weak_is_dead(weak));
        wr_weak_release(weak);
    }
    for (int i = 0; i < watches; i++)
        wr_watch_release(handles[i]);
}

Test(pool, watched_objects_of_every_shape_leave_nothing)
{
    counted_pool();
    wr_queue *queue = wr_queue_new("test");
    for (unsigned shape = 0; shape < 4 * 3 * 32; shape++) {
        unsigned bits = shape / 12;
        one_watched(queue, (bits & 1) ? &plain_type : &thing_type, (bits & 2) != 0, (int)(shape % 4),
                    (int)(shape / 4 % 3), (bits & 4) != 0, (bits & 8) != 0);
        if (bits & 16) {
            wr_pool_trim(); /* settles what is spent, which else the next watch does */
            cr_assert_eq(fail_alloc_live(), 1, "the queue; shape %u", shape);
        }
    }
    wr_queue_free(queue);
    wr_pool_trim();
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(pool, a_class_serves_each_of_its_sizes)
{
    wr_pool_force(true);
    for (size_t least = 9; least <= WR_POOL_MAX; least += WR_POOL_STEP) {
        void *block = alloc_filled(least);
        wr_pool_free(block, least);
        void *again = alloc_filled(least + WR_POOL_STEP - 1);
        cr_assert_eq(again, block);
        wr_pool_free(again, least + WR_POOL_STEP - 1);
    }
    wr_pool_trim();
}

Test(pool, sizes_out_of_range_go_straight_through)
{
    counted_pool();
    void *big = wr_pool_alloc(WR_POOL_MAX + 1), *none = wr_pool_alloc(0);
    cr_assert_not_null(big);
    cr_assert_eq(fail_alloc_live(), 2);
    wr_pool_free(big, WR_POOL_MAX + 1);
    wr_pool_free(none, 0);
    cr_assert_eq(fail_alloc_live(), 0);
    cr_assert_eq(figures_now().bytes, 0);
}

Test(pool, either_free_takes_a_block)
{
    counted_pool();
    wr_free(alloc_filled(SIZE));
    wr_pool_free(wr_alloc(SIZE), SIZE);
    wr_pool_trim();
    cr_assert_eq(fail_alloc_live(), 0);
}

#ifdef WR_POOL_ASAN
Test(pool, a_kept_block_is_poisoned)
{
    wr_pool_force(true);
    char *block = alloc_filled(SIZE - 3);
    wr_pool_free(block, SIZE - 3);
    for (size_t i = 0; i < SIZE; i++)
        cr_assert(__asan_address_is_poisoned(block + i), "byte %zu", i);
    cr_assert_eq(wr_pool_alloc(SIZE), block);
    cr_assert_null(__asan_region_is_poisoned(block, SIZE));
    wr_pool_free(block, SIZE);
    wr_pool_trim();
}
#endif

/* ---- bounds ------------------------------------------------------------------------------------------------ */

enum { MANY = 3 * WR_POOL_DEPOT * WR_POOL_ROUNDS };
static void *many[MANY];

Test(pool, keeps_no_more_than_the_bounds_say)
{
    counted_pool();
    for (unsigned class = 1; class < WR_POOL_CLASSES; class ++) {
        size_t size = class * (size_t)WR_POOL_STEP + 8, capacity = WR_POOL_MAGAZINE_BYTES / size;
        if (capacity > WR_POOL_ROUNDS)
            capacity = WR_POOL_ROUNDS;
        for (unsigned i = 0; i < MANY; i++)
            many[i] = alloc_filled(size);
        for (unsigned i = 0; i < MANY; i++)
            wr_pool_free(many[i], size);
        struct wr_pool_figures figures = figures_now();
        cr_assert_eq(figures.depot_blocks, WR_POOL_DEPOT * capacity, "size %zu", size);
        cr_assert_leq(figures.own_blocks, 2 * capacity);
        cr_assert_geq(figures.own_blocks, capacity);
        cr_assert_leq(figures.bytes, (WR_POOL_DEPOT + 2) * WR_POOL_MAGAZINE_BYTES);
        wr_pool_trim();
        cr_assert_eq(fail_alloc_live(), 0);
    }
}

Test(pool, what_was_kept_serves_as_much_again)
{
    counted_pool();
    enum { N = 20 * ROUNDS + 7 };
    for (unsigned i = 0; i < N; i++)
        many[i] = alloc_filled(SIZE);
    for (unsigned i = 0; i < N; i++)
        wr_pool_free(many[i], SIZE);
    long calls = fail_alloc_calls();
    for (unsigned round = 0; round < 10; round++) {
        for (unsigned i = 0; i < N; i++)
            many[i] = alloc_filled(SIZE);
        cr_assert_eq(figures_now().bytes, 0);
        for (unsigned i = 0; i < N; i++)
            wr_pool_free(many[i], SIZE);
        cr_assert_eq(figures_now().bytes, N * SIZE);
    }
    cr_assert_eq(fail_alloc_calls(), calls, "neither blocks nor magazines");
    wr_pool_trim();
    cr_assert_eq(figures_now().bytes, 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(pool, an_edge_of_a_magazine_costs_no_exchange)
{
    counted_pool();
    for (unsigned i = 0; i < 2 * ROUNDS; i++)
        many[i] = alloc_filled(SIZE);
    for (unsigned i = 0; i < 2 * ROUNDS; i++)
        wr_pool_free(many[i], SIZE);
    /* Both magazines are full: to and fro over the edge between them. */
    for (unsigned i = 0; i < 100; i++) {
        void *blocks[ROUNDS + 1];
        for (unsigned j = 0; j <= ROUNDS; j++)
            blocks[j] = alloc_filled(SIZE);
        for (unsigned j = 0; j <= ROUNDS; j++)
            wr_pool_free(blocks[j], SIZE);
        cr_assert_eq(figures_now().own_blocks, 2 * ROUNDS);
        cr_assert_eq(figures_now().depot_blocks, 0);
    }
    wr_pool_trim();
    cr_assert_eq(fail_alloc_live(), 0);
}

/* ---- threads ----------------------------------------------------------------------------------------------- */

static void in_a_thread(void *(*body)(void *), void *arg)
{
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, body, arg), 0);
    cr_assert_eq(pthread_join(thread, NULL), 0);
}

static void *use_some(void *arg)
{
    unsigned n = *(unsigned *)arg;
    void *blocks[3 * ROUNDS];
    for (unsigned i = 0; i < n; i++)
        blocks[i] = alloc_filled(SIZE);
    for (unsigned i = 0; i < n; i++)
        wr_pool_free(blocks[i], SIZE);
    return NULL;
}

Test(pool, a_thread_that_ends_keeps_nothing)
{
    counted_pool();
    for (unsigned n = 1; n <= 3 * ROUNDS; n++) {
        in_a_thread(use_some, &n);
        struct wr_pool_figures figures = figures_now();
        cr_assert_eq(figures.own_blocks, 0);
        cr_assert_eq(figures.depot_blocks % ROUNDS, 0, "only full magazines");
        cr_assert_leq(figures.depot_blocks, 3 * ROUNDS);
        cr_assert_geq(figures.depot_blocks, n / ROUNDS * ROUNDS, "%u blocks", n);
    }
    wr_pool_trim();
    cr_assert_eq(fail_alloc_live(), 0);
}

static void *free_many(void *arg)
{
    unsigned n = *(unsigned *)arg;
    for (unsigned i = 0; i < n; i++)
        wr_pool_free(many[i], SIZE);
    return NULL;
}

Test(pool, what_another_thread_freed_comes_back_through_the_depot)
{
    counted_pool();
    unsigned n = 6 * ROUNDS;
    for (unsigned round = 0; round < 5; round++) {
        long calls = fail_alloc_calls();
        for (unsigned i = 0; i < n; i++)
            many[i] = alloc_filled(SIZE);
        if (round > 0)
            cr_assert_leq(fail_alloc_calls() - calls, 2, "a cache, and no block");
        in_a_thread(free_many, &n);
        cr_assert_eq(figures_now().own_blocks, 0);
        cr_assert_eq(figures_now().depot_blocks, n);
    }
    wr_pool_trim();
    cr_assert_eq(fail_alloc_live(), 0);
}

static pthread_key_t late_key;

/* The first rounds of destructors pass, so that the library's has run. */
static void use_late(void *arg)
{
    unsigned *rounds = arg;
    if (++*rounds < 3) {
        cr_assert_eq(pthread_setspecific(late_key, rounds), 0);
        return;
    }
    struct wr_pool_figures before = figures_now();
    cr_assert_eq(before.own_blocks, 0);
    void *block = alloc_filled(SIZE);
    wr_pool_free(block, SIZE);
    cr_assert_eq(figures_now().own_blocks, 0, "straight through");
}

static void *use_after_teardown(void *arg)
{
    unsigned n = 5;
    use_some(&n);
    cr_assert_eq(pthread_setspecific(late_key, arg), 0);
    return NULL;
}

Test(pool, after_a_threads_teardown_it_goes_straight_through)
{
    counted_pool();
    unsigned rounds = 0;
    cr_assert_eq(pthread_key_create(&late_key, use_late), 0);
    in_a_thread(use_after_teardown, &rounds);
    cr_assert_eq(rounds, 3);
    wr_pool_trim();
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(pool, trim_leaves_other_threads_alone_and_can_be_used_after)
{
    counted_pool();
    for (unsigned round = 0; round < 3; round++) {
        unsigned n = 3 * ROUNDS;
        use_some(&n);
        cr_assert_gt(figures_now().bytes, 0);
        wr_pool_trim();
        cr_assert_eq(figures_now().bytes, 0);
        cr_assert_eq(fail_alloc_live(), 0);
        wr_pool_trim();
    }
}

/* ---- no memory --------------------------------------------------------------------------------------------- */

/* Each allocation in turn fails: of blocks, of the cache, of magazines. Blocks may be missing, frees never fail. */
Test(pool, without_memory_frees_still_work)
{
    counted_pool();
    enum { N = 4 * ROUNDS };
    unsigned hits = 0;
    for (long n = 1;; n++) {
        unsigned got = 0;
        fail_alloc_at(n);
        void *first = wr_pool_alloc(SIZE);
        if (first != NULL)
            wr_pool_free(first, SIZE); /* asks for the magazine */
        for (unsigned i = 0; i < N; i++)
            if ((many[got] = wr_pool_alloc(SIZE)) != NULL)
                memset(many[got++], 1, SIZE);
        cr_assert_geq(got, N - 1);
        for (unsigned i = 0; i < got; i++)
            wr_pool_free(many[i], SIZE);
        bool hit = fail_alloc_hit();
        wr_pool_trim();
        cr_assert_eq(fail_alloc_live(), 0, "allocation %ld failed", n);
        if (!hit)
            break;
        hits++;
    }
    cr_assert_geq(hits, N + 4);
}

Test(pool, without_any_memory_frees_still_work)
{
    counted_pool();
    enum { N = 10 * ROUNDS };
    for (unsigned kept = 0; kept < N; kept += 1 + kept / 3) {
        for (unsigned i = 0; i < N; i++)
            many[i] = alloc_filled(SIZE);
        for (unsigned i = 0; i < kept; i++)
            wr_pool_free(many[i], SIZE);
        fail_alloc_all(true);
        for (unsigned i = kept; i < N; i++)
            wr_pool_free(many[i], SIZE);
        size_t own = figures_now().own_blocks + figures_now().depot_blocks;
        for (size_t i = 0; i < own; i++)
            many[i] = alloc_filled(SIZE);
        cr_assert_null(wr_pool_alloc(SIZE));
        for (size_t i = 0; i < own; i++)
            wr_pool_free(many[i], SIZE);
        fail_alloc_all(false);
        wr_pool_trim();
        cr_assert_eq(fail_alloc_live(), 0);
    }
}

/* ---- off --------------------------------------------------------------------------------------------------- */

static bool keeps(void)
{
    void *block = wr_pool_alloc(SIZE);
    wr_pool_free(block, SIZE);
    return figures_now().own_blocks > 0;
}

Test(pool, is_on_unless_a_sanitizer_is_there)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    cr_assert_not(keeps());
#else
    const char *no = getenv("WR_NO_POOL"), *preload = getenv("LD_PRELOAD");
    bool valgrind = preload != NULL && strstr(preload, "vgpreload") != NULL;
    cr_assert_eq(keeps(), no != NULL ? strcmp(no, "0") == 0 : !valgrind);
#endif
}

Test(pool, is_off_with_the_programs_own_allocator)
{
    fail_alloc_install();
    for (unsigned i = 0; i < 200; i++)
        cr_assert_not(keeps());
    cr_assert_eq(fail_alloc_calls(), 200);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(pool, off_asks_for_the_very_size)
{
    fail_alloc_install();
    void *block = wr_pool_alloc(33);
    cr_assert_leq(fail_alloc_bytes(), 40, "what malloc makes of 33, not of the class's 48");
    wr_pool_free(block, 33);
}

/* ---- fork -------------------------------------------------------------------------------------------------- */

static int use_in_child(void *unused)
{
    (void)unused;
    unsigned n = 3 * ROUNDS;
    size_t kept = figures_now().depot_blocks;
    use_some(&n);
    return kept == 4 * ROUNDS ? 0 : 1;
}

Test(pool, a_child_has_the_depot_and_its_own_cache)
{
    wr_pool_force(true);
    for (unsigned i = 0; i < 6 * ROUNDS; i++)
        many[i] = alloc_filled(SIZE);
    for (unsigned i = 0; i < 6 * ROUNDS; i++)
        wr_pool_free(many[i], SIZE);
    char text[1024];
    int status = expect_child(use_in_child, NULL, text, sizeof text);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s", text);
    wr_pool_trim();
}
