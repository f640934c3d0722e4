/* guard.h: looking at an object without counting, and keeping it if it is worth it. */
#include "check.h"

#include <weakref/guard.h>
#include <weakref/object.h>
#include <weakref/weak.h>

#include <errno.h>

struct session {
    int id;
};

static int n_destroyed;

static void session_destroy(void *obj)
{
    (void)obj;
    n_destroyed++;
}

/* Deferred: destroy waits for the guards that run. */
static const wr_type session_type = {
    .name = "session",
    .size = sizeof(struct session),
    .destroy = session_destroy,
    .flags = WR_TYPE_DEFERRED,
};

static int id_of(wr_weak *weak)
{
    WR_GUARD {
        const struct session *s = wr_peek(weak); /* borrowed: no counting */
        if (s != NULL)
            return s->id; /* leaving the block ends the guard */
    }
    return -1;
}

int main(void)
{
    struct session *s = wr_new(&session_type);
    CHECK(s != NULL);
    s->id = 42;
    wr_weak *weak = wr_downgrade(s);
    CHECK(id_of(weak) == 42);

    struct session *kept = NULL;
    WR_GUARD {
        kept = wr_retain_live(wr_peek(weak)); /* owned now */
        CHECK(wr_synchronize() == -EDEADLK);  /* it would wait for ourselves */
    }
    CHECK(kept == s);
    wr_release(kept);

    WR_GUARD {
        struct session *peeked = wr_peek(weak);
        wr_release(s);                         /* the last reference: dead ... */
        CHECK(peeked->id == 42);               /* ... but whole, until the guard ends */
        CHECK(wr_retain_live(peeked) == NULL); /* too late to keep it */
        CHECK(wr_peek(weak) == NULL);
    }
    CHECK(wr_barrier() == 0); /* all that was deferred has run */
    CHECK(n_destroyed == 1 && id_of(weak) == -1);
    wr_weak_release(weak);

    s = wr_new(&session_type);
    CHECK(s != NULL);
    wr_release_later(s); /* not before the guards that run now have ended */
    CHECK(wr_barrier() == 0 && n_destroyed == 2);
    return 0;
}
