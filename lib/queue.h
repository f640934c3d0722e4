/* F5 queue: hand-over of tasks from any thread, and the consumers that run them (public half: <weakref/queue.h>).
 *
 * A task is intrusive: whoever hands it over brings its memory, so that handing over cannot fail. What a task is, its class
 * says: the queue knows nothing of objects and watches. From hand-over to finish() or discard() its links are the queue's.
 */
#ifndef WR_LIB_QUEUE_H
#define WR_LIB_QUEUE_H

#include "lock.h"

#include <weakref/queue.h>

typedef struct wr_task wr_task;

/* The life of a task: admitted (counted as armed) -> pending -> running -> delivered, or cancelled before it runs. */
typedef struct wr_task_class {
    /* Pending -> running. False: it was cancelled. Called under the queue's lock: atomics only. */
    bool (*begin)(wr_task *task);
    /* Runs user code. Requires: no wr lock held. errno is the queue's business. The queue does not touch the task any more. */
    void (*run)(wr_task *task);
    /* Running -> delivered. No lock held. */
    void (*finish)(wr_task *task);
    /* Pending -> cancelled. False: it was cancelled before. No lock held. Frees nothing: also called in a forked child's handler.
     * NULL: tasks of this class cannot be cancelled; in a forked child they are leaked. */
    bool (*cancel)(wr_task *task);
    /* Cancelled and no longer linked: the task is the callee's again and may be freed. No lock held. */
    void (*discard)(wr_task *task);
} wr_task_class;

struct wr_task {
    wr_task *next;  /* on the stack: handed over before; when ready: after. Guarded by the queue's lock once pushed */
    wr_task *prev;  /* when ready: before. Guarded by the queue's lock */
    uint64_t seq;   /* 0 until it is pushed; order of hand-over; see queue.c. Guarded by the queue's lock */
    uint64_t stamp; /* ticks, at its hand-over; 0: its delay is not measured */
    const wr_task_class *klass;
    const void *ahead; /* what its thread handed over a few before: only to fetch it into the cache in time */
};

/* ---- before the death ------------------------------------------------------------------------------ */

/* From a user's pointer (NULL: the default queue, whose thread is started if it has to be) to the queue that takes part in
 * what follows. 0; -EAGAIN: that thread cannot be started; -ECANCELED: the queue is being freed. */
int wr_queue_resolve(wr_queue *queue, wr_queue **resolved);

/* Counts a task as watched and armed; @hold: and keeps the queue's memory until wr_queue_drop(). */
void wr_queue_admit(wr_queue *queue, bool hold);
void wr_queue_refuse(wr_queue *queue, bool hold); /* takes that back */
void wr_queue_drop(wr_queue *queue);

/* An armed task was cancelled. The queue may be gone afterwards, unless it is held. */
void wr_queue_count_cancelled(wr_queue *queue, uint64_t n);

/* ---- the death ------------------------------------------------------------------------------------- */

/* One hand-over of any number of armed tasks, in order:
 *     if (wr_handover_begin(&h, queue, at_most)) { // from here to the end behind the gate: see wr_gate_enter()
 *         ... wr_handover_add(&h, task) ...      // each: seq = 0, then armed -> pending, just before, by the caller
 *         wr_handover_end(&h);                   // one push; the queue may be gone afterwards, unless it is held
 *     } else {
 *         ... cancel them, wr_queue_count_cancelled() // the queue was freed
 *     }
 * Requires: the tasks are armed, which keeps the queue. Allocates nothing, runs no user code. */
typedef struct wr_handover {
    wr_queue *queue;
    wr_task *newest, *oldest;
    uint64_t expected, n;
    uint64_t handed; /* ever, with the expected ones */
    wr_task *sample; /* the one whose delay is measured, or NULL */
} wr_handover;

bool wr_handover_begin(wr_handover *h, wr_queue *queue, uint64_t at_most);
void wr_handover_add(wr_handover *h, wr_task *task);
void wr_handover_end(wr_handover *h);

/* The same for one task, which the caller has moved to pending before, and which nobody else can cancel. False: the queue was
 * freed; nothing was done. */
bool wr_handover_one(wr_queue *queue, wr_task *task);

/* For destroys: see object.h and queue_destroy.c. */
extern const struct wr_destroyer wr_queue_destroyer;

bool wr_queue_is_inline(const wr_queue *queue);

/* Runs an armed task that has just become running, on this thread, for an inline queue. Requires: no wr lock held. */
void wr_queue_run_inline(wr_queue *queue, wr_task *task);

/* ---- afterwards ------------------------------------------------------------------------------------ */

/* The caller has just cancelled @task, which was pending on this queue, and holds both. O(1). */
void wr_queue_task_cancelled(wr_queue *queue, wr_task *task);

/* Whether @task is running further down on the calling thread's own stack. */
bool wr_task_is_below(const wr_task *task);

/* Whether a callback of @queue is running further down on the calling thread's own stack. */
bool wr_queue_is_below(const wr_queue *queue);

/* Until nothing of @queue is pending or running, or until @until_ns (WR_EVENT_FOREVER: no limit): then false. Where it has
 * no threads, the caller runs what is pending. Requires: no callback of the queue below; no wr lock held (runs user code). */
bool wr_queue_flush(wr_queue *queue, uint64_t until_ns);

/* Panics if an invariant of the queue does not hold. Takes: the queue's lock. */
#if WR_DEBUG
void wr_queue_check(wr_queue *queue);
#else
static inline void wr_queue_check(wr_queue *queue)
{
    (void)queue;
}
#endif

#endif
