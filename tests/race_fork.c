/* Forks beside everything else. Threads call all that takes locks; others fork as fast as they can, from wherever they
 * stand, and each child works with all that it inherited, then exits with 0. A child that hangs is killed by its alarm.
 * Runs twice: with membarrier(2), and with fences; then also (RACE_ALLOCATOR=1, and under sanitizers, whose own
 * allocators are not ready for forks) with an allocator of its own, which has fork handlers like the library. */
#include <errno.h>
#include <signal.h>
#include <sys/wait.h>

#include <weakref/alloc.h>
#include <weakref/debug.h>
#include <weakref/finalize.h>
#include <weakref/guard.h>
#include <weakref/object.h>
#include <weakref/queue.h>
#include <weakref/signal.h>
#include <weakref/slot.h>
#include <weakref/value_dict.h>
#include <weakref/watch.h>
#include <weakref/weak.h>

#include "begun.h"
#include "fork_heap.h"
#include "race.h"

#if defined(__SANITIZE_THREAD__)
#define THREADS_IN_CHILDREN 0 /* ThreadSanitizer does not allow them */
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define THREADS_IN_CHILDREN 0
#endif
#endif
#ifndef THREADS_IN_CHILDREN
#define THREADS_IN_CHILDREN 1
#endif

enum { HAMMERS = 4, FORKERS = 2, KEYS = 64, CHILD_SECONDS = 60 };

#define MAGIC UINT64_C(0x666f726b)

struct thing {
    uint64_t magic;
    atomic_int *destroyed; /* or NULL */
};

static void destroy(void *obj)
{
    struct thing *thing = obj;
    RACE_CHECK(thing->magic == MAGIC);
    thing->magic = 0;
    if (thing->destroyed != NULL)
        atomic_fetch_add(thing->destroyed, 1);
}

static const wr_type type = {.name = "thing", .size = sizeof(struct thing), .destroy = destroy};
static const wr_type deferred_type = {
    .name = "later", .size = sizeof(struct thing), .destroy = destroy, .flags = WR_TYPE_DEFERRED};

static wr_value_dict *dict;
static wr_queue *by_hand, *manned;
static wr_signal *sig;
static wr_slot slot;
static wr_weak_slot weak_slot;
static atomic_bool over;
static atomic_uint n_forks;
static pid_t parent;
static pthread_barrier_t all_started; /* see begun.h */

static struct thing *thing_new(const wr_type *of, atomic_int *destroyed)
{
    struct thing *thing = wr_new(of);
    RACE_CHECK(thing != NULL);
    thing->magic = MAGIC;
    thing->destroyed = destroyed;
    return thing;
}

/* ---- what the threads do beside the forks ------------------------------------------------------------ */

static void callback(wr_weak *dead, void *ctx)
{
    RACE_CHECK(wr_weak_is_dead(dead));
    RACE_CHECK(ctx == NULL || getpid() == parent); /* what the parent's threads handed over is run there alone */
}

static void finalizer(void *ctx)
{
    (void)ctx;
}

static int handler(void *obj, void *arg)
{
    (void)arg;
    RACE_CHECK(((struct thing *)obj)->magic == MAGIC);
    return 0;
}

static int create(const void *key, size_t size, void *ctx, void **obj)
{
    (void)key, (void)size, (void)ctx;
    *obj = thing_new(&type, NULL);
    return 0;
}

static void use_dict(uint64_t random, struct thing *thing)
{
    uint64_t key = random >> 8 & (KEYS - 1);
    void *there;
    switch (random % 6) {
    case 0:
        wr_release(wr_value_dict_get_u64(dict, key));
        break;
    case 1:
        (void)wr_value_dict_remove_u64(dict, key);
        break;
    case 2:
        RACE_CHECK(wr_value_dict_get_or_create_u64(dict, key, create, NULL, &there) == 0);
        wr_release(there);
        break;
    case 3:
        if (random >> 32 & 31)
            wr_release(wr_value_dict_pop_u64(dict, key));
        else
            wr_value_dict_clear(dict);
        break;
    default:
        RACE_CHECK(wr_value_dict_set_u64(dict, key, thing) == 0);
    }
}

