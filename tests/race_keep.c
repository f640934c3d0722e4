/* Keeping beside everything: uses, evictions, trims, deaths, removals, replacements and frees by many threads. What was created
 * is destroyed in the end, once; what is kept is alive, and within its limits when all is quiet. */
#include <weakref/weakref.h>

#include "keep.h"
#include "race.h"

#include <errno.h>

static atomic_ulong n_created, n_destroyed;

struct thing {
    uint64_t key;
    uint64_t whole; /* ~key until it is destroyed */
    wr_value_dict *again;
};

static void thing_destroy(void *obj)
{
    struct thing *t = obj;
    RACE_CHECK(t->whole == ~t->key);
    t->whole = 0;
    atomic_fetch_add_explicit(&n_destroyed, 1, memory_order_relaxed);
    if (t->again != NULL) /* now and then: back into the dictionary that let it go */
        wr_release(wr_value_dict_get_u64(t->again, t->key + 1));
}

static const wr_type thing_type = {.name = "thing", .size = sizeof(struct thing), .destroy = thing_destroy};

static struct thing *thing_new(uint64_t key)
{
    struct thing *t = wr_new(&thing_type);
    RACE_CHECK(t != NULL);
    t->key = key;
    t->whole = ~key;
    atomic_fetch_add_explicit(&n_created, 1, memory_order_relaxed);
    return t;
}

static void check_all_gone(void)
{
    RACE_CHECK(wr_barrier() == 0);
    RACE_CHECK(atomic_load(&n_created) == atomic_load(&n_destroyed));
}

static size_t size_of(const void *obj, void *ctx)
{
    (void)ctx;
    return ((const struct thing *)obj)->key % 7;
}

static void removed(const void *key, size_t size, void *ctx)
{
    (void)key;
    RACE_CHECK(size == 8);
    atomic_fetch_add_explicit((atomic_ulong *)ctx, 1, memory_order_relaxed);
}

static int create(const void *key, size_t size, void *ctx, void **obj)
{
    (void)ctx;
    uint64_t number;
    RACE_CHECK(size == sizeof number);
    memcpy(&number, key, sizeof number);
    *obj = thing_new(number);
    return 0;
}

/* ---- the storm ---------------------------------------------------------------------------------------------- */

enum { THREADS = 4, ROUNDS = RACE_SIZE(12, 4), STEPS = RACE_SIZE(40000, 5000), KEYS = 300, MOST = 64 };

static wr_value_dict *d;
static atomic_bool storm_over;
static atomic_ulong n_trimmed, n_removed;

static void check_thing(struct thing *t, uint64_t key)
{
    if (t != NULL)
        RACE_CHECK(t->key == key && t->whole == ~key);
    wr_release(t);
}

static void *storm(void *arg)
{
    uint64_t random = race_seed() * 31 + (uintptr_t)arg;
    struct thing *held[8] = {NULL};
    for (unsigned i = 0; i < STEPS; i++) {
        uint64_t r = race_draw(&random);
        uint64_t key = (r >> 32) % KEYS * ((r >> 20) % 4 == 0 ? 1 : (r >> 24) % 2) % KEYS; /* some more often */
        void *out = NULL;
        struct thing *t;
        switch (r % 32) {
        case 0:
        case 1:
        case 2:
        case 3:
        case 4: {
            t = thing_new(key);
            t->again = (r >> 16) % 4 == 0 ? d : NULL;
            RACE_CHECK(wr_value_dict_set_u64(d, key, t) == 0);
            struct thing **place = &held[(r >> 12) % 8];
            if ((r >> 28) % 2 == 0) { /* held for a while: it may be let go before, and come back */
                wr_release(*place);
                *place = t;
            } else {
                wr_release(t);
            }
            break;
        }
        case 5:
            (void)wr_value_dict_remove_u64(d, key);
            break;
        case 6:
            check_thing(wr_value_dict_pop_u64(d, key), key);
            break;
        case 7:
            RACE_CHECK(wr_value_dict_get_or_create_u64(d, key, create, NULL, &out) == 0);
            check_thing(out, key);
            break;
        case 8:
            if ((r >> 12) % 64 == 0)
                wr_value_dict_clear(d);
            else if ((r >> 12) % 8 == 0)
                atomic_fetch_add(&n_trimmed, wr_value_dict_trim(d, (double)((r >> 16) % 5) / 4));
            break;
        case 9:
            t = thing_new(key);
            RACE_CHECK(wr_value_dict_setdefault_u64(d, key, t, &out) == 0);
            wr_release(t);
            check_thing(out, key);
            break;
        case 10: {
            uint64_t other;
            size_t size = sizeof other;
            struct thing *popped = wr_value_dict_popitem(d, &other, &size);
            if (popped != NULL)
                check_thing(popped, other);
            break;
        }
        default:
            check_thing(wr_value_dict_get_u64(d, key), key);
        }
    }
    for (unsigned i = 0; i < 8; i++)
        wr_release(held[i]);
    return NULL;
}

