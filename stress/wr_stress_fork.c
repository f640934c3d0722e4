/* wr-stress: forks, beside threads that are in all the library's locks. Each child works with what it inherited, and must
 * exit with 0: it is killed by its alarm where it hangs. What it does it does to its own copy; the parent goes on.
 *
 * Children are made one by one by each worker; with other modes beside this one (--mode fork,watch,dict) they are cut from
 * those, too. Under sanitizers memory comes from fork_heap.h then.
 */
#include "wr_stress.h"

#include "../tests/support/begun.h"

#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_THREAD__)
#define CHILD_THREADS 0 /* ThreadSanitizer allows none */
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CHILD_THREADS 0
#endif
#endif
#ifndef CHILD_THREADS
#define CHILD_THREADS 1
#endif

enum { KEYS = 128, CHILD_SECONDS = 60, CHILD_OPS = 40 };

#define MAGIC UINT64_C(0x6368696c64)

struct thing {
    uint64_t magic;
};

static void destroy(void *obj)
{
    struct thing *t = obj;
    CHECK(t->magic == MAGIC);
    t->magic = 0;
}

static const wr_type type = {.name = "fork", .size = sizeof(struct thing), .destroy = destroy};
static const wr_type later_type = {
    .name = "fork later", .size = sizeof(struct thing), .destroy = destroy, .flags = WR_TYPE_DEFERRED};

static wr_value_dict *dict;
static wr_queue *by_hand, *manned;
static wr_signal *sig;
static wr_slot slot;
static _Atomic pid_t process; /* whose callbacks may run */

static struct thing *thing_new(const wr_type *of)
{
    struct thing *t = wr_new(of);
    CHECK(t != NULL);
    t->magic = MAGIC;
    return t;
}

static void callback(wr_weak *dead, void *ctx)
{
    (void)ctx;
    CHECK(wr_weak_is_dead(dead));
    CHECK(getpid() == atomic_load_explicit(&process, memory_order_relaxed));
}

static int handler(void *obj, void *arg)
{
    (void)arg;
    CHECK(((struct thing *)obj)->magic == MAGIC);
    return 0;
}

static int create(const void *key, size_t size, void *ctx, void **obj)
{
    (void)key, (void)size, (void)ctx;
    *obj = thing_new(&type);
    return 0;
}

static void finalizer(void *ctx)
{
    (void)ctx;
}

/* ---- what children are cut from ------------------------------------------------------------------------------- */

static void op_keys(struct worker *w)
{
    struct thing *t = thing_new(&type);
    uint64_t key = random_below(&w->random, KEYS);
    void *there;
    switch (random_below(&w->random, 5)) {
    case 0:
        wr_release(wr_value_dict_pop_u64(dict, key));
        break;
    case 1:
        CHECK(wr_value_dict_get_or_create_u64(dict, key, create, NULL, &there) == 0);
        wr_release(there);
        break;
    case 2: {
        wr_value_dict_iter it;
        struct wr_value_dict_item item;
        wr_value_dict_iter_begin(&it, dict);
        for (unsigned i = 0; i < 8 && wr_value_dict_iter_next(&it, &item); i++)
            wr_release(item.value);
        wr_value_dict_iter_end(&it);
        break;
    }
    default:
        CHECK(wr_value_dict_set_u64(dict, key, t) == 0);
    }
    wr_release(t);
}

static void op_deaths(struct worker *w)
{
    struct thing *t = thing_new(&type);
    unsigned n = 1 + random_below(&w->random, 3);
    for (unsigned i = 0; i < n; i++)
        CHECK(wr_on_death(t, random_one_in(&w->random, 2) ? manned : by_hand, callback, NULL) == 0);
    wr_watch *watch = wr_watch_new(t, by_hand, callback, NULL);
    CHECK(watch != NULL);
    bool early = random_one_in(&w->random, 2);
    if (early)
        wr_release(t);
    (void)wr_watch_cancel_sync(watch);
    wr_watch_release(watch);
    if (!early)
        wr_release(t);
    if (wr_queue_drain(by_hand, random_below(&w->random, 16)) == 0 && random_one_in(&w->random, 8))
        CHECK(wr_queue_cancel_all(by_hand) == 0);
}

static void op_connections(struct worker *w)
{
    struct thing *t = thing_new(&type);
    wr_connection *connection;
    CHECK(wr_signal_connect(sig, t, handler, &connection) == 0);
    if (random_one_in(&w->random, 2))
        (void)wr_signal_emit(sig, NULL);
    CHECK(wr_signal_disconnect_sync(connection) >= 0);
    wr_connection_release(connection);
    wr_release(t);
}

static void op_later(struct worker *w)
{
    struct thing *t = thing_new(&type);
    wr_release(thing_new(&later_type));
    wr_slot_store(&slot, t);
    wr_release_later(t);
    if (random_one_in(&w->random, 16))
        CHECK(wr_synchronize() == 0);
    WR_GUARD {
        const struct thing *seen = wr_slot_peek(&slot);
        CHECK(seen == NULL || seen->magic == MAGIC);
    }
}

