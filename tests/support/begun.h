/* The library's own threads, each of which has begun: the start of a thread takes locks of a sanitizer's own that no fork waits for,
 * so that a child which was forked meanwhile hangs at its first thread. */
#ifndef TESTS_BEGUN_H
#define TESTS_BEGUN_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include <weakref/object.h>
#include <weakref/queue.h>
#include <weakref/watch.h>

static pthread_barrier_t begun_barrier_;

static void begun_meet_(wr_weak *dead, void *ctx)
{
    (void)dead, (void)ctx;
    pthread_barrier_wait(&begun_barrier_);
}

/* Starts @n threads of @queue; 0: it is the default one, with its own. Returns when they have met. */
static inline void begun_start(wr_queue *queue, unsigned n)
{
    unsigned n_threads = n > 0 ? n : 1;
    if (pthread_barrier_init(&begun_barrier_, NULL, n_threads) != 0 || (n > 0 && wr_queue_start(queue, n) != 0))
        abort();
    for (unsigned i = 0; i < n_threads; i++) {
        wr_box *box = wr_box_new(NULL, NULL);
        if (box == NULL || wr_on_death(box, queue, begun_meet_, NULL) != 0)
            abort();
        wr_release(box);
    }
    if (wr_queue_barrier(queue) != 0 || pthread_barrier_destroy(&begun_barrier_) != 0)
        abort();
}

static void begun_note_(void *noted)
{
    atomic_store((atomic_bool *)noted, true);
}

/* The reclaimer, where a dictionary or the like has started it: returns when it has done something. */
static inline void begun_reclaimer(void)
{
    static atomic_bool noted;
    wr_box *box = wr_box_new(&noted, begun_note_);
    if (box == NULL)
        abort();
    wr_release_later(box);
    while (!atomic_load(&noted))
        sched_yield();
}

#endif
