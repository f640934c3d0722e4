/* Races of queues: hand-over beside consumers of every kind, the descriptor, stopping and freeing. */
#include <errno.h>
#include <poll.h>
#include <unistd.h>
#include <weakref/watch.h>

#include "deaths.h"
#include "queue.h"
#include "race.h"

enum { N = 4 };

struct round {
    wr_queue *queue;
    thing *objects[N];
    wr_watch *watches[N];
    _Atomic int ran;
    int plain[N]; /* written by callback i, without any order of its own */
    int ran_at_barrier;
    int fd;
    bool pending_at_fd;
    _Atomic bool over; /* the barrier is */
};
static struct round round_;

static void callback(wr_weak *dead, void *ctx)
{
    (void)dead;
    *(int *)ctx += 1;
    atomic_fetch_add_explicit(&round_.ran, 1, memory_order_relaxed);
}

static void prepare(void *ctx)
{
    struct round *r = ctx;
    wr_queue *queue = r->queue;
    int fd = r->fd;
    *r = (struct round){.queue = queue, .fd = fd};
    for (int i = 0; i < N; i++) {
        r->objects[i] = thing_new(i);
        r->watches[i] = wr_watch_new(r->objects[i], queue, callback, &r->plain[i]);
    }
}

static void prepare_new(void *ctx)
{
    struct round *r = ctx;
    r->queue = wr_queue_new("round");
    prepare(ctx);
}

static void prepare_new_without_fd(void *ctx)
{
    ((struct round *)ctx)->fd = -1;
    prepare_new(ctx);
}

static void prepare_first_two(void *ctx)
{
    struct round *r = ctx;
    prepare(ctx);
    wr_release(r->objects[0]);
    wr_release(r->objects[1]);
    r->objects[0] = r->objects[1] = NULL;
}

static void release_one(struct round *r, int i)
{
    thing *object = r->objects[i];
    r->objects[i] = NULL;
    wr_release(object);
}

static void release_0_and_1(void *ctx)
{
    release_one(ctx, 0);
    release_one(ctx, 1);
}

static void release_2(void *ctx)
{
    release_one(ctx, 2);
}

static void cancel_0_and_2(void *ctx)
{
    struct round *r = ctx;
    (void)wr_watch_cancel(r->watches[0]);
    (void)wr_watch_cancel(r->watches[2]);
}

static void drain_one(void *ctx)
{
    wr_queue_drain(((struct round *)ctx)->queue, 1);
}

static void drain_all(void *ctx)
{
    wr_queue_drain(((struct round *)ctx)->queue, SIZE_MAX);
}

static void cancel_all(void *ctx)
{
    RACE_CHECK(wr_queue_cancel_all(((struct round *)ctx)->queue) == 0);
}

static void make_fd(void *ctx)
{
    struct round *r = ctx;
    struct wr_queue_stats stats;
    r->fd = wr_queue_fd(r->queue);
    wr_queue_stats(r->queue, &stats);
    r->pending_at_fd = stats.pending != 0;
}

static void barrier(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(wr_queue_barrier(r->queue) == 0);
    r->ran_at_barrier = r->plain[0] + r->plain[1]; /* no race: both have run */
    atomic_store_explicit(&r->over, true, memory_order_relaxed);
}

/* A hand-over that comes before the barrier must be run, too. */
static void drain_until_over(void *ctx)
{
    struct round *r = ctx;
    while (!atomic_load_explicit(&r->over, memory_order_relaxed)) {
        if (wr_queue_drain(r->queue, 1) == 0)
            sched_yield();
    }
}

static void free_queue(void *ctx)
{
    wr_queue_free(((struct round *)ctx)->queue);
}

static void stop(void *ctx)
{
    RACE_CHECK(wr_queue_stop(((struct round *)ctx)->queue) == 0);
}

static void start(void *ctx)
{
    int error = wr_queue_start(((struct round *)ctx)->queue, 2);
    RACE_CHECK(error == 0 || error == -EBUSY);
}

static bool readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

