/* Tests of read sections, of what waits for them, and of the reclaimer. Runs a second time with WR_NO_MEMBARRIER=1. */
#include "expect.h"
#include "fail_alloc.h"
#include "guard.h"
#include "race.h"

#include <weakref/debug.h>
#include <weakref/guard.h>
#include <weakref/object.h>
#include <weakref/slot.h>
#include <weakref/weak.h>

/* ---- what the tests count ------------------------------------------------------------------------------- */

static atomic_uint destroyed;

typedef struct node {
    void *next; /* released by destroy */
    int value;
} node;

static void node_destroy(void *obj)
{
    node *n = obj;
    wr_release(n->next);
    n->value = -1;
    atomic_fetch_add(&destroyed, 1);
}

static const wr_type deferred_type = {
    .name = "deferred", .size = sizeof(node), .destroy = node_destroy, .flags = WR_TYPE_DEFERRED};
static const wr_type plain_type = {.name = "plain", .size = sizeof(node), .destroy = node_destroy};

static node *make(const wr_type *type, int value)
{
    node *n = wr_new(type);
    cr_assert_not_null(n);
    n->value = value;
    return n;
}

/* A thread that stands in a guard until it is told to go. */
struct reader {
    pthread_t thread;
    atomic_bool inside, go;
    unsigned depth;
};

static void *reader_main(void *arg)
{
    struct reader *r = arg;
    for (unsigned i = 0; i < r->depth; i++)
        wr_guard_enter();
    atomic_store(&r->inside, true);
    while (!atomic_load(&r->go))
        sched_yield();
    for (unsigned i = 0; i < r->depth; i++)
        wr_guard_exit();
    return NULL;
}

static void reader_start(struct reader *r, unsigned depth)
{
    *r = (struct reader){.depth = depth};
    cr_assert_eq(pthread_create(&r->thread, NULL, reader_main, r), 0);
    await(atomic_load(&r->inside));
}

static void reader_end(struct reader *r)
{
    atomic_store(&r->go, true);
    cr_assert_eq(pthread_join(r->thread, NULL), 0);
}

static void *synchronize_main(void *arg)
{
    atomic_uint *done = arg;
    if (wr_synchronize() == 0)
        atomic_store(done, 1);
    return NULL;
}

/* ---- sections -------------------------------------------------------------------------------------------- */

Test(guard, mode_is_what_the_environment_asks_for)
{
    const char *no = getenv("WR_NO_MEMBARRIER");
    struct wr_stats stats;
    wr_stats(&stats);
    if (no != NULL && strcmp(no, "1") == 0)
        cr_assert_eq(stats.membarrier, 0);
    else
        cr_assert_eq(stats.membarrier, 1, "membarrier(2) is refused on this machine");
}

Test(guard, sections_nest_and_only_the_outermost_counts)
{
    cr_assert_not(wr_guard_is_inside());
    for (unsigned i = 0; i < 1000; i++) {
        wr_guard_enter();
        cr_assert(wr_guard_is_inside());
    }
    for (unsigned i = 0; i < 1000; i++) {
        cr_assert(wr_guard_is_inside());
        cr_assert_eq(wr_synchronize(), -EDEADLK, "left at depth %u", 1000 - i);
        wr_guard_exit();
    }
    cr_assert_not(wr_guard_is_inside());
    cr_assert_eq(wr_synchronize(), 0);
}

Test(guard, outer_section_goes_on_after_an_inner_one)
{
    node *n = make(&deferred_type, 7);
    wr_guard_enter();
    wr_guard_enter();
    wr_release(n);
    wr_guard_exit();
    for (unsigned i = 0; i < 3; i++) {
        /* The reclaimer comes by meanwhile. */
        uint64_t until = expect_now_ns() + 20000000u;
        while (expect_now_ns() < until)
            cr_assert_eq(*(volatile int *)&n->value, 7);
        wr_guard_enter();
        wr_guard_exit();
    }
    cr_assert_eq(atomic_load(&destroyed), 0);
    wr_guard_exit();
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(atomic_load(&destroyed), 1);
}

