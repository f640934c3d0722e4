/* Races of destroys that run on a queue: the last release beside upgrades, cancels, consumers and the queue's end. */
#include <weakref/guard.h>
#include <weakref/watch.h>

#include "deaths.h"
#include "race.h"

typedef struct far {
    int number;
} far;

struct round {
    wr_queue *queue;
    far *object;
    wr_weak *weak;
    wr_watch *watch;  /* on the object */
    wr_watch *holder; /* on another: keeps a freed queue, to be asked */
    thing *held;
    /* Plain: written by destroy, callback and upgrader without any order of their own. */
    int destroyed, ran, used;
    bool upgraded;
    bool hurried; /* every other round: who ends the delivery lets deferred deaths come first */
    int answer;
};
static struct round round_;

static wr_queue *which_queue(void)
{
    return round_.queue;
}

static void far_destroy(void *obj)
{
    far *f = obj;
    RACE_CHECK(f->number == 7 || f->number == 8);
    RACE_CHECK(round_.ran == 0); /* callbacks come later */
    f->number = 0;
    round_.destroyed++;
}

static const wr_type far_type = {.name = "far", .size = sizeof(far), .destroy = far_destroy, .destroy_on = which_queue};
static const wr_type far_deferred_type = {
    .name = "far", .size = sizeof(far), .destroy = far_destroy, .destroy_on = which_queue, .flags = WR_TYPE_DEFERRED};
static const wr_type *type = &far_type;

static void callback(wr_weak *dead, void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(wr_weak_is_dead(dead));
    RACE_CHECK(r->destroyed == 1);
    r->ran++;
}

static void prepare(void *ctx)
{
    struct round *r = ctx;
    *r = (struct round){.queue = r->queue, .hurried = !r->hurried, .answer = -1};
    r->object = wr_new(type);
    r->object->number = 7;
    r->weak = wr_downgrade(r->object);
    r->watch = wr_watch_new(r->object, r->queue, callback, r);
}

static void prepare_new_queue(void *ctx)
{
    struct round *r = ctx;
    r->queue = wr_queue_new("round");
    prepare(ctx);
    r->held = thing_new(1);
    r->holder = wr_watch_new(r->held, r->queue, log_callback, NULL);
}

static void release(void *ctx)
{
    wr_release(((struct round *)ctx)->object);
}

static void upgrade(void *ctx)
{
    struct round *r = ctx;
    far *f = wr_upgrade(r->weak);
    r->upgraded = f != NULL;
    if (f != NULL)
        f->number = 8; /* no race: destroy comes later */
    wr_release(f);
}

/* Deferred: a release that has returned is handed over now, not when the reclaimer comes round to it. */
static void hurry(void)
{
    if (type->flags != 0)
        RACE_CHECK(wr_barrier() == 0);
}

static void drain(void *ctx)
{
    hurry();
    wr_queue_drain(((struct round *)ctx)->queue, SIZE_MAX);
}

static void cancel(void *ctx)
{
    struct round *r = ctx;
    if (r->hurried) {
        hurry();
        sched_yield();
    }
    r->answer = wr_watch_cancel_sync(r->watch);
    if (r->answer == WR_DELIVERED)
        RACE_CHECK(r->ran == 1); /* no race: it is over */
}

static void cancel_all(void *ctx)
{
    RACE_CHECK(wr_queue_cancel_all(((struct round *)ctx)->queue) == 0);
}

static void free_queue(void *ctx)
{
    struct round *r = ctx;
    if (r->hurried)
        hurry();
    wr_queue_free(r->queue);
}

static void count_handles(void *ctx)
{
    struct round *r = ctx;
    wr_weak_release(wr_weak_retain(r->weak));
    RACE_CHECK(wr_weak_is(r->weak, r->object));
}

/* The queue is there: all is run, once, and adds up. */
static void settle(struct round *r)
{
    struct wr_queue_stats stats;
    hurry();
    wr_queue_drain(r->queue, SIZE_MAX);
    wr_queue_stats(r->queue, &stats);
    RACE_CHECK(queue_is_balanced(r->queue) && stats.armed == 0 && stats.pending == 0);
    RACE_CHECK(r->destroyed == 1);
    RACE_CHECK(r->ran == (wr_watch_cancel(r->watch) == WR_DELIVERED));
    RACE_CHECK(wr_weak_is_dead(r->weak));
    wr_watch_release(r->watch);
    wr_weak_release(r->weak);
}

static unsigned judge_upgrade(void *ctx)
{
    struct round *r = ctx;
    settle(r);
    RACE_CHECK(r->ran == 1);
    return r->upgraded ? 0 : 1;
}

static unsigned judge_cancel(void *ctx)
{
    struct round *r = ctx;
    settle(r);
    RACE_CHECK(r->answer == (r->ran ? WR_DELIVERED : WR_CANCELLED));
    return r->ran ? 0 : 1;
}

static unsigned judge_cancel_all(void *ctx)
{
    struct round *r = ctx;
    settle(r);
    return r->ran ? 0 : 1;
}

static unsigned judge_freed(void *ctx)
{
    struct round *r = ctx;
    struct wr_queue_stats stats;
    hurry();
    RACE_CHECK(r->destroyed == 1);
    wr_queue_stats(r->queue, &stats);
    /* The destroy, the callback and the holder's. */
    RACE_CHECK(stats.watched == 3 && stats.armed == 1 && stats.pending == 0 && stats.running == 0);
    RACE_CHECK(stats.delivered + stats.cancelled == 2);
    RACE_CHECK(wr_watch_cancel(r->watch) == (r->ran ? WR_DELIVERED : WR_CANCELLED));
    RACE_CHECK(stats.delivered >= (uint64_t)r->ran);
    unsigned outcome = stats.delivered - (uint64_t)r->ran == 1 ? 0 : 1;
    wr_watch_release(r->watch);
    wr_weak_release(r->weak);
    wr_release(r->held);
    wr_watch_release(r->holder);
    return outcome;
}

static bool races(void)
{
    bool good = true;
    unsigned rounds = type->flags != 0 ? RACE_SIZE(2000, 500) : RACE_SIZE(10000, 3000);
    round_.queue = wr_queue_new("race");
    good &= race_run(&(struct race){
        .name = "upgrade vs last release vs drain",
        .prepare = prepare,
        .sides = {release, upgrade, drain},
        .judge = judge_upgrade,
        .outcomes = {"upgraded", "dead"},
        .ctx = &round_,
        .rounds = rounds,
    });
    good &= race_run(&(struct race){
        .name = "cancel_sync of a callback vs death vs drain",
        .prepare = prepare,
        .sides = {release, drain, cancel, count_handles},
        .judge = judge_cancel,
        .outcomes = {"delivered", "cancelled"},
        .ctx = &round_,
        .rounds = rounds,
    });
    good &= race_run(&(struct race){
        .name = "cancel_all vs death vs drain",
        .prepare = prepare,
        .sides = {release, drain, cancel_all},
        .judge = judge_cancel_all,
        .outcomes = {"callback delivered"},
        .ctx = &round_,
        .rounds = rounds,
    });
    wr_queue_free(round_.queue);
    good &= race_run(&(struct race){
        .name = "free of the queue vs last release",
        .prepare = prepare_new_queue,
        .sides = {release, free_queue, upgrade},
        .judge = judge_freed,
        .outcomes = {"destroyed as a task", "where it was released"},
        .ctx = &round_,
        .rounds = rounds,
    });
    return good;
}

int main(void)
{
    bool good = races();
    type = &far_deferred_type;
    good &= races();
    return good ? 0 : 1;
}
