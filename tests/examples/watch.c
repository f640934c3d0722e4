/* watch.h: a callback at an object's death, and how to be sure that it does not run any more. */
#include "check.h"

#include <weakref/object.h>
#include <weakref/queue.h>
#include <weakref/watch.h>
#include <weakref/weak.h>

static const wr_type conn_type = {.name = "conn", .size = 8};

struct room {
    wr_weak *member;
    int n_left;
};

static void left(wr_weak *dead, void *ctx)
{
    struct room *room = ctx;
    CHECK(dead == room->member); /* to compare with; it cannot be upgraded */
    room->n_left++;
}

int main(void)
{
    wr_queue *queue = wr_queue_new("rooms");
    void *conn = wr_new(&conn_type);
    CHECK(queue != NULL && conn != NULL);
    struct room *lobby = calloc(1, sizeof *lobby), *attic = calloc(1, sizeof *attic);
    CHECK(lobby != NULL && attic != NULL);
    lobby->member = attic->member = wr_downgrade(conn);

    wr_watch *in_lobby = wr_watch_new(conn, queue, left, lobby);
    wr_watch *in_attic = wr_watch_new(conn, queue, left, attic);
    CHECK(in_lobby != NULL && in_attic != NULL);

    /* After this the callback has run or never will: what it uses may go. */
    CHECK(wr_watch_cancel_sync(in_attic) == WR_CANCELLED);
    CHECK(attic->n_left == 0);
    wr_watch_release(in_attic);
    free(attic);

    wr_release(conn); /* dead; the callback waits on its queue */
    CHECK(lobby->n_left == 0 && wr_queue_drain(queue, SIZE_MAX) == 1 && lobby->n_left == 1);
    CHECK(wr_watch_cancel(in_lobby) == WR_DELIVERED); /* too late */
    wr_watch_release(in_lobby);                       /* dropping the handle never cancels */

    wr_weak_release(lobby->member);
    free(lobby);
    wr_queue_free(queue);
    return 0;
}
