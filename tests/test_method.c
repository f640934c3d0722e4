/* Tests of methods: life, contract in header order, misuse, lack of memory; CPython's WeakMethod by name. */
#include <weakref/method.h>

#include <weakref/proxy.h>

#include "deaths.h"
#include "expect.h"
#include "fail_alloc.h"

TestSuite(method, .timeout = 60);
TestSuite(method_memory, .timeout = 60); /* the allocator is set before the first allocation */

static int add(void *obj, void *arg)
{
    thing *t = obj;
    t->number += *(int *)arg;
    return t->number;
}

static int subtract(void *obj, void *arg)
{
    thing *t = obj;
    t->number -= *(int *)arg;
    return t->number;
}

/* ---- life ------------------------------------------------------------------------------------------ */

Test(method, call_runs_the_function_on_the_living_object)
{
    thing *t = thing_new(10);
    wr_method *m = wr_method_new(t, add);
    cr_assert_not_null(m);
    int five = 5;
    cr_assert_eq(wr_method_call(m, &five), 15);
    cr_assert_eq(t->number, 15);
    wr_method_release(m);
    wr_release(t);
}

Test(method, call_answers_stale_once_the_object_is_dead)
{
    thing *t = thing_new(10);
    wr_method *m = wr_method_new(t, add);
    wr_release(t);
    cr_assert_eq(things_destroyed, 1, "the method does not keep the object");
    int five = 5;
    cr_assert_eq(wr_method_call(m, &five), -ESTALE);
    cr_assert(wr_method_is_dead(m));
    wr_method_release(m);
}

static int release_everything(void *obj, void *arg)
{
    wr_method **m = arg;
    cr_assert_eq(wr_strong_count(obj), 2);
    wr_release(obj); /* the caller's */
    wr_method_release(*m);
    cr_assert_eq(things_destroyed, 0, "the call still holds it");
    return 7;
}

Test(method, object_and_method_may_go_during_the_call)
{
    wr_method *m = wr_method_new(thing_new(0), release_everything);
    /* The creator's reference is the one that the function gives back. */
    cr_assert_eq(wr_method_call(m, &m), 7);
    cr_assert_eq(things_destroyed, 1);
}

static wr_method *made_in_destroy;

static void bind_in_destroy(void *obj)
{
    made_in_destroy = wr_method_new(obj, add);
}

Test(method, made_in_destroy_is_dead)
{
    static const wr_type type = {.name = "last", .size = sizeof(thing), .destroy = bind_in_destroy};
    wr_release(wr_new(&type));
    cr_assert_not_null(made_in_destroy);
    cr_assert(wr_method_is_dead(made_in_destroy));
    cr_assert_eq(wr_method_call(made_in_destroy, NULL), -ESTALE);
    wr_method_release(made_in_destroy);
}

/* ---- contract -------------------------------------------------------------------------------------- */

Test(method, new_without_object_or_function_is_refused)
{
    thing *t = thing_new(0);
    errno = 0;
    cr_assert_null(wr_method_new((void *)NULL, add));
    cr_assert_eq(errno, EINVAL);
    errno = 0;
    cr_assert_null(wr_method_new(t, NULL));
    cr_assert_eq(errno, EINVAL);
    cr_assert_eq(wr_weak_count(t), 0);
    wr_release(t);
}

Test(method, null_is_answered_everywhere)
{
    wr_method_release(NULL);
    errno = 0;
    cr_assert_null(wr_method_retain(NULL));
    cr_assert_eq(errno, EINVAL);
    cr_assert_eq(wr_method_call(NULL, NULL), -EINVAL);
    cr_assert(wr_method_is_dead(NULL));
    cr_assert_null(wr_method_weak(NULL));
    cr_assert(wr_method_function(NULL) == NULL);
    cr_assert(wr_method_equal(NULL, NULL));
    cr_assert_eq(wr_method_hash(NULL), 0);
    errno = 0;
    cr_assert_null(wr_method_watch_new(NULL, WR_QUEUE_INLINE, LOG(1)));
    cr_assert_eq(errno, EINVAL);
    cr_assert_eq(wr_method_on_death(NULL, WR_QUEUE_INLINE, LOG(1)), -EINVAL);
}

