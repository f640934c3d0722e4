/* Tests of weak handles. */
#include "expect.h"
#include "fail_alloc.h"
#include "race.h"

#include <weakref/debug.h>
#include <weakref/weak.h>

static atomic_uint destroyed;

static void count_destroy(void *obj)
{
    memset(obj, 0xdd, 8);
    atomic_fetch_add(&destroyed, 1);
}

static const wr_type bare_type = {.name = "bare", .size = 8};
static const wr_type counted_type = {.name = "counted", .size = 8, .destroy = count_destroy};
static const wr_type deferred_type = {
    .name = "deferred", .size = 8, .destroy = count_destroy, .flags = WR_TYPE_DEFERRED};
static const wr_type *const types[] = {&bare_type, &counted_type, &deferred_type};

/* ---- life ------------------------------------------------------------------------------------------------- */

Test(weak, upgrade_gives_the_object_until_the_last_release)
{
    for (unsigned t = 0; t < 3; t++) {
        void *obj = wr_new(types[t]);
        wr_weak *weak = wr_downgrade(obj);
        cr_assert_not_null(weak);
        cr_assert_eq(wr_strong_count(obj), 1, "a handle does not keep it alive");
        cr_assert_not(wr_weak_is_dead(weak));
        void *again = wr_upgrade(weak);
        cr_assert_eq(again, obj);
        cr_assert_eq(wr_strong_count(obj), 2);
        wr_release(obj);
        cr_assert_not(wr_weak_is_dead(weak));
        cr_assert_eq(wr_upgrade(weak), obj);
        wr_release(again);
        wr_release(again);
        cr_assert(wr_weak_is_dead(weak));
        wr_weak_release(weak);
    }
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(atomic_load(&destroyed), 2);
}

Test(weak, upgrade_after_last_release_is_null)
{
    for (unsigned t = 0; t < 3; t++) {
        void *obj = wr_new(types[t]);
        wr_weak *weak = wr_downgrade(obj);
        wr_release(obj);
        for (unsigned i = 0; i < 1000; i++) {
            errno = 0;
            cr_assert_null(wr_upgrade(weak));
            cr_assert_eq(errno, 0, "dead is an answer, not an error");
        }
        cr_assert_eq(wr_barrier(), 0);
        cr_assert_null(wr_upgrade(weak));
        wr_weak_release(weak);
    }
}

/* ---- contract --------------------------------------------------------------------------------------------- */

Test(weak, handles_of_one_object_are_one_pointer)
{
    void *a = wr_new(&counted_type), *b = wr_new(&counted_type);
    wr_weak *first = wr_downgrade(a), *second = wr_downgrade(a), *other = wr_downgrade(b);
    cr_assert_eq(first, second);
    cr_assert_neq(first, other);
    cr_assert_eq(wr_weak_count(a), 2);
    cr_assert_eq(wr_weak_retain(first), first);
    cr_assert_eq(wr_weak_count(a), 3);
    wr_release(a);
    cr_assert_eq(first, second, "also after its death");
    wr_weak_release(first);
    wr_weak_release(first);
    wr_weak_release(first);
    wr_release(b);
    wr_weak_release(other);
}

Test(weak, held_handles_keep_their_address_from_being_used_again)
{
    /* So equality, order and hash by address stay what they were, whatever is made later. */
    enum { N = 500 };
    wr_weak *dead[N];
    for (unsigned i = 0; i < N; i++) {
        void *obj = wr_new(&counted_type);
        dead[i] = wr_downgrade(obj);
        wr_release(obj);
        for (unsigned j = 0; j < i; j++)
            cr_assert_neq(dead[i], dead[j]);
    }
    for (unsigned i = 0; i < N; i++) {
        void *obj = wr_new(&counted_type);
        for (unsigned j = 0; j < N; j++) {
            cr_assert_not(wr_weak_is(dead[j], obj));
            cr_assert_neq((void *)dead[j], obj);
        }
        wr_release(obj);
    }
    for (unsigned i = 0; i < N; i++)
        wr_weak_release(dead[i]);
}

Test(weak, order_and_hash_of_handles_outlive_the_objects)
{
    void *a = wr_new(&counted_type), *b = wr_new(&counted_type);
    wr_weak *x = wr_downgrade(a), *y = wr_downgrade(b);
    uintptr_t hash_x = (uintptr_t)x, hash_y = (uintptr_t)y;
    bool before = hash_x < hash_y;
    wr_release(a);
    cr_assert_eq((uintptr_t)x < (uintptr_t)y, before);
    wr_release(b);
    cr_assert_eq((uintptr_t)x < (uintptr_t)y, before);
    wr_weak *again = wr_weak_retain(x);
    cr_assert_eq((uintptr_t)again, hash_x);
    cr_assert_neq(hash_x, hash_y);
    wr_weak_release(again);
    wr_weak_release(x);
    wr_weak_release(y);
}

