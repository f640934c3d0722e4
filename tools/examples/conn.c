/* Connections: bytes to lines, lines to answers, and a bounded way out. */
#include "server.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* On whatever thread lets go last; usually its worker's. */
static void conn_destroy(void *obj)
{
    struct conn *conn = obj;
    if (conn->fd >= 0)
        close(conn->fd); /* handed over, but never taken: the server is being stopped */
    wr_release(conn->room);
    pthread_mutex_destroy(&conn->lock);
}

static const wr_type conn_type = {
    .name = "conn",
    .size = sizeof(struct conn),
    .destroy = conn_destroy,
};

/* Returns it for one wr_release(), with the descriptor its own; or NULL. */
struct conn *conn_new(int fd, uint64_t id)
{
    struct conn *conn = wr_new(&conn_type);
    if (conn == NULL)
        return NULL;
    conn->fd = fd;
    conn->id = id;
    conn->posted = true; /* it is about to be */
    pthread_mutex_init(&conn->lock, NULL);
    return conn;
}

/* ---- what goes out --------------------------------------------------------------------------------------- */

/* Requires: conn->lock held. */
static void append(struct conn *conn, const char *data, size_t size)
{
    if (sizeof conn->out - conn->out_end < size) {
        memmove(conn->out, conn->out + conn->out_begin, conn->out_end - conn->out_begin);
        conn->out_end -= conn->out_begin;
        conn->out_begin = 0;
    }
    memcpy(conn->out + conn->out_end, data, size);
    conn->out_end += size;
}

/* Requires: conn->lock held. Where it does not fit, the connection is given up whole: nobody ever sees a gap in what he is
 * told. */
static void append_or_give_up(struct conn *conn, const char *data, size_t size)
{
    if (conn->deaf)
        return;
    if (conn->out_end - conn->out_begin + size <= OUT_SIZE)
        append(conn, data, size);
    else
        conn->too_slow = conn->deaf = true;
}

/* From any thread that holds the connection strongly. Returns whether it is the caller who has to post it. */
bool conn_send(struct conn *conn, const char *data, size_t size)
{
    pthread_mutex_lock(&conn->lock);
    bool post = !conn->deaf && !conn->posted;
    append_or_give_up(conn, data, size);
    if (post)
        conn->posted = true;
    pthread_mutex_unlock(&conn->lock);
    return post;
}

/* From its own worker, in conn_work(), which sees to the rest. */
static void answer_all(struct conn *conn, const char *data, size_t size)
{
    pthread_mutex_lock(&conn->lock);
    append_or_give_up(conn, data, size);
    pthread_mutex_unlock(&conn->lock);
}