Test(method, a_retained_method_outlives_the_first_release)
{
    thing *t = thing_new(1);
    wr_method *m = wr_method_new(t, add);
    cr_assert_eq(wr_method_retain(m), m);
    wr_method_release(m);
    int one = 1;
    cr_assert_eq(wr_method_call(m, &one), 2);
    wr_method_release(m);
    cr_assert_eq(wr_weak_count(t), 0);
    wr_release(t);
}

Test(method, weak_and_function_are_what_it_was_made_of)
{
    thing *t = thing_new(1);
    wr_method *m = wr_method_new(t, add);
    cr_assert(wr_weak_is(wr_method_weak(m), t));
    cr_assert(wr_method_function(m) == add);
    wr_release(t);
    cr_assert(wr_weak_is(wr_method_weak(m), t), "after the death, too");
    wr_method_release(m);
}

Test(method, equality_and_hash_survive_the_death)
{
    thing *t = thing_new(1);
    wr_method *a = wr_method_new(t, add), *b = wr_method_new(t, add), *c = wr_method_new(t, subtract);
    uint64_t hash = wr_method_hash(a);
    wr_release(t);
    cr_assert(wr_method_equal(a, b));
    cr_assert_not(wr_method_equal(a, c));
    cr_assert_eq(wr_method_hash(a), hash);
    cr_assert_eq(wr_method_hash(b), hash);
    wr_method_release(a);
    wr_method_release(b);
    wr_method_release(c);
}

Test(method, a_watch_through_it_survives_the_method_and_can_be_cancelled)
{
    thing *t = thing_new(1);
    wr_method *m = wr_method_new(t, add);
    wr_watch *stays = wr_method_watch_new(m, WR_QUEUE_INLINE, LOG(1));
    wr_watch *goes = wr_method_watch_new(m, WR_QUEUE_INLINE, LOG(2));
    cr_assert(stays != NULL && goes != NULL);
    wr_method_release(m);
    cr_assert_eq(wr_watch_cancel(goes), WR_CANCELLED);
    wr_release(t);
    cr_assert_eq(n_logged, 1);
    cr_assert_eq(callback_log[0], 1);
    wr_watch_release(stays);
    wr_watch_release(goes);
}

Test(method, a_dead_method_cannot_be_watched)
{
    thing *t = thing_new(1);
    wr_method *m = wr_method_new(t, add);
    wr_release(t);
    errno = 0;
    cr_assert_null(wr_method_watch_new(m, WR_QUEUE_INLINE, LOG(1)));
    cr_assert_eq(errno, ESTALE);
    cr_assert_eq(wr_method_on_death(m, WR_QUEUE_INLINE, LOG(1)), -ESTALE);
    wr_method_release(m);
}

Test(method, a_watch_without_a_callback_is_refused)
{
    thing *t = thing_new(1);
    wr_method *m = wr_method_new(t, add);
    errno = 0;
    cr_assert_null(wr_method_watch_new(m, WR_QUEUE_INLINE, NULL, NULL));
    cr_assert_eq(errno, EINVAL);
    cr_assert_eq(wr_method_on_death(m, WR_QUEUE_INLINE, NULL, NULL), -EINVAL);
    cr_assert_eq(wr_strong_count(t), 1);
    wr_method_release(m);
    wr_release(t);
}

/* ---- misuse ---------------------------------------------------------------------------------------- */

/* Frees nothing, so that what was released once too often can be seen. */
static void *keep_alloc(size_t size, size_t align, void *ctx)
{
    (void)ctx;
    void *memory = NULL;
    return posix_memalign(&memory, align < sizeof memory ? sizeof memory : align, size) == 0 ? memory : NULL;
}

