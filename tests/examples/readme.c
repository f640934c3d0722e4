#include <stdio.h>
#include <weakref/weakref.h>

static const wr_type room_type = {.name = "room", .size = 64};

static void closed(wr_weak *dead, void *ctx)
{
    printf("%s is closed: %d\n", (char *)ctx, wr_weak_is_dead(dead));
}

int main(void)
{
    void *room = wr_new(&room_type);          /* strong count 1 */
    wr_weak *weak = wr_downgrade(room);       /* does not keep the room */
    wr_on_death(room, NULL, closed, "lobby"); /* NULL: the default queue, with its own thread */
    void *again = wr_upgrade(weak);           /* alive, so this is the room: count 2 */
    wr_release(room);                         /* 1 */
    wr_release(again);                        /* 0: dead, from this instant on every thread */
    int revived = wr_upgrade(weak) != NULL;   /* never */
    wr_queue_barrier(wr_queue_default());     /* "lobby is closed: 1" has been printed */
    wr_weak_release(weak);
    return revived;
}
