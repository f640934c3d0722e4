/* Tests of watches: life, contract, misuse, lack of memory; the races are in race_watch.c. */
#include <weakref/watch.h>

#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <weakref/proxy.h>

#include "deaths.h"
#include "expect.h"
#include "fail_alloc.h"
#include "race.h"

static wr_queue *queue;

static void make_queue(void)
{
    queue = wr_queue_new("test");
    cr_assert_not_null(queue);
}

static void free_queue(void)
{
    cr_assert(queue_is_balanced(queue));
    wr_queue_free(queue);
}

TestSuite(watch, .init = make_queue, .fini = free_queue, .timeout = 60);
TestSuite(watch_memory, .timeout = 60); /* the allocator is set before the first allocation */

/* ---- life ------------------------------------------------------------------------------------------ */

Test(watch, callback_runs_once_after_the_last_release)
{
    thing *t = thing_new(1);
    wr_watch *w = wr_watch_new(t, queue, LOG(7));
    cr_assert_not_null(w);
    wr_retain(t);
    wr_release(t);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 0);
    wr_release(t);
    cr_assert_eq(n_logged, 0, "not on the releasing thread");
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 0);
    cr_assert_eq(n_logged, 1);
    cr_assert_eq(callback_log[0], 7);
    cr_assert_eq(wr_watch_cancel(w), WR_DELIVERED);
    wr_watch_release(w);
}

/* There a weak reference that is dropped takes its callback along, and nobody says so. */
Test(watch, a_callback_survives_dropping_its_handle)
{
    thing *t = thing_new(1);
    for (int i = 0; i < 3; i++)
        wr_watch_release(wr_watch_new(t, i < 2 ? queue : WR_QUEUE_INLINE, LOG(i)));
    wr_watch *w = wr_watch_new(t, queue, LOG(3));
    wr_release(t);
    wr_watch_release(w); /* pending */
    cr_assert_eq(n_logged, 1);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 3);
    cr_assert_eq(n_logged, 4);
}

Test(watch, callbacks_of_one_object_run_newest_first)
{
    thing *t = thing_new(1);
    for (int i = 0; i < 5; i++)
        cr_assert_eq(wr_on_death(t, queue, LOG(i)), 0);
    wr_release(t);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 5);
    for (int i = 0; i < 5; i++)
        cr_assert_eq(callback_log[i], 4 - i);
}

Test(watch, deaths_of_one_thread_arrive_in_their_order)
{
    for (int i = 0; i < 20; i++) {
        thing *t = thing_new(i);
        wr_on_death(t, queue, LOG(2 * i + 1));
        wr_on_death(t, queue, LOG(2 * i));
        wr_release(t);
    }
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 40);
    for (int i = 0; i < 40; i++)
        cr_assert_eq(callback_log[i], i);
}

static void expect_destroyed(wr_weak *dead, void *ctx)
{
    cr_assert(wr_weak_is_dead(dead));
    cr_assert_null(wr_upgrade(dead));
    cr_assert_eq(things_destroyed, 1);
    cr_assert_eq(dead, *(wr_weak **)ctx);
    atomic_fetch_add(&n_logged, 1);
}

Test(watch, callback_gets_the_dead_handle_after_destroy)
{
    thing *t = thing_new(1);
    wr_weak *weak = wr_downgrade(t);
    wr_on_death(t, queue, expect_destroyed, &weak);
    wr_on_death(t, WR_QUEUE_INLINE, expect_destroyed, &weak);
    wr_release(t);
    cr_assert_eq(n_logged, 1);
    wr_queue_drain(queue, 1);
    cr_assert_eq(n_logged, 2);
    wr_weak_release(weak);
}

static void keep_handle(wr_weak *dead, void *ctx)
{
    *(wr_weak **)ctx = wr_weak_retain(dead);
}

Test(watch, the_dead_handle_can_be_kept_beyond_the_callback)
{
    wr_weak *kept = NULL;
    thing *t = thing_new(1);
    wr_on_death(t, queue, keep_handle, &kept);
    wr_release(t);
    wr_queue_drain(queue, 1);
    cr_assert_not_null(kept);
    cr_assert(wr_weak_is_dead(kept));
    cr_assert(wr_weak_is(kept, t));
    wr_weak_release(kept);
}

Test(watch, null_queue_is_the_default_queue_with_its_own_thread)
{
    thing *t = thing_new(1);
    cr_assert_eq(wr_on_death(t, NULL, LOG(1)), 0);
    wr_watch *w = wr_watch_new(t, wr_queue_default(), LOG(2));
    wr_release(t);
    cr_assert_eq(wr_queue_barrier(wr_queue_default()), 0);
    cr_assert_eq(n_logged, 2);
    cr_assert_eq(callback_log[0], 2, "one thread, in order");
    cr_assert_eq(wr_watch_cancel(w), WR_DELIVERED);
    wr_watch_release(w);
    cr_assert(queue_is_balanced(wr_queue_default()));
}

