/* method.h: a timer that calls objects without keeping them. */
#include "check.h"

#include <weakref/method.h>

#include <errno.h>

struct conn {
    int n_pings;
};

static const wr_type conn_type = {.name = "conn", .size = sizeof(struct conn)};

static int conn_ping(void *obj, void *arg)
{
    struct conn *conn = obj;
    conn->n_pings += *(int *)arg;
    return conn->n_pings;
}

int main(void)
{
    struct conn *conn = wr_new(&conn_type);
    CHECK(conn != NULL);
    wr_method *ping = wr_method_new(conn, conn_ping);
    CHECK(ping != NULL && wr_strong_count(conn) == 1); /* the method does not keep it */

    int once = 1;
    CHECK(wr_method_call(ping, &once) == 1);
    CHECK(wr_method_call(ping, &once) == 2);

    /* To take a method out of a list again one makes its equal. */
    wr_method *same = wr_method_new(conn, conn_ping);
    CHECK(same != NULL && wr_method_equal(ping, same) && wr_method_hash(ping) == wr_method_hash(same));
    wr_method_release(same);

    wr_release(conn);
    CHECK(wr_method_call(ping, &once) == -ESTALE);
    CHECK(wr_method_is_dead(ping));
    wr_method_release(ping);
    return 0;
}
