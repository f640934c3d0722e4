/* Races on the count word: who wins, who destroys, who frees. */
#include <errno.h>
#include <stdlib.h>

#include <weakref/debug.h>
#include <weakref/guard.h>
#include <weakref/object.h>
#include <weakref/weak.h>

#include "race.h"

#define MAGIC UINT64_C(0x616c697665)
#define POISON UINT64_C(0x64656164)

struct thing {
    uint64_t magic;
    uint64_t written[4]; /* by side, plain: the library alone orders them before destroy */
};

struct table {
    struct thing *obj;
    wr_weak *weak;
    void *got[4];               /* by side */
    bool looked[4];             /* the side's peek found something */
    _Atomic(wr_weak *) handed;  /* what destroy handed over */
    _Atomic unsigned destroyed; /* in this round */
    _Atomic unsigned freed[4];  /* blocks, by the side that freed them */
    uint64_t seen;              /* sum of `written`, as destroy saw it */
    uint64_t wins[4];           /* upgrades by side */
    uint64_t random[4];
};

static struct table table;
static _Thread_local unsigned side; /* whose call this is; 0: none of them */

/* ---- an allocator that knows who frees ------------------------------------------------------------------ */

static void *counted_alloc(size_t size, size_t align, void *ctx)
{
    (void)ctx;
    void *memory = NULL;
    return posix_memalign(&memory, align < sizeof(void *) ? sizeof(void *) : align, size ? size : 1) == 0 ? memory
                                                                                                          : NULL;
}

static void counted_free(void *memory, void *ctx)
{
    (void)ctx;
    atomic_fetch_add_explicit(&table.freed[side], 1, memory_order_relaxed);
    free(memory);
}

static void linger(unsigned i)
{
    uint64_t n = race_draw(&table.random[i]);
    for (n = n % 4 == 0 ? n >> 32 & 1023 : n >> 32 & 15; n > 0; n--)
        race_pause();
    if (race_draw(&table.random[i]) % 16 == 0)
        sched_yield();
}

/* ---- objects --------------------------------------------------------------------------------------------------- */

static void destroy(void *obj)
{
    struct thing *thing = obj;
    RACE_CHECK(thing->magic == MAGIC);
    thing->magic = POISON;
    table.seen = 0;
    for (unsigned i = 0; i < 4; i++)
        table.seen += thing->written[i];
    atomic_fetch_add_explicit(&table.destroyed, 1, memory_order_relaxed);
}

static void destroy_and_hand_over(void *obj)
{
    destroy(obj);
    wr_weak *weak = wr_downgrade(obj);
    RACE_CHECK(weak != NULL && wr_weak_is_dead(weak));
    atomic_store_explicit(&table.handed, weak, memory_order_release);
    linger(1);
}

static const wr_type plain = {.name = "plain", .size = sizeof(struct thing), .destroy = destroy};
static const wr_type bare = {.name = "bare", .size = sizeof(struct thing)};
static const wr_type handing = {.name = "handing", .size = sizeof(struct thing), .destroy = destroy_and_hand_over};
static const wr_type deferred = {
    .name = "deferred", .size = sizeof(struct thing), .destroy = destroy, .flags = WR_TYPE_DEFERRED};

static void begin(const wr_type *type, bool weak)
{
    table.obj = wr_new(type);
    RACE_CHECK(table.obj != NULL);
    table.obj->magic = MAGIC;
    table.weak = weak ? wr_downgrade(table.obj) : NULL;
    atomic_store(&table.destroyed, 0);
    atomic_store(&table.handed, NULL);
    for (unsigned i = 0; i < 4; i++) {
        atomic_store(&table.freed[i], 0);
        table.got[i] = NULL;
        table.wins[i] = 0;
        table.looked[i] = false;
    }
}

static void write_and_release(unsigned i, void *obj)
{
    side = i;
    ((struct thing *)obj)->written[i] = 1;
    wr_release(obj);
    side = 0;
}

/* @most: so many times, as long as it can. */
static void upgrade_and_release(unsigned i, unsigned most)
{
    side = i;
    for (unsigned n = 0; n < most; n++) {
        struct thing *obj = wr_upgrade(table.weak);
        if (obj == NULL)
            break;
        RACE_CHECK(obj->magic == MAGIC);
        table.got[i] = obj;
        table.wins[i]++;
        obj->written[i]++;
        wr_release(obj);
    }
    side = 0;
}

/* ---- upgrade, last release ---------------------------------------------------------------------------------- */

static void prepare_one(void *ctx)
{
    (void)ctx;
    begin(&plain, true);
}

static void release_1(void *ctx)
{
    (void)ctx;
    write_and_release(1, table.obj);
}

static void upgrade_2(void *ctx)
{
    (void)ctx;
    upgrade_and_release(2, 1);
}

static unsigned judge_upgrade(void *ctx)
{
    (void)ctx;
    bool won = table.got[2] != NULL;
    RACE_CHECK(atomic_load(&table.destroyed) == 1);
    RACE_CHECK(table.seen == 1u + won);
    RACE_CHECK(wr_weak_is_dead(table.weak));
    wr_weak_release(table.weak);
    return won ? 0 : 1;
}

