/* Steps that no fork may cut in two: one thread takes the step, the other forks, and the child must find it not begun
 * or done. race_fork does everything at once; here each step has its own check, which tells a half from the whole. */
#include <errno.h>
#include <sys/wait.h>

#include <weakref/alloc.h>
#include <weakref/finalize.h>
#include <weakref/signal.h>
#include <weakref/value_dict.h>
#include <weakref/watch.h>

#include "deaths.h"
#include "fork_heap.h"
#include "race.h"

enum { BEFORE, AFTER, CHILD_SECONDS = 10, ROUNDS = RACE_SIZE(1500, 500), STEPS = 8 };

struct round {
    thing *object;
    wr_queue *queue;
    wr_signal *signal;
    wr_connection *connection;
    wr_value_dict *dict;
    wr_watch *watches[STEPS];
    wr_finalizer *finalizers[STEPS];
    int (*look)(struct round *); /* the child's: BEFORE or AFTER; checks the rest */
    int found;
};
static struct round round_;

static void fork_and_look(void *ctx)
{
    struct round *r = ctx;
    int status = -1;
    pid_t child = fork();
    RACE_CHECK(child >= 0);
    if (child == 0) {
        alarm(CHILD_SECONDS);
        _exit(10 + r->look(r));
    }
    RACE_CHECK(waitpid(child, &status, 0) == child);
    RACE_CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == 10 + BEFORE || WEXITSTATUS(status) == 10 + AFTER));
    r->found = WEXITSTATUS(status) - 10;
}

static void release(void *ctx)
{
    wr_release(((struct round *)ctx)->object);
}

static unsigned judge(struct round *r)
{
    for (int i = 0; i < STEPS; i++) {
        wr_watch_release(r->watches[i]);
        wr_finalizer_release(r->finalizers[i]);
    }
    wr_connection_release(r->connection);
    wr_signal_free(r->signal);
    wr_value_dict_free(r->dict);
    (void)wr_queue_drain(r->queue, SIZE_MAX);
    wr_queue_free(r->queue);
    return (unsigned)r->found;
}

static unsigned judge_dead(void *ctx)
{
    return judge(ctx);
}

static unsigned judge_living(void *ctx)
{
    wr_release(((struct round *)ctx)->object);
    return judge(ctx);
}

static void nothing(wr_weak *dead, void *ctx)
{
    (void)dead, (void)ctx;
}

static void nothing_once(void *ctx)
{
    (void)ctx;
}

static int handler(void *obj, void *arg)
{
    (void)obj, (void)arg;
    return 0;
}

/* ---- a connection is in the object's list and the signal's, or in neither -------------------------------- */

static int look_at_signal(struct round *r)
{
    size_t n = wr_signal_len(r->signal);
    RACE_CHECK(n <= 1 && wr_signal_emit(r->signal, NULL) == n);
    wr_release(r->object);
    RACE_CHECK(wr_signal_len(r->signal) == 0 && wr_signal_emit(r->signal, NULL) == 0);
    return n == 1 ? AFTER : BEFORE;
}

static void prepare_connect(void *ctx)
{
    struct round *r = ctx;
    *r = (struct round){.look = look_at_signal, .object = thing_new(1), .signal = wr_signal_new("race")};
}

static void connect(void *ctx)
{
    struct round *r = ctx;
    RACE_CHECK(wr_signal_connect(r->signal, r->object, handler, &r->connection) == 0);
}

/* ---- what is disconnected is not counted ------------------------------------------------------------------ */

static int look_at_disconnected(struct round *r)
{
    size_t n = wr_signal_len(r->signal);
    RACE_CHECK(n <= 1 && wr_signal_emit(r->signal, NULL) == n);
    return n == 0 ? AFTER : BEFORE;
}

static void prepare_disconnect(void *ctx)
{
    struct round *r = ctx;
    prepare_connect(ctx);
    connect(ctx);
    r->look = look_at_disconnected;
}

static void disconnect(void *ctx)
{
    RACE_CHECK(wr_signal_disconnect(((struct round *)ctx)->connection) == 1);
}

/* ---- the dead are in no dictionary ------------------------------------------------------------------------- */

