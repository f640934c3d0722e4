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
#include <weakref/guard.h>
#include <weakref/watch.h>

#include "deaths.h"
#include "fail_alloc.h"
#include "queue.h"

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

/* Opens @gate when the thread @tid sleeps. */
struct opener {
    struct gate gate;
    pid_t tid;
};

static void *open_when_asleep(void *ctx)
{
    struct opener *opener = ctx;
    char path[64], stat[256], *state;
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", (int)opener->tid);
    do {
        FILE *file = fopen(path, "r");
        size_t n = file != NULL ? fread(stat, 1, sizeof stat - 1, file) : 0;
        stat[n] = '\0';
        if (file != NULL)
            fclose(file);
        state = strrchr(stat, ')');
        sched_yield();
    } while (state != NULL && state[2] != 'S');
    atomic_store(&opener->gate.open, true);
    return NULL;
}

Test(queue, stop_finishes_what_is_running)
{
    struct opener opener = {.tid = gettid()};
    cr_assert_eq(wr_queue_start(queue, 1), 0);
    kill_one(queue, wait_at_gate, &opener.gate);
    kill_one(queue, LOG(1));
    gate_wait(&opener.gate.reached);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, open_when_asleep, &opener), 0);
    cr_assert_eq(wr_queue_stop(queue), 0); /* waits, asleep */
    cr_assert(atomic_load(&opener.gate.open));
    struct wr_queue_stats s = stats_of(queue);
    cr_assert_eq(s.delivered, 1);
    cr_assert_eq(s.pending, 1);
    pthread_join(thread, NULL);
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

static void *drain_whole(void *arg)
{
    *(size_t *)arg = wr_queue_drain(queue, SIZE_MAX);
    return NULL;
}

Test(queue, barrier_returns_while_later_callbacks_run)
{
    for (int round = 0; round < 5; round++) { /* in most, the barrier is asleep before the first one ends */
        struct waiter w = {0};
        struct gate gate = {0}, later = {0};
        kill_one(queue, wait_at_gate, &gate);
        pthread_t busy;
        size_t drained;
        cr_assert_eq(pthread_create(&busy, NULL, drain_whole, &drained), 0);
        gate_wait(&gate.reached);
        pthread_t thread = start_barrier(&w);
        kill_one(queue, wait_at_gate, &later);
        atomic_store(&gate.open, true);
        pthread_join(thread, NULL);
        atomic_store(&later.open, true);
        pthread_join(busy, NULL);
        cr_assert_eq(drained, 2);
    }
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

/* ---- the high-water mark ------------------------------------------------------------------------------ */

/* What a hook saw, and what it is to do. */
struct hooked {
    atomic_int calls, inside;
    uint64_t pending; /* of the last call */
    pthread_t thread; /* of the last call */
    wr_queue *from;   /* of the last call */
    void (*then)(wr_queue *q, struct hooked *h);
    size_t drained;
    int answer;
};

static void hook(wr_queue *q, uint64_t pending, void *ctx)
{
    struct hooked *h = ctx;
    atomic_fetch_add(&h->calls, 1);
    cr_assert_eq(atomic_fetch_add(&h->inside, 1), 0, "one at a time");
    h->pending = pending;
    h->thread = pthread_self();
    h->from = q;
    if (h->then != NULL)
        h->then(q, h);
    atomic_fetch_sub(&h->inside, 1);
    errno = EXDEV;
}

static void spoil_errno(wr_weak *dead, void *ctx)
{
    (void)dead, (void)ctx;
    errno = EILSEQ;
}

static void kill_many(wr_queue *q, int n)
{
    for (int i = 0; i < n; i++)
        kill_one(q, LOG(i));
}

Test(queue, the_hook_is_called_once_a_storm)
{
    struct hooked h = {0};
    cr_assert_eq(wr_queue_set_high_water(queue, 10, hook, &h, 0), 0);
    kill_many(queue, 9);
    cr_assert_eq(h.calls, 0);
    errno = EDOM;
    kill_many(queue, 1);
    cr_assert_eq(errno, EDOM);
    cr_assert_eq(h.calls, 1);
    cr_assert_eq(h.pending, 10);
    cr_assert_eq(h.from, queue);
    kill_many(queue, 30);
    cr_assert_eq(h.calls, 1, "the same storm");
    cr_assert_eq(wr_queue_drain(queue, 34), 34);
    kill_many(queue, 20);
    cr_assert_eq(h.calls, 1, "6 were left, not 5");
    cr_assert_eq(wr_queue_drain(queue, 21), 21);
    kill_many(queue, 4);
    cr_assert_eq(h.calls, 1);
    kill_many(queue, 1);
    cr_assert_eq(h.calls, 2);
    cr_assert_eq(h.pending, 10);
}

Test(queue, a_storm_ends_by_cancelling_too)
{
    struct hooked h = {0};
    cr_assert_eq(wr_queue_set_high_water(queue, 10, hook, &h, 0), 0);
    kill_many(queue, 10);
    cr_assert_eq(h.calls, 1);
    cr_assert_eq(wr_queue_cancel_all(queue), 0);
    kill_many(queue, 10);
    cr_assert_eq(h.calls, 2);
    cr_assert_eq(wr_queue_cancel_all(queue), 0);

    wr_watch *w[10];
    for (int round = 3; round < 6; round++) {
        for (int i = 0; i < 10; i++) {
            thing *t = thing_new(i);
            w[i] = wr_watch_new(t, queue, LOG(i));
            wr_release(t);
        }
        cr_assert_eq(h.calls, round);
        for (int i = 0; i < 10; i++) {
            cr_assert_eq(wr_watch_cancel(w[i]), WR_CANCELLED);
            wr_watch_release(w[i]);
        }
    }
}

Test(queue, a_hundred_thousand_watches_of_one_object_are_one_storm)
{
    enum { N = 100000 };
    struct hooked h = {0};
    cr_assert_eq(wr_queue_set_high_water(queue, 1000, hook, &h, 0), 0);
    thing *t = thing_new(1);
    for (int i = 0; i < N; i++)
        cr_assert_eq(wr_on_death(t, queue, LOG(i)), 0);
    wr_release(t);
    cr_assert_eq(h.calls, 1);
    cr_assert_eq(h.pending, N, "one hand-over");
    cr_assert_eq(stats_of(queue).high_water, N);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), N);
    cr_assert_eq(h.calls, 1);
}

