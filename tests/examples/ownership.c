/* The three rules of ownership, in a tree whose children know their parent. */
#include "check.h"

#include <weakref/weakref.h>

struct node {
    wr_weak *parent;    /* what points back is weak */
    struct node *child; /* owned */
};

static int n_alive;

static void node_destroy(void *obj)
{
    struct node *node = obj;
    wr_weak_release(node->parent);
    wr_release(node->child);
    n_alive--;
}

static const wr_type node_type = {.name = "node", .size = sizeof(struct node), .destroy = node_destroy};

static struct node *new_node(void)
{
    struct node *node = wr_new(&node_type);
    CHECK(node != NULL);
    n_alive++;
    return node;
}

static void adopt(struct node *parent, struct node *child)
{
    parent->child = wr_retain(child);     /* stored for longer than the call: retained */
    child->parent = wr_downgrade(parent); /* what points back is weak */
}

static bool has_parent(struct node *child)
{
    struct node *parent = child->parent == NULL ? NULL : wr_upgrade(child->parent);
    wr_release(parent); /* released once, and not used afterwards */
    return parent != NULL;
}

int main(void)
{
    struct node *parent = new_node(), *child = new_node();
    CHECK(!has_parent(child));
    adopt(parent, child);
    CHECK(has_parent(child));

    wr_release(parent); /* nobody else holds it: the circle does not keep it */
    CHECK(n_alive == 1 && !has_parent(child));
    wr_release(child);
    CHECK(n_alive == 0);
    return 0;
}
