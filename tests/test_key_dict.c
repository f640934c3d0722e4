/* Tests of the weak key dictionary: contract in the order of the header, keys by equality, then no memory, then races. */
#include <weakref/key_dict.h>

#include <weakref/debug.h>
#include <weakref/guard.h>
#include <weakref/object.h>
#include <weakref/weak.h>

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "fail_alloc.h"
#include "race.h"

enum { SOME = 100 };

typedef struct thing {
    uint64_t id;
    void (*last_words)(struct thing *t);
    wr_key_dict *d;
    void *strong;  /* released by destroy */
    wr_weak *weak; /* the same */
} thing;

static atomic_ulong n_destroyed;

static void thing_destroy(void *obj)
{
    thing *t = obj;
    if (t->last_words != NULL)
        t->last_words(t);
    wr_release(t->strong);
    wr_weak_release(t->weak);
    atomic_fetch_add_explicit(&n_destroyed, 1, memory_order_relaxed);
}

/* Called by thing_equal() in mid-operation. */
static void (*in_equal)(const thing *a, const thing *b);

static uint64_t thing_hash(const void *obj)
{
    return ((const thing *)obj)->id % 50;
}

static bool thing_equal(const void *a, const void *b)
{
    if (in_equal != NULL)
        in_equal(a, b);
    return ((const thing *)a)->id == ((const thing *)b)->id;
}

static const wr_type thing_type = {
    .name = "thing", .size = sizeof(thing), .destroy = thing_destroy, .hash = thing_hash, .equal = thing_equal};
static const wr_type deferred_type = {
    .name = "deferred", .size = sizeof(thing), .destroy = thing_destroy, .flags = WR_TYPE_DEFERRED};

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

static wr_key_dict *dict_new(void)
{
    wr_key_dict *d = wr_key_dict_new(NULL);
    cr_assert_not_null(d);
    return d;
}

static wr_key_dict *dict_with(unsigned flags, void (*release)(void *value))
{
    struct wr_key_dict_options options = {.struct_size = sizeof options, .flags = flags, .release = release};
    wr_key_dict *d = wr_key_dict_new(&options);
    cr_assert_not_null(d);
    return d;
}

static bool maps_to(wr_key_dict *d, const void *key, const void *value)
{
    void *got = wr_key_dict_get(d, key);
    bool same = got == value && wr_key_dict_contains(d, key) == (value != NULL);
    wr_release(got);
    return same;
}

static void fill(wr_key_dict *d, thing **keys)
{
    for (uint64_t i = 0; i < SOME; i++) {
        keys[i] = thing_new(i);
        thing *value = thing_new(i);
        cr_assert_eq(wr_key_dict_set(d, keys[i], value), 0);
        wr_release(value);
    }
}

static void release_all(thing **keys)
{
    for (unsigned i = 0; i < SOME; i++)
        wr_release(keys[i]);
}

/* ---- life, set, get --------------------------------------------------------------------------------------- */

/* CPython: weak_keys */
Test(key_dict, entries_leave_as_their_keys_die_and_values_follow)
{
    wr_key_dict *d = dict_new();
    thing *keys[SOME];
    fill(d, keys);
    cr_assert_eq(wr_key_dict_len(d), SOME);
    cr_assert_eq(destroyed(), 0, "the dictionary holds its values");
    for (unsigned i = 0; i < SOME; i++) {
        thing *value = wr_key_dict_get(d, keys[i]);
        cr_assert_eq(value->id, i);
        wr_release(value);
        cr_assert_eq(wr_weak_count(keys[i]), 0);
        cr_assert_eq(wr_strong_count(keys[i]), 1);
    }
    for (unsigned i = 0; i < SOME; i++) {
        wr_release(keys[i]);
        cr_assert_eq(wr_key_dict_len(d), SOME - i - 1);
    }
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(destroyed(), 2 * SOME);
    wr_key_dict_free(d);
}

Test(key_dict, freeing_releases_the_values_and_leaves_the_keys_alone)
{
    wr_key_dict *d = dict_new();
    thing *keys[SOME];
    fill(d, keys);
    wr_key_dict_free(d);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(destroyed(), SOME);
    release_all(keys);
    cr_assert_eq(destroyed(), 2 * SOME);
    wr_key_dict_free(NULL);
    wr_key_dict_clear(NULL);
}

Test(key_dict, by_default_an_object_equals_itself_alone)
{
    wr_key_dict *d = dict_new();
    thing *a = thing_new(1), *b = thing_new(1), *v = thing_new(2);
    cr_assert_eq(wr_key_dict_set(d, a, v), 0);
    cr_assert(maps_to(d, a, v));
    cr_assert(maps_to(d, b, NULL));
    cr_assert_eq(wr_key_dict_set(d, b, a), 0);
    cr_assert_eq(wr_key_dict_len(d), 2);
    cr_assert_eq(wr_key_dict_remove(d, b), 0);
    cr_assert_eq(wr_key_dict_set(d, a, b), 0);
    cr_assert(maps_to(d, a, b));
    cr_assert_eq(wr_key_dict_len(d), 1);
    wr_release(a);
    wr_release(b);
    wr_release(v);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(destroyed(), 3);
    wr_key_dict_free(d);
}

