/* Tests of queues: consumers of every kind, the descriptor, barriers, stopping and freeing; races are in race_queue.c. */
#include <weakref/queue.h>

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <weakref/watch.h>

#include "deaths.h"
#include "fail_alloc.h"

static wr_queue *queue;

static void make_queue(void)
{
    queue = wr_queue_new("test");
    cr_assert_not_null(queue);
}

static void free_queue(void)
{
    if (queue != NULL)
        cr_assert(queue_is_balanced(queue));
    wr_queue_free(queue);
}

TestSuite(queue, .init = make_queue, .fini = free_queue, .timeout = 60);
TestSuite(queue_memory, .timeout = 60); /* the allocator is set before the first allocation */

static void kill_one(wr_queue *q, wr_callback *fn, void *ctx)
{
    thing *t = thing_new(1);
    cr_assert_eq(wr_on_death(t, q, fn, ctx), 0);
    wr_release(t);
}

static bool readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static struct wr_queue_stats stats_of(wr_queue *q)
{
    struct wr_queue_stats stats;
    wr_queue_stats(q, &stats);
    return stats;
}

/* ---- life and figures ------------------------------------------------------------------------------ */

Test(queue, copies_its_name)
{
    char name[] = "a long name that no thread can carry";
    wr_queue *q = wr_queue_new(name);
    name[0] = 'X';
    cr_assert_str_eq(wr_queue_name(q), "a long name that no thread can carry");
    wr_queue_free(q);
    q = wr_queue_new(NULL);
    cr_assert_str_eq(wr_queue_name(q), "queue");
    wr_queue_free(q);
    wr_queue_free(NULL);
}

Test(queue, counts_each_watch_in_one_place_at_every_step)
{
    struct wr_queue_stats s = stats_of(queue);
    cr_assert_eq(s.watched + s.armed + s.pending + s.delivered + s.cancelled + s.running + s.high_water, 0);
    thing *t[4];
    wr_watch *w[4];
    for (int i = 0; i < 4; i++) {
        t[i] = thing_new(i);
        w[i] = wr_watch_new(t[i], queue, LOG(i));
    }
    s = stats_of(queue);
    cr_assert_eq(s.watched, 4);
    cr_assert_eq(s.armed, 4);
    wr_watch_cancel(w[0]);
    s = stats_of(queue);
    cr_assert_eq(s.armed, 3);
    cr_assert_eq(s.cancelled, 1);
    for (int i = 0; i < 3; i++)
        wr_release(t[i]);
    s = stats_of(queue);
    cr_assert_eq(s.armed, 1);
    cr_assert_eq(s.pending, 2);
    wr_watch_cancel(w[1]);
    s = stats_of(queue);
    cr_assert_eq(s.pending, 1);
    cr_assert_eq(s.cancelled, 2);
    cr_assert_eq(wr_queue_drain(queue, 1), 1);
    s = stats_of(queue);
    cr_assert_eq(s.pending, 0);
    cr_assert_eq(s.delivered, 1);
    cr_assert_eq(s.high_water, 2);
    cr_assert(queue_is_balanced(queue));
    wr_release(t[3]);
    for (int i = 0; i < 4; i++)
        wr_watch_release(w[i]);
}

Test(queue, stats_fill_what_the_caller_knows_and_no_more)
{
    struct {
        struct wr_queue_stats stats;
        uint64_t beyond;
    } big = {.beyond = 77};
    kill_one(queue, LOG(1));
    wr_queue_stats_sized(queue, &big.stats, sizeof(uint64_t));
    cr_assert_eq(big.stats.watched, 1);
    wr_queue_stats_sized(queue, &big.stats, sizeof big);
    cr_assert_eq(big.stats.pending, 1);
    cr_assert_eq(big.beyond, 0, "what this library does not know is 0");
    wr_queue_stats(NULL, &big.stats);
    cr_assert_eq(big.stats.watched, 0);
}

/* ---- draining -------------------------------------------------------------------------------------- */

