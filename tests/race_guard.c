/* Races of read sections with what waits for them. Runs twice: with membarrier(2), and with fences. */
#include <string.h>

#include <weakref/debug.h>
#include <weakref/guard.h>
#include <weakref/object.h>
#include <weakref/weak.h>

#include "race.h"

#define MAGIC UINT64_C(0x616c697665)

struct thing {
    uint64_t magic;
};

static _Atomic uint64_t made, destroyed;

static void destroy(void *obj)
{
    struct thing *thing = obj;
    RACE_CHECK(thing->magic == MAGIC);
    thing->magic = 0;
    atomic_fetch_add_explicit(&destroyed, 1, memory_order_relaxed);
}

/* Not deferred: the guard protects it only because release_later waits. */
static const wr_type type = {.name = "thing", .size = sizeof(struct thing), .destroy = destroy};

static struct table {
    _Atomic(struct thing *) published;
    unsigned seen[2]; /* by reader: whether it found it */
    uint64_t destroyed_before;
    uint64_t random[2];
} table;

static void prepare(void *ctx)
{
    (void)ctx;
    struct thing *thing = wr_new(&type);
    RACE_CHECK(thing != NULL);
    thing->magic = MAGIC;
    atomic_fetch_add(&made, 1);
    atomic_store_explicit(&table.published, thing, memory_order_release);
    table.seen[0] = table.seen[1] = 0;
    table.destroyed_before = atomic_load(&destroyed);
}

static void read_it(unsigned reader)
{
    WR_GUARD {
        const struct thing *thing = atomic_load_explicit(&table.published, memory_order_acquire);
        if (thing != NULL) {
            table.seen[reader] = 1;
            uint64_t n = race_draw(&table.random[reader]);
            n = n % 4 == 0 ? n >> 32 & 4095 : n >> 32 & 63;
            RACE_CHECK(thing->magic == MAGIC);
            for (; n > 0; n--)
                race_pause();
            if (n >> 60 == 0)
                sched_yield();
            RACE_CHECK(thing->magic == MAGIC);
        }
    }
}

static void read_0(void *ctx)
{
    (void)ctx;
    read_it(0);
}

static void read_1(void *ctx)
{
    (void)ctx;
    read_it(1);
}

static struct thing *unpublish(void)
{
    struct thing *thing = atomic_exchange_explicit(&table.published, NULL, memory_order_acq_rel);
    RACE_CHECK(thing != NULL);
    return thing;
}

static void release_later(void *ctx)
{
    (void)ctx;
    wr_release_later(unpublish());
}

static void release_later_and_wait(void *ctx)
{
    (void)ctx;
    wr_release_later(unpublish());
    RACE_CHECK(wr_barrier() == 0);
    RACE_CHECK(atomic_load(&destroyed) > table.destroyed_before);
}

static void wait_and_release(void *ctx)
{
    (void)ctx;
    struct thing *thing = unpublish();
    RACE_CHECK(wr_synchronize() == 0);
    wr_release(thing);
}

static unsigned judge(void *ctx)
{
    (void)ctx;
    return table.seen[0] + table.seen[1];
}

int main(int argc, char **argv)
{
    (void)argc;
    for (unsigned i = 0; i < 2; i++)
        table.random[i] = race_seed() + i;
    struct wr_stats stats;
    wr_stats(&stats);
    printf("guards with %s\n", stats.membarrier ? "membarrier" : "fences");

    const struct race races[] = {
        {.name = "guards, release_later",
         .prepare = prepare,
         .sides = {release_later, read_0, read_1},
         .judge = judge,
         .outcomes = {"too late", "one found it", "both"},
         .rounds = RACE_ROUNDS / 2},
        {.name = "guards, release_later and barrier",
         .prepare = prepare,
         .sides = {release_later_and_wait, read_0, read_1},
         .judge = judge,
         .outcomes = {"too late", "one found it", "both"},
         .rounds = RACE_ROUNDS / 8},
        {.name = "guards, synchronize and release",
         .prepare = prepare,
         .sides = {wait_and_release, read_0, read_1},
         .judge = judge,
         .outcomes = {"too late", "one found it", "both"},
         .rounds = RACE_ROUNDS / 8},
    };
    bool good = true;
    for (unsigned i = 0; i < sizeof races / sizeof *races; i++)
        good = race_run(&races[i]) && good;
    RACE_CHECK(wr_barrier() == 0);
    RACE_CHECK(atomic_load(&made) == atomic_load(&destroyed));
    if (!good)
        return 1;
    if (stats.membarrier) {
        setenv("WR_NO_MEMBARRIER", "1", 1);
        execv("/proc/self/exe", argv);
        perror("race_guard: cannot start again with fences");
        return 1;
    }
    return 0;
}