static int look_at_dict(struct round *r)
{
    void *there = wr_value_dict_get_u64(r->dict, 1);
    RACE_CHECK(wr_value_dict_len(r->dict) == (there != NULL));
    return there != NULL ? BEFORE : AFTER;
}

static void prepare_entry(void *ctx)
{
    struct round *r = ctx;
    *r = (struct round){.look = look_at_dict, .object = thing_new(1), .dict = wr_value_dict_new(NULL)};
    RACE_CHECK(wr_value_dict_set_u64(r->dict, 1, r->object) == 0);
}

/* ---- what is handed over is no longer armed ----------------------------------------------------------------- */

static int look_at_queue(struct round *r)
{
    struct wr_queue_stats s;
    wr_queue_stats(r->queue, &s);
    RACE_CHECK(s.watched == 1 && s.armed + s.cancelled == 1 && s.pending == 0 && s.delivered == 0);
    return s.armed == 1 ? BEFORE : AFTER;
}

static void prepare_watched(void *ctx)
{
    struct round *r = ctx;
    *r = (struct round){.look = look_at_queue, .object = thing_new(1), .queue = wr_queue_new("race")};
    RACE_CHECK(wr_on_death(r->object, r->queue, nothing, NULL) == 0);
}

/* ---- what runs elsewhere is not waited for: several in a row, since each step is short ------------------------- */

static int look_at_watches(struct round *r)
{
    int n = 0;
    for (int i = 0; i < STEPS; i++) {
        int answer = wr_watch_cancel_sync(r->watches[i]);
        RACE_CHECK(answer == WR_CANCELLED || answer == WR_DELIVERED);
        n += answer == WR_DELIVERED;
    }
    return n == 0 ? BEFORE : AFTER;
}

static void prepare_inline(void *ctx)
{
    struct round *r = ctx;
    *r = (struct round){.look = look_at_watches, .object = thing_new(1)};
    for (int i = 0; i < STEPS; i++) {
        r->watches[i] = wr_watch_new(r->object, WR_QUEUE_INLINE, nothing, NULL);
        RACE_CHECK(r->watches[i] != NULL);
    }
}

static int look_at_finalizers(struct round *r)
{
    int n = 0;
    for (int i = 0; i < STEPS; i++) {
        int answer = wr_finalizer_detach_sync(r->finalizers[i]);
        RACE_CHECK(answer == 0 || answer == -ESTALE);
        n += answer == -ESTALE;
    }
    return n == 0 ? BEFORE : AFTER;
}

static void prepare_finalizers(void *ctx)
{
    struct round *r = ctx;
    *r = (struct round){.look = look_at_finalizers, .object = thing_new(1), .queue = wr_queue_new("race")};
    for (int i = 0; i < STEPS; i++) {
        r->finalizers[i] = wr_finalize(r->object, r->queue, nothing_once, NULL, 0);
        RACE_CHECK(r->finalizers[i] != NULL);
    }
}

static void call(void *ctx)
{
    for (int i = 0; i < STEPS; i++)
        RACE_CHECK(wr_finalizer_call(((struct round *)ctx)->finalizers[i]) == 0);
}

static bool run(const char *name, void (*prepare)(void *), void (*step)(void *), unsigned (*judge_of)(void *))
{
    return race_run(&(struct race){
        .name = name,
        .prepare = prepare,
        .sides = {step, fork_and_look},
        .judge = judge_of,
        .outcomes = {"before", "after"},
        .ctx = &round_,
        .rounds = ROUNDS,
    });
}

int main(void)
{
    bool good = true;
    if (FORK_HEAP_NEEDED) {
        static const struct wr_allocator allocator = {.alloc = fork_heap_alloc, .free = fork_heap_free};
        RACE_CHECK(wr_set_allocator(&allocator) == 0);
        fork_heap_start();
    }
    good &= run("fork vs connect", prepare_connect, connect, judge_living);
    good &= run("fork vs disconnect", prepare_disconnect, disconnect, judge_living);
    good &= run("fork vs death of what is in a dictionary", prepare_entry, release, judge_dead);
    good &= run("fork vs hand-over", prepare_watched, release, judge_dead);
    good &= run("fork vs inline callbacks", prepare_inline, release, judge_dead);
    good &= run("fork vs finalizers", prepare_finalizers, call, judge_living);
    return good ? 0 : 1;
}
