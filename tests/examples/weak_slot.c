/* slot.h: a shared weak reference, "the current connection, if there still is one". */
#include "check.h"

#include <weakref/object.h>
#include <weakref/slot.h>

static const wr_type conn_type = {.name = "conn", .size = 8};

int main(void)
{
    void *first = wr_new(&conn_type), *second = wr_new(&conn_type);
    CHECK(first != NULL && second != NULL);

    wr_weak_slot current;
    wr_weak_slot_init(&current, first); /* keeps nothing alive */
    void *found = wr_weak_slot_get(&current);
    CHECK(found == first); /* [owned] */
    wr_release(found);

    wr_weak_slot_set(&current, second);
    found = wr_weak_slot_get(&current);
    CHECK(found == second);
    wr_release(found);

    wr_release(second); /* the last reference: the slot has nothing to give any more */
    CHECK(wr_weak_slot_get(&current) == NULL);

    wr_weak_slot_set(&current, NULL);
    wr_weak_slot_fini(&current);
    wr_release(first);
    return 0;
}