Test(queue, drain_runs_at_most_so_many_in_order)
{
    for (int i = 0; i < 10; i++)
        kill_one(queue, LOG(i));
    cr_assert_eq(wr_queue_drain(queue, 0), 0);
    cr_assert_eq(wr_queue_drain(queue, 3), 3);
    cr_assert_eq(n_logged, 3);
    kill_one(queue, LOG(10));
    cr_assert_eq(wr_queue_drain(queue, 100), 8);
    for (int i = 0; i <= 10; i++)
        cr_assert_eq(callback_log[i], i);
    cr_assert_eq(wr_queue_drain(NULL, 1), 0);
    cr_assert_eq(wr_queue_drain(WR_QUEUE_INLINE, 1), 0);
}

static void take_a_millisecond(wr_weak *dead, void *ctx)
{
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    do
        clock_gettime(CLOCK_MONOTONIC, &now);
    while ((now.tv_sec - start.tv_sec) * 1000000000L + now.tv_nsec - start.tv_nsec < 1000000);
    log_callback(dead, ctx);
}

Test(queue, drain_for_stops_when_its_budget_is_spent)
{
    for (int i = 0; i < 50; i++)
        kill_one(queue, take_a_millisecond, NULL);
    size_t n = wr_queue_drain_for(queue, 3000000);
    cr_assert_geq(n, 1);
    cr_assert_leq(n, 3);
    cr_assert_eq(wr_queue_drain_for(queue, 0), 1, "one in any case");
    cr_assert_eq(wr_queue_drain_for(queue, UINT64_MAX), 50 - n - 1);
    cr_assert_eq(wr_queue_drain_for(queue, UINT64_MAX), 0);
    cr_assert_eq(wr_queue_drain_for(NULL, 1), 0);
}

static void drain_rest(wr_weak *dead, void *ctx)
{
    log_callback(dead, (void *)-1);
    *(size_t *)ctx = wr_queue_drain(queue, SIZE_MAX);
}

Test(queue, drain_nests_in_a_callback)
{
    size_t inner = 0;
    kill_one(queue, drain_rest, &inner);
    for (int i = 0; i < 5; i++)
        kill_one(queue, LOG(i));
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert_eq(inner, 5);
    for (int i = 0; i < 5; i++)
        cr_assert_eq(callback_log[i + 1], i);
}

static void *drain_one(void *ctx)
{
    *(size_t *)ctx = wr_queue_drain(queue, 1);
    return NULL;
}

Test(queue, what_a_busy_consumer_has_taken_another_can_run)
{
    struct gate gate = {0};
    size_t first = 0;
    kill_one(queue, wait_at_gate, &gate);
    kill_one(queue, LOG(1));
    pthread_t busy;
    cr_assert_eq(pthread_create(&busy, NULL, drain_one, &first), 0);
    gate_wait(&gate.reached);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert_eq(n_logged, 1);
    atomic_store(&gate.open, true);
    pthread_join(busy, NULL);
    cr_assert_eq(first, 1);
}

/* ---- the descriptor -------------------------------------------------------------------------------- */

