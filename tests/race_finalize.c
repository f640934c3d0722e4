/* Races of finalizers: death, delivery, call, detach, peek, release of the handle and shutdown, each beside the others. */
#include <weakref/finalize.h>

#include <errno.h>
#include <weakref/debug.h>

#include "deaths.h"
#include "race.h"

static wr_queue *queue;

struct round {
    wr_queue *where;
    unsigned flags;
    thing *object;
    wr_weak *weak;
    wr_finalizer *finalizer;
    int ran;     /* written by the function without any order of its own */
    int seen;    /* what its caller or waiter then found */
    int answer;  /* of call or detach */
    int answer2; /* of the other call */
    bool peeked, had_object, dead_before, dead_after;
};
static struct round round_;

static void function(void *ctx)
{
    ((struct round *)ctx)->ran++;
}

static void prepare_alive(void *ctx)
{
    struct round *r = ctx;
    *r = (struct round){.where = r->where, .flags = r->flags, .seen = -1, .answer = 1, .answer2 = 1};
    r->object = thing_new(1);
    r->weak = wr_downgrade(r->object);
    r->finalizer = wr_finalize(r->object, r->where, function, r, r->flags);
    RACE_CHECK(r->finalizer != NULL);
}

static void prepare_pending(void *ctx)
{
    prepare_alive(ctx);
    wr_release(round_.object);
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

static void call(void *ctx)
{
    struct round *r = ctx;
    r->dead_before = wr_weak_is_dead(r->weak);
    r->answer = wr_finalizer_call(r->finalizer);
    r->dead_after = wr_weak_is_dead(r->weak);
    if (r->answer == 0)
        r->seen = r->ran;
}

static void call_too(void *ctx)
{
    struct round *r = ctx;
    r->answer2 = wr_finalizer_call(r->finalizer);
}

static void detach(void *ctx)
{
    struct round *r = ctx;
    r->answer = wr_finalizer_detach(r->finalizer);
}

static void detach_sync(void *ctx)
{
    struct round *r = ctx;
    r->answer = wr_finalizer_detach_sync(r->finalizer);
    r->seen = r->ran; /* no race: it is not running and will not */
}

static void peek(void *ctx)
{
    struct round *r = ctx;
    void *obj;
    r->peeked = wr_finalizer_peek(r->finalizer, &obj, NULL, NULL);
    r->had_object = obj != NULL;
    RACE_CHECK(r->peeked || !r->had_object);
    wr_release(obj);
}

static void release_handle(void *ctx)
{
    struct round *r = ctx;
    wr_finalizer_release(r->finalizer);
    r->finalizer = NULL;
}

static void shutdown_(void *ctx)
{
    struct round *r = ctx;
    r->answer = wr_shutdown(WR_NO_TIMEOUT);
}

/* What must hold after any round. @times: how often it must have run. */
static void settle(struct round *r, int times)
{
    wr_queue_drain(queue, SIZE_MAX);
    RACE_CHECK(r->ran == times);
    RACE_CHECK(queue_is_balanced(r->where));
    struct wr_queue_stats stats;
    wr_queue_stats(r->where, &stats);
    RACE_CHECK(stats.armed == 0 && stats.pending == 0 && stats.running == 0);
    RACE_CHECK(!wr_finalizer_alive(r->finalizer));
    wr_finalizer_release(r->finalizer);
    wr_weak_release(r->weak);
    struct wr_stats all;
    wr_stats(&all);
    RACE_CHECK(all.at_exit == 0);
}

static unsigned judge_call(void *ctx)
{
    struct round *r = ctx;
    settle(r, 1);
    RACE_CHECK(r->answer == 0 ? r->seen == 1 : r->answer == -ESTALE);
    return r->answer == 0 ? 0 : 1;
}

static unsigned judge_death(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(judge_call(ctx) == 0);
    return r->dead_before ? 0 : !r->dead_after ? 1 : RACE_NONE;
}

static unsigned judge_calls(void *ctx)
{
    struct round *r = ctx;
    settle(r, 1);
    RACE_CHECK((r->answer == 0) + (r->answer2 == 0) <= 1);
    return r->answer == 0 ? 0 : r->answer2 == 0 ? 1 : 2;
}

static unsigned judge_detach(void *ctx)
{
    struct round *r = ctx;
    settle(r, r->answer != 0);
    RACE_CHECK(r->answer == 0 || r->answer == -ESTALE);
    return r->answer == 0 ? 0 : 1;
}

static unsigned judge_detach_sync(void *ctx)
{
    struct round *r = ctx;
    int seen = r->seen;
    settle(r, r->answer != 0);
    RACE_CHECK(seen == r->ran);
    return r->answer == 0 ? 0 : 1;
}

static unsigned judge_peek(void *ctx)
{
    struct round *r = ctx;
    settle(r, 1);
    return r->had_object ? 0 : r->peeked ? 1 : 2;
}

static unsigned judge_handle(void *ctx)
{
    settle(ctx, 1);
    return RACE_NONE;
}

static unsigned judge_shutdown(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(r->answer == 0);
    settle(r, 1);
    return RACE_NONE;
}

int main(void)
{
    queue = wr_queue_new("race");
    bool good = true;

    round_.where = queue;
    for (round_.flags = 0; round_.flags <= WR_FINALIZE_ATEXIT; round_.flags++) {
        good &= race_run(&(struct race){
            .name = "call vs delivery",
            .prepare = prepare_pending,
            .sides = {drain, call},
            .judge = judge_call,
            .outcomes = {"called", "delivered"},
            .ctx = &round_,
            .rounds = RACE_SIZE(8000, 2000),
        });
        good &= race_run(&(struct race){
            .name = "detach vs delivery",
            .prepare = prepare_pending,
            .sides = {drain, detach},
            .judge = judge_detach,
            .outcomes = {"detached", "delivered"},
            .ctx = &round_,
            .rounds = RACE_SIZE(8000, 2000),
        });
    }
    round_.flags = 0;
    good &= race_run(&(struct race){
        .name = "call vs death",
        .prepare = prepare_alive,
        .sides = {release, call},
        .judge = judge_death,
        .outcomes = {"death first", "call first"},
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });
    good &= race_run(&(struct race){
        .name = "detach_sync vs delivery",
        .prepare = prepare_pending,
        .sides = {drain, detach_sync},
        .judge = judge_detach_sync,
        .outcomes = {"detached", "delivered"},
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });
    good &= race_run(&(struct race){
        .name = "release of the handle vs delivery",
        .prepare = prepare_pending,
        .sides = {drain, release_handle},
        .judge = judge_handle,
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });
    round_.flags = WR_FINALIZE_ATEXIT;
    good &= race_run(&(struct race){
        .name = "shutdown vs death and delivery",
        .prepare = prepare_alive,
        .sides = {release, shutdown_, drain},
        .judge = judge_shutdown,
        .ctx = &round_,
        .rounds = RACE_SIZE(3000, 600),
    });
    good &= race_run(&(struct race){
        .name = "two calls vs death and delivery",
        .prepare = prepare_alive,
        .sides = {release, call, drain, call_too, peek},
        .judge = judge_calls,
        .outcomes = {"first call", "second call", "delivered"},
        .ctx = &round_,
        .rounds = RACE_SIZE(3000, 600),
    });

    round_.where = WR_QUEUE_INLINE;
    good &= race_run(&(struct race){
        .name = "call vs inline death",
        .prepare = prepare_alive,
        .sides = {release, call},
        .judge = judge_call,
        .outcomes = {"called", "delivered"},
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });
    good &= race_run(&(struct race){
        .name = "detach vs inline death",
        .prepare = prepare_alive,
        .sides = {release, detach},
        .judge = judge_detach,
        .outcomes = {"detached", "delivered"},
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });
    good &= race_run(&(struct race){
        .name = "peek vs inline death",
        .prepare = prepare_alive,
        .sides = {release, peek},
        .judge = judge_peek,
        .outcomes = {"alive", "dying", "over"},
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });
    wr_queue_free(queue);
    return good ? 0 : 1;
}