Test(weak, retain_and_release_of_handles_of_the_dead)
{
    fail_alloc_install();
    void *obj = wr_new(&counted_type);
    wr_weak *weak = wr_downgrade(obj);
    wr_release(obj);
    for (unsigned i = 0; i < 100; i++)
        cr_assert_eq(wr_weak_retain(weak), weak);
    for (unsigned i = 0; i < 100; i++)
        wr_weak_release(weak);
    cr_assert(wr_weak_is_dead(weak));
    cr_assert_eq(fail_alloc_live(), 1);
    wr_weak_release(weak);
    cr_assert_eq(fail_alloc_live(), 0, "the last handle frees the memory");
}

Test(weak, is_tells_whose_handle_it_is)
{
    void *a = wr_new(&counted_type), *b = wr_new(&counted_type);
    wr_weak *weak = wr_downgrade(a);
    cr_assert(wr_weak_is(weak, a));
    cr_assert_not(wr_weak_is(weak, b));
    cr_assert_not(wr_weak_is(weak, NULL));
    cr_assert_not(wr_weak_is(NULL, a));
    cr_assert_not(wr_weak_is(NULL, NULL));
    void *address = a;
    wr_release(a);
    cr_assert(wr_weak_is(weak, address), "dead or alive");
    wr_release(b);
    wr_weak_release(weak);
}

Test(weak, null_is_einval_or_nothing_or_dead)
{
    errno = 0;
    cr_assert_null(wr_downgrade(NULL));
    cr_assert_eq(errno, EINVAL);
    errno = 0;
    cr_assert_null(wr_upgrade(NULL));
    cr_assert_eq(errno, EINVAL);
    errno = 0;
    cr_assert_null(wr_weak_retain(NULL));
    cr_assert_eq(errno, EINVAL);
    wr_weak_release(NULL);
    cr_assert(wr_weak_is_dead(NULL));
}

static void check_describe(const wr_weak *weak, const char *wanted)
{
    int length = (int)strlen(wanted);
    char text[128];
    cr_assert_eq(wr_weak_describe(weak, NULL, 0), length);
    for (size_t size = 1; size < sizeof text; size++) {
        memset(text, '#', sizeof text);
        cr_assert_eq(wr_weak_describe(weak, text, size), length);
        size_t written = (size_t)length < size - 1 ? (size_t)length : size - 1;
        cr_assert_eq(strncmp(text, wanted, written), 0, "size %zu: %s", size, text);
        cr_assert_eq(text[written], '\0');
        for (size_t i = size; i < sizeof text; i++)
            cr_assert_eq(text[i], '#', "size %zu: wrote beyond", size);
    }
}

Test(weak, describe_tells_the_living_from_the_dead)
{
    char wanted[128];
    void *obj = wr_new(&counted_type);
    wr_weak *weak = wr_downgrade(obj);
    snprintf(wanted, sizeof wanted, "<weakref at %p; to 'counted' at %p>", (void *)weak, obj);
    check_describe(weak, wanted);
    wr_release(obj);
    snprintf(wanted, sizeof wanted, "<weakref at %p; dead>", (void *)weak);
    check_describe(weak, wanted);
    wr_weak_release(weak);

    char text[8];
    cr_assert_eq(wr_weak_describe(NULL, text, sizeof text), -EINVAL);
}

static int failing_describe(const void *obj, char *buf, size_t size)
{
    (void)obj, (void)buf, (void)size;
    return -EIO;
}

Test(weak, describe_asks_no_user_code_that_could_fail)
{
    static const wr_type nameless_type = {.size = 8, .describe = failing_describe};
    void *obj = wr_new(&nameless_type);
    wr_weak *weak = wr_downgrade(obj);
    char wanted[128];
    snprintf(wanted, sizeof wanted, "<weakref at %p; to 'object' at %p>", (void *)weak, obj);
    check_describe(weak, wanted);
    cr_assert_eq(wr_describe(obj, wanted, sizeof wanted), -EIO);
    cr_assert_eq(wr_weak_describe(weak, NULL, 8), -EINVAL);
    wr_release(obj);
    wr_weak_release(weak);
}