static void answer(struct conn *conn, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void answer(struct conn *conn, const char *format, ...)
{
    char line[LINE_LIMIT];
    va_list args;
    va_start(args, format);
    int size = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    answer_all(conn, line, (size_t)size);
}

/* Returns how much is left. */
static size_t unsent(struct conn *conn)
{
    pthread_mutex_lock(&conn->lock);
    size_t size = conn->out_end - conn->out_begin;
    pthread_mutex_unlock(&conn->lock);
    return size;
}

/* Returns false if the other side is gone. */
static bool flush(struct conn *conn)
{
    bool alive = true;
    pthread_mutex_lock(&conn->lock);
    while (conn->out_begin < conn->out_end) {
        ssize_t sent = send(conn->fd, conn->out + conn->out_begin, conn->out_end - conn->out_begin, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0) {
            alive = errno == EAGAIN || errno == EWOULDBLOCK;
            break;
        }
        conn->out_begin += (size_t)sent;
    }
    if (conn->out_begin == conn->out_end)
        conn->out_begin = conn->out_end = 0;
    pthread_mutex_unlock(&conn->lock);
    return alive;
}

/* ---- its end --------------------------------------------------------------------------------------------- */

/* Out of the room, and no more of anybody's words; what waits still goes out, and @reason last. Closing at once would
 * lose it: where input is left unread, close(2) resets the connection, and the other side may never see our last words.
 * The room's handle on us is left where it is: it dies with us, and is swept. */
static void begin_close(struct conn *conn, const char *reason)
{
    if (conn->closing)
        return;
    conn->closing = true;
    conn->deadline_ms = now_ms() + LINGER_MS;
    conn->worker->n_closing++;
    conn->n_in = 0;
    struct room *room = conn->room;
    conn->room = NULL;
    wr_release(room);
    pthread_mutex_lock(&conn->lock);
    conn->deaf = true;
    append(conn, reason, strlen(reason)); /* fits: LAST_WORDS */
    pthread_mutex_unlock(&conn->lock);
}

/* The worker lets go of it. Others may hold it a little longer: they find it deaf. */
void conn_end(struct conn *conn)
{
    struct worker *worker = conn->worker;
    begin_close(conn, "");
    worker->n_closing--;
    close(conn->fd); /* leaves the epoll set, too: nobody has a copy of the descriptor */
    conn->fd = -1;
    if (conn->prev != NULL)
        conn->prev->next = conn->next;
    else
        worker->conns = conn->next;
    if (conn->next != NULL)
        conn->next->prev = conn->prev;
    wr_release(conn);
}

/* ---- requests -------------------------------------------------------------------------------------------- */

static void do_join(struct conn *conn, const char *name)
{
    size_t size = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-");
    if (size == 0 || size > NAME_LIMIT || name[size] != '\0') {
        answer(conn, "ERR a room's name is 1 to %d letters, digits, - or _\n", NAME_LIMIT);
        return;
    }
    if (conn->room != NULL && strcmp(room_name(conn->room), name) == 0) {
        answer(conn, "JOINED %s\n", name);
        return;
    }
    struct room *room = room_get(conn->worker, name);
    if (room == NULL) {
        answer(conn, "ERR cannot join: %s\n", strerror(errno));
        return;
    }
    if (conn->room != NULL)
        room_leave(conn->room, conn);
    conn->room = room;
    /* First the answer, so that it stands before what is said there. It is not sent before we are done here, so that who
     * has read it is in the room. (Words from the room before may still be on their way, and come after it.) */
    answer(conn, "JOINED %s\n", name);
    if (room_enter(room, conn) != 0)
        begin_close(conn, "ERR out of memory\n");
}

static void do_say(struct conn *conn, const char *text)
{
    if (conn->room == NULL) {
        answer(conn, "ERR join a room first\n");
        return;
    }
    char line[LINE_LIMIT + NAME_LIMIT + 64];
    int size =
        snprintf(line, sizeof line, "SAID %s %llu %s\n", room_name(conn->room), (unsigned long long)conn->id, text);
    int status = room_say(conn->room, conn->worker, line, (size_t)size);
    if (status != 0)
        answer(conn, "ERR not said: %s\n", strerror(-status));
}

static void do_rooms(struct conn *conn)
{
    char text[OUT_SIZE / 4]; /* what is left after OUT_PAUSE takes this and more */
    answer_all(conn, text, rooms_list(conn->worker->server, text, sizeof text));
}

static bool is_text(const char *line, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)line[i];
        if ((c < ' ' && c != '\t') || c == 0x7f) /* what others' terminals might obey */
            return false;
    }
    return true;
}

/* The line ends with a NUL, in place of its newline. */
static void obey(struct conn *conn, const char *line, size_t size)
{
    if (!is_text(line, size))
        answer(conn, "ERR a line is plain text\n");
    else if (strncmp(line, "JOIN ", 5) == 0)
        do_join(conn, line + 5);
    else if (strncmp(line, "SAY ", 4) == 0)
        do_say(conn, line + 4);
    else if (strcmp(line, "ROOMS") == 0)
        do_rooms(conn);
    else if (strcmp(line, "QUIT") == 0)
        begin_close(conn, "BYE\n");
    else
        answer(conn, "ERR unknown command; there are: JOIN room, SAY text, ROOMS, QUIT\n");
}