Test(queue, descriptor_is_readable_exactly_while_work_is_pending)
{
    int fd = wr_queue_fd(queue);
    cr_assert_geq(fd, 0);
    cr_assert_eq(wr_queue_fd(queue), fd, "it stays the same");
    cr_assert(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    cr_assert_not(readable(fd));
    kill_one(queue, LOG(1));
    kill_one(queue, LOG(2));
    kill_one(queue, LOG(3));
    cr_assert(readable(fd));
    wr_queue_drain(queue, 1);
    cr_assert(readable(fd), "two are left");
    wr_queue_drain(queue, 2);
    cr_assert_not(readable(fd));
    kill_one(queue, LOG(4));
    cr_assert(readable(fd));
    wr_queue_cancel_all(queue);
    cr_assert_not(readable(fd));
}

Test(queue, descriptor_made_late_shows_what_is_pending_already)
{
    kill_one(queue, LOG(1));
    cr_assert(readable(wr_queue_fd(queue)));
}

Test(queue, cancelling_the_last_pending_task_resets_the_descriptor)
{
    int fd = wr_queue_fd(queue);
    thing *a = thing_new(1), *b = thing_new(2);
    wr_watch *wa = wr_watch_new(a, queue, LOG(1)), *wb = wr_watch_new(b, queue, LOG(2));
    wr_release(a);
    wr_release(b);
    wr_watch_cancel(wb);
    cr_assert(readable(fd));
    wr_watch_cancel(wa);
    cr_assert_not(readable(fd));
    kill_one(queue, LOG(3));
    cr_assert(readable(fd));
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert_eq(callback_log[0], 3);
    wr_watch_release(wa);
    wr_watch_release(wb);
}

static void is_readable_now(wr_weak *dead, void *ctx)
{
    (void)dead;
    *(int *)ctx = readable(wr_queue_fd(queue));
}

Test(queue, descriptor_tells_other_loops_of_the_rest_while_one_is_busy)
{
    int fd = wr_queue_fd(queue), first = -1, last = -1;
    kill_one(queue, is_readable_now, &first);
    kill_one(queue, is_readable_now, &last);
    cr_assert(readable(fd));
    wr_queue_drain(queue, SIZE_MAX);
    cr_assert_eq(first, 1);
    cr_assert_eq(last, 0);
    cr_assert_not(readable(fd));
}

Test(queue, descriptor_of_a_queue_with_threads_comes_to_rest_unreadable)
{
    int fd = wr_queue_fd(queue);
    wr_queue_start(queue, 2);
    for (int i = 0; i < 1000; i++)
        kill_one(queue, LOG(i));
    wr_queue_barrier(queue);
    wr_queue_stop(queue);
    cr_assert_eq(n_logged, 1000);
    cr_assert_not(readable(fd));
}

Test(queue, freeing_closes_the_descriptor)
{
    wr_queue *q = wr_queue_new("q");
    thing *t = thing_new(1);
    wr_on_death(t, q, LOG(1));
    int fd = wr_queue_fd(q);
    wr_queue_free(q);
    cr_assert_eq(fcntl(fd, F_GETFD), -1, "also with armed watches left");
    wr_release(t);
}

/* ---- threads --------------------------------------------------------------------------------------- */

static void note_name_and_mask(wr_weak *dead, void *ctx)
{
    (void)dead;
    sigset_t mask;
    pthread_getname_np(pthread_self(), ctx, 16);
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    cr_assert(sigismember(&mask, SIGINT));
    cr_assert(sigismember(&mask, SIGTERM));
}

Test(queue, threads_carry_its_name_and_take_no_signals)
{
    char name[16] = "";
    wr_queue *q = wr_queue_new("0123456789abcdefgh");
    cr_assert_eq(wr_queue_start(q, 1), 0);
    kill_one(q, note_name_and_mask, name);
    wr_queue_barrier(q);
    cr_assert_str_eq(name, "0123456789abcde");
    wr_queue_free(q);
}

Test(queue, one_thread_keeps_the_order)
{
    cr_assert_eq(wr_queue_start(queue, 1), 0);
    for (int i = 0; i < 200; i++)
        kill_one(queue, LOG(i));
    cr_assert_eq(wr_queue_barrier(queue), 0);
    for (int i = 0; i < 200; i++)
        cr_assert_eq(callback_log[i], i);
    cr_assert_eq(wr_queue_stop(queue), 0);
}

Test(queue, several_threads_run_callbacks_beside_each_other)
{
    struct gate a = {0}, b = {0};
    cr_assert_eq(wr_queue_start(queue, 2), 0);
    kill_one(queue, wait_at_gate, &a);
    kill_one(queue, wait_at_gate, &b);
    gate_wait(&a.reached);
    gate_wait(&b.reached);
    cr_assert_eq(stats_of(queue).running, 2);
    atomic_store(&a.open, true);
    atomic_store(&b.open, true);
    cr_assert_eq(wr_queue_barrier(queue), 0);
    cr_assert_eq(stats_of(queue).running, 0);
}

Test(queue, stop_keeps_what_is_pending_and_start_goes_on)
{
    cr_assert_eq(wr_queue_start(queue, 2), 0);
    cr_assert_eq(wr_queue_start(queue, 1), -EBUSY);
    cr_assert_eq(wr_queue_stop(queue), 0);
    cr_assert_eq(wr_queue_stop(queue), 0, "nothing to stop is fine");
    for (int i = 0; i < 5; i++)
        kill_one(queue, LOG(i));
    cr_assert_eq(stats_of(queue).pending, 5);
    cr_assert_eq(wr_queue_start(queue, 1), 0);
    cr_assert_eq(wr_queue_barrier(queue), 0);
    cr_assert_eq(n_logged, 5);
    cr_assert_eq(wr_queue_stop(queue), 0);
}

static void *open_gate(void *ctx)
{
    struct gate *gate = ctx;
    for (int i = 0; i < 1000; i++)
        sched_yield();
    atomic_store(&gate->open, true);
    return NULL;
}

Test(queue, stop_finishes_what_is_running)
{
    struct gate gate = {0};
    cr_assert_eq(wr_queue_start(queue, 1), 0);
    kill_one(queue, wait_at_gate, &gate);
    kill_one(queue, LOG(1));
    gate_wait(&gate.reached);
    pthread_t opener;
    cr_assert_eq(pthread_create(&opener, NULL, open_gate, &gate), 0);
    cr_assert_eq(wr_queue_stop(queue), 0);
    cr_assert(atomic_load(&gate.open));
    struct wr_queue_stats s = stats_of(queue);
    cr_assert_eq(s.delivered, 1);
    cr_assert_eq(s.pending, 1);
    pthread_join(opener, NULL);
}

static int answers[6];

static void ask_own_queue(wr_weak *dead, void *ctx)
{
    wr_queue *q = ctx;
    (void)dead;
    answers[0] = wr_queue_stop(q);
    answers[1] = wr_queue_barrier(q);
    answers[2] = wr_queue_cancel_all(q);
    answers[5] = (int)stats_of(q).pending;
    answers[3] = wr_queue_start(q, 1);
    answers[4] = wr_queue_barrier(WR_QUEUE_INLINE);
}

Test(queue, waiting_for_ones_own_callback_is_a_deadlock_that_is_refused)
{
    cr_assert_eq(wr_queue_start(queue, 1), 0);
    kill_one(queue, ask_own_queue, queue);
    cr_assert_eq(wr_queue_barrier(queue), 0);
    cr_assert_eq(answers[0], -EDEADLK);
    cr_assert_eq(answers[1], -EDEADLK);
    cr_assert_eq(answers[2], -EDEADLK);
    cr_assert_eq(answers[3], -EBUSY);
    cr_assert_eq(answers[4], 0);
    wr_queue_stop(queue);
    kill_one(queue, ask_own_queue, queue);
    kill_one(queue, LOG(1));
    wr_queue_drain(queue, 1);
    cr_assert_eq(answers[1], -EDEADLK);
    cr_assert_eq(answers[2], -EDEADLK);
    cr_assert_eq(answers[5], 1, "a refused cancel_all changes nothing");
    cr_assert_eq(answers[3], 0);
}

static void wait_for_other(wr_weak *dead, void *ctx)
{
    (void)dead;
    answers[0] = wr_queue_barrier(ctx);
    answers[1] = wr_queue_stop(ctx);
}

Test(queue, waiting_for_another_queue_from_a_callback_is_fine)
{
    wr_queue *other = wr_queue_new("other");
    wr_queue_start(other, 1);
    kill_one(other, LOG(1));
    kill_one(queue, wait_for_other, other);
    wr_queue_drain(queue, 1);
    cr_assert_eq(answers[0], 0);
    cr_assert_eq(answers[1], 0);
    cr_assert_eq(n_logged, 1);
    wr_queue_free(other);
}

Test(queue, the_default_queue_obeys_who_manages_it)
{
    wr_queue *q = wr_queue_default();
    cr_assert_eq(wr_queue_default(), q);
    cr_assert_eq(wr_queue_stop(q), 0); /* from here on it is the program's */
    kill_one(NULL, LOG(1));
    cr_assert_eq(stats_of(q).pending, 1);
    cr_assert_eq(wr_queue_drain(q, SIZE_MAX), 1);
    cr_assert_eq(wr_queue_start(q, 2), 0);
    kill_one(NULL, LOG(2));
    cr_assert_eq(wr_queue_barrier(q), 0);
    cr_assert_eq(n_logged, 2);
}

/* ---- barrier and cancel_all ------------------------------------------------------------------------ */

Test(queue, barrier_on_an_idle_queue_returns_at_once)
{
    cr_assert_eq(wr_queue_barrier(queue), 0);
    kill_one(queue, LOG(1));
    wr_queue_drain(queue, 1);
    cr_assert_eq(wr_queue_barrier(queue), 0);
    cr_assert_eq(wr_queue_barrier(WR_QUEUE_INLINE), 0);
}

struct waiter {
    atomic_bool started, over;
};

static void *barrier_side(void *ctx)
{
    struct waiter *w = ctx;
    atomic_store(&w->started, true);
    cr_assert_eq(wr_queue_barrier(queue), 0);
    atomic_store(&w->over, true);
    return NULL;
}

static pthread_t start_barrier(struct waiter *w)
{
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, barrier_side, w), 0);
    gate_wait(&w->started);
    for (int i = 0; i < 200; i++)
        sched_yield();
    cr_assert_not(atomic_load(&w->over));
    return thread;
}

