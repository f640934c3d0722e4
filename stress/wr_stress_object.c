/* wr-stress: the objects, and what their destroy does. */
#include "wr_stress.h"

#include <errno.h>
#include <stdlib.h>

#define MAGIC UINT64_C(0x6c69766520776561)
#define DEAD_MAGIC UINT64_C(0x6465616420776561)

/* What a destroy does beside letting go: bits of node->acts. */
enum {
    ACT_DOWNGRADE = 1, /* a handle of the dying: dead, and it lives on */
    ACT_LOOK_UP = 2,   /* a dictionary, for its own key and another */
    ACT_WATCH = 4,     /* the dying: refused */
    ACT_STORE = 8,     /* the dying in a dictionary: refused */
    ACT_RELEASE = 16,  /* what others have shared */
    ACT_GUARD = 32,    /* a read section inside */
    ACT_UPGRADE = 64   /* somebody else's handle */
};

/* By object number: what is known of it when it is gone. */
struct life {
    _Atomic unsigned destroyed, touched;
    _Atomic unsigned char kind;
};

static struct life *lives;
static unsigned capacity;
static _Atomic unsigned made;

static void node_destroy(void *obj);
static int node_describe(const void *obj, char *buf, size_t size)
{
    const struct node *node = obj;
    return snprintf(buf, size, "<node %u>", (unsigned)node->number);
}

static const wr_type types[N_KINDS] = {
    [PLAIN] = {.name = "plain", .size = sizeof(struct node), .destroy = node_destroy, .describe = node_describe},
    [DEFERRED] = {.name = "deferred", .size = sizeof(struct node), .destroy = node_destroy, .flags = WR_TYPE_DEFERRED},
    [SIZED] = {.name = "sized", .size = 1, .align = 64, .destroy = node_destroy},
    [PLAIN_BARE] = {.name = "plain bare", .size = sizeof(struct node)},
    [DEFERRED_BARE] = {.name = "deferred bare", .size = sizeof(struct node), .flags = WR_TYPE_DEFERRED},
};

void objects_start(void)
{
    capacity = options.n_threads * options.n_ops * 2 + 4096;
    lives = calloc(capacity, sizeof *lives);
    if (lives == NULL) {
        perror("wr-stress");
        exit(2);
    }
}

void objects_stop(void)
{
    free(lives);
}

void objects_reset(void)
{
    unsigned n = objects_made();
    for (unsigned i = 0; i < n; i++) {
        atomic_store_explicit(&lives[i].destroyed, 0, memory_order_relaxed);
        atomic_store_explicit(&lives[i].touched, 0, memory_order_relaxed);
    }
    atomic_store_explicit(&made, 0, memory_order_relaxed);
}

unsigned objects_made(void)
{
    unsigned n = atomic_load_explicit(&made, memory_order_relaxed);
    return n < capacity ? n : capacity;
}

unsigned objects_left(void)
{
    return capacity - objects_made();
}

unsigned object_destroyed(uint32_t number)
{
    return atomic_load_explicit(&lives[number].destroyed, memory_order_relaxed);
}

enum kind object_kind(uint32_t number)
{
    return (enum kind)atomic_load_explicit(&lives[number].kind, memory_order_relaxed);
}

enum kind object_kind_random(struct random *r)
{
    static const enum kind often[] = {PLAIN, PLAIN, PLAIN, DEFERRED, DEFERRED, SIZED, PLAIN_BARE, DEFERRED_BARE, BOX};
    return often[random_below(r, sizeof often / sizeof *often)];
}

static uint64_t node_sum(const struct node *node)
{
    uint64_t round = atomic_load_explicit(&round_now, memory_order_relaxed);
    return mix(round << 40 ^ (uint64_t)node->number << 8 ^ node->kind) ^ (uint64_t)node->key << 32 ^ node->acts;
}

static void box_destroy(void *ptr)
{
    node_destroy(ptr);
    free(ptr);
}

void *object_new(enum kind kind, uint32_t key, void *child)
{
    unsigned number = atomic_load_explicit(&made, memory_order_relaxed);
    do {
        if (number >= capacity) {
            wr_release(child);
            return NULL;
        }
    } while (
        !atomic_compare_exchange_weak_explicit(&made, &number, number + 1, memory_order_relaxed, memory_order_relaxed));
    void *obj;
    struct node *node;
    if (kind == BOX) {
        node = calloc(1, sizeof *node);
        CHECK(node != NULL);
        obj = wr_box_new(node, box_destroy);
    } else {
        obj = node = kind == SIZED ? wr_new_sized(&types[kind], sizeof *node + number % 4096) : wr_new(&types[kind]);
    }
    CHECK(obj != NULL);
    CHECK(wr_strong_count(obj) == 1);
    CHECK(wr_weak_count(obj) == 0);
    node->number = number;
    node->kind = kind;
    node->key = key;
    node->acts = (uint32_t)mix(number ^ options.seed) & 127;
    node->magic = MAGIC;
    node->check = node_sum(node);
    if (kind_has_links(kind))
        node->child = child;
    else
        wr_release(child);
    atomic_store_explicit(&lives[number].kind, (unsigned char)kind, memory_order_relaxed);
    count(COUNT_objects);
    return obj;
}

