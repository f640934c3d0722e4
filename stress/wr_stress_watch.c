/* wr-stress: watches on four kinds of queue, their cancelling, and what is known of each. */
#include "wr_stress.h"

#include <errno.h>
#include <stdlib.h>

/* What a callback does: bits of watch->acts. */
enum {
    ACT_CANCEL_SELF = 1,
    ACT_CANCEL_OTHER = 2,
    ACT_DRAIN = 4, /* nested */
    ACT_LOOK_UP = 8,
    ACT_WATCH = 16, /* its payload, before it lets go of it */
    ACT_SHARE = 32  /* the dead handle */
};

wr_queue *queues[N_QUEUES];
struct tally elsewhere[N_QUEUES];

void tally_add(_Atomic uint64_t *figure, uint64_t n)
{
    atomic_fetch_add_explicit(figure, n, memory_order_relaxed);
}

static struct watch *watches;
static unsigned capacity;
static _Atomic unsigned made;
static uint64_t total[N_QUEUES], total_delivered[N_QUEUES], total_cancelled[N_QUEUES]; /* of earlier rounds */

void watches_start(void)
{
    capacity = options.n_threads * options.n_ops;
    watches = calloc(capacity, sizeof *watches);
    queues[Q_DEFAULT] = wr_queue_default();
    queues[Q_HAND] = wr_queue_new("by hand");
    queues[Q_POOL] = wr_queue_new("pool");
    queues[Q_INLINE] = WR_QUEUE_INLINE;
    CHECK(watches != NULL && queues[Q_HAND] != NULL && queues[Q_POOL] != NULL);
    CHECK(wr_queue_start(queues[Q_POOL], 2) == 0);
}

void watches_stop(void)
{
    CHECK(wr_queue_stop(queues[Q_POOL]) == 0);
    wr_queue_free(queues[Q_POOL]);
    wr_queue_free(queues[Q_HAND]);
    CHECK(wr_queue_stop(queues[Q_DEFAULT]) == 0);
    free(watches);
}

void watches_reset(void)
{
    unsigned n = watches_made();
    for (unsigned i = 0; i < n; i++) {
        struct watch *w = &watches[i];
        total[w->queue]++;
        total_delivered[w->queue] += atomic_load(&w->ran);
        total_cancelled[w->queue] += atomic_load(&w->cancelled);
        atomic_store_explicit(&w->ran, 0, memory_order_relaxed);
        atomic_store_explicit(&w->cancelled, 0, memory_order_relaxed);
        w->wrote = 0;
    }
    atomic_store_explicit(&made, 0, memory_order_relaxed);
}

unsigned watches_made(void)
{
    unsigned n = atomic_load_explicit(&made, memory_order_relaxed);
    return n < capacity ? n : capacity;
}

struct watch *watch_at(unsigned i)
{
    return &watches[i];
}

/* ---- the callback ------------------------------------------------------------------------------------------- */

static void cancel_self(struct watch *w)
{
    wr_watch *handle = atomic_exchange_explicit(&w->handle, NULL, memory_order_acq_rel);
    if (handle == NULL)
        return;
    CHECK(wr_watch_cancel(handle) == WR_DELIVERED);
    CHECK(wr_watch_cancel_sync(handle) == -EDEADLK);
    count(COUNT_deadlk);
    wr_watch_release(handle);
}

