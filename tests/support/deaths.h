/* What tests of callbacks share: an object type that counts its deaths, and a log of callbacks in order. */
#ifndef TESTS_DEATHS_H
#define TESTS_DEATHS_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#include <weakref/object.h>
#include <weakref/queue.h>
#include <weakref/weak.h>

typedef struct thing {
    int number;
} thing;

static atomic_int things_destroyed;

static void thing_destroy(void *obj)
{
    (void)obj;
    atomic_fetch_add(&things_destroyed, 1);
}

static const wr_type thing_type = {.name = "thing", .size = sizeof(thing), .destroy = thing_destroy};

static inline thing *thing_new(int number)
{
    thing *t = wr_new(&thing_type);
    if (t != NULL)
        t->number = number;
    return t;
}

/* The contexts of the callbacks that ran, in order, as small integers. For one running thread at a time. */
enum { LOG_MAX = 256 };
static long callback_log[LOG_MAX];
static atomic_int n_logged;

static inline void log_callback(wr_weak *dead, void *ctx)
{
    (void)dead;
    int i = atomic_fetch_add(&n_logged, 1);
    if (i < LOG_MAX)
        callback_log[i] = (long)(intptr_t)ctx;
}

#define LOG(number) log_callback, (void *)(intptr_t)(number)

/* A gate that a callback waits at, so that a test can look at it while it runs. No sleeping. */
struct gate {
    atomic_bool reached, open;
};

static inline void gate_wait(atomic_bool *flag)
{
    while (!atomic_load(flag))
        sched_yield();
}

static inline void wait_at_gate(wr_weak *dead, void *ctx)
{
    struct gate *gate = ctx;
    (void)dead;
    atomic_store(&gate->reached, true);
    gate_wait(&gate->open);
}

static inline bool queue_is_balanced(wr_queue *queue)
{
    struct wr_queue_stats s;
    wr_queue_stats(queue, &s);
    return s.watched == s.armed + s.pending + s.delivered + s.cancelled;
}

#endif