static int left_by_return(void)
{
    WR_GUARD {
        cr_assert(wr_guard_is_inside());
        return 1;
    }
    return 0;
}

Test(guard, block_is_left_by_return_break_continue_and_goto)
{
    cr_assert_eq(left_by_return(), 1);
    cr_assert_not(wr_guard_is_inside(), "after return");

    unsigned times = 0;
    for (int i = 0; i < 3; i++) {
        WR_GUARD {
            times++;
            break; /* the block, not the loop */
        }
        cr_assert_not(wr_guard_is_inside(), "after break");
    }
    cr_assert_eq(times, 3);

    times = 0;
    for (int i = 0; i < 3; i++) {
        WR_GUARD {
            if (i < 5)
                continue; /* the block, not the loop */
            times += 100;
        }
        times++;
        cr_assert_not(wr_guard_is_inside(), "after continue");
    }
    cr_assert_eq(times, 3);

    WR_GUARD {
        WR_GUARD {
            goto out;
        }
    }
    cr_assert_fail("goto did not leave");
out:
    cr_assert_not(wr_guard_is_inside(), "after goto");

    times = 0;
    WR_GUARD {
        WR_GUARD {
            times++;
        }
        cr_assert(wr_guard_is_inside(), "the outer one goes on");
    }
    cr_assert_eq(times, 1);
    cr_assert_not(wr_guard_is_inside(), "at the end of the block");
}

static void exit_without_enter(void *ctx)
{
    (void)ctx;
    wr_guard_exit();
}

static void exit_twice(void *ctx)
{
    (void)ctx;
    wr_guard_enter();
    wr_guard_exit();
    wr_guard_exit();
}

Test(guard, exit_without_an_enter_panics)
{
    expect_panic(exit_without_enter, NULL, "^weakref: wr_guard_exit: thread .*exit without an enter\n$");
    expect_panic(exit_twice, NULL, "^weakref: wr_guard_exit: thread .*exit without an enter\n$");
}

Test(guard, enter_and_exit_allocate_nothing)
{
    fail_alloc_install();
    fail_alloc_all(true);
    wr_guard_enter();
    wr_guard_exit();
    cr_assert_not(fail_alloc_hit());
    cr_assert_eq(fail_alloc_calls(), 0);
}

/* ---- peek ------------------------------------------------------------------------------------------------- */

Test(guard, peek_gives_a_living_object_without_counting)
{
    node *n = make(&deferred_type, 7);
    wr_weak *weak = wr_downgrade(n);
    WR_GUARD {
        node *seen = wr_peek(weak);
        cr_assert_eq(seen, n);
        cr_assert_eq(seen->value, 7);
        cr_assert_eq(wr_strong_count(n), 1);
    }
    wr_release(n);
    wr_weak_release(weak);
}

Test(guard, peek_of_a_dead_object_is_null_at_once)
{
    node *n = make(&deferred_type, 7);
    wr_weak *weak = wr_downgrade(n);
    WR_GUARD {
        node *seen = wr_peek(weak);
        wr_release(n);
        cr_assert_null(wr_peek(weak), "the death is final, also inside the guard that saw it alive");
        cr_assert_eq(seen->value, 7, "what was peeked stays whole");
        cr_assert_eq(atomic_load(&destroyed), 0);
        cr_assert_null(wr_retain_live(seen));
        cr_assert_null(wr_upgrade(weak));
    }
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(atomic_load(&destroyed), 1);
    WR_GUARD {
        cr_assert_null(wr_peek(weak), "also after its destroy");
    }
    wr_weak_release(weak);
}

Test(guard, peek_of_null_is_null_and_einval)
{
    errno = 0;
    cr_assert_null(wr_peek(NULL));
    cr_assert_eq(errno, EINVAL);
}

static void peek_plain(void *ctx)
{
    (void)ctx;
    wr_weak *weak = wr_downgrade(make(&plain_type, 0));
    wr_guard_enter();
    (void)wr_peek(weak);
}

static void peek_plain_dead(void *ctx)
{
    (void)ctx;
    node *n = make(&plain_type, 0);
    wr_weak *weak = wr_downgrade(n);
    wr_release(n);
    wr_guard_enter();
    (void)wr_peek(weak);
}

