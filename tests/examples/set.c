/* set.h: going through objects that somebody else owns. */
#include "check.h"

#include <weakref/guard.h>
#include <weakref/object.h>
#include <weakref/set.h>

#include <errno.h>

struct conn {
    int fd;
};

static const wr_type conn_type = {.name = "conn", .size = sizeof(struct conn)};

int main(void)
{
    wr_set *open = wr_set_new(NULL), *busy = wr_set_new(NULL);
    struct conn *c = wr_new(&conn_type), *d = wr_new(&conn_type);
    CHECK(open != NULL && busy != NULL && c != NULL && d != NULL);
    c->fd = 3;
    d->fd = 4;
    CHECK(wr_set_add(open, c) == 0 && wr_set_add(open, d) == 0 && wr_set_add(open, d) == 0);
    CHECK(wr_set_add(busy, d) == 0);
    CHECK(wr_set_len(open) == 2 && wr_set_contains(open, c));
    CHECK(wr_set_issubset(busy, open) && !wr_set_equal(busy, open));

    int sum = 0;
    wr_set_iter it;
    void *obj;
    wr_set_iter_begin(&it, open);
    while (wr_set_iter_next(&it, &obj)) {
        sum += ((struct conn *)obj)->fd;
        wr_release(obj); /* [owned] */
    }
    wr_set_iter_end(&it);
    CHECK(sum == 7);

    wr_set *idle = wr_set_difference(open, busy);
    CHECK(idle != NULL && wr_set_len(idle) == 1 && wr_set_contains(idle, c));

    wr_release(c); /* dies, and is in no set any more */
    CHECK(wr_set_len(open) == 1 && wr_set_len(idle) == 0);
    CHECK(wr_set_remove(open, d) == 0 && wr_set_remove(open, d) == -ENOENT);
    obj = wr_set_pop(busy);
    CHECK(obj == d && wr_set_len(busy) == 0);
    wr_release(obj);
    wr_release(d);
    wr_set_free(open);
    wr_set_free(busy);
    wr_set_free(idle);
    CHECK(wr_barrier() == 0);
    return 0;
}
