/* intern.h: the same bytes are the same object. */
#include "check.h"

#include <weakref/guard.h>
#include <weakref/intern.h>
#include <weakref/object.h>

int main(void)
{
    wr_intern_pool *pool = wr_intern_pool_new();
    CHECK(pool != NULL);
    wr_interned *a = wr_intern_str(pool, "example.org"), *b = wr_intern_str(pool, "example.org");
    wr_interned *c = wr_intern(pool, "\0\1", 2);
    CHECK(a != NULL && a == b && c != NULL && a != c);
    CHECK(strcmp(wr_interned_bytes(a), "example.org") == 0 && c->size == 2);
    wr_release(a);
    CHECK(wr_intern_pool_len(pool) == 2);
    wr_release(b); /* the last one: it is gone */
    CHECK(wr_intern_pool_len(pool) == 1);
    wr_release(c);
    wr_intern_pool_free(pool);
    CHECK(wr_barrier() == 0);
    return 0;
}