Test(queue, barrier_without_consumers_waits_for_one)
{
    struct waiter w = {0};
    kill_one(queue, LOG(1));
    pthread_t thread = start_barrier(&w);
    cr_assert_eq(wr_queue_drain(queue, 1), 1);
    pthread_join(thread, NULL);
    cr_assert(w.over);
}

Test(queue, barrier_does_not_wait_for_what_comes_later)
{
    struct waiter w = {0};
    struct gate gate = {0};
    kill_one(queue, wait_at_gate, &gate);
    pthread_t busy;
    size_t drained;
    cr_assert_eq(pthread_create(&busy, NULL, drain_one, &drained), 0);
    gate_wait(&gate.reached);
    pthread_t thread = start_barrier(&w);
    kill_one(queue, LOG(1)); /* stays pending */
    atomic_store(&gate.open, true);
    pthread_join(thread, NULL);
    pthread_join(busy, NULL);
    cr_assert_eq(n_logged, 0);
}

Test(queue, barrier_does_not_wait_for_what_is_cancelled)
{
    struct waiter w = {0};
    thing *a = thing_new(1);
    wr_watch *watch = wr_watch_new(a, queue, LOG(1));
    wr_release(a);
    pthread_t thread = start_barrier(&w);
    kill_one(queue, LOG(2)); /* later, and still there: no purge at 0 */
    cr_assert_eq(wr_watch_cancel(watch), WR_CANCELLED);
    pthread_join(thread, NULL);
    wr_watch_release(watch);
    cr_assert_eq(stats_of(queue).pending, 1);
}