Test(key_dict, a_peeked_value_lives_until_the_guard_ends)
{
    wr_key_dict *d = dict_new();
    thing *k = thing_new(1), *v = thing_new(2);
    wr_key_dict_set(d, k, v);
    wr_release(v);
    WR_GUARD {
        thing *seen = wr_key_dict_peek(d, k);
        cr_assert_eq(seen, v);
        cr_assert_eq(wr_key_dict_remove(d, k), 0);
        cr_assert_null(wr_key_dict_peek(d, k));
        cr_assert_eq(wr_strong_count(seen), 1);
        wr_release(wr_retain(seen));
    }
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(destroyed(), 1);
    wr_release(k);
    wr_key_dict_free(d);
}

/* A value that holds its own key strongly holds itself. The recipe: weakly. */
Test(key_dict, a_value_that_holds_its_key_never_dies_but_one_that_holds_it_weakly_does)
{
    wr_key_dict *d = dict_new();
    thing *k = thing_new(1), *v = thing_new(2);
    v->strong = wr_retain(k);
    wr_key_dict_set(d, k, v);
    wr_weak *weak = wr_downgrade(k);
    wr_release(k);
    wr_release(v);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(destroyed(), 0);
    cr_assert_eq(wr_key_dict_len(d), 1);
    k = wr_upgrade(weak);
    cr_assert_not_null(k, "it is still there");
    cr_assert_eq(wr_key_dict_remove(d, k), 0, "the circle is broken by hand");
    wr_release(k);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(destroyed(), 2);
    wr_weak_release(weak);

    k = thing_new(1);
    v = thing_new(2);
    v->weak = wr_downgrade(k);
    wr_key_dict_set(d, k, v);
    wr_release(v);
    wr_release(k);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(destroyed(), 4);
    cr_assert_eq(wr_key_dict_len(d), 0);
    wr_key_dict_free(d);
}

static void words_of_the_dying(thing *t)
{
    void *out = t;
    thing *value = thing_new(7);
    cr_assert_eq(wr_key_dict_len(t->d), 0, "it left before its destroy");
    cr_assert_null(wr_key_dict_get(t->d, t));
    cr_assert(!wr_key_dict_contains(t->d, t));
    cr_assert_eq(wr_key_dict_set(t->d, t, value), -ESTALE);
    cr_assert_eq(wr_key_dict_setdefault(t->d, t, value, &out), -ESTALE);
    cr_assert_eq(out, t);
    cr_assert_eq(wr_key_dict_remove(t->d, t), -ENOENT);
    cr_assert_eq(wr_key_dict_remove_if(t->d, t, value), -ENOENT);
    cr_assert_eq(wr_key_dict_replace(t->d, t, value, value), -ENOENT);
    cr_assert_null(wr_key_dict_pop(t->d, t));
    wr_release(value);
}

Test(key_dict, a_destroy_may_use_the_dictionary_it_left_but_not_come_back)
{
    for (unsigned flags = 0; flags <= WR_KEYS_BY_EQUAL; flags++) {
        wr_key_dict *d = dict_with(flags, NULL);
        thing *k = thing_new(1);
        k->d = d;
        k->last_words = words_of_the_dying;
        wr_key_dict_set(d, k, k); /* its own value: never dies */
        cr_assert_eq(wr_key_dict_remove(d, k), 0);
        cr_assert_eq(wr_barrier(), 0);
        thing *v = thing_new(2);
        wr_key_dict_set(d, k, v);
        wr_release(v);
        wr_release(k);
        wr_key_dict_free(d);
    }
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(destroyed(), 6);
}

Test(key_dict, deferred_keys_leave_at_their_death)
{
    wr_key_dict *d = dict_new();
    thing *k = wr_new(&deferred_type), *v = thing_new(1);
    wr_key_dict_set(d, k, v);
    wr_release(v);
    WR_GUARD {
        wr_release(k);
        cr_assert_eq(wr_key_dict_len(d), 0);
        cr_assert(!wr_key_dict_contains(d, k));
    }
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(destroyed(), 2);
    wr_key_dict_free(d);
}

/* ---- remove, pop, setdefault ------------------------------------------------------------------------------ */