Test(guard, peek_of_a_type_that_is_not_deferred_panics)
{
    expect_panic(peek_plain, NULL, PANIC("wr_peek", "plain", "its type is not WR_TYPE_DEFERRED[^\n]*"));
    expect_panic(peek_plain_dead, NULL, PANIC("wr_peek", "plain", "its type is not WR_TYPE_DEFERRED[^\n]*"));
}

#if defined(WR_DEBUG) && WR_DEBUG
static void peek_outside(void *ctx)
{
    (void)ctx;
    (void)wr_peek(wr_downgrade(make(&deferred_type, 0)));
}

Test(guard, peek_outside_a_guard_panics_in_debug_builds)
{
    expect_panic(peek_outside, NULL, PANIC("wr_peek", "deferred", "[^\n]*guard[^\n]*"));
}
#endif

Test(guard, retain_live_keeps_what_was_peeked)
{
    node *n = make(&deferred_type, 7);
    wr_weak *weak = wr_downgrade(n);
    node *kept = NULL;
    WR_GUARD {
        kept = wr_retain_live(wr_peek(weak));
    }
    cr_assert_eq(kept, n);
    cr_assert_eq(wr_strong_count(n), 2);
    cr_assert_eq(wr_weak_count(n), 1);
    wr_release(n);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(atomic_load(&destroyed), 0);
    cr_assert_eq(kept->value, 7);
    wr_release(kept);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(atomic_load(&destroyed), 1);
    wr_weak_release(weak);
}

Test(guard, retain_live_of_null_is_null)
{
    cr_assert_null(wr_retain_live(NULL));
}

static void retain_live_outside(void *ctx)
{
    (void)ctx;
    (void)!wr_retain_live(make(&deferred_type, 0));
}

Test(guard, retain_live_outside_a_guard_panics)
{
    expect_panic(retain_live_outside, NULL,
                 "^weakref: wr_retain_live: object at 0x[0-9a-f]+: called outside a guard[^\n]*\n$");
}

/* ---- grace ------------------------------------------------------------------------------------------------ */

Test(guard, deferred_destroy_waits_for_a_guard_of_another_thread)
{
    struct reader r;
    reader_start(&r, 2);
    wr_release(make(&deferred_type, 0));
    atomic_uint done = 0;
    pthread_t waiter;
    cr_assert_eq(pthread_create(&waiter, NULL, synchronize_main, &done), 0);
    /* The reclaimer comes by many times meanwhile: as many grace periods as others ask for do not end this one. */
    struct wr_stats stats;
    uint64_t until = expect_now_ns() + 200000000u, give_up = until + 10000000000u;
    do {
        wr_stats(&stats);
        cr_assert_eq(atomic_load(&destroyed), 0);
        cr_assert_eq(atomic_load(&done), 0);
        cr_assert_eq(stats.deferred, 1);
        cr_assert_lt(expect_now_ns(), give_up, "the reclaimer does not notice the guard");
        nanosleep(&(const struct timespec){.tv_nsec = 1000000}, NULL);
    } while (expect_now_ns() < until || stats.oldest_guard_ns == 0);
    cr_assert_neq(stats.oldest_guard_thread, 0);
    cr_assert_neq(stats.oldest_guard_thread, (uint64_t)getpid());
    reader_end(&r);
    await(atomic_load(&destroyed) == 1);
    cr_assert_eq(pthread_join(waiter, NULL), 0);
    cr_assert_eq(atomic_load(&done), 1);
}

Test(guard, deferred_destroy_waits_for_a_guard_of_the_same_thread)
{
    node *n = make(&deferred_type, 7);
    WR_GUARD {
        wr_release(n);
        uint64_t until = expect_now_ns() + 50000000u;
        while (expect_now_ns() < until)
            cr_assert_eq(*(volatile int *)&n->value, 7);
        cr_assert_eq(atomic_load(&destroyed), 0);
    }
    await(atomic_load(&destroyed) == 1);
}

