/* Deep structures are released in constant stack: long lists, each node of which owns the next, under 256 KiB; and
 * two threads that both hold the head, one of which is the last. */
#include <stdlib.h>

#include <weakref/debug.h>
#include <weakref/guard.h>
#include <weakref/object.h>
#include <weakref/weak.h>

#include "race.h"

enum {
    STACK = 256 * 1024,
    PLAIN_NODES = RACE_SIZE(10000000, 200000),
    DEFERRED_NODES = RACE_SIZE(2000, 300), /* each link costs a grace period */
};

struct node {
    struct node *next;
};

static _Atomic unsigned long destroyed;

static void destroy(void *obj)
{
    struct node *node = obj;
    atomic_fetch_add_explicit(&destroyed, 1, memory_order_relaxed);
    wr_release(node->next);
}

static const wr_type plain = {.name = "plain node", .size = sizeof(struct node), .destroy = destroy};
static const wr_type deferred = {
    .name = "deferred node", .size = sizeof(struct node), .destroy = destroy, .flags = WR_TYPE_DEFERRED};

static struct node *list_new(const wr_type *type, unsigned long n)
{
    struct node *head = NULL;
    while (n-- > 0) {
        struct node *node = wr_new(type);
        RACE_CHECK(node != NULL);
        node->next = head;
        head = node;
    }
    return head;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void let_go(const wr_type *type, unsigned long n)
{
    atomic_store(&destroyed, 0);
    double begin = seconds();
    struct node *head = list_new(type, n);
    double made = seconds();
    wr_release(head);
    if (type == &deferred)
        RACE_CHECK(wr_barrier() == 0);
    double end = seconds();
    RACE_CHECK(atomic_load(&destroyed) == n);
    printf("%lu of type %s: made in %.2f s, released in %.2f s\n", n, type->name, made - begin, end - made);
    fflush(stdout);
}

static void *on_small_stack(void *unused)
{
    (void)unused;
    let_go(&plain, PLAIN_NODES);
    let_go(&deferred, DEFERRED_NODES);
    return NULL;
}

/* ---- who lets go last ---------------------------------------------------------------------------------------- */

enum { SHORT = 300 };

static struct node *head;
static pthread_t destroyer;
static _Atomic unsigned long left; /* nodes of the round */
static pthread_t sides[2];

static void short_destroy(void *obj)
{
    struct node *node = obj;
    destroyer = pthread_self();
    atomic_fetch_sub_explicit(&left, 1, memory_order_relaxed);
    wr_release(node->next);
}

static const wr_type short_type = {.name = "node", .size = sizeof(struct node), .destroy = short_destroy};

static void prepare(void *ctx)
{
    (void)ctx;
    atomic_store(&left, SHORT);
    head = list_new(&short_type, SHORT);
    wr_retain(head);
}

static void release_0(void *ctx)
{
    (void)ctx;
    sides[0] = pthread_self();
    wr_release(head);
}

static void release_1(void *ctx)
{
    (void)ctx;
    sides[1] = pthread_self();
    wr_release(head);
}

static unsigned judge(void *ctx)
{
    (void)ctx;
    RACE_CHECK(atomic_load(&left) == 0);
    return pthread_equal(destroyer, sides[0]) ? 0 : 1;
}

int main(void)
{
    const struct race race = {.name = "two holders of a list",
                              .prepare = prepare,
                              .sides = {release_0, release_1},
                              .judge = judge,
                              .outcomes = {"one was last", "the other"},
                              .rounds = RACE_SIZE(2000, 300)};
    bool good = race_run(&race);

    pthread_attr_t attr;
    pthread_t thread;
    pthread_attr_init(&attr);
    RACE_CHECK(pthread_attr_setstacksize(&attr, STACK) == 0);
    RACE_CHECK(pthread_create(&thread, &attr, on_small_stack, NULL) == 0);
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attr);
    return good ? 0 : 1;
}
