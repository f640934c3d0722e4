/* Races on large objects: their pages go at death, while the last handle may give the block back. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <weakref/alloc.h>
#include <weakref/object.h>
#include <weakref/queue.h>
#include <weakref/watch.h>
#include <weakref/weak.h>

#include "race.h"

#define SIZE ((size_t)20000)

struct table {
    void *obj;
    wr_weak *weak;
    wr_queue *queue;
    const wr_type *type;
    bool watched;
    unsigned char *block;       /* the object's */
    size_t size;                /* its bytes */
    _Atomic unsigned advices;   /* in this round */
    _Atomic unsigned freed_by;  /* the side that freed the block */
    _Atomic unsigned destroyed; /* in this round */
    _Atomic unsigned let_go;    /* the handle was released */
    uint64_t random;
};

static struct table table;
static _Thread_local unsigned side; /* whose call this is; 0: none of them */

/* ---- memory that tells ----------------------------------------------------------------------------------------- */

static void *told_alloc(size_t size, size_t align, void *ctx)
{
    (void)ctx;
    void *memory = NULL;
    if (posix_memalign(&memory, align < sizeof(void *) ? sizeof(void *) : align, size ? size : 1) != 0)
        return NULL;
    if (size >= SIZE) {
        table.block = memory;
        table.size = size;
    }
    return memory;
}

static void told_free(void *memory, void *ctx)
{
    (void)ctx;
    if (memory == table.block)
        atomic_store_explicit(&table.freed_by, side, memory_order_relaxed);
    free(memory);
}

/* In the place of the C library's. It writes over what the kernel may take, so that a sanitizer sees if it is somebody
 * else's, or has been freed; now and then once more when the handle has gone. */
int madvise(void *memory, size_t size, int advice)
{
    if (advice != MADV_FREE) { /* the sanitizers' own */
        errno = EINVAL;
        return -1;
    }
    unsigned char *begin = memory;
    RACE_CHECK(begin > table.block && begin + size <= table.block + table.size);
    memset(begin, 0xee, size);
    if (side == 1 && race_draw(&table.random) % 2 == 0)
        race_wait(&table.let_go, 1);
    memset(begin, 0xef, size);
    atomic_fetch_add_explicit(&table.advices, 1, memory_order_relaxed);
    return 0;
}

/* ---- the last reference, the last handle ------------------------------------------------------------------------ */

static void destroy(void *obj)
{
    const unsigned char *bytes = obj;
    RACE_CHECK(bytes[0] == 0x5a && bytes[SIZE / 2] == 0x5a && bytes[SIZE - 1] == 0x5a);
    atomic_fetch_add_explicit(&table.destroyed, 1, memory_order_relaxed);
}

static void called(wr_weak *dead, void *ctx)
{
    (void)ctx;
    RACE_CHECK(wr_weak_is_dead(dead));
}

static const wr_type plain = {.name = "plain", .size = SIZE};
static const wr_type destroyed = {.name = "destroyed", .size = SIZE, .destroy = destroy};

static void begin(const wr_type *type, bool sized, bool watched)
{
    table.obj = sized ? wr_new_sized(type, SIZE) : wr_new(type);
    RACE_CHECK(table.obj != NULL);
    memset(table.obj, 0x5a, SIZE);
    table.type = type;
    table.watched = watched;
    table.weak = wr_downgrade(table.obj);
    RACE_CHECK(!watched || wr_on_death(table.obj, table.queue, called, NULL) == 0);
    atomic_store(&table.advices, 0);
    atomic_store(&table.destroyed, 0);
    atomic_store(&table.freed_by, 0);
    atomic_store(&table.let_go, 0);
}

static void prepare_plain(void *ctx)
{
    (void)ctx;
    begin(&plain, false, false);
}

static void prepare_destroyed(void *ctx)
{
    (void)ctx;
    begin(&destroyed, true, false);
}

static void prepare_watched(void *ctx)
{
    (void)ctx;
    begin(&destroyed, false, true);
}

static void release(void *ctx)
{
    (void)ctx;
    side = 1;
    wr_release(table.obj);
    side = 0;
}

static void weak_release(void *ctx)
{
    (void)ctx;
    side = 2;
    wr_weak_release(table.weak);
    atomic_store_explicit(&table.let_go, 1, memory_order_relaxed);
    side = 0;
}

static void upgrade_and_release(void *ctx)
{
    (void)ctx;
    side = 2;
    unsigned char *obj = wr_upgrade(table.weak);
    if (obj != NULL) {
        RACE_CHECK(obj[0] == 0x5a && obj[SIZE / 2] == 0x5a && obj[SIZE - 1] == 0x5a);
        wr_release(obj);
    }
    wr_weak_release(table.weak);
    atomic_store_explicit(&table.let_go, 1, memory_order_relaxed);
    side = 0;
}

/* 0: there was no handle any more; 1: it went while the pages did; 2: it went later. */
static unsigned judge(void *ctx)
{
    (void)ctx;
    if (table.watched)
        RACE_CHECK(wr_queue_drain(table.queue, SIZE_MAX) == 1); /* and then the block goes, if it has not gone */
    unsigned advices = atomic_load(&table.advices), freed_by = atomic_load(&table.freed_by);
    RACE_CHECK(atomic_load(&table.destroyed) == (table.type->destroy != NULL));
    RACE_CHECK(advices <= 1);
    if (table.watched)
        return advices;
    RACE_CHECK(freed_by == 1 || freed_by == 2);
    return advices == 0 ? 0 : freed_by;
}

#define OUTCOMES                                                             \
    {                                                                        \
        "no handle was left", "it went with the pages", "it went after them" \
    }

static const struct race races[] = {
    {.name = "last release vs last weak release",
     .prepare = prepare_plain,
     .sides = {release, weak_release},
     .judge = judge,
     .outcomes = OUTCOMES},
    {.name = "last release vs last weak release, destroy",
     .prepare = prepare_destroyed,
     .sides = {release, weak_release},
     .judge = judge,
     .outcomes = OUTCOMES},
    {.name = "last release vs last weak release, watched",
     .prepare = prepare_watched,
     .sides = {release, weak_release},
     .judge = judge,
     .outcomes = {"no handle was left", "its pages went"}},
    {.name = "last release vs upgrade, weak release",
     .prepare = prepare_destroyed,
     .sides = {release, upgrade_and_release},
     .judge = judge,
     .outcomes = OUTCOMES},
};

int main(void)
{
    static const struct wr_allocator allocator = {told_alloc, told_free, NULL};
    bool good = wr_set_allocator(&allocator) == 0;
    table.queue = wr_queue_new("large");
    table.random = race_seed();
    for (size_t i = 0; i < sizeof races / sizeof races[0]; i++)
        good = race_run(&races[i]) && good;
    wr_queue_free(table.queue);
    return good ? 0 : 1;
}