static void *release_all(void *arg)
{
    thing **t = arg;
    for (; *t != NULL; t++)
        wr_release(*t);
    return NULL;
}

Test(queue, the_hook_runs_on_the_releasing_thread)
{
    struct hooked h = {0};
    cr_assert_eq(wr_queue_set_high_water(queue, 3, hook, &h, 0), 0);
    thing *t[5] = {NULL};
    for (int i = 0; i < 4; i++) {
        t[i] = thing_new(i);
        cr_assert_eq(wr_on_death(t[i], queue, LOG(i)), 0);
    }
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, release_all, t), 0);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    cr_assert_eq(h.calls, 1);
    cr_assert(pthread_equal(h.thread, thread));
}

static void drain_in_hook(wr_queue *q, struct hooked *h)
{
    h->drained += wr_queue_drain(q, SIZE_MAX);
}

Test(queue, a_hook_may_drain)
{
    struct hooked h = {.then = drain_in_hook};
    cr_assert_eq(wr_queue_set_high_water(queue, 5, hook, &h, 0), 0);
    for (int round = 1; round <= 3; round++) {
        kill_many(queue, 5);
        cr_assert_eq(h.calls, round, "drained, so the next is another storm");
        cr_assert_eq(h.drained, (size_t)round * 5);
    }
}

/* Every call that might find a lock held, or a thread that waits for this one. */
static void use_the_library(wr_queue *q, struct hooked *h)
{
    (void)h;
    cr_assert_eq(stats_of(q).pending, 5);
    cr_assert_geq(wr_queue_fd(q), 0);
    cr_assert(readable(wr_queue_fd(q)));
    kill_one(WR_QUEUE_INLINE, LOG(50)); /* this is inside the death of another: its own waits */
    thing *t = thing_new(1);
    wr_watch *w = wr_watch_new(t, q, LOG(51));
    cr_assert_eq(wr_watch_cancel_sync(w), WR_CANCELLED);
    wr_watch_release(w);
    wr_release(t);
    kill_one(NULL, LOG(52));
    cr_assert_eq(wr_barrier(), 0);
    cr_assert_eq(wr_queue_start(q, 1), 0);
    cr_assert_eq(wr_queue_barrier(q), 0);
    cr_assert_eq(wr_queue_stop(q), 0);
    cr_assert_eq(wr_queue_cancel_all(q), 0);
}

Test(queue, a_hook_may_use_the_whole_library)
{
    struct hooked h = {.then = use_the_library};
    cr_assert_eq(wr_queue_set_high_water(queue, 5, hook, &h, 0), 0);
    kill_many(queue, 5);
    cr_assert_eq(h.calls, 1);
    cr_assert_eq(wr_queue_barrier(wr_queue_default()), 0);
    cr_assert_eq(n_logged, 7);
}