static void note_thread(wr_weak *dead, void *ctx)
{
    (void)dead;
    *(pthread_t *)ctx = pthread_self();
}

Test(watch, inline_runs_on_the_releasing_thread_before_release_returns)
{
    struct wr_queue_stats before, after;
    wr_queue_stats(WR_QUEUE_INLINE, &before);
    pthread_t runner;
    thing *t = thing_new(1);
    wr_watch *w = wr_watch_new(t, WR_QUEUE_INLINE, note_thread, &runner);
    wr_release(t);
    cr_assert(pthread_equal(runner, pthread_self()));
    cr_assert_eq(wr_watch_cancel(w), WR_DELIVERED);
    wr_watch_release(w);
    wr_queue_stats(WR_QUEUE_INLINE, &after);
    cr_assert_eq(after.watched, before.watched + 1);
    cr_assert_eq(after.delivered, before.delivered + 1);
    cr_assert_eq(after.armed, before.armed);
    cr_assert_eq(after.running, 0);
}

Test(watch, watches_of_one_object_may_name_different_queues)
{
    wr_queue *other = wr_queue_new("other");
    thing *t = thing_new(1);
    wr_on_death(t, queue, LOG(1));
    wr_on_death(t, WR_QUEUE_INLINE, LOG(2));
    wr_on_death(t, other, LOG(3));
    wr_on_death(t, other, LOG(4));
    wr_on_death(t, queue, LOG(5));
    wr_release(t);
    cr_assert_eq(n_logged, 1);
    cr_assert_eq(callback_log[0], 2);
    cr_assert_eq(wr_queue_drain(other, SIZE_MAX), 2);
    cr_assert_eq(callback_log[1], 4);
    cr_assert_eq(callback_log[2], 3);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 2);
    cr_assert_eq(callback_log[3], 5);
    cr_assert_eq(callback_log[4], 1);
    wr_queue_free(other);
}

Test(watch, a_hundred_thousand_on_one_object_go_over_and_run)
{
    enum { N = 100000 };
    thing *t = thing_new(1);
    for (int i = 0; i < N; i++)
        cr_assert_eq(wr_on_death(t, queue, LOG(i)), 0);
    wr_release(t);
    struct wr_queue_stats stats;
    wr_queue_stats(queue, &stats);
    cr_assert_eq(stats.pending, N);
    cr_assert_eq(stats.high_water, N);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), N);
    cr_assert_eq(n_logged, N);
    cr_assert_eq(callback_log[0], N - 1);
}

Test(watch, does_not_count_as_a_weak_handle)
{
    thing *t = thing_new(1);
    wr_on_death(t, queue, LOG(1));
    cr_assert_eq(wr_weak_count(t), 0);
    cr_assert_eq(wr_strong_count(t), 1);
    wr_release(t);
}

/* ---- cancel ---------------------------------------------------------------------------------------- */

Test(watch, cancel_before_the_death_keeps_it_from_running)
{
    thing *t = thing_new(1);
    wr_watch *a = wr_watch_new(t, queue, LOG(1));
    wr_watch *b = wr_watch_new(t, queue, LOG(2));
    wr_watch *c = wr_watch_new(t, queue, LOG(3));
    cr_assert_eq(wr_watch_cancel(b), WR_CANCELLED);
    cr_assert_eq(wr_watch_cancel(b), WR_CANCELLED, "asked again");
    cr_assert_eq(wr_watch_cancel_sync(b), WR_CANCELLED);
    wr_watch_release(b);
    wr_release(t);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 2);
    cr_assert_eq(callback_log[0], 3);
    cr_assert_eq(callback_log[1], 1);
    wr_watch_release(a);
    wr_watch_release(c);
}

Test(watch, a_pending_death_can_still_be_cancelled)
{
    thing *t = thing_new(1);
    wr_watch *a = wr_watch_new(t, queue, LOG(1));
    wr_watch *b = wr_watch_new(t, queue, LOG(2));
    wr_release(t);
    cr_assert_eq(wr_watch_cancel(a), WR_CANCELLED);
    cr_assert_eq(wr_watch_cancel_sync(a), WR_CANCELLED);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert_eq(callback_log[0], 2);
    cr_assert_eq(wr_watch_cancel(a), WR_CANCELLED);
    wr_watch_release(a);
    wr_watch_release(b);
    struct wr_queue_stats stats;
    wr_queue_stats(queue, &stats);
    cr_assert_eq(stats.watched, 2);
    cr_assert_eq(stats.delivered, 1);
    cr_assert_eq(stats.cancelled, 1);
    cr_assert_eq(stats.pending, 0);
    cr_assert_eq(stats.armed, 0);
}

