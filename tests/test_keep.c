/* Keeping: what a value dictionary holds on to, against SIEVE as the paper has it, and by size and time; letting go. */
#include <criterion/criterion.h>

#include "deaths.h"
#include "expect.h"
#include "fail_alloc.h"
#include "guard.h"
#include "keep.h"

#include <weakref/weakref.h>

#include <math.h>
#include <sys/mman.h>

/* ---- helpers ---------------------------------------------------------------------------------------------- */

static uint64_t test_now_ns;

static uint64_t test_clock(void)
{
    return test_now_ns;
}

static void pass_ms(uint64_t ms)
{
    test_now_ns += ms * 1000000;
}

static size_t size_by_number(const void *obj, void *ctx)
{
    (void)ctx;
    return (size_t)((const thing *)obj)->number;
}

static wr_value_dict *keeping(size_t objects, size_t size, uint64_t ms)
{
    struct wr_value_dict_options options = {
        .struct_size = sizeof options,
        .initial_size = 64,
        .keep_objects = objects,
        .keep_size = size,
        .keep_ms = ms,
        .size_of = size > 0 ? size_by_number : NULL,
    };
    wr_value_dict *d = wr_value_dict_new(&options);
    cr_assert_not_null(d);
    return d;
}

static size_t kept(const wr_value_dict *d)
{
    return wr_value_dict_kept(d, NULL);
}

static size_t kept_size(const wr_value_dict *d)
{
    size_t size;
    (void)wr_value_dict_kept(d, &size);
    return size;
}

/* Gives a new thing to the dictionary alone. */
static void give(wr_value_dict *d, uint64_t key, int number)
{
    thing *t = thing_new(number);
    cr_assert_not_null(t);
    cr_assert_eq(wr_value_dict_set_u64(d, key, t), 0);
    wr_release(t);
}

/* A use. Whether it was there. */
static bool use(wr_value_dict *d, uint64_t key)
{
    void *obj = wr_value_dict_get_u64(d, key);
    wr_release(obj);
    return obj != NULL;
}

static bool is_there(const wr_value_dict *d, uint64_t key)
{
    return wr_value_dict_contains_u64(d, key);
}

static int destroyed(void)
{
    return atomic_load(&things_destroyed);
}

/* ---- life ------------------------------------------------------------------------------------------------- */

Test(keep, without_the_option_nothing_is_kept)
{
    wr_value_dict *d = wr_value_dict_new(NULL);
    give(d, 1, 1);
    cr_expect_eq(destroyed(), 1);
    cr_expect_eq(kept(d), 0);
    cr_expect_eq(wr_value_dict_trim(d, 1), 0);
    cr_expect_eq(wr_value_dict_len(d), 0);
    wr_value_dict_free(d);
}

Test(keep, what_is_set_stays_until_others_push_it_out)
{
    wr_value_dict *d = keeping(2, 0, 0);
    give(d, 1, 1);
    give(d, 2, 2);
    cr_expect_eq(kept(d), 2);
    cr_expect_eq(destroyed(), 0);
    thing *t = wr_value_dict_get_u64(d, 1); /* used: 2 goes first */
    cr_expect_eq(t->number, 1);
    wr_release(t);
    give(d, 3, 3);
    cr_expect_eq(destroyed(), 1);
    cr_expect(is_there(d, 1) && !is_there(d, 2) && is_there(d, 3));
    cr_expect_eq(wr_value_dict_len(d), 2);
    wr_value_dict_free(d);
    cr_expect_eq(destroyed(), 3);
}

Test(keep, one_object_is_a_cache_too)
{
    wr_value_dict *d = keeping(1, 0, 0);
    for (uint64_t key = 0; key < 20; key++) {
        give(d, key, 0);
        cr_expect(use(d, key) && use(d, key));
        cr_expect_eq(destroyed(), (int)key);
        cr_expect_eq(kept(d), 1);
    }
    wr_value_dict_free(d);
}

Test(keep, what_was_let_go_lives_on_with_others_and_comes_back_when_used)
{
    wr_value_dict *d = keeping(1, 0, 0);
    thing *held = thing_new(1);
    cr_assert_eq(wr_value_dict_set_u64(d, 1, held), 0);
    give(d, 2, 2);
    cr_expect_eq(wr_strong_count(held), 1);
    cr_expect(is_there(d, 1), "found though it is not kept");
    cr_expect_eq(wr_strong_count(held), 1, "to ask whether it is there is no use");
    cr_expect(use(d, 1));
    cr_expect_eq(wr_strong_count(held), 2);
    cr_expect_eq(destroyed(), 1, "and 2 had to go");
    wr_release(held);
    cr_expect(use(d, 1));
    give(d, 3, 3);
    cr_expect_eq(destroyed(), 2);
    wr_value_dict_free(d);
}

Test(keep, an_entry_whose_object_was_let_go_leaves_by_its_death)
{
    wr_value_dict *d = keeping(1, 0, 0);
    thing *held = thing_new(1);
    cr_assert_eq(wr_value_dict_set_u64(d, 1, held), 0);
    give(d, 2, 2);
    cr_expect_eq(wr_value_dict_len(d), 2);
    wr_release(held);
    cr_expect_eq(destroyed(), 1);
    cr_expect_eq(wr_value_dict_len(d), 1);
    wr_value_dict_free(d);
}

