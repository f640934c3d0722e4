/* Races of signals: emission, connecting, disconnecting, death and free, each beside the others. */
#include <weakref/signal.h>

#include <weakref/guard.h>

#include "deaths.h"
#include "race.h"

struct round {
    wr_signal *signal;
    thing *object;
    wr_connection *connection;
    wr_weak *weak;
    int ran;     /* written by the handler of `object` without any order of its own */
    int seen;    /* what disconnect_sync's caller then found */
    int answer;  /* of the disconnect */
    int answer2; /* of another one */
    size_t emitted, emitted_later;
    _Atomic bool disconnected; /* relaxed: orders nothing */
};
static struct round round_;

static int handler(void *obj, void *arg)
{
    (void)arg;
    RACE_CHECK(wr_strong_count(obj) >= 1);
    round_.ran++;
    return 0;
}

static int nothing(void *obj, void *arg)
{
    (void)obj, (void)arg;
    return 0;
}

/* The receiver in question between two others, which are always called. */
static thing *before, *after;

static void prepare_unconnected(void *ctx)
{
    struct round *r = ctx;
    *r = (struct round){.seen = -1, .answer = -1, .answer2 = -1};
    r->signal = wr_signal_new("race");
    r->object = thing_new(1);
    r->weak = wr_downgrade(r->object);
    RACE_CHECK(wr_signal_connect(r->signal, before, nothing, NULL) == 0);
}

static void prepare(void *ctx)
{
    struct round *r = ctx;
    prepare_unconnected(ctx);
    RACE_CHECK(wr_signal_connect(r->signal, r->object, handler, &r->connection) == 0);
    RACE_CHECK(wr_signal_connect(r->signal, after, nothing, NULL) == 0);
}

static void release(void *ctx)
{
    wr_release(((struct round *)ctx)->object);
}

static void emit(void *ctx)
{
    struct round *r = ctx;
    bool disconnected = atomic_load_explicit(&r->disconnected, memory_order_relaxed);
    int ran = r->ran;
    r->emitted = wr_signal_emit(r->signal, NULL);
    RACE_CHECK(r->emitted == 2u + (unsigned)(r->ran - ran));
    RACE_CHECK(!disconnected || r->ran == ran);
}

static void emit_twice(void *ctx)
{
    struct round *r = ctx;
    emit(ctx);
    size_t first = r->emitted;
    emit(ctx);
    r->emitted_later = r->emitted;
    r->emitted = first;
    RACE_CHECK(r->emitted_later <= r->emitted);
}

static void emit_plain(void *ctx)
{
    struct round *r = ctx;
    r->emitted = wr_signal_emit(r->signal, NULL);
}

static void connect(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(wr_signal_connect(r->signal, r->object, handler, &r->connection) == 0);
}

static void disconnect(void *ctx)
{
    struct round *r = ctx;
    r->answer = wr_signal_disconnect(r->connection);
    atomic_store_explicit(&r->disconnected, true, memory_order_relaxed);
}

static void disconnect_too(void *ctx)
{
    struct round *r = ctx;
    r->answer2 = wr_signal_disconnect(r->connection);
}

static void disconnect_sync(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(wr_signal_disconnect_sync(r->connection) == 0);
    r->seen = r->ran; /* no race: it is not running and will not */
}

static void release_handle(void *ctx)
{
    struct round *r = ctx;
    wr_connection_release(r->connection);
    r->connection = NULL;
}

static void free_signal(void *ctx)
{
    struct round *r = ctx;
    wr_signal_free(r->signal);
    r->signal = NULL;
}

/* What must hold after any round, and the round's things given back. @left: how many are connected. */
static void settle(struct round *r, size_t left)
{
    if (r->signal != NULL) {
        RACE_CHECK(wr_signal_len(r->signal) == left);
        size_t n = wr_signal_emit(r->signal, NULL);
        RACE_CHECK(n == left);
    }
    RACE_CHECK(!wr_connection_is_connected(r->connection));
    wr_signal_free(r->signal);
    wr_connection_release(r->connection);
    wr_weak_release(r->weak);
}

static unsigned judge_emit(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(r->answer == 1);
    settle(r, 2);
    wr_release(r->object);
    return r->emitted_later == 3 ? 0 : r->emitted == 3 ? 1 : 2;
}

static unsigned judge_sync(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(r->seen == r->ran);
    settle(r, 2);
    wr_release(r->object);
    return r->ran == 1 ? 0 : 1;
}

static unsigned judge_death(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(wr_weak_is_dead(r->weak));
    settle(r, 2);
    return r->ran == 1 ? 0 : 1;
}

static unsigned judge_connect(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(r->emitted == 1u + (unsigned)r->ran);
    unsigned outcome = r->ran == 1 ? 0 : 1;
    RACE_CHECK(wr_signal_len(r->signal) == 2);
    RACE_CHECK(wr_signal_disconnect(r->connection) == 1);
    settle(r, 1);
    wr_release(r->object);
    return outcome;
}

static unsigned judge_disconnect_death(void *ctx)
{
    struct round *r = ctx;
    settle(r, 2);
    return r->answer == 1 ? 0 : 1;
}

static unsigned judge_two(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(r->answer + r->answer2 == 1);
    unsigned outcome = r->answer == 1 ? 0 : 1;
    settle(r, 2);
    wr_release(r->object);
    return outcome;
}

static unsigned judge_handle(void *ctx)
{
    struct round *r = ctx;
    settle(r, 2);
    return RACE_NONE;
}

