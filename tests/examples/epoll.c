/* queue.h: callbacks on the thread of an event loop. */
#include "check.h"

#include <weakref/object.h>
#include <weakref/queue.h>
#include <weakref/watch.h>

#include <pthread.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <unistd.h>

static const wr_type conn_type = {.name = "conn", .size = 64};

static bool gone;

/* Runs on the loop's thread, so what else that thread alone uses needs no lock. */
static void forget(wr_weak *dead, void *ctx)
{
    (void)dead, (void)ctx;
    gone = true;
}

static void *let_go(void *conn)
{
    wr_release(conn);
    return NULL;
}

int main(void)
{
    wr_queue *queue = wr_queue_new("loop");
    void *conn = wr_new(&conn_type);
    CHECK(queue != NULL && conn != NULL && wr_on_death(conn, queue, forget, NULL) == 0);

    int loop = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = queue};
    CHECK(loop >= 0 && epoll_ctl(loop, EPOLL_CTL_ADD, wr_queue_fd(queue), &event) == 0);

    /* Some other thread drops the last reference, at any time. */
    pthread_t other;
    CHECK(pthread_create(&other, NULL, let_go, conn) == 0);

    while (!gone) {
        if (epoll_wait(loop, &event, 1, -1) != 1)
            continue; /* EINTR */
        if (event.data.ptr == queue)
            wr_queue_drain(queue, 64); /* at most 64 callbacks; readable again if there are more */
    }

    CHECK(pthread_join(other, NULL) == 0);
    close(loop); /* the queue closes its own descriptor */
    wr_queue_free(queue);
    return 0;
}