static void refill(wr_weak *dead, void *ctx)
{
    (void)dead;
    kill_many(ctx, 8);
}

/* The last of five causes eight more, inside this drain. */
static void drain_five(wr_queue *q, struct hooked *h)
{
    if (h->calls == 1)
        h->drained += wr_queue_drain(q, 5);
}

Test(queue, a_hook_is_not_called_inside_itself)
{
    struct hooked h = {.then = drain_five};
    cr_assert_eq(wr_queue_set_high_water(queue, 5, hook, &h, 0), 0);
    kill_many(queue, 4);
    kill_one(queue, refill, queue);
    cr_assert_eq(h.drained, 5);
    cr_assert_eq(h.calls, 2, "but after itself");
    cr_assert_eq(h.pending, 8);
}

static void free_it(wr_queue *q, struct hooked *h)
{
    (void)h;
    wr_queue_free(q);
}

Test(queue, a_hook_may_free_the_queue)
{
    struct hooked h = {.then = free_it};
    wr_queue *q = wr_queue_new("freed");
    cr_assert_eq(wr_queue_set_high_water(q, 5, hook, &h, 7), 0);
    thing *late = thing_new(1);
    cr_assert_eq(wr_on_death(late, q, LOG(9)), 0);
    kill_many(q, 5);
    cr_assert_eq(h.calls, 1);
    cr_assert_eq(n_logged, 5, "freeing delivers what is pending");
    wr_release(late);
    cr_assert_eq(n_logged, 5);
}

static void free_in_callback(wr_weak *dead, void *ctx)
{
    log_callback(dead, NULL);
    kill_many(ctx, 5); /* the hook frees the queue */
    cr_assert_eq(n_logged, 1, "not before this has returned");
}

Test(queue, a_hook_may_free_the_queue_inside_its_callback)
{
    struct hooked h = {.then = free_it};
    wr_queue *q = wr_queue_new("freed");
    cr_assert_eq(wr_queue_set_high_water(q, 5, hook, &h, 0), 0);
    kill_one(q, free_in_callback, q);
    cr_assert_eq(wr_queue_drain(q, SIZE_MAX), 1);
    cr_assert_eq(h.calls, 1);
    cr_assert_eq(n_logged, 6);
}

static struct hooked second;

static void set_another(wr_queue *q, struct hooked *h)
{
    h->answer = wr_queue_set_high_water(q, 3, hook, &second, 0);
}

Test(queue, a_hook_may_set_another_mark)
{
    struct hooked h = {.then = set_another, .answer = -1};
    cr_assert_eq(wr_queue_set_high_water(queue, 5, hook, &h, 0), 0);
    kill_many(queue, 5);
    cr_assert_eq(h.calls, 1);
    cr_assert_eq(h.answer, 0);
    wr_queue_drain(queue, SIZE_MAX);
    atomic_store(&second.calls, 0);
    kill_many(queue, 3);
    cr_assert_eq(second.calls, 1);
    cr_assert_eq(second.pending, 3);
    kill_many(queue, 10);
    cr_assert_eq(h.calls, 1, "what was set before counts no more");
    cr_assert_eq(second.calls, 1);
}

Test(queue, a_mark_set_below_what_is_pending_is_reached_by_the_next)
{
    struct hooked h = {0};
    kill_many(queue, 20);
    cr_assert_eq(wr_queue_set_high_water(queue, 5, hook, &h, 0), 0);
    cr_assert_eq(h.calls, 0);
    kill_many(queue, 1);
    cr_assert_eq(h.calls, 1);
    cr_assert_eq(h.pending, 21);
    cr_assert_eq(wr_queue_set_high_water(queue, 0, NULL, NULL, 0), 0);
    wr_queue_drain(queue, SIZE_MAX);
    kill_many(queue, 20);
    cr_assert_eq(h.calls, 1, "none set");
}

Test(queue, bad_marks_are_refused_and_change_nothing)
{
    struct hooked h = {0};
    cr_assert_eq(wr_queue_set_high_water(queue, 2, hook, &h, 0), 0);
    cr_assert_eq(wr_queue_set_high_water(NULL, 1, hook, &h, 0), -EINVAL);
    cr_assert_eq(wr_queue_set_high_water(WR_QUEUE_INLINE, 1, hook, &h, 0), -EINVAL);
    cr_assert_eq(wr_queue_set_high_water(queue, 0, hook, &h, 0), -EINVAL);
    cr_assert_eq(wr_queue_set_high_water(queue, 0, NULL, NULL, 1), -EINVAL);
    kill_many(queue, 2);
    cr_assert_eq(h.calls, 1, "as it was set");
    cr_assert_eq(wr_queue_set_high_water(wr_queue_default(), 1000, hook, &h, 0), 0);
    cr_assert_eq(wr_queue_set_high_water(wr_queue_default(), 0, NULL, NULL, 0), 0);
}