Test(guard, younger_guard_does_not_hold_back_what_died_before_it)
{
    node *n = make(&deferred_type, 0);
    wr_release(n);
    struct wr_stats stats, later;
    wr_stats(&stats);
    await((wr_stats(&later), later.epoch > stats.epoch) || atomic_load(&destroyed) == 1);
    struct reader r;
    reader_start(&r, 1);
    await(atomic_load(&destroyed) == 1);
    reader_end(&r);
}

Test(guard, reclaimer_runs_deferred_work_without_being_asked)
{
    for (unsigned i = 1; i <= 200; i++) {
        wr_release(make(&deferred_type, 0));
        await(atomic_load(&destroyed) == i);
    }
}

Test(guard, reclaimer_is_not_put_to_sleep_by_a_look_at_the_stats)
{
    struct wr_stats stats;
    race_seed(); /* schedule points on, where there are any */
    for (unsigned i = 1; i <= 5000; i++) {
        wr_release(make(&deferred_type, 0));
        wr_stats(&stats);
        /* No pause: the next one comes while the reclaimer is about to fall asleep. */
        uint64_t until = expect_now_ns() + 10000000000u;
        while (atomic_load(&destroyed) < i)
            cr_assert(expect_now_ns() < until, "number %u waits for ever", i);
    }
}

Test(guard, reclaimer_is_not_put_to_sleep_by_a_synchronize_of_others)
{
    struct reader r;
    for (unsigned i = 1; i <= 50; i++) {
        reader_start(&r, 1);
        wr_release(make(&deferred_type, 0));
        atomic_uint done = 0;
        pthread_t waiter;
        cr_assert_eq(pthread_create(&waiter, NULL, synchronize_main, &done), 0);
        sched_yield();
        reader_end(&r);
        cr_assert_eq(pthread_join(waiter, NULL), 0);
        await_for(10, atomic_load(&destroyed) == i);
    }
}

static atomic_bool slow_begun, slow_go;

static void slow_destroy(void *obj)
{
    node *n = obj;
    atomic_store(&slow_begun, true);
    while (!atomic_load(&slow_go))
        sched_yield();
    wr_release(n->next);
    atomic_fetch_add(&destroyed, 1);
}

/* Long enough for the reclaimer to look around several times and to fall asleep. */
static void let_the_reclaimer_sleep(void)
{
    nanosleep(&(const struct timespec){.tv_nsec = 60000000}, NULL);
}

Test(guard, reclaimer_sees_to_what_work_run_by_others_defers)
{
    static const wr_type slow_type = {
        .name = "slow", .size = sizeof(node), .destroy = slow_destroy, .flags = WR_TYPE_DEFERRED};
    for (unsigned i = 0; i < 20; i++) {
        atomic_store(&slow_begun, false);
        atomic_store(&slow_go, false);
        struct reader r;
        reader_start(&r, 1); /* until the synchronize below waits, so that it has a chance to be first */
        node *head = make(&slow_type, 0);
        head->next = make(&deferred_type, 0);
        /* Whoever of the two runs it: the reclaimer or the synchronize. Many rounds, so that both do. */
        wr_release(head);
        atomic_uint done = 0;
        pthread_t runner;
        cr_assert_eq(pthread_create(&runner, NULL, synchronize_main, &done), 0);
        let_the_reclaimer_sleep();
        reader_end(&r);
        await(atomic_load(&slow_begun));
        let_the_reclaimer_sleep();
        atomic_store(&slow_go, true);
        cr_assert_eq(pthread_join(runner, NULL), 0);
        await_for(10, atomic_load(&destroyed) == 2 * i + 2);
    }
}

Test(guard, retirements_in_bulk_are_collected_and_none_is_lost)
{
    enum { N = 20000 };
    for (unsigned i = 0; i < N; i++)
        wr_release(make(&deferred_type, 0));
    await(atomic_load(&destroyed) == N);
    struct wr_stats stats;
    await((wr_stats(&stats), stats.deferred == 0));
}

/* ---- release_later ---------------------------------------------------------------------------------------- */