Test(watch_memory, cancelling_all_that_is_pending_frees_its_memory_without_a_consumer)
{
    fail_alloc_install();
    make_queue();
    long before = fail_alloc_live();
    for (int i = 0; i < 1000; i++) {
        thing *t = thing_new(1);
        wr_watch *w = wr_watch_new(t, queue, LOG(1));
        wr_release(t);
        cr_assert_eq(wr_watch_cancel(w), WR_CANCELLED);
        wr_watch_release(w);
    }
    cr_assert_eq(fail_alloc_live(), before);
    free_queue();
}

Test(watch_memory, cancel_churn_beside_a_pending_one_keeps_memory_bounded)
{
    fail_alloc_install();
    make_queue();
    thing *first = thing_new(0);
    wr_on_death(first, queue, LOG(0));
    wr_release(first);
    long before = fail_alloc_live();
    for (int i = 0; i < 10000; i++) {
        thing *t = thing_new(1);
        wr_watch *w = wr_watch_new(t, queue, LOG(1));
        wr_release(t);
        cr_assert_eq(wr_watch_cancel(w), WR_CANCELLED);
        wr_watch_release(w);
        cr_assert_leq(fail_alloc_live(), before + 200);
    }
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    free_queue();
}

Test(watch_memory, churn_on_a_long_lived_object_leaves_memory_where_it_was)
{
    fail_alloc_install();
    make_queue();
    thing *t = thing_new(1);
    wr_watch *others[100];
    for (int i = 0; i < 100; i++)
        others[i] = wr_watch_new(t, queue, LOG(i));
    long before = fail_alloc_live();
    for (int i = 0; i < 100000; i++) {
        wr_watch *w = wr_watch_new(t, queue, LOG(1000));
        cr_assert_eq(wr_watch_cancel(w), WR_CANCELLED);
        wr_watch_release(w);
    }
    cr_assert_eq(fail_alloc_live(), before);
    for (int i = 0; i < 100; i++)
        wr_watch_release(others[i]);
    wr_release(t);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 100);
    free_queue();
}

Test(watch_memory, cancelled_ones_among_many_pending_are_given_back_at_once)
{
    /* In random order, so that each has many before and many after it: a search would run into the time limit. */
    enum { N = RACE_SIZE(200000, 50000), KEPT = 7 };
    fail_alloc_install();
    make_queue();
    wr_watch **w = malloc(N * sizeof *w);
    thing *t = thing_new(1);
    for (int i = 0; i < N; i++)
        cr_assert_not_null(w[i] = wr_watch_new(t, queue, LOG(i)));
    wr_release(t);
    uint64_t random = race_seed();
    for (int i = N - 1; i > 0; i--) {
        int k = (int)(race_draw(&random) % (uint64_t)(i + 1));
        wr_watch *swap = w[i];
        w[i] = w[k];
        w[k] = swap;
    }
    long live = fail_alloc_live();
    for (int i = KEPT; i < N; i++) {
        cr_assert_eq(wr_watch_cancel(w[i]), WR_CANCELLED);
        wr_watch_release(w[i]);
        cr_assert_eq(fail_alloc_live(), --live, "the %d-th", i);
    }
    struct wr_queue_stats stats;
    wr_queue_stats(queue, &stats);
    cr_assert_eq(stats.pending, KEPT);
    cr_assert_eq(stats.cancelled, N - KEPT);
    cr_assert_eq(wr_queue_drain(queue, 1), 1);
    cr_assert_eq(wr_queue_cancel_all(queue), 0);
    cr_assert_eq(wr_queue_barrier(queue), 0);
    for (int i = 0; i < KEPT; i++)
        wr_watch_release(w[i]);
    cr_assert_eq(fail_alloc_live(), 1, "the queue");
    free(w);
    free_queue();
}

Test(watch_memory, handles_released_before_the_cancel_of_all_leave_nothing)
{
    enum { N = 20000 };
    fail_alloc_install();
    make_queue();
    thing *t = thing_new(1);
    for (int i = 0; i < N; i++)
        wr_watch_release(wr_watch_new(t, queue, LOG(i)));
    wr_release(t);
    cr_assert_eq(wr_queue_cancel_all(queue), 0);
    cr_assert_eq(fail_alloc_live(), 1, "the queue");
    free_queue();
}

