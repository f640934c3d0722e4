#include "everything.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <weakref/weakref.h>

#define CHECK(condition)     \
    do {                     \
        if (!(condition))    \
            return __LINE__; \
    } while (0)

static atomic_ulong n_made, n_destroyed;
static atomic_ulong n_begun, n_delivered; /* on the default queue */

static void count_destroy(void *obj)
{
    (void)obj;
    atomic_fetch_add(&n_destroyed, 1);
}

static const wr_type plain_type = {.name = "plain", .size = sizeof(int), .destroy = count_destroy};
static const wr_type late_type = {
    .name = "late", .size = sizeof(int), .destroy = count_destroy, .flags = WR_TYPE_DEFERRED};

static void *make(const wr_type *type)
{
    void *obj = wr_new(type);
    if (obj != NULL)
        atomic_fetch_add(&n_made, 1);
    return obj;
}

static void on_delivery(wr_weak *dead, void *ctx)
{
    (void)dead, (void)ctx;
    atomic_fetch_add(&n_delivered, 1);
}

static void on_death(wr_weak *dead, void *ctx)
{
    *(int *)ctx += wr_weak_is_dead(dead) ? 1 : 1000;
}

static void on_final(void *ctx)
{
    *(int *)ctx += 1;
}

static int on_call(void *obj, void *arg)
{
    (void)obj;
    return *(int *)arg += 1;
}

static int create(const void *key, size_t size, void *ctx, void **obj)
{
    (void)key, (void)size, (void)ctx;
    return (*obj = make(&plain_type)) != NULL ? 0 : -ENOMEM;
}

static int use_objects(void)
{
    void *obj = make(&plain_type);
    CHECK(obj != NULL);
    wr_weak *weak = wr_downgrade(obj);
    wr_release(wr_upgrade(wr_weak_retain(weak)));
    wr_slot slot;
    wr_weak_slot weak_slot;
    wr_slot_init(&slot, obj);
    wr_weak_slot_init(&weak_slot, obj);
    void *seen = wr_weak_slot_get(&weak_slot);
    CHECK(seen == obj && wr_slot_load(&slot) == obj);
    wr_release(seen);
    wr_release(obj);
    wr_slot_store(&slot, NULL);
    wr_release_later(obj);
    CHECK(wr_synchronize() == 0);
    wr_weak_slot_fini(&weak_slot);
    wr_slot_fini(&slot);
    wr_weak_release(weak);
    wr_weak_release(weak);
    return 0;
}

static int use_guards(void)
{
    void *obj = make(&late_type);
    CHECK(obj != NULL);
    wr_weak *weak = wr_downgrade(obj);
    bool good = false;
    WR_GUARD {
        void *peeked = wr_peek(weak);
        void *kept = peeked != NULL ? wr_retain_live(peeked) : NULL;
        good = kept == obj && wr_synchronize() == -EDEADLK;
        wr_release(kept);
    }
    wr_release(obj);
    WR_GUARD {
        good = good && wr_peek(weak) == NULL;
    }
    wr_weak_release(weak);
    CHECK(good);
    return 0;
}

static int use_watches(void)
{
    int n = 0;
    void *obj = make(&plain_type);
    wr_queue *queue = wr_queue_new("everything");
    CHECK(obj != NULL && queue != NULL);
    wr_watch *delivered = wr_watch_new(obj, queue, on_death, &n);
    wr_watch *cancelled = wr_watch_new(obj, queue, on_death, &n);
    wr_finalizer *called = wr_finalize(obj, queue, on_final, &n, WR_FINALIZE_ATEXIT);
    wr_finalizer *detached = wr_finalize(obj, queue, on_final, &n, WR_FINALIZE_ATEXIT);
    wr_finalizer *final = wr_finalize(obj, queue, on_final, &n, 0);
    CHECK(delivered != NULL && cancelled != NULL && called != NULL && detached != NULL && final != NULL);
    CHECK(wr_on_death(obj, WR_QUEUE_INLINE, on_death, &n) == 0);
    CHECK(wr_on_death(obj, NULL, on_delivery, NULL) == 0);
    atomic_fetch_add(&n_begun, 1);
    CHECK(wr_finalizer_call(called) == 0 && n == 1);
    CHECK(wr_finalizer_detach_sync(detached) == 0);
    CHECK(wr_watch_cancel_sync(cancelled) == WR_CANCELLED);
    wr_release(obj);
    CHECK(n == 2 && wr_queue_drain(queue, SIZE_MAX) == 2 && n == 4);
    CHECK(wr_watch_cancel(delivered) == WR_DELIVERED && !wr_finalizer_alive(final));
    wr_watch_release(delivered);
    wr_watch_release(cancelled);
    wr_finalizer_release(called);
    wr_finalizer_release(detached);
    wr_finalizer_release(final);
    wr_queue_free(queue);
    return 0;
}

static int use_calls(void)
{
    int n = 0;
    void *obj = make(&plain_type);
    CHECK(obj != NULL);
    wr_signal *signal = wr_signal_new("everything");
    wr_method *method = wr_method_new(obj, on_call);
    wr_proxy *proxy = wr_proxy_new(obj);
    wr_connection *connection = NULL;
    CHECK(signal != NULL && method != NULL && proxy != NULL);
    CHECK(wr_signal_connect(signal, obj, on_call, NULL) == 0);
    CHECK(wr_signal_connect_method(signal, method, &connection) == 0);
    CHECK(wr_signal_emit(signal, &n) == 2 && n == 2);
    CHECK(wr_signal_disconnect_sync(connection) == 0);
    wr_connection_release(connection);
    CHECK(wr_signal_emit(signal, &n) == 1 && wr_method_call(method, &n) == 4 && wr_proxy_call(proxy, on_call, &n) == 5);
    wr_release(obj);
    CHECK(wr_signal_emit(signal, &n) == 0 && wr_method_call(method, &n) == -ESTALE);
    CHECK(wr_proxy_call(proxy, on_call, &n) == -ESTALE && n == 5);
    wr_proxy_release(proxy);
    wr_method_release(method);
    wr_signal_free(signal);
    return 0;
}

static int use_dict(void)
{
    wr_value_dict *dict = wr_value_dict_new(NULL);
    void *obj = make(&plain_type), *made = NULL;
    CHECK(dict != NULL && obj != NULL);
    CHECK(wr_value_dict_set_str(dict, "obj", obj) == 0);
    void *got = wr_value_dict_get_str(dict, "obj");
    CHECK(got == obj);
    wr_release(got);
    CHECK(wr_value_dict_get_or_create_str(dict, "made", create, NULL, &made) == 0);
    CHECK(wr_value_dict_len(dict) == 2 && wr_value_dict_remove_str(dict, "made") == 0);
    wr_release(made);
    wr_release(obj);
    CHECK(wr_value_dict_len(dict) == 0 && wr_value_dict_get_str(dict, "obj") == NULL);
    wr_value_dict_free(dict);
    return 0;
}

int use_everything(void)
{
    int (*const groups[])(void) = {use_objects, use_guards, use_watches, use_calls, use_dict};
    for (unsigned i = 0; i < sizeof groups / sizeof groups[0]; i++) {
        int line = groups[i]();
        if (line != 0)
            return line;
    }
    return 0;
}

bool everything_is_over(void)
{
    return wr_barrier() == 0 && wr_queue_barrier(wr_queue_default()) == 0 && wr_barrier() == 0 &&
           atomic_load(&n_made) > 0 && atomic_load(&n_made) == atomic_load(&n_destroyed) &&
           atomic_load(&n_begun) == atomic_load(&n_delivered);
}
