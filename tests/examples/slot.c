/* slot.h: a configuration that is replaced while requests read it. */
#include "check.h"

#include <weakref/guard.h>
#include <weakref/object.h>
#include <weakref/slot.h>

#include <pthread.h>
#include <stdatomic.h>

struct config {
    int version, twice; /* twice == 2 * version, always */
};

static const wr_type config_type = {.name = "config", .size = sizeof(struct config)};

static wr_slot current; /* zeroed: empty */
static atomic_bool stop;

static struct config *new_config(int version)
{
    struct config *c = wr_new(&config_type);
    CHECK(c != NULL);
    c->version = version;
    c->twice = 2 * version;
    return c;
}

static void *read_config(void *ctx)
{
    int last = 0;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        WR_GUARD {
            const struct config *c = wr_slot_peek(&current); /* borrowed */
            CHECK(c->twice == 2 * c->version && c->version >= last);
            last = c->version;
        }
        struct config *c = wr_slot_load(&current); /* owned */
        CHECK(c->twice == 2 * c->version && c->version >= last);
        last = c->version;
        wr_release(c);
    }
    return ctx;
}

int main(void)
{
    struct config *c = new_config(1);
    wr_slot_init(&current, c); /* the slot has a reference of its own */
    wr_release(c);

    pthread_t reader;
    CHECK(pthread_create(&reader, NULL, read_config, NULL) == 0);
    for (int version = 2; version <= 1000; version++) {
        c = new_config(version);
        wr_slot_store(&current, c);
        wr_release(c);
    }
    atomic_store_explicit(&stop, true, memory_order_relaxed);
    CHECK(pthread_join(reader, NULL) == 0);

    struct config *old = wr_slot_load(&current), *next = new_config(1001);
    CHECK(old->version == 1000);
    CHECK(wr_slot_compare_exchange(&current, old, next));  /* it was still `old` */
    CHECK(!wr_slot_compare_exchange(&current, old, next)); /* and no more */
    wr_release(old);
    old = wr_slot_exchange(&current, NULL); /* [owned] what was in it; now it is empty */
    CHECK(old == next && wr_slot_load(&current) == NULL);
    wr_release(old);
    wr_release(next);
    wr_slot_fini(&current);
    CHECK(wr_barrier() == 0);
    return 0;
}