Test(queue, cancel_all_cancels_the_pending_and_leaves_the_armed)
{
    thing *armed = thing_new(0);
    wr_on_death(armed, queue, LOG(9));
    wr_watch *w[3];
    for (int i = 0; i < 3; i++) {
        thing *t = thing_new(i);
        w[i] = wr_watch_new(t, queue, LOG(i));
        wr_release(t);
    }
    wr_watch_cancel(w[1]);
    cr_assert_eq(wr_queue_cancel_all(queue), 0);
    struct wr_queue_stats s = stats_of(queue);
    cr_assert_eq(s.pending, 0);
    cr_assert_eq(s.armed, 1);
    cr_assert_eq(s.cancelled, 3);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(wr_watch_cancel(w[i]), WR_CANCELLED);
        wr_watch_release(w[i]);
    }
    wr_release(armed);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_assert_eq(callback_log[0], 9);
    cr_assert_eq(wr_queue_cancel_all(WR_QUEUE_INLINE), 0);
}

Test(queue, cancel_all_waits_for_what_is_running)
{
    struct gate gate = {0};
    wr_queue_start(queue, 1);
    kill_one(queue, wait_at_gate, &gate);
    gate_wait(&gate.reached);
    kill_one(queue, LOG(1));
    pthread_t opener;
    cr_assert_eq(pthread_create(&opener, NULL, open_gate, &gate), 0);
    cr_assert_eq(wr_queue_cancel_all(queue), 0);
    cr_assert(atomic_load(&gate.open));
    cr_assert_eq(stats_of(queue).delivered, 1);
    cr_assert_eq(stats_of(queue).cancelled, 1);
    pthread_join(opener, NULL);
}

/* ---- free ------------------------------------------------------------------------------------------ */

