/* queue.h: who runs the callbacks, and when. */
#include "check.h"

#include <weakref/object.h>
#include <weakref/queue.h>
#include <weakref/watch.h>

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>

static const wr_type job_type = {.name = "job", .size = 8};

static void count(wr_weak *dead, void *ctx)
{
    (void)dead;
    *(int *)ctx += 1;
}

/* An object is born and dies, with a callback on @queue. */
static void one_death(wr_queue *queue, int *counter)
{
    void *job = wr_new(&job_type);
    CHECK(job != NULL && wr_on_death(job, queue, count, counter) == 0);
    wr_release(job);
}

static bool readable(int fd)
{
    struct pollfd want = {.fd = fd, .events = POLLIN};
    return poll(&want, 1, 0) == 1;
}

int main(void)
{
    int n = 0;
    wr_queue *queue = wr_queue_new("example");
    CHECK(queue != NULL && strcmp(wr_queue_name(queue), "example") == 0);

    /* By hand. */
    one_death(queue, &n);
    one_death(queue, &n);
    CHECK(n == 0); /* handed over, not run */
    CHECK(wr_queue_drain(queue, 1) == 1 && n == 1);
    CHECK(wr_queue_drain_for(queue, 1000000) == 1 && n == 2);

    /* In an event loop: the descriptor is readable while something is pending. */
    int fd = wr_queue_fd(queue);
    CHECK(fd >= 0 && !readable(fd));
    one_death(queue, &n);
    CHECK(readable(fd));
    CHECK(wr_queue_drain(queue, SIZE_MAX) == 1 && n == 3 && !readable(fd));

    /* What is pending can be given up. */
    one_death(queue, &n);
    CHECK(wr_queue_cancel_all(queue) == 0 && wr_queue_drain(queue, SIZE_MAX) == 0 && n == 3);

    /* On a thread of the queue's own. */
    CHECK(wr_queue_start(queue, 1) == 0 && wr_queue_start(queue, 1) == -EBUSY);
    one_death(queue, &n);
    CHECK(wr_queue_barrier(queue) == 0 && n == 4);
    CHECK(wr_queue_stop(queue) == 0);

    struct wr_queue_stats stats;
    wr_queue_stats(queue, &stats);
    CHECK(stats.watched == 5 && stats.delivered == 4 && stats.cancelled == 1);
    CHECK(stats.watched == stats.armed + stats.pending + stats.delivered + stats.cancelled);

    /* At once, on the releasing thread. */
    one_death(WR_QUEUE_INLINE, &n);
    CHECK(n == 5);

    /* On the default queue, whose thread starts with the first watch. */
    one_death(NULL, &n);
    CHECK(wr_queue_barrier(wr_queue_default()) == 0 && n == 6);

    one_death(queue, &n);
    wr_queue_free(queue); /* delivers the rest */
    CHECK(n == 7);
    return 0;
}