/* Rest: no call is running. The descriptor tells the truth; then all is delivered and adds up. */
static uint64_t settle(struct round *r)
{
    struct wr_queue_stats stats;
    wr_queue_stats(r->queue, &stats);
    RACE_CHECK(queue_is_balanced(r->queue));
    if (r->fd >= 0)
        RACE_CHECK(readable(r->fd) == (stats.pending != 0));
    for (int i = 0; i < N; i++)
        wr_release(r->objects[i]);
    wr_queue_drain(r->queue, SIZE_MAX);
    RACE_CHECK(queue_is_balanced(r->queue));
    if (r->fd >= 0)
        RACE_CHECK(!readable(r->fd));
    int delivered = 0;
    for (int i = 0; i < N; i++) {
        RACE_CHECK(wr_watch_cancel(r->watches[i]) == (r->plain[i] ? WR_DELIVERED : WR_CANCELLED));
        RACE_CHECK(r->plain[i] <= 1);
        delivered += r->plain[i];
        wr_watch_release(r->watches[i]);
    }
    RACE_CHECK(delivered == r->ran);
    return stats.pending;
}

static unsigned judge_pending(void *ctx)
{
    return settle(ctx) ? 0 : 1;
}

/* The queue has threads: everything is delivered without our doing. A lost wake-up hangs here. */
static unsigned judge_delivered(void *ctx)
{
    struct round *r = ctx;
    wr_release(r->objects[3]);
    r->objects[3] = NULL;
    RACE_CHECK(wr_queue_barrier(r->queue) == 0);
    RACE_CHECK(r->ran == N);
    struct wr_queue_stats stats;
    wr_queue_stats(r->queue, &stats);
    RACE_CHECK(stats.pending == 0);
    (void)settle(ctx);
    return RACE_NONE;
}

static unsigned judge_fd(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(r->fd >= 0);
    RACE_CHECK(settle(r) == 1);
    wr_queue_free(r->queue);
    return r->pending_at_fd ? 0 : 1;
}

static unsigned judge_barrier(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(r->ran_at_barrier == 2);
    return settle(ctx) ? 0 : 1;
}

static unsigned judge_freed(void *ctx)
{
    struct round *r = ctx;
    for (int i = 0; i < N; i++)
        wr_release(r->objects[i]);
    unsigned outcome = r->ran == 3 ? 0 : r->ran == 0 ? 1 : RACE_NONE;
    struct wr_queue_stats stats;
    wr_queue_stats(r->queue, &stats); /* the handles keep it; asked before a cancel could tidy up */
    RACE_CHECK(stats.watched == N && stats.armed == 0 && stats.pending == 0);
    RACE_CHECK(stats.delivered == (uint64_t)r->ran && stats.cancelled == N - stats.delivered);
    for (int i = 0; i < N; i++) {
        RACE_CHECK(wr_watch_cancel(r->watches[i]) == (r->plain[i] ? WR_DELIVERED : WR_CANCELLED));
        wr_watch_release(r->watches[i]);
    }
    return outcome;
}

/* Without handles, which would hold the queue: the last of the sides frees it. */
static void prepare_unheld(void *ctx)
{
    struct round *r = ctx;
    *r = (struct round){.queue = wr_queue_new("round"), .fd = -1};
    for (int i = 0; i < N; i++) {
        r->objects[i] = thing_new(i);
        RACE_CHECK(wr_on_death(r->objects[i], r->queue, callback, &r->plain[i]) == 0);
    }
}

static unsigned judge_unheld(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(r->ran == r->plain[0] + r->plain[1] + r->plain[2] + r->plain[3]);
    return r->ran == N ? 0 : r->ran == 0 ? 1 : RACE_NONE;
}

static unsigned judge_stopped(void *ctx)
{
    stop(ctx);
    (void)settle(ctx);
    return RACE_NONE;
}

static unsigned judge_started(void *ctx)
{
    struct round *r = ctx;
    stop(ctx);
    struct wr_queue_stats stats;
    wr_queue_stats(r->queue, &stats);
    unsigned outcome = stats.pending == 0 ? 0 : 1;
    (void)settle(ctx);
    return outcome;
}