Test(queue, free_delivers_what_is_pending_on_the_calling_thread)
{
    wr_queue *q = wr_queue_new("q");
    for (int i = 0; i < 10; i++)
        kill_one(q, LOG(i));
    wr_queue_free(q);
    for (int i = 0; i < 10; i++)
        cr_assert_eq(callback_log[i], i);
}

Test(queue, watches_of_a_freed_queue_are_cancelled_at_the_death)
{
    wr_queue *q = wr_queue_new("q"), *kept = wr_queue_new("kept");
    thing *t = thing_new(1);
    wr_watch *w = wr_watch_new(t, q, LOG(1));
    wr_watch *early = wr_watch_new(t, q, LOG(2));
    wr_on_death(t, kept, LOG(3));
    wr_on_death(t, q, LOG(4));
    wr_queue_free(q);
    cr_assert_eq(wr_watch_cancel(early), WR_CANCELLED);
    wr_release(t);
    cr_assert_eq(wr_watch_cancel(w), WR_CANCELLED);
    struct wr_queue_stats s = stats_of(q); /* the handles keep it */
    cr_assert_eq(s.watched, 3);
    cr_assert_eq(s.cancelled, 3);
    cr_assert_eq(s.armed, 0);
    wr_watch_release(w);
    wr_watch_release(early);
    wr_queue_free(kept);
    cr_assert_eq(n_logged, 1);
    cr_assert_eq(callback_log[0], 3);
}

static void free_from_callback(wr_weak *dead, void *ctx)
{
    wr_queue *q = ctx;
    log_callback(dead, NULL);
    wr_queue_free(q);
    thing *t = thing_new(1);
    answers[0] = wr_on_death(t, q, LOG(50));
    errno = 0;
    cr_assert_null(wr_watch_new(t, q, LOG(50)));
    answers[1] = errno;
    answers[2] = wr_queue_start(q, 1);
    answers[3] = n_logged;
    wr_release(t);
}

Test(queue, free_from_its_own_callback_finishes_when_that_returns)
{
    wr_queue *q = wr_queue_new("q");
    kill_one(q, free_from_callback, q);
    kill_one(q, LOG(1));
    kill_one(q, LOG(2));
    cr_assert_eq(wr_queue_drain(q, 1), 1);
    cr_assert_eq(answers[0], -ECANCELED);
    cr_assert_eq(answers[1], ECANCELED);
    cr_assert_eq(answers[2], -ECANCELED);
    cr_assert_eq(answers[3], 1, "the others run afterwards");
    cr_assert_eq(n_logged, 3);
}

static void drain_it(wr_weak *dead, void *ctx)
{
    log_callback(dead, NULL);
    wr_queue_drain(ctx, SIZE_MAX);
    answers[5] = n_logged;
}

Test(queue, free_from_a_nested_callback_finishes_when_the_outermost_returns)
{
    wr_queue *q = wr_queue_new("q");
    kill_one(q, drain_it, q);
    kill_one(q, free_from_callback, q);
    kill_one(q, LOG(1));
    wr_queue_drain(q, SIZE_MAX);
    cr_assert_geq(answers[5], 2);
    cr_assert_eq(n_logged, 3);
}

static atomic_bool tail_ran;

static void last_one(wr_weak *dead, void *ctx)
{
    (void)dead, (void)ctx;
    atomic_store(&tail_ran, true);
}

Test(queue, free_from_the_callback_of_its_own_thread_ends_that_thread)
{
    for (unsigned n = 1; n <= 3; n++) {
        atomic_store(&tail_ran, false);
        wr_queue *q = wr_queue_new("q");
        int fd = wr_queue_fd(q);
        struct gate gate = {0};
        kill_one(q, wait_at_gate, &gate);
        kill_one(q, free_from_callback, q);
        kill_one(q, last_one, NULL);
        cr_assert_eq(wr_queue_start(q, n), 0);
        atomic_store(&gate.open, true);
        gate_wait(&tail_ran);
        while (fcntl(fd, F_GETFD) != -1) /* closed when the other threads have ended */
            sched_yield();
    }
}

static void release_ctx(wr_weak *dead, void *ctx)
{
    log_callback(dead, NULL);
    wr_release(ctx);
}

