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

static void nothing(wr_weak *dead, void *ctx)
{
    (void)dead, (void)ctx;
}

/* The watch alone remembers the object, which goes in the midst of the race: an inline callback, which comes first, has
 * had the death's own weak count. */
static void prepare_forgotten(void *ctx)
{
    struct round *r = ctx;
    wr_queue *where = r->where;
    *r = (struct round){.where = where, .seen = -1};
    atomic_store_explicit(&things_destroyed, 0, memory_order_relaxed);
    r->object = thing_new(1);
    r->watch = wr_watch_new(r->object, r->where, callback, r);
    RACE_CHECK(wr_on_death(r->object, WR_QUEUE_INLINE, nothing, NULL) == 0);
}

static void cancel_forgotten(void *ctx)
{
    struct round *r = ctx;
    r->dead_before = atomic_load_explicit(&things_destroyed, memory_order_relaxed) != 0;
    r->answer = wr_watch_cancel(r->watch);
    r->dead_after = atomic_load_explicit(&things_destroyed, memory_order_relaxed) != 0;
}

static unsigned judge_forgotten(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(r->answer == WR_CANCELLED && r->ran == 0);
    RACE_CHECK(queue_is_balanced(r->where));
    RACE_CHECK(wr_queue_drain(queue, SIZE_MAX) == 0);
    wr_watch_release(r->watch);
    return r->dead_before ? 0 : !r->dead_after ? 1 : 2;
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

/* A hand-over of many, one half of which is cancelled while it is in progress: after their state has moved, before
 * they are pushed. */
enum { MANY = 256, FIRST = 4 };

static wr_watch *many[MANY];
static int many_ran[MANY], many_answers[MANY];
static bool in_progress;

static void many_callback(wr_weak *dead, void *ctx)
{
    (void)dead;
    *(int *)ctx += 1;
}

static void prepare_many(void *ctx)
{
    struct round *r = ctx;
    r->object = thing_new(1);
    in_progress = false;
    r->weak = wr_downgrade(r->object);
    for (int i = 0; i < MANY; i++) {
        many_ran[i] = 0;
        many_answers[i] = -1;
        many[i] = wr_watch_new(r->object, queue, many_callback, &many_ran[i]);
    }
}

static void cancel_many(void *ctx)
{
    struct round *r = ctx;
    struct wr_queue_stats stats;
    int n_cancelled = 0;
    for (int i = 0; i < 20000 && !wr_weak_is_dead(r->weak); i++)
        race_pause();
    /* They go over newest first. */
    for (int i = MANY - 1; i >= MANY - FIRST; i--) {
        many_answers[i] = wr_watch_cancel(many[i]);
        n_cancelled += many_answers[i] == WR_CANCELLED;
    }
    /* Not all of them were cancelled as armed ones; and the hand-over, which keeps its tasks among the armed, is not over. */
    wr_queue_stats(queue, &stats);
    in_progress = stats.armed > 0 && (uint64_t)n_cancelled > MANY - stats.armed;
    for (int i = MANY - FIRST - 1; i >= 0; i -= 2)
        many_answers[i] = wr_watch_cancel(many[i]);
}

static unsigned judge_many(void *ctx)
{
    struct wr_queue_stats stats;
    wr_queue_drain(queue, SIZE_MAX);
    RACE_CHECK(wr_queue_barrier(queue) == 0);
    wr_queue_stats(queue, &stats);
    RACE_CHECK(queue_is_balanced(queue) && stats.armed == 0 && stats.pending == 0 && stats.running == 0);
    unsigned n_cancelled = 0;
    for (int i = 0; i < MANY; i++) {
        RACE_CHECK(many_ran[i] == (many_answers[i] != WR_CANCELLED));
        n_cancelled += many_answers[i] == WR_CANCELLED;
        RACE_CHECK(wr_watch_cancel(many[i]) == (many_ran[i] ? WR_DELIVERED : WR_CANCELLED));
        wr_watch_release(many[i]);
    }
    wr_weak_release(((struct round *)ctx)->weak);
    return in_progress ? 0 : n_cancelled > 0 ? 1 : 2;
}

/* ---- watches that are made at once: by the first the object has no side record, by the second it gets one --------- */

static int called[3]; /* in order */
static unsigned n_called;

static void note(wr_weak *dead, void *ctx)
{
    (void)dead;
    called[n_called++] = *(int *)ctx;
}

static int ids[] = {0, 1, 2};

static void prepare_unwatched(void *ctx)
{
    struct round *r = ctx;
    wr_queue *where = r->where;
    *r = (struct round){.where = where};
    r->object = thing_new(1);
    n_called = 0;
}

static void watch_0(void *ctx)
{
    RACE_CHECK(wr_on_death(((struct round *)ctx)->object, queue, note, &ids[0]) == 0);
}

static void watch_1(void *ctx)
{
    RACE_CHECK(wr_on_death(((struct round *)ctx)->object, queue, note, &ids[1]) == 0);
}

static void watch_with_handle(void *ctx)
{
    struct round *r = ctx;
    r->watch = wr_watch_new(r->object, queue, note, &ids[2]);
    RACE_CHECK(r->watch != NULL);
}

/* The outcome: who was last, and so is called first. */
static unsigned judge_watches(void *ctx)
{
    struct round *r = ctx;
    wr_release(r->object);
    RACE_CHECK(wr_queue_drain(queue, SIZE_MAX) == 3 && n_called == 3);
    RACE_CHECK(queue_is_balanced(queue));
    RACE_CHECK((1 << called[0] | 1 << called[1] | 1 << called[2]) == 7);
    wr_watch_release(r->watch);
    return (unsigned)called[0];
}

int main(void)
{
    queue = wr_queue_new("race");
    bool good = true;

    round_.where = queue;
    good &= race_run(&(struct race){
        .name = "watch vs watch",
        .prepare = prepare_unwatched,
        .sides = {watch_0, watch_1, watch_with_handle},
        .judge = judge_watches,
        .outcomes = {"without a handle", "another one", "with a handle"},
        .ctx = &round_,
    });
    good &= race_run(&(struct race){
        .name = "cancel vs death",
        .prepare = prepare_alive,
        .sides = {release, cancel},
        .judge = judge_death,
        .outcomes = {"death first", "cancel first"},
        .ctx = &round_,
    });
    good &= race_run(&(struct race){
        .name = "cancel vs death of what nobody remembers",
        .prepare = prepare_forgotten,
        .sides = {release, cancel_forgotten},
        .judge = judge_forgotten,
        .outcomes = {"death first", "cancel first", "destroyed meanwhile"},
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

    good &= race_run(&(struct race){
        .name = "cancel vs a hand-over in progress",
        .prepare = prepare_many,
        .sides = {release, cancel_many},
        .judge = judge_many,
        .outcomes = {"cancelled in progress", "cancelled"},
        .ctx = &round_,
        .rounds = RACE_SIZE(2000, 300),
        .least = RACE_SIZE(5, 20),
    });
    good &= race_run(&(struct race){
        .name = "cancel vs a hand-over in progress vs delivery",
        .prepare = prepare_many,
        .sides = {release, cancel_many, drain},
        .judge = judge_many,
        .outcomes = {"cancelled in progress", "cancelled"},
        .ctx = &round_,
        .rounds = RACE_SIZE(2000, 300),
        .least = RACE_SIZE(5, 20),
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