/* ---- storms ------------------------------------------------------------------------------------------- */

/* The fields are plain but for the counter: a hook beside itself, or after another was set, is a data race. */
struct storm {
    _Atomic int inside;
    unsigned calls;
    uint64_t pending;
    bool over; /* another was set */
    bool drains;
};
static struct storm storms[2];

static void hook(wr_queue *queue, uint64_t pending, void *ctx)
{
    struct storm *storm = ctx;
    RACE_CHECK(atomic_fetch_add_explicit(&storm->inside, 1, memory_order_relaxed) == 0);
    RACE_CHECK(!storm->over);
    storm->calls++;
    storm->pending = pending;
    if (storm->drains)
        wr_queue_drain(queue, SIZE_MAX);
    atomic_fetch_sub_explicit(&storm->inside, 1, memory_order_relaxed);
}

static void prepare_storm(void *ctx)
{
    struct round *r = ctx;
    prepare(ctx);
    storms[0] = storms[1] = (struct storm){.drains = storms[0].drains};
    RACE_CHECK(wr_queue_set_high_water(r->queue, N, hook, &storms[0], 0) == 0);
}

static void release_rest(void *ctx)
{
    release_one(ctx, 2);
    release_one(ctx, 3);
}

static void release_all(void *ctx)
{
    release_0_and_1(ctx);
    release_rest(ctx);
}

static void one_more(wr_queue *queue, int *counter)
{
    thing *t = thing_new(1);
    RACE_CHECK(wr_on_death(t, queue, callback, counter) == 0);
    wr_release(t);
}

/* At rest. However the round went: if half of the mark or less is pending, the next storm is told of. */
static unsigned judge_storm(void *ctx)
{
    struct round *r = ctx;
    struct wr_queue_stats stats;
    wr_queue_stats(r->queue, &stats);
    unsigned calls = storms[0].calls;
    int more = 0;
    RACE_CHECK(stats.pending < N || calls > 0);
    RACE_CHECK(calls == 0 || storms[0].pending >= N);
    if (stats.pending <= N / 2 || calls == 0) {
        for (uint64_t pending = stats.pending; pending < N; pending++) {
            RACE_CHECK(storms[0].calls == calls);
            one_more(r->queue, &more);
        }
        RACE_CHECK(storms[0].calls == (stats.pending < N ? calls + 1 : calls));
    }
    storms[0].drains = false;
    wr_queue_drain(r->queue, SIZE_MAX);
    r->ran -= more;
    (void)settle(r);
    return calls > 0 ? 0 : 1;
}

static unsigned judge_storm_drained(void *ctx)
{
    unsigned outcome = judge_storm(ctx);
    storms[0].drains = true;
    return outcome;
}

static void set_second(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(wr_queue_set_high_water(r->queue, N / 2, hook, &storms[1], 0) == 0);
    storms[0].over = true; /* no race: the hook with it is not running and will not */
}

static unsigned judge_second(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(storms[0].calls + storms[1].calls <= 2);
    unsigned outcome = storms[0].calls > 0 ? 0 : storms[1].calls > 0 ? 1 : RACE_NONE;
    RACE_CHECK(wr_queue_set_high_water(r->queue, 0, NULL, NULL, 0) == 0);
    (void)settle(r);
    return outcome;
}

static void release_0(void *ctx)
{
    release_one(ctx, 0);
}

/* The second mark is told of when it is reached, and not later: no alarm of the first one's outlasts the setting. */
static unsigned judge_second_exactly(void *ctx)
{
    struct round *r = ctx;
    int more = 0;
    RACE_CHECK(storms[0].calls + storms[1].calls == 0);
    one_more(r->queue, &more);
    RACE_CHECK(storms[1].calls == 1 && storms[1].pending == N / 2);
    RACE_CHECK(wr_queue_set_high_water(r->queue, 0, NULL, NULL, 0) == 0);
    wr_queue_drain(r->queue, SIZE_MAX);
    r->ran -= more;
    (void)settle(r);
    return RACE_NONE;
}