/* CPython: weak_keyed_delitem, weak_keyed_bad_delitem */
Test(key_dict, what_is_taken_out_is_said)
{
    wr_key_dict *d = dict_new();
    thing *k = thing_new(1), *v = thing_new(2), *w = thing_new(3);
    cr_assert_eq(wr_key_dict_remove(d, k), -ENOENT);
    cr_assert_null(wr_key_dict_pop(d, k));
    cr_assert_eq(wr_key_dict_replace(d, k, v, w), -ENOENT);
    wr_key_dict_set(d, k, v);
    cr_assert_eq(wr_key_dict_remove_if(d, k, w), -ENOENT);
    cr_assert_eq(wr_key_dict_replace(d, k, w, v), -ENOENT);
    cr_assert(maps_to(d, k, v));
    cr_assert_eq(wr_key_dict_replace(d, k, v, w), 0);
    cr_assert(maps_to(d, k, w));
    void *got = wr_key_dict_pop(d, k);
    cr_assert_eq(got, w);
    wr_release(got);
    cr_assert_eq(wr_key_dict_len(d), 0);
    wr_key_dict_set(d, k, v);
    cr_assert_eq(wr_key_dict_remove_if(d, k, v), 0);
    cr_assert_eq(wr_key_dict_remove(d, k), -ENOENT);
    wr_key_dict_set(d, k, v);
    wr_key_dict_clear(d);
    cr_assert(maps_to(d, k, NULL));
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_strong_count(v), 1);
    cr_assert_eq(wr_strong_count(w), 1);
    wr_release(k);
    wr_release(v);
    wr_release(w);
    wr_key_dict_free(d);
}

/* CPython: weak_keyed_dict_setdefault */
Test(key_dict, setdefault_keeps_what_is_there)
{
    wr_key_dict *d = dict_new();
    thing *k = thing_new(1), *v = thing_new(2), *w = thing_new(3);
    void *out = NULL;
    cr_assert_eq(wr_key_dict_setdefault(d, k, v, &out), 0);
    cr_assert_eq(out, v);
    wr_release(out);
    cr_assert_eq(wr_key_dict_setdefault(d, k, w, &out), 0);
    cr_assert_eq(out, v);
    wr_release(out);
    cr_assert_eq(wr_strong_count(w), 1);
    wr_release(k);
    wr_release(v);
    wr_release(w);
    wr_key_dict_free(d);
}

/* ---- all of them ------------------------------------------------------------------------------------------ */

static size_t walk(wr_key_dict *d, unsigned *seen)
{
    wr_key_dict_iter it;
    struct wr_key_dict_item item;
    size_t n = 0;
    memset(seen, 0, SOME * sizeof *seen);
    wr_key_dict_iter_begin(&it, d);
    for (; wr_key_dict_iter_next(&it, &item); n++) {
        cr_assert_eq(((thing *)item.key)->id, ((thing *)item.value)->id);
        seen[((thing *)item.key)->id]++;
        wr_release(item.value);
        wr_release(item.key);
    }
    cr_assert(!wr_key_dict_iter_next(&it, &item));
    wr_key_dict_iter_end(&it);
    return n;
}

/* CPython: weak_keyed_iters, weak_keys_destroy_while_iterating, weak_keyed_len_race (in one thread) */
Test(key_dict, an_iterator_meets_each_entry_once_while_keys_die)
{
    wr_key_dict *d = dict_new();
    thing *keys[SOME];
    unsigned seen[SOME];
    fill(d, keys);
    cr_assert_eq(walk(d, seen), SOME);
    for (unsigned i = 0; i < SOME; i++)
        cr_assert_eq(seen[i], 1);

    wr_key_dict_iter it;
    wr_weak *ref;
    size_t n = 0;
    wr_key_dict_iter_begin(&it, d);
    for (; wr_key_dict_iter_next_ref(&it, &ref); n++) {
        cr_assert_eq(wr_key_dict_len(d), SOME - n, "len inside an iteration");
        thing *k = wr_upgrade(ref);
        uint64_t id = k->id;
        cr_assert_eq(k, keys[id]);
        wr_release(k);
        wr_release(keys[id]);
        keys[id] = NULL;
        cr_assert(wr_weak_is_dead(ref));
        wr_weak_release(ref);
        cr_assert_eq(wr_barrier(), 0);
        cr_assert_eq(destroyed(), 2 * n + 1, "the value of the entry stood on stays");
    }
    wr_key_dict_iter_end(&it);
    cr_assert_eq(n, SOME);
    cr_assert_eq(wr_key_dict_len(d), 0);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(destroyed(), 2 * SOME);
    wr_key_dict_free(d);
}

/* CPython: weak_keyed_dict_popitem */
Test(key_dict, popitem_takes_out_one_after_the_other)
{
    wr_key_dict *d = dict_new();
    thing *keys[SOME];
    bool seen[SOME] = {false};
    struct wr_key_dict_item item;
    fill(d, keys);
    for (unsigned i = 0; i < SOME; i++) {
        cr_assert(wr_key_dict_popitem(d, &item));
        thing *k = item.key, *v = item.value;
        cr_assert_eq(k->id, v->id);
        cr_assert(!seen[k->id]);
        seen[k->id] = true;
        cr_assert_eq(wr_key_dict_len(d), SOME - i - 1);
        wr_release(k);
        wr_release(v);
    }
    cr_assert(!wr_key_dict_popitem(d, &item));
    release_all(keys);
    wr_key_dict_free(d);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(destroyed(), 2 * SOME);
}