Test(queue, past_the_mark_the_releasing_thread_helps)
{
    cr_assert_eq(wr_queue_set_high_water(queue, 10, NULL, NULL, 3), 0);
    kill_many(queue, 9);
    cr_assert_eq(n_logged, 0);
    errno = EDOM;
    kill_one(queue, spoil_errno, NULL);
    cr_assert_eq(errno, EDOM);
    cr_assert_eq(n_logged, 3);
    kill_many(queue, 2);
    cr_assert_eq(n_logged, 3, "9 are below it");
    kill_many(queue, 1);
    cr_assert_eq(n_logged, 6);
    thing *t = thing_new(1);
    for (int i = 0; i < 100; i++)
        cr_assert_eq(wr_on_death(t, queue, LOG(i)), 0);
    wr_release(t);
    cr_assert_eq(n_logged, 9, "once a hand-over, whatever its size");
    cr_assert_eq(stats_of(queue).delivered, 9);
}

Test(queue, help_and_hook_together)
{
    struct hooked h = {0};
    cr_assert_eq(wr_queue_set_high_water(queue, 10, hook, &h, 1), 0);
    kill_many(queue, 30);
    cr_assert_eq(h.calls, 1, "one storm, though it is helped with");
    cr_assert_eq(stats_of(queue).pending, 9);
    cr_assert_eq(n_logged, 21);
}

static void kill_in_callback(wr_weak *dead, void *ctx)
{
    int before = n_logged;
    kill_many(ctx, 20);
    cr_assert_eq(n_logged, before, "no help from inside a callback");
    log_callback(dead, NULL);
}

Test(queue, nobody_helps_from_inside_a_callback)
{
    cr_assert_eq(wr_queue_set_high_water(queue, 10, NULL, NULL, 3), 0);
    kill_one(queue, kill_in_callback, queue);
    cr_assert_eq(wr_queue_drain(queue, 1), 1);
    cr_assert_eq(n_logged, 1);
    cr_assert_eq(stats_of(queue).pending, 20);
    wr_queue *other = wr_queue_new("other");
    kill_one(other, LOG(1));
    wr_queue_free(other);
}

Test(queue, nobody_helps_from_inside_deferred_work)
{
    static const wr_type deferred = {
        .name = "deferred", .size = sizeof(thing), .destroy = thing_destroy, .flags = WR_TYPE_DEFERRED};
    cr_assert_eq(wr_queue_set_high_water(queue, 1, NULL, NULL, 3), 0);
    thing *t = wr_new(&deferred);
    cr_assert_eq(wr_on_death(t, queue, LOG(1)), 0);
    wr_release(t);
    cr_assert_eq(wr_barrier(), 0); /* a callback on that thread could not call it */
    cr_assert_eq(things_destroyed, 1);
    cr_assert_eq(n_logged, 0);
    cr_assert_eq(stats_of(queue).pending, 1);
}

/* A hook that waits at a gate, on a thread of its own. */
static struct gate hook_gate;
static int hook_over; /* plain: read by who has waited */

static void wait_in_hook(wr_queue *q, struct hooked *h)
{
    (void)q, (void)h;
    wait_at_gate(NULL, &hook_gate);
    hook_over = 1;
}

static void *open_hook_gate(void *asking)
{
    gate_wait(asking);
    for (int i = 0; i < 1000; i++)
        sched_yield();
    atomic_store(&hook_gate.open, true);
    return NULL;
}

static void storm_elsewhere(wr_queue *q, struct hooked *h, void (*wait_for_it)(wr_queue *q))
{
    static atomic_bool asking;
    thing *t[6] = {NULL};
    cr_assert_eq(wr_queue_set_high_water(q, 5, hook, h, 0), 0);
    for (int i = 0; i < 5; i++) {
        t[i] = thing_new(i);
        cr_assert_eq(wr_on_death(t[i], q, LOG(i)), 0);
    }
    pthread_t releaser, opener;
    cr_assert_eq(pthread_create(&releaser, NULL, release_all, t), 0);
    gate_wait(&hook_gate.reached);
    cr_assert_eq(pthread_create(&opener, NULL, open_hook_gate, &asking), 0);
    atomic_store(&asking, true);
    wait_for_it(q);
    cr_assert_eq(hook_over, 1, "it has waited");
    pthread_join(opener, NULL);
    pthread_join(releaser, NULL);
}