static void use_queues(uint64_t random, struct thing *thing)
{
    wr_queue *queue = random & 1 ? by_hand : manned;
    wr_watch *watch;
    switch (random >> 1 & 7) {
    case 0:
        watch = wr_watch_new(thing, queue, callback, &over);
        RACE_CHECK(watch != NULL);
        wr_watch_cancel(watch);
        wr_watch_release(watch);
        break;
    case 1:
        wr_queue_drain(by_hand, 16);
        break;
    case 2:
        RACE_CHECK(wr_on_death(thing, WR_QUEUE_INLINE, callback, &over) == 0);
        break;
    case 3: {
        wr_finalizer *f = wr_finalize(thing, queue, finalizer, NULL, random & 64 ? WR_FINALIZE_ATEXIT : 0);
        RACE_CHECK(f != NULL);
        if (random & 128)
            (void)wr_finalizer_call(f);
        else
            (void)wr_finalizer_detach_sync(f);
        wr_finalizer_release(f);
        break;
    }
    default:
        RACE_CHECK(wr_on_death(thing, queue, callback, &over) == 0);
    }
}

static void use_signal(uint64_t random, struct thing *thing)
{
    wr_connection *connection;
    if (random & 3) {
        RACE_CHECK(wr_signal_connect(sig, thing, handler, random & 4 ? &connection : NULL) == 0);
        if (random & 4) {
            RACE_CHECK(wr_signal_disconnect_sync(connection) >= 0);
            wr_connection_release(connection);
        }
    } else {
        (void)wr_signal_emit(sig, NULL);
    }
}

static void use_guards(uint64_t random, struct thing *thing)
{
    switch (random & 7) {
    case 0:
        RACE_CHECK(wr_synchronize() == 0);
        break;
    case 1:
        if (!(random & 0x700))
            RACE_CHECK(wr_barrier() == 0);
        break;
    case 2:
        wr_release_later(wr_retain(thing));
        break;
    case 3:
        wr_release(thing_new(&deferred_type, NULL));
        break;
    case 4:
        wr_slot_store(&slot, thing);
        wr_weak_slot_set(&weak_slot, thing);
        break;
    default:
        WR_GUARD {
            const struct thing *seen = wr_slot_peek(&slot);
            RACE_CHECK(seen == NULL || seen->magic == MAGIC);
        }
        wr_release(wr_weak_slot_get(&weak_slot));
    }
}

static void use_all(uint64_t *state)
{
    uint64_t random = race_draw(state);
    struct thing *thing = thing_new(&type, NULL);
    for (unsigned i = 0; i < 4; i++) {
        uint64_t more = race_draw(state);
        switch (random >> (2 * i) & 3) {
        case 0:
            use_dict(more, thing);
            break;
        case 1:
            use_queues(more, thing);
            break;
        case 2:
            use_signal(more, thing);
            break;
        default:
            use_guards(more, thing);
        }
    }
    wr_release(thing);
}

static void *hammer(void *arg)
{
    uint64_t state = *(uint64_t *)arg;
    pthread_barrier_wait(&all_started);
    while (!atomic_load_explicit(&over, memory_order_relaxed))
        use_all(&state);
    return NULL;
}

/* Comes, works a little, and ends: so that forks fall into beginnings and ends of threads. */
static void *come_and_go(void *arg)
{
    uint64_t state = *(uint64_t *)arg;
    use_all(&state);
    return NULL;
}

static void *churn(void *arg)
{
    uint64_t state = *(uint64_t *)arg;
    pthread_barrier_wait(&all_started);
    while (!atomic_load_explicit(&over, memory_order_relaxed)) {
        pthread_t thread;
        uint64_t theirs = race_draw(&state);
        RACE_CHECK(pthread_create(&thread, NULL, come_and_go, &theirs) == 0);
        pthread_join(thread, NULL);
    }
    return NULL;
}

/* ---- what a child does ---------------------------------------------------------------------------------- */

/* A thread's own, made before its fork. */
struct own {
    wr_queue *queue;
    struct thing *watched;
    atomic_int destroyed;
    atomic_int called;
};

static void count_call(wr_weak *dead, void *ctx)
{
    (void)dead;
    atomic_fetch_add((atomic_int *)ctx, 1);
}

