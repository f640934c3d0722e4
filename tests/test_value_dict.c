/* Tests of the weak value dictionary: contract in the order of the header, then no memory, then races. */
#include <weakref/value_dict.h>

#include <weakref/debug.h>
#include <weakref/guard.h>
#include <weakref/object.h>
#include <weakref/queue.h>
#include <weakref/weak.h>

#include <criterion/criterion.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "fail_alloc.h"
#include "race.h"

typedef struct thing {
    uint64_t id;
    wr_value_dict *d;
    void (*last_words)(struct thing *t);
} thing;

static atomic_ulong n_destroyed;

static void thing_destroy(void *obj)
{
    thing *t = obj;
    if (t->last_words != NULL)
        t->last_words(t);
    atomic_fetch_add_explicit(&n_destroyed, 1, memory_order_relaxed);
}

static const wr_type thing_type = {.name = "thing", .size = sizeof(thing), .destroy = thing_destroy};
static const wr_type plain_type = {.name = "plain", .size = sizeof(uint64_t)};
static const wr_type deferred_type = {.name = "deferred", .size = sizeof(uint64_t), .flags = WR_TYPE_DEFERRED};

static unsigned long destroyed(void)
{
    return atomic_load_explicit(&n_destroyed, memory_order_relaxed);
}

static thing *thing_new(uint64_t id)
{
    thing *t = wr_new(&thing_type);
    cr_assert_not_null(t);
    t->id = id;
    return t;
}

static wr_value_dict *dict_new(void)
{
    wr_value_dict *d = wr_value_dict_new(NULL);
    cr_assert_not_null(d);
    return d;
}

/* The dictionary maps the key to exactly this object, or to none. */
static bool maps_to(wr_value_dict *d, const char *key, const void *obj)
{
    void *got = wr_value_dict_get_str(d, key);
    bool same = got == obj && wr_value_dict_contains_str(d, key) == (obj != NULL);
    wr_release(got);
    return same;
}

static bool weak_keys;

/* Stands before that of the C library: on demand, new dictionaries get hash keys of zero, for which we know collisions. */
ssize_t getrandom(void *buffer, size_t size, unsigned flags)
{
    if (!weak_keys)
        return syscall(SYS_getrandom, buffer, size, flags);
    memset(buffer, 0, size);
    return (ssize_t)size;
}

/* ---- life ------------------------------------------------------------------------------------------------- */

Test(value_dict, the_example_of_the_header)
{
    wr_value_dict *files = wr_value_dict_new(NULL);
    thing *f = wr_new(&thing_type);
    cr_assert_eq(wr_value_dict_set_str(files, "/etc/motd", f), 0);
    void *same = wr_value_dict_get_str(files, "/etc/motd");
    cr_assert_eq(same, f);
    wr_release(same);
    wr_release(f);
    cr_assert_null(wr_value_dict_get_str(files, "/etc/motd"));
    wr_value_dict_free(files);
    cr_assert_eq(destroyed(), 1);
}

Test(value_dict, freeing_leaves_the_objects_alone)
{
    wr_value_dict *d = dict_new();
    thing *t = thing_new(1);
    wr_value_dict_set_u64(d, 1, t);
    wr_value_dict_free(d);
    cr_assert_eq(wr_strong_count(t), 1);
    cr_assert_eq(destroyed(), 0);
    wr_release(t);
    cr_assert_eq(destroyed(), 1);
}

Test(value_dict, freeing_none_does_nothing)
{
    wr_value_dict_free(NULL);
    wr_value_dict_clear(NULL);
}

Test(value_dict, an_entry_is_no_weak_handle_that_anybody_sees)
{
    wr_value_dict *d = dict_new();
    thing *t = thing_new(1);
    for (uint64_t i = 1; i <= 2; i++) {
        wr_value_dict_set_u64(d, i, t);
        cr_assert_eq(wr_weak_count(t), 0);
        cr_assert_eq(wr_strong_count(t), 1);
    }
    wr_release(t);
    wr_value_dict_free(d);
}

/* ---- new -------------------------------------------------------------------------------------------------- */

Test(value_dict, options_say_how_large_they_are)
{
    struct {
        struct wr_value_dict_options known;
        uint64_t unknown;
    } later = {.unknown = 0};
    struct wr_value_dict_options options = {.struct_size = sizeof options, .initial_size = 0};
    wr_value_dict *d = wr_value_dict_new(&options);
    cr_assert_not_null(d);
    wr_value_dict_free(d);

    options.struct_size = 0;
    errno = 0;
    cr_assert_null(wr_value_dict_new(&options));
    cr_assert_eq(errno, EINVAL);

    later.known.struct_size = sizeof later;
    d = wr_value_dict_new(&later.known);
    cr_assert_not_null(d, "a newer program that asks for nothing new");
    wr_value_dict_free(d);
    later.unknown = 1;
    errno = 0;
    cr_assert_null(wr_value_dict_new(&later.known));
    cr_assert_eq(errno, EINVAL);
}

Test(value_dict, works_with_every_initial_size)
{
    for (size_t size = 0; size < 100000; size = size * 7 + 1) {
        struct wr_value_dict_options options = {.struct_size = sizeof options, .initial_size = size};
        wr_value_dict *d = wr_value_dict_new(&options);
        cr_assert_not_null(d);
        thing *t = thing_new(size);
        for (uint64_t key = 0; key < 500; key++)
            cr_assert_eq(wr_value_dict_set_u64(d, key, t), 0);
        cr_assert_eq(wr_value_dict_len(d), 500);
        wr_release(t);
        cr_assert_eq(wr_value_dict_len(d), 0);
        wr_value_dict_free(d);
    }
}

/* ---- set, get --------------------------------------------------------------------------------------------- */

/* CPython: weak_values */
Test(value_dict, entries_leave_as_their_objects_die)
{
    enum { N = 100 };
    wr_value_dict *d = dict_new();
    thing *things[N];
    for (uint64_t i = 0; i < N; i++) {
        things[i] = thing_new(i);
        cr_assert_eq(wr_value_dict_set_u64(d, i, things[i]), 0);
    }
    cr_assert_eq(wr_value_dict_len(d), N);
    for (uint64_t i = 0; i < N; i++) {
        thing *got = wr_value_dict_get_u64(d, i);
        cr_assert_eq(got, things[i]);
        cr_assert_eq(got->id, i);
        wr_release(got);
    }
    for (uint64_t i = 0; i < N; i++) {
        wr_release(things[i]);
        cr_assert_eq(wr_value_dict_len(d), N - i - 1);
        cr_assert_null(wr_value_dict_get_u64(d, i));
        cr_assert(!wr_value_dict_contains_u64(d, i));
    }
    wr_value_dict_free(d);
}

Test(value_dict, a_miss_leaves_errno_alone)
{
    wr_value_dict *d = dict_new();
    errno = 77;
    cr_assert_null(wr_value_dict_get_str(d, "no"));
    cr_assert_null(wr_value_dict_pop_str(d, "no"));
    cr_assert(!wr_value_dict_contains_str(d, "no"));
    cr_assert_eq(wr_value_dict_len(d), 0);
    WR_GUARD {
        cr_assert_null(wr_value_dict_peek_str(d, "no"));
    }
    cr_assert_eq(errno, 77);
    wr_value_dict_free(d);
}

Test(value_dict, keys_of_every_length_are_told_apart)
{
    enum { N = 600 };
    wr_value_dict *d = dict_new();
    static char text[N + 1];
    thing *things[N];
    memset(text, 'a', sizeof text);
    for (size_t size = 0; size < N; size++) {
        things[size] = thing_new(size);
        cr_assert_eq(wr_value_dict_set(d, text, size, things[size]), 0);
    }
    cr_assert_eq(wr_value_dict_len(d), N);
    for (size_t size = 0; size < N; size++) {
        thing *got = wr_value_dict_get(d, text, size);
        cr_assert_eq(got, things[size], "size %zu", size);
        wr_release(got);
    }
    /* One other byte, at each place, is another key. */
    for (size_t size = 1; size < N; size += size < 80 ? 1 : 37) {
        for (size_t at = 0; at < size; at++) {
            text[at] = 'b';
            cr_assert_null(wr_value_dict_get(d, text, size), "size %zu, byte %zu", size, at);
            text[at] = 'a';
        }
    }
    for (size_t size = 0; size < N; size++)
        wr_release(things[size]);
    wr_value_dict_free(d);
}

Test(value_dict, the_empty_key_is_a_key)
{
    wr_value_dict *d = dict_new();
    thing *t = thing_new(1);
    cr_assert_null(wr_value_dict_get(d, NULL, 0));
    cr_assert_eq(wr_value_dict_set(d, NULL, 0, t), 0);
    cr_assert(maps_to(d, "", t));
    cr_assert_eq(wr_value_dict_set_str(d, "", t), 0);
    cr_assert_eq(wr_value_dict_len(d), 1);
    cr_assert_eq(wr_value_dict_remove(d, NULL, 0), 0);
    cr_assert(maps_to(d, "", NULL));
    wr_release(t);
    wr_value_dict_free(d);
}

Test(value_dict, keys_of_sixteen_mebibytes_are_copied_and_compared_whole)
{
    size_t size = 16 << 20;
    wr_value_dict *d = dict_new();
    char *key = malloc(size);
    memset(key, 'k', size);
    thing *t = thing_new(1), *u = thing_new(2);
    cr_assert_eq(wr_value_dict_set(d, key, size, t), 0);
    key[size - 1] = 'l';
    cr_assert_null(wr_value_dict_get(d, key, size));
    cr_assert_eq(wr_value_dict_set(d, key, size, u), 0);
    key[size - 1] = 'k';
    void *got = wr_value_dict_get(d, key, size);
    cr_assert_eq(got, t);
    wr_release(got);
    cr_assert_null(wr_value_dict_get(d, key, size - 1));
    free(key);
    cr_assert_eq(wr_value_dict_len(d), 2);
    wr_release(t);
    wr_release(u);
    cr_assert_eq(wr_value_dict_len(d), 0);
    wr_value_dict_free(d);
}

Test(value_dict, bytes_of_a_key_may_be_zero)
{
    wr_value_dict *d = dict_new();
    thing *t = thing_new(1), *u = thing_new(2);
    wr_value_dict_set(d, "a\0b", 3, t);
    wr_value_dict_set(d, "a\0c", 3, u);
    cr_assert_eq(wr_value_dict_len(d), 2);
    cr_assert(maps_to(d, "a", NULL));
    wr_release(t);
    void *got = wr_value_dict_get(d, "a\0c", 3);
    cr_assert_eq(got, u);
    wr_release(got);
    wr_release(u);
    wr_value_dict_free(d);
}

static void check_colliding(wr_value_dict *d, size_t size)
{
    enum { N = 50 };
    thing *things[N];
    unsigned char key[300] = {0};
    for (uint64_t i = 0; i < N; i++) {
        uint64_t word = i * 13 % N;
        memcpy(key + 8, &word, 8);
        things[word] = thing_new(word);
        cr_assert_eq(wr_value_dict_set(d, key, size, things[word]), 0);
    }
    cr_assert_eq(wr_value_dict_len(d), N);
    for (uint64_t word = 0; word < N; word++) {
        memcpy(key + 8, &word, 8);
        void *got = wr_value_dict_get(d, key, size);
        cr_assert_eq(got, things[word]);
        cr_assert_eq(wr_value_dict_set(d, key, size, got), 0);
        wr_release(got);
    }
    for (uint64_t word = 0; word < N; word += 2) {
        memcpy(key + 8, &word, 8);
        cr_assert_eq(wr_value_dict_remove(d, key, size), 0);
        cr_assert_eq(wr_value_dict_remove(d, key, size), -ENOENT);
    }
    cr_assert_eq(wr_value_dict_len(d), N / 2);
    for (uint64_t word = 0; word < N; word++) {
        memcpy(key + 8, &word, 8);
        cr_assert_eq(wr_value_dict_contains(d, key, size), word % 2 == 1);
        wr_release(things[word]);
    }
    cr_assert_eq(wr_value_dict_len(d), 0);
}

/* With a zero key a zero first word swallows the second one: equal hashes, so that only the bytes tell. */
Test(value_dict, keys_with_one_hash_are_told_apart)
{
    weak_keys = true;
    wr_value_dict *d = dict_new();
    check_colliding(d, 16);
    check_colliding(d, 300);
    wr_value_dict_free(d);
}

struct flood {
    unsigned char key[24]; /* the first word swallows the second: see above. Of 16 bytes or 24 */
};

