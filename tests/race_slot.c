/* Races on slots: what a load, a get or a compare_exchange finds beside a store. */
#include <weakref/debug.h>
#include <weakref/guard.h>
#include <weakref/object.h>
#include <weakref/slot.h>
#include <weakref/weak.h>

#include "race.h"

#define MAGIC UINT64_C(0x616c697665)

struct thing {
    uint64_t magic;
    unsigned number;
};

static _Atomic uint64_t made, destroyed;

static void destroy(void *obj)
{
    struct thing *thing = obj;
    RACE_CHECK(thing->magic == MAGIC);
    thing->magic = 0;
    atomic_fetch_add_explicit(&destroyed, 1, memory_order_relaxed);
}

static const wr_type types[] = {
    {.name = "plain", .size = sizeof(struct thing), .destroy = destroy},
    {.name = "deferred", .size = sizeof(struct thing), .destroy = destroy, .flags = WR_TYPE_DEFERRED},
};

static struct table {
    wr_slot slot;
    wr_weak_slot weak_slot;
    struct thing *a, *b, *c;
    unsigned found;  /* number of what was found; 0: nothing */
    bool won[2];     /* by side */
    uint64_t random; /* of the reading side */
} table;

static struct thing *thing_new(unsigned number)
{
    uint64_t n = atomic_fetch_add(&made, 1);
    struct thing *thing = wr_new(&types[n / 8 % 2]);
    RACE_CHECK(thing != NULL);
    thing->magic = MAGIC;
    thing->number = number;
    return thing;
}

static void prepare_things(void)
{
    table.a = thing_new(1);
    table.b = thing_new(2);
    table.c = thing_new(3);
    table.found = 0;
    table.won[0] = table.won[1] = false;
    wr_weak_slot_init(&table.weak_slot, table.a);
}

static void prepare(void *ctx)
{
    (void)ctx;
    prepare_things();
    wr_slot_init(&table.slot, table.a);
}

static void finish(void)
{
    wr_slot_fini(&table.slot);
    wr_weak_slot_fini(&table.weak_slot);
    wr_release(table.a);
    wr_release(table.b);
    wr_release(table.c);
}

static void linger(void)
{
    for (uint64_t n = race_draw(&table.random) >> 32 & 63; n > 0; n--)
        race_pause();
}

/* ---- load, peek, store ------------------------------------------------------------------------------------ */

/* The slot holds the only references to the first object. */
static void store(void *ctx)
{
    (void)ctx;
    void *a = table.a;
    table.a = NULL;
    wr_release(a);
    wr_slot_store(&table.slot, table.b);
}

static void load(void *ctx)
{
    (void)ctx;
    struct thing *obj = wr_slot_load(&table.slot);
    RACE_CHECK(obj != NULL && obj->magic == MAGIC);
    table.found = obj->number;
    linger();
    RACE_CHECK(obj->magic == MAGIC);
    wr_release(obj);
}

static void peek(void *ctx)
{
    (void)ctx;
    WR_GUARD {
        struct thing *obj = wr_slot_peek(&table.slot);
        RACE_CHECK(obj != NULL && obj->magic == MAGIC);
        table.found = obj->number;
        linger();
        RACE_CHECK(obj->magic == MAGIC);
        if (race_draw(&table.random) & 1) {
            wr_retain(obj);
            wr_release(obj);
        }
    }
}

static unsigned judge_found(void *ctx)
{
    (void)ctx;
    finish();
    return table.found - 1;
}

/* A former value that comes out is safe to release at once, beside readers. */
static void exchange(void *ctx)
{
    (void)ctx;
    void *a = table.a;
    table.a = NULL;
    wr_release(a);
    struct thing *old = wr_slot_exchange(&table.slot, table.b);
    RACE_CHECK(old == a && old->magic == MAGIC);
    wr_release(old);
}

/* ---- compare_exchange --------------------------------------------------------------------------------------- */

static void cas_b(void *ctx)
{
    (void)ctx;
    table.won[0] = wr_slot_compare_exchange(&table.slot, table.a, table.b);
}

static void cas_c(void *ctx)
{
    (void)ctx;
    table.won[1] = wr_slot_compare_exchange(&table.slot, table.a, table.c);
}

static void store_c(void *ctx)
{
    (void)ctx;
    wr_slot_store(&table.slot, table.c);
}

static unsigned judge_cas_store(void *ctx)
{
    (void)ctx;
    RACE_CHECK(wr_slot_peek(&table.slot) == table.c);
    finish();
    return table.won[0] ? 0 : 1;
}

static unsigned judge_cas_cas(void *ctx)
{
    (void)ctx;
    RACE_CHECK(table.won[0] != table.won[1]);
    RACE_CHECK(wr_slot_peek(&table.slot) == (table.won[0] ? table.b : table.c));
    finish();
    return table.won[0] ? 0 : 1;
}

/* ---- weak slot: get, set, death ---------------------------------------------------------------------------- */

static void prepare_weak(void *ctx)
{
    (void)ctx;
    prepare_things();
    wr_slot_init(&table.slot, NULL); /* a slot's reference would outlive the round */
}

static void die(void *ctx)
{
    (void)ctx;
    void *a = table.a;
    table.a = NULL;
    wr_release(a);
}

static void set(void *ctx)
{
    (void)ctx;
    wr_weak_slot_set(&table.weak_slot, table.b);
}

static void get(void *ctx)
{
    (void)ctx;
    struct thing *obj = wr_weak_slot_get(&table.weak_slot);
    if (obj != NULL) {
        RACE_CHECK(obj->magic == MAGIC);
        table.found = obj->number;
        linger();
        RACE_CHECK(obj->magic == MAGIC);
    }
    wr_release(obj);
}

static unsigned judge_weak(void *ctx)
{
    (void)ctx;
    finish();
    return table.found;
}

int main(void)
{
    table.random = race_seed();
    const struct race races[] = {
        {.name = "slot load, store",
         .prepare = prepare,
         .sides = {store, load},
         .judge = judge_found,
         .outcomes = {"the old one", "the new one"}},
        {.name = "slot peek, store",
         .prepare = prepare,
         .sides = {store, peek},
         .judge = judge_found,
         .outcomes = {"the old one", "the new one"}},
        {.name = "slot load, exchange",
         .prepare = prepare,
         .sides = {exchange, load},
         .judge = judge_found,
         .outcomes = {"the old one", "the new one"}},
        {.name = "slot compare_exchange, store",
         .prepare = prepare,
         .sides = {cas_b, store_c},
         .judge = judge_cas_store,
         .outcomes = {"exchanged first", "stored first"}},
        {.name = "slot compare_exchange, twice",
         .prepare = prepare,
         .sides = {cas_b, cas_c},
         .judge = judge_cas_cas,
         .outcomes = {"one", "the other"}},
        {.name = "weak slot get, set, death",
         .prepare = prepare_weak,
         .sides = {get, set, die},
         .judge = judge_weak,
         .outcomes = {"nothing", "the old one", "the new one"}},
    };
    bool good = true;
    for (unsigned i = 0; i < sizeof races / sizeof *races; i++)
        good = race_run(&races[i]) && good;

    struct wr_stats stats;
    RACE_CHECK(wr_barrier() == 0);
    wr_stats(&stats);
    RACE_CHECK(stats.deferred == 0 && stats.leaked == 0);
    RACE_CHECK(atomic_load(&made) == atomic_load(&destroyed));
    printf("%llu objects made and destroyed\n", (unsigned long long)atomic_load(&made));
    return good ? 0 : 1;
}