/* As under pressure: of all dictionaries, also of such as are just being made or freed. */
static void *trimmer(void *unused)
{
    (void)unused;
    uint64_t random = race_seed() + 77;
    while (!atomic_load_explicit(&storm_over, memory_order_relaxed)) {
        uint64_t r = race_draw(&random);
        if (r % 4 == 0)
            wr_keep_age();
        atomic_fetch_add(&n_trimmed, wr_keep_trim_all((double)(r >> 60) / 16));
        for (unsigned n = (unsigned)(r >> 20) % 64; n > 0; n--)
            sched_yield();
    }
    return NULL;
}

static void check_quiet(unsigned round)
{
    size_t size, n = wr_value_dict_kept(d, &size);
    RACE_CHECK(round % 3 != 0 || n <= MOST);
    RACE_CHECK(round % 3 != 1 || size <= MOST);
    RACE_CHECK(wr_barrier() == 0);
    /* Nobody else holds anything: what is there is what is kept, each with one reference. */
    RACE_CHECK(wr_value_dict_len(d) == n);
    wr_value_dict_iter it;
    struct wr_value_dict_item item;
    size_t walked = 0;
    wr_value_dict_iter_begin(&it, d);
    while (wr_value_dict_iter_next(&it, &item)) {
        RACE_CHECK(wr_strong_count(item.value) == 2);
        wr_release(item.value);
        walked++;
    }
    wr_value_dict_iter_end(&it);
    RACE_CHECK(walked == n);
    RACE_CHECK(atomic_load(&n_created) - atomic_load(&n_destroyed) == n);
}

static void storms(void)
{
    pthread_t threads[THREADS], trim;
    wr_queue *queue = wr_queue_new("removals");
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct wr_value_dict_options options = {
            .struct_size = sizeof options,
            .initial_size = round % 2 ? 32 : 0,
            .on_removal = round % 4 >= 2 ? removed : NULL,
            .queue = queue,
            .ctx = &n_removed,
            .keep_objects = round % 3 == 0 ? MOST : 0,
            .keep_size = round % 3 == 1 ? MOST : 0,
            .size_of = round % 3 == 1 ? size_of : NULL,
            .keep_ms = round % 3 == 2 ? 8 : 0,
        };
        d = wr_value_dict_new(&options);
        RACE_CHECK(d != NULL);
        atomic_store(&storm_over, false);
        RACE_CHECK(pthread_create(&trim, NULL, trimmer, NULL) == 0);
        for (uintptr_t i = 0; i < THREADS; i++)
            RACE_CHECK(pthread_create(&threads[i], NULL, storm, (void *)i) == 0);
        for (unsigned i = 0; i < THREADS; i++)
            RACE_CHECK(pthread_join(threads[i], NULL) == 0);
        bool freed_beside_trims = round % 2 == 0;
        if (freed_beside_trims)
            wr_value_dict_free(d);
        atomic_store(&storm_over, true);
        RACE_CHECK(pthread_join(trim, NULL) == 0);
        if (!freed_beside_trims) {
            check_quiet(round);
            wr_value_dict_free(d);
        }
        wr_queue_drain(queue, SIZE_MAX);
        check_all_gone();
    }
    wr_queue_free(queue);
    printf("storms: %lu created and destroyed, %lu trimmed, %lu removals heard of\n", atomic_load(&n_created),
           atomic_load(&n_trimmed), atomic_load(&n_removed));
    RACE_CHECK(atomic_load(&n_trimmed) > 0 && atomic_load(&n_removed) > 0);
}

/* ---- two at a time ------------------------------------------------------------------------------------------- */

static struct duel {
    wr_value_dict *d;
    struct thing *a; /* held by the test, as key 1 */
    void *got;
    int err;
    size_t n;
} duel;

static void duel_begin(unsigned most)
{
    struct wr_value_dict_options options = {.struct_size = sizeof options, .initial_size = 1, .keep_objects = most};
    duel = (struct duel){.d = wr_value_dict_new(&options), .a = thing_new(1)};
    RACE_CHECK(duel.d != NULL && wr_value_dict_set_u64(duel.d, 1, duel.a) == 0);
}