static void unset(wr_queue *q)
{
    cr_assert_eq(wr_queue_set_high_water(q, 0, NULL, NULL, 0), 0);
}

Test(queue, setting_waits_for_a_hook_that_runs_elsewhere)
{
    struct hooked h = {.then = wait_in_hook};
    storm_elsewhere(queue, &h, unset);
    kill_many(queue, 20);
    cr_assert_eq(h.calls, 1);
}

Test(queue, freeing_waits_for_a_hook_that_runs_elsewhere)
{
    struct hooked h = {.then = wait_in_hook};
    storm_elsewhere(wr_queue_new("freed"), &h, wr_queue_free);
    cr_assert_eq(n_logged, 5);
}

Test(queue, a_storm_that_begins_while_the_hook_runs_is_told_of)
{
    /* The hook runs on one thread; meanwhile the queue is emptied and filled again by another. */
    struct hooked h = {.then = wait_in_hook};
    thing *t[6] = {NULL};
    cr_assert_eq(wr_queue_set_high_water(queue, 5, hook, &h, 0), 0);
    for (int i = 0; i < 5; i++) {
        t[i] = thing_new(i);
        cr_assert_eq(wr_on_death(t[i], queue, LOG(i)), 0);
    }
    pthread_t releaser;
    cr_assert_eq(pthread_create(&releaser, NULL, release_all, t), 0);
    gate_wait(&hook_gate.reached);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 5);
    kill_many(queue, 7);
    cr_assert_eq(h.calls, 1, "one at a time");
    atomic_store(&hook_gate.open, true);
    pthread_join(releaser, NULL);
    cr_assert_eq(h.calls, 2);
    cr_assert_eq(h.pending, 7);
}

static uint64_t next_random(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return *state >> 33;
}

Test(queue, the_high_water_figure_and_the_hook_are_exact_for_one_thread)
{
    struct hooked h = {0};
    uint64_t random = (uint64_t)time(NULL), most = 0, pending = 0, mark = 40;
    int calls = 0;
    bool above = false;
    cr_log_info("seed %llu", (unsigned long long)random);
    cr_assert_eq(wr_queue_set_high_water(queue, mark, hook, &h, 0), 0);
    for (int step = 0; step < 3000; step++) {
        uint64_t n = next_random(&random) % 12;
        switch (next_random(&random) % 8) {
        default: { /* some watches of one object, some of them cancelled before: one hand-over */
            wr_watch *cancelled[12];
            uint64_t n_cancelled = 0;
            thing *t = thing_new(1);
            for (uint64_t i = 0; i < n; i++) {
                cr_assert_eq(wr_on_death(t, queue, LOG(i)), 0);
                if (next_random(&random) % 4 == 0)
                    cancelled[n_cancelled++] = wr_watch_new(t, queue, LOG(i));
            }
            for (uint64_t i = 0; i < n_cancelled; i++) {
                cr_assert_eq(wr_watch_cancel(cancelled[i]), WR_CANCELLED);
                wr_watch_release(cancelled[i]);
            }
            wr_release(t);
            pending += n;
            break;
        }
        case 4:
        case 5:
        case 6:
            pending -= wr_queue_drain(queue, 2 * n);
            break;
        case 7:
            if (n == 0) {
                cr_assert_eq(wr_queue_cancel_all(queue), 0);
                pending = 0;
            }
            break;
        }
        if (pending > most)
            most = pending;
        if (pending >= mark && !above) {
            above = true;
            calls++;
        }
        if (pending <= mark / 2)
            above = false;
        struct wr_queue_stats s = stats_of(queue);
        cr_assert_eq(s.pending, pending);
        cr_assert_eq(s.high_water, most, "step %d: %llu, not %llu", step, (unsigned long long)s.high_water,
                     (unsigned long long)most);
        cr_assert_eq(h.calls, calls, "step %d: %d calls, not %d", step, h.calls, calls);
    }
    cr_assert_gt(calls, 3, "there were storms");
}

/* ---- slow callbacks, latencies ------------------------------------------------------------------------- */

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void spin_ns(uint64_t ns)
{
    uint64_t until = now_ns() + ns;
    while (now_ns() < until)
        ;
}

static void take_ms(wr_weak *dead, void *ctx)
{
    (void)dead;
    spin_ns((uint64_t)(intptr_t)ctx * 1000000u);
}

