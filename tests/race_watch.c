/* Races of watches: cancel, cancel_sync and release of the handle beside death and delivery. */
#include <weakref/watch.h>

#include "deaths.h"
#include "race.h"

static wr_queue *queue;

struct round {
    wr_queue *where;
    thing *object;
    wr_weak *weak;
    wr_watch *watch;
    int ran;    /* written by the callback without any order of its own */
    int seen;   /* what cancel_sync's caller then found */
    int answer; /* of the cancel */
    int answers[RACE_SIDES];
    bool dead_before, dead_after;
    _Atomic unsigned turn;
};
static struct round round_;

static void callback(wr_weak *dead, void *ctx)
{
    (void)dead;
    ((struct round *)ctx)->ran++;
}

static void prepare_alive(void *ctx)
{
    struct round *r = ctx;
    wr_queue *where = r->where;
    *r = (struct round){.where = where, .seen = -1};
    r->object = thing_new(1);
    r->weak = wr_downgrade(r->object);
    RACE_CHECK(wr_on_death(r->object, r->where, log_callback, NULL) == 0);
    r->watch = wr_watch_new(r->object, r->where, callback, r);
    RACE_CHECK(wr_on_death(r->object, r->where, log_callback, NULL) == 0);
}

static void prepare_pending(void *ctx)
{
    struct round *r = ctx;
    prepare_alive(ctx);
    wr_release(r->object);
}

static void release(void *ctx)
{
    wr_release(((struct round *)ctx)->object);
}

static void drain(void *ctx)
{
    (void)ctx;
    wr_queue_drain(queue, SIZE_MAX);
}

static void cancel(void *ctx)
{
    struct round *r = ctx;
    r->dead_before = wr_weak_is_dead(r->weak);
    r->answer = wr_watch_cancel(r->watch);
    r->dead_after = wr_weak_is_dead(r->weak);
}

static void cancel_sync(void *ctx)
{
    struct round *r = ctx;
    r->answer = wr_watch_cancel_sync(r->watch);
    r->seen = r->ran; /* no race: it is not running and will not */
}

static void release_handle(void *ctx)
{
    struct round *r = ctx;
    wr_watch_release(r->watch);
    r->watch = NULL;
}

/* Everything that must hold after any round, and the round's objects given back. */
static void settle(struct round *r)
{
    wr_queue_drain(queue, SIZE_MAX);
    RACE_CHECK(queue_is_balanced(r->where));
    struct wr_queue_stats stats;
    wr_queue_stats(r->where, &stats);
    RACE_CHECK(stats.armed == 0 && stats.pending == 0 && stats.running == 0);
    if (r->watch != NULL) {
        int again = wr_watch_cancel(r->watch);
        RACE_CHECK(again == (r->ran ? WR_DELIVERED : WR_CANCELLED));
    }
    RACE_CHECK(r->ran <= 1);
    RACE_CHECK(atomic_exchange(&n_logged, 0) == 2);
    wr_watch_release(r->watch);
    wr_weak_release(r->weak);
}

static unsigned judge_death(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(r->answer == WR_CANCELLED);
    RACE_CHECK(r->ran == 0);
    settle(r);
    return r->dead_before ? 0 : !r->dead_after ? 1 : RACE_NONE;
}

static unsigned judge_answer(void *ctx)
{
    struct round *r = ctx;
    settle(r);
    RACE_CHECK((r->answer == WR_CANCELLED) == (r->ran == 0));
    return (unsigned)r->answer;
}

static unsigned judge_sync(void *ctx)
{
    struct round *r = ctx;
    settle(r);
    RACE_CHECK(r->answer == (r->ran ? WR_DELIVERED : WR_CANCELLED));
    RACE_CHECK(r->seen == r->ran);
    return r->ran ? 1 : 0;
}

static unsigned judge_handle(void *ctx)
{
    struct round *r = ctx;
    settle(r);
    RACE_CHECK(r->ran == 1);
    return RACE_NONE;
}

/* All that can come together, with more threads than processors: three cancellers, two consumers, the death. */
static void cancel_some(void *ctx)
{
    struct round *r = ctx;
    unsigned me = atomic_fetch_add_explicit(&r->turn, 1, memory_order_relaxed);
    r->answers[me] = me % 2 ? wr_watch_cancel_sync(r->watch) : wr_watch_cancel(r->watch);
}

static unsigned judge_crowd(void *ctx)
{
    struct round *r = ctx;
    settle(r);
    for (unsigned i = 0; i < r->turn; i++)
        RACE_CHECK((r->answers[i] == WR_CANCELLED) == (r->ran == 0));
    return r->ran ? 1 : 0;
}

int main(void)
{
    queue = wr_queue_new("race");
    bool good = true;

    round_.where = queue;
    good &= race_run(&(struct race){
        .name = "cancel vs death",
        .prepare = prepare_alive,
        .sides = {release, cancel},
        .judge = judge_death,
        .outcomes = {"death first", "cancel first"},
        .ctx = &round_,
    });
    good &= race_run(&(struct race){
        .name = "cancel vs delivery",
        .prepare = prepare_pending,
        .sides = {drain, cancel},
        .judge = judge_answer,
        .outcomes = {"cancelled", "running", "delivered"},
        .ctx = &round_,
    });
    good &= race_run(&(struct race){
        .name = "cancel_sync vs delivery",
        .prepare = prepare_pending,
        .sides = {drain, cancel_sync},
        .judge = judge_sync,
        .outcomes = {"cancelled", "delivered"},
        .ctx = &round_,
    });
    good &= race_run(&(struct race){
        .name = "release of the handle vs delivery",
        .prepare = prepare_pending,
        .sides = {drain, release_handle},
        .judge = judge_handle,
        .ctx = &round_,
    });
    good &= race_run(&(struct race){
        .name = "release of the handle vs death",
        .prepare = prepare_alive,
        .sides = {release, release_handle},
        .judge = judge_handle,
        .ctx = &round_,
    });
    good &= race_run(&(struct race){
        .name = "eight threads",
        .prepare = prepare_alive,
        .sides = {release, cancel_some, drain, cancel_some, drain, cancel_some, drain, cancel_some},
        .judge = judge_crowd,
        .outcomes = {"cancelled", "delivered"},
        .ctx = &round_,
        .rounds = RACE_SIZE(3000, 600),
    });

    round_.where = WR_QUEUE_INLINE;
    good &= race_run(&(struct race){
        .name = "cancel_sync vs inline delivery",
        .prepare = prepare_alive,
        .sides = {release, cancel_sync},
        .judge = judge_sync,
        .outcomes = {"cancelled", "delivered"},
        .ctx = &round_,
    });
    wr_queue_free(queue);
    return good ? 0 : 1;
}