Test(guard, release_later_waits_for_running_guards)
{
    struct reader r;
    reader_start(&r, 1);
    node *n = make(&plain_type, 7);
    wr_release_later(n);
    cr_assert_eq(wr_strong_count(n), 1);
    uint64_t until = expect_now_ns() + 50000000u;
    while (expect_now_ns() < until)
        cr_assert_eq(atomic_load(&destroyed), 0);
    cr_assert_eq(n->value, 7);
    reader_end(&r);
    await(atomic_load(&destroyed) == 1);
}

Test(guard, release_later_gives_one_reference_back_and_no_more)
{
    node *n = make(&plain_type, 0);
    wr_retain(n);
    wr_release_later(n);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_strong_count(n), 1);
    cr_assert_eq(atomic_load(&destroyed), 0);
    wr_release_later(NULL);
    wr_release(n);
    cr_assert_eq(atomic_load(&destroyed), 1);
}

static void release_later_dead(void *ctx)
{
    (void)ctx;
    node *n = make(&plain_type, 0);
    (void)wr_downgrade(n);
    wr_release(n);
    wr_release_later(n);
    wr_barrier();
}

static void release_later_in_its_destroy(void *obj)
{
    wr_release_later(obj);
}

static void release_later_the_dying(void *ctx)
{
    (void)ctx;
    static const wr_type type = {.name = "plain", .size = 8, .destroy = release_later_in_its_destroy};
    void *obj = wr_new(&type);
    (void)wr_downgrade(obj);
    wr_release(obj);
    wr_barrier();
}

Test(guard, release_later_of_a_dead_object_panics)
{
    expect_panic(release_later_dead, NULL, PANIC("wr_release(_later)?", "plain", "[^\n]*dea[dt][^\n]*"));
    expect_panic(release_later_the_dying, NULL, PANIC("wr_release(_later)?", "plain", "[^\n]*dea[dt][^\n]*"));
}

static char warned[256];
static atomic_uint n_warned;

static void warn(const char *message, void *ctx)
{
    cr_assert_eq(ctx, &destroyed);
    snprintf(warned, sizeof warned, "%s", message);
    atomic_fetch_add(&n_warned, 1);
}

Test(guard, release_later_outside_a_guard_waits_for_memory_and_loses_nothing)
{
    fail_alloc_install();
    wr_set_warn(warn, &destroyed);
    for (unsigned i = 1; i <= 20; i++) {
        node *n = make(&plain_type, 0);
        fail_alloc_all(true);
        wr_release_later(n);
        cr_assert(fail_alloc_hit());
        fail_alloc_all(false);
        await(atomic_load(&destroyed) == i);
    }
    struct wr_stats stats;
    wr_stats(&stats);
    cr_assert_eq(stats.leaked, 0);
    cr_assert_eq(atomic_load(&n_warned), 0);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(fail_alloc_live(), 0);
}

static void *release_later_main(void *obj)
{
    wr_release_later(obj);
    return NULL;
}

Test(guard, release_later_without_memory_waits_for_the_guard_of_another_thread)
{
    fail_alloc_install();
    struct reader r;
    reader_start(&r, 1);
    node *n = make(&plain_type, 7);
    fail_alloc_all(true);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, release_later_main, n), 0);
    await(fail_alloc_hit());
    uint64_t until = expect_now_ns() + 50000000u;
    while (expect_now_ns() < until)
        cr_assert_eq(atomic_load(&destroyed), 0);
    reader_end(&r);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    await(atomic_load(&destroyed) == 1);
    fail_alloc_all(false);
}

Test(guard, release_later_inside_a_guard_without_memory_leaks_counts_and_warns_once)
{
    fail_alloc_install();
    wr_set_warn(warn, &destroyed);
    node *n = make(&plain_type, 0);
    struct wr_stats stats;
    for (unsigned i = 1; i <= 3; i++) {
        wr_retain(n);
        WR_GUARD {
            fail_alloc_all(true);
            wr_release_later(n);
            fail_alloc_all(false);
        }
        wr_stats(&stats);
        cr_assert_eq(stats.leaked, i);
        cr_assert_eq(atomic_load(&n_warned), 1);
    }
    cr_assert_not_null(strstr(warned, "leaked"), "%s", warned);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_strong_count(n), 4, "each of the three is leaked, and nothing else");
    cr_assert_eq(atomic_load(&destroyed), 0);
    for (unsigned i = 0; i < 4; i++)
        wr_release(n);
    cr_assert_eq(atomic_load(&destroyed), 1);
    cr_assert_eq(fail_alloc_live(), 0);
}