Test(keep, what_is_taken_out_is_let_go_at_once)
{
    wr_value_dict *d = keeping(10, 0, 0);
    for (uint64_t key = 0; key < 8; key++)
        give(d, key, (int)key);
    cr_expect_eq(wr_value_dict_remove_u64(d, 0), 0);
    cr_expect_eq(destroyed(), 1);

    void *obj = wr_value_dict_get_u64(d, 1);
    cr_expect_eq(wr_value_dict_remove_if_u64(d, 1, obj), 0);
    cr_expect_eq(wr_strong_count(obj), 1);
    wr_release(obj);
    cr_expect_eq(destroyed(), 2);

    obj = wr_value_dict_pop_u64(d, 2);
    cr_expect_eq(wr_strong_count(obj), 1, "what pop gives is the caller's alone");
    wr_release(obj);
    cr_expect_eq(destroyed(), 3);

    obj = wr_value_dict_popitem(d, NULL, NULL);
    cr_expect_eq(wr_strong_count(obj), 1);
    wr_release(obj);
    cr_expect_eq(destroyed(), 4);

    uint64_t key = 3;
    while (!is_there(d, key))
        key++;
    give(d, key, 33); /* replaced */
    cr_expect_eq(destroyed(), 5);
    obj = wr_value_dict_get_u64(d, key);
    thing *other = thing_new(34);
    cr_expect_eq(wr_value_dict_replace_u64(d, key, obj, other), 0);
    cr_expect_eq(wr_strong_count(obj), 1);
    cr_expect_eq(wr_strong_count(other), 2);
    wr_release(obj);
    wr_release(other);
    cr_expect_eq(destroyed(), 6);

    cr_expect_eq(kept(d), 4);
    wr_value_dict_clear(d);
    cr_expect_eq(destroyed(), 10);
    cr_expect_eq(kept(d), 0);
    wr_value_dict_free(d);
}

/* One that was taken out and is set again is a new entry. */
Test(keep, taken_out_and_set_again)
{
    wr_value_dict *d = keeping(4, 0, 0);
    thing *t = thing_new(1);
    for (int i = 0; i < 100; i++) {
        cr_assert_eq(wr_value_dict_set_u64(d, 1, t), 0);
        cr_assert_eq(wr_value_dict_set_u64(d, 1, t), 0);
        cr_assert_eq(wr_strong_count(t), 2);
        cr_assert_eq(wr_value_dict_remove_u64(d, 1), 0);
        cr_assert_eq(wr_strong_count(t), 1);
    }
    wr_release(t);
    wr_value_dict_free(d);
    cr_expect_eq(destroyed(), 1);
}

static int create_thing(const void *key, size_t size, void *ctx, void **obj)
{
    (void)key;
    (void)size;
    ++*(int *)ctx;
    *obj = thing_new(*(int *)ctx);
    return 0;
}

Test(keep, what_is_created_is_kept)
{
    wr_value_dict *d = keeping(2, 0, 0);
    int n = 0;
    void *obj;
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(wr_value_dict_get_or_create_u64(d, 1, create_thing, &n, &obj), 0);
        wr_release(obj);
    }
    cr_expect_eq(n, 1);
    thing *t = thing_new(7);
    cr_assert_eq(wr_value_dict_setdefault_u64(d, 2, t, &obj), 0);
    cr_expect_eq(wr_strong_count(t), 3);
    wr_release(obj);
    cr_assert_eq(wr_value_dict_setdefault_u64(d, 1, t, &obj), 0);
    cr_expect_neq(obj, t);
    cr_expect_eq(wr_strong_count(t), 2, "what was not taken is not kept");
    wr_release(obj);
    wr_release(t);
    cr_expect_eq(kept(d), 2);
    wr_value_dict_free(d);
    cr_expect_eq(destroyed(), 2);
}

Test(keep, copies_and_updates)
{
    wr_value_dict *d = keeping(8, 0, 0), *small = keeping(2, 0, 0);
    for (uint64_t key = 0; key < 5; key++)
        give(d, key, 0);
    wr_value_dict *copy = wr_value_dict_copy(d);
    cr_expect_eq(wr_value_dict_len(copy), 5);
    cr_expect_eq(kept(copy), 0);
    cr_expect_eq(wr_value_dict_update(small, d), 0);
    cr_expect_eq(wr_value_dict_len(small), 5);
    cr_expect_eq(kept(small), 2);
    wr_value_dict_free(d);
    cr_expect_eq(destroyed(), 3);
    cr_expect_eq(wr_value_dict_len(copy), 2);
    wr_value_dict_free(small);
    cr_expect_eq(wr_value_dict_len(copy), 0);
    wr_value_dict_free(copy);
}

/* ---- SIEVE ------------------------------------------------------------------------------------------------- */

/* As in figure 2 of the paper, over keys; with what a cache adds: removal, and replacement (new first, then the old out). */
enum { KEYS = 24, NONE = -1 };

struct sieve {
    int n, most;
    int order[KEYS + 1]; /* nodes, newest first; -1 - key: the old node of a key that is being replaced */
    bool visited[KEYS];
    int hand; /* index, or NONE */
};

static int sieve_find(const struct sieve *s, int node)
{
    for (int i = 0; i < s->n; i++)
        if (s->order[i] == node)
            return i;
    return NONE;
}

static void sieve_remove(struct sieve *s, int at)
{
    if (s->hand != NONE && s->hand >= at)
        s->hand--; /* at the hand: to the next newer, which is NONE before the first */
    memmove(&s->order[at], &s->order[at + 1], (size_t)(s->n - at - 1) * sizeof s->order[0]);
    s->n--;
}

static void sieve_evict(struct sieve *s)
{
    int at = s->hand != NONE ? s->hand : s->n - 1;
    while (s->visited[s->order[at]]) {
        s->visited[s->order[at]] = false;
        at = at > 0 ? at - 1 : s->n - 1;
    }
    s->hand = at;
    sieve_remove(s, at);
}

static void sieve_push(struct sieve *s, int key)
{
    memmove(&s->order[1], &s->order[0], (size_t)s->n * sizeof s->order[0]);
    s->order[0] = key;
    s->n++;
    s->visited[key] = false;
    if (s->hand != NONE)
        s->hand++;
}