Test(watch_memory, a_million_watches_come_and_go_beside_a_hundred_thousand_others)
{
    /* Removing one by a search would run into the time limit. */
    enum { OTHERS = RACE_SIZE(100000, 20000), N = RACE_SIZE(1000000, 100000) };
    fail_alloc_install();
    make_queue();
    thing *t = thing_new(1);
    wr_watch **others = malloc(OTHERS * sizeof *others);
    for (int i = 0; i < OTHERS; i++)
        others[i] = wr_watch_new(t, queue, LOG(i));
    long live = fail_alloc_live(), bytes = fail_alloc_bytes();
    wr_watch *kept[8] = {NULL}; /* some stay a while, so that they are not always the newest */
    for (int i = 0; i < N; i++) {
        wr_watch **w = &kept[i % 8];
        if (*w != NULL) {
            cr_assert_eq(wr_watch_cancel(*w), WR_CANCELLED);
            wr_watch_release(*w);
        }
        *w = wr_watch_new(t, queue, LOG(-1));
        cr_assert_leq(fail_alloc_live(), live + 8);
    }
    for (int i = 0; i < 8; i++) {
        cr_assert_eq(wr_watch_cancel(kept[i]), WR_CANCELLED);
        wr_watch_release(kept[i]);
    }
    cr_assert_eq(fail_alloc_live(), live);
    cr_assert_eq(fail_alloc_bytes(), bytes);
    wr_release(t);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), OTHERS);
    cr_assert_eq(callback_log[0], OTHERS - 1);
    for (int i = 0; i < OTHERS; i++)
        wr_watch_release(others[i]);
    cr_assert_eq(fail_alloc_live(), 1, "the queue");
    struct wr_queue_stats stats;
    wr_queue_stats(queue, &stats);
    cr_assert_eq(stats.watched, N + OTHERS);
    cr_assert_eq(stats.cancelled, N);
    free(others);
    free_queue();
}

/* Between the death's taking of the watchers and their hand-over: destroy runs there. */
static wr_watch *cancelled_in_destroy[2];
static int destroy_answers[3];

static void cancel_in_destroy(void *obj)
{
    destroy_answers[0] = wr_watch_cancel(cancelled_in_destroy[0]);
    destroy_answers[1] = wr_watch_cancel_sync(cancelled_in_destroy[1]);
    wr_watch_release(cancelled_in_destroy[1]);
    destroy_answers[2] = wr_on_death(obj, WR_QUEUE_INLINE, LOG(99));
    errno = 0;
    cr_assert_null(wr_watch_new(obj, WR_QUEUE_INLINE, LOG(99)));
    cr_assert_eq(errno, ESTALE);
}

Test(watch, cancel_inside_destroy_still_cancels_and_a_new_watch_is_stale)
{
    static const wr_type type = {.name = "canceller", .size = 8, .destroy = cancel_in_destroy};
    void *obj = wr_new(&type);
    wr_on_death(obj, queue, LOG(1));
    cancelled_in_destroy[0] = wr_watch_new(obj, queue, LOG(2));
    cancelled_in_destroy[1] = wr_watch_new(obj, WR_QUEUE_INLINE, LOG(3));
    wr_on_death(obj, queue, LOG(4));
    wr_release(obj);
    cr_assert_eq(destroy_answers[0], WR_CANCELLED);
    cr_assert_eq(destroy_answers[1], WR_CANCELLED);
    cr_assert_eq(destroy_answers[2], -ESTALE);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 2);
    cr_assert_eq(callback_log[0], 4);
    cr_assert_eq(callback_log[1], 1);
    cr_assert_eq(wr_watch_cancel(cancelled_in_destroy[0]), WR_CANCELLED);
    wr_watch_release(cancelled_in_destroy[0]);
    cr_assert(queue_is_balanced(WR_QUEUE_INLINE));
}

struct own {
    wr_watch *self;
    int answer, sync_answer, drained;
};

static void cancel_self(wr_weak *dead, void *ctx)
{
    struct own *own = ctx;
    (void)dead;
    own->answer = wr_watch_cancel(own->self);
    own->sync_answer = wr_watch_cancel_sync(own->self);
}

Test(watch, cancel_of_the_callback_one_is_in_answers_delivered_and_sync_refuses)
{
    wr_queue *const queues[] = {queue, WR_QUEUE_INLINE};
    for (int i = 0; i < 2; i++) {
        struct own own = {0};
        thing *t = thing_new(1);
        own.self = wr_watch_new(t, queues[i], cancel_self, &own);
        wr_release(t);
        wr_queue_drain(queues[i], 1);
        cr_assert_eq(own.answer, WR_DELIVERED);
        cr_assert_eq(own.sync_answer, -EDEADLK);
        cr_assert_eq(wr_watch_cancel_sync(own.self), WR_DELIVERED);
        wr_watch_release(own.self);
    }
}

static void drain_more(wr_weak *dead, void *ctx)
{
    (void)dead;
    ((struct own *)ctx)->drained = (int)wr_queue_drain(queue, SIZE_MAX);
}

Test(watch, cancel_sync_of_a_callback_further_down_the_stack_refuses)
{
    struct own own = {0};
    thing *outer = thing_new(1), *inner = thing_new(2);
    own.self = wr_watch_new(outer, queue, drain_more, &own);
    wr_on_death(inner, queue, cancel_self, &own);
    wr_release(outer);
    wr_release(inner);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert_eq(own.drained, 1);
    cr_assert_eq(own.answer, WR_DELIVERED);
    cr_assert_eq(own.sync_answer, -EDEADLK);
    wr_watch_release(own.self);
}

struct sync_side {
    wr_watch *watch;
    struct gate *gate;
    int answer;
    atomic_bool asking;
};

