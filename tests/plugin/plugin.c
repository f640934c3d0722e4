/* A plugin that owns one of everything, and takes leave of it in the order that README.md gives. */
#include "plugin.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <weakref/weakref.h>

#define CHECK(condition)     \
    do {                     \
        if (!(condition))    \
            return __LINE__; \
    } while (0)

/* Counted in the payload's constructors and in destroy: what the plugin can see for itself. */
static atomic_long n_alive;
static atomic_ulong n_called;

static void item_destroy(void *obj)
{
    void **other = obj;
    wr_release(*other);
    atomic_fetch_sub(&n_alive, 1);
}

static const wr_type plain_type = {.name = "plain", .size = sizeof(void *), .destroy = item_destroy};
static const wr_type late_type = {
    .name = "late", .size = sizeof(void *), .destroy = item_destroy, .flags = WR_TYPE_DEFERRED};
static const wr_type wide_type = {.name = "wide", .size = sizeof(void *), .align = 256, .destroy = item_destroy};

static wr_queue *away(void);
static const wr_type away_type = {.name = "away", .size = sizeof(void *), .destroy = item_destroy, .destroy_on = away};

/* @other: [consumed] released when the item is destroyed. */
static void *item_new(const wr_type *type, void *other)
{
    void **item = wr_new(type);
    if (item == NULL)
        abort();
    *item = other;
    atomic_fetch_add(&n_alive, 1);
    return item;
}

/* ---- what is called ----------------------------------------------------------------------------------------- */

static void on_death(wr_weak *dead, void *ctx)
{
    if (!wr_weak_is_dead(dead))
        abort();
    atomic_fetch_add((atomic_ulong *)ctx, 1);
}

static void on_final(void *ctx)
{
    atomic_fetch_add((atomic_ulong *)ctx, 1);
}

/* Brings about more of everything, on whatever thread. */
static void on_last_death(wr_weak *dead, void *ctx)
{
    void *item = item_new(&late_type, item_new(&plain_type, NULL));
    if (wr_on_death(item, NULL, on_death, ctx) != 0)
        abort();
    wr_release(item);
    on_death(dead, ctx);
}

static int on_signal(void *obj, void *arg)
{
    (void)obj;
    atomic_fetch_add((atomic_ulong *)arg, 1);
    return 0;
}

static int create(const void *key, size_t size, void *ctx, void **obj)
{
    (void)key, (void)size, (void)ctx;
    *obj = item_new(&late_type, NULL);
    return 0;
}

/* ---- what it owns ------------------------------------------------------------------------------------------- */

static struct {
    const struct plugin_host *host;
    void *anchor; /* lives as long as the plugin; watched, finalized, connected */
    wr_queue *crew, *loop;
    wr_value_dict *dict;
    wr_signal *signal;
    wr_connection *own_connection, *host_connection;
    wr_watch *watch, *host_watch;
    wr_finalizer *finalizer, *exit_finalizer, *host_finalizer;
    wr_method *method;
    wr_slot slot;
    wr_weak_slot weak_slot;
    pthread_t thread;
    atomic_bool leave;
} own;

static wr_queue *away(void)
{
    return own.crew;
}

static void *loop_main(void *unused)
{
    while (!atomic_load(&own.leave))
        if (wr_queue_drain(own.loop, SIZE_MAX) == 0)
            usleep(100);
    return unused;
}