static void sieve_add(struct sieve *s, int key)
{
    if (s->n == s->most)
        sieve_evict(s);
    sieve_push(s, key);
}

static void sieve_use(struct sieve *s, int key)
{
    if (sieve_find(s, key) == NONE)
        sieve_add(s, key);
    else
        s->visited[key] = true;
}

static void sieve_set(struct sieve *s, int key)
{
    int old = sieve_find(s, key);
    if (old == NONE) {
        sieve_add(s, key);
        return;
    }
    s->order[old] = -1 - key;
    sieve_push(s, key);
    sieve_remove(s, sieve_find(s, -1 - key));
}

static uint64_t draw(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    return z ^ (z >> 27);
}

static void against_the_model(uint64_t seed, int most)
{
    struct sieve model = {.most = most, .hand = NONE};
    wr_value_dict *d = keeping((size_t)most, 0, 0);
    thing *things[KEYS];
    bool set[KEYS] = {false};
    for (int key = 0; key < KEYS; key++)
        things[key] = thing_new(key);
    for (int i = 0; i < 20000; i++) {
        uint64_t random = draw(&seed);
        int key = (int)((random >> 32) % KEYS);
        unsigned op = (unsigned)(random % 100);
        if (op < 60) {
            cr_assert_eq(use(d, (uint64_t)key), set[key]);
            if (set[key])
                sieve_use(&model, key);
        } else if (op < 62) {
            WR_GUARD {
                cr_assert_eq(wr_value_dict_contains_u64(d, (uint64_t)key), set[key]);
            }
        } else if (op < 90) {
            cr_assert_eq(wr_value_dict_set_u64(d, (uint64_t)key, things[key]), 0);
            sieve_set(&model, key);
            set[key] = true;
        } else if (op < 99) {
            cr_assert_eq(wr_value_dict_remove_u64(d, (uint64_t)key), set[key] ? 0 : -ENOENT);
            if (sieve_find(&model, key) != NONE)
                sieve_remove(&model, sieve_find(&model, key));
            set[key] = false;
        } else {
            int goal = (model.n + 3) / 4;
            cr_assert_eq(wr_value_dict_trim(d, 0.25), (size_t)goal);
            while (goal-- > 0)
                sieve_evict(&model);
        }
        cr_assert_eq(kept(d), (size_t)model.n, "step %d", i);
        for (int k = 0; k < KEYS; k++)
            cr_assert_eq(wr_strong_count(things[k]), sieve_find(&model, k) != NONE ? 2 : 1, "step %d, key %d", i, k);
    }
    wr_value_dict_free(d);
    for (int key = 0; key < KEYS; key++)
        wr_release(things[key]);
    cr_assert_eq(destroyed(), KEYS);
    atomic_store(&things_destroyed, 0);
}

Test(keep, goes_by_sieve)
{
    static const int most[] = {1, 2, 3, 7, 16, 23, 24, 100};
    uint64_t seed = (uint64_t)getpid() * 1000003u + (uint64_t)time(NULL);
    printf("seed %llu\n", (unsigned long long)seed);
    for (size_t i = 0; i < sizeof most / sizeof *most; i++)
        against_the_model(seed + i, most[i]);
}

/* More than one section of the hand. */
Test(keep, passes_any_number_of_marks)
{
    enum { MANY = 5000 };
    wr_value_dict *d = keeping(MANY, 0, 0);
    for (uint64_t key = 0; key < MANY; key++)
        give(d, key, 0);
    for (uint64_t key = 0; key < MANY; key++)
        cr_assert(use(d, key));
    give(d, MANY, 0);
    cr_expect_eq(kept(d), MANY);
    cr_expect(!is_there(d, 0) && is_there(d, 1) && is_there(d, MANY), "once round, and the oldest");
    wr_value_dict_free(d);
    cr_expect_eq(destroyed(), MANY + 1);
}

static const wr_type deferred_type = {.name = "deferred", .size = sizeof(thing), .flags = WR_TYPE_DEFERRED};

Test(keep, a_peek_is_a_use)
{
    wr_value_dict *d = keeping(2, 0, 0);
    for (uint64_t key = 0; key < 3; key++) {
        void *obj = wr_new(&deferred_type);
        cr_assert_eq(wr_value_dict_set_u64(d, key, obj), 0);
        wr_release(obj);
        if (key == 1) {
            WR_GUARD {
                cr_expect_not_null(wr_value_dict_peek_u64(d, 0));
            }
        }
    }
    cr_expect(is_there(d, 0) && !is_there(d, 1) && is_there(d, 2));
    wr_value_dict_free(d);
}

Test(keep, to_walk_is_no_use)
{
    wr_value_dict *d = keeping(2, 0, 0);
    give(d, 0, 0);
    give(d, 1, 0);
    wr_value_dict_iter it;
    struct wr_value_dict_item item;
    wr_value_dict_iter_begin(&it, d);
    while (wr_value_dict_iter_next(&it, &item))
        wr_release(item.value);
    wr_value_dict_iter_end(&it);
    cr_expect(is_there(d, 0) && is_there(d, 1));
    cr_expect(use(d, 1));
    give(d, 2, 0);
    cr_expect(!is_there(d, 0) && is_there(d, 1) && is_there(d, 2));
    wr_value_dict_free(d);
}