static void *open_when_asked(void *arg)
{
    struct sync_side *side = arg;
    gate_wait(&side->asking);
    for (int i = 0; i < 1000; i++)
        sched_yield();
    atomic_store(&side->gate->open, true);
    return NULL;
}

Test(watch, cancel_of_a_callback_on_another_thread_says_running_and_sync_waits)
{
    struct gate gate = {0};
    wr_queue_start(queue, 1);
    thing *t = thing_new(1);
    wr_watch *w = wr_watch_new(t, queue, wait_at_gate, &gate);
    wr_release(t);
    gate_wait(&gate.reached);
    cr_assert_eq(wr_watch_cancel(w), WR_RUNNING);
    struct wr_queue_stats stats;
    wr_queue_stats(queue, &stats);
    cr_assert_eq(stats.running, 1);
    struct sync_side side = {.watch = w, .gate = &gate};
    pthread_t opener;
    cr_assert_eq(pthread_create(&opener, NULL, open_when_asked, &side), 0);
    atomic_store(&side.asking, true);
    cr_assert_eq(wr_watch_cancel_sync(w), WR_DELIVERED);
    cr_assert(atomic_load(&gate.open), "it has waited");
    cr_assert_eq(wr_watch_cancel(w), WR_DELIVERED);
    pthread_join(opener, NULL);
    wr_watch_release(w);
    wr_queue_stop(queue);
}

/* ---- callbacks that do things ---------------------------------------------------------------------- */

static wr_watch *siblings[3];

static void cancel_siblings(wr_weak *dead, void *ctx)
{
    log_callback(dead, ctx);
    for (int i = 0; i < 3; i++) {
        if (siblings[i] == NULL)
            continue;
        cr_assert_eq(wr_watch_cancel_sync(siblings[i]), WR_CANCELLED);
        wr_watch_release(siblings[i]);
        siblings[i] = NULL;
    }
}

Test(watch, a_callback_can_cancel_its_siblings)
{
    wr_queue *const queues[] = {queue, WR_QUEUE_INLINE};
    for (int i = 0; i < 2; i++) {
        atomic_store(&n_logged, 0);
        thing *t = thing_new(1);
        wr_on_death(t, queues[i], LOG(1));
        for (int k = 0; k < 3; k++)
            siblings[k] = wr_watch_new(t, queues[i], LOG(2));
        wr_on_death(t, queues[i], cancel_siblings, (void *)3);
        wr_release(t);
        wr_queue_drain(queues[i], SIZE_MAX);
        cr_assert_eq(n_logged, 2);
        cr_assert_eq(callback_log[0], 3);
        cr_assert_eq(callback_log[1], 1);
        cr_assert(queue_is_balanced(queues[i]));
    }
}

static void watch_another(wr_weak *dead, void *ctx)
{
    log_callback(dead, NULL);
    cr_assert_eq(wr_on_death(ctx, queue, LOG(5)), 0);
    wr_release(ctx);
}

Test(watch, a_callback_can_watch_and_release_another_object)
{
    thing *a = thing_new(1), *b = thing_new(2);
    wr_on_death(b, queue, LOG(4));
    wr_on_death(a, queue, watch_another, b);
    wr_release(a);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 3);
    cr_assert_eq(callback_log[1], 5);
    cr_assert_eq(callback_log[2], 4);
}

static void release_and_watch_inline(wr_weak *dead, void *ctx)
{
    (void)dead;
    wr_release(ctx); /* its callbacks come after this one */
    cr_assert_eq(n_logged, 0);
}

Test(watch, an_inline_callback_can_release_another_watched_object)
{
    thing *a = thing_new(1), *b = thing_new(2);
    wr_on_death(b, WR_QUEUE_INLINE, LOG(2));
    wr_on_death(a, WR_QUEUE_INLINE, release_and_watch_inline, b);
    wr_release(a);
    cr_assert_eq(n_logged, 1);
    cr_assert_eq(callback_log[0], 2);
}

static void spoil_errno(wr_weak *dead, void *ctx)
{
    (void)dead, (void)ctx;
    errno = EILSEQ;
}

Test(watch, errno_of_the_thread_survives_callbacks)
{
    thing *t = thing_new(1);
    wr_on_death(t, queue, spoil_errno, NULL);
    wr_on_death(t, WR_QUEUE_INLINE, spoil_errno, NULL);
    errno = ENOTTY;
    wr_release(t);
    cr_assert_eq(errno, ENOTTY);
    wr_queue_drain(queue, SIZE_MAX);
    cr_assert_eq(errno, ENOTTY);
}

static void release_own_handle(wr_weak *dead, void *ctx)
{
    (void)dead;
    wr_watch_release(*(wr_watch **)ctx);
}

Test(watch, the_handle_can_be_released_by_its_own_callback)
{
    wr_watch *w;
    thing *t = thing_new(1);
    w = wr_watch_new(t, queue, release_own_handle, &w);
    wr_release(t);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    t = thing_new(2);
    w = wr_watch_new(t, WR_QUEUE_INLINE, release_own_handle, &w);
    wr_release(t);
}

