/* The pool between threads: blocks go round from makers to takers and are never in two hands; one magazine in the depot
 * and two who want it; room for one and two who bring; trimming beside use; threads that end; fork beside use. */
#include "pool.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "race.h"

enum { SIZE = 88, ROUNDS = WR_POOL_MAGAZINE_BYTES / SIZE };

static struct wr_pool_figures figures_now(void)
{
    struct wr_pool_figures figures;
    wr_pool_figures(&figures);
    return figures;
}

/* ---- round and round --------------------------------------------------------------------------------------- */

/* In each block, while it is in somebody's hands: who made it, and which. Plain: what orders them is the ring, and from
 * one free to the next alloc the pool. */
struct block {
    uint64_t maker, number, check;
    unsigned char rest[SIZE - 24];
};

static void mark(struct block *block, uint64_t maker, uint64_t number)
{
    block->maker = maker;
    block->number = number;
    block->check = maker * UINT64_C(0x9e3779b97f4a7c15) ^ number;
    memset(block->rest, (int)number, sizeof block->rest);
}

static void check(const struct block *block)
{
    RACE_CHECK(block->check == (block->maker * UINT64_C(0x9e3779b97f4a7c15) ^ block->number));
    RACE_CHECK(block->rest[0] == (unsigned char)block->number);
    RACE_CHECK(block->rest[sizeof block->rest - 1] == (unsigned char)block->number);
}

enum { MAKERS = 3, PLACES = 512, GOES = RACE_SIZE(400000, 20000), LIVES = RACE_SIZE(40, 10) };
static _Atomic(struct block *) places[PLACES];

/* Each puts what it makes into a random place, and frees what it finds there: mostly another's. */
static void *go_round(void *arg)
{
    uint64_t maker = (uintptr_t)arg, random = race_seed() + maker;
    for (uint64_t i = 0; i < GOES / LIVES; i++) {
        struct block *block = wr_pool_alloc(sizeof *block);
        RACE_CHECK(block != NULL);
        mark(block, maker, i);
        block = atomic_exchange_explicit(&places[race_draw(&random) % PLACES], block, memory_order_acq_rel);
        if (block == NULL)
            continue;
        check(block);
        memset(block, 0xee, sizeof *block);
        wr_pool_free(block, sizeof *block);
    }
    return NULL;
}

static void go_round_and_end(void)
{
    for (unsigned life = 0; life < LIVES; life++) {
        pthread_t threads[MAKERS];
        for (uintptr_t i = 0; i < MAKERS; i++)
            RACE_CHECK(pthread_create(&threads[i], NULL, go_round, (void *)(life * MAKERS + i)) == 0);
        if (life % 4 == 1)
            wr_pool_trim();
        for (unsigned i = 0; i < MAKERS; i++)
            pthread_join(threads[i], NULL);
    }
    unsigned long left = 0;
    for (unsigned i = 0; i < PLACES; i++) {
        struct block *block = atomic_exchange(&places[i], NULL);
        if (block != NULL) {
            check(block);
            wr_pool_free(block, sizeof *block);
            left++;
        }
    }
    printf("round and round: %d blocks, %lu left, %zu bytes kept\n", MAKERS * GOES, left, figures_now().bytes);
    RACE_CHECK(figures_now().bytes <= (WR_POOL_DEPOT + 2) * WR_POOL_MAGAZINE_BYTES);
    wr_pool_trim();
    RACE_CHECK(figures_now().bytes == 0);
}

/* ---- short threads ------------------------------------------------------------------------------------------- */

enum { AT_ONCE = 8, BATCHES = RACE_SIZE(2500, 50) }; /* 20,000 threads */

/* Some blocks of some classes, in all states of the two magazines. */
static void *live_briefly(void *arg)
{
    void *blocks[3 * WR_POOL_ROUNDS];
    unsigned number = (unsigned)(uintptr_t)arg;
    for (unsigned turn = 0; turn < 2; turn++) {
        size_t size = 1 + (number * 31 + turn * 57) % WR_POOL_MAX;
        unsigned n = number * 7 % (3 * WR_POOL_ROUNDS);
        for (unsigned i = 0; i < n; i++)
            RACE_CHECK((blocks[i] = wr_pool_alloc(size)) != NULL);
        for (unsigned i = 0; i < n; i++)
            wr_pool_free(blocks[i], size);
    }
    return NULL;
}

