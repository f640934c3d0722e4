/* Workers: one thread, one epoll set, one queue of callbacks, one letter box. */
#include "server.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

static _Thread_local unsigned self; /* the worker's number; 0 on the main thread */

/* A line on standard error, in one piece. */
void log_line(const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (self == 0)
        fprintf(stderr, "epoll_server: %s\n", text);
    else
        fprintf(stderr, "worker %u: %s\n", self, text);
}

uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void ring(struct worker *worker)
{
    /* It can only fail where the count is full, and then the worker is awake. */
    ssize_t written = write(worker->wake, &(uint64_t){1}, sizeof(uint64_t));
    (void)written;
}

/* From any thread. Takes over the caller's reference. One wake-up does for all that is posted until the worker looks. */
void worker_post(struct worker *worker, struct conn *conn)
{
    pthread_mutex_lock(&worker->lock);
    bool first = worker->posted == NULL;
    conn->next_posted = worker->posted;
    worker->posted = conn;
    pthread_mutex_unlock(&worker->lock);
    if (first)
        ring(worker);
}

static struct conn *take_posted(struct worker *worker, bool *stop)
{
    pthread_mutex_lock(&worker->lock);
    struct conn *conn = worker->posted;
    worker->posted = NULL;
    *stop = worker->stop;
    pthread_mutex_unlock(&worker->lock);
    return conn;
}

static void adopt(struct worker *worker, struct conn *conn)
{
    conn->next = worker->conns;
    if (conn->next != NULL)
        conn->next->prev = conn;
    worker->conns = wr_retain(conn);
    conn_greet(conn);
    conn_work(conn);
}

/* Returns false when it is time to stop. */
static bool open_letters(struct worker *worker)
{
    uint64_t count;
    ssize_t got = read(worker->wake, &count, sizeof count); /* before looking: what comes after rings again */
    (void)got;
    bool stop;
    struct conn *conn = take_posted(worker, &stop);
    while (conn != NULL) {
        struct conn *next = conn->next_posted;
        pthread_mutex_lock(&conn->lock);
        conn->posted = false; /* from here on it can be posted again */
        pthread_mutex_unlock(&conn->lock);
        if (!stop && conn->fd >= 0) {
            if (conn->attached)
                conn_work(conn);
            else
                adopt(worker, conn);
        }
        wr_release(conn); /* the reference that came with it */
        conn = next;
    }
    return !stop;
}

static void end_overdue(struct worker *worker)
{
    uint64_t now = now_ms();
    for (struct conn *conn = worker->conns, *next; conn != NULL; conn = next) {
        next = conn->next;
        if (conn->closing && conn->deadline_ms <= now)
            conn_end(conn);
    }
}

static void *work(void *ctx)
{
    enum { BATCH = 64, TICK_MS = 100 };
    const uint64_t budget_ns = 1000000; /* for callbacks, between two looks at the network */
    struct worker *worker = ctx;
    self = worker->number;
    uint64_t tick = 0;
    bool go_on = true;
    while (go_on) {
        struct epoll_event events[BATCH];
        int n = epoll_wait(worker->epoll, events, BATCH, worker->n_closing > 0 ? TICK_MS : -1);
        bool letters = false, callbacks = false;
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr == worker)
                letters = true;
            else if (events[i].data.ptr == worker->queue)
                callbacks = true;
            else
                conn_ready(events[i].data.ptr, events[i].events);
        }
        /* Only now may a connection go that is not the event's own: one later in the batch must not be gone before. */
        if (letters)
            go_on = open_letters(worker);
        if (callbacks)
            wr_queue_drain_for(worker->queue, budget_ns); /* with some left, the descriptor stays readable */
        if (worker->n_closing > 0 && now_ms() - tick >= TICK_MS) {
            tick = now_ms();
            end_overdue(worker);
        }
    }
    while (worker->conns != NULL)
        conn_end(worker->conns);
    return NULL;
}

static bool watch_for_input(int epoll, int fd, void *what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

/* Returns 0 or a negative errno. */
int worker_start(struct worker *worker, struct server *server, unsigned number)
{
    *worker = (struct worker){.server = server, .number = number, .lock = PTHREAD_MUTEX_INITIALIZER};
    char name[16];
    snprintf(name, sizeof name, "worker-%u", number);
    worker->epoll = epoll_create1(EPOLL_CLOEXEC);
    worker->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    worker->queue = wr_queue_new(name);
    if (worker->epoll < 0 || worker->wake < 0 || worker->queue == NULL)
        return -errno;
    int fd = wr_queue_fd(worker->queue);
    if (fd < 0)
        return fd;
    if (!watch_for_input(worker->epoll, worker->wake, worker) || !watch_for_input(worker->epoll, fd, worker->queue))
        return -errno;
    return -pthread_create(&worker->thread, NULL, work, worker);
}

void worker_stop(struct worker *worker)
{
    pthread_mutex_lock(&worker->lock);
    worker->stop = true;
    pthread_mutex_unlock(&worker->lock);
    ring(worker);
}

/* When no thread is left that could post: what came after the worker had gone home, and the last callbacks. */
void worker_finish(struct worker *worker)
{
    bool stop;
    for (struct conn *conn = take_posted(worker, &stop), *next; conn != NULL; conn = next) {
        next = conn->next_posted;
        wr_release(conn);
    }
    wr_queue_drain(worker->queue, SIZE_MAX);
    wr_queue_free(worker->queue); /* it would have run them, too */
    free(worker->audience);
    pthread_mutex_destroy(&worker->lock);
    close(worker->wake);
    close(worker->epoll);
}