static void keep_free(void *memory, void *ctx)
{
    (void)memory, (void)ctx;
}

static void release_twice(void *ctx)
{
    (void)ctx;
    static const struct wr_allocator keep = {keep_alloc, keep_free, NULL};
    wr_set_allocator(&keep);
    wr_method *m = wr_method_new(thing_new(1), add);
    wr_method_release(m);
    wr_method_release(m);
}

static void retain_released(void *ctx)
{
    (void)ctx;
    static const struct wr_allocator keep = {keep_alloc, keep_free, NULL};
    wr_set_allocator(&keep);
    wr_method *m = wr_method_new(thing_new(1), add);
    wr_method_release(m);
    wr_method_retain(m);
}

Test(method_memory, released_once_too_often_panics)
{
    expect_panic(release_twice, NULL, "^weakref: wr_method_release: method at 0x[0-9a-f]+: it has been released\n$");
    expect_panic(retain_released, NULL, "^weakref: wr_method_retain: method at 0x[0-9a-f]+: it has been released\n$");
}

/* ---- lack of memory -------------------------------------------------------------------------------- */

Test(method_memory, every_allocation_of_new_failed_in_turn)
{
    fail_alloc_install();
    thing *t = thing_new(1);
    long live = fail_alloc_live();
    wr_method *m = NULL;
    for (long n = 1; m == NULL; n++) {
        fail_alloc_at(n);
        errno = 0;
        m = wr_method_new(t, add);
        if (fail_alloc_hit()) {
            cr_assert_null(m);
            cr_assert_eq(errno, ENOMEM);
            cr_assert_eq(fail_alloc_live(), live);
            cr_assert_eq(wr_weak_count(t), 0);
        }
    }
    cr_assert_gt(fail_alloc_live(), live, "it allocates at all");
    wr_method_release(m);
    wr_release(t);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(method_memory, every_allocation_of_watch_new_failed_in_turn)
{
    fail_alloc_install();
    wr_watch *w = NULL;
    for (long n = 1; w == NULL; n++) {
        thing *t = thing_new(1);
        wr_method *m = wr_method_new(t, add);
        fail_alloc_at(n);
        errno = 0;
        w = wr_method_watch_new(m, WR_QUEUE_INLINE, LOG(1));
        if (fail_alloc_hit()) {
            cr_assert_null(w);
            cr_assert_eq(errno, ENOMEM);
            cr_assert_eq(wr_strong_count(t), 1);
        }
        wr_method_release(m);
        wr_release(t);
    }
    cr_assert_eq(n_logged, 1);
    wr_watch_release(w);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(method_memory, call_allocates_nothing)
{
    fail_alloc_install();
    thing *t = thing_new(1);
    wr_method *m = wr_method_new(t, add);
    fail_alloc_all(true);
    int one = 1;
    cr_assert_eq(wr_method_call(m, &one), 2);
    wr_release(t);
    cr_assert_eq(wr_method_call(m, &one), -ESTALE);
    cr_assert_not(fail_alloc_hit());
    fail_alloc_all(false);
    wr_method_release(m);
}

/* ---- CPython's WeakMethodTestCase, by name ------------------------------------------------------------ */

Test(method, cpython_alive)
{
    thing *t = thing_new(42);
    wr_method *m = wr_method_new(t, add);
    cr_assert_not(wr_method_is_dead(m));
    thing *same = wr_upgrade(wr_method_weak(m));
    cr_assert_eq(same, t);
    wr_release(same);
    int zero = 0;
    cr_assert_eq(wr_method_call(m, &zero), 42);
    wr_method_release(m);
    wr_release(t);
}

Test(method, cpython_object_dead)
{
    thing *t = thing_new(1);
    wr_method *m = wr_method_new(t, add);
    wr_release(t);
    cr_assert_null(wr_upgrade(wr_method_weak(m)));
    wr_method_release(m);
}

/* There: the callback gets the WeakMethod. Here: the dead handle, which is the method's, and the context. */
static void note_method(wr_weak *dead, void *ctx)
{
    cr_assert_eq(dead, wr_method_weak(ctx));
    cr_assert(wr_method_is_dead(ctx));
    atomic_fetch_add(&n_logged, 1);
}

Test(method, cpython_callback_when_object_dead)
{
    wr_queue *queue = wr_queue_new("methods");
    thing *t = thing_new(1);
    wr_method *m = wr_method_new(t, add);
    cr_assert_eq(wr_method_on_death(m, queue, note_method, m), 0);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 0);
    wr_release(t);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert_eq(n_logged, 1);
    wr_method_release(m);
    wr_queue_free(queue);
}

Test(method, cpython_callback_when_method_dead)
{
    /* There a function can die alone, and the callback comes then, and not a second time with the object. Here functions
     * do not die; what is left of it: a callback comes once, and a method that was given up takes none with it. */
    thing *t = thing_new(1);
    wr_method *m = wr_method_new(t, add);
    cr_assert_eq(wr_method_on_death(m, WR_QUEUE_INLINE, LOG(1)), 0);
    wr_method_release(m);
    cr_assert_eq(n_logged, 0);
    wr_release(t);
    cr_assert_eq(n_logged, 1);
}

struct owner {
    wr_method *method; /* of the object itself */
};

static void owner_destroy(void *obj)
{
    wr_method_release(((struct owner *)obj)->method);
    atomic_fetch_add(&things_destroyed, 1);
}

Test(method, cpython_no_cycles)
{
    static const wr_type type = {.name = "owner", .size = sizeof(struct owner), .destroy = owner_destroy};
    struct owner *o = wr_new(&type);
    o->method = wr_method_new(o, add);
    cr_assert_eq(wr_method_on_death(o->method, WR_QUEUE_INLINE, LOG(1)), 0);
    wr_release(o);
    cr_assert_eq(things_destroyed, 1, "a method of itself does not keep it");
    cr_assert_eq(n_logged, 1);
}

Test(method, cpython_equality)
{
    thing *x = thing_new(1), *y = thing_new(1);
    wr_method *a = wr_method_new(x, add), *b = wr_method_new(x, add);
    wr_method *c = wr_method_new(x, subtract), *d = wr_method_new(y, add);
    wr_method *e = wr_method_new(y, subtract);
    cr_assert(wr_method_equal(a, a));
    cr_assert(wr_method_equal(a, b), "same object, same function");
    cr_assert_not(wr_method_equal(a, c), "same object, other function");
    cr_assert_not(wr_method_equal(a, d), "other object, same function");
    cr_assert_not(wr_method_equal(a, e));
    cr_assert_not(wr_method_equal(a, NULL));
    cr_assert_not(wr_method_equal(NULL, a));
    wr_method *all[] = {a, b, c, d, e};
    for (int i = 0; i < 5; i++)
        wr_method_release(all[i]);
    wr_release(x);
    wr_release(y);
}

Test(method, cpython_hashing)
{
    enum { N = 64 };
    thing *t[N];
    wr_method *m[2 * N];
    for (int i = 0; i < N; i++) {
        t[i] = thing_new(i);
        m[2 * i] = wr_method_new(t[i], add);
        m[2 * i + 1] = wr_method_new(t[i], subtract);
        wr_method *again = wr_method_new(t[i], add);
        cr_assert_eq(wr_method_hash(again), wr_method_hash(m[2 * i]));
        wr_method_release(again);
    }
    for (int i = 0; i < 2 * N; i++)
        for (int k = 0; k < i; k++)
            cr_assert_neq(wr_method_hash(m[i]), wr_method_hash(m[k]), "%d and %d", i, k);
    for (int i = 0; i < N; i++)
        wr_release(t[i]);
    for (int i = 0; i < 2 * N; i++)
        wr_method_release(m[i]);
}