static const wr_type deferred_type = {
    .name = "deferred", .size = 8, .destroy = thing_destroy, .flags = WR_TYPE_DEFERRED};

Test(watch, callbacks_of_a_deferred_object_come_after_its_destroy)
{
    void *obj = wr_new(&deferred_type);
    wr_weak *weak = wr_downgrade(obj);
    wr_watch *w = wr_watch_new(obj, queue, expect_destroyed, &weak);
    wr_watch *cancelled = wr_watch_new(obj, queue, LOG(1));
    WR_GUARD {
        wr_release(obj);
        cr_assert(wr_weak_is_dead(weak));
        cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 0, "still in a guard");
        cr_assert_eq(wr_watch_cancel(cancelled), WR_CANCELLED);
    }
    wr_watch_release(cancelled);
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert_eq(n_logged, 1);
    wr_watch_release(w);
    wr_weak_release(weak);
}

/* ---- arguments, misuse, memory ---------------------------------------------------------------------- */

Test(watch, bad_arguments_are_refused)
{
    thing *t = thing_new(1);
    void *none = NULL;
    errno = 0;
    cr_assert_null(wr_watch_new(none, queue, LOG(1)));
    cr_assert_eq(errno, EINVAL);
    errno = 0;
    cr_assert_null(wr_watch_new(t, queue, NULL, NULL));
    cr_assert_eq(errno, EINVAL);
    cr_assert_eq(wr_on_death(none, queue, LOG(1)), -EINVAL);
    cr_assert_eq(wr_on_death(t, queue, NULL, NULL), -EINVAL);
    cr_assert_eq(wr_watch_cancel(NULL), -EINVAL);
    cr_assert_eq(wr_watch_cancel_sync(NULL), -EINVAL);
    wr_watch_release(NULL);
    struct wr_queue_stats stats;
    wr_queue_stats(queue, &stats);
    cr_assert_eq(stats.watched, 0);
    wr_release(t);
}

/* A watch whose handle was released, while the library still has it: armed, or pending. */
static wr_watch *released_watch(bool pending)
{
    thing *t = thing_new(1);
    wr_watch *w = wr_watch_new(t, queue, LOG(1));
    if (pending)
        wr_release(t);
    wr_watch_release(w);
    return w;
}

static void cancel_released(void *pending)
{
    wr_watch_cancel(released_watch(pending != NULL));
}

static void cancel_sync_released(void *pending)
{
    wr_watch_cancel_sync(released_watch(pending != NULL));
}

static void release_twice(void *pending)
{
    wr_watch_release(released_watch(pending != NULL));
}

#define RELEASED(call) "^weakref: " call ": watch at 0x[0-9a-f]+: its handle has been released\n$"

Test(watch, using_a_released_handle_panics_and_says_so)
{
    for (int pending = 0; pending < 2; pending++) {
        void *ctx = pending ? &queue : NULL;
        expect_panic(cancel_released, ctx, RELEASED("wr_watch_cancel"));
        expect_panic(cancel_sync_released, ctx, RELEASED("wr_watch_cancel_sync"));
        expect_panic(release_twice, ctx, RELEASED("wr_watch_release"));
    }
}

Test(watch_memory, every_allocation_of_a_watch_failed_in_turn_changes_nothing)
{
    fail_alloc_install();
    make_queue();
    for (int handle = 0; handle < 2; handle++) {
        long n = 1;
        for (bool hit = true; hit; n++) {
            thing *t = thing_new(1);
            struct wr_queue_stats before, after;
            wr_queue_stats(queue, &before);
            long live = fail_alloc_live();
            fail_alloc_at(n);
            errno = 0;
            wr_watch *w = NULL;
            int error = 0;
            if (handle) {
                w = wr_watch_new(t, queue, LOG(1));
                error = w == NULL ? -errno : 0;
            } else {
                error = wr_on_death(t, queue, LOG(1));
            }
            hit = fail_alloc_hit();
            wr_queue_stats(queue, &after);
            if (hit) {
                cr_assert_eq(error, -ENOMEM);
                cr_assert_eq(fail_alloc_live(), live);
                cr_assert_eq(after.watched, before.watched);
                cr_assert_eq(after.armed, before.armed);
            } else {
                cr_assert_eq(error, 0);
                cr_assert_eq(after.armed, before.armed + 1);
            }
            wr_watch_release(w);
            wr_release(t);
        }
        cr_assert_gt(n, 2, "it allocates at all");
    }
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 2);
    free_queue();
}