static void release_later_in_destroy(void *obj)
{
    node *n = obj;
    fail_alloc_all(true);
    wr_release_later(n->next);
    fail_alloc_all(false);
    atomic_fetch_add(&destroyed, 1);
}

Test(guard, release_later_without_memory_inside_deferred_work_loses_nothing)
{
    static const wr_type type = {
        .name = "releaser", .size = sizeof(node), .destroy = release_later_in_destroy, .flags = WR_TYPE_DEFERRED};
    fail_alloc_install();
    node *n = make(&type, 0);
    n->next = make(&plain_type, 0);
    wr_release(n);
    await(atomic_load(&destroyed) == 2);
    struct wr_stats stats;
    wr_stats(&stats);
    cr_assert_eq(stats.leaked, 0);
}

Test(guard, death_of_a_deferred_object_allocates_nothing)
{
    fail_alloc_install();
    node *n = make(&deferred_type, 0);
    wr_weak *weak = wr_downgrade(n);
    fail_alloc_all(true);
    WR_GUARD {
        wr_release(wr_retain_live(wr_peek(weak)));
        wr_release(n);
    }
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(atomic_load(&destroyed), 1);
    cr_assert_not(fail_alloc_hit());
    wr_weak_release(weak);
    cr_assert_eq(fail_alloc_live(), 0);
}

/* ---- synchronize and barrier ------------------------------------------------------------------------------ */

Test(guard, synchronize_runs_what_became_due)
{
    /* The reclaimer may be at it already; then synchronize does not wait for it. So: when both are through. */
    wr_release(make(&deferred_type, 0));
    cr_assert_eq(wr_synchronize(), 0);
    await(atomic_load(&destroyed) == 1);
}

Test(guard, synchronize_and_barrier_inside_a_guard_are_refused)
{
    node *n = make(&deferred_type, 0);
    WR_GUARD {
        wr_release(n);
        cr_assert_eq(wr_synchronize(), -EDEADLK);
        cr_assert_eq(wr_barrier(), -EDEADLK);
        cr_assert_eq(atomic_load(&destroyed), 0);
    }
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(atomic_load(&destroyed), 1);
}

Test(guard, barrier_with_nothing_to_do_returns)
{
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_barrier(), 0);
}

Test(guard, barrier_covers_the_work_that_its_work_defers)
{
    enum { LONG = 40 };
    for (unsigned round = 1; round <= 3; round++) {
        node *head = NULL;
        for (unsigned i = 0; i < LONG; i++) {
            node *n = make(&deferred_type, 0);
            n->next = head;
            head = n;
        }
        wr_release(head);
        cr_assert_eq(wr_barrier(), 0);
        cr_assert_eq(atomic_load(&destroyed), round * LONG);
    }
}

Test(guard, barrier_covers_work_of_other_threads_that_have_ended)
{
    enum { N = 32 };
    pthread_t threads[N];
    for (unsigned i = 0; i < N; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, release_later_main, make(&plain_type, 0)), 0);
    for (unsigned i = 0; i < N; i++)
        cr_assert_eq(pthread_join(threads[i], NULL), 0);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(atomic_load(&destroyed), N);
}

struct release_and_stay {
    pthread_t thread;
    void *obj;
    atomic_bool released, go;
};

static void *release_and_stay_main(void *arg)
{
    struct release_and_stay *s = arg;
    wr_release(s->obj);
    atomic_store(&s->released, true);
    while (!atomic_load(&s->go))
        sched_yield();
    return NULL;
}

Test(guard, barrier_covers_work_of_other_threads_that_run_on)
{
    struct release_and_stay s = {.obj = make(&deferred_type, 0)};
    cr_assert_eq(pthread_create(&s.thread, NULL, release_and_stay_main, &s), 0);
    await(atomic_load(&s.released));
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(atomic_load(&destroyed), 1);
    atomic_store(&s.go, true);
    pthread_join(s.thread, NULL);
}

