/* Tests of the weak set: CPython's test_weakset.py by name, equality, misuse, no memory, races. */
#include <weakref/set.h>

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

typedef struct letter {
    uint64_t c;
    wr_set *left; /* what its destroy looks at */
} letter;

static atomic_ulong n_destroyed;

static uint64_t letter_hash(const void *obj)
{
    return ((const letter *)obj)->c % 4;
}

static bool letter_equal(const void *a, const void *b)
{
    return ((const letter *)a)->c == ((const letter *)b)->c;
}

static void letter_destroy(void *obj)
{
    letter *l = obj;
    if (l->left != NULL) {
        cr_assert(!wr_set_contains(l->left, l));
        cr_assert_null(wr_set_get(l->left, l));
        cr_assert_eq(wr_set_add(l->left, l), -ESTALE);
        cr_assert_eq(wr_set_remove(l->left, l), -ENOENT);
        cr_assert_eq(wr_set_discard(l->left, l), 0);
    }
    atomic_fetch_add_explicit(&n_destroyed, 1, memory_order_relaxed);
}

static const wr_type letter_type = {
    .name = "letter", .size = sizeof(letter), .destroy = letter_destroy, .hash = letter_hash, .equal = letter_equal};

enum { ALL = 26 };

/* a to z, with our references; sets compare by equality in most tests, as Python's do. */
static letter *all[ALL];

static letter *letter_new(uint64_t c)
{
    letter *l = wr_new(&letter_type);
    cr_assert_not_null(l);
    l->c = c;
    return l;
}

static void setup(void)
{
    for (unsigned i = 0; i < ALL; i++)
        all[i] = letter_new('a' + i);
}

static void teardown(void)
{
    for (unsigned i = 0; i < ALL; i++)
        wr_release(all[i]);
    cr_assert_eq(wr_barrier(), 0);
}

TestSuite(set, .init = setup, .fini = teardown);

static const struct wr_set_options by_equal = {.struct_size = sizeof by_equal, .flags = WR_KEYS_BY_EQUAL};

static wr_set *set_of(const char *letters)
{
    wr_set *s = wr_set_new(&by_equal);
    cr_assert_not_null(s);
    for (; *letters != '\0'; letters++)
        cr_assert_eq(wr_set_add(s, all[*letters - 'a']), 0);
    return s;
}

/* The members are exactly these. */
static bool is(wr_set *s, const char *letters)
{
    unsigned want = 0, have = 0, n = 0;
    wr_set_iter it;
    void *obj;
    for (const char *p = letters; *p != '\0'; p++)
        want |= 1u << (*p - 'a');
    wr_set_iter_begin(&it, s);
    for (; wr_set_iter_next(&it, &obj); n++) {
        have |= 1u << (((letter *)obj)->c - 'a');
        wr_release(obj);
    }
    cr_assert_null(obj);
    wr_set_iter_end(&it);
    return have == want && n == strlen(letters) && wr_set_len(s) == n;
}

static bool is_and_free(wr_set *s, const char *letters)
{
    cr_assert_not_null(s);
    bool right = is(s, letters);
    wr_set_free(s);
    return right;
}

/* ---- one set ---------------------------------------------------------------------------------------------- */

/* init, constructor_identity, len, contains */
Test(set, members_are_there_and_leave_as_they_die)
{
    wr_set *s = set_of("abc"), *t = set_of("abc");
    cr_assert_neq(s, t);
    cr_assert(is(s, "abc"));
    letter *d = letter_new('d'), *other_a = letter_new('a');
    cr_assert(!wr_set_contains(s, d));
    cr_assert(wr_set_contains(s, all[0]));
    cr_assert(wr_set_contains(s, other_a), "equal");
    cr_assert_eq(wr_set_add(s, d), 0);
    cr_assert_eq(wr_strong_count(d), 1);
    cr_assert_eq(wr_weak_count(d), 0);
    cr_assert(is(s, "abcd"));
    d->left = s;
    wr_release(d);
    cr_assert(is(s, "abc"));
    wr_release(other_a);
    wr_set_free(t);
    wr_set_free(s);
    wr_set_free(NULL);
}