static int plugin_start(const struct plugin_host *host)
{
    own.host = host;
    own.anchor = item_new(&plain_type, NULL);
    own.crew = wr_queue_new("plugin-crew");
    own.loop = wr_queue_new("plugin-loop");
    own.dict = wr_value_dict_new(NULL);
    own.signal = wr_signal_new("plugin");
    CHECK(own.crew != NULL && own.loop != NULL && own.dict != NULL && own.signal != NULL);
    CHECK(wr_queue_start(own.crew, 2) == 0);
    CHECK(wr_queue_fd(own.loop) >= 0);
    CHECK(wr_signal_connect(own.signal, own.anchor, on_signal, &own.own_connection) == 0);
    CHECK((own.watch = wr_watch_new(own.anchor, own.crew, on_death, &n_called)) != NULL);
    CHECK((own.finalizer = wr_finalize(own.anchor, NULL, on_final, &n_called, 0)) != NULL);
    CHECK((own.exit_finalizer = wr_finalize(own.anchor, NULL, on_final, &n_called, WR_FINALIZE_ATEXIT)) != NULL);
    CHECK((own.method = wr_method_new(own.anchor, on_signal)) != NULL);
    wr_slot_init(&own.slot, own.anchor);
    wr_weak_slot_init(&own.weak_slot, own.anchor);
    if (host != NULL) {
        CHECK(wr_signal_connect(host->signal, host->obj, on_signal, &own.host_connection) == 0);
        CHECK((own.host_watch = wr_watch_new(host->obj, host->queue, on_death, &n_called)) != NULL);
        CHECK((own.host_finalizer = wr_finalize(host->obj, NULL, on_final, &n_called, WR_FINALIZE_ATEXIT)) != NULL);
        /* Without a handle, and to its own queue, which it will find freed. Once: until then the memory of both stays. */
        CHECK(host->round > 1 || wr_on_death(host->obj, own.crew, on_death, &n_called) == 0);
        CHECK(wr_value_dict_set_str(host->dict, "anchor", own.anchor) == 0);
    }
    atomic_store(&own.leave, false);
    CHECK(pthread_create(&own.thread, NULL, loop_main, NULL) == 0);
    return 0;
}

static int plugin_use(unsigned seed)
{
    static const wr_type *const types[] = {&plain_type, &late_type, &wide_type, &away_type};
    wr_queue *queues[] = {own.crew, own.loop, NULL, WR_QUEUE_INLINE, own.host != NULL ? own.host->queue : NULL};
    for (unsigned i = 0; i < 15; i++) {
        void *inner = item_new(types[(i + seed) % 4], NULL);
        CHECK(wr_on_death(inner, queues[(i + 1) % 5], on_last_death, &n_called) == 0);
        void *item = item_new(types[i % 4], inner);
        wr_weak *weak = wr_downgrade(item);
        CHECK(wr_on_death(item, queues[i % 5], on_death, &n_called) == 0);
        wr_finalizer_release(wr_finalize(item, queues[(i + 2) % 5], on_final, &n_called, WR_FINALIZE_ATEXIT));
        CHECK(wr_value_dict_set_u64(own.dict, i, item) == 0);
        CHECK(wr_signal_connect(own.signal, item, on_signal, NULL) == 0);
        CHECK(wr_signal_emit(own.signal, &n_called) >= 1);
        CHECK(wr_method_call(own.method, &n_called) == 0);
        wr_slot_store(&own.slot, item);
        if (own.host != NULL) {
            CHECK(wr_signal_emit(own.host->signal, &n_called) >= 1);
            CHECK(wr_value_dict_set_u64(own.host->dict, i, item) == 0);
            CHECK(wr_signal_connect(own.host->signal, item, on_signal, NULL) == 0);
        }
        WR_GUARD {
            void *peeked = i % 4 == 1 ? wr_peek(weak) : NULL;
            CHECK((peeked != NULL) == (i % 4 == 1));
        }
        void *made = NULL;
        CHECK(wr_value_dict_get_or_create_u64(own.dict, 1000 + i, create, NULL, &made) == 0);
        wr_release_later(made);
        wr_release(wr_upgrade(weak));
        wr_release(item);
        wr_weak_release(weak);
    }
    return 0;
}