static atomic_int answer_synchronize, answer_barrier;

static void waiting_destroy(void *obj)
{
    (void)obj;
    atomic_store(&answer_synchronize, wr_synchronize());
    atomic_store(&answer_barrier, wr_barrier());
    atomic_fetch_add(&destroyed, 1);
}

Test(guard, barrier_inside_deferred_work_is_refused_and_synchronize_waits)
{
    static const wr_type type = {
        .name = "waiting", .size = sizeof(node), .destroy = waiting_destroy, .flags = WR_TYPE_DEFERRED};
    atomic_store(&answer_synchronize, 1);
    atomic_store(&answer_barrier, 1);
    wr_release(make(&type, 0));
    await(atomic_load(&destroyed) == 1);
    cr_assert_eq(atomic_load(&answer_synchronize), 0);
    cr_assert_eq(atomic_load(&answer_barrier), -EDEADLK);

    /* On whichever thread: here most likely this one's. */
    atomic_store(&answer_barrier, 1);
    wr_release(make(&type, 0));
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(atomic_load(&destroyed), 2);
    cr_assert_eq(atomic_load(&answer_barrier), -EDEADLK);

    /* The destroy of a type that is not deferred may wait, outside a guard. */
    static const wr_type plain = {.name = "waiting", .size = sizeof(node), .destroy = waiting_destroy};
    wr_release(make(&plain, 0));
    cr_assert_eq(atomic_load(&answer_synchronize), 0);
    cr_assert_eq(atomic_load(&answer_barrier), 0);
}

static void *barrier_main(void *arg)
{
    atomic_uint *bad = arg;
    for (unsigned i = 0; i < 20; i++) {
        node *a = wr_new(&deferred_type);
        a->next = wr_new(&deferred_type);
        wr_weak *last = wr_downgrade(a->next);
        wr_release(a);
        if (wr_barrier() != 0 || !wr_weak_is_dead(last))
            atomic_fetch_add(bad, 1);
        wr_weak_release(last);
    }
    return NULL;
}

Test(guard, barriers_of_many_threads_at_once_all_return)
{
    enum { N = 8 };
    pthread_t threads[N];
    atomic_uint bad = 0;
    for (unsigned i = 0; i < N; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, barrier_main, &bad), 0);
    for (unsigned i = 0; i < N; i++)
        cr_assert_eq(pthread_join(threads[i], NULL), 0);
    cr_assert_eq(atomic_load(&bad), 0);
    cr_assert_eq(atomic_load(&destroyed), N * 20 * 2);
}

/* ---- where user code runs --------------------------------------------------------------------------------- */

static pthread_t ran_on;

static void where_destroy(void *obj)
{
    (void)obj;
    ran_on = pthread_self();
    cr_assert_not(wr_guard_is_inside());
    atomic_fetch_add(&destroyed, 1);
}

Test(guard, neither_exit_nor_release_run_deferred_user_code_on_this_thread)
{
    static const wr_type type = {
        .name = "where", .size = sizeof(node), .destroy = where_destroy, .flags = WR_TYPE_DEFERRED};
    enum { N = 3000 }; /* more than what makes a thread collect */
    for (unsigned i = 0; i < N; i++) {
        wr_guard_enter();
        wr_release(make(&type, 0));
        wr_guard_exit();
    }
    await(atomic_load(&destroyed) == N);
    cr_assert_not(pthread_equal(ran_on, pthread_self()));
}

/* ---- threads ---------------------------------------------------------------------------------------------- */

struct crowd {
    wr_slot slot;
    wr_weak *weak;
    atomic_uint bad, peeks;
    atomic_bool over;
};