/* add, remove, discard, clear */
Test(set, adding_twice_changes_nothing_and_taking_out_says_whether_it_was_there)
{
    wr_set *s = set_of("ab");
    letter *other_a = letter_new('a');
    cr_assert_eq(wr_set_add(s, all[0]), 0);
    cr_assert_eq(wr_set_add(s, other_a), 0);
    cr_assert(is(s, "ab"));
    letter *member = wr_set_get(s, other_a);
    cr_assert_eq(member, all[0], "the first one stays");
    wr_release(member);
    cr_assert_null(wr_set_get(s, all[2]));
    cr_assert_eq(wr_set_remove(s, other_a), 0);
    cr_assert_eq(wr_set_remove(s, all[0]), -ENOENT);
    cr_assert_eq(wr_set_discard(s, all[0]), 0);
    cr_assert_eq(wr_set_discard(s, all[1]), 0);
    cr_assert(is(s, ""));
    cr_assert_eq(wr_set_add(s, other_a), 0);
    wr_set_clear(s);
    cr_assert(is(s, ""));
    wr_set_clear(NULL);
    wr_release(other_a);
    wr_set_free(s);
}

Test(set, by_default_an_object_equals_itself_alone)
{
    wr_set *s = wr_set_new(NULL);
    letter *other_a = letter_new('a');
    wr_set_add(s, all[0]);
    cr_assert(!wr_set_contains(s, other_a));
    wr_set_add(s, other_a);
    wr_set_add(s, other_a);
    cr_assert_eq(wr_set_len(s), 2);
    cr_assert_eq(wr_set_remove(s, all[0]), 0);
    letter *member = wr_set_get(s, other_a);
    cr_assert_eq(member, other_a);
    wr_release(member);
    wr_release(other_a);
    cr_assert_eq(wr_set_len(s), 0);
    wr_set_free(s);
}

/* pop */
Test(set, pop_gives_each_member_once)
{
    wr_set *s = set_of("abcdef");
    unsigned seen = 0;
    for (unsigned i = 0; i < 6; i++) {
        letter *l = wr_set_pop(s);
        cr_assert_not_null(l);
        cr_assert_eq(seen & 1u << (l->c - 'a'), 0);
        seen |= 1u << (l->c - 'a');
        wr_release(l);
    }
    errno = 77;
    cr_assert_null(wr_set_pop(s));
    cr_assert_eq(errno, 77);
    wr_set_free(s);
}

/* copy, copying, from an array */
Test(set, copies_have_nothing_in_common_with_their_source)
{
    wr_set *s = set_of("abc"), *t = wr_set_copy(s);
    cr_assert(is(t, "abc"));
    wr_set_add(t, all[3]);
    wr_set_discard(t, all[0]);
    cr_assert(is(t, "bcd"));
    cr_assert(is(s, "abc"));
    wr_set_free(s);
    cr_assert(is_and_free(t, "bcd"));
    void *objs[] = {all[0], all[1], all[0]};
    cr_assert(is_and_free(wr_set_from_array(&by_equal, objs, 3), "ab"));
    cr_assert(is_and_free(wr_set_from_array(NULL, NULL, 0), ""));
}

/* ---- iterators -------------------------------------------------------------------------------------------- */

/* weak_destroy_while_iterating, len_race in one thread */
Test(set, members_that_die_meanwhile_are_not_met_and_len_can_be_asked)
{
    wr_set *s = set_of("abcdefghijklmnopqrstuvwxyz");
    wr_set_iter it;
    wr_weak *ref;
    size_t n = 0;
    wr_set_iter_begin(&it, s);
    for (; wr_set_iter_next_ref(&it, &ref); n++) {
        letter *l = wr_upgrade(ref);
        cr_assert_not_null(l);
        uint64_t i = l->c - 'a';
        wr_release(l);
        wr_release(all[i]);
        all[i] = NULL;
        cr_assert(wr_weak_is_dead(ref));
        wr_weak_release(ref);
        cr_assert_eq(wr_set_len(s), ALL - n - 1);
    }
    wr_set_iter_end(&it);
    wr_set_iter_end(&it);
    cr_assert_eq(n, ALL);
    wr_set_free(s);
}