/* ---- what an upgrade sees ------------------------------------------------------------------------------------ */

static void prepare_seen(void *ctx)
{
    (void)ctx;
    begin(&plain, true);
    wr_retain(table.obj); /* side 1's; the other is kept until the end */
}

/* As wr_upgrade(), but it shows the count that it found: 1 means that side 1's release came before it. */
static void upgrade_and_read_2(void *ctx)
{
    (void)ctx;
    uint64_t old = wr_word_upgrade_begin(&wr_header_of_weak(table.weak)->word);
    RACE_CHECK(wr_word_strong(old) == 1 || wr_word_strong(old) == 2);
    if (wr_word_strong(old) == 1) {
        RACE_CHECK(table.obj->written[1] == 1);
        table.looked[2] = true;
    }
    wr_release(table.obj);
}

static unsigned judge_seen(void *ctx)
{
    (void)ctx;
    wr_release(table.obj);
    RACE_CHECK(atomic_load(&table.destroyed) == 1);
    wr_weak_release(table.weak);
    return table.looked[2] ? 0 : 1;
}

/* ---- through zero: two releases, two upgrades ------------------------------------------------------------ */

static void prepare_two(void *ctx)
{
    (void)ctx;
    begin(&plain, true);
    wr_retain(table.obj);
}

static void release_0(void *ctx)
{
    (void)ctx;
    write_and_release(0, table.obj);
}

static void upgrade_often_2(void *ctx)
{
    (void)ctx;
    upgrade_and_release(2, 4);
}

static void upgrade_often_3(void *ctx)
{
    (void)ctx;
    upgrade_and_release(3, 4);
}

static unsigned judge_two(void *ctx)
{
    (void)ctx;
    unsigned won = 0u + (table.got[2] != NULL) + (table.got[3] != NULL);
    RACE_CHECK(atomic_load(&table.destroyed) == 1);
    RACE_CHECK(table.seen == 2 + table.wins[2] + table.wins[3]);
    wr_weak_release(table.weak);
    return won;
}

/* ---- weak release, death ---------------------------------------------------------------------------------- */

static void weak_release_2(void *ctx)
{
    (void)ctx;
    side = 2;
    wr_weak_release(table.weak);
    side = 0;
}

static unsigned judge_free_only(void *ctx)
{
    (void)ctx;
    RACE_CHECK(atomic_load(&table.freed[1]) + atomic_load(&table.freed[2]) == 1);
    return atomic_load(&table.freed[1]) == 1 ? 0 : 1;
}

static unsigned judge_free(void *ctx)
{
    RACE_CHECK(atomic_load(&table.destroyed) == 1);
    return judge_free_only(ctx);
}

/* Nothing to run at its death. */
static void prepare_bare(void *ctx)
{
    (void)ctx;
    begin(&bare, true);
}

/* ---- a handle made by destroy ----------------------------------------------------------------------------- */

static void prepare_handing(void *ctx)
{
    (void)ctx;
    begin(&handing, false); /* no handle before: the shortcut of an object that nobody else can reach */
}

static void prepare_handing_weak(void *ctx)
{
    (void)ctx;
    begin(&handing, true);
    wr_weak *weak = table.weak;
    table.weak = NULL;
    wr_retain(table.obj);
    wr_release(table.obj);
    wr_weak_release(weak);
}

static void upgrade_handed_2(void *ctx)
{
    (void)ctx;
    side = 2;
    wr_weak *weak;
    for (unsigned i = 0; (weak = atomic_load_explicit(&table.handed, memory_order_acquire)) == NULL; i++)
        if (i < 1000)
            race_pause();
        else
            sched_yield();
    linger(2);
    /* An attempt leaves its mark in the word, and the release then goes another way. */
    if (race_draw(&table.random[2]) >> 63)
        RACE_CHECK(wr_upgrade(weak) == NULL);
    RACE_CHECK(wr_weak_is_dead(weak));
    wr_weak_release(weak);
    side = 0;
}

/* ---- borrowed pointers of deferred objects -------------------------------------------------------------- */

static void prepare_deferred(void *ctx)
{
    (void)ctx;
    begin(&deferred, true);
}

static void peek_and_retain_2(void *ctx)
{
    (void)ctx;
    WR_GUARD {
        struct thing *borrowed = wr_peek(table.weak);
        if (borrowed != NULL) {
            table.looked[2] = true;
            RACE_CHECK(borrowed->magic == MAGIC);
            linger(2);
            struct thing *obj = wr_retain_live(borrowed);
            table.got[2] = obj;
            RACE_CHECK(borrowed->magic == MAGIC);
            if (obj != NULL) {
                obj->written[2] = 1;
                wr_release(obj);
            }
        }
    }
}