/* Both the record and the keep may not even be written to. */
static void *map_alloc(size_t size, size_t align, void *ctx)
{
    (void)align;
    (void)ctx;
    size = (size + 4095) / 4096 * 4096;
    char *memory = mmap(NULL, size + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    *(size_t *)(void *)memory = size;
    return memory + 4096;
}

static void map_free(void *memory, void *ctx)
{
    (void)ctx;
    munmap((char *)memory - 4096, *(size_t *)(void *)((char *)memory - 4096) + 4096);
}

static void protect(void *memory, int how)
{
    cr_assert_eq(mprotect(memory, *(size_t *)(void *)((char *)memory - 4096), how), 0);
}

Test(keep, a_use_that_finds_the_mark_writes_nothing)
{
    static const struct wr_allocator allocator = {map_alloc, map_free, NULL};
    cr_assert_eq(wr_set_allocator(&allocator), 0);
    test_now_ns = 5;
    wr_keep_set_clock(test_clock);
    for (int timed = 0; timed < 2; timed++) {
        const wr_keep_limits limits = {.objects = 2, .size = SIZE_MAX, .ms = timed ? 1000 : UINT64_MAX};
        wr_keep *k = wr_keep_new(&limits);
        wr_kept *r = map_alloc(sizeof *r, 64, NULL);
        thing *t = thing_new(1);
        wr_kept_init(r);
        wr_keep_prepare(k, r, t, 0);
        cr_assert_not(wr_keep_add(k, r));
        cr_assert_not(wr_keep_use(k, r));
        protect(k, PROT_READ);
        protect(r, PROT_READ);
        for (int i = 0; i < 100; i++)
            cr_assert_not(wr_keep_use(k, r)); /* nor is the lock taken */
        protect(k, PROT_READ | PROT_WRITE);
        protect(r, PROT_READ | PROT_WRITE);
        cr_expect_eq(wr_keep_trim(k, 1), 1);
        wr_keep_end(k);
        wr_keep_release(k);
        wr_release(t);
        map_free(r, NULL);
    }
}

/* ---- size -------------------------------------------------------------------------------------------------- */

Test(keep, by_size)
{
    wr_value_dict *d = keeping(0, 100, 0);
    give(d, 1, 40);
    give(d, 2, 60);
    cr_expect_eq(kept_size(d), 100);
    cr_expect(use(d, 1));
    give(d, 3, 1); /* 2 goes, not 1 */
    cr_expect_eq(kept_size(d), 41);
    cr_expect(is_there(d, 1) && !is_there(d, 2) && is_there(d, 3));
    give(d, 4, 101); /* too large: not kept, and nothing goes for it */
    cr_expect_not(is_there(d, 4));
    cr_expect_eq(kept_size(d), 41);
    give(d, 5, 100); /* everything goes for it */
    cr_expect_eq(kept(d), 1);
    cr_expect_eq(kept_size(d), 100);
    give(d, 6, 0); /* counts for nothing */
    cr_expect_eq(kept(d), 2);
    wr_value_dict_free(d);
    cr_expect_eq(destroyed(), 6);
}

Test(keep, by_size_and_number)
{
    wr_value_dict *d = keeping(3, 100, 0);
    for (uint64_t key = 0; key < 10; key++)
        give(d, key, 10);
    cr_expect_eq(kept(d), 3);
    cr_expect_eq(kept_size(d), 30);
    give(d, 10, 90);
    cr_expect_eq(kept(d), 2);
    cr_expect_eq(kept_size(d), 100);
    wr_value_dict_free(d);
}

static wr_value_dict *measured;

static size_t size_that_looks(const void *obj, void *ctx)
{
    (void)obj;
    cr_expect_eq(ctx, &measured);
    (void)use(measured, 1);
    (void)wr_value_dict_trim(measured, 0.5);
    return 10;
}

Test(keep, size_of_may_use_the_dictionary)
{
    struct wr_value_dict_options options = {
        .struct_size = sizeof options, .ctx = &measured, .keep_size = 100, .size_of = size_that_looks};
    measured = wr_value_dict_new(&options);
    for (uint64_t key = 0; key < 50; key++)
        give(measured, key, 0);
    cr_expect_leq(kept_size(measured), 100);
    wr_value_dict_free(measured);
    cr_expect_eq(destroyed(), 50);
}

/* ---- time -------------------------------------------------------------------------------------------------- */

Test(keep, by_time_since_the_last_use)
{
    wr_keep_set_clock(test_clock);
    wr_value_dict *d = keeping(0, 0, 800);
    give(d, 1, 0);
    give(d, 2, 0);
    pass_ms(500);
    cr_expect(use(d, 1));
    pass_ms(300); /* 2: 800 */
    cr_expect_eq(wr_value_dict_trim(d, 0), 0, "never before its time");
    pass_ms(100); /* 2: 900, an eighth more */
    cr_expect_eq(wr_value_dict_trim(d, 0), 1);
    cr_expect(is_there(d, 1) && !is_there(d, 2));
    pass_ms(399); /* 1: 799 */
    cr_expect_eq(wr_value_dict_trim(d, 0), 0);
    pass_ms(101);  /* 1: 900 */
    give(d, 3, 0); /* a set looks, too */
    cr_expect(!is_there(d, 1) && is_there(d, 3));
    pass_ms(5000);
    cr_expect(use(d, 3), "nothing happens between calls");
    cr_expect_eq(wr_value_dict_trim(d, 0), 0, "and that was a use");
    pass_ms(900);
    cr_expect_eq(wr_value_dict_trim(d, 0), 1);
    cr_expect_eq(kept(d), 0);
    wr_value_dict_free(d);
}

/* Exactly: gone when nine ticks have begun since the one of the last use. */
Test(keep, time_against_an_oracle)
{
    enum { N = 40, MS = 8 };
    wr_keep_set_clock(test_clock);
    uint64_t seed = (uint64_t)getpid() * 1000003u + (uint64_t)time(NULL);
    printf("seed %llu\n", (unsigned long long)seed);
    wr_value_dict *d = keeping(0, 0, MS);
    thing *things[N];
    uint64_t used[N];
    bool is_kept[N] = {false};
    for (int i = 0; i < N; i++)
        things[i] = thing_new(i);
    for (int i = 0; i < 30000; i++) {
        uint64_t random = draw(&seed), key = (random >> 32) % N;
        unsigned op = (unsigned)(random % 100);
        uint64_t now = test_now_ns / 1000000;
        if (op < 40) {
            if (use(d, key)) {
                used[key] = now;
                is_kept[key] = true;
            }
        } else if (op < 45) {
            cr_assert_eq(wr_value_dict_set_u64(d, key, things[key]), 0);
            used[key] = now;
            is_kept[key] = true;
        } else if (op < 50) {
            (void)wr_value_dict_remove_u64(d, key);
            is_kept[key] = false;
        } else if (op < 90) {
            pass_ms(1);
        } else if (op < 91) {
            pass_ms((random >> 40) % 60);
        }
        (void)wr_value_dict_trim(d, 0);
        now = test_now_ns / 1000000;
        for (int k = 0; k < N; k++) {
            is_kept[k] = is_kept[k] && now - used[k] < MS + 1;
            cr_assert_eq(wr_strong_count(things[k]), is_kept[k] ? 2 : 1, "step %d, key %d", i, k);
        }
    }
    wr_value_dict_free(d);
    for (int i = 0; i < N; i++)
        wr_release(things[i]);
}

Test(keep, a_set_does_not_pay_for_all_that_is_out_of_time)
{
    enum { MANY = 2000 };
    static const uint64_t later[] = {1125, 10000}; /* the first tick in which they may go, and well behind it */
    wr_keep_set_clock(test_clock);
    for (int i = 0; i < 2; i++) {
        wr_value_dict *d = keeping(0, 0, 1000);
        int before = destroyed();
        for (uint64_t key = 0; key < MANY; key++)
            give(d, key, 0);
        pass_ms(later[i]);
        give(d, MANY, 0);
        cr_expect(destroyed() > before && destroyed() < before + MANY / 4);
        for (uint64_t key = 1; key < 200; key++)
            give(d, MANY + key, 0);
        cr_expect_eq(destroyed(), before + MANY);
        cr_expect_eq(kept(d), 200);
        wr_value_dict_free(d);
    }
}

/* What nobody called for a hundred years does not take as many ticks to look through. */
Test(keep, long_nights)
{
    wr_keep_set_clock(test_clock);
    wr_value_dict *d = keeping(0, 0, 8);
    give(d, 1, 0);
    pass_ms(UINT64_C(3) << 40);
    give(d, 2, 0);
    cr_expect(!is_there(d, 1) && is_there(d, 2));
    pass_ms(UINT64_C(3) << 40);
    cr_expect_eq(wr_value_dict_trim(d, 0), 1);
    wr_value_dict_free(d);
}

Test(keep, by_time_and_number)
{
    wr_keep_set_clock(test_clock);
    wr_value_dict *d = keeping(3, 0, 1000);
    for (uint64_t key = 0; key < 10; key++)
        give(d, key, 0);
    cr_expect_eq(kept(d), 3);
    pass_ms(2000);
    give(d, 10, 0);
    cr_expect_eq(kept(d), 1);
    wr_value_dict_free(d);
    cr_expect_eq(destroyed(), 11);
}

Test(keep, hardly_ever_is_a_time_too)
{
    wr_value_dict *d = keeping(0, 0, UINT64_MAX - 1);
    give(d, 1, 0);
    cr_expect_eq(wr_value_dict_trim(d, 0), 0);
    wr_value_dict_free(d);
    d = keeping(0, 0, 1);
    give(d, 1, 0);
    await(wr_value_dict_trim(d, 0) == 1); /* by the clock on the wall */
    wr_value_dict_free(d);
}

/* ---- trim -------------------------------------------------------------------------------------------------- */

Test(keep, trim_lets_a_fraction_go)
{
    wr_value_dict *d = keeping(1000, 0, 0);
    for (uint64_t key = 0; key < 1000; key++)
        give(d, key, 0);
    for (uint64_t key = 0; key < 500; key++)
        cr_assert(use(d, key));
    cr_expect_eq(wr_value_dict_trim(d, 0), 0);
    cr_expect_eq(wr_value_dict_trim(d, 0.5), 500);
    for (uint64_t key = 0; key < 1000; key++)
        cr_assert_eq(is_there(d, key), key < 500, "what was used stays");
    cr_expect_eq(wr_value_dict_trim(d, 0.001), 1, "some of something is one");
    cr_expect_eq(wr_value_dict_trim(d, 1), 499);
    cr_expect_eq(wr_value_dict_trim(d, 1), 0);
    cr_expect_eq(wr_value_dict_len(d), 0);
    wr_value_dict_free(d);
}

Test(keep, trim_goes_by_size_where_sizes_count)
{
    wr_value_dict *d = keeping(0, 1000, 0);
    give(d, 0, 500);
    for (uint64_t key = 1; key <= 10; key++)
        give(d, key, 50);
    give(d, 11, 0);
    cr_expect_eq(wr_value_dict_trim(d, 0.5), 1);
    cr_expect_eq(kept_size(d), 500);
    cr_expect_eq(wr_value_dict_trim(d, 0.5), 5);
    cr_expect_eq(wr_value_dict_trim(d, 1), 6, "what counts for nothing, too");
    wr_value_dict_free(d);
}

Test(keep, trims_all_the_most_idle_first)
{
    static wr_value_dict *d[3];
    struct wr_value_dict_options options = {.struct_size = sizeof options, .keep_objects = 10};
    wr_queue *queue = wr_queue_new("deaths");
    for (int i = 0; i < 3; i++) {
        d[i] = wr_value_dict_new(&options);
        for (int j = 0; j < 4; j++) {
            thing *t = thing_new(0);
            cr_assert_eq(wr_value_dict_set_u64(d[i], (uint64_t)j, t), 0);
            cr_assert_eq(wr_on_death(t, queue, LOG(i)), 0);
            wr_release(t);
        }
    }
    cr_expect(use(d[0], 1) && use(d[2], 1));
    wr_keep_age();
    cr_expect(use(d[0], 2));
    wr_keep_age();
    cr_expect(use(d[2], 2)); /* so 1, 0, 2 */
    cr_expect_eq(wr_keep_trim_all(0.5), 6);
    wr_queue_drain(queue, SIZE_MAX);
    static const long order[] = {1, 1, 0, 0, 2, 2};
    cr_assert_eq(atomic_load(&n_logged), 6);
    for (int i = 0; i < 6; i++)
        cr_expect_eq(callback_log[i], order[i], "%d", i);
    for (int i = 0; i < 3; i++)
        wr_value_dict_free(d[i]);
    cr_expect_eq(wr_keep_trim_all(1), 0);
    wr_queue_free(queue);
}

/* ---- re-entrance ------------------------------------------------------------------------------------------- */

static wr_value_dict *again;
static uint64_t again_keys;
static bool again_sets;
static int again_ran;

static void destroy_again(void *obj)
{
    (void)obj;
    again_ran++;
    cr_expect_not(wr_guard_is_inside());
    for (uint64_t key = 0; key < 8; key++)
        (void)use(again, key);
    (void)wr_value_dict_remove_u64(again, 3);
    (void)wr_value_dict_trim(again, 0.1);
    (void)wr_value_dict_len(again);
    if (again_sets && again_keys < 3000) {
        thing *t = thing_new(0);
        cr_expect_eq(wr_value_dict_set_u64(again, again_keys++, t), 0);
        wr_release(t);
    }
}

static const wr_type again_type = {.name = "again", .size = sizeof(thing), .destroy = destroy_again};

static void give_again(void)
{
    void *obj = wr_new(&again_type);
    cr_assert_eq(wr_value_dict_set_u64(again, again_keys++, obj), 0);
    wr_release(obj);
}

Test(keep, destroys_may_use_the_dictionary)
{
    for (int sets = 0; sets < 2; sets++) {
        again = keeping(16, 0, 0);
        again_keys = 0;
        again_ran = 0;
        again_sets = sets;
        for (int i = 0; i < 500; i++) {
            give_again();
            cr_assert_leq(kept(again), 16);
            if (i % 50 == 0) {
                (void)wr_value_dict_trim(again, 0.7);
                wr_value_dict_clear(again);
            }
        }
        give_again();
        wr_value_dict_free(again); /* and while it is freed */
        cr_expect_eq(again_ran, 501);
    }
}

static unsigned owned_destroyed, owned_before;

static void destroy_owned(void *obj)
{
    (void)obj;
    owned_destroyed++;
    (void)wr_value_dict_contains_u64(again, 0);
    (void)use(again, owned_destroyed);
    wr_release(thing_new(0));
}

static void destroy_owner(void *obj)
{
    (void)obj;
    wr_value_dict_free(again);
    owned_before = owned_destroyed;
    again = NULL;
}

static const wr_type owned_type = {.name = "owned", .size = 8, .destroy = destroy_owned};
static const wr_type owner_type = {.name = "owner", .size = 8, .destroy = destroy_owner};

/* A destroy that is begun in a destroy comes after it; those of what is kept come while there is a dictionary, all the same. */
Test(keep, freed_by_the_destroy_of_its_owner)
{
    enum { N = 20 };
    void *owner = wr_new(&owner_type);
    again = keeping(N, 0, 0);
    for (uint64_t key = 0; key < N; key++) {
        void *obj = wr_new(&owned_type);
        cr_assert_eq(wr_value_dict_set_u64(again, key, obj), 0);
        wr_release(obj);
    }
    wr_release(owner);
    cr_expect_eq(owned_before, N);
    cr_expect_eq(owned_destroyed, N);
    cr_expect_eq(destroyed(), N);
}

static thing *survivor;

static void destroy_and_leave(void *obj)
{
    (void)obj;
    again_ran++;
    for (uint64_t key = 0; key < 50; key++)
        cr_expect_eq(wr_value_dict_set_u64(again, again_keys++, survivor), 0);
}

static const wr_type leaving_type = {.name = "leaving", .size = 8, .destroy = destroy_and_leave};

/* What the last destroys set is not left behind in what is no dictionary any more; nor is it kept. */
Test(keep, set_while_it_is_freed)
{
    struct wr_value_dict_options options = {.struct_size = sizeof options, .keep_objects = 1000};
    again = wr_value_dict_new(&options);
    survivor = thing_new(0);
    for (int i = 0; i < 20; i++) {
        void *obj = wr_new(&leaving_type);
        cr_assert_eq(wr_value_dict_set_u64(again, again_keys++, obj), 0);
        wr_release(obj);
    }
    wr_value_dict_free(again);
    cr_expect_eq(again_ran, 20);
    cr_expect_eq(wr_strong_count(survivor), 1);
    cr_expect_eq(wr_barrier(), 0);
    wr_release(survivor); /* no entry hangs on it */
    cr_expect_eq(destroyed(), 1);
}

static wr_value_dict *nested;

static void destroy_chain(void *obj)
{
    atomic_fetch_add(&things_destroyed, 1);
    (void)obj;
    cr_expect_eq(wr_value_dict_trim(nested, 1), 0); /* the rest is in the hands of the trim that runs */
}

static const wr_type chain_type = {.name = "chain", .size = 8, .destroy = destroy_chain};

Test(keep, trims_nest)
{
    enum { MANY = 20 };
    nested = keeping(MANY, 0, 0);
    for (uint64_t key = 0; key < MANY; key++) {
        void *obj = wr_new(&chain_type);
        cr_assert_eq(wr_value_dict_set_u64(nested, key, obj), 0);
        wr_release(obj);
    }
    cr_expect_eq(wr_value_dict_trim(nested, 1), MANY);
    cr_expect_eq(destroyed(), MANY);
    wr_value_dict_free(nested);
}

/* ---- beside the other options ------------------------------------------------------------------------------- */

static int n_heard;

static void hear(const void *key, size_t size, void *ctx)
{
    (void)key;
    (void)ctx;
    cr_expect_eq(size, 8);
    n_heard++;
}

Test(keep, removals_are_heard_of_what_dies_by_being_let_go)
{
    wr_queue *queue = wr_queue_new("removals");
    struct wr_value_dict_options options = {
        .struct_size = sizeof options, .on_removal = hear, .queue = queue, .keep_objects = 4};
    wr_value_dict *d = wr_value_dict_new(&options);
    for (uint64_t key = 0; key < 10; key++)
        give(d, key, 0);
    wr_queue_drain(queue, SIZE_MAX);
    cr_expect_eq(n_heard, 6);
    cr_expect_eq(wr_value_dict_remove_u64(d, 9), 0);
    give(d, 8, 1); /* replaced */
    cr_expect_eq(destroyed(), 8);
    wr_queue_drain(queue, SIZE_MAX);
    cr_expect_eq(n_heard, 6, "not of what was taken out or replaced");
    cr_expect_eq(wr_value_dict_trim(d, 1), 3);
    wr_queue_drain(queue, SIZE_MAX);
    cr_expect_eq(n_heard, 9);
    give(d, 1, 0);
    wr_value_dict_free(d);
    wr_queue_drain(queue, SIZE_MAX);
    cr_expect_eq(n_heard, 9);
    cr_expect_eq(destroyed(), 12);
    cr_expect(queue_is_balanced(queue));
    wr_queue_free(queue);
}

/* The iterator has the entry retired once more; its reference goes once. */
Test(keep, an_iterator_stands_on_what_is_taken_out)
{
    wr_value_dict *d = keeping(10, 0, 0);
    for (uint64_t key = 0; key < 5; key++)
        give(d, key, 0);
    wr_value_dict_iter it;
    struct wr_value_dict_item item;
    wr_value_dict_iter_begin(&it, d);
    for (int n = 1; wr_value_dict_iter_next(&it, &item); n++) {
        wr_release(item.value);
        cr_expect_eq(wr_value_dict_remove(d, item.key, item.key_size), 0);
        cr_expect_eq(destroyed(), n);
        cr_expect_eq(wr_barrier(), 0);
    }
    wr_value_dict_iter_end(&it);
    cr_expect_eq(destroyed(), 5);
    wr_value_dict_iter_begin(&it, d);
    wr_value_dict_free(d);
    cr_expect_not(wr_value_dict_iter_next(&it, &item));
    wr_value_dict_iter_end(&it);
    cr_expect_eq(wr_barrier(), 0);
}

Test(keep, many_entries_of_one_object)
{
    wr_value_dict *d = keeping(3, 0, 0);
    thing *t = thing_new(0);
    for (uint64_t key = 0; key < 10; key++)
        cr_assert_eq(wr_value_dict_set_u64(d, key, t), 0);
    cr_expect_eq(wr_strong_count(t), 4);
    wr_release(t);
    cr_expect_eq(wr_value_dict_len(d), 10);
    cr_expect_eq(wr_value_dict_trim(d, 0.5), 2);
    cr_expect_eq(wr_value_dict_len(d), 10);
    cr_expect_eq(wr_value_dict_trim(d, 1), 1);
    cr_expect_eq(wr_value_dict_len(d), 0);
    cr_expect_eq(destroyed(), 1);
    wr_value_dict_free(d);
}

Test(keep, long_keys)
{
    static char key[100000];
    wr_value_dict *d = keeping(2, 0, 0);
    for (int i = 0; i < 5; i++) {
        memset(key, i, sizeof key);
        thing *t = thing_new(i);
        cr_assert_eq(wr_value_dict_set(d, key, sizeof key, t), 0);
        wr_release(t);
    }
    cr_expect_eq(wr_value_dict_len(d), 2);
    wr_value_dict_free(d);
    cr_expect_eq(destroyed(), 5);
}

/* ---- the fork ---------------------------------------------------------------------------------------------- */

static wr_value_dict *inherited;

static int go_on_in_child(void *ctx)
{
    (void)ctx;
    for (uint64_t key = 0; key < 100; key++) {
        thing *t = thing_new(0);
        if (wr_value_dict_set_u64(inherited, key, t) != 0)
            return 1;
        wr_release(t);
    }
    if (kept(inherited) != 10 || destroyed() != 100)
        return 2;
    if (wr_keep_trim_all(0.5) != 5 || kept(inherited) != 5)
        return 3;
    wr_value_dict_free(inherited);
    return destroyed() == 110 ? 0 : 4;
}

Test(keep, a_child_goes_on_with_it)
{
    char text[4096];
    inherited = keeping(10, 0, 0);
    for (uint64_t key = 0; key < 10; key++)
        give(inherited, key + 1000, 0);
    int status = expect_child(go_on_in_child, NULL, text, sizeof text);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%#x %s", (unsigned)status, text);
    cr_expect_eq(kept(inherited), 10);
    wr_value_dict_free(inherited);
    cr_expect_eq(destroyed(), 10);
}

static struct gate in_destroy;

static void destroy_at_gate(void *obj)
{
    (void)obj;
    wait_at_gate(NULL, &in_destroy);
}

static const wr_type gate_type = {.name = "gate", .size = 8, .destroy = destroy_at_gate};

static void *trim_all(void *unused)
{
    (void)unused;
    (void)wr_keep_trim_all(1);
    return NULL;
}

static int free_in_child(void *ctx)
{
    wr_value_dict_free(ctx); /* does not wait for the thread that trims it, which is the parent's */
    return destroyed() == 9 ? 0 : 1;
}

static void *free_dict(void *freed)
{
    wr_value_dict_free(inherited);
    atomic_store((atomic_bool *)freed, true);
    return NULL;
}

Test(keep, freed_beside_a_trim_under_pressure)
{
    char text[4096];
    pthread_t trimmer, freer;
    atomic_bool freed = false;
    inherited = keeping(10, 0, 0);
    void *obj = wr_new(&gate_type);
    cr_assert_eq(wr_value_dict_set_u64(inherited, 0, obj), 0);
    wr_release(obj);
    for (uint64_t key = 1; key < 10; key++)
        give(inherited, key, 0);
    cr_assert_eq(pthread_create(&trimmer, NULL, trim_all, NULL), 0);
    gate_wait(&in_destroy.reached);
    for (uint64_t key = 11; key < 20; key++)
        give(inherited, key, 0);
    int status = expect_child(free_in_child, inherited, text, sizeof text);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%#x %s", (unsigned)status, text);

    cr_assert_eq(pthread_create(&freer, NULL, free_dict, &freed), 0);
    for (int i = 0; i < 100; i++)
        sched_yield();
    cr_expect_not(atomic_load(&freed), "the one that is freed is still used by a destroy");
    cr_expect_eq(kept(inherited), 9);
    atomic_store(&in_destroy.open, true);
    pthread_join(trimmer, NULL);
    pthread_join(freer, NULL);
    cr_expect_eq(destroyed(), 18);
}

/* ---- errors ------------------------------------------------------------------------------------------------ */

static void expect_bad(const struct wr_value_dict_options *options)
{
    errno = 0;
    cr_expect_null(wr_value_dict_new(options));
    cr_expect_eq(errno, EINVAL);
}

Test(keep, bad_arguments)
{
    struct wr_value_dict_options options = {.struct_size = sizeof options, .keep_size = 5};
    expect_bad(&options);
    options =
        (struct wr_value_dict_options){.struct_size = sizeof options, .keep_objects = 5, .size_of = size_by_number};
    expect_bad(&options);

    wr_value_dict *d = keeping(3, 0, 0);
    give(d, 1, 0);
    static const double bad[] = {-0.1, 1.1, (double)NAN, (double)INFINITY};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        errno = 0;
        cr_expect_eq(wr_value_dict_trim(d, bad[i]), 0);
        cr_expect_eq(errno, EINVAL);
    }
    errno = 0;
    cr_expect_eq(wr_value_dict_trim(NULL, 1), 0);
    cr_expect_eq(errno, EINVAL);
    errno = 0;
    size_t size = 7;
    cr_expect_eq(wr_value_dict_kept(NULL, &size), 0);
    cr_expect_eq(size, 0);
    cr_expect_eq(errno, EINVAL);
    cr_expect_eq(kept(d), 1);
    wr_value_dict_free(d);
}