Test(queue, callbacks_beyond_the_limit_are_counted_as_slow)
{
    wr_queue *const queues[] = {queue, WR_QUEUE_INLINE};
    for (int i = 0; i < 2; i++) {
        wr_queue *q = queues[i];
        cr_assert_eq(wr_queue_set_slow_limit(q, 1), 0);
        for (int k = 0; k < 10; k++)
            kill_one(q, take_ms, (void *)1);
        wr_queue_drain(q, SIZE_MAX);
        cr_assert_eq(stats_of(q).slow, 10, "a nanosecond");
        cr_assert_eq(wr_queue_set_slow_limit(q, UINT64_C(3600000000000)), 0);
        for (int k = 0; k < 10; k++)
            kill_one(q, take_ms, (void *)1);
        wr_queue_drain(q, SIZE_MAX);
        cr_assert_eq(stats_of(q).slow, 10, "an hour");
        cr_assert_eq(wr_queue_set_slow_limit(q, 2000000), 0);
        kill_one(q, take_ms, (void *)5);
        wr_queue_drain(q, SIZE_MAX);
        cr_assert_eq(stats_of(q).slow, 11, "two milliseconds");
        cr_assert_eq(wr_queue_set_slow_limit(q, UINT64_MAX), 0);
        kill_one(q, take_ms, (void *)1);
        wr_queue_drain(q, SIZE_MAX);
        cr_assert_eq(stats_of(q).slow, 11, "centuries");
        cr_assert(queue_is_balanced(q));
    }
}

Test(queue, the_slow_limit_is_ten_milliseconds_unless_set)
{
    kill_one(queue, take_ms, (void *)12);
    kill_one(WR_QUEUE_INLINE, take_ms, (void *)12);
    wr_queue_drain(queue, SIZE_MAX);
    cr_assert_eq(stats_of(queue).slow, 1);
    cr_assert_eq(stats_of(WR_QUEUE_INLINE).slow, 1);
}

Test(queue, quick_callbacks_are_not_slow)
{
    /* Whether one is preempted for 10 ms is not ours to say: an hour is. But the limit is reached from ticks in both cases. */
    for (int i = 0; i < 1000; i++)
        kill_one(queue, LOG(i));
    wr_queue_drain(queue, SIZE_MAX);
    cr_assert_lt(stats_of(queue).slow, 10);
}

Test(queue, bad_slow_limits_are_refused)
{
    cr_assert_eq(wr_queue_set_slow_limit(NULL, 1), -EINVAL);
    cr_assert_eq(wr_queue_set_slow_limit(queue, 0), -EINVAL);
    cr_assert_eq(wr_queue_set_slow_limit(WR_QUEUE_INLINE, 0), -EINVAL);
    cr_assert_eq(wr_queue_set_slow_limit(wr_queue_default(), 10000000), 0);
}

Test(queue, latencies_are_ordered_and_the_longest_covers_the_wait)
{
    struct wr_queue_stats s = stats_of(queue);
    cr_assert_eq(s.latency_p50_ns + s.latency_p99_ns + s.latency_max_ns, 0, "of none");
    uint64_t longest = 0;
    for (int i = 0; i < 20; i++) {
        uint64_t before = now_ns();
        kill_one(queue, LOG(i));
        uint64_t handed = now_ns();
        spin_ns(1000000);
        uint64_t waited = now_ns() - handed;
        cr_assert_eq(wr_queue_drain(queue, 1), 1);
        uint64_t most = now_ns() - before;
        if (most > longest)
            longest = most;
        s = stats_of(queue);
        cr_assert_leq(s.latency_p50_ns, s.latency_p99_ns);
        cr_assert_leq(s.latency_p99_ns, s.latency_max_ns);
        /* The clocks' rates are known to about one in ten thousand. */
        cr_assert_geq(s.latency_max_ns + s.latency_max_ns / 100, waited);
        cr_assert_leq(s.latency_max_ns, longest + longest / 100 + 1000);
        cr_assert_geq(s.latency_p50_ns + s.latency_p50_ns / 100, 1000000);
    }
    s = stats_of(WR_QUEUE_INLINE);
    cr_assert_eq(s.latency_p50_ns + s.latency_p99_ns + s.latency_max_ns, 0);
}

Test(queue, the_median_is_not_the_longest)
{
    for (int i = 0; i < 5; i++)
        kill_one(queue, LOG(i));
    spin_ns(20000000);
    wr_queue_drain(queue, SIZE_MAX);
    for (int i = 0; i < 1000; i++) {
        kill_one(queue, LOG(i));
        wr_queue_drain(queue, SIZE_MAX);
    }
    struct wr_queue_stats s = stats_of(queue);
    cr_assert_geq(s.latency_max_ns, 19800000);
    cr_assert_lt(s.latency_p50_ns, s.latency_max_ns);
    cr_assert_leq(s.latency_p50_ns, s.latency_p99_ns);
}

