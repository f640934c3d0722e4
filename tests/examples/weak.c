/* weak.h: a handle that does not keep its object, and can be made strong while it lives. */
#include "check.h"

#include <weakref/object.h>
#include <weakref/weak.h>

#include <string.h>

static const wr_type node_type = {.name = "node", .size = 8};

int main(void)
{
    void *node = wr_new(&node_type);
    CHECK(node != NULL);
    wr_weak *weak = wr_downgrade(node);
    wr_weak *same = wr_downgrade(node);
    CHECK(weak == same); /* `==` is identity */
    CHECK(wr_weak_is(weak, node) && !wr_weak_is_dead(weak));
    CHECK(wr_strong_count(node) == 1 && wr_weak_count(node) == 2);

    void *strong = wr_upgrade(weak);
    CHECK(strong == node && wr_strong_count(node) == 2);
    wr_release(strong);

    char text[80];
    wr_weak_describe(weak, text, sizeof text);
    CHECK(strncmp(text, "<weakref at 0x", 14) == 0 && strstr(text, "to 'node' at") != NULL);

    wr_release(node); /* the last strong reference */
    CHECK(wr_weak_is_dead(weak) && wr_upgrade(weak) == NULL);
    wr_weak_describe(weak, text, sizeof text);
    CHECK(strstr(text, "; dead>") != NULL);
    CHECK(weak == same); /* still: the address is not used again while a handle is held */

    wr_weak *third = wr_weak_retain(weak);
    wr_weak_release(weak);
    wr_weak_release(same);
    CHECK(wr_weak_is_dead(third));
    wr_weak_release(third); /* now the memory goes */
    return 0;
}