/* Obeys the lines that have come, until there is no whole one, or too much waits to be sent. Returns whether it is the
 * latter that stopped it. */
static bool obey_lines(struct conn *conn)
{
    size_t at = 0;
    bool paused = false;
    while (!conn->closing) {
        char *line = conn->in + at;
        size_t left = conn->n_in - at;
        char *end = memchr(line, '\n', left);
        size_t size = end != NULL ? (size_t)(end - line) : left;
        if (size > LINE_LIMIT) {
            begin_close(conn, "ERR line too long\n");
            break;
        }
        if (end == NULL)
            break;
        if (unsent(conn) > OUT_PAUSE) {
            paused = true;
            break;
        }
        at += size + 1;
        *end = '\0';
        if (size > 0 && line[size - 1] == '\r')
            line[--size] = '\0';
        obey(conn, line, size);
    }
    if (conn->closing)
        return false;
    memmove(conn->in, conn->in + at, conn->n_in - at);
    conn->n_in -= at;
    if (conn->eof && !paused)
        begin_close(conn, "");
    return paused;
}

/* ---- its turn -------------------------------------------------------------------------------------------- */

/* Only what is of use is watched for: what is ready and not taken would wake the loop again and again. */
static bool watch_for(struct conn *conn, uint32_t interest)
{
    if (interest == conn->interest && conn->attached)
        return true;
    struct epoll_event event = {.events = interest, .data.ptr = conn};
    if (epoll_ctl(conn->worker->epoll, conn->attached ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, conn->fd, &event) != 0)
        return false;
    conn->interest = interest;
    conn->attached = true;
    return true;
}

/* Somebody had more to say to it than it reads. */
static void close_if_too_slow(struct conn *conn)
{
    pthread_mutex_lock(&conn->lock);
    bool too_slow = conn->too_slow;
    pthread_mutex_unlock(&conn->lock);
    if (too_slow && !conn->closing) {
        log_line("connection %llu reads too slowly: closed", (unsigned long long)conn->id);
        begin_close(conn, "ERR you read too slowly\n");
    }
}

/* Does what can be done now. The connection may be gone afterwards. */
void conn_work(struct conn *conn)
{
    bool paused;
    do {
        paused = obey_lines(conn);
        close_if_too_slow(conn);
        if (!flush(conn)) {
            conn_end(conn);
            return;
        }
    } while (paused && !conn->closing && unsent(conn) <= OUT_PAUSE);

    size_t left = unsent(conn);
    if (conn->closing && left == 0) {
        if (conn->eof) {
            conn_end(conn);
            return;
        }
        if (!conn->shut)
            shutdown(conn->fd, SHUT_WR);
        conn->shut = true;
    }
    uint32_t interest = 0;
    if (!conn->eof && (conn->closing || !paused))
        interest |= EPOLLIN | EPOLLRDHUP;
    if (left > 0)
        interest |= EPOLLOUT;
    if (!watch_for(conn, interest))
        conn_end(conn);
}

/* Once, when its worker has it. */
void conn_greet(struct conn *conn)
{
    answer(conn, "WELCOME %llu\n", (unsigned long long)conn->id);
}

/* One read each time, so that who sends without end does not keep the others waiting. */
static void take_input(struct conn *conn)
{
    char waste[IN_SIZE];
    char *to = conn->closing ? waste : conn->in + conn->n_in;
    size_t size = conn->closing ? sizeof waste : sizeof conn->in - conn->n_in;
    ssize_t got = recv(conn->fd, to, size, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
        conn->eof = true;
    else if (got > 0 && !conn->closing)
        conn->n_in += (size_t)got;
}

void conn_ready(struct conn *conn, uint32_t events)
{
    if ((events & (EPOLLERR | EPOLLHUP)) != 0) {
        conn_end(conn);
        return;
    }
    if ((events & (EPOLLIN | EPOLLRDHUP)) != 0)
        take_input(conn);
    conn_work(conn);
}