static struct flood flood_key(uint64_t number)
{
    struct flood f = {{0}};
    memcpy(f.key + 8, &number, 8);
    return f;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Inserts, finds, misses and takes out @n keys, flooding ones or others. Returns the nanoseconds for each call. */
static double flood_run(bool flooding, uint64_t n)
{
    uint64_t begin = now_ns();
    wr_value_dict *d = dict_new();
    void *t = wr_new(&plain_type);
    const uint64_t other = flooding ? 0 : UINT64_C(0x9e3779b97f4a7c15);
    for (uint64_t i = 0; i < n; i++) {
        struct flood f = flood_key(i);
        memcpy(f.key, &(uint64_t){i * other}, 8);
        cr_assert_eq(wr_value_dict_set(d, f.key, 16, t), 0);
    }
    cr_assert_eq(wr_value_dict_len(d), n);
    for (uint64_t i = 0; i < 2 * n; i++) {
        struct flood f = flood_key(i);
        memcpy(f.key, &(uint64_t){i * other}, 8);
        cr_assert_eq(wr_value_dict_contains(d, f.key, 16), i < n);
    }
    for (uint64_t i = 0; i < n; i++) {
        struct flood f = flood_key(i);
        memcpy(f.key, &(uint64_t){i * other}, 8);
        cr_assert_eq(wr_value_dict_remove(d, f.key, 16), 0);
    }
    cr_assert_eq(wr_value_dict_len(d), 0);
    wr_release(t);
    wr_value_dict_free(d);
    return (double)(now_ns() - begin) / (4.0 * (double)n);
}

/* With one chain for all, this would take hours. */
Test(value_dict, a_million_keys_with_one_hash_do_no_harm)
{
    enum { N = RACE_SIZE(1000000, 50000) };
    weak_keys = true;
    double flooded = flood_run(true, N), usual = flood_run(false, N);
    printf("%d keys: %.0f ns a call, with one hash %.0f ns: %.1f times\n", N, usual, flooded, flooded / usual);
}

/* What was there before the flood is found throughout, at each look and by each walk. */
struct dam {
    wr_value_dict *d;
    size_t size; /* of the keys */
    thing *lasting[40];
    atomic_bool over;
    atomic_ulong looks;
};

static void *dam_reader(void *ctx)
{
    struct dam *dam = ctx;
    unsigned long looks = 0;
    for (; !atomic_load_explicit(&dam->over, memory_order_relaxed); looks++) {
        struct flood f = flood_key(looks % 40);
        void *got = wr_value_dict_get(dam->d, f.key, dam->size);
        RACE_CHECK(got == dam->lasting[looks % 40]);
        wr_release(got);
        if (looks % 64 == 0) {
            wr_value_dict_iter it;
            struct wr_value_dict_item item;
            unsigned n = 0;
            wr_value_dict_iter_begin(&it, dam->d);
            for (; wr_value_dict_iter_next(&it, &item); wr_release(item.value))
                n += ((thing *)item.value)->id < 40;
            wr_value_dict_iter_end(&it);
            RACE_CHECK(n == 40);
        }
    }
    atomic_fetch_add(&dam->looks, looks);
    return NULL;
}

Test(value_dict, readers_miss_nothing_while_a_flood_comes)
{
    unsigned long looks = 0;
    weak_keys = true;
    for (unsigned round = 0; round < RACE_SIZE(60, 15); round++) {
        struct dam dam = {.d = dict_new(), .size = round % 2 ? 16 : 24};
        pthread_t readers[2];
        thing *water = thing_new(1000);
        for (uint64_t i = 0; i < 40; i++) {
            struct flood f = flood_key(i);
            dam.lasting[i] = thing_new(i);
            if (i < 10 || i >= 30) /* some before the shard is hardened, some after */
                cr_assert_eq(wr_value_dict_set(dam.d, f.key, dam.size, dam.lasting[i]), 0);
        }
        for (uint64_t i = 10; i < 30; i++) {
            struct flood f = flood_key(i);
            cr_assert_eq(wr_value_dict_set(dam.d, f.key, dam.size, dam.lasting[i]), 0);
        }
        for (unsigned i = 0; i < 2; i++)
            cr_assert_eq(pthread_create(&readers[i], NULL, dam_reader, &dam), 0);
        for (uint64_t i = 40; i < RACE_SIZE(3000, 600); i++) {
            struct flood f = flood_key(i), g = flood_key(i % 40);
            cr_assert_eq(wr_value_dict_set(dam.d, f.key, dam.size, water), 0);
            cr_assert_eq(wr_value_dict_set(dam.d, g.key, dam.size, dam.lasting[i % 40]), 0, "replaced in its place");
        }
        cr_assert_eq(wr_value_dict_len(dam.d), RACE_SIZE(3000, 600));
        wr_release(water); /* or an iterator does, that holds it */
        atomic_store(&dam.over, true);
        for (unsigned i = 0; i < 2; i++)
            pthread_join(readers[i], NULL);
        cr_assert_eq(wr_value_dict_len(dam.d), 40);
        looks += atomic_load(&dam.looks);
        for (unsigned i = 0; i < 40; i++)
            wr_release(dam.lasting[i]);
        cr_assert_eq(wr_value_dict_len(dam.d), 0);
        wr_value_dict_free(dam.d);
    }
    cr_assert_gt(looks, 100);
}

/* CPython: weak_valued_dict_update, in its part of replacing */
Test(value_dict, a_set_replaces_and_the_replaced_object_takes_nothing_along)
{
    wr_value_dict *d = dict_new();
    thing *old = thing_new(1), *new = thing_new(2);
    wr_value_dict_set_str(d, "k", old);
    cr_assert_eq(wr_value_dict_set_str(d, "k", new), 0);
    cr_assert_eq(wr_value_dict_len(d), 1);
    cr_assert(maps_to(d, "k", new));
    wr_release(old);
    cr_assert(maps_to(d, "k", new));
    cr_assert_eq(wr_value_dict_len(d), 1);
    cr_assert_eq(wr_value_dict_set_str(d, "k", new), 0);
    cr_assert(maps_to(d, "k", new));
    wr_release(new);
    cr_assert_eq(wr_value_dict_len(d), 0);
    wr_value_dict_free(d);
}

Test(value_dict, one_object_under_many_keys_and_in_many_dictionaries)
{
    wr_value_dict *d[3] = {dict_new(), dict_new(), dict_new()};
    thing *t = thing_new(1);
    for (unsigned i = 0; i < 3; i++)
        for (uint64_t key = 0; key < 200; key++)
            cr_assert_eq(wr_value_dict_set_u64(d[i], key, t), 0);
    wr_value_dict_free(d[1]);
    wr_release(t);
    cr_assert_eq(wr_value_dict_len(d[0]), 0);
    cr_assert_eq(wr_value_dict_len(d[2]), 0);
    wr_value_dict_free(d[0]);
    wr_value_dict_free(d[2]);
}

static void words_of_the_dying(thing *t)
{
    void *out = t;
    cr_assert_eq(wr_value_dict_len(t->d), 1, "it left before its destroy");
    cr_assert_null(wr_value_dict_get_str(t->d, "dying"));
    cr_assert_eq(wr_value_dict_set_str(t->d, "dying", t), -ESTALE);
    cr_assert_eq(wr_value_dict_setdefault_str(t->d, "dying", t, &out), -ESTALE);
    cr_assert_eq(out, t);
    cr_assert_eq(wr_value_dict_remove_str(t->d, "dying"), -ENOENT);
    cr_assert_eq(wr_value_dict_remove_if_str(t->d, "dying", t), -ENOENT);
    cr_assert_null(wr_value_dict_pop_str(t->d, "dying"));
    /* Others are as alive as ever. */
    thing *other = wr_value_dict_get_str(t->d, "other");
    cr_assert_not_null(other);
    cr_assert_eq(wr_value_dict_set_str(t->d, "dying", other), 0);
    cr_assert_eq(wr_value_dict_len(t->d), 2);
    wr_release(other);
}

Test(value_dict, a_destroy_may_use_the_dictionary_it_left_but_not_come_back)
{
    wr_value_dict *d = dict_new();
    thing *t = thing_new(1), *other = thing_new(2);
    t->d = d;
    t->last_words = words_of_the_dying;
    wr_value_dict_set_str(d, "dying", t);
    wr_value_dict_set_str(d, "other", other);
    wr_release(t);
    cr_assert_eq(destroyed(), 1);
    cr_assert(maps_to(d, "dying", other));
    wr_release(other);
    wr_value_dict_free(d);
}

/* ---- peek ------------------------------------------------------------------------------------------------- */

Test(value_dict, peek_borrows_and_retain_live_keeps)
{
    wr_value_dict *d = dict_new();
    uint64_t *t = wr_new(&deferred_type);
    *t = 42;
    wr_value_dict_set_u64(d, 1, t);
    WR_GUARD {
        uint64_t *seen = wr_value_dict_peek_u64(d, 1);
        cr_assert_eq(seen, t);
        cr_assert_eq(wr_strong_count(t), 1);
        void *kept = wr_retain_live(seen);
        cr_assert_eq(kept, t);
        wr_release(kept);
        wr_release(t);
        cr_assert_eq(*seen, 42, "whole until the guard ends");
        cr_assert_null(wr_value_dict_peek_u64(d, 1));
        cr_assert_null(wr_retain_live(seen));
    }
    cr_assert_eq(wr_value_dict_len(d), 0);
    wr_value_dict_free(d);
}

/* ---- remove, remove_if, pop ------------------------------------------------------------------------------- */

/* CPython: weak_valued_delitem */
Test(value_dict, remove_takes_out_and_says_whether_it_was_there)
{
    wr_value_dict *d = dict_new();
    thing *t = thing_new(1);
    cr_assert_eq(wr_value_dict_remove_str(d, "k"), -ENOENT);
    wr_value_dict_set_str(d, "k", t);
    cr_assert_eq(wr_value_dict_remove_str(d, "k"), 0);
    cr_assert_eq(wr_value_dict_remove_str(d, "k"), -ENOENT);
    cr_assert_eq(wr_value_dict_len(d), 0);
    cr_assert_eq(wr_value_dict_set_str(d, "k", t), 0);
    cr_assert(maps_to(d, "k", t));
    wr_release(t);
    wr_value_dict_free(d);
}

Test(value_dict, remove_if_takes_out_only_what_is_meant)
{
    wr_value_dict *d = dict_new();
    thing *t = thing_new(1), *u = thing_new(2);
    cr_assert_eq(wr_value_dict_remove_if_str(d, "k", t), -ENOENT);
    wr_value_dict_set_str(d, "k", t);
    cr_assert_eq(wr_value_dict_remove_if_str(d, "k", u), -ENOENT);
    cr_assert(maps_to(d, "k", t));
    cr_assert_eq(wr_value_dict_remove_if_str(d, "k", t), 0);
    cr_assert(maps_to(d, "k", NULL));
    wr_release(t);
    wr_release(u);
    wr_value_dict_free(d);
}

/* CPython: the mapping protocol's pop */
Test(value_dict, pop_gives_the_object_and_takes_it_out)
{
    wr_value_dict *d = dict_new();
    thing *t = thing_new(1);
    wr_value_dict_set_u64(d, 9, t);
    wr_release(t); /* dies unless pop's reference came first: it did not */
    cr_assert_null(wr_value_dict_pop_u64(d, 9));
    t = thing_new(2);
    wr_value_dict_set_u64(d, 9, t);
    thing *got = wr_value_dict_pop_u64(d, 9);
    cr_assert_eq(got, t);
    cr_assert_eq(wr_strong_count(t), 2);
    cr_assert_null(wr_value_dict_pop_u64(d, 9));
    cr_assert_eq(wr_value_dict_len(d), 0);
    wr_release(got);
    wr_release(t);
    wr_value_dict_free(d);
}

Test(value_dict, replace_changes_only_what_is_meant)
{
    wr_value_dict *d = dict_new();
    thing *t = thing_new(1), *u = thing_new(2);
    cr_assert_eq(wr_value_dict_replace_str(d, "k", t, u), -ENOENT);
    wr_value_dict_set_str(d, "k", t);
    cr_assert_eq(wr_value_dict_replace_str(d, "k", u, t), -ENOENT);
    cr_assert(maps_to(d, "k", t));
    cr_assert_eq(wr_value_dict_replace_str(d, "k", t, u), 0);
    cr_assert(maps_to(d, "k", u));
    cr_assert_eq(wr_value_dict_replace_str(d, "k", u, u), 0);
    cr_assert_eq(wr_value_dict_len(d), 1);
    wr_value_dict_set_u64(d, 3, t);
    cr_assert_eq(wr_value_dict_replace_u64(d, 3, t, u), 0);
    cr_assert_eq(wr_value_dict_replace_u64(d, 3, t, NULL), -EINVAL);
    cr_assert_eq(wr_value_dict_replace_u64(d, 3, NULL, t), -EINVAL);
    cr_assert_eq(wr_value_dict_replace_str(d, NULL, u, t), -EINVAL);
    cr_assert_eq(wr_value_dict_replace_str(NULL, "k", u, t), -EINVAL);
    wr_release(t);
    cr_assert_eq(wr_value_dict_len(d), 2);
    wr_release(u);
    cr_assert_eq(wr_value_dict_len(d), 0);
    wr_value_dict_free(d);
}

/* ---- setdefault ------------------------------------------------------------------------------------------- */

/* CPython: weak_valued_dict_setdefault */
Test(value_dict, setdefault_keeps_what_is_there)
{
    wr_value_dict *d = dict_new();
    thing *t = thing_new(1), *u = thing_new(2);
    void *out = NULL;
    cr_assert_eq(wr_value_dict_setdefault_str(d, "k", t, &out), 0);
    cr_assert_eq(out, t);
    cr_assert_eq(wr_strong_count(t), 2);
    wr_release(out);
    cr_assert_eq(wr_value_dict_setdefault_str(d, "k", u, &out), 0);
    cr_assert_eq(out, t);
    wr_release(out);
    cr_assert_eq(wr_value_dict_len(d), 1);
    wr_release(t);
    cr_assert_eq(wr_value_dict_setdefault_str(d, "k", u, &out), 0);
    cr_assert_eq(out, u);
    wr_release(out);
    wr_release(u);
    wr_value_dict_free(d);
}

/* ---- get_or_create ---------------------------------------------------------------------------------------- */

struct maker {
    wr_value_dict *d;
    atomic_uint calls;
    int result;      /* to return */
    bool empty;      /* leave *obj alone */
    thing *rival;    /* to set meanwhile */
    const char *key; /* to check */
    int seen;        /* by a nested call */
};

static int make(const void *key, size_t size, void *ctx, void **obj)
{
    struct maker *maker = ctx;
    atomic_fetch_add(&maker->calls, 1);
    if (maker->key != NULL) {
        cr_assert_eq(size, strlen(maker->key));
        cr_assert_eq(memcmp(key, maker->key, size), 0);
    }
    if (maker->d != NULL && maker->key != NULL) {
        cr_assert(maps_to(maker->d, maker->key, NULL), "a flight is no entry");
        cr_assert_eq(wr_value_dict_len(maker->d), 0);
    }
    if (maker->rival != NULL)
        cr_assert_eq(wr_value_dict_set(maker->d, key, size, maker->rival), 0);
    if (!maker->empty)
        *obj = thing_new(7);
    if (maker->result != 0 && !maker->empty) {
        wr_release(*obj);
        *obj = NULL;
    }
    return maker->result;
}

Test(value_dict, get_or_create_creates_what_is_missing_once)
{
    wr_value_dict *d = dict_new();
    struct maker maker = {.d = d, .key = "k"};
    void *one = NULL, *two = NULL;
    cr_assert_eq(wr_value_dict_get_or_create_str(d, "k", make, &maker, &one), 0);
    cr_assert_eq(wr_strong_count(one), 1, "create's reference became the caller's");
    cr_assert_eq(wr_value_dict_get_or_create_str(d, "k", make, &maker, &two), 0);
    cr_assert_eq(one, two);
    cr_assert_eq(maker.calls, 1);
    cr_assert_eq(wr_value_dict_len(d), 1);
    wr_release(one);
    wr_release(two);
    cr_assert_eq(wr_value_dict_len(d), 0);
    cr_assert_eq(wr_value_dict_get_or_create_str(d, "k", make, &maker, &one), 0);
    cr_assert_eq(maker.calls, 2, "an entry whose object is dead counts as missing");
    wr_release(one);
    cr_assert_eq(destroyed(), 2);
    wr_value_dict_free(d);
}

Test(value_dict, an_error_of_create_is_passed_on_and_not_remembered)
{
    wr_value_dict *d = dict_new();
    struct maker maker = {.d = d, .key = "k", .result = -EIO};
    void *out = d;
    cr_assert_eq(wr_value_dict_get_or_create_str(d, "k", make, &maker, &out), -EIO);
    cr_assert_eq(out, d, "untouched");
    cr_assert_eq(wr_value_dict_len(d), 0);
    maker.result = 0;
    cr_assert_eq(wr_value_dict_get_or_create_str(d, "k", make, &maker, &out), 0);
    cr_assert_eq(maker.calls, 2);
    wr_release(out);
    wr_value_dict_free(d);
}

Test(value_dict, create_must_give_an_object_or_a_negative_number)
{
    wr_value_dict *d = dict_new();
    struct maker maker = {.empty = true};
    void *out = NULL;
    cr_assert_eq(wr_value_dict_get_or_create_u64(d, 1, make, &maker, &out), -EINVAL);
    maker.result = 5;
    cr_assert_eq(wr_value_dict_get_or_create_u64(d, 1, make, &maker, &out), -EINVAL);
    cr_assert_null(out);
    cr_assert_eq(maker.calls, 2);
    cr_assert_eq(wr_value_dict_len(d), 0);
    wr_value_dict_free(d);
}

Test(value_dict, a_set_meanwhile_wins_over_the_created)
{
    wr_value_dict *d = dict_new();
    struct maker maker = {.d = d, .rival = thing_new(1)};
    void *out = NULL;
    cr_assert_eq(wr_value_dict_get_or_create_str(d, "k", make, &maker, &out), 0);
    cr_assert_eq(out, maker.rival);
    cr_assert_eq(destroyed(), 1, "the created one");
    cr_assert_eq(wr_value_dict_len(d), 1);
    wr_release(out);
    wr_release(maker.rival);
    wr_value_dict_free(d);
}

static thing *set_by_words;

static int set_and_give_a_dead_one(const void *key, size_t size, void *ctx, void **obj)
{
    thing *dying = ctx;
    cr_assert_eq(wr_value_dict_set(dying->d, key, size, set_by_words), 0);
    *obj = dying;
    return 0;
}

static void words_of_a_maker(thing *t)
{
    void *out = NULL;
    cr_assert_eq(wr_value_dict_get_or_create_str(t->d, "k", set_and_give_a_dead_one, t, &out), 0);
    cr_assert_eq(out, set_by_words);
    wr_release(out);
}

Test(value_dict, a_set_meanwhile_wins_over_a_created_one_that_is_dead)
{
    wr_value_dict *d = dict_new();
    thing *t = thing_new(1);
    set_by_words = thing_new(2);
    t->d = d;
    t->last_words = words_of_a_maker;
    wr_release(t);
    cr_assert_eq(destroyed(), 1);
    cr_assert_eq(wr_strong_count(set_by_words), 1);
    cr_assert(maps_to(d, "k", set_by_words));
    wr_release(set_by_words);
    wr_value_dict_free(d);
}

static int make_again(const void *key, size_t size, void *ctx, void **obj)
{
    struct maker *maker = ctx;
    void *out = NULL;
    maker->seen = wr_value_dict_get_or_create(maker->d, key, size, make_again, ctx, &out);
    cr_assert_null(out);
    struct maker other = {.d = NULL};
    cr_assert_eq(wr_value_dict_get_or_create_str(maker->d, "another", make, &other, &out), 0);
    wr_release(out);
    *obj = thing_new(3);
    return 0;
}

Test(value_dict, a_create_that_asks_for_its_own_key_is_told)
{
    wr_value_dict *d = dict_new();
    struct maker maker = {.d = d};
    void *out = NULL;
    cr_assert_eq(wr_value_dict_get_or_create_str(d, "k", make_again, &maker, &out), 0);
    cr_assert_eq(maker.seen, -EDEADLK);
    wr_release(out);
    wr_value_dict_free(d);
}

static int make_and_exit(const void *key, size_t size, void *ctx, void **obj)
{
    (void)key;
    (void)size;
    (void)ctx;
    (void)obj;
    pthread_exit(ctx);
}

static void *creator_that_exits(void *ctx)
{
    void *out;
    wr_value_dict_get_or_create_str(ctx, "k", make_and_exit, ctx, &out);
    return NULL;
}

Test(value_dict, a_creator_that_exits_leaves_nothing_behind)
{
    wr_value_dict *d = dict_new();
    struct maker maker = {.d = d, .key = "k"};
    pthread_t thread;
    void *result = NULL, *out = NULL;
    cr_assert_eq(pthread_create(&thread, NULL, creator_that_exits, d), 0);
    pthread_join(thread, &result);
    cr_assert_eq(result, d, "it did exit in create");
    cr_assert_eq(wr_value_dict_get_or_create_str(d, "k", make, &maker, &out), 0);
    wr_release(out);
    wr_value_dict_free(d);
}

/* ---- len, clear, twins ------------------------------------------------------------------------------------ */

Test(value_dict, clear_takes_all_out_and_the_dictionary_goes_on)
{
    enum { N = 5000 };
    wr_value_dict *d = dict_new();
    thing *t = thing_new(1);
    for (unsigned round = 0; round < 3; round++) {
        for (uint64_t key = 0; key < N; key++)
            wr_value_dict_set_u64(d, key, t);
        cr_assert_eq(wr_value_dict_len(d), N);
        wr_value_dict_clear(d);
        cr_assert_eq(wr_value_dict_len(d), 0);
        for (uint64_t key = 0; key < N; key++)
            cr_assert(!wr_value_dict_contains_u64(d, key));
    }
    wr_release(t);
    wr_value_dict_free(d);
}

Test(value_dict, twins_and_bytes_are_the_same_keys)
{
    wr_value_dict *d = dict_new();
    thing *t = thing_new(1);
    uint64_t number = UINT64_C(0x0102030405060708);
    void *got;
    wr_value_dict_set_u64(d, number, t);
    got = wr_value_dict_get(d, &number, sizeof number);
    cr_assert_eq(got, t);
    wr_release(got);
    cr_assert_eq(wr_value_dict_remove(d, &number, sizeof number), 0);
    wr_value_dict_set_str(d, "text", t);
    got = wr_value_dict_pop(d, "text", 4);
    cr_assert_eq(got, t);
    wr_release(got);
    cr_assert_eq(wr_value_dict_setdefault_u64(d, number, t, &got), 0);
    wr_release(got);
    got = wr_value_dict_pop_u64(d, number);
    cr_assert_eq(got, t);
    wr_release(got);
    cr_assert_eq(wr_value_dict_remove_if_u64(d, number, t), -ENOENT);
    cr_assert_eq(wr_value_dict_remove_u64(d, number), -ENOENT);
    wr_release(t);
    wr_value_dict_free(d);
}

Test(value_dict, random_operations_agree_with_an_array)
{
    enum { KEYS = 2000, OPERATIONS = RACE_SIZE(1000000, 120000) };
    uint64_t random = race_seed();
    wr_value_dict *d = dict_new();
    static thing *oracle[KEYS]; /* with our reference: alive, and in the dictionary */
    size_t n = 0;
    unsigned long made = 0;
    for (unsigned i = 0; i < OPERATIONS; i++) {
        uint64_t key = race_draw(&random) % KEYS, what = race_draw(&random) % 100;
        thing *there = oracle[key];
        void *out = NULL;
        char text[300]; /* some keys long, some short */
        size_t size = key % 3 == 0 ? 8 : key % 3 == 1 ? 23 : 255 + key % 40;
        memset(text, 'x', size);
        memcpy(text, &key, sizeof key);
        if (i / (OPERATIONS / 8) % 2 && what < 25)
            what = 60; /* ebb: more drops than sets */
        if (what < 25) {
            thing *t = thing_new(key);
            made++;
            cr_assert_eq(wr_value_dict_set(d, text, size, t), 0);
            n += there == NULL;
            oracle[key] = t;
            wr_release(there);
        } else if (what < 30) {
            thing *t = thing_new(key);
            made++;
            cr_assert_eq(wr_value_dict_setdefault(d, text, size, t, &out), 0);
            cr_assert_eq(out, there != NULL ? there : t);
            n += there == NULL;
            if (there == NULL)
                oracle[key] = wr_retain(t);
            wr_release(out);
            wr_release(t);
        } else if (what < 35) {
            struct maker maker = {.calls = 0};
            cr_assert_eq(wr_value_dict_get_or_create(d, text, size, make, &maker, &out), 0);
            cr_assert_eq(maker.calls, there == NULL);
            made += maker.calls;
            n += there == NULL;
            if (there == NULL)
                oracle[key] = out;
            else
                wr_release(out);
        } else if (what < 40) {
            cr_assert_eq(wr_value_dict_remove(d, text, size), there != NULL ? 0 : -ENOENT);
            n -= there != NULL;
            oracle[key] = NULL;
            wr_release(there);
        } else if (what < 44) {
            thing *other = oracle[(key + 1) % KEYS];
            if (other != NULL && other != there)
                cr_assert_eq(wr_value_dict_remove_if(d, text, size, other), -ENOENT);
            if (there != NULL) {
                cr_assert_eq(wr_value_dict_remove_if(d, text, size, there), 0);
                n--;
                oracle[key] = NULL;
                wr_release(there);
            }
        } else if (what < 48) {
            out = wr_value_dict_pop(d, text, size);
            cr_assert_eq(out, there);
            n -= there != NULL;
            oracle[key] = NULL;
            wr_release(there);
            wr_release(out);
        } else if (what < 52) {
            thing *t = thing_new(key), *other = oracle[(key + 1) % KEYS];
            made++;
            if (other != NULL && other != there)
                cr_assert_eq(wr_value_dict_replace(d, text, size, other, t), -ENOENT);
            if (there != NULL) {
                cr_assert_eq(wr_value_dict_replace(d, text, size, there, t), 0);
                oracle[key] = t;
                wr_release(there);
            } else {
                wr_release(t);
            }
        } else if (what == 52) {
            char popped[300];
            size_t popped_size = sizeof popped;
            thing *t = wr_value_dict_popitem(d, popped, &popped_size);
            cr_assert_eq(t == NULL, n == 0);
            if (t != NULL) {
                memcpy(&key, popped, sizeof key);
                cr_assert_eq(t, oracle[key]);
                wr_release(oracle[key]);
                oracle[key] = NULL;
                n--;
                wr_release(t);
            }
        } else if (what == 53 && race_draw(&random) % 256 == 0) {
            wr_value_dict_iter it;
            struct wr_value_dict_item item;
            size_t met = 0;
            wr_value_dict_iter_begin(&it, d);
            for (; wr_value_dict_iter_next(&it, &item); met++) {
                memcpy(&key, item.key, sizeof key);
                cr_assert_eq(item.value, oracle[key]);
                wr_release(item.value);
            }
            wr_value_dict_iter_end(&it);
            cr_assert_eq(met, n);
        } else if (what < 70) {
            oracle[key] = NULL; /* it dies, and is gone */
            n -= there != NULL;
            wr_release(there);
        } else {
            out = wr_value_dict_get(d, text, size);
            cr_assert_eq(out, there);
            cr_assert_eq(wr_value_dict_contains(d, text, size), there != NULL);
            wr_release(out);
        }
        cr_assert_eq(wr_value_dict_len(d), n);
        if (race_draw(&random) % 50000 == 0) {
            wr_value_dict_clear(d);
            n = 0;
            for (unsigned k = 0; k < KEYS; k++) {
                wr_release(oracle[k]);
                oracle[k] = NULL;
            }
        }
    }
    for (unsigned k = 0; k < KEYS; k++)
        wr_release(oracle[k]);
    cr_assert_eq(wr_value_dict_len(d), 0);
    cr_assert_eq(destroyed(), made);
    wr_value_dict_free(d);
}

/* ---- all of them ------------------------------------------------------------------------------------------ */

enum { SOME = 100 };

static void fill_some(wr_value_dict *d, thing **things)
{
    for (uint64_t i = 0; i < SOME; i++) {
        things[i] = thing_new(i);
        cr_assert_eq(wr_value_dict_set_u64(d, i, things[i]), 0);
    }
}

static void release_some(thing **things)
{
    for (unsigned i = 0; i < SOME; i++)
        wr_release(things[i]);
}

/* Goes through @d, whose keys are the ids of its objects; returns how many came, and in @seen how often each. */
static size_t walk(wr_value_dict *d, unsigned *seen)
{
    wr_value_dict_iter it;
    struct wr_value_dict_item item;
    size_t n = 0;
    memset(seen, 0, SOME * sizeof *seen);
    wr_value_dict_iter_begin(&it, d);
    while (wr_value_dict_iter_next(&it, &item)) {
        uint64_t key;
        cr_assert_eq(item.key_size, sizeof key);
        memcpy(&key, item.key, sizeof key);
        cr_assert_eq(((thing *)item.value)->id, key);
        seen[key]++;
        n++;
        wr_release(item.value);
    }
    cr_assert(!wr_value_dict_iter_next(&it, &item), "after the end there is nothing");
    wr_value_dict_iter_end(&it);
    wr_value_dict_iter_end(&it);
    return n;
}

/* CPython: weak_valued_iters; the mapping protocol's keys, values, items, iter */
Test(value_dict, an_iterator_meets_each_entry_once_and_len_can_be_asked_meanwhile)
{
    wr_value_dict *d = dict_new();
    thing *things[SOME];
    unsigned seen[SOME];
    cr_assert_eq(walk(d, seen), 0);
    fill_some(d, things);
    cr_assert_eq(walk(d, seen), SOME);
    for (unsigned i = 0; i < SOME; i++)
        cr_assert_eq(seen[i], 1);

    wr_value_dict_iter it;
    struct wr_value_dict_ref ref;
    size_t n = 0;
    wr_value_dict_iter_begin(&it, d);
    while (wr_value_dict_iter_next_ref(&it, &ref)) {
        cr_assert_eq(wr_value_dict_len(d), SOME - n, "len inside an iteration");
        uint64_t key;
        memcpy(&key, ref.key, sizeof key);
        cr_assert(wr_weak_is(ref.value, things[key]));
        cr_assert_eq(wr_strong_count(things[key]), 1, "kept alive by nobody");
        wr_release(things[key]);
        things[key] = NULL;
        cr_assert(wr_weak_is_dead(ref.value));
        cr_assert_eq(memcmp(ref.key, &key, sizeof key), 0, "the key stays while the iterator stands there");
        wr_weak_release(ref.value);
        n++;
    }
    wr_value_dict_iter_end(&it);
    cr_assert_eq(n, SOME);
    cr_assert_eq(wr_value_dict_len(d), 0);
    wr_value_dict_free(d);
}

/* CPython: weak_values_destroy_while_iterating */
Test(value_dict, what_dies_meanwhile_is_not_met_and_what_changes_meanwhile_does_no_harm)
{
    wr_value_dict *d = dict_new();
    thing *things[SOME];
    unsigned seen[SOME] = {0};
    fill_some(d, things);
    wr_value_dict_iter it;
    struct wr_value_dict_item item;
    wr_value_dict_iter_begin(&it, d);
    uint64_t more = SOME;
    thing *extra = thing_new(0);
    for (unsigned n = 0; wr_value_dict_iter_next(&it, &item); n++) {
        uint64_t key;
        memcpy(&key, item.key, sizeof key);
        wr_release(item.value);
        if (key >= SOME)
            continue;
        cr_assert_eq(seen[key]++, 0);
        if (n % 3 == 0) { /* the one it stands on */
            cr_assert_eq(wr_value_dict_remove_u64(d, key), 0);
        } else if (n % 3 == 1) { /* another one */
            uint64_t other = (key + 1) % SOME;
            if (seen[other] == 0) {
                wr_release(things[other]);
                things[other] = NULL;
                seen[other] = 1; /* it must not come any more */
            }
        } else if (more < 20 * SOME) {
            for (unsigned i = 0; i < 100; i++) /* the table grows */
                cr_assert_eq(wr_value_dict_set_u64(d, more++, extra), 0);
        }
        cr_assert_eq(wr_barrier(), 0);
        cr_assert_eq(memcmp(item.key, &key, sizeof key), 0);
    }
    wr_value_dict_iter_end(&it);
    for (unsigned i = 0; i < SOME; i++)
        cr_assert_eq(seen[i], 1);
    release_some(things);
    wr_release(extra);
    wr_value_dict_free(d);
}

Test(value_dict, an_iterator_gives_back_all_it_stood_on)
{
    fail_alloc_install();
    wr_value_dict *d = dict_new();
    thing *things[SOME];
    fill_some(d, things);
    wr_value_dict_iter its[3];
    struct wr_value_dict_item items[3];
    fail_alloc_all(true);
    for (unsigned i = 0; i < 3; i++) { /* all three on one entry */
        wr_value_dict_iter_begin(&its[i], d);
        cr_assert(wr_value_dict_iter_next(&its[i], &items[i]));
        cr_assert_eq(items[i].key, items[0].key);
    }
    fail_alloc_all(false);
    for (unsigned i = 0; i < 3; i++)
        wr_release(items[i].value);
    release_some(things);
    cr_assert_eq(wr_barrier(), 0);
    long before = fail_alloc_live();
    for (unsigned i = 0; i < 3; i++) {
        uint64_t key;
        memcpy(&key, items[i].key, sizeof key);
        cr_assert_lt(key, SOME);
        wr_value_dict_iter_end(&its[i]);
        cr_assert_eq(wr_barrier(), 0);
        cr_assert_eq(before - fail_alloc_live() > 0, i == 2, "the last one to leave has it freed");
    }
    wr_value_dict_free(d);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

/* CPython: remove_closure, in its part: nobody needs the dictionary to live */
Test(value_dict, an_iterator_outlives_its_dictionary)
{
    fail_alloc_install();
    wr_value_dict *d = dict_new();
    thing *things[SOME];
    fill_some(d, things);
    wr_value_dict_iter it;
    struct wr_value_dict_item item;
    wr_value_dict_iter_begin(&it, d);
    cr_assert(wr_value_dict_iter_next(&it, &item));
    wr_release(item.value);
    wr_value_dict_free(d);
    cr_assert_eq(wr_barrier(), 0);
    uint64_t key;
    memcpy(&key, item.key, sizeof key);
    cr_assert_lt(key, SOME);
    cr_assert(!wr_value_dict_iter_next(&it, &item));
    wr_value_dict_iter_end(&it);
    release_some(things);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

/* CPython: weak_valued_dict_popitem */
Test(value_dict, popitem_takes_out_one_after_the_other)
{
    wr_value_dict *d = dict_new();
    thing *things[SOME];
    unsigned seen[SOME] = {0};
    uint64_t key;
    size_t size = sizeof key;
    errno = 77;
    cr_assert_null(wr_value_dict_popitem(d, &key, &size));
    cr_assert_eq(size, sizeof key);
    cr_assert_eq(errno, 77);
    fill_some(d, things);
    for (unsigned i = 0; i < SOME; i++) {
        thing *t = wr_value_dict_popitem(d, &key, &size);
        cr_assert_not_null(t);
        cr_assert_eq(size, sizeof key);
        cr_assert_eq(t->id, key);
        cr_assert_eq(seen[key]++, 0);
        cr_assert_eq(wr_value_dict_len(d), SOME - i - 1);
        wr_release(t);
    }
    cr_assert_null(wr_value_dict_popitem(d, NULL, NULL));
    wr_value_dict_set_str(d, "a long one", things[0]);
    size = 9;
    cr_assert_null(wr_value_dict_popitem(d, &key, &size), "it does not fit");
    cr_assert_eq(errno, ENOSPC);
    cr_assert_eq(size, 10);
    cr_assert_eq(wr_value_dict_len(d), 1);
    void *obj = wr_value_dict_popitem(d, NULL, NULL);
    cr_assert_eq(obj, things[0]);
    wr_release(obj);
    errno = 0;
    cr_assert_null(wr_value_dict_popitem(d, &key, NULL));
    cr_assert_eq(errno, EINVAL);
    cr_assert_null(wr_value_dict_popitem(NULL, NULL, NULL));
    release_some(things);
    wr_value_dict_free(d);
}

Test(value_dict, popitem_empties_a_large_dictionary_in_no_time)
{
    enum { MANY_ITEMS = RACE_SIZE(200000, 20000) };
    wr_value_dict *d = dict_new();
    thing *t = thing_new(1);
    for (uint64_t i = 0; i < MANY_ITEMS; i++)
        wr_value_dict_set_u64(d, i, t);
    for (uint64_t i = 0; i < MANY_ITEMS; i++) {
        void *obj = wr_value_dict_popitem(d, NULL, NULL);
        cr_assert_eq(obj, t);
        wr_release(obj);
    }
    cr_assert_eq(wr_value_dict_len(d), 0);
    wr_release(t);
    wr_value_dict_free(d);
}

/* CPython: make_weak_valued_dict_from_dict, ..._from_weak_valued_dict, weak_valued_dict_update, threaded_weak_value_dict_copy */
Test(value_dict, copies_and_updates_take_over_all_that_is_there)
{
    wr_value_dict *d = dict_new();
    thing *things[SOME], *mine = thing_new(5), *late = thing_new(5);
    unsigned seen[SOME];
    fill_some(d, things);
    wr_value_dict *copy = wr_value_dict_copy(d);
    cr_assert_eq(walk(copy, seen), SOME);
    wr_value_dict_set_u64(copy, 5, mine);
    thing *got = wr_value_dict_get_u64(d, 5);
    cr_assert_eq(got, things[5], "they have nothing in common");
    wr_release(got);
    cr_assert_eq(wr_value_dict_update(d, copy), 0);
    got = wr_value_dict_get_u64(d, 5);
    cr_assert_eq(got, mine);
    wr_release(got);
    cr_assert_eq(wr_value_dict_update(d, d), 0);
    cr_assert_eq(walk(d, seen), SOME);

    struct wr_value_dict_item items[] = {{"a", 1, mine}, {"b", 1, things[1]}, {"a", 1, late}};
    wr_value_dict *small = wr_value_dict_from_items(NULL, items, 3);
    cr_assert_not_null(small);
    cr_assert_eq(wr_value_dict_len(small), 2);
    cr_assert(maps_to(small, "a", late), "later ones win");
    cr_assert(maps_to(small, "b", things[1]));
    cr_assert_eq(wr_value_dict_update_items(d, items, 2), 0);
    cr_assert_eq(wr_value_dict_len(d), SOME + 2);
    cr_assert_eq(wr_value_dict_update_items(d, NULL, 0), 0);

    /* CPython: weak_valued_union */
    wr_value_dict *both = wr_value_dict_union(d, small);
    cr_assert_eq(wr_value_dict_len(both), SOME + 2);
    cr_assert(maps_to(both, "a", late), "the second's");
    cr_assert(maps_to(d, "a", mine));

    wr_value_dict_free(small);
    wr_value_dict_free(both);
    wr_value_dict_free(copy);
    release_some(things);
    wr_release(mine);
    wr_release(late);
    cr_assert_eq(wr_value_dict_len(d), 0);
    wr_value_dict_free(d);
}

Test(value_dict, an_update_from_itself_changes_nothing)
{
    fail_alloc_install();
    wr_value_dict *d = dict_new();
    thing *things[SOME];
    unsigned seen[SOME];
    fill_some(d, things);
    fail_alloc_all(true);
    cr_assert_eq(wr_value_dict_update(d, d), 0, "no entry is made anew");
    cr_assert_not(fail_alloc_hit());
    fail_alloc_all(false);
    cr_assert_eq(walk(d, seen), SOME);
    release_some(things);
    cr_assert_eq(wr_value_dict_len(d), 0);
    wr_value_dict_free(d);
}

Test(value_dict, copies_that_find_no_memory_leave_nothing_behind)
{
    fail_alloc_install();
    wr_value_dict *d = dict_new();
    thing *things[SOME];
    fill_some(d, things);
    unsigned failed = 0;
    for (long n = 1;; n += 7) {
        fail_alloc_at(n);
        wr_value_dict *copy = wr_value_dict_copy(d);
        bool hit = fail_alloc_hit();
        cr_assert(copy != NULL || (hit && errno == ENOMEM));
        failed += copy == NULL; /* a table that cannot grow is no failure */
        wr_value_dict_free(copy);
        if (!hit)
            break;
    }
    cr_assert_gt(failed, SOME / 14);
    cr_assert_eq(wr_value_dict_len(d), SOME);
    for (unsigned i = 0; i < SOME; i++)
        cr_assert_eq(wr_strong_count(things[i]), 1);
    release_some(things);
    wr_value_dict_free(d);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(value_dict, none_is_refused_by_what_goes_through_all)
{
    wr_value_dict *d = dict_new();
    wr_value_dict_iter it;
    struct wr_value_dict_item item = {"k", 1, NULL};
    struct wr_value_dict_ref ref;
    errno = 0;
    wr_value_dict_iter_begin(&it, NULL);
    cr_assert_eq(errno, EINVAL);
    cr_assert(!wr_value_dict_iter_next(&it, &item));
    cr_assert(!wr_value_dict_iter_next_ref(&it, &ref));
    wr_value_dict_iter_end(&it);
    cr_assert_eq(wr_value_dict_update(d, NULL), -EINVAL);
    cr_assert_eq(wr_value_dict_update(NULL, d), -EINVAL);
    cr_assert_eq(wr_value_dict_update_items(NULL, &item, 1), -EINVAL);
    cr_assert_eq(wr_value_dict_update_items(d, NULL, 1), -EINVAL);
    item.value = NULL;
    cr_assert_eq(wr_value_dict_update_items(d, &item, 1), -EINVAL);
    errno = 0;
    cr_assert_null(wr_value_dict_from_items(NULL, &item, 1));
    cr_assert_eq(errno, EINVAL);
    errno = 0;
    cr_assert_null(wr_value_dict_copy(NULL));
    cr_assert_eq(errno, EINVAL);
    wr_value_dict_free(d);
}

/* Two dictionaries that update each other at once: no lock is held while another one is taken. */
static void *updater(void *ctx)
{
    wr_value_dict **pair = ctx;
    for (unsigned i = 0; i < RACE_SIZE(300, 30); i++)
        RACE_CHECK(wr_value_dict_update(pair[0], pair[1]) == 0);
    return NULL;
}

Test(value_dict, dictionaries_may_update_each_other_at_once)
{
    wr_value_dict *d = dict_new(), *e = dict_new(), *pairs[2][2] = {{d, e}, {e, d}};
    thing *things[SOME];
    unsigned seen[SOME];
    pthread_t threads[2];
    fill_some(d, things);
    for (unsigned i = 0; i < 2; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, updater, pairs[i]), 0);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    cr_assert_eq(walk(d, seen), SOME);
    cr_assert_eq(walk(e, seen), SOME);
    release_some(things);
    wr_value_dict_free(d);
    wr_value_dict_free(e);
}

/* ---- removals --------------------------------------------------------------------------------------------- */

struct obituary {
    wr_value_dict *d;
    atomic_uint n;
    char last[400];
    size_t size;
    unsigned long destroyed; /* when it was called */
    bool frees;
};

static void obituary_write(const void *key, size_t size, void *ctx)
{
    struct obituary *o = ctx;
    atomic_fetch_add(&o->n, 1);
    cr_assert_leq(size, sizeof o->last);
    memcpy(o->last, key, size);
    o->size = size;
    o->destroyed = destroyed();
    if (o->frees) {
        wr_value_dict_free(o->d);
        o->d = NULL;
    }
}

static wr_value_dict *heard_new(struct obituary *o, wr_queue *queue)
{
    struct wr_value_dict_options options = {
        .struct_size = sizeof options, .on_removal = obituary_write, .ctx = o, .queue = queue};
    o->d = wr_value_dict_new(&options);
    cr_assert_not_null(o->d);
    return o->d;
}

static void check_law(wr_queue *queue, uint64_t armed, uint64_t pending, uint64_t delivered, uint64_t cancelled)
{
    struct wr_queue_stats stats;
    wr_queue_stats(queue, &stats);
    cr_assert_eq(stats.armed, armed);
    cr_assert_eq(stats.pending, pending);
    cr_assert_eq(stats.delivered, delivered);
    cr_assert_eq(stats.cancelled, cancelled);
    cr_assert_eq(stats.watched, armed + pending + delivered + cancelled);
}

Test(value_dict_removal, who_asked_hears_of_deaths_and_of_nothing_else)
{
    struct obituary o = {.n = 0};
    wr_queue *queue = wr_queue_new("obituaries");
    wr_value_dict *d = heard_new(&o, queue);
    thing *t = thing_new(1), *u = thing_new(2), *v = thing_new(3);
    char long_key[300];
    void *out;
    memset(long_key, 'l', sizeof long_key);
    wr_value_dict_set_str(d, "set over", t);
    wr_value_dict_set_str(d, "set over", u);
    wr_value_dict_set_str(d, "removed", t);
    wr_value_dict_remove_str(d, "removed");
    wr_value_dict_set_str(d, "removed", t);
    wr_value_dict_remove_if_str(d, "removed", t);
    wr_value_dict_set_str(d, "popped", t);
    wr_release(wr_value_dict_pop_str(d, "popped"));
    wr_value_dict_set_str(d, "replaced", t);
    wr_value_dict_replace_str(d, "replaced", t, u);
    cr_assert_eq(wr_value_dict_setdefault_str(d, "default", t, &out), 0);
    wr_release(out);
    wr_value_dict_set(d, long_key, sizeof long_key, v);
    check_law(queue, 4, 0, 0, 5);
    wr_release(t);
    cr_assert_eq(destroyed(), 1);
    cr_assert_eq(wr_value_dict_len(d), 3);
    check_law(queue, 3, 1, 0, 5);
    cr_assert_eq(o.n, 0, "not before the queue is drained");
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert_eq(o.n, 1);
    cr_assert_eq(o.size, strlen("default"));
    cr_assert_eq(memcmp(o.last, "default", o.size), 0);
    wr_release(v);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert_eq(o.size, sizeof long_key);
    cr_assert_eq(memcmp(o.last, long_key, o.size), 0);
    wr_value_dict_clear(d);
    wr_release(u);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 0);
    check_law(queue, 0, 0, 2, 7);
    wr_value_dict_free(d);
    wr_queue_free(queue);
}

Test(value_dict_removal, all_keys_of_one_object_come_in_the_order_of_deaths_after_destroy)
{
    struct obituary o = {.n = 0};
    wr_value_dict *d = heard_new(&o, WR_QUEUE_INLINE);
    thing *t = thing_new(1);
    for (uint64_t i = 0; i < 10; i++)
        wr_value_dict_set_u64(d, i, t);
    wr_release(t);
    cr_assert_eq(o.n, 10, "inline: at once");
    cr_assert_eq(o.destroyed, 1, "after destroy");
    wr_value_dict_free(d);
    cr_assert_eq(wr_barrier(), 0);
}

Test(value_dict_removal, a_dictionary_may_be_freed_by_what_hears_of_its_own_entry)
{
    for (unsigned is_inline = 0; is_inline < 2; is_inline++) {
        struct obituary o = {.n = 0, .frees = true};
        wr_queue *queue = is_inline ? WR_QUEUE_INLINE : wr_queue_new("obituaries");
        wr_value_dict *d = heard_new(&o, queue);
        thing *t = thing_new(1), *u = thing_new(2);
        wr_value_dict_set_str(d, "t", t);
        wr_value_dict_set_str(d, "u", u);
        wr_release(t);
        if (!is_inline)
            cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
        cr_assert_eq(o.n, 1);
        cr_assert_null(o.d);
        wr_release(u);
        cr_assert_eq(o.n, 1);
        if (!is_inline) {
            check_law(queue, 0, 0, 1, 1);
            wr_queue_free(queue);
        }
    }
    cr_assert_eq(wr_barrier(), 0);
}

Test(value_dict_removal, what_is_pending_outlives_the_dictionary_unless_it_is_cancelled)
{
    fail_alloc_install();
    for (unsigned cancel = 0; cancel < 3; cancel++) {
        struct obituary o = {.n = 0};
        wr_queue *queue = wr_queue_new("obituaries");
        wr_value_dict *d = heard_new(&o, queue);
        thing *t = thing_new(1), *u = thing_new(2);
        wr_value_dict_set_str(d, "t", t);
        wr_value_dict_set_str(d, "u", t);
        wr_value_dict_set_str(d, "v", u);
        wr_release(t);
        wr_value_dict_free(d);
        wr_release(u);
        cr_assert_eq(wr_barrier(), 0);
        check_law(queue, 0, 2, 0, 1);
        if (cancel == 1) {
            cr_assert_eq(wr_queue_cancel_all(queue), 0);
            check_law(queue, 0, 0, 0, 3);
        }
        wr_queue_free(queue);
        cr_assert_eq(o.n, cancel == 1 ? 0 : 2, "free delivers what is pending");
    }
    /* Against the contract, but not fatal: the queue is freed first, and the entry dies after that. */
    struct obituary o = {.n = 0};
    wr_queue *queue = wr_queue_new("obituaries");
    wr_value_dict *d = heard_new(&o, queue);
    thing *t = thing_new(1);
    wr_value_dict_set_str(d, "t", t);
    wr_queue_free(queue);
    wr_release(t);
    cr_assert_eq(o.n, 0);
    wr_value_dict_free(d);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(value_dict_removal, deaths_need_no_memory_to_be_heard_of)
{
    fail_alloc_install();
    struct obituary o = {.n = 0};
    wr_queue *queue = wr_queue_new("obituaries");
    wr_value_dict *d = heard_new(&o, queue);
    thing *things[SOME];
    fill_some(d, things);
    fail_alloc_all(true);
    release_some(things);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), SOME);
    fail_alloc_all(false);
    cr_assert_eq(o.n, SOME);
    wr_value_dict_free(d);
    wr_queue_free(queue);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

/* Each entry is taken out by the death, which is heard of, or by the verb, which says so: never both, never neither. */
struct ending {
    struct obituary o;
    thing *t;
    int err;
    bool clears;
    wr_value_dict_iter it;
};

static void ending_prepare(void *ctx)
{
    struct ending *e = ctx;
    struct wr_value_dict_item item;
    e->t = thing_new(1);
    atomic_store(&e->o.n, 0);
    RACE_CHECK(wr_value_dict_set_str(e->o.d, "k", e->t) == 0);
    wr_value_dict_iter_begin(&e->it, e->o.d);
    RACE_CHECK(wr_value_dict_iter_next(&e->it, &item));
    wr_release(item.value);
}

static void ending_remove(void *ctx)
{
    struct ending *e = ctx;
    e->err = wr_value_dict_remove_str(e->o.d, "k");
}

static void ending_drop(void *ctx)
{
    wr_release(((struct ending *)ctx)->t);
}

static unsigned ending_judge(void *ctx)
{
    struct ending *e = ctx;
    wr_value_dict_iter_end(&e->it);
    RACE_CHECK(wr_value_dict_len(e->o.d) == 0);
    RACE_CHECK((e->err == 0) + atomic_load(&e->o.n) == 1);
    return e->err == 0;
}

Test(value_dict_removal, remove_beside_death)
{
    struct ending e = {.err = 0};
    wr_value_dict *d = heard_new(&e.o, WR_QUEUE_INLINE);
    const struct race race = {.name = "remove beside a death that is heard of",
                              .prepare = ending_prepare,
                              .sides = {ending_remove, ending_drop},
                              .judge = ending_judge,
                              .outcomes = {"death won", "remove won"},
                              .ctx = &e};
    cr_assert(race_run(&race));
    wr_value_dict_free(d);
}

/* ---- misuse ----------------------------------------------------------------------------------------------- */

Test(value_dict, bad_arguments_are_refused)
{
    wr_value_dict *d = dict_new();
    thing *t = thing_new(1);
    struct maker maker = {.calls = 0};
    void *out = d;
    wr_value_dict *const ds[] = {NULL, d, d};
    const char *const keys[] = {"k", NULL, NULL};
    for (unsigned i = 0; i < 2; i++) {
        cr_assert_eq(wr_value_dict_set(ds[i], keys[i], 1, t), -EINVAL);
        errno = 0;
        cr_assert_null(wr_value_dict_get(ds[i], keys[i], 1));
        cr_assert_eq(errno, EINVAL);
        errno = 0;
        WR_GUARD {
            cr_assert_null(wr_value_dict_peek(ds[i], keys[i], 1));
        }
        cr_assert_eq(errno, EINVAL);
        errno = 0;
        cr_assert(!wr_value_dict_contains(ds[i], keys[i], 1));
        cr_assert_eq(errno, EINVAL);
        errno = 0;
        cr_assert_null(wr_value_dict_pop(ds[i], keys[i], 1));
        cr_assert_eq(errno, EINVAL);
        cr_assert_eq(wr_value_dict_remove(ds[i], keys[i], 1), -EINVAL);
        cr_assert_eq(wr_value_dict_remove_if(ds[i], keys[i], 1, t), -EINVAL);
        cr_assert_eq(wr_value_dict_setdefault(ds[i], keys[i], 1, t, &out), -EINVAL);
        cr_assert_eq(wr_value_dict_get_or_create(ds[i], keys[i], 1, make, &maker, &out), -EINVAL);
    }
    errno = 0;
    cr_assert_eq(wr_value_dict_len(NULL), 0);
    cr_assert_eq(errno, EINVAL);
    cr_assert_eq(wr_value_dict_set_str(d, "k", NULL), -EINVAL);
    cr_assert_eq(wr_value_dict_set_str(d, NULL, t), -EINVAL);
    cr_assert_eq(wr_value_dict_remove_if_str(d, "k", NULL), -EINVAL);
    cr_assert_eq(wr_value_dict_setdefault_str(d, "k", NULL, &out), -EINVAL);
    cr_assert_eq(wr_value_dict_setdefault_str(d, "k", t, NULL), -EINVAL);
    cr_assert_eq(wr_value_dict_get_or_create_str(d, "k", NULL, NULL, &out), -EINVAL);
    cr_assert_eq(wr_value_dict_get_or_create_str(d, "k", make, &maker, NULL), -EINVAL);
    cr_assert_eq(out, d);
    cr_assert_eq(maker.calls, 0);
    cr_assert_eq(wr_value_dict_len(d), 0);
    wr_release(t);
    wr_value_dict_free(d);
}

Test(value_dict, peek_of_a_type_that_does_not_wait_panics, .signal = SIGABRT)
{
    wr_value_dict *d = dict_new();
    void *t = wr_new(&plain_type);
    wr_value_dict_set_u64(d, 1, t);
    wr_guard_enter();
    (void)wr_value_dict_peek_u64(d, 1);
}

/* ---- no memory -------------------------------------------------------------------------------------------- */

/* Runs @call with each of its allocations failed in turn; the dictionary must be as it was, empty. */
static void fail_each(wr_value_dict *d, int (*call)(wr_value_dict *d, void *fresh, void **out))
{
    for (long n = 1;; n++) {
        thing *fresh = thing_new(1);
        void *out = NULL;
        fail_alloc_at(n);
        int err = call(d, fresh, &out);
        if (!fail_alloc_hit()) {
            cr_assert_eq(err, 0);
            cr_assert_gt(n, 2, "nothing was failed");
            wr_release(out);
            wr_release(fresh);
            return;
        }
        cr_assert_eq(err, -ENOMEM, "allocation %ld", n);
        cr_assert_null(out);
        cr_assert_eq(wr_value_dict_len(d), 0);
        cr_assert(!wr_value_dict_contains_str(d, "k"));
        cr_assert_eq(wr_strong_count(fresh), 1);
        wr_release(fresh);
    }
}

static int call_set(wr_value_dict *d, void *fresh, void **out)
{
    (void)out;
    return wr_value_dict_set_str(d, "k", fresh);
}

static int call_setdefault(wr_value_dict *d, void *fresh, void **out)
{
    return wr_value_dict_setdefault_str(d, "k", fresh, out);
}

static int make_fresh(const void *key, size_t size, void *ctx, void **obj)
{
    (void)key;
    (void)size;
    *obj = wr_retain(ctx);
    return 0;
}

static int call_get_or_create(wr_value_dict *d, void *fresh, void **out)
{
    return wr_value_dict_get_or_create_str(d, "k", make_fresh, fresh, out);
}

Test(value_dict, each_allocation_failed_in_turn_changes_nothing)
{
    fail_alloc_install();
    int (*const calls[])(wr_value_dict *, void *, void **) = {call_set, call_setdefault, call_get_or_create};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        wr_value_dict *d = dict_new();
        fail_each(d, calls[i]);
        cr_assert_eq(wr_value_dict_len(d), 0);
        wr_value_dict_free(d);
    }
    for (size_t size = 0; size < 1000; size += 900) {
        for (long n = 1;; n++) {
            struct wr_value_dict_options options = {.struct_size = sizeof options, .initial_size = size};
            fail_alloc_at(n);
            errno = 0;
            wr_value_dict *d = wr_value_dict_new(&options);
            if (!fail_alloc_hit()) {
                cr_assert_not_null(d);
                wr_value_dict_free(d);
                break;
            }
            cr_assert_null(d);
            cr_assert_eq(errno, ENOMEM);
        }
    }
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(value_dict, a_failed_set_keeps_the_old_object)
{
    fail_alloc_install();
    wr_value_dict *d = dict_new();
    thing *old = thing_new(1), *new = thing_new(2);
    wr_value_dict_set_str(d, "k", old);
    fail_alloc_all(true);
    cr_assert_eq(wr_value_dict_set_str(d, "k", new), -ENOMEM);
    cr_assert(maps_to(d, "k", old));
    cr_assert_eq(wr_value_dict_remove_str(d, "k"), 0, "taking out needs no memory");
    wr_release(old);
    fail_alloc_all(false);
    wr_release(new);
    wr_value_dict_free(d);
}

Test(value_dict, dying_and_freeing_need_no_memory)
{
    enum { N = 5000 };
    fail_alloc_install();
    wr_value_dict *d = dict_new();
    static thing *things[N];
    for (uint64_t i = 0; i < N; i++) {
        things[i] = thing_new(i);
        cr_assert_eq(wr_value_dict_set_u64(d, i, things[i]), 0);
    }
    fail_alloc_all(true);
    for (uint64_t i = 0; i < N; i += 2)
        wr_release(things[i]);
    cr_assert_eq(wr_value_dict_len(d), N / 2);
    wr_value_dict_free(d);
    for (uint64_t i = 1; i < N; i += 2)
        wr_release(things[i]);
    cr_assert_eq(destroyed(), N);
    fail_alloc_all(false);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(value_dict, memory_returns_after_mass_death)
{
    enum { N = 50000 };
    fail_alloc_install();
    wr_value_dict *d = dict_new();
    static thing *things[N];
    for (unsigned round = 0; round < 2; round++) {
        for (uint64_t i = 0; i < N; i++) {
            things[i] = thing_new(i);
            cr_assert_eq(wr_value_dict_set_u64(d, i, things[i]), 0);
        }
        for (uint64_t i = 0; i < N; i++)
            wr_release(things[i]);
        cr_assert_eq(wr_barrier(), 0);
        cr_assert_leq(fail_alloc_live(), 1 + 2 * 64, "the dictionary, its arrays, and some that are being moved to");
    }
    wr_value_dict_free(d);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

/* ---- races ------------------------------------------------------------------------------------------------ */

struct fight {
    wr_value_dict *d;
    thing *t, *u;
    void *got, *got2;
    unsigned long dead_before;
    int err, err2;
    bool dead_first;
};

static void fight_prepare_one(void *ctx)
{
    struct fight *f = ctx;
    f->t = thing_new(1);
    f->got = f->got2 = NULL;
    f->dead_before = destroyed();
    RACE_CHECK(wr_value_dict_set_str(f->d, "k", f->t) == 0);
}

static void fight_drop(void *ctx)
{
    wr_release(((struct fight *)ctx)->t);
}

static void fight_get(void *ctx)
{
    struct fight *f = ctx;
    f->got = wr_value_dict_get_str(f->d, "k");
}

static unsigned judge_get_beside_death(void *ctx)
{
    struct fight *f = ctx;
    bool got = f->got != NULL;
    RACE_CHECK(!got || f->got == f->t);
    RACE_CHECK(destroyed() == f->dead_before + !got);
    wr_release(f->got);
    RACE_CHECK(destroyed() == f->dead_before + 1);
    RACE_CHECK(wr_value_dict_len(f->d) == 0);
    return got;
}

Test(value_dict, get_beside_death)
{
    struct fight f = {.d = dict_new()};
    const struct race race = {.name = "get beside death",
                              .prepare = fight_prepare_one,
                              .sides = {fight_get, fight_drop},
                              .judge = judge_get_beside_death,
                              .outcomes = {"death won", "get won"},
                              .ctx = &f};
    cr_assert(race_run(&race));
    wr_value_dict_free(f.d);
}

static void fight_prepare_two(void *ctx)
{
    struct fight *f = ctx;
    fight_prepare_one(ctx);
    f->u = thing_new(2);
}

static void fight_set(void *ctx)
{
    struct fight *f = ctx;
    f->dead_first = destroyed() != f->dead_before;
    f->err = wr_value_dict_set_str(f->d, "k", f->u);
}

static unsigned judge_set_beside_death(void *ctx)
{
    struct fight *f = ctx;
    RACE_CHECK(f->err == 0);
    RACE_CHECK(destroyed() == f->dead_before + 1);
    RACE_CHECK(wr_value_dict_len(f->d) == 1);
    RACE_CHECK(maps_to(f->d, "k", f->u));
    wr_release(f->u);
    RACE_CHECK(wr_value_dict_len(f->d) == 0);
    return f->dead_first;
}

Test(value_dict, set_beside_the_death_of_the_replaced)
{
    struct fight f = {.d = dict_new()};
    const struct race race = {.name = "set beside death of the replaced",
                              .prepare = fight_prepare_two,
                              .sides = {fight_set, fight_drop},
                              .judge = judge_set_beside_death,
                              .outcomes = {"set began first", "death was first"},
                              .ctx = &f};
    cr_assert(race_run(&race));
    wr_value_dict_free(f.d);
}

static void fight_remove(void *ctx)
{
    struct fight *f = ctx;
    f->err = wr_value_dict_remove_str(f->d, "k");
}

static unsigned judge_remove(void *ctx)
{
    struct fight *f = ctx;
    RACE_CHECK(f->err == 0 || f->err == -ENOENT);
    RACE_CHECK(destroyed() == f->dead_before + 1);
    RACE_CHECK(wr_value_dict_len(f->d) == 0);
    return f->err == 0;
}

Test(value_dict, remove_beside_death)
{
    struct fight f = {.d = dict_new()};
    const struct race race = {.name = "remove beside death",
                              .prepare = fight_prepare_one,
                              .sides = {fight_remove, fight_drop},
                              .judge = judge_remove,
                              .outcomes = {"death won", "remove won"},
                              .ctx = &f};
    cr_assert(race_run(&race));
    wr_value_dict_free(f.d);
}

/* An object with so many entries that its death takes a while; "k" is the last to be taken out. */
enum { CROWD = 300 };

static void instant_prepare(void *ctx)
{
    struct fight *f = ctx;
    fight_prepare_two(ctx);
    for (uint64_t i = 0; i < CROWD; i++)
        RACE_CHECK(wr_value_dict_set_u64(f->d, i, f->t) == 0);
}

/* Once the object is seen dead, no entry of it is there for anybody. */
static void instant_look(void *ctx)
{
    struct fight *f = ctx;
    void *out = NULL;
    wr_weak *weak = f->got;
    while (!wr_weak_is_dead(weak))
        race_pause();
    f->dead_first = wr_value_dict_len(f->d) == 0;
    RACE_CHECK(!wr_value_dict_contains_str(f->d, "k"));
    RACE_CHECK(wr_value_dict_get_str(f->d, "k") == NULL);
    RACE_CHECK(wr_value_dict_pop_str(f->d, "k") == NULL);
    RACE_CHECK(wr_value_dict_remove_str(f->d, "k") == -ENOENT);
    RACE_CHECK(wr_value_dict_remove_if_str(f->d, "k", f->t) == -ENOENT);
    RACE_CHECK(wr_value_dict_replace_str(f->d, "k", f->t, f->u) == -ENOENT);
    RACE_CHECK(wr_value_dict_popitem(f->d, NULL, NULL) == NULL);
    wr_value_dict_iter it;
    struct wr_value_dict_item item;
    struct wr_value_dict_ref ref;
    wr_value_dict_iter_begin(&it, f->d);
    RACE_CHECK(!wr_value_dict_iter_next(&it, &item));
    wr_value_dict_iter_end(&it);
    wr_value_dict_iter_begin(&it, f->d);
    RACE_CHECK(!wr_value_dict_iter_next_ref(&it, &ref));
    wr_value_dict_iter_end(&it);
    RACE_CHECK(wr_value_dict_setdefault_str(f->d, "k", f->u, &out) == 0);
    RACE_CHECK(out == f->u);
    wr_release(out);
}

static unsigned instant_judge(void *ctx)
{
    struct fight *f = ctx;
    RACE_CHECK(maps_to(f->d, "k", f->u));
    RACE_CHECK(wr_value_dict_len(f->d) == 1);
    wr_release(f->u);
    wr_weak_release(f->got);
    f->got = NULL;
    return f->dead_first ? RACE_NONE : 0;
}

static void instant_prepare_weak(void *ctx)
{
    struct fight *f = ctx;
    instant_prepare(ctx);
    f->got = wr_downgrade(f->t);
}

Test(value_dict, from_the_instant_of_death_nothing_is_there_any_more)
{
    struct fight f = {.d = dict_new()};
    const struct race race = {.name = "looks in the instant of death",
                              .prepare = instant_prepare_weak,
                              .sides = {instant_look, fight_drop},
                              .judge = instant_judge,
                              .outcomes = {"entries still linked"},
                              .rounds = RACE_ROUNDS / 20,
                              .ctx = &f};
    cr_assert(race_run(&race));
    wr_value_dict_free(f.d);
}

static void fight_pop(void *ctx)
{
    struct fight *f = ctx;
    f->got = wr_value_dict_pop_str(f->d, "k");
}

static void fight_pop2(void *ctx)
{
    struct fight *f = ctx;
    f->got2 = wr_value_dict_pop_str(f->d, "k");
}

static unsigned judge_pops(void *ctx)
{
    struct fight *f = ctx;
    RACE_CHECK((f->got == NULL) != (f->got2 == NULL));
    RACE_CHECK(wr_value_dict_len(f->d) == 0);
    RACE_CHECK(wr_strong_count(f->t) == 2);
    unsigned first = f->got != NULL;
    wr_release(f->got);
    wr_release(f->got2);
    wr_release(f->t);
    return first;
}

/* CPython: threaded_weak_valued_pop */
Test(value_dict, pop_beside_pop_gives_it_to_one)
{
    struct fight f = {.d = dict_new()};
    const struct race race = {.name = "pop beside pop",
                              .prepare = fight_prepare_one,
                              .sides = {fight_pop, fight_pop2},
                              .judge = judge_pops,
                              .outcomes = {"second", "first"},
                              .ctx = &f};
    cr_assert(race_run(&race));
    wr_value_dict_free(f.d);
}

static void fight_prepare_none(void *ctx)
{
    struct fight *f = ctx;
    f->t = thing_new(1);
    f->u = thing_new(2);
    f->got = f->got2 = NULL;
}

static void fight_setdefault(void *ctx)
{
    struct fight *f = ctx;
    f->err = wr_value_dict_setdefault_str(f->d, "k", f->t, &f->got);
}

static void fight_setdefault2(void *ctx)
{
    struct fight *f = ctx;
    f->err2 = wr_value_dict_setdefault_str(f->d, "k", f->u, &f->got2);
}

static unsigned judge_setdefaults(void *ctx)
{
    struct fight *f = ctx;
    RACE_CHECK(f->err == 0 && f->err2 == 0);
    RACE_CHECK(f->got == f->got2);
    RACE_CHECK(wr_value_dict_len(f->d) == 1);
    unsigned first = f->got == f->t;
    wr_release(f->got);
    wr_release(f->got2);
    wr_release(f->t);
    wr_release(f->u);
    RACE_CHECK(wr_value_dict_len(f->d) == 0);
    return first;
}

/* CPython: threaded_weak_valued_setdefault */
Test(value_dict, setdefault_beside_setdefault_gives_both_the_same)
{
    struct fight f = {.d = dict_new()};
    const struct race race = {.name = "setdefault beside setdefault",
                              .prepare = fight_prepare_none,
                              .sides = {fight_setdefault, fight_setdefault2},
                              .judge = judge_setdefaults,
                              .outcomes = {"second", "first"},
                              .ctx = &f};
    cr_assert(race_run(&race));
    wr_value_dict_free(f.d);
}

enum { WAKE = 8 };

struct wake {
    wr_value_dict *d;
    unsigned round;
    thing *things[WAKE];
    unsigned long dead_before, dead_at_begin, dead_at_end;
};

static void wake_prepare(void *ctx)
{
    struct wake *w = ctx;
    /* Every other time much too large, so that each death begins to shrink its shard. */
    struct wr_value_dict_options options = {.struct_size = sizeof options, .initial_size = w->round++ % 2 ? 8000 : 1};
    w->d = wr_value_dict_new(&options);
    RACE_CHECK(w->d != NULL);
    for (uint64_t i = 0; i < WAKE; i++) {
        w->things[i] = thing_new(i);
        RACE_CHECK(wr_value_dict_set_u64(w->d, i, w->things[i]) == 0);
        RACE_CHECK(wr_value_dict_set_u64(w->d, i + WAKE, w->things[i]) == 0);
    }
    w->dead_before = destroyed();
}

static void wake_free(void *ctx)
{
    struct wake *w = ctx;
    w->dead_at_begin = destroyed() - w->dead_before;
    wr_value_dict_free(w->d);
    w->dead_at_end = destroyed() - w->dead_before;
}

static void wake_drop(void *ctx)
{
    struct wake *w = ctx;
    for (unsigned i = 0; i < WAKE; i++)
        wr_release(w->things[i]);
}

static unsigned wake_judge(void *ctx)
{
    struct wake *w = ctx;
    RACE_CHECK(destroyed() == w->dead_before + WAKE);
    return w->dead_at_end == 0 ? 0 : w->dead_at_begin == WAKE ? 1 : 2;
}

Test(value_dict, free_beside_deaths)
{
    struct wake w = {.d = NULL};
    const struct race race = {.name = "free beside deaths",
                              .prepare = wake_prepare,
                              .sides = {wake_free, wake_drop},
                              .judge = wake_judge,
                              .outcomes = {"free first", "deaths first", "interleaved"},
                              .rounds = RACE_ROUNDS / 4,
                              .ctx = &w};
    cr_assert(race_run(&race));
}

static void fight_remove_if(void *ctx)
{
    struct fight *f = ctx;
    f->err2 = wr_value_dict_remove_if_str(f->d, "k", f->t);
}

static unsigned judge_remove_if_beside_set(void *ctx)
{
    struct fight *f = ctx;
    RACE_CHECK(f->err == 0);
    RACE_CHECK(f->err2 == 0 || f->err2 == -ENOENT);
    RACE_CHECK(maps_to(f->d, "k", f->u));
    wr_release(f->t);
    RACE_CHECK(maps_to(f->d, "k", f->u));
    wr_release(f->u);
    return f->err2 == 0;
}

Test(value_dict, remove_if_beside_set_spares_the_new_object)
{
    struct fight f = {.d = dict_new()};
    const struct race race = {.name = "remove_if beside set",
                              .prepare = fight_prepare_two,
                              .sides = {fight_set, fight_remove_if},
                              .judge = judge_remove_if_beside_set,
                              .outcomes = {"set won", "remove_if won"},
                              .ctx = &f};
    cr_assert(race_run(&race));
    wr_value_dict_free(f.d);
}

/* One replaces the key's object again and again and lets the old one die at once; a look-up always finds one. */
static void *replacer(void *ctx)
{
    struct fight *f = ctx;
    thing *old = f->t;
    for (unsigned i = 0; i < RACE_SIZE(300000, 20000); i++) {
        thing *new = thing_new(i);
        RACE_CHECK(wr_value_dict_set_str(f->d, "k", new) == 0);
        wr_release(old);
        old = new;
    }
    return old;
}

Test(value_dict, a_key_that_is_being_replaced_is_never_missed)
{
    struct fight f = {.d = dict_new(), .t = thing_new(0)};
    wr_value_dict_set_str(f.d, "k", f.t);
    pthread_t thread;
    (void)race_seed();
    cr_assert_eq(pthread_create(&thread, NULL, replacer, &f), 0);
    for (unsigned i = 0; i < RACE_SIZE(300000, 20000); i++) {
        void *got = wr_value_dict_get_str(f.d, "k");
        cr_assert_not_null(got);
        wr_release(got);
        cr_assert(wr_value_dict_contains_str(f.d, "k"));
    }
    void *last;
    pthread_join(thread, &last);
    cr_assert_eq(wr_value_dict_len(f.d), 1);
    wr_release(last);
    cr_assert_eq(wr_value_dict_len(f.d), 0);
    wr_value_dict_free(f.d);
}

/* Lasting keys are found at every look, while thousands of others come and die. */
struct tide {
    wr_value_dict *d;
    thing *lasting[64];
    atomic_bool over;
    atomic_uint writers;
};

static void *tide_writer(void *ctx)
{
    enum { N = RACE_SIZE(20000, 3000) };
    struct tide *tide = ctx;
    uint64_t base = 1000 + N * atomic_fetch_add(&tide->writers, 1);
    thing **things = malloc(N * sizeof *things);
    for (unsigned round = 0; round < RACE_SIZE(5, 2); round++) {
        for (uint64_t i = 0; i < N; i++) {
            things[i] = thing_new(i);
            RACE_CHECK(wr_value_dict_set_u64(tide->d, base + i, things[i]) == 0);
        }
        for (uint64_t i = 0; i < N; i++)
            wr_release(things[i]);
    }
    free(things);
    return NULL;
}

static void *tide_reader(void *ctx)
{
    struct tide *tide = ctx;
    uint64_t key = 0;
    while (!atomic_load_explicit(&tide->over, memory_order_relaxed)) {
        key = (key + 1) % 64;
        void *got = wr_value_dict_get_u64(tide->d, key);
        RACE_CHECK(got == tide->lasting[key]);
        wr_release(got);
        RACE_CHECK(wr_value_dict_contains_u64(tide->d, key));
        RACE_CHECK(!wr_value_dict_contains_u64(tide->d, key + 100));
    }
    return NULL;
}

/* CPython: threaded_weak_valued_consistency, weak_valued_len_race */
Test(value_dict, gets_beside_growing_and_shrinking_miss_no_lasting_key)
{
    struct wr_value_dict_options options = {.struct_size = sizeof options, .initial_size = 1};
    struct tide tide = {.d = wr_value_dict_new(&options)};
    pthread_t readers[2], writers[2];
    for (uint64_t key = 0; key < 64; key++) {
        tide.lasting[key] = thing_new(key);
        wr_value_dict_set_u64(tide.d, key, tide.lasting[key]);
    }
    for (unsigned i = 0; i < 2; i++)
        cr_assert_eq(pthread_create(&readers[i], NULL, tide_reader, &tide), 0);
    for (unsigned i = 0; i < 2; i++)
        cr_assert_eq(pthread_create(&writers[i], NULL, tide_writer, &tide), 0);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(writers[i], NULL);
    atomic_store(&tide.over, true);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(readers[i], NULL);
    cr_assert_eq(wr_value_dict_len(tide.d), 64);
    for (uint64_t key = 0; key < 64; key++)
        wr_release(tide.lasting[key]);
    cr_assert_eq(wr_value_dict_len(tide.d), 0);
    wr_value_dict_free(tide.d);
}

static int fight_make(const void *key, size_t size, void *ctx, void **obj)
{
    struct fight *f = ctx;
    (void)key;
    (void)size;
    *obj = wr_retain(f->t);
    return 0;
}

static void fight_get_or_create(void *ctx)
{
    struct fight *f = ctx;
    f->err2 = wr_value_dict_get_or_create_str(f->d, "k", fight_make, f, &f->got);
}

static unsigned judge_set_beside_create(void *ctx)
{
    struct fight *f = ctx;
    RACE_CHECK(f->err == 0 && f->err2 == 0);
    RACE_CHECK(f->got == f->t || f->got == f->u);
    RACE_CHECK(maps_to(f->d, "k", f->u)); /* whichever was first, the set is what stays */
    RACE_CHECK(wr_value_dict_len(f->d) == 1);
    unsigned created = f->got == f->t;
    wr_release(f->got);
    wr_release(f->t);
    wr_release(f->u);
    RACE_CHECK(wr_value_dict_len(f->d) == 0);
    return created;
}

Test(value_dict, set_beside_create_wins_or_comes_after)
{
    struct fight f = {.d = dict_new()};
    const struct race race = {.name = "set beside create",
                              .prepare = fight_prepare_none,
                              .sides = {fight_get_or_create, fight_set},
                              .judge = judge_set_beside_create,
                              .outcomes = {"set won", "create first"},
                              .ctx = &f};
    cr_assert(race_run(&race));
    wr_value_dict_free(f.d);
}

/* Herd: many threads want one key at once. */
struct herd {
    wr_value_dict *d;
    atomic_uint calls, ready, returns;
    unsigned n;
    int result;
    void *got[8];
    int err[8];
};

static int herd_make(const void *key, size_t size, void *ctx, void **obj)
{
    struct herd *herd = ctx;
    (void)key;
    (void)size;
    atomic_fetch_add(&herd->calls, 1);
    for (unsigned i = 0; i < 50; i++)
        sched_yield(); /* others come and find the flight, or do not */
    if (herd->result != 0)
        return herd->result;
    thing *t = thing_new(9);
    *obj = t;
    return 0;
}

static void *herd_member(void *ctx)
{
    struct herd *herd = ctx;
    unsigned i = atomic_fetch_add(&herd->ready, 1);
    race_wait(&herd->ready, herd->n);
    herd->err[i] = wr_value_dict_get_or_create_str(herd->d, "k", herd_make, herd, &herd->got[i]);
    return NULL;
}

static void herd_run(struct herd *herd)
{
    pthread_t threads[8];
    herd->n = 8;
    atomic_store(&herd->ready, 0);
    atomic_store(&herd->calls, 0);
    for (unsigned i = 0; i < 8; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, herd_member, herd), 0);
    for (unsigned i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
}

Test(value_dict, a_herd_of_eight_creates_once)
{
    struct herd herd = {.d = dict_new()};
    for (unsigned round = 0; round < RACE_SIZE(200, 50); round++) {
        herd_run(&herd);
        cr_assert_eq(herd.calls, 1);
        cr_assert_eq(wr_strong_count(herd.got[0]), 8);
        for (unsigned i = 0; i < 8; i++) {
            cr_assert_eq(herd.err[i], 0);
            cr_assert_eq(herd.got[i], herd.got[0]);
        }
        for (unsigned i = 0; i < 8; i++)
            wr_release(herd.got[i]);
        cr_assert_eq(wr_value_dict_len(herd.d), 0);
    }
    wr_value_dict_free(herd.d);
}

Test(value_dict, an_error_goes_to_all_who_waited)
{
    struct herd herd = {.d = dict_new(), .result = -EIO};
    unsigned shared = 0;
    for (unsigned round = 0; round < RACE_SIZE(200, 50); round++) {
        herd_run(&herd);
        cr_assert_geq(herd.calls, 1);
        shared += 8 - herd.calls;
        for (unsigned i = 0; i < 8; i++)
            cr_assert_eq(herd.err[i], -EIO);
    }
    cr_assert_gt(shared, 0, "nobody ever waited");
    cr_assert_eq(wr_value_dict_len(herd.d), 0);
    wr_value_dict_free(herd.d);
}

/* The creator's thread ends within create. Who waited is told; who came later creates. */
struct quitter {
    wr_value_dict *d;
    atomic_uint begun, coming;
    struct maker maker;
    void *got;
    int err;
};

static int quitter_make(const void *key, size_t size, void *ctx, void **obj)
{
    struct quitter *q = ctx;
    (void)key;
    (void)size;
    (void)obj;
    atomic_store(&q->begun, 1);
    race_wait(&q->coming, 1);
    for (unsigned i = 0; i < 20; i++)
        sched_yield();
    pthread_exit(NULL);
}

static void *quitter_thread(void *ctx)
{
    struct quitter *q = ctx;
    void *out;
    wr_value_dict_get_or_create_str(q->d, "k", quitter_make, q, &out);
    abort();
}

Test(value_dict, who_waits_for_a_creator_that_exits_is_told)
{
    struct quitter q = {.d = dict_new()};
    unsigned told = 0;
    for (unsigned round = 0; round < 2000 && told < 3; round++) {
        pthread_t thread;
        atomic_store(&q.begun, 0);
        atomic_store(&q.coming, 0);
        cr_assert_eq(pthread_create(&thread, NULL, quitter_thread, &q), 0);
        race_wait(&q.begun, 1);
        atomic_store(&q.coming, 1);
        q.got = NULL;
        q.err = wr_value_dict_get_or_create_str(q.d, "k", make, &q.maker, &q.got);
        cr_assert(q.err == 0 || q.err == -EDEADLK);
        cr_assert_eq(q.got != NULL, q.err == 0);
        told += q.err == -EDEADLK;
        wr_release(q.got);
        pthread_join(thread, NULL);
    }
    cr_assert_gt(told, 0);
    cr_assert_eq(wr_value_dict_len(q.d), 0);
    wr_value_dict_free(q.d);
}

/* A create that lasts as long as it is told to. */
struct sitter {
    wr_value_dict *d;
    atomic_uint begun, may_end;
    thing *t;
    void *got;
    int err;
};

static int sitter_make(const void *key, size_t size, void *ctx, void **obj)
{
    struct sitter *s = ctx;
    (void)key;
    (void)size;
    atomic_store(&s->begun, 1);
    race_wait(&s->may_end, 1);
    *obj = wr_retain(s->t);
    return 0;
}

static void *sitter_thread(void *ctx)
{
    struct sitter *s = ctx;
    RACE_CHECK(wr_value_dict_get_or_create_timed_str(s->d, "k", sitter_make, s, 1, &s->got) == 0);
    return NULL;
}

Test(value_dict, who_waits_for_a_create_may_give_up)
{
    struct sitter s = {.d = dict_new(), .t = thing_new(1)};
    pthread_t thread;
    void *out = NULL;
    cr_assert_eq(pthread_create(&thread, NULL, sitter_thread, &s), 0);
    race_wait(&s.begun, 1);
    for (unsigned timeout = 0; timeout < 3; timeout++)
        cr_assert_eq(wr_value_dict_get_or_create_timed_str(s.d, "k", make, NULL, timeout, &out), -ETIMEDOUT);
    cr_assert_null(out);
    atomic_store(&s.may_end, 1);
    cr_assert_eq(wr_value_dict_get_or_create_timed_str(s.d, "k", make, NULL, UINT_MAX, &out), 0);
    cr_assert_eq(out, s.t);
    pthread_join(thread, NULL);
    cr_assert_eq(s.got, s.t, "its own time is its own");
    cr_assert_eq(wr_strong_count(s.t), 3, "who gave up has no share");
    wr_release(out);
    wr_release(s.got);
    wr_release(s.t);
    struct maker maker = {.calls = 0};
    cr_assert_eq(wr_value_dict_get_or_create_timed_u64(s.d, 1, make, &maker, 0, &out), 0, "nobody to wait for");
    wr_release(out);
    wr_value_dict_free(s.d);
}

static void leaver_create(void *ctx)
{
    struct sitter *s = ctx;
    RACE_CHECK(wr_value_dict_get_or_create_str(s->d, "k", sitter_make, s, &s->got) == 0);
}

static void leaver_wait(void *ctx)
{
    struct sitter *s = ctx;
    void *out = NULL;
    race_wait(&s->begun, 1);
    atomic_store(&s->may_end, 1);
    s->err = wr_value_dict_get_or_create_timed_str(s->d, "k", sitter_make, s, 0, &out);
    RACE_CHECK((out != NULL) == (s->err == 0));
    wr_release(out);
}

static void leaver_prepare(void *ctx)
{
    struct sitter *s = ctx;
    s->t = thing_new(1);
    atomic_store(&s->begun, 0);
    atomic_store(&s->may_end, 0);
}

static unsigned leaver_judge(void *ctx)
{
    struct sitter *s = ctx;
    RACE_CHECK(s->err == 0 || s->err == -ETIMEDOUT);
    RACE_CHECK(wr_strong_count(s->t) == 2);
    wr_release(s->got);
    wr_release(s->t);
    RACE_CHECK(wr_value_dict_len(s->d) == 0);
    return s->err == 0;
}

Test(value_dict, giving_up_beside_the_landing)
{
    struct sitter s = {.d = dict_new()};
    const struct race race = {.name = "giving up beside the landing",
                              .prepare = leaver_prepare,
                              .sides = {leaver_create, leaver_wait},
                              .judge = leaver_judge,
                              .outcomes = {"gave up", "landed"},
                              .rounds = RACE_ROUNDS / 4,
                              .ctx = &s};
    cr_assert(race_run(&race));
    wr_value_dict_free(s.d);
}

/* Another key's create does not hold one up: it waits for this caller, so a wait would last for ever. */
static int make_with_another_key_meanwhile(const void *key, size_t size, void *ctx, void **obj);

struct crossing {
    wr_value_dict *d;
    uint64_t key;
    void *got;
};

static void *crossing_thread(void *ctx)
{
    struct crossing *c = ctx;
    struct maker maker = {.calls = 0};
    RACE_CHECK(wr_value_dict_get_or_create_u64(c->d, c->key, make, &maker, &c->got) == 0);
    RACE_CHECK(maker.calls == 1);
    return NULL;
}

static int make_with_another_key_meanwhile(const void *key, size_t size, void *ctx, void **obj)
{
    struct crossing *c = ctx;
    pthread_t thread;
    (void)key;
    (void)size;
    RACE_CHECK(pthread_create(&thread, NULL, crossing_thread, c) == 0);
    pthread_join(thread, NULL);
    *obj = thing_new(1);
    return 0;
}

Test(value_dict, creates_of_different_keys_do_not_wait_for_each_other)
{
    struct wr_value_dict_options options = {.struct_size = sizeof options,
                                            .initial_size = 1}; /* few shards: some keys share the flight's */
    struct crossing c = {.d = wr_value_dict_new(&options)};
    for (c.key = 1; c.key < 20; c.key++) {
        void *out;
        cr_assert_eq(wr_value_dict_get_or_create_u64(c.d, 0, make_with_another_key_meanwhile, &c, &out), 0);
        wr_release(out);
        wr_release(c.got);
    }
    wr_value_dict_free(c.d);
}

/* A cache life: a few keys, created, shared and dropped by all at once. */
struct cache {
    wr_value_dict *d;
    atomic_ulong made;
    atomic_uint n;
};

static void cache_last_words(thing *t)
{
    /* Re-enters the dictionary that it is dying out of. */
    (void)wr_value_dict_contains_u64(t->d, t->id);
    void *neighbour = wr_value_dict_get_u64(t->d, t->id + 1);
    if (neighbour != NULL)
        RACE_CHECK(((thing *)neighbour)->id == t->id + 1);
    wr_release(neighbour);
    RACE_CHECK(wr_value_dict_set_u64(t->d, t->id, t) == -ESTALE);
    int err = wr_value_dict_remove_if_u64(t->d, t->id, t);
    RACE_CHECK(err == -ENOENT);
}

static int cache_make(const void *key, size_t size, void *ctx, void **obj)
{
    struct cache *cache = ctx;
    thing *t = thing_new(0);
    RACE_CHECK(size == sizeof t->id);
    memcpy(&t->id, key, size);
    t->d = cache->d;
    t->last_words = cache_last_words;
    atomic_fetch_add_explicit(&cache->made, 1, memory_order_relaxed);
    *obj = t;
    return 0;
}

static void *cache_user(void *ctx)
{
    struct cache *cache = ctx;
    uint64_t random = race_seed() + atomic_fetch_add(&cache->n, 1);
    for (unsigned i = 0; i < RACE_SIZE(200000, 15000); i++) {
        uint64_t key = race_draw(&random) % 8;
        void *got = NULL, *again;
        RACE_CHECK(wr_value_dict_get_or_create_u64(cache->d, key, cache_make, cache, &got) == 0);
        RACE_CHECK(((thing *)got)->id == key);
        again = wr_value_dict_get_u64(cache->d, key);
        RACE_CHECK(again == got); /* while one is held there is no other */
        wr_release(again);
        if (race_draw(&random) % 16 == 0)
            sched_yield();
        wr_release(got);
    }
    return NULL;
}

Test(value_dict, a_cache_shared_by_all_has_one_object_per_key_and_loses_none)
{
    struct cache cache = {.d = dict_new()};
    pthread_t threads[4];
    (void)race_seed();
    for (unsigned i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, cache_user, &cache), 0);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    cr_assert_eq(destroyed(), atomic_load(&cache.made));
    cr_assert_eq(wr_value_dict_len(cache.d), 0);
    cr_assert_gt(atomic_load(&cache.made), 8, "nothing ever died");
    wr_value_dict_free(cache.d);
}

/* ---- memory that comes back ------------------------------------------------------------------------------ */

enum { MANY = 50000 };

static void fill(wr_value_dict *d, void **objects)
{
    for (uint64_t i = 0; i < MANY; i++) {
        objects[i] = wr_new(&plain_type);
        cr_assert_eq(wr_value_dict_set_u64(d, i, objects[i]), 0);
    }
}

Test(value_dict_memory, tables_shrink_when_all_that_was_in_them_has_died)
{
    static void *objects[MANY];
    fail_alloc_install();
    wr_value_dict *d = dict_new();
    fill(d, objects);
    long peak = fail_alloc_bytes();
    for (unsigned i = 0; i < MANY; i++)
        wr_release(objects[i]);
    cr_assert_eq(wr_value_dict_len(d), 0);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_lt(fail_alloc_bytes(), peak / 50, "%ld of %ld", fail_alloc_bytes(), peak);
    wr_value_dict_free(d);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(value_dict_memory, clearing_gives_the_table_back)
{
    static void *objects[MANY];
    fail_alloc_install();
    wr_value_dict *d = dict_new();
    fill(d, objects);
    wr_value_dict_clear(d);
    cr_assert_eq(wr_barrier(), 0);
    long cleared = fail_alloc_bytes();
    for (unsigned i = 0; i < MANY; i++)
        wr_release(objects[i]);
    wr_value_dict_free(d);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);

    /* The same objects and their side records without a dictionary that was ever large. */
    d = dict_new();
    for (unsigned i = 0; i < MANY; i++) {
        objects[i] = wr_new(&plain_type);
        cr_assert_eq(wr_value_dict_set_u64(d, 1, objects[i]), 0);
    }
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_lt(cleared, fail_alloc_bytes() + 64 * 1024, "%ld, %ld", cleared, fail_alloc_bytes());
    for (unsigned i = 0; i < MANY; i++)
        wr_release(objects[i]);
    wr_value_dict_free(d);
}

Test(value_dict_memory, room_that_was_asked_for_is_kept)
{
    fail_alloc_install();
    struct wr_value_dict_options options = {.struct_size = sizeof options, .initial_size = MANY};
    wr_value_dict *d = wr_value_dict_new(&options);
    void *obj = wr_new(&plain_type);
    for (uint64_t i = MANY; i < MANY + 2; i++) /* the object's second entry makes its side record */
        cr_assert_eq(wr_value_dict_set_u64(d, i, obj), 0);
    long calls = fail_alloc_calls();
    for (uint64_t i = 0; i < MANY / 2; i++)
        cr_assert_eq(wr_value_dict_set_u64(d, i, obj), 0);
    cr_assert_eq(fail_alloc_calls() - calls, MANY / 2, "one block for each entry, and none for arrays");
    wr_value_dict_free(d);
    wr_release(obj);
}

static char scratch[4];

static int create_and_scribble(const void *key, size_t size, void *ctx, void **obj)
{
    (void)ctx;
    memcpy(scratch, "xyz", 4);
    cr_assert_eq(size, 3);
    cr_assert_eq(memcmp(key, "abc", 3), 0);
    *obj = thing_new(1);
    return 0;
}

Test(value_dict, a_create_that_writes_over_the_callers_key_changes_nothing)
{
    wr_value_dict *d = dict_new();
    memcpy(scratch, "abc", 4);
    void *obj;
    cr_assert_eq(wr_value_dict_get_or_create_str(d, scratch, create_and_scribble, NULL, &obj), 0);
    cr_assert(maps_to(d, "abc", obj));
    cr_assert(maps_to(d, "xyz", NULL));
    wr_release(obj);
    wr_value_dict_free(d);
}
