/* object.h, no_destroy.h: destroys off the hot thread, and a region that finds those which are not. */
#include "check.h"

#include <weakref/no_destroy.h>
#include <weakref/object.h>
#include <weakref/queue.h>
#include <weakref/weak.h>

#include <pthread.h>
#include <stdint.h>

/* A log file takes long to flush and close. The thread that happens to drop the last reference shall not wait for it. */
typedef struct logfile {
    int *closed;
} logfile;

static wr_queue *closing;

static wr_queue *where_to_close(void)
{
    return closing;
}

static void logfile_close(void *obj)
{
    *((logfile *)obj)->closed += 1;
}

static const wr_type logfile_type = {
    .name = "logfile", .size = sizeof(logfile), .destroy = logfile_close, .destroy_on = where_to_close};

static logfile *logfile_open(int *closed)
{
    logfile *file = wr_new(&logfile_type);
    CHECK(file != NULL);
    file->closed = closed;
    return file;
}

int main(void)
{
    int closed = 0;
    closing = wr_queue_new("closing");
    CHECK(closing != NULL);

    /* Dead at once, closed by whoever drains the queue. */
    logfile *file = logfile_open(&closed);
    wr_weak *weak = wr_downgrade(file);
    wr_release(file);
    CHECK(wr_upgrade(weak) == NULL && closed == 0);
    CHECK(wr_queue_drain(closing, SIZE_MAX) == 1 && closed == 1);
    wr_weak_release(weak);

    /* In portions: a loop that has a tenth of a millisecond to spare. */
    for (int i = 0; i < 3; i++)
        wr_release(logfile_open(&closed));
    while (closed < 4)
        CHECK(wr_queue_drain_for(closing, 100000) >= 1);

    /* So the last reference may go while a mutex is held that the close would want. That nothing is destroyed here, a debug build
     * checks: without destroy_on this would panic and name the line. */
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    file = logfile_open(&closed);
    pthread_mutex_lock(&lock);
    WR_NO_DESTROY {
        wr_release(file);
    }
    pthread_mutex_unlock(&lock);
    CHECK(closed == 4);

    /* Or on a thread of its own. */
    CHECK(wr_queue_start(closing, 1) == 0);
    CHECK(wr_queue_barrier(closing) == 0 && closed == 5);
    wr_queue_free(closing);
    return 0;
}