static void callback(wr_weak *dead, void *ctx)
{
    struct watch *w = ctx;
    if (atomic_fetch_add_explicit(&w->ran, 1, memory_order_relaxed) != 0)
        violation("the callback of watch %u ran twice", (unsigned)(w - watches));
    if (atomic_load_explicit(&w->cancelled, memory_order_relaxed) != 0)
        violation("the callback of watch %u ran after WR_CANCELLED", (unsigned)(w - watches));
    count(COUNT_delivered);
    CHECK(wr_weak_is_dead(dead));
    CHECK(wr_upgrade(dead) == NULL);
    if (kind_has_destroy(object_kind(w->object)) && object_destroyed(w->object) != 1)
        violation("the callback of watch %u ran before its object %u was destroyed", (unsigned)(w - watches),
                  (unsigned)w->object);
    w->wrote = UINT64_C(1) << 32 | w->object;

    struct random r;
    random_start(&r, options.seed, atomic_load_explicit(&round_now, memory_order_relaxed), (uint64_t)(w - watches));
    errno = EDOM;
    if (w->acts & ACT_CANCEL_SELF)
        cancel_self(w);
    if (w->acts & ACT_CANCEL_OTHER) {
        struct watch *other =
            atomic_exchange_explicit(&shared.watches[random_below(&r, N_CELLS)], NULL, memory_order_acq_rel);
        if (other != NULL)
            watch_end(other, &r, false);
    }
    if ((w->acts & ACT_DRAIN) && random_one_in(&r, 4))
        wr_queue_drain(queues[Q_HAND], 2);
    if ((w->acts & ACT_LOOK_UP) && (options.mode & MODE_DICT))
        wr_release(dict_look(shared.dict, random_below(&r, N_KEYS)));
    if (w->acts & ACT_SHARE)
        wr_weak_release(atomic_exchange_explicit(&shared.weak[random_below(&r, N_CELLS)], wr_weak_retain(dead),
                                                 memory_order_acq_rel));
    void *payload = w->payload;
    w->payload = NULL;
    if (payload != NULL) {
        struct node *node = object_check(payload);
        CHECK(node->number < w->object);
        if (w->acts & ACT_WATCH) {
            struct watch *again = watch_new(payload, node, &r, NULL);
            if (again != NULL)
                watch_give_up(again);
        }
        wr_release(payload);
    }
}

/* ---- making and ending ---------------------------------------------------------------------------------- */

struct watch *watch_new(void *obj, const struct node *node, struct random *r, void *payload)
{
    unsigned i = atomic_load_explicit(&made, memory_order_relaxed);
    do {
        if (i >= capacity) {
            wr_release(payload);
            return NULL;
        }
    } while (!atomic_compare_exchange_weak_explicit(&made, &i, i + 1, memory_order_relaxed, memory_order_relaxed));
    struct watch *w = &watches[i];
    w->object = node->number;
    w->queue = (uint8_t)random_below(r, N_QUEUES);
    w->acts = (uint8_t)(random_next(r) & random_next(r) & 63);
    w->payload = payload;
    wr_queue *queue = w->queue == Q_DEFAULT && random_one_in(r, 2) ? NULL : queues[w->queue];
    count(COUNT_watches);
    if (random_one_in(r, 3)) {
        int error = wr_on_death(obj, queue, callback, w);
        if (error != 0)
            violation("wr_on_death() on a living object: %d", error);
        return NULL;
    }
    wr_watch *handle = wr_watch_new(obj, queue, callback, w);
    if (handle == NULL)
        violation("wr_watch_new() on a living object: errno %d", errno);
    atomic_store_explicit(&w->handle, handle, memory_order_release);
    return w;
}

void watch_give_up(struct watch *w)
{
    wr_watch_release(atomic_exchange_explicit(&w->handle, NULL, memory_order_acq_rel));
}

void watch_end(struct watch *w, struct random *r, bool sync_allowed)
{
    wr_watch *handle = atomic_exchange_explicit(&w->handle, NULL, memory_order_acq_rel);
    if (handle == NULL)
        return;
    bool sync = sync_allowed && random_one_in(r, 2);
    int answer = sync ? wr_watch_cancel_sync(handle) : wr_watch_cancel(handle);
    switch (answer) {
    case WR_CANCELLED:
        if (atomic_fetch_add_explicit(&w->cancelled, 1, memory_order_relaxed) != 0)
            violation("watch %u was cancelled twice", (unsigned)(w - watches));
        if (atomic_load_explicit(&w->ran, memory_order_relaxed) != 0)
            violation("watch %u: WR_CANCELLED after its callback ran", (unsigned)(w - watches));
        count(COUNT_cancelled);
        CHECK(wr_watch_cancel(handle) == WR_CANCELLED);
        wr_release(w->payload);
        w->payload = NULL;
        break;
    case WR_RUNNING:
        if (sync)
            violation("watch %u: WR_RUNNING from wr_watch_cancel_sync()", (unsigned)(w - watches));
        count(COUNT_running);
        /* Later answers are of later states; here nothing on this stack is the callback. */
        if (sync_allowed) {
            CHECK(wr_watch_cancel_sync(handle) == WR_DELIVERED);
            CHECK(w->wrote == (UINT64_C(1) << 32 | w->object));
        }
        break;
    case WR_DELIVERED:
        count(COUNT_too_late);
        if (atomic_load_explicit(&w->ran, memory_order_relaxed) != 1)
            violation("watch %u: WR_DELIVERED, and its callback has not run", (unsigned)(w - watches));
        if (sync_allowed)
            CHECK(w->wrote == (UINT64_C(1) << 32 | w->object));
        break;
    default:
        violation("watch %u: cancel answers %d", (unsigned)(w - watches), answer);
    }
    wr_watch_release(handle);
}

