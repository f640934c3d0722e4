/* Iterators beside everything: writers that make the tables grow and shrink, deaths, replacements, other iterators.
 *
 * The oracle: lasting keys, held throughout, come exactly once with their own object, and no key comes twice. Each key carries its
 * number and its object's, so that a key whose memory was reused under an iterator is seen. */
#include <weakref/weakref.h>

#include <errno.h>

#include "race.h"

enum {
    LASTING = 257,
    WRITERS = 2,
    ITERATORS = 2,
    TIDE = RACE_SIZE(3000, 700), /* keys of each writer that come and go */
    ROUNDS = RACE_SIZE(60, 8),
    KEYS = LASTING + WRITERS * TIDE
};

struct thing {
    uint64_t key;
};

static const wr_type thing_type = {.name = "thing", .size = sizeof(struct thing)};

struct text {
    uint64_t key;
    unsigned char rest[292]; /* of some keys more, of some less: long ones have another form in the table */
};

static size_t text_of(struct text *text, uint64_t key)
{
    size_t size = sizeof text->key + (key % 7 == 0 ? 284 : key % 31);
    memset(text, (int)(key % 251), sizeof *text);
    text->key = key;
    return size;
}

static struct {
    wr_value_dict *d;
    struct thing *lasting[LASTING];
    atomic_uint writers_left, n_threads;
    atomic_ulong steps, walks, dead_ends;
} shared;

static struct thing *thing_new(uint64_t key)
{
    struct thing *t = wr_new(&thing_type);
    RACE_CHECK(t != NULL);
    t->key = key;
    return t;
}

static void set(uint64_t key, void *obj)
{
    struct text text;
    size_t size = text_of(&text, key);
    RACE_CHECK(wr_value_dict_set(shared.d, &text, size, obj) == 0);
}

/* The key is whole and its own. Returns its number. */
static uint64_t key_of(const void *bytes, size_t size)
{
    struct text text;
    uint64_t key;
    RACE_CHECK(size >= sizeof key);
    memcpy(&key, bytes, sizeof key);
    RACE_CHECK(key < KEYS);
    RACE_CHECK(size == text_of(&text, key) && memcmp(bytes, &text, size) == 0);
    return key;
}

static void *writer(void *arg)
{
    uint64_t base = LASTING + TIDE * (uint64_t)(uintptr_t)arg;
    uint64_t random = race_seed() + base;
    struct thing **mine = calloc(TIDE, sizeof(struct thing *));
    RACE_CHECK(mine != NULL);
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned i = 0; i < TIDE; i++) {
            mine[i] = thing_new(base + i);
            set(base + i, mine[i]);
            if (race_draw(&random) % 4 == 0) { /* a lasting key set again, to the same object */
                uint64_t key = race_draw(&random) % LASTING;
                set(key, shared.lasting[key]);
            }
        }
        for (unsigned i = 0; i < TIDE; i++) {
            struct text text;
            size_t size = text_of(&text, base + i);
            void *other;
            switch (race_draw(&random) % 4) {
            case 0:
                RACE_CHECK(wr_value_dict_remove(shared.d, &text, size) == 0);
                break;
            case 1: /* replaced, then both die */
                other = thing_new(base + i);
                set(base + i, other);
                wr_release(mine[i]);
                mine[i] = other;
                break;
            default:
                break;
            }
            wr_release(mine[i]);
        }
    }
    free(mine);
    atomic_fetch_sub(&shared.writers_left, 1);
    return NULL;
}