struct node *object_check(void *obj)
{
    const wr_type *type = wr_type_of(obj);
    struct node *node = type >= types && type < types + N_KINDS ? obj : ((wr_box *)obj)->ptr;
    if (node->magic != MAGIC)
        violation("object %p (%s): its memory reads %llx: %s", obj, type->name, (unsigned long long)node->magic,
                  node->magic == DEAD_MAGIC ? "it has been destroyed" : "it is not an object's");
    if (node->check != node_sum(node) || node->number >= capacity)
        violation("object %p (%s, number %u): its checksum is wrong", obj, type->name, (unsigned)node->number);
    return node;
}

struct node *object_touch(void *obj)
{
    struct node *node = object_check(obj);
    unsigned index = worker_self()->index;
    if (index < TOUCHERS && kind_has_destroy((enum kind)node->kind)) {
        node->touched[index]++;
        atomic_fetch_add_explicit(&lives[node->number].touched, 1, memory_order_relaxed);
    }
    return node;
}

/* ---- destroy ------------------------------------------------------------------------------------------------- */

static void act_downgrade(void *obj, const struct node *node, struct random *r)
{
    wr_weak *dead = wr_downgrade(obj);
    CHECK(dead != NULL);
    CHECK(wr_weak_is_dead(dead));
    CHECK(wr_weak_is(dead, obj));
    CHECK(wr_upgrade(dead) == NULL);
    bool deferred = kind_is_deferred((enum kind)node->kind);
    wr_weak *old = atomic_exchange_explicit(&(deferred ? shared.weak_deferred : shared.weak)[random_below(r, N_CELLS)],
                                            dead, memory_order_acq_rel);
    wr_weak_release(old);
}

static void act_look_up(void *obj, const struct node *node, struct random *r)
{
    if (node->key != NO_KEY) {
        void *other = dict_look(shared.dict, node->key);
        CHECK(other != obj); /* it is not seen any more */
        wr_release(other);
    }
    wr_release(dict_look(shared.dict, random_below(r, N_KEYS)));
}

static void act_guard(struct random *r)
{
    WR_GUARD {
        void *obj = wr_slot_peek(&shared.slots[random_below(r, N_SLOTS)]);
        if (obj != NULL)
            object_check(obj);
    }
}

static void act_upgrade(struct random *r)
{
    void *obj = wr_weak_slot_get(&shared.weak_slots[random_below(r, N_SLOTS)]);
    if (obj != NULL)
        object_check(obj);
    wr_release(obj);
}

/* @dying: the object, or the box's memory. */
static void node_destroy(void *dying)
{
    struct node *node = dying;
    if (node->magic != MAGIC || node->check != node_sum(node))
        violation("destroy of %p: its memory reads %llx", dying, (unsigned long long)node->magic);
    struct life *life = &lives[node->number];
    if (atomic_fetch_add_explicit(&life->destroyed, 1, memory_order_relaxed) != 0)
        violation("object number %u is destroyed twice", (unsigned)node->number);
    count(COUNT_destroyed);

    uint64_t touched = 0;
    for (unsigned i = 0; i < TOUCHERS; i++)
        touched += node->touched[i];
    unsigned told = atomic_load_explicit(&life->touched, memory_order_relaxed);
    if (touched != told)
        violation("destroy of number %u does not see what its holders wrote: %llu of %u", (unsigned)node->number,
                  (unsigned long long)touched, told);

    struct random r;
    random_start(&r, options.seed, atomic_load_explicit(&round_now, memory_order_relaxed), ~(uint64_t)node->number);
    int saved = errno;
    if (node->kind != BOX) {
        void *obj = dying;
        CHECK(wr_strong_count(obj) == 0);
        if (node->acts & ACT_DOWNGRADE)
            act_downgrade(obj, node, &r);
        if ((node->acts & ACT_LOOK_UP) && (options.mode & MODE_DICT) && !(node->key != NO_KEY && node->key >= N_KEYS))
            act_look_up(obj, node, &r);
        if ((node->acts & ACT_WATCH) && (options.mode & MODE_WATCH))
            watch_refused(obj, &r);
        if ((node->acts & ACT_STORE) && (options.mode & MODE_DICT))
            dict_refuses(obj, node->key == NO_KEY ? 0 : node->key);
    }
    if (node->acts & ACT_GUARD)
        act_guard(&r);
    if (node->acts & ACT_UPGRADE)
        act_upgrade(&r);
    if ((node->acts & ACT_RELEASE) && random_one_in(&r, 4))
        wr_release(atomic_exchange_explicit(&shared.strong[random_below(&r, N_CELLS)], NULL, memory_order_acq_rel));
    errno = saved;

    node->magic = DEAD_MAGIC;
    void *child = node->child;
    node->child = NULL;
    if (kind_has_links((enum kind)node->kind))
        wr_slot_fini(&node->link);
    wr_release(child);
}

void objects_verify(const unsigned char *alive)
{
    unsigned n = objects_made();
    for (unsigned i = 0; i < n; i++) {
        unsigned due = kind_has_destroy(object_kind(i)) && !alive[i];
        if (object_destroyed(i) != due)
            violation("object number %u (%s) was destroyed %u times, not %u", i,
                      object_kind(i) == BOX ? "box" : types[object_kind(i)].name, object_destroyed(i), due);
    }
}