/* weak_destroy_and_mutate_while_iterating */
Test(set, a_set_may_be_changed_while_it_is_gone_through)
{
    wr_set *s = set_of("abcdefgh"), *other = set_of("abcd");
    wr_set_iter it;
    void *obj;
    unsigned n = 0;
    wr_set_iter_begin(&it, s);
    for (; wr_set_iter_next(&it, &obj); n++) {
        letter *l = obj;
        uint64_t c = l->c;
        wr_release(l);
        cr_assert_eq(wr_set_discard(s, all[c - 'a']), 0);
        cr_assert_eq(wr_set_add(s, all[c - 'a']), 0);
        cr_assert_eq(wr_set_update(s, other), 0);
        cr_assert_eq(wr_barrier(), 0);
    }
    wr_set_iter_end(&it);
    cr_assert_leq(n, 8);
    cr_assert(is(s, "abcdefgh"));
    wr_set_iter_begin(&it, s);
    cr_assert(wr_set_iter_next(&it, &obj));
    wr_release(obj);
    wr_set_clear(s);
    cr_assert(!wr_set_iter_next(&it, &obj));
    wr_set_iter_end(&it);
    wr_set_free(s);
    wr_set_free(other);
}

/* ---- two sets --------------------------------------------------------------------------------------------- */

/* union, or, intersection, and, difference, sub, symmetric_difference, xor */
Test(set, new_sets_of_two)
{
    wr_set *s = set_of("abcd"), *t = set_of("cdef"), *none = set_of("");
    cr_assert(is_and_free(wr_set_union(s, t), "abcdef"));
    cr_assert(is_and_free(wr_set_union(s, none), "abcd"));
    cr_assert(is_and_free(wr_set_intersection(s, t), "cd"));
    cr_assert(is_and_free(wr_set_intersection(s, none), ""));
    cr_assert(is_and_free(wr_set_difference(s, t), "ab"));
    cr_assert(is_and_free(wr_set_difference(none, t), ""));
    cr_assert(is_and_free(wr_set_symmetric_difference(s, t), "abef"));
    cr_assert(is(s, "abcd") && is(t, "cdef"), "they are as they were");
    wr_set_free(s);
    wr_set_free(t);
    wr_set_free(none);
}

/* update, update_set, ior, intersection_update, iand, difference_update, isub, symmetric_difference_update, ixor */
Test(set, changes_by_another_set)
{
    wr_set *s = set_of("abcd"), *t = set_of("cdef");
    cr_assert_eq(wr_set_intersection_update(s, t), 0);
    cr_assert(is(s, "cd"));
    cr_assert_eq(wr_set_update(s, t), 0);
    cr_assert(is(s, "cdef"));
    void *objs[] = {all[0], all[1]};
    cr_assert_eq(wr_set_update_array(s, objs, 2), 0);
    cr_assert(is(s, "abcdef"));
    cr_assert_eq(wr_set_difference_update(s, t), 0);
    cr_assert(is(s, "ab"));
    wr_set_add(s, all[2]);
    cr_assert_eq(wr_set_symmetric_difference_update(s, t), 0);
    cr_assert(is(s, "abdef"));
    wr_set_free(s);
    wr_set_free(t);
}

/* inplace_on_self */
Test(set, changes_by_itself)
{
    wr_set *s = set_of("abcd");
    cr_assert_eq(wr_set_update(s, s), 0);
    cr_assert_eq(wr_set_intersection_update(s, s), 0);
    cr_assert(is(s, "abcd"));
    cr_assert_eq(wr_set_symmetric_difference_update(s, s), 0);
    cr_assert(is(s, ""));
    wr_set_add(s, all[0]);
    cr_assert_eq(wr_set_difference_update(s, s), 0);
    cr_assert(is(s, ""));
    wr_set_free(s);
}

static void *updater(void *ctx)
{
    wr_set **pair = ctx;
    for (unsigned i = 0; i < RACE_SIZE(300, 30); i++)
        RACE_CHECK(wr_set_update(pair[0], pair[1]) == 0 && wr_set_intersection_update(pair[0], pair[0]) == 0);
    return NULL;
}

Test(set, sets_may_update_each_other_at_once)
{
    wr_set *s = set_of("abcdef"), *t = set_of("efgh"), *pairs[2][2] = {{s, t}, {t, s}};
    pthread_t threads[2];
    for (unsigned i = 0; i < 2; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, updater, pairs[i]), 0);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    cr_assert(is(s, "abcdefgh") && is(t, "abcdefgh"));
    wr_set_free(s);
    wr_set_free(t);
}