static bool is_balanced(wr_queue *queue, struct wr_queue_stats *s)
{
    wr_queue_stats(queue, s);
    return s->watched == s->armed + s->pending + s->delivered + s->cancelled;
}

static void child_work(struct own *own, uint64_t random)
{
    struct wr_queue_stats s;
    RACE_CHECK(is_balanced(by_hand, &s) && s.pending == 0 && s.running == 0);
    RACE_CHECK(wr_queue_drain(by_hand, SIZE_MAX) == 0);
    RACE_CHECK(is_balanced(manned, &s) && s.pending == 0 && s.running == 0);

    /* One was pending, one is armed. */
    RACE_CHECK(is_balanced(own->queue, &s) && s.pending == 0 && s.cancelled == 1 && s.armed == 1);
    wr_release(own->watched);
    RACE_CHECK(wr_queue_drain(own->queue, SIZE_MAX) == 1 && atomic_load(&own->called) == 1);
    RACE_CHECK(is_balanced(own->queue, &s) && s.delivered == 1);
    parent = getpid(); /* from here on it hands over itself */

    /* What the others were at. */
    for (uint64_t key = 0; key < KEYS; key++) {
        struct thing *mine = thing_new(&type, NULL), *there;
        RACE_CHECK(wr_value_dict_get_or_create_u64(dict, key, create, NULL, (void **)&there) == 0);
        RACE_CHECK(there->magic == MAGIC);
        RACE_CHECK(wr_value_dict_set_u64(dict, key, mine) == 0);
        wr_release(there);
        there = wr_value_dict_get_u64(dict, key);
        RACE_CHECK(there == mine);
        wr_release(there);
        RACE_CHECK(wr_value_dict_remove_u64(dict, key) == 0);
        wr_release(mine);
    }
    wr_value_dict_clear(dict);
    RACE_CHECK(wr_value_dict_len(dict) == 0);
    for (unsigned i = 0; i < 20; i++) {
        use_all(&random);
#if THREADS_IN_CHILDREN
        if (i % 8 == 0) {
            pthread_t thread;
            RACE_CHECK(pthread_create(&thread, NULL, come_and_go, &random) == 0);
            pthread_join(thread, NULL);
        }
#endif
    }
    struct thing *thing = thing_new(&type, NULL);
    RACE_CHECK(wr_on_death(thing, by_hand, count_call, &own->called) == 0);
    wr_release(thing);
    (void)wr_queue_drain(by_hand, SIZE_MAX);
    RACE_CHECK(atomic_load(&own->called) == 2);
#if THREADS_IN_CHILDREN
    thing = thing_new(&type, NULL);
    RACE_CHECK(wr_on_death(thing, manned, count_call, &own->called) == 0);
    wr_release(thing);
    RACE_CHECK(wr_queue_barrier(manned) == 0 && atomic_load(&own->called) == 3);
    RACE_CHECK(wr_queue_stop(manned) == 0);
#endif
    RACE_CHECK(wr_synchronize() == 0);
    RACE_CHECK(wr_barrier() == 0);
    (void)wr_queue_drain(by_hand, SIZE_MAX);
    (void)wr_queue_drain(manned, SIZE_MAX);
    RACE_CHECK(is_balanced(by_hand, &s) && is_balanced(manned, &s));
    RACE_CHECK(wr_shutdown(30000) == 0);
}

