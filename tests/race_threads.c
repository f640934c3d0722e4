/* Short-lived threads, each of which upgrades, peeks, defers and ends, beside an object that dies and comes anew: thread
 * records are recycled, what a thread deferred is not lost, and memory stays where it was. */
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include <weakref/debug.h>
#include <weakref/guard.h>
#include <weakref/object.h>
#include <weakref/slot.h>
#include <weakref/weak.h>

#include "race.h"

#define MAGIC UINT64_C(0x616c697665)

enum { AT_ONCE = 8, BATCHES = RACE_SIZE(2500, 150) }; /* 20,000 threads */

static _Atomic unsigned long made, destroyed, upgraded, dead, peeked, peeked_dead;

struct thing {
    uint64_t magic;
};

static void destroy(void *obj)
{
    struct thing *thing = obj;
    RACE_CHECK(thing->magic == MAGIC);
    thing->magic = 0;
    atomic_fetch_add_explicit(&destroyed, 1, memory_order_relaxed);
}

static const wr_type type = {
    .name = "thing", .size = sizeof(struct thing), .destroy = destroy, .flags = WR_TYPE_DEFERRED};

static wr_slot slot;
static wr_weak *weak; /* of the batch's object */

static struct thing *thing_new(void)
{
    struct thing *thing = wr_new(&type);
    RACE_CHECK(thing != NULL);
    thing->magic = MAGIC;
    atomic_fetch_add_explicit(&made, 1, memory_order_relaxed);
    return thing;
}

static void *live_briefly(void *arg)
{
    const unsigned *number = arg;
    struct thing *obj = wr_upgrade(weak);
    atomic_fetch_add_explicit(obj != NULL ? &upgraded : &dead, 1, memory_order_relaxed);
    WR_GUARD {
        const struct thing *borrowed = wr_peek(weak);
        atomic_fetch_add_explicit(borrowed != NULL ? &peeked : &peeked_dead, 1, memory_order_relaxed);
        if (borrowed != NULL)
            RACE_CHECK(borrowed->magic == MAGIC);
    }
    /* All of this is still deferred when the thread ends. */
    if (*number % 4 == 0) {
        struct thing *mine = thing_new();
        wr_slot_store(&slot, mine);
        wr_release(mine);
    }
    if (*number % 4 == 1) {
        wr_release_later(obj);
        obj = NULL;
    }
    wr_release(obj);
    return NULL;
}

static long resident_kib(void)
{
    long pages = 0;
    FILE *in = fopen("/proc/self/statm", "r");
    RACE_CHECK(in != NULL && fscanf(in, "%*s %ld", &pages) == 1);
    fclose(in);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

struct memory {
    long resident_kib;
    size_t in_use; /* bytes that malloc has given out */
};

static struct memory memory_now(void)
{
    RACE_CHECK(wr_barrier() == 0);
    return (struct memory){.resident_kib = resident_kib(), .in_use = mallinfo2().uordblks};
}

int main(void)
{
    mallopt(M_ARENA_MAX, 1); /* another arena, made when threads first contend, would be 2 KiB more in use */
    struct memory half = {0};
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 128 * 1024 + RACE_SIZE(0, 1024 * 1024));
    uint64_t random = race_seed();
    for (unsigned batch = 0; batch < BATCHES; batch++) {
        if (batch == BATCHES / 2)
            half = memory_now();
        pthread_t threads[AT_ONCE];
        unsigned numbers[AT_ONCE];
        struct thing *obj = thing_new();
        weak = wr_downgrade(obj);
        unsigned last = (unsigned)race_draw(&random) % (AT_ONCE + 1);
        for (unsigned i = 0; i < AT_ONCE; i++) {
            if (i == last) {
                wr_release(obj);
                obj = NULL;
            }
            numbers[i] = i;
            RACE_CHECK(pthread_create(&threads[i], &attr, live_briefly, &numbers[i]) == 0);
        }
        wr_release(obj);
        for (unsigned i = 0; i < AT_ONCE; i++)
            pthread_join(threads[i], NULL);
        wr_weak_release(weak);
    }
    wr_slot_store(&slot, NULL);
    struct memory end = memory_now();
    struct wr_stats stats;
    wr_stats(&stats);
    printf("%d threads, upgrades %lu won, %lu lost, peeks %lu won, %lu lost\n", BATCHES * AT_ONCE,
           atomic_load(&upgraded), atomic_load(&dead), atomic_load(&peeked), atomic_load(&peeked_dead));
    printf("resident %ld KiB half way, %ld at the end; malloc %zu bytes, %zu\n", half.resident_kib, end.resident_kib,
           half.in_use, end.in_use);
    RACE_CHECK(stats.deferred == 0 && stats.leaked == 0);
    RACE_CHECK(atomic_load(&made) == atomic_load(&destroyed));
    RACE_CHECK(atomic_load(&upgraded) > 0 && atomic_load(&dead) > 0);
    RACE_CHECK(atomic_load(&peeked) > 0 && atomic_load(&peeked_dead) > 0);
    /* Sanitizers keep what was freed for a while, and shadows of threads. */
    if (!RACE_SANITIZED) {
        RACE_CHECK(end.resident_kib <= half.resident_kib + 1024);
        RACE_CHECK(end.in_use <= half.in_use + 4096);
    }
    pthread_attr_destroy(&attr);
    return 0;
}