/* isdisjoint, sub_and_super, lt, gt, eq, ne */
Test(set, comparisons_of_two)
{
    wr_set *s = set_of("abc"), *t = set_of("abcd"), *u = set_of("xyz"), *none = set_of(""), *same = set_of("cba");
    cr_assert(wr_set_isdisjoint(s, u));
    cr_assert(!wr_set_isdisjoint(s, t));
    cr_assert(wr_set_isdisjoint(none, none));
    cr_assert(wr_set_issubset(s, t) && !wr_set_issubset(t, s) && wr_set_issubset(s, s));
    cr_assert(wr_set_issuperset(t, s) && !wr_set_issuperset(s, t) && wr_set_issuperset(s, none));
    cr_assert(!wr_set_issubset(u, t) && !wr_set_issuperset(t, u));
    cr_assert(wr_set_equal(s, same) && wr_set_equal(s, s) && wr_set_equal(none, none));
    cr_assert(!wr_set_equal(s, t) && !wr_set_equal(t, s) && !wr_set_equal(s, none));
    cr_assert(wr_set_issubset(s, t) && !wr_set_equal(s, t), "a proper part, Python's <");
    wr_set_free(s);
    wr_set_free(t);
    wr_set_free(u);
    wr_set_free(none);
    wr_set_free(same);
}

/* gc, len_cycles in its part: what is not held by anybody is out at once */
Test(set, a_thousand_members_without_owners_are_gone)
{
    wr_set *s = wr_set_new(NULL);
    for (unsigned i = 0; i < 1000; i++) {
        letter *l = letter_new(i);
        cr_assert_eq(wr_set_add(s, l), 0);
        wr_release(l);
    }
    cr_assert_eq(wr_set_len(s), 0);
    wr_set_free(s);
}

/* ---- misuse, no memory ------------------------------------------------------------------------------------ */

Test(set, bad_arguments_are_refused)
{
    wr_set *s = set_of("a");
    wr_set *const ss[] = {NULL, s};
    void *const objs[] = {all[0], NULL};
    for (unsigned i = 0; i < 2; i++) {
        cr_assert_eq(wr_set_add(ss[i], objs[i]), -EINVAL);
        cr_assert_eq(wr_set_remove(ss[i], objs[i]), -EINVAL);
        cr_assert_eq(wr_set_discard(ss[i], objs[i]), -EINVAL);
        errno = 0;
        cr_assert(!wr_set_contains(ss[i], objs[i]));
        cr_assert_eq(errno, EINVAL);
        errno = 0;
        cr_assert_null(wr_set_get(ss[i], objs[i]));
        cr_assert_eq(errno, EINVAL);
        wr_set *const pairs[][2] = {{NULL, s}, {s, NULL}};
        wr_set *a = pairs[i][0], *b = pairs[i][1];
        cr_assert_eq(wr_set_update(a, b), -EINVAL);
        cr_assert_eq(wr_set_intersection_update(a, b), -EINVAL);
        cr_assert_eq(wr_set_difference_update(a, b), -EINVAL);
        cr_assert_eq(wr_set_symmetric_difference_update(a, b), -EINVAL);
        cr_assert_null(wr_set_union(a, b));
        cr_assert_null(wr_set_intersection(a, b));
        cr_assert_null(wr_set_difference(a, b));
        cr_assert_null(wr_set_symmetric_difference(a, b));
        errno = 0;
        cr_assert(!wr_set_isdisjoint(a, b) && !wr_set_issubset(a, b) && !wr_set_issuperset(a, b) &&
                  !wr_set_equal(a, b));
        cr_assert_eq(errno, EINVAL);
    }
    cr_assert_eq(wr_set_update_array(NULL, objs, 1), -EINVAL);
    cr_assert_eq(wr_set_update_array(s, NULL, 1), -EINVAL);
    cr_assert_null(wr_set_pop(NULL));
    cr_assert_null(wr_set_copy(NULL));
    cr_assert_eq(wr_set_len(NULL), 0);
    wr_set_iter it;
    void *obj;
    wr_set_iter_begin(&it, NULL);
    cr_assert(!wr_set_iter_next(&it, &obj));
    wr_set_iter_end(&it);
    const struct wr_set_options bad[] = {{.struct_size = 0}, {.struct_size = sizeof *bad, .flags = WR_VALUES_RAW}};
    for (unsigned i = 0; i < 2; i++) {
        errno = 0;
        cr_assert_null(wr_set_new(&bad[i]));
        cr_assert_eq(errno, EINVAL);
    }
    wr_set_free(s);
}