static void prepare_help(void *ctx)
{
    struct round *r = ctx;
    prepare(ctx);
    RACE_CHECK(wr_queue_set_high_water(r->queue, 1, NULL, NULL, 2) == 0);
}

/* What came beside another's hand-over may have been left by both; but not by those that follow. */
static unsigned judge_help(void *ctx)
{
    struct round *r = ctx;
    int more = 0;
    for (int i = 0; i < N; i++)
        one_more(r->queue, &more);
    RACE_CHECK(r->ran == 4 + N && more == N);
    r->ran -= N;
    (void)settle(r);
    return RACE_NONE;
}

/* A hook that is called, or called again, beside the freeing of its queue. */
static void prepare_new_storm(void *ctx)
{
    ((struct round *)ctx)->fd = -1;
    prepare_new(ctx);
    storms[0] = (struct storm){.drains = false};
    RACE_CHECK(wr_queue_set_high_water(((struct round *)ctx)->queue, 1, hook, &storms[0], 1) == 0);
}

static void free_storm(void *ctx)
{
    free_queue(ctx);
    storms[0].over = true; /* no race: it has waited */
}

static unsigned judge_freed_storm(void *ctx)
{
    unsigned calls = storms[0].calls;
    (void)judge_freed(ctx);
    return calls > 0 ? 0 : 1;
}

/* ---- a slow limit that is set while a callback is judged by the old one --------------------------------- */

static wr_queue *slow_queue;
static uint64_t slow_before;

static void take_some_time(wr_weak *dead, void *ctx)
{
    (void)dead, (void)ctx;
    struct timespec begin, now;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do
        clock_gettime(CLOCK_MONOTONIC, &now);
    while ((now.tv_sec - begin.tv_sec) * 1000000000L + (now.tv_nsec - begin.tv_nsec) < 30000);
}

static uint64_t n_slow(void)
{
    struct wr_queue_stats stats;
    wr_queue_stats(slow_queue, &stats);
    return stats.slow;
}

static void one_slow(void)
{
    thing *t = thing_new(1);
    RACE_CHECK(wr_on_death(t, slow_queue, take_some_time, NULL) == 0);
    wr_release(t);
}

static void prepare_slow(void *ctx)
{
    (void)ctx;
    RACE_CHECK(wr_queue_set_slow_limit(slow_queue, UINT64_C(3600000000000)) == 0);
    slow_before = n_slow();
    one_slow();
}

static void drain_slow(void *ctx)
{
    (void)ctx;
    wr_queue_drain(slow_queue, SIZE_MAX);
}

static void set_limit(void *ctx)
{
    static uint64_t random;
    (void)ctx;
    /* About when the callback ends. */
    unsigned n = (unsigned)(race_draw(&random) % 2000);
    for (unsigned i = 0; i < n; i++)
        race_pause();
    RACE_CHECK(wr_queue_set_slow_limit(slow_queue, 1000) == 0);
}

static unsigned judge_slow(void *ctx)
{
    (void)ctx;
    uint64_t slow = n_slow();
    one_slow();
    wr_queue_drain(slow_queue, SIZE_MAX);
    RACE_CHECK(n_slow() == slow + 1);
    return slow > slow_before ? 0 : 1;
}

/* ---- a task that is cancelled while it is pushed ---------------------------------------------------------- */

/* It must be the canceller's or the pusher's to discard, without any consumer. */
static struct {
    wr_task task;  /* first */
    int discarded; /* plain: one of the two does */
} job;
static wr_queue *job_queue;
static wr_handover job_hand_over;
static _Atomic bool job_cancelled;
static bool cancelled_first;

static bool job_begin(wr_task *task)
{
    (void)task;
    return !atomic_load_explicit(&job_cancelled, memory_order_relaxed);
}

static void job_never(wr_task *task)
{
    (void)task;
    RACE_CHECK(false); /* it is cancelled before */
}

