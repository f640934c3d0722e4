/* epoll_server: a chat server of several epoll loops, whose rooms live exactly as long as somebody is in them.
 *
 *     connection ==strong==> room          a room is held by its members, and by nobody else
 *     room       --weak----> connection    so that the two are no circle
 *     dictionary --weak----> room          name to room; the entry leaves with the room
 *
 * So there is no "delete the room if it is empty now": the last member lets go, and the room is gone. Its farewell is a
 * death callback on the queue of the worker that made it, which that worker's loop runs between two packets.
 *
 * Threads. The main thread accepts and hands each connection to a worker, in turn. From then on that worker alone reads,
 * writes, closes and polls it. What others have to say to it they append to its output buffer, and post the connection to
 * its worker, which an eventfd wakes. So nobody but its worker touches a connection's descriptor or its place in epoll.
 *
 * Locks. There are four kinds, each in the struct that it guards. Nobody takes one while holding another, and nothing is
 * released (wr_release) under one, since a release can end the object, and run its destroy.
 */
#ifndef EPOLL_SERVER_H
#define EPOLL_SERVER_H

#include <weakref/weakref.h>

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    LINE_LIMIT = 512,         /* bytes of a line, without the newline */
    NAME_LIMIT = 32,          /* of a room's name */
    IN_SIZE = 4096,           /* what is read at once; more than a line */
    OUT_SIZE = 64 << 10,      /* what may wait for a connection to be read by it ... */
    OUT_PAUSE = OUT_SIZE / 2, /* ... and from where on it gets no more of its own requests answered */
    LAST_WORDS = 64,          /* room kept free for the reason of a close */
    LINGER_MS = 2000,         /* how long a connection that is being closed has to take what is left */
};

struct server {
    wr_value_dict *rooms; /* name -> struct room */
    struct worker *workers;
    unsigned n_workers;

    pthread_mutex_t lock; /* guards the following */
    uint64_t n_created, n_gone, n_farewells;
};

struct worker {
    struct server *server;
    unsigned number; /* 1, 2, ... */
    pthread_t thread;
    int epoll;
    int wake;        /* an eventfd: `posted` or `stop` has news */
    wr_queue *queue; /* the farewells of the rooms that this worker made */

    /* Its own thread's alone. */
    struct conn *conns; /* each a strong reference */
    unsigned n_closing;
    struct conn **audience; /* room_say()'s, kept to be used again */
    size_t audience_size;

    pthread_mutex_t lock; /* guards the following */
    struct conn *posted;  /* each a strong reference */
    bool stop;
};

/* An object. All fields are its worker's alone, but for those under the lock. */
struct conn {
    struct worker *worker;
    uint64_t id;
    int fd;            /* -1: closed */
    uint32_t interest; /* what epoll watches it for */
    bool attached;     /* the worker has seen it, and has it among its conns */
    bool closing;      /* no request is answered any more; what is left goes out until the deadline */
    bool shut;         /* all is out, and the other side knows */
    bool eof;          /* the other side has no more to say */
    uint64_t deadline_ms;
    struct conn *next, *prev; /* in worker->conns */
    struct room *room;        /* strong; NULL: in none */
    size_t n_in;
    char in[IN_SIZE];

    struct conn *next_posted; /* guarded by worker->lock */

    pthread_mutex_t lock; /* guards the following */
    bool posted;          /* is on its way to the worker, or about to be */
    bool deaf;            /* takes no more output: closed, being closed, or too slow */
    bool too_slow;
    size_t out_begin, out_end;
    char out[OUT_SIZE + LAST_WORDS];
};

/* An object. */
struct room {
    struct notice *notice; /* the callback's; with the name */
    struct server *server;

    pthread_mutex_t lock; /* guards the following */
    wr_weak **members;
    size_t n_members, capacity;
};

/* room.c */
struct room *room_get(struct worker *worker, const char *name);
int room_enter(struct room *room, struct conn *conn);
void room_leave(struct room *room, struct conn *conn);
int room_say(struct room *room, struct worker *worker, const char *line, size_t size);
const char *room_name(const struct room *room);
size_t rooms_list(struct server *server, char *buf, size_t size);

/* conn.c */
struct conn *conn_new(int fd, uint64_t id);
void conn_greet(struct conn *conn);
void conn_ready(struct conn *conn, uint32_t events);
void conn_work(struct conn *conn);
bool conn_send(struct conn *conn, const char *data, size_t size);
void conn_end(struct conn *conn);

/* worker.c */
int worker_start(struct worker *worker, struct server *server, unsigned number);
void worker_post(struct worker *worker, struct conn *conn);
void worker_stop(struct worker *worker);
void worker_finish(struct worker *worker);
uint64_t now_ms(void);
void log_line(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