/* CPython: make_weak_keyed_dict_from_dict, ..._from_weak_keyed_dict, weak_keyed_dict_update, weak_keyed_union */
Test(key_dict, copies_updates_and_unions_take_over_all_that_is_there)
{
    wr_key_dict *d = dict_new();
    thing *keys[SOME], *v = thing_new(5);
    unsigned seen[SOME];
    fill(d, keys);
    wr_key_dict *copy = wr_key_dict_copy(d);
    cr_assert_eq(walk(copy, seen), SOME);
    wr_key_dict_set(copy, keys[5], v);
    cr_assert(!maps_to(d, keys[5], v));
    wr_key_dict *both = wr_key_dict_union(d, copy);
    cr_assert(maps_to(both, keys[5], v));
    cr_assert_eq(wr_key_dict_update(d, copy), 0);
    cr_assert(maps_to(d, keys[5], v));
    cr_assert_eq(wr_key_dict_update(d, d), 0);

    struct wr_key_dict_item items[] = {{keys[0], v}, {keys[1], v}, {keys[0], keys[1]}};
    wr_key_dict *small = wr_key_dict_from_items(NULL, items, 3);
    cr_assert_eq(wr_key_dict_len(small), 2);
    cr_assert(maps_to(small, keys[0], keys[1]), "later ones win");
    cr_assert_eq(wr_key_dict_update_items(small, items, 1), 0);
    cr_assert(maps_to(small, keys[0], v));
    items[1].value = NULL;
    errno = 0;
    cr_assert_null(wr_key_dict_from_items(NULL, items, 3));
    cr_assert_eq(errno, EINVAL);

    wr_key_dict_free(small);
    wr_key_dict_free(both);
    wr_key_dict_free(copy);
    release_all(keys);
    wr_release(v);
    cr_assert_eq(wr_barrier(), 0); /* a key was a value, too */
    cr_assert_eq(wr_key_dict_len(d), 0);
    wr_key_dict_free(d);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(destroyed(), 2 * SOME + 1);
}

/* Two dictionaries that update each other at once: no lock is held while another one is taken. */
static void *updater(void *ctx)
{
    wr_key_dict **pair = ctx;
    for (unsigned i = 0; i < RACE_SIZE(300, 30); i++)
        RACE_CHECK(wr_key_dict_update(pair[0], pair[1]) == 0);
    return NULL;
}

Test(key_dict, dictionaries_may_update_each_other_at_once)
{
    wr_key_dict *d = dict_new(), *e = dict_with(WR_KEYS_BY_EQUAL, NULL), *pairs[2][2] = {{d, e}, {e, d}};
    thing *keys[SOME];
    unsigned seen[SOME];
    pthread_t threads[2];
    fill(d, keys);
    for (unsigned i = 0; i < 2; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, updater, pairs[i]), 0);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    cr_assert_eq(walk(d, seen), SOME);
    cr_assert_eq(walk(e, seen), SOME);
    release_all(keys);
    cr_assert_eq(wr_key_dict_len(d) + wr_key_dict_len(e), 0);
    wr_key_dict_free(d);
    wr_key_dict_free(e);
}

/* ---- keys by equality ------------------------------------------------------------------------------------- */