/* What the depot keeps has a bound, and nothing else stays. */
static void live_briefly_and_end(void)
{
    size_t half = 0, end;
    for (unsigned batch = 0; batch < BATCHES; batch++) {
        pthread_t threads[AT_ONCE];
        if (batch == BATCHES / 2) {
            wr_pool_trim();
            half = mallinfo2().uordblks;
        }
        for (uintptr_t i = 0; i < AT_ONCE; i++)
            RACE_CHECK(pthread_create(&threads[i], NULL, live_briefly, (void *)(batch * AT_ONCE + i)) == 0);
        for (unsigned i = 0; i < AT_ONCE; i++)
            pthread_join(threads[i], NULL);
        RACE_CHECK(figures_now().own_blocks == 0);
        RACE_CHECK(figures_now().bytes <= (size_t)WR_POOL_CLASSES * WR_POOL_DEPOT * WR_POOL_MAGAZINE_BYTES);
    }
    size_t kept = figures_now().bytes;
    wr_pool_trim();
    end = mallinfo2().uordblks;
    printf("%d short threads: %zu bytes kept; malloc %zu bytes half way, %zu at the end\n", AT_ONCE * BATCHES, kept,
           half, end);
    if (!RACE_SANITIZED)
        RACE_CHECK(end <= half + 4096);
}

/* ---- sides of races ------------------------------------------------------------------------------------------ */

/* A side's cache is taken from its thread, which begins the next round without one. */
static struct wr_thread_cache *caches[2];

static void part_with_cache(unsigned side)
{
    caches[side] = wr_thread_record.cache;
    wr_thread_record.cache = NULL;
}

/* As the threads' ends do it. */
static void end_caches(void)
{
    for (unsigned side = 0; side < 2; side++)
        if (caches[side] != NULL)
            caches[side]->at_exit(caches[side]);
    caches[0] = caches[1] = NULL;
}

/* Frees blocks that the pool has not seen, so that the depot gives none: they say whose they are. */
static void bring(unsigned side, unsigned n)
{
    unsigned char *blocks[3 * ROUNDS];
    for (unsigned i = 0; i < n; i++) {
        RACE_CHECK((blocks[i] = wr_alloc(SIZE)) != NULL);
        memset(blocks[i], (int)side, SIZE);
    }
    for (unsigned i = 0; i < n; i++)
        wr_pool_free(blocks[i], SIZE);
}

/* So many full magazines in the depot, and the calling thread without a cache. */
static void stock(unsigned magazines)
{
    wr_pool_trim();
    for (unsigned i = 0; i < magazines; i++) {
        bring(2, ROUNDS);
        part_with_cache(0);
        end_caches();
    }
    RACE_CHECK(figures_now().depot_blocks == magazines * ROUNDS);
}

/* ---- one magazine, two who want it ------------------------------------------------------------------------- */

static size_t got[2];
static void *taken[2];

static void stock_one(void *ctx)
{
    (void)ctx;
    stock(1);
}

static void want(unsigned side)
{
    RACE_CHECK((taken[side] = wr_pool_alloc(SIZE)) != NULL);
    memset(taken[side], (int)side, SIZE);
    got[side] = figures_now().own_blocks;
    part_with_cache(side);
}

static void want_first(void *ctx)
{
    (void)ctx;
    want(0);
}

static void want_second(void *ctx)
{
    (void)ctx;
    want(1);
}

static unsigned who_got_it(void *ctx)
{
    (void)ctx;
    RACE_CHECK(taken[0] != taken[1]);
    RACE_CHECK(got[0] + got[1] == ROUNDS - 1 && (got[0] == 0 || got[1] == 0));
    RACE_CHECK(figures_now().depot_blocks == 0);
    wr_free(taken[0]);
    wr_free(taken[1]);
    end_caches();
    return got[0] > 0 ? 0 : 1;
}

/* ---- magazines brought beside a trim -------------------------------------------------------------------- */

enum { BROUGHT = 12 };

static void bring_many(void *ctx)
{
    (void)ctx;
    for (unsigned i = 0; i < BROUGHT; i += 3)
        bring(0, 3 * ROUNDS);
    part_with_cache(0);
    end_caches();
}

static void trim(void *ctx)
{
    (void)ctx;
    wr_pool_trim();
}

static unsigned what_trim_left(void *ctx)
{
    (void)ctx;
    size_t left = figures_now().depot_blocks;
    RACE_CHECK(left % ROUNDS == 0 && left <= BROUGHT * ROUNDS);
    wr_pool_trim();
    return left == 0 ? 0 : left < BROUGHT * ROUNDS ? 1 : 2;
}