Test(queue, deaths_inside_the_last_callbacks_are_cancelled)
{
    wr_queue *q = wr_queue_new("q");
    thing *t = thing_new(1);
    wr_watch *w = wr_watch_new(t, q, LOG(1));
    kill_one(q, release_ctx, t);
    wr_queue_free(q);
    cr_assert_eq(n_logged, 1);
    cr_assert_eq(wr_watch_cancel(w), WR_CANCELLED);
    wr_watch_release(w);
}

/* ---- misuse and memory ------------------------------------------------------------------------------ */

Test(queue, bad_arguments_are_refused)
{
    cr_assert_eq(wr_queue_start(NULL, 1), -EINVAL);
    cr_assert_eq(wr_queue_start(queue, 0), -EINVAL);
    cr_assert_eq(wr_queue_start(WR_QUEUE_INLINE, 1), -EINVAL);
    cr_assert_eq(wr_queue_stop(NULL), -EINVAL);
    cr_assert_eq(wr_queue_stop(WR_QUEUE_INLINE), -EINVAL);
    cr_assert_eq(wr_queue_fd(NULL), -EINVAL);
    cr_assert_eq(wr_queue_fd(WR_QUEUE_INLINE), -EINVAL);
    cr_assert_eq(wr_queue_barrier(NULL), -EINVAL);
    cr_assert_eq(wr_queue_cancel_all(NULL), -EINVAL);
    cr_assert_null(wr_queue_name(NULL));
    cr_assert_str_eq(wr_queue_name(WR_QUEUE_INLINE), "inline");
    cr_assert_str_eq(wr_queue_name(wr_queue_default()), "default");
}

Test(queue, freeing_the_default_queue_panics, .signal = SIGABRT)
{
    wr_queue_free(wr_queue_default());
}

Test(queue, freeing_the_inline_queue_panics, .signal = SIGABRT)
{
    wr_queue_free(WR_QUEUE_INLINE);
}

Test(queue, freeing_twice_panics, .signal = SIGABRT)
{
    thing *t = thing_new(1);
    wr_queue *q = wr_queue_new("q");
    wr_watch *w = wr_watch_new(t, q, LOG(1)); /* keeps the memory */
    (void)w;
    wr_queue_free(q);
    wr_queue_free(q);
}

