/* A user's program, against the installed package; C11 and, through consumer.cc, C++17. Exits 0 if all went as it should. */
#include <weakref/weakref.h>

#include <stdio.h>
#include <string.h>

#define CHECK(condition)                                                    \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            return 1;                                                       \
        }                                                                   \
    } while (0)

typedef struct conn {
    int fd;
} conn;

static int destroyed;
static int told;

static void conn_destroy(void *obj)
{
    destroyed = ((conn *)obj)->fd;
}

static void on_death(wr_weak *dead, void *ctx)
{
    (void)dead;
    *(int *)ctx += 1;
}

static const wr_type conn_type = WR_TYPE_INIT(.name = "conn", .size = sizeof(conn), .destroy = conn_destroy);

int main(void)
{
    conn *c = (conn *)wr_new(&conn_type);
    CHECK(c != NULL);
    c->fd = 7;
    wr_weak *weak = wr_downgrade(c);
    wr_queue *queue = wr_queue_new("consumer");
    CHECK(queue != NULL && wr_on_death(c, queue, on_death, &told) == 0);
    wr_value_dict *dict = wr_value_dict_new(NULL);
    CHECK(dict != NULL && wr_value_dict_set_str(dict, "seven", c) == 0);

    conn *again = (conn *)wr_upgrade(weak);
    CHECK(again == c);
    wr_release(again);
    conn *found = (conn *)wr_value_dict_get_str(dict, "seven");
    CHECK(found == c);
    wr_release(found);
    WR_GUARD {
        CHECK(wr_weak_is(weak, c));
    }

    wr_release(c);
    CHECK(destroyed == 7 && wr_weak_is_dead(weak) && wr_upgrade(weak) == NULL);
    CHECK(wr_value_dict_get_str(dict, "seven") == NULL);
    CHECK(wr_queue_drain(queue, 10) == 1 && told == 1);

    wr_weak_release(weak);
    wr_value_dict_free(dict);
    wr_queue_free(queue);
    CHECK(wr_barrier() == 0);
    return 0;
}