static bool job_cancel(wr_task *task)
{
    (void)task;
    return !atomic_exchange_explicit(&job_cancelled, true, memory_order_relaxed);
}

static void job_discard(wr_task *task)
{
    (void)task;
    job.discarded++;
}

static const wr_task_class job_class = {
    .begin = job_begin, .run = job_never, .finish = job_never, .cancel = job_cancel, .discard = job_discard};

static void prepare_job(void *ctx)
{
    (void)ctx;
    memset(&job, 0, sizeof job);
    job.task.klass = &job_class;
    atomic_store_explicit(&job_cancelled, false, memory_order_relaxed);
    wr_queue_admit(job_queue, false);
    RACE_CHECK(wr_handover_begin(&job_hand_over, job_queue, 1));
    wr_handover_add(&job_hand_over, &job.task);
}

static void push_job(void *ctx)
{
    (void)ctx;
    wr_handover_end(&job_hand_over);
}

static void cancel_job(void *ctx)
{
    (void)ctx;
    RACE_CHECK(job_cancel(&job.task));
    wr_queue_task_cancelled(job_queue, &job.task);
    struct wr_queue_stats stats;
    wr_queue_stats(job_queue, &stats);
    cancelled_first = stats.armed != 0; /* the push is not over */
}

static unsigned judge_job(void *ctx)
{
    (void)ctx;
    RACE_CHECK(job.discarded == 1);
    RACE_CHECK(queue_is_balanced(job_queue));
    return cancelled_first ? 0 : 1;
}