Test(set_memory, each_allocation_failed_in_turn_changes_nothing)
{
    fail_alloc_install();
    setup();
    for (long n = 1;; n++) {
        wr_set *s = set_of("");
        letter *l = letter_new('a');
        fail_alloc_at(n);
        int err = wr_set_add(s, l);
        bool hit = fail_alloc_hit();
        cr_assert_eq(err, hit ? -ENOMEM : 0);
        cr_assert_eq(wr_set_len(s), !hit);
        wr_release(l);
        wr_set_free(s);
        if (!hit)
            break;
    }
    wr_set *s = set_of("abcdef");
    for (long n = 1;; n++) {
        fail_alloc_at(n);
        wr_set *t = wr_set_copy(s);
        bool hit = fail_alloc_hit();
        cr_assert(t != NULL || (hit && errno == ENOMEM));
        wr_set_free(t);
        if (!hit)
            break;
    }
    wr_set_free(s);
    teardown();
    cr_assert_eq(fail_alloc_live(), 0);
}

/* ---- races ------------------------------------------------------------------------------------------------ */

struct fight {
    wr_set *s;
    letter *a, *b;
    void *got, *got2;
};

static void fight_prepare(void *ctx)
{
    struct fight *f = ctx;
    f->a = letter_new('x');
    f->b = letter_new('x');
}

static void fight_add(void *ctx)
{
    struct fight *f = ctx;
    RACE_CHECK(wr_set_add(f->s, f->a) == 0);
    f->got = wr_set_get(f->s, f->a);
}

static void fight_add2(void *ctx)
{
    struct fight *f = ctx;
    RACE_CHECK(wr_set_add(f->s, f->b) == 0);
    f->got2 = wr_set_get(f->s, f->b);
}

static unsigned judge_adds(void *ctx)
{
    struct fight *f = ctx;
    RACE_CHECK(f->got == f->got2 && (f->got == f->a || f->got == f->b));
    RACE_CHECK(wr_set_len(f->s) == 1);
    unsigned first = f->got == f->a;
    wr_release(f->got);
    wr_release(f->got2);
    wr_release(f->a);
    wr_release(f->b);
    RACE_CHECK(wr_set_len(f->s) == 0);
    return first;
}

Test(set, of_two_equal_objects_added_at_once_one_is_the_member)
{
    struct fight f = {.s = set_of("")};
    const struct race race = {.name = "add beside add of an equal one",
                              .prepare = fight_prepare,
                              .sides = {fight_add, fight_add2},
                              .judge = judge_adds,
                              .outcomes = {"second", "first"},
                              .rounds = RACE_ROUNDS / 2,
                              .ctx = &f};
    cr_assert(race_run(&race));
    wr_set_free(f.s);
}

/* Two sets that change each other, lasting members in both, members that come and die, pops. */
struct crowd {
    wr_set *s, *t;
    atomic_uint n;
};

static void *crowd_member(void *ctx)
{
    struct crowd *c = ctx;
    unsigned me = atomic_fetch_add(&c->n, 1);
    uint64_t random = race_seed() + me;
    wr_set *s = me % 2 ? c->s : c->t, *t = me % 2 ? c->t : c->s;
    for (unsigned i = 0; i < RACE_SIZE(3000, 300); i++) {
        letter *brief = letter_new(1000 + race_draw(&random) % 8);
        RACE_CHECK(wr_set_add(s, brief) == 0);
        switch (race_draw(&random) % 4) {
        case 0:
            RACE_CHECK(wr_set_update(s, t) == 0);
            break;
        case 1:
            RACE_CHECK(wr_set_discard(t, brief) == 0);
            break;
        case 2: {
            wr_set *copy = wr_set_copy(t);
            for (unsigned j = 0; j < ALL; j++)
                RACE_CHECK(wr_set_contains(copy, all[j]));
            wr_set_free(copy);
            break;
        }
        default: {
            letter *l = wr_set_get(s, all[race_draw(&random) % ALL]);
            RACE_CHECK(l != NULL);
            wr_release(l);
        }
        }
        wr_release(brief);
    }
    return NULL;
}

/* len_race */
Test(set, a_crowd_misses_no_lasting_member)
{
    struct crowd c = {.s = set_of("abcdefghijklmnopqrstuvwxyz"), .t = set_of("abcdefghijklmnopqrstuvwxyz")};
    pthread_t threads[4];
    (void)race_seed();
    for (unsigned i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, crowd_member, &c), 0);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    cr_assert(is(c.s, "abcdefghijklmnopqrstuvwxyz"));
    cr_assert(is(c.t, "abcdefghijklmnopqrstuvwxyz"));
    wr_set_free(c.s);
    wr_set_free(c.t);
}