static unsigned judge_free(void *ctx)
{
    settle(ctx, 0);
    return RACE_NONE;
}

/* With more threads than processors: everything at once on one list that grows and shrinks. */

enum { CROWD = 12 };
static thing *crowd[CROWD];
static wr_connection *crowd_connections[CROWD];
static _Atomic unsigned crowd_turn;

static int check_order(void *obj, void *arg)
{
    int *last = arg;
    int number = ((thing *)obj)->number;
    RACE_CHECK(number > *last); /* one thread connects them, in order */
    *last = number;
    return 0;
}

static void prepare_crowd(void *ctx)
{
    struct round *r = ctx;
    prepare_unconnected(ctx);
    atomic_store(&crowd_turn, 0);
    for (int i = 0; i < CROWD; i++) {
        crowd[i] = thing_new(i);
        if (i < CROWD / 2)
            RACE_CHECK(wr_signal_connect(r->signal, crowd[i], check_order, &crowd_connections[i]) == 0);
    }
}

static void crowd_connect(void *ctx)
{
    struct round *r = ctx;
    for (int i = CROWD / 2; i < CROWD; i++)
        RACE_CHECK(wr_signal_connect(r->signal, crowd[i], check_order, &crowd_connections[i]) == 0);
}

static void crowd_emit(void *ctx)
{
    struct round *r = ctx;
    for (int i = 0; i < 3; i++) {
        int last = -1;
        (void)wr_signal_emit(r->signal, &last);
    }
}

static void crowd_disconnect(void *ctx)
{
    (void)ctx;
    unsigned me = atomic_fetch_add_explicit(&crowd_turn, 1, memory_order_relaxed);
    for (int i = 0; i < CROWD / 2; i++)
        (void)(me % 2 ? wr_signal_disconnect_sync(crowd_connections[i]) : wr_signal_disconnect(crowd_connections[i]));
}

static void crowd_die(void *ctx)
{
    (void)ctx;
    for (int i = CROWD / 2 - 1; i >= 0; i--)
        wr_release(crowd[i]);
}

static unsigned judge_crowd(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(wr_signal_len(r->signal) == 1 + CROWD / 2);
    int last = -1;
    RACE_CHECK(wr_signal_emit(r->signal, &last) == 1 + CROWD / 2);
    for (int i = 0; i < CROWD; i++)
        wr_connection_release(crowd_connections[i]);
    for (int i = CROWD / 2; i < CROWD; i++)
        wr_release(crowd[i]);
    RACE_CHECK(wr_signal_len(r->signal) == 1);
    wr_signal_free(r->signal);
    wr_weak_release(r->weak);
    wr_release(r->object);
    return RACE_NONE;
}

int main(void)
{
    bool good = true;
    before = thing_new(-1);
    after = thing_new(-1);

    good &= race_run(&(struct race){
        .name = "two emissions vs disconnect",
        .prepare = prepare,
        .sides = {emit_twice, disconnect},
        .judge = judge_emit,
        .outcomes = {"both called it", "the first called it", "none called it"},
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });
    good &= race_run(&(struct race){
        .name = "emission vs disconnect_sync",
        .prepare = prepare,
        .sides = {emit_plain, disconnect_sync},
        .judge = judge_sync,
        .outcomes = {"called", "not called"},
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });
    good &= race_run(&(struct race){
        .name = "emission vs death",
        .prepare = prepare,
        .sides = {emit, release},
        .judge = judge_death,
        .outcomes = {"called", "not called"},
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });
    good &= race_run(&(struct race){
        .name = "emission vs connect",
        .prepare = prepare_unconnected,
        .sides = {emit_plain, connect},
        .judge = judge_connect,
        .outcomes = {"called", "not called"},
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });
    good &= race_run(&(struct race){
        .name = "disconnect vs death",
        .prepare = prepare,
        .sides = {release, disconnect},
        .judge = judge_disconnect_death,
        .outcomes = {"disconnect", "death"},
        .ctx = &round_,
        .rounds = RACE_SIZE(8000, 2000),
    });
    good &= race_run(&(struct race){
        .name = "two disconnects vs emission",
        .prepare = prepare,
        .sides = {disconnect, disconnect_too, emit_plain},
        .judge = judge_two,
        .outcomes = {"first", "second"},
        .ctx = &round_,
        .rounds = RACE_SIZE(5000, 1000),
    });
    good &= race_run(&(struct race){
        .name = "release of the handle vs death and emission",
        .prepare = prepare,
        .sides = {release, release_handle, emit_plain},
        .judge = judge_handle,
        .ctx = &round_,
        .rounds = RACE_SIZE(5000, 1000),
    });
    good &= race_run(&(struct race){
        .name = "free vs death and disconnect",
        .prepare = prepare,
        .sides = {free_signal, release, disconnect},
        .judge = judge_free,
        .ctx = &round_,
        .rounds = RACE_SIZE(5000, 1000),
    });
    good &= race_run(&(struct race){
        .name = "eight threads",
        .prepare = prepare_crowd,
        .sides = {crowd_connect, crowd_emit, crowd_disconnect, crowd_emit, crowd_die, crowd_emit, crowd_disconnect,
                  crowd_emit},
        .judge = judge_crowd,
        .ctx = &round_,
        .rounds = RACE_SIZE(3000, 600),
    });
    wr_release(before);
    wr_release(after);
    RACE_CHECK(wr_barrier() == 0);
    return good ? 0 : 1;
}