static void duel_end(void)
{
    wr_release(duel.got);
    wr_release(duel.a);
    wr_value_dict_free(duel.d);
    RACE_CHECK(atomic_load(&n_created) == atomic_load(&n_destroyed));
}

static void set_other(void *ctx)
{
    (void)ctx;
    struct thing *t = thing_new(2);
    RACE_CHECK(wr_value_dict_set_u64(duel.d, 2, t) == 0);
    wr_release(t);
}

static void use_a(void *ctx)
{
    (void)ctx;
    duel.got = wr_value_dict_get_u64(duel.d, 1);
}

static void remove_a(void *ctx)
{
    (void)ctx;
    duel.err = wr_value_dict_remove_u64(duel.d, 1);
}

static void trim_all(void *ctx)
{
    (void)ctx;
    duel.n = wr_value_dict_trim(duel.d, 1);
}

/* The set evicts 1, the oldest, or if that is marked, 3. */
static void prepare_mark(void *ctx)
{
    (void)ctx;
    duel_begin(2);
    struct thing *t = thing_new(3);
    RACE_CHECK(wr_value_dict_set_u64(duel.d, 3, t) == 0);
    wr_release(t);
}

/* With the mark in time, 1 is the next to go: it is older than 2. Else it was let go, and has come back as the newest. */
static unsigned judge_mark(void *ctx)
{
    (void)ctx;
    RACE_CHECK(duel.got == duel.a && wr_value_dict_kept(duel.d, NULL) == 2);
    RACE_CHECK(wr_strong_count(duel.a) == 3 && !wr_value_dict_contains_u64(duel.d, 3));
    struct thing *t = thing_new(4);
    RACE_CHECK(wr_value_dict_set_u64(duel.d, 4, t) == 0);
    wr_release(t);
    bool marked = wr_strong_count(duel.a) == 2;
    RACE_CHECK(wr_value_dict_contains_u64(duel.d, 2) == marked);
    duel_end();
    return marked ? 0 : 1;
}

static void prepare_loose(void *ctx)
{
    (void)ctx;
    duel_begin(2);
    RACE_CHECK(wr_value_dict_trim(duel.d, 1) == 1);
}

static unsigned judge_loose(void *ctx)
{
    (void)ctx;
    RACE_CHECK(duel.err == 0 && wr_value_dict_kept(duel.d, NULL) == 0);
    RACE_CHECK(wr_strong_count(duel.a) == 1 + (duel.got != NULL));
    unsigned outcome = duel.got != NULL ? 0 : 1;
    duel_end();
    return outcome;
}

static void prepare_kept(void *ctx)
{
    (void)ctx;
    duel_begin(2);
}

/* The reference goes once, by the one or by the other. */
static unsigned judge_kept(void *ctx)
{
    (void)ctx;
    RACE_CHECK(duel.err == 0 && wr_value_dict_kept(duel.d, NULL) == 0 && wr_value_dict_len(duel.d) == 0);
    RACE_CHECK(wr_strong_count(duel.a) == 1);
    unsigned outcome = duel.n == 1 ? 0 : 1;
    duel_end();
    return outcome;
}

/* The last reference of a loose one beside its use: it dies, or is found and kept again. */
static void release_a(void *ctx)
{
    (void)ctx;
    wr_release(duel.a);
}

static unsigned judge_last(void *ctx)
{
    (void)ctx;
    bool found = duel.got != NULL;
    RACE_CHECK(wr_value_dict_kept(duel.d, NULL) == found && wr_value_dict_len(duel.d) == found);
    duel.a = NULL;
    duel_end();
    return found ? 0 : 1;
}

int main(void)
{
    const struct race mark = {.name = "use vs the hand",
                              .prepare = prepare_mark,
                              .sides = {use_a, set_other},
                              .judge = judge_mark,
                              .outcomes = {"marked", "let go"}};
    const struct race loose = {.name = "coming back vs removal",
                               .prepare = prepare_loose,
                               .sides = {use_a, remove_a},
                               .judge = judge_loose,
                               .outcomes = {"found", "removed"}};
    const struct race kept = {.name = "trim vs removal",
                              .prepare = prepare_kept,
                              .sides = {trim_all, remove_a},
                              .judge = judge_kept,
                              .outcomes = {"trimmed", "removed"}};
    const struct race last = {.name = "coming back vs the last release",
                              .prepare = prepare_loose,
                              .sides = {use_a, release_a},
                              .judge = judge_last,
                              .outcomes = {"found", "died"}};
    (void)race_seed();
    bool good = race_run(&mark) & race_run(&loose) & race_run(&kept) & race_run(&last);
    storms();
    return good ? 0 : 1;
}