Test(key_dict, equal_objects_are_one_key_if_asked_for)
{
    wr_key_dict *d = dict_with(WR_KEYS_BY_EQUAL, NULL);
    thing *a = thing_new(1), *same = thing_new(1), *other = thing_new(51), *v = thing_new(2), *w = thing_new(3);
    void *plain = wr_new(&deferred_type);
    cr_assert_eq(wr_key_dict_set(d, a, v), 0);
    cr_assert(maps_to(d, same, v));
    cr_assert(maps_to(d, other, NULL), "an equal hash is not enough");
    cr_assert_eq(wr_key_dict_set(d, other, w), 0);
    cr_assert_eq(wr_key_dict_set(d, same, w), 0);
    cr_assert_eq(wr_key_dict_len(d), 2);
    cr_assert(maps_to(d, a, w));
    cr_assert_eq(wr_key_dict_set(d, plain, v), 0, "no equal: by identity");
    cr_assert(maps_to(d, plain, v));
    void *got = wr_key_dict_pop(d, plain);
    cr_assert_eq(got, v);
    wr_release(got);
    cr_assert_null(wr_key_dict_pop(d, plain));
    cr_assert_eq(wr_key_dict_setdefault(d, plain, v, &got), 0);
    wr_release(got);
    WR_GUARD {
        cr_assert_eq(wr_key_dict_peek(d, same), w);
    }
    wr_release(same);
    cr_assert(maps_to(d, a, w), "the first one is the key, and its life is the entry's");
    same = thing_new(1);
    wr_release(a);
    cr_assert(maps_to(d, same, NULL));
    cr_assert_eq(wr_key_dict_len(d), 2);
    cr_assert_eq(wr_key_dict_set(d, same, v), 0);
    a = thing_new(1);
    got = wr_key_dict_pop(d, a);
    cr_assert_eq(got, v);
    wr_release(got);
    cr_assert_eq(wr_key_dict_set(d, same, v), 0);
    cr_assert_eq(wr_key_dict_remove_if(d, a, w), -ENOENT);
    cr_assert_eq(wr_key_dict_replace(d, a, v, w), 0);
    cr_assert_eq(wr_key_dict_remove(d, a), 0);
    cr_assert_eq(wr_key_dict_remove(d, a), -ENOENT);
    wr_release(a);
    wr_release(same);
    wr_release(other);
    wr_release(plain);
    wr_release(v);
    wr_release(w);
    cr_assert_eq(wr_key_dict_len(d), 0);
    wr_key_dict_free(d);
}

static wr_key_dict *equal_d;
static thing **equal_keys;
static unsigned equal_calls;

/* Lets go of the candidate, and of others, while they are compared; and changes the dictionary. */
static void cascade(const thing *a, const thing *b)
{
    static bool inside;
    (void)b;
    if (inside)
        return;
    inside = true;
    equal_calls++;
    thing *extra = thing_new(77);
    cr_assert_eq(wr_key_dict_set(equal_d, extra, extra), 0);
    cr_assert_eq(wr_key_dict_remove(equal_d, extra), 0);
    wr_release(extra);
    for (unsigned i = 0; i < SOME; i++) {
        if (equal_keys[i] != NULL && (equal_keys[i] == a || equal_calls % 3 == 0)) {
            thing *k = equal_keys[i];
            equal_keys[i] = NULL;
            wr_release(k);
            break;
        }
    }
    inside = false;
}

/* CPython: weak_keyed_cascading_deletes */
Test(key_dict, an_equal_that_drops_other_keys_and_changes_the_dictionary)
{
    thing *keys[SOME];
    wr_key_dict *d = dict_with(WR_KEYS_BY_EQUAL, NULL);
    fill(d, keys); /* hashes of two each */
    equal_d = d;
    equal_keys = keys;
    in_equal = cascade;
    for (uint64_t round = 0; round < 2; round++) {
        for (uint64_t id = 0; id < SOME; id++) {
            thing *probe = thing_new(id), *v = thing_new(id);
            wr_release(wr_key_dict_get(d, probe));
            cr_assert_eq(wr_key_dict_set(d, probe, v), 0);
            (void)wr_key_dict_remove(d, probe);
            wr_release(wr_key_dict_pop(d, probe));
            wr_release(probe);
            wr_release(v);
        }
    }
    in_equal = NULL;
    cr_assert_gt(equal_calls, SOME / 2);
    release_all(keys);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_key_dict_len(d), 0);
    wr_key_dict_free(d);
}

/* ---- raw values ------------------------------------------------------------------------------------------- */

static atomic_uint n_given_back;

static void give_back(void *value)
{
    atomic_fetch_add(&n_given_back, 1);
    free(value);
}

Test(key_dict, raw_values_are_given_back_when_nobody_can_look_at_them)
{
    wr_key_dict *d = dict_with(WR_VALUES_RAW, give_back);
    thing *a = thing_new(1), *b = thing_new(2), *c = thing_new(3);
    char *kept = malloc(8);
    void *out;
    cr_assert_eq(wr_key_dict_set(d, a, malloc(8)), 0);
    cr_assert_eq(wr_key_dict_set(d, b, malloc(8)), 0);
    cr_assert_eq(wr_key_dict_set(d, c, kept), 0);
    WR_GUARD {
        char *value = wr_key_dict_get(d, a);
        cr_assert_eq(wr_key_dict_set(d, a, malloc(8)), 0);
        wr_release(b);
        value[0] = 1; /* still whole */
        cr_assert_eq(n_given_back, 0);
    }
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(n_given_back, 2);
    cr_assert_eq(wr_key_dict_pop(d, c), kept);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(n_given_back, 2, "it is the caller's");
    cr_assert_eq(wr_key_dict_setdefault(d, a, kept, &out), 0);
    cr_assert_neq(out, kept);
    cr_assert_eq(wr_key_dict_setdefault(d, c, kept, &out), 0);
    cr_assert_eq(out, kept);
    struct wr_key_dict_item item;
    cr_assert(wr_key_dict_popitem(d, &item));
    wr_release(item.key);
    free(item.value);
    errno = 0;
    cr_assert_null(wr_key_dict_copy(d), "two would own them");
    cr_assert_eq(errno, EINVAL);
    wr_key_dict_free(d);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(n_given_back, 3);
    wr_release(a);
    wr_release(c);
}