/* One walk; stops and begins anew in the middle now and then. */
static void walk(uint64_t *random, unsigned char *seen, bool weak)
{
    wr_value_dict_iter it;
    struct wr_value_dict_item item;
    struct wr_value_dict_ref ref;
    unsigned long steps = 0, n_lasting = 0;
    bool whole = race_draw(random) % 8 != 0;
    memset(seen, 0, KEYS);
    wr_value_dict_iter_begin(&it, shared.d);
    while (weak ? wr_value_dict_iter_next_ref(&it, &ref) : wr_value_dict_iter_next(&it, &item)) {
        uint64_t key = weak ? key_of(ref.key, ref.key_size) : key_of(item.key, item.key_size);
        void *obj = weak ? wr_upgrade(ref.value) : item.value;
        RACE_CHECK(!seen[key]);
        seen[key] = 1;
        if (obj == NULL)
            atomic_fetch_add_explicit(&shared.dead_ends, 1, memory_order_relaxed);
        else
            RACE_CHECK(((struct thing *)obj)->key == key);
        if (key < LASTING) {
            RACE_CHECK(obj == shared.lasting[key]);
            n_lasting++;
        }
        if (race_draw(random) % 64 == 0) {
            if (race_draw(random) % 2)
                sched_yield(); /* stands there while others go on */
            RACE_CHECK((weak ? key_of(ref.key, ref.key_size) : key_of(item.key, item.key_size)) == key);
        }
        wr_release(obj);
        if (weak)
            wr_weak_release(ref.value);
        steps++;
        if (!whole && race_draw(random) % 256 == 0)
            break;
    }
    if (whole)
        RACE_CHECK(n_lasting == LASTING);
    wr_value_dict_iter_end(&it);
    atomic_fetch_add(&shared.steps, steps);
    atomic_fetch_add(&shared.walks, whole);
}

static void *iterator(void *arg)
{
    uint64_t random = race_seed() ^ (uint64_t)(uintptr_t)arg * UINT64_C(0x9e3779b97f4a7c15);
    unsigned char *seen = malloc(KEYS);
    RACE_CHECK(seen != NULL);
    do
        walk(&random, seen, race_draw(&random) % 4 == 0);
    while (atomic_load(&shared.writers_left) > 0);
    free(seen);
    return NULL;
}

static void beside_writers(size_t initial_size)
{
    struct wr_value_dict_options options = {.struct_size = sizeof options, .initial_size = initial_size};
    pthread_t writers[WRITERS], iterators[ITERATORS];
    shared.d = wr_value_dict_new(&options);
    RACE_CHECK(shared.d != NULL);
    for (uint64_t key = 0; key < LASTING; key++) {
        shared.lasting[key] = thing_new(key);
        set(key, shared.lasting[key]);
    }
    atomic_store(&shared.writers_left, WRITERS);
    for (uintptr_t i = 0; i < ITERATORS; i++)
        RACE_CHECK(pthread_create(&iterators[i], NULL, iterator, (void *)(i + 1)) == 0);
    for (uintptr_t i = 0; i < WRITERS; i++)
        RACE_CHECK(pthread_create(&writers[i], NULL, writer, (void *)i) == 0);
    for (unsigned i = 0; i < WRITERS; i++)
        pthread_join(writers[i], NULL);
    for (unsigned i = 0; i < ITERATORS; i++)
        pthread_join(iterators[i], NULL);
    RACE_CHECK(wr_value_dict_len(shared.d) == LASTING);
    for (uint64_t key = 0; key < LASTING; key++)
        wr_release(shared.lasting[key]);
    RACE_CHECK(wr_value_dict_len(shared.d) == 0);
    wr_value_dict_free(shared.d);
    RACE_CHECK(wr_barrier() == 0);
    printf("initial size %zu: %lu whole walks, %lu steps, %lu died in the hand\n", initial_size,
           atomic_exchange(&shared.walks, 0), atomic_exchange(&shared.steps, 0), atomic_exchange(&shared.dead_ends, 0));
}

/* ---- one entry, both sides win ---------------------------------------------------------------------------- */

static struct duel {
    wr_value_dict *d;
    struct thing *t, *u;
    unsigned n_t, n_u;
    uint64_t random;
} duel;

static void duel_prepare(void *ctx)
{
    (void)ctx;
    duel.t = thing_new(1);
    duel.u = thing_new(2);
    duel.n_t = duel.n_u = 0;
    RACE_CHECK(wr_value_dict_set_str(duel.d, "the one", duel.t) == 0);
}