static void *crowd_main(void *arg)
{
    struct crowd *c = arg;
    for (unsigned i = 0; i < 200 && !atomic_load_explicit(&c->over, memory_order_relaxed); i++) {
        WR_GUARD {
            node *n = wr_slot_peek(&c->slot);
            if (n == NULL || n->value != 7)
                atomic_fetch_add_explicit(&c->bad, 1, memory_order_relaxed);
            WR_GUARD {
                node *again = wr_peek(c->weak);
                node *kept = wr_retain_live(again);
                if (again != NULL && again->value != 7)
                    atomic_fetch_add_explicit(&c->bad, 1, memory_order_relaxed);
                wr_release(kept);
            }
            if (i % 16 == 0)
                sched_yield();
            if (n->value != 7)
                atomic_fetch_add_explicit(&c->bad, 1, memory_order_relaxed);
        }
        atomic_fetch_add_explicit(&c->peeks, 1, memory_order_relaxed);
    }
    return NULL;
}

Test(guard, two_hundred_threads_read_while_the_slot_is_swapped)
{
    enum { N = 200 };
    struct crowd c = {.bad = 0};
    node *first = make(&deferred_type, 7);
    wr_slot_init(&c.slot, first);
    c.weak = wr_downgrade(first);
    wr_release(first);
    pthread_t threads[N];
    for (unsigned i = 0; i < N; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, crowd_main, &c), 0);
    unsigned swaps = 0;
    while (swaps < 500 || atomic_load(&c.peeks) < N) {
        node *n = make(swaps % 2 ? &deferred_type : &plain_type, 7);
        wr_slot_store(&c.slot, n);
        wr_release(n);
        swaps++;
    }
    for (unsigned i = 0; i < N; i++)
        cr_assert_eq(pthread_join(threads[i], NULL), 0);
    cr_assert_eq(atomic_load(&c.bad), 0);
    wr_slot_fini(&c.slot);
    wr_weak_release(c.weak);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(atomic_load(&destroyed), swaps + 1);
}

static void *leave_inside_main(void *obj)
{
    wr_guard_enter();
    wr_guard_enter();
    wr_release(obj);
    return NULL; /* in two guards */
}

Test(guard, thread_that_ends_inside_a_guard_holds_nothing_back)
{
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, leave_inside_main, make(&deferred_type, 0)), 0);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(atomic_load(&destroyed), 1);
}

/* A reader that looks for what was unlinked: destroy sets the value to -1 and the memory goes after. */
static struct {
    wr_weak *weak;
    node *strong;
    node *kept;
    bool whole, peeked;
} duel;

static void duel_prepare(void *ctx)
{
    (void)ctx;
    duel.strong = make(&deferred_type, 7);
    duel.weak = wr_downgrade(duel.strong);
    duel.kept = NULL;
}

static void duel_read(void *ctx)
{
    (void)ctx;
    WR_GUARD {
        node *n = wr_peek(duel.weak);
        duel.peeked = n != NULL;
        duel.whole = n == NULL || n->value == 7;
        duel.kept = wr_retain_live(n);
        duel.whole = duel.whole && (n == NULL || n->value == 7);
    }
}

static void duel_drop(void *ctx)
{
    (void)ctx;
    wr_release(duel.strong);
}

static unsigned duel_judge(void *ctx)
{
    (void)ctx;
    cr_assert(duel.whole);
    unsigned outcome = duel.kept != NULL ? 0 : duel.peeked ? 1 : 2;
    if (duel.kept != NULL) {
        cr_assert_not(wr_weak_is_dead(duel.weak));
        cr_assert_eq(duel.kept->value, 7);
        cr_assert_eq(wr_strong_count(duel.kept), 1);
        cr_assert_eq(wr_weak_count(duel.kept), 1);
        wr_release(duel.kept);
    }
    cr_assert(wr_weak_is_dead(duel.weak));
    wr_weak_release(duel.weak);
    return outcome;
}

Test(guard, peek_and_retain_live_race_with_the_last_release)
{
    const struct race race = {
        .name = "peek + retain_live vs release",
        .prepare = duel_prepare,
        .sides = {duel_read, duel_drop},
        .judge = duel_judge,
        .outcomes = {"kept", "peeked only", "dead"},
        .rounds = RACE_SIZE(5000, 1500),
        .least = 1,
        .seconds = 30,
    };
    cr_assert(race_run(&race));
    cr_assert_eq(wr_barrier(), 0);
}