Test(key_dict, raw_values_may_be_anything_and_nobodys)
{
    wr_key_dict *d = dict_with(WR_VALUES_RAW, NULL);
    thing *a = thing_new(1);
    int number;
    cr_assert_eq(wr_key_dict_set(d, a, NULL), 0);
    cr_assert(wr_key_dict_contains(d, a));
    cr_assert_null(wr_key_dict_get(d, a));
    cr_assert_eq(wr_key_dict_replace(d, a, NULL, &number), 0);
    wr_key_dict *copy = wr_key_dict_copy(d);
    cr_assert_eq(wr_key_dict_get(copy, a), &number);
    cr_assert_eq(wr_key_dict_update(copy, d), 0);
    wr_key_dict *objects = dict_new();
    cr_assert_eq(wr_key_dict_update(objects, d), -EINVAL);
    wr_key_dict_free(objects);
    wr_key_dict_free(copy);
    cr_assert_eq(wr_key_dict_pop(d, a), &number);
    wr_release(a);
    wr_key_dict_free(d);
}

/* ---- misuse, no memory ------------------------------------------------------------------------------------ */

Test(key_dict, bad_arguments_are_refused)
{
    wr_key_dict *d = dict_new();
    thing *k = thing_new(1);
    void *out = d;
    struct wr_key_dict_item item = {NULL, NULL};
    wr_key_dict_iter it;
    wr_key_dict *const ds[] = {NULL, d};
    void *const keys[] = {k, NULL};
    for (unsigned i = 0; i < 2; i++) {
        cr_assert_eq(wr_key_dict_set(ds[i], keys[i], k), -EINVAL);
        cr_assert_eq(wr_key_dict_remove(ds[i], keys[i]), -EINVAL);
        cr_assert_eq(wr_key_dict_remove_if(ds[i], keys[i], k), -EINVAL);
        cr_assert_eq(wr_key_dict_replace(ds[i], keys[i], k, k), -EINVAL);
        cr_assert_eq(wr_key_dict_setdefault(ds[i], keys[i], k, &out), -EINVAL);
        errno = 0;
        cr_assert_null(wr_key_dict_get(ds[i], keys[i]));
        cr_assert_eq(errno, EINVAL);
        errno = 0;
        cr_assert(!wr_key_dict_contains(ds[i], keys[i]));
        cr_assert_eq(errno, EINVAL);
        errno = 0;
        cr_assert_null(wr_key_dict_pop(ds[i], keys[i]));
        cr_assert_eq(errno, EINVAL);
        errno = 0;
        WR_GUARD {
            cr_assert_null(wr_key_dict_peek(ds[i], keys[i]));
        }
        cr_assert_eq(errno, EINVAL);
    }
    cr_assert_eq(wr_key_dict_set(d, k, NULL), -EINVAL);
    cr_assert_eq(wr_key_dict_setdefault(d, k, k, NULL), -EINVAL);
    cr_assert_eq(out, d);
    errno = 0;
    cr_assert_eq(wr_key_dict_len(NULL), 0);
    cr_assert_eq(errno, EINVAL);
    cr_assert(!wr_key_dict_popitem(NULL, &item));
    cr_assert(!wr_key_dict_popitem(d, NULL));
    wr_key_dict_iter_begin(&it, NULL);
    cr_assert(!wr_key_dict_iter_next(&it, &item));
    wr_key_dict_iter_end(&it);
    cr_assert_eq(wr_key_dict_update(d, NULL), -EINVAL);
    cr_assert_null(wr_key_dict_copy(NULL));
    struct wr_key_dict_options bad[] = {{.struct_size = 0},
                                        {.struct_size = sizeof *bad, .flags = 4},
                                        {.struct_size = sizeof *bad, .release = give_back}};
    for (unsigned i = 0; i < 3; i++) {
        errno = 0;
        cr_assert_null(wr_key_dict_new(&bad[i]));
        cr_assert_eq(errno, EINVAL);
    }
    wr_release(k);
    wr_key_dict_free(d);
}