/* The only handle goes between the peek and retain_live: nothing but the guard keeps the header. */
static void peek_let_go_and_retain_2(void *ctx)
{
    (void)ctx;
    WR_GUARD {
        struct thing *borrowed = wr_peek(table.weak);
        wr_weak_release(table.weak);
        table.weak = NULL;
        linger(2);
        if (borrowed != NULL) {
            table.looked[2] = true;
            struct thing *obj = wr_retain_live(borrowed);
            table.got[2] = obj;
            RACE_CHECK(borrowed->magic == MAGIC);
            if (obj != NULL) {
                obj->written[2] = 1;
                linger(2);
                RACE_CHECK(obj->magic == MAGIC);
                wr_release(obj);
            }
        }
    }
}

static unsigned judge_retain_live(void *ctx)
{
    (void)ctx;
    RACE_CHECK(wr_barrier() == 0);
    RACE_CHECK(atomic_load(&table.destroyed) == 1);
    RACE_CHECK(table.seen == 1u + (table.got[2] != NULL));
    wr_weak_release(table.weak);
    return table.got[2] != NULL ? 0 : table.looked[2] ? 1 : 2;
}

static void release_and_synchronize_1(void *ctx)
{
    (void)ctx;
    write_and_release(1, table.obj);
    RACE_CHECK(wr_synchronize() == 0);
}

static void peek_and_read_2(void *ctx)
{
    (void)ctx;
    WR_GUARD {
        const struct thing *borrowed = wr_peek(table.weak);
        if (borrowed != NULL) {
            table.looked[2] = true;
            for (unsigned i = 0; i < 8; i++) {
                RACE_CHECK(borrowed->magic == MAGIC);
                linger(2);
            }
            table.got[2] = wr_weak_is_dead(table.weak) ? &table : NULL;
            RACE_CHECK(borrowed->magic == MAGIC);
        }
    }
}

static unsigned judge_peek(void *ctx)
{
    (void)ctx;
    RACE_CHECK(wr_barrier() == 0);
    RACE_CHECK(atomic_load(&table.destroyed) == 1);
    wr_weak_release(table.weak);
    return table.looked[2] ? table.got[2] != NULL ? 0 : 1 : 2;
}

int main(void)
{
    static const struct wr_allocator allocator = {counted_alloc, counted_free, NULL};
    RACE_CHECK(wr_set_allocator(&allocator) == 0);
    for (unsigned i = 0; i < 4; i++)
        table.random[i] = race_seed() + i;

    const struct race races[] = {
        {.name = "upgrade, last release",
         .prepare = prepare_one,
         .sides = {release_1, upgrade_2},
         .judge = judge_upgrade,
         .outcomes = {"upgraded", "dead"}},
        {.name = "what an upgrade sees",
         .prepare = prepare_seen,
         .sides = {release_1, upgrade_and_read_2},
         .judge = judge_seen,
         .outcomes = {"upgraded after the release", "before"}},
        {.name = "two upgrades, two releases",
         .prepare = prepare_two,
         .sides = {release_0, release_1, upgrade_often_2, upgrade_often_3},
         .judge = judge_two,
         .outcomes = {"none upgraded", "one", "both"},
         .rounds = RACE_ROUNDS / 2},
        {.name = "weak release, death",
         .prepare = prepare_one,
         .sides = {release_1, weak_release_2},
         .judge = judge_free,
         .outcomes = {"the release frees", "the weak release frees"}},
        {.name = "weak release, death of a bare object",
         .prepare = prepare_bare,
         .sides = {release_1, weak_release_2},
         .judge = judge_free_only,
         .outcomes = {"the release frees", "the weak release frees"}},
        {.name = "handle made in destroy",
         .prepare = prepare_handing,
         .sides = {release_1, upgrade_handed_2},
         .judge = judge_free,
         .outcomes = {"the release frees", "the weak release frees"}},
        {.name = "handle made in destroy, others before",
         .prepare = prepare_handing_weak,
         .sides = {release_1, upgrade_handed_2},
         .judge = judge_free,
         .outcomes = {"the release frees", "the weak release frees"}},
        {.name = "retain_live, last release",
         .prepare = prepare_deferred,
         .sides = {release_1, peek_and_retain_2},
         .judge = judge_retain_live,
         .outcomes = {"retained", "died after the peek", "dead"},
         .rounds = RACE_ROUNDS / 4},
        {.name = "retain_live, last release, no handle left",
         .prepare = prepare_deferred,
         .sides = {release_1, peek_let_go_and_retain_2},
         .judge = judge_retain_live,
         .outcomes = {"retained", "died after the peek", "dead"},
         .rounds = RACE_ROUNDS / 4},
        {.name = "peek and read, destroy",
         .prepare = prepare_deferred,
         .sides = {release_and_synchronize_1, peek_and_read_2},
         .judge = judge_peek,
         .outcomes = {"died while looked at", "lived on", "dead"},
         .rounds = RACE_ROUNDS / 4},
    };
    bool good = true;
    for (unsigned i = 0; i < sizeof races / sizeof *races; i++)
        good = race_run(&races[i]) && good;
    return good ? 0 : 1;
}