Test(weak, handles_allocate_nothing_and_need_no_memory)
{
    fail_alloc_install();
    void *obj = wr_new(&counted_type);
    fail_alloc_all(true);
    long before = fail_alloc_calls();
    wr_weak *weak = NULL;
    for (unsigned i = 0; i < 10000; i++)
        weak = wr_downgrade(obj);
    for (unsigned i = 0; i < 9999; i++)
        wr_weak_release(weak);
    wr_release(wr_upgrade(weak));
    wr_release(obj);
    cr_assert_null(wr_upgrade(weak));
    wr_weak_release(weak);
    cr_assert_eq(fail_alloc_calls(), before);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(weak, handle_is_a_pointer_without_a_heap_block)
{
    void *obj = wr_new(&counted_type);
    wr_weak *weak = wr_downgrade(obj);
    cr_assert_eq(sizeof weak, 8);
    cr_assert_eq((char *)obj - (char *)weak, 16);
    wr_release(obj);
    wr_weak_release(weak);
}

/* ---- misuse ----------------------------------------------------------------------------------------------- */

static void weak_release_too_often(void *type)
{
    void *obj = wr_new(type);
    wr_weak *weak = wr_downgrade(obj);
    wr_weak_release(weak);
    wr_weak_release(weak);
}

static void set_dead_without_handles(void *obj)
{
    wr_atomic_store_relaxed(&wr_header_of(obj)->word.bits, WR_WORD_CLOSED);
}

static void weak_retain_released(void *type)
{
    void *obj = wr_new(type);
    set_dead_without_handles(obj);
    wr_weak_retain(wr_weak_of_header(wr_header_of(obj)));
}

static void weak_release_released(void *type)
{
    void *obj = wr_new(type);
    set_dead_without_handles(obj);
    wr_weak_release(wr_weak_of_header(wr_header_of(obj)));
}

Test(weak, more_releases_than_handles_panic)
{
    const char *pattern =
        PANIC("wr_weak_release", "(bare|counted|deferred)", "released more weak references than there are");
    for (unsigned t = 0; t < 3; t++) {
        expect_panic(weak_release_too_often, (void *)(uintptr_t)types[t], pattern);
        expect_panic(weak_release_released, (void *)(uintptr_t)types[t], pattern);
    }
}

Test(weak, retain_of_a_released_handle_panics)
{
    expect_panic(weak_retain_released, (void *)(uintptr_t)&counted_type,
                 PANIC("wr_weak_retain", "counted", "the caller holds no reference"));
}

/* ---- races ------------------------------------------------------------------------------------------------ */

static struct {
    void *obj;
    wr_weak *weak;
    void *upgraded;
    unsigned round;
} duel;

static void duel_prepare(void *ctx)
{
    (void)ctx;
    duel.obj = wr_new(&counted_type);
    *(unsigned *)duel.obj = ++duel.round;
    duel.weak = wr_downgrade(duel.obj);
}

static void duel_upgrade(void *ctx)
{
    (void)ctx;
    duel.upgraded = wr_upgrade(duel.weak);
    if (duel.upgraded != NULL)
        *(unsigned *)duel.upgraded = duel.round; /* a plain write: no other may be there, or have destroyed it */
}

static void duel_release(void *ctx)
{
    (void)ctx;
    wr_release(duel.obj);
}

static unsigned duel_judge(void *ctx)
{
    (void)ctx;
    if (duel.upgraded == NULL) {
        cr_assert_eq(atomic_load(&destroyed), duel.round);
        cr_assert(wr_weak_is_dead(duel.weak));
        wr_weak_release(duel.weak);
        return 0;
    }
    cr_assert_eq(atomic_load(&destroyed), duel.round - 1);
    cr_assert_eq(*(unsigned *)duel.upgraded, duel.round);
    cr_assert_eq(wr_strong_count(duel.upgraded), 1);
    cr_assert_eq(wr_weak_count(duel.upgraded), 1);
    wr_release(duel.upgraded);
    wr_weak_release(duel.weak);
    cr_assert_eq(atomic_load(&destroyed), duel.round);
    return 1;
}

Test(weak, upgrade_and_last_release_race_and_one_of_them_is_right)
{
    fail_alloc_install();
    const struct race race = {
        .name = "upgrade vs last release",
        .prepare = duel_prepare,
        .sides = {duel_upgrade, duel_release},
        .judge = duel_judge,
        .outcomes = {"release won", "upgrade won"},
        .rounds = RACE_SIZE(5000, 2000),
        .seconds = 30,
    };
    cr_assert(race_run(&race));
    cr_assert_eq(fail_alloc_live(), 0);
}

static struct {
    wr_weak *weak;
    atomic_uint busy, bad;
} crowd;

static void *crowd_main(void *arg)
{
    size_t *upgrades = arg;
    wr_weak *weak = wr_weak_retain(crowd.weak);
    for (void *obj; (obj = wr_upgrade(weak)) != NULL;) {
        if (++*upgrades == 1)
            atomic_fetch_add_explicit(&crowd.busy, 1, memory_order_relaxed);
        wr_release(obj);
        sched_yield(); /* mostly here, and not while it holds the object, does a thread lose its processor */
    }
    for (unsigned i = 0; i < 100; i++)
        if (wr_upgrade(weak) != NULL)
            atomic_fetch_add_explicit(&crowd.bad, 1, memory_order_relaxed);
    wr_weak_release(weak);
    return NULL;
}

Test(weak, many_threads_upgrade_until_it_is_dead_for_all)
{
    enum { N = 8 };
    for (unsigned round = 1; round <= 10; round++) {
        void *obj = wr_new(&counted_type);
        crowd.weak = wr_downgrade(obj);
        atomic_store(&crowd.busy, 0);
        pthread_t threads[N];
        size_t upgrades[N] = {0};
        for (unsigned i = 0; i < N; i++)
            cr_assert_eq(pthread_create(&threads[i], NULL, crowd_main, &upgrades[i]), 0);
        await(atomic_load(&crowd.busy) == N);
        wr_release(obj);
        for (unsigned i = 0; i < N; i++)
            cr_assert_eq(pthread_join(threads[i], NULL), 0);
        cr_assert_eq(atomic_load(&destroyed), round);
        cr_assert_eq(atomic_load(&crowd.bad), 0, "came back from the dead");
        wr_weak_release(crowd.weak);
    }
}