Test(key_dict, each_allocation_failed_in_turn_changes_nothing)
{
    fail_alloc_install();
    for (unsigned what = 0; what < 3; what++) {
        for (long n = 1;; n++) {
            wr_key_dict *d = dict_new();
            thing *k = thing_new(1), *v = thing_new(2), *w = thing_new(3);
            void *out = NULL;
            if (what == 1)
                cr_assert_eq(wr_key_dict_set(d, k, w), 0);
            fail_alloc_at(n);
            int err = what == 0   ? wr_key_dict_set(d, k, v)
                      : what == 1 ? wr_key_dict_replace(d, k, w, v)
                                  : wr_key_dict_setdefault(d, k, v, &out);
            bool hit = fail_alloc_hit();
            cr_assert_eq(err, hit ? -ENOMEM : 0);
            cr_assert_eq(out != NULL, what == 2 && !hit);
            cr_assert(maps_to(d, k, hit ? (what == 1 ? w : NULL) : v));
            wr_release(out);
            wr_key_dict_free(d);
            cr_assert_eq(wr_barrier(), 0);
            cr_assert_eq(wr_strong_count(v), 1);
            wr_release(k);
            wr_release(v);
            wr_release(w);
            if (!hit)
                break;
        }
    }
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

/* ---- races ------------------------------------------------------------------------------------------------ */

struct fight {
    wr_key_dict *d;
    thing *k, *k2, *v, *w;
    void *got, *got2;
    int err, err2;
};

static void fight_prepare(void *ctx)
{
    struct fight *f = ctx;
    f->k = thing_new(1);
    f->k2 = thing_new(1);
    f->v = thing_new(2);
    f->w = thing_new(3);
    f->got = f->got2 = NULL;
}

static void fight_setdefault(void *ctx)
{
    struct fight *f = ctx;
    f->err = wr_key_dict_setdefault(f->d, f->k, f->v, &f->got);
}

static void fight_setdefault2(void *ctx)
{
    struct fight *f = ctx;
    f->err2 = wr_key_dict_setdefault(f->d, f->k2, f->w, &f->got2);
}

static unsigned judge_setdefaults(void *ctx)
{
    struct fight *f = ctx;
    RACE_CHECK(f->err == 0 && f->err2 == 0);
    RACE_CHECK(f->got == f->got2 && (f->got == f->v || f->got == f->w));
    RACE_CHECK(wr_key_dict_len(f->d) == 1);
    unsigned first = f->got == f->v;
    wr_release(f->got);
    wr_release(f->got2);
    wr_release(f->k);
    wr_release(f->k2);
    RACE_CHECK(wr_key_dict_len(f->d) == 0);
    wr_release(f->v);
    wr_release(f->w);
    return first;
}

Test(key_dict, setdefault_of_equal_keys_beside_each_other_gives_both_the_same)
{
    struct fight f = {.d = dict_with(WR_KEYS_BY_EQUAL, NULL)};
    const struct race race = {.name = "setdefault beside setdefault of an equal key",
                              .prepare = fight_prepare,
                              .sides = {fight_setdefault, fight_setdefault2},
                              .judge = judge_setdefaults,
                              .outcomes = {"second", "first"},
                              .rounds = RACE_ROUNDS / 2,
                              .ctx = &f};
    cr_assert(race_run(&race));
    wr_key_dict_free(f.d);
}

static void fight_prepare_set(void *ctx)
{
    struct fight *f = ctx;
    fight_prepare(ctx);
    RACE_CHECK(wr_key_dict_set(f->d, f->k, f->v) == 0);
}

static void fight_drop_key(void *ctx)
{
    wr_release(((struct fight *)ctx)->k);
}

static void fight_get_equal(void *ctx)
{
    struct fight *f = ctx;
    f->got = wr_key_dict_get(f->d, f->k2);
}

static unsigned judge_get(void *ctx)
{
    struct fight *f = ctx;
    unsigned got = f->got != NULL;
    RACE_CHECK(!got || f->got == f->v);
    RACE_CHECK(wr_key_dict_len(f->d) == 0);
    wr_release(f->got);
    wr_release(f->k2);
    wr_release(f->v);
    wr_release(f->w);
    return got;
}

Test(key_dict, get_beside_the_death_of_an_equal_key)
{
    struct fight f = {.d = dict_with(WR_KEYS_BY_EQUAL, NULL)};
    const struct race race = {.name = "get beside the death of an equal key",
                              .prepare = fight_prepare_set,
                              .sides = {fight_get_equal, fight_drop_key},
                              .judge = judge_get,
                              .outcomes = {"death won", "get won"},
                              .rounds = RACE_ROUNDS / 2,
                              .ctx = &f};
    cr_assert(race_run(&race));
    wr_key_dict_free(f.d);
}

/* An equal key that is set while the first one dies has its own entry. */
static void fight_set_equal(void *ctx)
{
    struct fight *f = ctx;
    f->err = wr_key_dict_set(f->d, f->k2, f->w);
}

static unsigned judge_set(void *ctx)
{
    struct fight *f = ctx;
    RACE_CHECK(f->err == 0);
    void *got = wr_key_dict_get(f->d, f->k2);
    RACE_CHECK(got == NULL || got == f->w);
    RACE_CHECK(wr_key_dict_len(f->d) == (got != NULL));
    wr_release(got);
    wr_release(f->k2);
    RACE_CHECK(wr_key_dict_len(f->d) == 0);
    wr_release(f->v);
    wr_release(f->w);
    return got != NULL;
}

Test(key_dict, set_beside_the_death_of_an_equal_key)
{
    struct fight f = {.d = dict_with(WR_KEYS_BY_EQUAL, NULL)};
    const struct race race = {.name = "set beside the death of an equal key",
                              .prepare = fight_prepare_set,
                              .sides = {fight_set_equal, fight_drop_key},
                              .judge = judge_set,
                              .outcomes = {"went with the first", "its own"},
                              .rounds = RACE_ROUNDS / 2,
                              .ctx = &f};
    cr_assert(race_run(&race));
    wr_key_dict_free(f.d);
}

static void fight_pop(void *ctx)
{
    struct fight *f = ctx;
    f->got = wr_key_dict_pop(f->d, f->k);
}

static void fight_pop2(void *ctx)
{
    struct fight *f = ctx;
    f->got2 = wr_key_dict_pop(f->d, f->k);
}

static unsigned judge_pops(void *ctx)
{
    struct fight *f = ctx;
    RACE_CHECK((f->got == NULL) != (f->got2 == NULL));
    unsigned first = f->got != NULL;
    wr_release(f->got);
    wr_release(f->got2);
    wr_release(f->k);
    wr_release(f->k2);
    wr_release(f->v);
    wr_release(f->w);
    return first;
}

Test(key_dict, pop_beside_pop_gives_it_to_one)
{
    struct fight f = {.d = dict_new()};
    const struct race race = {.name = "pop beside pop",
                              .prepare = fight_prepare_set,
                              .sides = {fight_pop, fight_pop2},
                              .judge = judge_pops,
                              .outcomes = {"second", "first"},
                              .rounds = RACE_ROUNDS / 2,
                              .ctx = &f};
    cr_assert(race_run(&race));
    wr_key_dict_free(f.d);
}

/* Shared keys, private ones, equal ones, values replaced under readers, keys that die: all at once. */
struct crowd {
    wr_key_dict *d;
    thing *lasting[16];
    atomic_uint n;
};

static void *crowd_member(void *ctx)
{
    struct crowd *c = ctx;
    uint64_t random = race_seed() + atomic_fetch_add(&c->n, 1);
    for (unsigned i = 0; i < RACE_SIZE(60000, 4000); i++) {
        uint64_t id = race_draw(&random) % 16;
        thing *probe = race_draw(&random) % 2 ? wr_retain(c->lasting[id]) : thing_new(id), *v;
        switch (race_draw(&random) % 6) {
        case 0:
            v = thing_new(id);
            RACE_CHECK(wr_key_dict_set(c->d, probe, v) == 0);
            wr_release(v);
            break;
        case 1: { /* an equal key of this thread alone, perhaps the key for others, too */
            thing *brief = thing_new(16 + race_draw(&random) % 4);
            void *out;
            RACE_CHECK(wr_key_dict_setdefault(c->d, brief, brief, &out) == 0);
            RACE_CHECK(((thing *)out)->id == brief->id);
            (void)wr_key_dict_remove(c->d, brief);
            wr_release(out);
            wr_release(brief);
            break;
        }
        case 2:
            WR_GUARD {
                v = wr_key_dict_peek(c->d, probe);
                RACE_CHECK(v == NULL || v->id == id);
            }
            break;
        default:
            v = wr_key_dict_get(c->d, probe);
            RACE_CHECK(v != NULL && v->id == id); /* a lasting key is never missed */
            wr_release(v);
        }
        wr_release(probe);
    }
    return NULL;
}

/* CPython: threaded_weak_key_dict_copy: copies beside it all */
Test(key_dict, a_crowd_misses_no_lasting_key)
{
    struct crowd c = {.d = dict_with(WR_KEYS_BY_EQUAL, NULL)};
    pthread_t threads[3];
    (void)race_seed();
    for (uint64_t i = 0; i < 16; i++) {
        c.lasting[i] = thing_new(i);
        thing *v = thing_new(i);
        wr_key_dict_set(c.d, c.lasting[i], v);
        wr_release(v);
    }
    for (unsigned i = 0; i < 3; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, crowd_member, &c), 0);
    for (unsigned i = 0; i < RACE_SIZE(300, 30); i++) {
        wr_key_dict *copy = wr_key_dict_copy(c.d);
        cr_assert_not_null(copy);
        for (unsigned id = 0; id < 16; id++)
            cr_assert(wr_key_dict_contains(copy, c.lasting[id]));
        wr_key_dict_free(copy);
    }
    for (unsigned i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < 16; i++)
        wr_release(c.lasting[i]);
    cr_assert_eq(wr_barrier(), 0);
    wr_key_dict_clear(c.d); /* keys that are their own values */
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_key_dict_len(c.d), 0);
    wr_key_dict_free(c.d);
}