Test(queue, figures_stay_ordered_however_often_asked)
{
    kill_one(queue, LOG(1));
    spin_ns(3000000);
    wr_queue_drain(queue, SIZE_MAX);
    for (int i = 0; i < 20000; i++) {
        struct wr_queue_stats s = stats_of(queue);
        cr_assert(s.latency_p50_ns <= s.latency_p99_ns && s.latency_p99_ns <= s.latency_max_ns, "%llu %llu %llu",
                  (unsigned long long)s.latency_p50_ns, (unsigned long long)s.latency_p99_ns,
                  (unsigned long long)s.latency_max_ns);
    }
}

Test(queue, an_older_program_gets_the_figures_it_knows)
{
    /* As the struct was before it had slow and the latencies. */
    struct {
        uint64_t watched, armed, pending, delivered, cancelled, running, high_water, beyond[4];
    } old;
    memset(&old, 0x55, sizeof old);
    cr_assert_eq(wr_queue_set_slow_limit(queue, 1), 0);
    kill_many(queue, 3);
    wr_queue_drain(queue, 2);
    wr_queue_stats_sized(queue, (struct wr_queue_stats *)(void *)&old, offsetof(struct wr_queue_stats, slow));
    cr_assert_eq(old.watched, 3);
    cr_assert_eq(old.pending, 1);
    cr_assert_eq(old.delivered, 2);
    cr_assert_eq(old.high_water, 3);
    for (int i = 0; i < 4; i++)
        cr_assert_eq(old.beyond[i], UINT64_C(0x5555555555555555));
}

/* ---- a task that is cancelled: linked, taken, or not pushed yet ------------------------------------------- */

/* What a watch is to the queue, without the watch: each step of its life can be made to meet each step of a cancel. */
struct job {
    wr_task task; /* first */
    bool cancelled;
    int ran, finished, discarded;
};

static struct job *job_of(wr_task *task)
{
    return (struct job *)(void *)task;
}

static bool job_begin(wr_task *task)
{
    return !job_of(task)->cancelled;
}

static void job_run(wr_task *task)
{
    job_of(task)->ran++;
}

static void job_finish(wr_task *task)
{
    job_of(task)->finished++;
}

static bool job_cancel(wr_task *task)
{
    bool won = !job_of(task)->cancelled;
    job_of(task)->cancelled = true;
    return won;
}

static void job_discard(wr_task *task)
{
    job_of(task)->discarded++;
}

static const wr_task_class job_class = {
    .begin = job_begin, .run = job_run, .finish = job_finish, .cancel = job_cancel, .discard = job_discard};

static void job_begin_hand_over(wr_handover *h, struct job *jobs, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        jobs[i] = (struct job){.task.klass = &job_class};
        wr_queue_admit(queue, false);
    }
    cr_assert(wr_handover_begin(h, queue, n));
    for (uint64_t i = 0; i < n; i++)
        wr_handover_add(h, &jobs[i].task);
}

static void job_cancel_alone(struct job *job)
{
    cr_assert(job_cancel(&job->task));
    wr_queue_task_cancelled(queue, &job->task);
}

Test(queue, a_task_cancelled_before_its_push_goes_with_the_push)
{
    struct job jobs[5];
    wr_handover h;
    job_begin_hand_over(&h, jobs, 5);
    job_cancel_alone(&jobs[0]);
    job_cancel_alone(&jobs[2]);
    job_cancel_alone(&jobs[4]);
    cr_assert_eq(jobs[2].discarded, 0, "it is the hand-over's still");
    cr_assert_eq(stats_of(queue).pending, 2);
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 0, "nothing is pushed");
    wr_handover_end(&h);
    for (int i = 0; i < 5; i++)
        cr_assert_eq(jobs[i].discarded, i % 2 == 0, "without any consumer");
    cr_assert(queue_is_balanced(queue));
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 2);
    cr_assert_eq(jobs[1].ran + jobs[1].finished + jobs[3].ran + jobs[3].finished, 4);
    cr_assert_eq(jobs[0].ran + jobs[2].ran + jobs[4].ran, 0);
    cr_assert_eq(wr_queue_barrier(queue), 0);
}