static void *forker(void *arg)
{
    uint64_t state = *(uint64_t *)arg;
    pthread_barrier_wait(&all_started);
    while (!atomic_load_explicit(&over, memory_order_relaxed)) {
        struct own own = {.queue = wr_queue_new("own")};
        uint64_t random = race_draw(&state);
        struct wr_queue_stats s;
        RACE_CHECK(own.queue != NULL);
        struct thing *dead = thing_new(&type, NULL);
        own.watched = thing_new(&type, &own.destroyed);
        RACE_CHECK(wr_on_death(dead, own.queue, count_call, &own.called) == 0);
        RACE_CHECK(wr_on_death(own.watched, own.queue, count_call, &own.called) == 0);
        wr_release(dead);
        pid_t child;
        bool guarded = random & 1;
        if (guarded)
            wr_guard_enter();
        child = fork();
        if (guarded)
            wr_guard_exit();
        RACE_CHECK(child >= 0);
        if (child == 0) {
            alarm(CHILD_SECONDS);
            child_work(&own, random);
            if ((random >> 8 & 7) == 0) {
                child = fork();
                RACE_CHECK(child >= 0);
                if (child == 0) {
                    parent = getpid();
                    alarm(CHILD_SECONDS);
                    use_all(&random);
                    RACE_CHECK(wr_barrier() == 0);
                    _exit(0);
                }
                int status;
                RACE_CHECK(waitpid(child, &status, 0) == child && status == 0);
            }
            _exit(0);
        }
        /* The parent saw nothing of it. */
        RACE_CHECK(is_balanced(own.queue, &s) && s.pending == 1 && s.armed == 1);
        wr_release(own.watched);
        RACE_CHECK(wr_queue_drain(own.queue, SIZE_MAX) == 2 && atomic_load(&own.called) == 2);
        wr_queue_free(own.queue);
        int status;
        RACE_CHECK(waitpid(child, &status, 0) == child);
        if (status != 0)
            fprintf(stderr, "a child ended with status %#x\n", (unsigned)status);
        RACE_CHECK(status == 0);
        atomic_fetch_add(&n_forks, 1);
    }
    return NULL;
}

int main(void)
{
    enum { THREADS = HAMMERS + FORKERS + 1 };
    pthread_t threads[THREADS];
    uint64_t seeds[THREADS], random = race_seed();
    const char *seconds = getenv("RACE_SECONDS");
    const unsigned n_threads = FORK_HEAP_NEEDED ? THREADS - 1 : THREADS; /* new threads allocate by themselves */
    parent = getpid();
    if (FORK_HEAP_NEEDED || getenv("RACE_ALLOCATOR") != NULL) {
        static const struct wr_allocator allocator = {.alloc = fork_heap_alloc, .free = fork_heap_free};
        RACE_CHECK(wr_set_allocator(&allocator) == 0);
        fork_heap_start();
    }
    dict = wr_value_dict_new(NULL);
    by_hand = wr_queue_new("by hand");
    manned = wr_queue_new("manned");
    sig = wr_signal_new("signal");
    RACE_CHECK(dict != NULL && by_hand != NULL && manned != NULL && sig != NULL);
    RACE_CHECK(wr_queue_fd(by_hand) >= 0);
    begun_start(manned, 2);
    begun_reclaimer();
    /* The first of them registers with atexit(), whose own lock no fork waits for. */
    struct thing *first = thing_new(&type, NULL);
    wr_finalizer *f = wr_finalize(first, by_hand, finalizer, NULL, WR_FINALIZE_ATEXIT);
    RACE_CHECK(wr_finalizer_call(f) == 0);
    wr_finalizer_release(f);
    wr_release(first);
    pthread_barrier_init(&all_started, NULL, n_threads);
    for (unsigned i = 0; i < n_threads; i++) {
        seeds[i] = race_draw(&random);
        RACE_CHECK(pthread_create(&threads[i], NULL,
                                  i < HAMMERS             ? hammer
                                  : i < HAMMERS + FORKERS ? forker
                                                          : churn,
                                  &seeds[i]) == 0);
    }
    sleep(seconds != NULL ? (unsigned)atoi(seconds) : 5);
    atomic_store(&over, true);
    for (unsigned i = 0; i < n_threads; i++)
        pthread_join(threads[i], NULL);
    (void)wr_queue_drain(by_hand, SIZE_MAX);
    RACE_CHECK(wr_queue_barrier(manned) == 0);
    struct wr_queue_stats s;
    RACE_CHECK(is_balanced(by_hand, &s) && is_balanced(manned, &s));
    wr_slot_store(&slot, NULL);
    wr_weak_slot_set(&weak_slot, NULL);
    wr_value_dict_free(dict);
    wr_signal_free(sig);
    wr_queue_free(by_hand);
    wr_queue_free(manned);
    RACE_CHECK(wr_barrier() == 0);
    printf("%u forks\n", atomic_load(&n_forks));
    RACE_CHECK(atomic_load(&n_forks) > 0);
    return 0;
}