/* What it stands on may be reclaimed by the other side, or here, and must not be until it leaves. */
static void duel_iterate(void *ctx)
{
    (void)ctx;
    wr_value_dict_iter it;
    struct wr_value_dict_item item;
    wr_value_dict_iter_begin(&it, duel.d);
    while (wr_value_dict_iter_next(&it, &item)) {
        duel.n_t += item.value == duel.t;
        duel.n_u += item.value == duel.u;
        wr_release(item.value);
        if (race_draw(&duel.random) % 16 == 0)
            RACE_CHECK(wr_barrier() == 0);
        RACE_CHECK(item.key_size == 7 && memcmp(item.key, "the one", 7) == 0);
    }
    wr_value_dict_iter_end(&it);
}

static void duel_drop(void *ctx)
{
    (void)ctx;
    wr_release(duel.t);
    (void)wr_synchronize();
}

static unsigned judge_drop(void *ctx)
{
    (void)ctx;
    RACE_CHECK(duel.n_t <= 1 && duel.n_u == 0);
    RACE_CHECK(wr_value_dict_len(duel.d) == 0);
    wr_release(duel.u);
    return duel.n_t;
}

static void duel_replace(void *ctx)
{
    (void)ctx;
    RACE_CHECK(wr_value_dict_set_str(duel.d, "the one", duel.u) == 0);
    wr_release(duel.t);
}

/* The key has a living object throughout. */
static unsigned judge_replace(void *ctx)
{
    (void)ctx;
    RACE_CHECK(duel.n_t + duel.n_u == 1);
    RACE_CHECK(wr_value_dict_len(duel.d) == 1);
    wr_release(duel.u);
    return duel.n_u;
}

/* It comes to its end, however much of the dictionary is left. */
static void duel_free(void *ctx)
{
    (void)ctx;
    wr_value_dict_free(duel.d);
}

static void duel_prepare_iterator(void *ctx)
{
    wr_value_dict_iter *it = ctx;
    duel.d = wr_value_dict_new(NULL);
    RACE_CHECK(duel.d != NULL);
    duel_prepare(NULL);
    wr_value_dict_iter_begin(it, duel.d);
}

static void duel_go_on(void *ctx)
{
    wr_value_dict_iter *it = ctx;
    struct wr_value_dict_item item;
    while (wr_value_dict_iter_next(it, &item)) {
        duel.n_t += item.value == duel.t;
        wr_release(item.value);
    }
    wr_value_dict_iter_end(it);
}

static unsigned judge_free(void *ctx)
{
    (void)ctx;
    RACE_CHECK(duel.n_t <= 1);
    wr_release(duel.t);
    wr_release(duel.u);
    return duel.n_t;
}

static bool duels(void)
{
    static wr_value_dict_iter it;
    struct wr_value_dict_options options = {.struct_size = sizeof options, .initial_size = 1};
    const struct race drop = {.name = "a step beside the entry's death",
                              .prepare = duel_prepare,
                              .sides = {duel_iterate, duel_drop},
                              .judge = judge_drop,
                              .outcomes = {"death won", "step won"},
                              .rounds = RACE_ROUNDS / 4};
    const struct race replace = {.name = "a step beside the entry's replacement",
                                 .prepare = duel_prepare,
                                 .sides = {duel_iterate, duel_replace},
                                 .judge = judge_replace,
                                 .outcomes = {"old one met", "new one met"},
                                 .rounds = RACE_ROUNDS / 2};
    const struct race freed = {.name = "an iterator beside the end of its dictionary",
                               .prepare = duel_prepare_iterator,
                               .sides = {duel_go_on, duel_free},
                               .judge = judge_free,
                               .outcomes = {"free won", "step won"},
                               .rounds = RACE_ROUNDS / 8,
                               .ctx = &it};
    duel.random = race_seed();
    duel.d = wr_value_dict_new(&options);
    RACE_CHECK(duel.d != NULL);
    bool good = race_run(&drop);
    good = race_run(&replace) && good;
    wr_value_dict_free(duel.d);
    return race_run(&freed) && good;
}

int main(void)
{
    (void)race_seed(); /* before there are threads */
    beside_writers(1);
    beside_writers(0);
    return duels() ? 0 : 1;
}