Test(queue, all_tasks_cancelled_before_their_push_leave_the_descriptor_at_rest)
{
    int fd = wr_queue_fd(queue);
    struct job jobs[3];
    wr_handover h;
    job_begin_hand_over(&h, jobs, 3);
    for (int i = 0; i < 3; i++)
        job_cancel_alone(&jobs[i]);
    cr_assert_not(readable(fd));
    wr_handover_end(&h);
    cr_assert_not(readable(fd));
    struct wr_queue_stats s = stats_of(queue);
    cr_assert_eq(s.cancelled, 3);
    cr_assert_eq(s.pending + s.armed + s.delivered, 0);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(jobs[i].discarded, 1);
    cr_assert_eq(wr_queue_barrier(queue), 0, "nothing to wait for");
    kill_one(queue, LOG(1));
    cr_assert(readable(fd));
    wr_queue_drain(queue, 1);
    cr_assert_not(readable(fd));
}

Test(queue, a_task_cancelled_before_its_push_meets_cancel_all_and_free)
{
    struct job jobs[4];
    wr_handover h;
    job_begin_hand_over(&h, jobs, 2);
    job_cancel_alone(&jobs[0]);
    cr_assert_eq(wr_queue_cancel_all(queue), 0);
    cr_assert_eq(jobs[1].cancelled, 0, "it was not pushed");
    wr_handover_end(&h);
    cr_assert_eq(jobs[0].discarded, 1);
    cr_assert_eq(wr_queue_cancel_all(queue), 0);
    cr_assert_eq(jobs[1].discarded, 1);
    job_begin_hand_over(&h, jobs + 2, 2);
    job_cancel_alone(&jobs[3]);
    wr_queue *q = queue;
    thing *t = thing_new(1);
    wr_watch *w = wr_watch_new(t, q, LOG(1)); /* keeps it */
    queue = NULL;
    wr_queue_free(q);
    wr_handover_end(&h);
    cr_assert_eq(jobs[2].discarded, 1);
    cr_assert_eq(jobs[3].discarded, 1);
    cr_assert_eq(jobs[2].ran, 0, "the queue was freed before");
    struct wr_queue_stats s = stats_of(q);
    cr_assert_eq(s.cancelled, 4);
    cr_assert_eq(s.pending, 0);
    cr_assert_eq(s.armed, 1);
    wr_watch_release(w);
    wr_release(t);
}

Test(queue, a_task_that_a_consumer_found_cancelled_is_discarded_once)
{
    struct job jobs[3];
    wr_handover h;
    job_begin_hand_over(&h, jobs, 3);
    wr_handover_end(&h);
    cr_assert(job_cancel(&jobs[1].task));
    cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), 2);
    cr_assert_eq(jobs[1].discarded, 1);
    cr_assert_eq(stats_of(queue).pending, 1, "its canceller counts it");
    wr_queue_task_cancelled(queue, &jobs[1].task);
    cr_assert_eq(jobs[1].discarded, 1);
    cr_assert_eq(stats_of(queue).pending, 0);
}

Test(queue, a_task_that_cancel_all_found_cancelled_is_counted_once)
{
    struct job jobs[3];
    wr_handover h;
    job_begin_hand_over(&h, jobs, 3);
    wr_handover_end(&h);
    cr_assert(job_cancel(&jobs[1].task));
    cr_assert_eq(wr_queue_cancel_all(queue), 0);
    wr_queue_task_cancelled(queue, &jobs[1].task);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(jobs[i].discarded, 1);
    struct wr_queue_stats s = stats_of(queue);
    cr_assert_eq(s.cancelled, 3);
    cr_assert_eq(s.pending, 0);
}

Test(queue, linked_tasks_are_unlinked_wherever_they_stand)
{
    /* Every order of cancelling three of five, first before any consumer has looked, then with one task taken before. */
    for (int order = 0; order < 250; order++) {
        struct job jobs[6];
        wr_handover h;
        int left = 5, first = order % 2;
        job_begin_hand_over(&h, jobs, 6);
        wr_handover_end(&h);
        cr_assert_eq(wr_queue_drain(queue, (size_t)first), (size_t)first);
        for (int digits = order / 2, k = 0; k < 3; k++, digits /= 5) {
            struct job *job = &jobs[1 + digits % 5];
            if (job->cancelled)
                continue;
            job_cancel_alone(job);
            cr_assert_eq(job->discarded, 1, "at once");
            left--;
            wr_queue_check(queue);
        }
        cr_assert_eq(wr_queue_drain(queue, SIZE_MAX), (size_t)(left + 1 - first));
        for (int i = 1; i < 6; i++)
            cr_assert_eq(jobs[i].ran, !jobs[i].cancelled);
        cr_assert(queue_is_balanced(queue));
    }
}