static void op_finalizers(struct worker *w)
{
    struct thing *t = thing_new(&type);
    wr_finalizer *f = wr_finalize(t, by_hand, finalizer, NULL, WR_FINALIZE_ATEXIT);
    CHECK(f != NULL);
    if (random_one_in(&w->random, 2))
        CHECK(wr_finalizer_call(f) == 0);
    else
        CHECK(wr_finalizer_detach_sync(f) == 0);
    wr_finalizer_release(f);
    wr_release(t);
}

/* ---- the children ------------------------------------------------------------------------------------------------ */

static void check_law(wr_queue *queue)
{
    struct wr_queue_stats s;
    wr_queue_stats(queue, &s);
    CHECK(s.pending == 0 && s.running == 0);
    CHECK(s.watched == s.armed + s.delivered + s.cancelled);
}

static void child_work(struct worker *w)
{
    static void (*const ops[])(struct worker * w) = {op_keys, op_deaths, op_connections, op_later, op_finalizers};
    check_law(by_hand);
    check_law(manned);
    CHECK(wr_queue_drain(by_hand, SIZE_MAX) == 0);
    atomic_store_explicit(&process, getpid(), memory_order_relaxed);
    for (unsigned i = 0; i < CHILD_OPS; i++)
        ops[random_below(&w->random, sizeof ops / sizeof *ops)](w);
    if (CHILD_THREADS) {
        CHECK(wr_queue_barrier(manned) == 0);
        CHECK(wr_queue_stop(manned) == 0);
    }
    CHECK(wr_barrier() == 0);
    wr_value_dict_clear(dict);
    CHECK(wr_value_dict_len(dict) == 0);
    (void)wr_queue_drain(by_hand, SIZE_MAX);
    (void)wr_queue_drain(manned, SIZE_MAX);
    check_law(by_hand);
    check_law(manned);
    CHECK(wr_shutdown(1000 * CHILD_SECONDS) == 0);
}

static void op_fork(struct worker *w)
{
    bool guarded = random_one_in(&w->random, 4);
    if (guarded)
        wr_guard_enter();
    pid_t child = fork();
    if (guarded)
        wr_guard_exit();
    if (child < 0) {
        CHECK(errno == EAGAIN || errno == ENOMEM);
        return;
    }
    if (child == 0) {
        alarm(CHILD_SECONDS);
        child_work(w);
        _exit(0);
    }
    int status;
    while (waitpid(child, &status, 0) < 0)
        CHECK(errno == EINTR);
    if (status != 0)
        violation("a child ended with status %#x", (unsigned)status);
    count(COUNT_forks);
}

/* ---- the part ---------------------------------------------------------------------------------------------------- */

static void fork_start(void)
{
    atomic_store(&process, getpid());
    dict = wr_value_dict_new(NULL);
    by_hand = wr_queue_new("fork by hand");
    manned = wr_queue_new("fork manned");
    sig = wr_signal_new("fork");
    CHECK(dict != NULL && by_hand != NULL && manned != NULL && sig != NULL);
    CHECK(wr_queue_fd(by_hand) >= 0);
    begun_start(manned, 2);
    begun_reclaimer();
    /* The first of them registers with atexit(), whose own lock no fork waits for. */
    struct thing *first = thing_new(&type);
    wr_finalizer *f = wr_finalize(first, by_hand, finalizer, NULL, WR_FINALIZE_ATEXIT);
    CHECK(f != NULL && wr_finalizer_call(f) == 0);
    wr_finalizer_release(f);
    wr_release(first);
}

static void fork_nothing(struct worker *w)
{
    (void)w;
}

static void fork_quiet(void) {}

static bool fork_settle(void)
{
    wr_slot_store(&slot, NULL);
    CHECK(wr_queue_barrier(manned) == 0);
    return wr_queue_drain(by_hand, SIZE_MAX) > 0;
}

static void fork_verify(void)
{
    CHECK(wr_queue_barrier(manned) == 0);
    check_law(by_hand);
    check_law(manned);
    CHECK(wr_signal_len(sig) == 0);
}

static void fork_stop(void)
{
    wr_slot_fini(&slot);
    wr_value_dict_free(dict);
    wr_signal_free(sig);
    wr_queue_free(by_hand);
    wr_queue_free(manned);
}

static const struct op fork_ops[] = {
    {op_fork, "fork", 8, MODE_FORK},
    {op_keys, "dictionary beside forks", 300, MODE_FORK},
    {op_deaths, "deaths beside forks", 300, MODE_FORK},
    {op_connections, "signals beside forks", 200, MODE_FORK},
    {op_later, "deferred work beside forks", 100, MODE_FORK},
    {op_finalizers, "finalizers beside forks", 100, MODE_FORK},
};

const struct part fork_part = {
    .mode = MODE_FORK,
    .ops = fork_ops,
    .n_ops = sizeof fork_ops / sizeof *fork_ops,
    .start = fork_start,
    .enter = fork_nothing,
    .leave = fork_nothing,
    .quiet = fork_quiet,
    .settle = fork_settle,
    .verify = fork_verify,
    .stop = fork_stop,
};
