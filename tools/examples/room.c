/* Rooms: made by the first who comes, gone with the last who goes. */
#include "server.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What outlives a room until its farewell: the callback's context. */
struct notice {
    struct worker *worker;
    char name[NAME_LIMIT + 1];
};

/* Runs where the last reference went: on a worker that closes a connection, or moves it elsewhere. */
static void room_destroy(void *obj)
{
    struct room *room = obj;
    for (size_t i = 0; i < room->n_members; i++)
        wr_weak_release(room->members[i]);
    free(room->members);
    pthread_mutex_destroy(&room->lock);
    if (room->server == NULL)
        return; /* it was never complete */
    pthread_mutex_lock(&room->server->lock);
    room->server->n_gone++;
    pthread_mutex_unlock(&room->server->lock);
}

static const wr_type room_type = {
    .name = "room",
    .size = sizeof(struct room),
    .destroy = room_destroy,
};

/* Runs in the loop of the worker that made the room. By now another room may have the name. */
static void farewell(wr_weak *dead, void *ctx)
{
    struct notice *notice = ctx;
    struct server *server = notice->worker->server;
    (void)dead;
    pthread_mutex_lock(&server->lock);
    server->n_farewells++;
    pthread_mutex_unlock(&server->lock);

    log_line("farewell: room %s is empty and gone", notice->name);
    free(notice);
}

/* For the dictionary, which calls it at most once at a time for a name. All or nothing: once the watch is made, the
 * notice is the callback's; before that it is ours. */
static int room_create(const void *key, size_t size, void *ctx, void **out)
{
    struct worker *worker = ctx;
    struct server *server = worker->server;
    struct room *room = wr_new(&room_type);
    if (room == NULL)
        return -errno;
    pthread_mutex_init(&room->lock, NULL);
    struct notice *notice = calloc(1, sizeof *notice);
    int status = notice == NULL ? -ENOMEM : wr_on_death(room, worker->queue, farewell, notice);
    if (status != 0) {
        free(notice);
        wr_release(room);
        return status;
    }
    notice->worker = worker;
    memcpy(notice->name, key, size);
    room->notice = notice;
    room->server = server;

    pthread_mutex_lock(&server->lock);
    server->n_created++;
    pthread_mutex_unlock(&server->lock);
    *out = room;
    return 0;
}

/* Returns the room, old or new, for one wr_release(); NULL with errno set. */
struct room *room_get(struct worker *worker, const char *name)
{
    void *room;
    int status = wr_value_dict_get_or_create_str(worker->server->rooms, name, room_create, worker, &room);
    if (status == 0)
        return room;
    errno = -status;
    return NULL;
}

/* Requires: room->lock held. Who is dead is no member any more. Releasing a weak handle never runs anybody's code, so
 * this may be done under a lock. */
static void sweep(struct room *room)
{
    size_t kept = 0;
    for (size_t i = 0; i < room->n_members; i++) {
        if (wr_weak_is_dead(room->members[i]))
            wr_weak_release(room->members[i]);
        else
            room->members[kept++] = room->members[i];
    }
    room->n_members = kept;
}

/* Sweeping only when the list is full keeps it within twice the living, at a constant cost for each who enters.
 * Returns 0 or a negative errno. */
int room_enter(struct room *room, struct conn *conn)
{
    int status = 0;
    pthread_mutex_lock(&room->lock);
    if (room->n_members == room->capacity) {
        sweep(room);
        if (room->n_members >= room->capacity / 2) {
            size_t capacity = room->capacity == 0 ? 8 : room->capacity * 2;
            wr_weak **members = realloc(room->members, capacity * sizeof *members);
            if (members == NULL) {
                status = -ENOMEM;
            } else {
                room->members = members;
                room->capacity = capacity;
            }
        }
    }
    if (status == 0)
        room->members[room->n_members++] = wr_downgrade(conn);
    pthread_mutex_unlock(&room->lock);
    return status;
}

/* For a connection that lives on elsewhere; one that ends is swept out. The caller's reference is given back. */
void room_leave(struct room *room, struct conn *conn)
{
    pthread_mutex_lock(&room->lock);
    for (size_t i = 0; i < room->n_members; i++) {
        if (wr_weak_is(room->members[i], conn)) {
            wr_weak_release(room->members[i]);
            room->members[i] = room->members[--room->n_members];
            break;
        }
    }
    pthread_mutex_unlock(&room->lock);
    wr_release(room);
}

/* Says it to all who are in the room now. In two steps: under the lock, who is there (as strong references, so that they
 * stay); after it, the sending, and letting go of them. One mutex does for both the members and their order; a list that
 * is replaced whole (wr_slot) would spare speakers the lock, and cost each who enters a copy of it. */
int room_say(struct room *room, struct worker *worker, const char *line, size_t size)
{
    size_t n = 0;
    pthread_mutex_lock(&room->lock);
    sweep(room);
    if (room->n_members > worker->audience_size) {
        struct conn **audience = realloc(worker->audience, room->capacity * sizeof(struct conn *));
        if (audience == NULL) {
            pthread_mutex_unlock(&room->lock);
            return -ENOMEM;
        }
        worker->audience = audience;
        worker->audience_size = room->capacity;
    }
    for (size_t i = 0; i < room->n_members; i++) {
        struct conn *member = wr_upgrade(room->members[i]);
        if (member != NULL) /* else it has died since the sweep: the next one finds it */
            worker->audience[n++] = member;
    }
    pthread_mutex_unlock(&room->lock);

    for (size_t i = 0; i < n; i++) {
        struct conn *member = worker->audience[i];
        if (conn_send(member, line, size))
            worker_post(member->worker, member); /* our reference travels with it */
        else
            wr_release(member);
    }
    return 0;
}

const char *room_name(const struct room *room)
{
    return room->notice->name;
}

/* Writes as many names as fit, one a line, and how many. The iterator is asked for weak handles, which keep no room alive: not
 * even for a moment does somebody's ROOMS stand between a room and its end. Returns the size of the text. */
size_t rooms_list(struct server *server, char *buf, size_t size)
{
    enum { END = 64 }; /* room for the last line */
    size_t used = 0, shown = 0, all = 0;
    wr_value_dict_iter it;
    struct wr_value_dict_ref room;
    wr_value_dict_iter_begin(&it, server->rooms);
    while (wr_value_dict_iter_next_ref(&it, &room)) {
        wr_weak_release(room.value);
        all++;
        if (used + sizeof "ROOM \n" + room.key_size + END <= size) {
            used +=
                (size_t)snprintf(buf + used, size - used, "ROOM %.*s\n", (int)room.key_size, (const char *)room.key);
            shown++;
        }
    }
    wr_value_dict_iter_end(&it);
    used += (size_t)snprintf(buf + used, size - used, "END %zu of %zu\n", shown, all);
    return used;
}