/* The numbers are those of the list in README.md. 1, that nobody calls any more, is the host's. */
static int plugin_stop(void)
{
    /* 2: own threads */
    atomic_store(&own.leave, true);
    CHECK(pthread_join(own.thread, NULL) == 0);

    /* 3: own functions, off what lives on */
    CHECK(wr_signal_disconnect_sync(own.own_connection) == 0);
    wr_connection_release(own.own_connection);
    CHECK(wr_watch_cancel_sync(own.watch) == WR_CANCELLED);
    wr_watch_release(own.watch);
    CHECK(wr_finalizer_detach_sync(own.finalizer) == 0);
    wr_finalizer_release(own.finalizer);
    CHECK(wr_finalizer_detach_sync(own.exit_finalizer) == 0);
    wr_finalizer_release(own.exit_finalizer);
    if (own.host != NULL) {
        CHECK(wr_signal_disconnect_sync(own.host_connection) == 0);
        wr_connection_release(own.host_connection);
        CHECK(wr_watch_cancel_sync(own.host_watch) == WR_CANCELLED);
        wr_watch_release(own.host_watch);
        CHECK(wr_finalizer_detach_sync(own.host_finalizer) == 0);
        wr_finalizer_release(own.host_finalizer);
    }
    wr_signal_free(own.signal);

    /* 4: own objects, and all that refers to them */
    wr_slot_fini(&own.slot);
    wr_method_release(own.method);
    wr_value_dict_free(own.dict);
    wr_release(own.anchor);

    /* 5: what was put off, until a round brings nothing about */
    unsigned long called;
    long alive;
    do {
        called = atomic_load(&n_called);
        alive = atomic_load(&n_alive);
        CHECK(wr_barrier() == 0);
        wr_queue_drain(own.loop, SIZE_MAX);
        CHECK(wr_queue_barrier(own.crew) == 0 && wr_queue_barrier(wr_queue_default()) == 0);
        CHECK(own.host == NULL || wr_queue_barrier(own.host->queue) == 0);
    } while (alive != 0 || called != atomic_load(&n_called));

    /* 6: own queues; the slot, which 4 could have seen to as well, leaves a handle for 7 */
    wr_queue_free(own.loop);
    wr_queue_free(own.crew);
    wr_weak_slot_fini(&own.weak_slot);

    /* 7: the memory of the objects */
    CHECK(wr_barrier() == 0);
    CHECK(atomic_load(&n_alive) == 0 && atomic_load(&n_called) > 0);
    return 0;
}

/* What a plugin should have: an unloading that comes too early is heard of. */
__attribute__((destructor)) static void plugin_unload(void)
{
    long n = atomic_load(&n_alive);
    if (n != 0) {
        fprintf(stderr, "plugin: unloaded with %ld objects alive\n", n);
        abort();
    }
}

/* A type for handles that may outlive the plugin: neither it nor its name is in the plugin's own memory. */
static void *plugin_weak_that_stays(void **type)
{
    struct {
        wr_type type;
        char name[8];
    } *kept = malloc(sizeof *kept);
    if (kept == NULL)
        abort();
    kept->type = wide_type;
    kept->type.name = strcpy(kept->name, "kept");
    void *item = item_new(&kept->type, NULL);
    wr_weak *weak = wr_downgrade(item);
    wr_release(item);
    *type = kept;
    return weak;
}

/* ---- wrong on purpose --------------------------------------------------------------------------------------- */

static void *plugin_weak(void)
{
    void *item = item_new(&plain_type, NULL);
    wr_weak *weak = wr_downgrade(item);
    wr_release(item);
    return weak;
}

static void plugin_watch(void *obj)
{
    if (wr_on_death(obj, NULL, on_death, &n_called) != 0)
        abort();
}

static void plugin_keep(void)
{
    (void)item_new(&plain_type, NULL);
}

extern const struct plugin_api plugin_api;
const struct plugin_api plugin_api = {
    .start = plugin_start,
    .use = plugin_use,
    .stop = plugin_stop,
    .weak_that_stays = plugin_weak_that_stays,
    .weak = plugin_weak,
    .watch = plugin_watch,
    .keep = plugin_keep,
};