/* What a program compiled against an older header gives. */
Test(keep, options_of_before)
{
    struct wr_value_dict_options options = {.struct_size = offsetof(struct wr_value_dict_options, keep_objects),
                                            .keep_objects = 3};
    wr_value_dict *d = wr_value_dict_new(&options);
    give(d, 1, 0);
    cr_expect_eq(kept(d), 0);
    wr_value_dict_free(d);
}

static int stale_err;

static void destroy_and_set(void *obj)
{
    stale_err = wr_value_dict_set_u64(again, 1, obj);
}

static const wr_type setting_type = {.name = "setting", .size = 8, .destroy = destroy_and_set};

Test(keep, what_is_dying_is_not_kept)
{
    again = keeping(3, 0, 0);
    wr_release(wr_new(&setting_type));
    cr_expect_eq(stale_err, -ESTALE);
    cr_expect_eq(kept(again), 0);
    wr_value_dict_free(again);
}

Test(keep, a_call_without_memory_changes_nothing)
{
    fail_alloc_install();
    wr_value_dict *d = NULL;
    for (long n = 1;; n++) {
        fail_alloc_at(n);
        struct wr_value_dict_options options = {
            .struct_size = sizeof options, .keep_objects = 2, .keep_size = 100, .size_of = size_by_number};
        d = wr_value_dict_new(&options);
        bool hit = fail_alloc_hit();
        if (!hit)
            break;
        if (d != NULL) /* the reclaimer's own, perhaps */
            wr_value_dict_free(d);
    }
    cr_assert_not_null(d);
    give(d, 1, 10);
    give(d, 2, 10);
    thing *t = thing_new(10);
    for (long n = 1;; n++) {
        fail_alloc_at(n);
        int err = wr_value_dict_set_u64(d, 3, t);
        if (!fail_alloc_hit())
            break;
        if (err == 0)
            continue;
        cr_expect_eq(err, -ENOMEM);
        cr_expect_eq(wr_strong_count(t), 1);
        cr_expect_eq(destroyed(), 0);
        cr_expect_eq(kept_size(d), 20);
    }
    cr_expect_eq(wr_strong_count(t), 2);
    cr_expect_eq(destroyed(), 1);
    long before = fail_alloc_calls();
    cr_expect_eq(wr_value_dict_trim(d, 1), 2);
    cr_expect_eq(fail_alloc_calls(), before, "to let go takes no memory");
    wr_release(t);
    wr_value_dict_free(d);
    cr_expect_eq(destroyed(), 3);
}