void watch_refused(void *dying, struct random *r)
{
    wr_queue *queue = queues[random_below(r, N_QUEUES)];
    CHECK(wr_on_death(dying, queue, callback, NULL) == -ESTALE);
    errno = 0;
    CHECK(wr_watch_new(dying, queue, callback, NULL) == NULL);
    CHECK(errno == ESTALE);
    count(COUNT_stale);
}

size_t queues_drain(struct random *r)
{
    return random_one_in(r, 4) ? wr_queue_drain_for(queues[Q_HAND], 20000)
                               : wr_queue_drain(queues[Q_HAND], random_below(r, 32) + 1);
}

/* ---- the laws -------------------------------------------------------------------------------------------------- */

bool queues_verify(bool quiet)
{
    uint64_t now[N_QUEUES] = {0}, delivered[N_QUEUES] = {0}, cancelled[N_QUEUES] = {0};
    struct wr_queue_stats stats[N_QUEUES];
    for (unsigned q = 0; q < N_QUEUES; q++) {
        wr_queue_stats(queues[q], &stats[q]);
        if (stats[q].pending != 0 || stats[q].running != 0 || (quiet && stats[q].armed != 0))
            return false;
    }
    unsigned n = watches_made();
    for (unsigned i = 0; i < n; i++) {
        now[watches[i].queue]++;
        delivered[watches[i].queue] += atomic_load(&watches[i].ran);
        cancelled[watches[i].queue] += atomic_load(&watches[i].cancelled);
    }
    for (unsigned q = 0; q < N_QUEUES; q++) {
        const struct wr_queue_stats *s = &stats[q];
        static const char *const names[] = {"default", "by hand", "pool", "inline"};
        uint64_t d = total_delivered[q] + delivered[q] + atomic_load(&elsewhere[q].delivered);
        uint64_t c = total_cancelled[q] + cancelled[q] + atomic_load(&elsewhere[q].cancelled);
        uint64_t all = total[q] + now[q] + atomic_load(&elsewhere[q].watched);
        if (s->watched != s->armed + s->pending + s->delivered + s->cancelled || s->watched != all ||
            s->delivered != d || s->cancelled != c)
            violation("queue %s: watched %llu, armed %llu, pending %llu, delivered %llu, cancelled %llu; "
                      "counted here: %llu, delivered %llu, cancelled %llu",
                      names[q], (unsigned long long)s->watched, (unsigned long long)s->armed,
                      (unsigned long long)s->pending, (unsigned long long)s->delivered,
                      (unsigned long long)s->cancelled, (unsigned long long)all, (unsigned long long)d,
                      (unsigned long long)c);
    }
    return true;
}

void watches_verify(bool quiet)
{
    unsigned n = watches_made();
    for (unsigned i = 0; i < n; i++) {
        struct watch *w = &watches[i];
        unsigned ran = atomic_load(&w->ran), cancelled = atomic_load(&w->cancelled);
        if (ran + cancelled > 1 || (quiet && ran + cancelled != 1))
            violation("watch %u on object %u was delivered %u times and cancelled %u times", i, (unsigned)w->object,
                      ran, cancelled);
        if (quiet)
            CHECK(w->payload == NULL);
    }
}