int main(void)
{
    bool good = true;
    alarm(600); /* a lost wake-up ends here */

    round_.queue = wr_queue_new("fd");
    round_.fd = wr_queue_fd(round_.queue);
    good &= race_run(&(struct race){
        .name = "descriptor: two producers, a consumer, a canceller",
        .prepare = prepare,
        .sides = {release_0_and_1, release_2, drain_one, cancel_0_and_2},
        .judge = judge_pending,
        .outcomes = {"some left", "none left"},
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });
    good &= race_run(&(struct race){
        .name = "descriptor: hand-over vs drain",
        .prepare = prepare,
        .sides = {release_2, drain_all},
        .judge = judge_pending,
        .outcomes = {"left", "taken"},
        .ctx = &round_,
    });
    good &= race_run(&(struct race){
        .name = "cancel_all vs hand-over and drain",
        .prepare = prepare_first_two,
        .sides = {release_2, cancel_all, drain_one},
        .judge = judge_pending,
        .outcomes = {"left", "none left"},
        .ctx = &round_,
    });
    wr_queue_free(round_.queue);

    good &= race_run(&(struct race){
        .name = "a descriptor made beside a hand-over",
        .prepare = prepare_new_without_fd,
        .sides = {release_2, make_fd},
        .judge = judge_fd,
        .outcomes = {"work was there first", "descriptor was there first"},
        .ctx = &round_,
        .rounds = RACE_SIZE(3000, 600),
    });

    round_.queue = wr_queue_new("barrier");
    round_.fd = -1;
    good &= race_run(&(struct race){
        .name = "barrier vs hand-over and drain",
        .prepare = prepare_first_two,
        .sides = {drain_until_over, barrier, release_2},
        .judge = judge_barrier,
        .outcomes = {"later one left", "later one taken"},
        .ctx = &round_,
    });
    wr_queue_free(round_.queue);

    round_.queue = wr_queue_new("threads");
    wr_queue_start(round_.queue, 1);
    good &= race_run(&(struct race){
        .name = "hand-over to a sleeping thread",
        .prepare = prepare,
        .sides = {release_0_and_1, release_2},
        .judge = judge_delivered,
        .ctx = &round_,
        .rounds = RACE_SIZE(3000, 600),
    });
    wr_queue_stop(round_.queue);
    wr_queue_start(round_.queue, 4);
    good &= race_run(&(struct race){
        .name = "hand-over to four sleeping threads",
        .prepare = prepare,
        .sides = {release_0_and_1, release_2},
        .judge = judge_delivered,
        .ctx = &round_,
        .rounds = RACE_SIZE(3000, 600),
    });
    wr_queue_stop(round_.queue);
    good &= race_run(&(struct race){
        .name = "start, stop, stop, hand-over",
        .prepare = prepare,
        .sides = {start, release_0_and_1, stop, release_2, stop},
        .judge = judge_stopped,
        .ctx = &round_,
        .rounds = RACE_SIZE(1000, 200),
    });
    good &= race_run(&(struct race){
        .name = "start vs hand-over",
        .prepare = prepare,
        .sides = {start, release_0_and_1},
        .judge = judge_started,
        .outcomes = {"delivered"},
        .ctx = &round_,
        .rounds = RACE_SIZE(1000, 200),
    });
    wr_queue_free(round_.queue);

    good &= race_run(&(struct race){
        .name = "free vs hand-over",
        .prepare = prepare_new,
        .sides = {release_0_and_1, free_queue, release_2},
        .judge = judge_freed,
        .outcomes = {"all delivered", "all cancelled"},
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });

    good &= race_run(&(struct race){
        .name = "free vs hand-over without handles",
        .prepare = prepare_unheld,
        .sides = {release_0_and_1, free_queue, release_rest},
        .judge = judge_unheld,
        .outcomes = {"all delivered", "all cancelled"},
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });

    round_.queue = wr_queue_new("storms");
    round_.fd = -1;
    good &= race_run(&(struct race){
        .name = "storm vs drain",
        .prepare = prepare_storm,
        .sides = {release_all, drain_all},
        .judge = judge_storm,
        .outcomes = {"hook called", "never reached"},
        .ctx = &round_,
    });
    good &= race_run(&(struct race){
        .name = "storm vs drain vs cancel",
        .prepare = prepare_storm,
        .sides = {release_0_and_1, release_rest, drain_all, cancel_0_and_2},
        .judge = judge_storm,
        .outcomes = {"hook called", "never reached"},
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });
    storms[0].drains = true;
    good &= race_run(&(struct race){
        .name = "storm whose hook drains vs drain",
        .prepare = prepare_storm,
        .sides = {release_0_and_1, release_rest, drain_one},
        .judge = judge_storm_drained,
        .outcomes = {"hook called", "never reached"},
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });
    storms[0].drains = false;
    good &= race_run(&(struct race){
        .name = "storm vs setting another hook",
        .prepare = prepare_storm,
        .sides = {release_all, set_second},
        .judge = judge_second,
        .outcomes = {"the first was called", "the second was called"},
        .ctx = &round_,
    });
    good &= race_run(&(struct race){
        .name = "storm's mark set beside a hand-over",
        .prepare = prepare_storm,
        .sides = {release_0, set_second},
        .judge = judge_second_exactly,
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });
    good &= race_run(&(struct race){
        .name = "releasing threads that help",
        .prepare = prepare_help,
        .sides = {release_0_and_1, release_rest, drain_one},
        .judge = judge_help,
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });
    wr_queue_free(round_.queue);
    good &= race_run(&(struct race){
        .name = "free vs storm",
        .prepare = prepare_new_storm,
        .sides = {release_0_and_1, free_storm, release_2},
        .judge = judge_freed_storm,
        .outcomes = {"hook called", "freed before"},
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });

    job_queue = wr_queue_new("job");
    good &= race_run(&(struct race){
        .name = "cancel vs push",
        .prepare = prepare_job,
        .sides = {push_job, cancel_job},
        .judge = judge_job,
        .outcomes = {"cancel first", "push first"},
        .ctx = &round_,
    });
    wr_queue_free(job_queue);

    slow_queue = wr_queue_new("slow");
    good &= race_run(&(struct race){
        .name = "slow limit vs the judging of a callback",
        .prepare = prepare_slow,
        .sides = {drain_slow, set_limit},
        .judge = judge_slow,
        .outcomes = {"judged by the new limit", "by the old one"},
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });
    wr_queue_free(slow_queue);
    return good ? 0 : 1;
}