Test(queue_memory, every_allocation_of_new_and_start_failed_in_turn)
{
    fail_alloc_install();
    wr_queue *q = NULL;
    for (long n = 1; q == NULL; n++) {
        fail_alloc_at(n);
        errno = 0;
        q = wr_queue_new("q");
        cr_assert_eq(fail_alloc_hit(), q == NULL);
        cr_assert(q != NULL || errno == ENOMEM);
    }
    int error = -1;
    for (long n = 1; error != 0; n++) {
        long live = fail_alloc_live();
        fail_alloc_at(n);
        error = wr_queue_start(q, 2);
        cr_assert_eq(error, fail_alloc_hit() ? -ENOMEM : 0);
        cr_assert(error == 0 || fail_alloc_live() == live);
    }
    kill_one(q, LOG(1));
    cr_assert_eq(wr_queue_barrier(q), 0);
    wr_queue_free(q);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(queue_memory, delivering_freeing_and_cancelling_allocate_nothing_and_leave_nothing)
{
    fail_alloc_install();
    wr_queue *q = wr_queue_new("q");
    wr_queue_start(q, 2);
    thing *t[300];
    for (int i = 0; i < 300; i++) {
        t[i] = thing_new(i);
        wr_on_death(t[i], q, LOG(i));
    }
    fail_alloc_all(true);
    for (int i = 0; i < 100; i++)
        wr_release(t[i]);
    cr_assert_eq(wr_queue_barrier(q), 0);
    cr_assert_eq(wr_queue_stop(q), 0);
    cr_assert_geq(wr_queue_fd(q), 0);
    for (int i = 100; i < 200; i++)
        wr_release(t[i]);
    cr_assert_eq(wr_queue_cancel_all(q), 0);
    wr_queue_free(q);
    for (int i = 200; i < 300; i++)
        wr_release(t[i]);
    cr_assert_not(fail_alloc_hit());
    fail_alloc_all(false);
    cr_assert_eq(n_logged, 100);
    cr_assert_eq(fail_alloc_live(), 0);
}

/* ---- threads that end, destroys that drain -------------------------------------------------------- */

static thing *next_to_die;

static void release_next(wr_weak *dead, void *ctx)
{
    log_callback(dead, ctx);
    wr_release(next_to_die);
}

static void drain_in_destroy(void *obj)
{
    (void)obj;
    wr_queue_drain(queue, SIZE_MAX);
    log_callback(NULL, (void *)100);
}

Test(queue, a_drain_inside_a_destroy_delivers_what_its_callbacks_cause)
{
    static const wr_type drainer = {.name = "drainer", .size = 1, .destroy = drain_in_destroy};
    next_to_die = thing_new(2);
    cr_assert_eq(wr_on_death(next_to_die, queue, LOG(2)), 0);
    kill_one(queue, release_next, (void *)1);
    wr_release(wr_new(&drainer));
    cr_assert_eq(atomic_load(&n_logged), 3);
    cr_assert_eq(callback_log[0], 1);
    cr_assert_eq(callback_log[1], 2);
    cr_assert_eq(callback_log[2], 100);
}

static void cancellation_point(wr_weak *dead, void *ctx)
{
    log_callback(dead, ctx);
    pthread_testcancel();
    log_callback(dead, ctx);
}

static void *drain_cancelled(void *unused)
{
    (void)unused;
    pthread_cancel(pthread_self()); /* pending from here on */
    wr_queue_drain(queue, SIZE_MAX);
    pthread_testcancel();
    log_callback(NULL, (void *)100);
    return NULL;
}

Test(queue, a_cancelled_thread_finishes_its_drain_first)
{
    cr_assert_geq(wr_queue_fd(queue), 0); /* its read() and write() are cancellation points */
    kill_one(queue, cancellation_point, (void *)1);
    kill_one(queue, cancellation_point, (void *)2);
    pthread_t thread;
    void *result;
    cr_assert_eq(pthread_create(&thread, NULL, drain_cancelled, NULL), 0);
    cr_assert_eq(pthread_join(thread, &result), 0);
    cr_assert_eq(result, PTHREAD_CANCELED);
    cr_assert_eq(atomic_load(&n_logged), 4);
    cr_assert(queue_is_balanced(queue));
    cr_assert_eq(stats_of(queue).delivered, 2);
}

static void *release_cancelled(void *obj)
{
    pthread_cancel(pthread_self());
    wr_release(obj);
    pthread_testcancel();
    return NULL;
}

Test(queue, a_cancelled_thread_finishes_its_release_first)
{
    int fd = wr_queue_fd(queue);
    thing *t = thing_new(1);
    cr_assert_eq(wr_on_death(t, queue, LOG(1)), 0);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, release_cancelled, t), 0);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    cr_assert(readable(fd));
    cr_assert_eq(stats_of(queue).pending, 1);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 1);
}

static void end_thread(wr_weak *dead, void *ctx)
{
    (void)dead, (void)ctx;
    pthread_exit(NULL);
}

static void *drain_main(void *unused)
{
    (void)unused;
    wr_queue_drain(queue, SIZE_MAX);
    return NULL;
}

/* Not in a forked child: ThreadSanitizer allows no threads there. */
Test(queue_memory, a_callback_that_ends_its_thread_is_a_panic, .signal = SIGABRT)
{
    make_queue();
    kill_one(queue, end_thread, NULL);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, drain_main, NULL), 0);
    pthread_join(thread, NULL);
}

static int watched_in_destroy;

static void watch_in_destroy(void *obj)
{
    watched_in_destroy = wr_on_death(obj, NULL, LOG(1));
}

Test(queue, a_failed_watch_starts_no_thread_of_the_default_queue)
{
    static const wr_type watcher = {.name = "watcher", .size = 1, .destroy = watch_in_destroy};
    wr_release(wr_new(&watcher));
    cr_assert_eq(watched_in_destroy, -ESTALE);
    cr_assert_eq(wr_queue_start(wr_queue_default(), 1), 0, "nobody has started it");
    cr_assert_eq(wr_queue_stop(wr_queue_default()), 0);
}