Test(watch_memory, every_allocation_of_the_first_watch_on_the_default_queue_failed_in_turn)
{
    fail_alloc_install();
    int error = -1;
    for (long n = 1; error != 0; n++) {
        thing *t = thing_new(1);
        fail_alloc_at(n);
        error = wr_on_death(t, NULL, LOG(1));
        bool hit = fail_alloc_hit();
        cr_assert(hit ? error == -ENOMEM || error == -EAGAIN : error == 0);
        wr_release(t);
    }
    wr_queue_barrier(wr_queue_default());
    cr_assert_eq(n_logged, 1);
}

Test(watch_memory, the_death_path_allocates_nothing)
{
    fail_alloc_install();
    make_queue();
    thing *t = thing_new(1);
    for (int i = 0; i < 100; i++)
        wr_on_death(t, i % 3 ? queue : WR_QUEUE_INLINE, LOG(i));
    wr_watch *w = wr_watch_new(t, queue, LOG(200));
    fail_alloc_all(true);
    wr_release(t);
    cr_assert_eq(wr_watch_cancel(w), WR_CANCELLED);
    wr_watch_release(w);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 66);
    cr_assert_not(fail_alloc_hit());
    fail_alloc_all(false);
    cr_assert_eq(n_logged, 100);
    free_queue();
}

/* ---- CPython's test_weakref, by name ---------------------------------------------------------------- */

Test(watch, cpython_basic_callback)
{
    thing *t = thing_new(1);
    wr_weak *weak = wr_downgrade(t);
    wr_watch *w = wr_watch_new(t, queue, LOG(1));
    wr_release(t);
    wr_queue_drain(queue, SIZE_MAX);
    cr_assert_eq(n_logged, 1);
    cr_assert_null(wr_upgrade(weak));
    wr_watch_release(w);
    wr_weak_release(weak);
}

Test(watch, cpython_multiple_callbacks)
{
    thing *t = thing_new(1);
    wr_watch *a = wr_watch_new(t, queue, LOG(1)), *b = wr_watch_new(t, queue, LOG(1));
    wr_release(t);
    wr_queue_drain(queue, SIZE_MAX);
    cr_assert_eq(n_logged, 2, "both were called, though alike");
    wr_watch_release(a);
    wr_watch_release(b);
}

static void check_all_dead(wr_weak *dead, void *ctx)
{
    cr_assert(wr_weak_is_dead(dead));
    log_callback(dead, ctx);
}

Test(watch, cpython_multiple_selfref_callbacks)
{
    /* Each callback finds the object dead, and they come newest first. */
    thing *t = thing_new(1);
    for (int i = 0; i < 3; i++)
        wr_on_death(t, WR_QUEUE_INLINE, check_all_dead, (void *)(intptr_t)i);
    wr_release(t);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(callback_log[i], 2 - i);
}

Test(watch, cpython_shared_ref_without_callback)
{
    /* Watches do not make handles differ: all are one pointer. */
    thing *t = thing_new(1);
    wr_weak *a = wr_downgrade(t);
    wr_on_death(t, queue, LOG(1));
    wr_weak *b = wr_downgrade(t);
    cr_assert_eq(a, b);
    cr_assert_eq(wr_weak_count(t), 2);
    wr_weak_release(a);
    wr_weak_release(b);
    wr_release(t);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1, "dropping handles loses no callback");
}

Test(watch, cpython_callbacks_protected)
{
    /* There: a pending exception survives a callback. Here: errno. */
    thing *t = thing_new(1);
    wr_on_death(t, WR_QUEUE_INLINE, spoil_errno, NULL);
    errno = EDOM;
    wr_release(t);
    cr_assert_eq(errno, EDOM);
}

Test(watch, cpython_callback_attribute)
{
    /* There: ref.__callback__ is None without a callback and after deletion. Here: what cancel answers tells. */
    thing *t = thing_new(1);
    wr_watch *w = wr_watch_new(t, queue, LOG(1)), *cancelled = wr_watch_new(t, queue, LOG(2));
    cr_assert_eq(wr_watch_cancel(cancelled), WR_CANCELLED);
    wr_release(t);
    wr_queue_drain(queue, SIZE_MAX);
    cr_assert_eq(wr_watch_cancel(w), WR_DELIVERED);
    cr_assert_eq(wr_watch_cancel(cancelled), WR_CANCELLED);
    wr_watch_release(w);
    wr_watch_release(cancelled);
}

static void make_handle_in_destroy(void *obj)
{
    *(wr_weak **)obj = NULL;
    wr_weak *weak = wr_downgrade(obj);
    cr_assert(wr_weak_is_dead(weak));
    cr_assert_null(wr_upgrade(weak));
    cr_assert_eq(wr_on_death(obj, NULL, LOG(1)), -ESTALE);
    wr_weak_release(weak);
}

Test(watch, cpython_ref_created_during_del)
{
    static const wr_type type = {.name = "last", .size = sizeof(wr_weak *), .destroy = make_handle_in_destroy};
    wr_release(wr_new(&type));
}