/* ---- room for one, two who bring ----------------------------------------------------------------------------- */

static void *one_more[2];

/* And each side has two full magazines. */
static void stock_all_but_one(void *ctx)
{
    (void)ctx;
    stock(WR_POOL_DEPOT - 1);
    for (unsigned side = 0; side < 2; side++) {
        bring(side, 2 * ROUNDS);
        part_with_cache(side);
        RACE_CHECK((one_more[side] = wr_alloc(SIZE)) != NULL);
    }
}

/* The block for which there is no room sends a magazine to the depot. */
static void bring_too_many(unsigned side)
{
    wr_thread_record.cache = caches[side];
    wr_pool_free(one_more[side], SIZE);
    part_with_cache(side);
}

static void bring_first(void *ctx)
{
    (void)ctx;
    bring_too_many(0);
}

static void bring_second(void *ctx)
{
    (void)ctx;
    bring_too_many(1);
}

static unsigned who_came_in(void *ctx)
{
    (void)ctx;
    RACE_CHECK(figures_now().depot_blocks == WR_POOL_DEPOT * ROUNDS);
    unsigned char *last = wr_pool_alloc(SIZE); /* of the magazine that came last */
    RACE_CHECK(figures_now().depot_blocks == (WR_POOL_DEPOT - 1) * ROUNDS);
    unsigned side = *last;
    RACE_CHECK(side < 2);
    wr_free(last);
    end_caches();
    wr_pool_trim();
    return side;
}

/* ---- fork ---------------------------------------------------------------------------------------------------- */

static _Atomic bool over;

/* Three magazines' worth: the depot is needed. */
static void use_blocks(void)
{
    void *blocks[3 * ROUNDS];
    for (unsigned i = 0; i < 3 * ROUNDS; i++)
        RACE_CHECK((blocks[i] = wr_pool_alloc(SIZE)) != NULL);
    for (unsigned i = 0; i < 3 * ROUNDS; i++)
        wr_pool_free(blocks[i], SIZE);
}

static void *churn(void *unused)
{
    while (!atomic_load_explicit(&over, memory_order_relaxed))
        use_blocks();
    return unused;
}

/* Each child finds a depot that it can use, whatever the other threads were doing to it. */
static void fork_beside(void)
{
    pthread_t threads[2];
    for (unsigned i = 0; i < 2; i++)
        RACE_CHECK(pthread_create(&threads[i], NULL, churn, NULL) == 0);
    enum { FORKS = RACE_SIZE(200, 30) };
    for (unsigned i = 0; i < FORKS; i++) {
        fflush(NULL);
        pid_t child = fork();
        RACE_CHECK(child >= 0);
        if (child == 0) {
            for (unsigned round = 0; round < 10; round++)
                use_blocks();
            wr_pool_trim();
            _exit(figures_now().bytes == 0 ? 0 : 1);
        }
        int status;
        RACE_CHECK(waitpid(child, &status, 0) == child);
        RACE_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    atomic_store_explicit(&over, true, memory_order_relaxed);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    printf("fork beside use: %d children\n", FORKS);
}

int main(void)
{
    mallopt(M_ARENA_MAX, 1); /* another arena, made when threads first contend, would be 2 KiB more in use */
    (void)race_seed();
    wr_pool_force(true);
    const struct race one_magazine = {
        .name = "one magazine, two who want it",
        .prepare = stock_one,
        .sides = {want_first, want_second},
        .judge = who_got_it,
        .outcomes = {"first", "second"},
        .rounds = RACE_SIZE(10000, 1500),
    };
    const struct race trimming = {
        .name = "bring vs trim",
        .sides = {bring_many, trim},
        .judge = what_trim_left,
        .outcomes = {"all trimmed", "some left", "all left"},
        .rounds = RACE_SIZE(10000, 1500),
    };
    const struct race room_for_one = {
        .name = "room for one, two who bring",
        .prepare = stock_all_but_one,
        .sides = {bring_first, bring_second},
        .judge = who_came_in,
        .outcomes = {"first came in", "second came in"},
        .rounds = RACE_SIZE(2000, 400),
    };
    go_round_and_end();
    live_briefly_and_end();
    bool good = race_run(&one_magazine);
    good = race_run(&trimming) && good;
    good = race_run(&room_for_one) && good;
    fork_beside();
    wr_pool_trim();
    return good ? 0 : 1;
}