static void collect(wr_weak *dead, void *ctx)
{
    log_callback(dead, ctx);
    thing *t = thing_new(1); /* a death and a drain inside a callback */
    wr_on_death(t, queue, LOG(2));
    wr_release(t);
    cr_assert_geq(wr_queue_drain(queue, SIZE_MAX), 1);
}

Test(watch, cpython_callback_gcs)
{
    for (int i = 0; i < 10; i++) {
        thing *t = thing_new(1);
        wr_on_death(t, queue, collect, (void *)1);
        wr_release(t);
    }
    wr_queue_drain(queue, SIZE_MAX);
    cr_assert_eq(n_logged, 20);
}

static void drop_other(wr_weak *dead, void *ctx)
{
    log_callback(dead, (void *)1);
    wr_watch_release(*(wr_watch **)ctx);
    *(wr_watch **)ctx = NULL;
}

Test(watch, cpython_sf_bug_840829)
{
    /* A callback that throws away what belongs to another watch of the same dying object. */
    thing *t = thing_new(1);
    wr_watch *other = wr_watch_new(t, WR_QUEUE_INLINE, LOG(2));
    wr_on_death(t, WR_QUEUE_INLINE, drop_other, &other);
    wr_release(t);
    cr_assert_eq(n_logged, 2);
    cr_assert_null(other);
}

Test(watch_memory, cpython_no_memory_when_clearing)
{
    fail_alloc_install();
    thing *t = thing_new(1);
    wr_weak *weak = wr_downgrade(t);
    for (int i = 0; i < 10; i++)
        wr_on_death(t, WR_QUEUE_INLINE, LOG(i));
    fail_alloc_all(true);
    wr_release(t);
    cr_assert_eq(n_logged, 10);
    cr_assert_null(wr_upgrade(weak));
    wr_weak_release(weak);
    cr_assert_not(fail_alloc_hit());
    fail_alloc_all(false);
}

/* There: subclasses of ref carry data and their own callbacks. Here: a subscription is a struct around a watch. */
struct subscription {
    wr_watch *watch;
    int value, calls;
};

static void count_subscription(wr_weak *dead, void *ctx)
{
    (void)dead;
    ((struct subscription *)ctx)->calls++;
}

static void subscribe(struct subscription *s, void *obj, int value)
{
    *s = (struct subscription){.value = value};
    s->watch = wr_watch_new(obj, queue, count_subscription, s);
    cr_assert_not_null(s->watch);
}

Test(watch, cpython_subclass_refs)
{
    thing *t = thing_new(1);
    struct subscription s;
    subscribe(&s, t, 24);
    wr_release(t);
    wr_queue_drain(queue, SIZE_MAX);
    cr_assert_eq(s.calls, 1);
    cr_assert_eq(s.value, 24);
    wr_watch_release(s.watch);
}

Test(watch, cpython_subclass_refs_dont_replace_standard_refs)
{
    thing *t = thing_new(1);
    wr_weak *a = wr_downgrade(t);
    struct subscription s;
    subscribe(&s, t, 1);
    wr_weak *b = wr_downgrade(t);
    cr_assert_eq(a, b);
    cr_assert_neq((void *)a, (void *)s.watch);
    cr_assert_eq(wr_weak_count(t), 2);
    wr_weak_release(a);
    wr_weak_release(b);
    wr_watch_cancel(s.watch);
    wr_watch_release(s.watch);
    wr_release(t);
}

Test(watch, cpython_subclass_refs_dont_conflate_callbacks)
{
    thing *t = thing_new(1);
    struct subscription a, b;
    subscribe(&a, t, 1);
    subscribe(&b, t, 2);
    cr_assert_neq(a.watch, b.watch);
    cr_assert_eq(wr_watch_cancel(a.watch), WR_CANCELLED);
    wr_release(t);
    wr_queue_drain(queue, SIZE_MAX);
    cr_assert_eq(a.calls, 0);
    cr_assert_eq(b.calls, 1);
    wr_watch_release(a.watch);
    wr_watch_release(b.watch);
}

Test(watch, cpython_subclass_refs_with_slots)
{
    thing *t = thing_new(1);
    struct subscription s[3];
    for (int i = 0; i < 3; i++)
        subscribe(&s[i], t, 10 + i);
    wr_release(t);
    wr_queue_drain(queue, SIZE_MAX);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(s[i].value, 10 + i);
        cr_assert_eq(s[i].calls, 1);
        wr_watch_release(s[i].watch);
    }
}

/* A subscription that its own object holds: it goes with the object, its callback still comes, elsewhere. */
struct holder {
    wr_watch *watch;
};

static void holder_destroy(void *obj)
{
    wr_watch_release(((struct holder *)obj)->watch);
}

Test(watch, cpython_subclass_refs_with_cycle)
{
    static const wr_type type = {.name = "holder", .size = sizeof(struct holder), .destroy = holder_destroy};
    struct holder *h = wr_new(&type);
    h->watch = wr_watch_new(h, queue, LOG(1));
    wr_release(h);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
}
