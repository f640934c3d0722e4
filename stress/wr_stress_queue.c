/* wr-stress: queues that come and go while deaths hand over to them, and consumers of every kind.
 *
 * A box is a queue and what is known of it. Boxes stand in places (wr_stress.h); who leaves a box last frees its queue.
 * A batch is an object and its watches, 1 to 10,000, on one queue or on many; a ticket is one of these watches. All
 * are kept to the end of the round, so that each ticket's fate can be told: it ran, or was cancelled by its handle, or
 * by wr_queue_cancel_all(), or its queue was freed before its object's death had handed over; and never two of these.
 *
 * Boxes differ: ORDERED ones have one consumer at a time and check the order; LOOPED ones are drained by the event loop,
 * which sleeps on their descriptors; SWEPT ones are those on which cancel_all is called; ALONE ones stand in no place,
 * and are freed by one of their own callbacks. The first two places are WR_QUEUE_INLINE and the default queue, for ever.
 */
#include "wr_stress.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum {
    N_PLACES = 8,
    N_BATCH_CELLS = 12,
    N_RECENT = 6,
    MOST_WATCHES = 10000, /* on one object */
    TICKETS_PER_OP = 10,  /* at most, in a round */
    DEPTH_MOST = 4,
    MARK = 4711 /* errno around callbacks */
};
#define NEVER UINT64_MAX

enum {
    ORDERED = 1,
    LOOPED = 2,
    SWEPT = 4,
    HELPED = 8, /* releasing threads may run callbacks */
    OWN = 16,   /* the library's: inline or default */
    ALONE = 32
};

struct box {
    struct tenant tenant;
    struct place *place;
    wr_queue *queue;
    unsigned kind;
    struct box *next;         /* of all */
    pthread_mutex_t consumer; /* who starts, stops or, where it is ORDERED, drains */
    bool manned;              /* ORDERED: has threads. Guarded by consumer */
    int fd;                   /* LOOPED: the loop's */
    _Atomic bool has_fd;
    _Atomic unsigned waiting; /* barriers */
    _Atomic bool was_swept, freed;
    _Atomic bool freeing; /* set just before */
    uint64_t freed_ns;    /* just before its free; NEVER */
    uint64_t hooked;      /* by the hook of its mark, plain: one call at a time */
    struct tally tally;
    uint64_t swept_before; /* what cancel_all took in earlier rounds */
    /* ORDERED: the last ticket begun, by the thread of the death. Plain: one consumer after the other. */
    uint64_t *last;
    /* Counted at a quiet moment. */
    uint64_t armed, left;
};

struct ticket {
    struct box *box;
    struct batch *batch;
    _Atomic(wr_watch *) handle; /* owned by who takes it */
    uint32_t index;             /* among the batch's; the highest is the newest */
    _Atomic uint8_t ran, cancelled;
    bool returned; /* plain: for who waited */
};

struct batch {
    struct batch *next;
    _Atomic unsigned destroyed;
    unsigned n, acts;
    struct box *destroys; /* on whose queue destroy runs, or NULL: where it is released */
    _Atomic bool released;
    /* Written by destroy, read by callbacks: nothing but the library orders them. */
    unsigned producer;
    uint64_t order;
    bool has_inline;            /* or helped: some callbacks run in the midst of the hand-over */
    _Atomic uint64_t handed_ns; /* after the release that surely was its death; NEVER: not known */
    struct ticket tickets[];
};

struct subject {
    uint64_t magic;
    struct batch *batch;
};
#define SUBJECT UINT64_C(0x71756575652d6f62)

struct hand {
    struct box *lease[N_PLACES];
    struct batch *recent[N_RECENT];
    bool handed[N_RECENT]; /* by this thread, before now */
    struct box *looping;   /* the loop's own part, while it handles one */
};

/* What the thread does: a callback must not begin inside a release, but for inline ones. */
enum within { NOWHERE, RELEASING, DRAINING };
static _Thread_local enum within within;
static _Thread_local uint64_t deaths_here;
static _Thread_local struct hand *hand; /* workers and the loop */

static struct place places[N_PLACES];
static struct box *boxes; /* all of this round. Guarded by boxes_lock */
static pthread_mutex_t boxes_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic(struct batch *) batches;
static _Atomic(void *) cells[N_BATCH_CELLS]; /* subjects, owned */
static _Atomic int64_t tickets_left;
static atomic_bool calm;        /* callbacks do nothing but count */
static _Atomic unsigned acting; /* those that do more */
static struct hand *hands;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- boxes -------------------------------------------------------------------------------------------------- */

static struct box *box_new(struct place *place, wr_queue *queue, unsigned kind)
{
    static const char *const names[] = {"any", "ordered", "looped", "ordered, looped"};
    struct box *box = calloc(1, sizeof *box);
    CHECK(box != NULL);
    box->queue = kind & OWN ? queue : wr_queue_new(names[kind & (ORDERED | LOOPED)]);
    box->last = calloc(options.n_threads, sizeof *box->last);
    CHECK(box->queue != NULL && box->last != NULL);
    atomic_init(&box->tenant.users, 1);
    pthread_mutex_init(&box->consumer, NULL);
    box->place = place;
    box->kind = kind;
    box->fd = -1;
    box->freed_ns = NEVER;
    count(COUNT_queues_made);
    pthread_mutex_lock(&boxes_lock);
    box->next = boxes;
    boxes = box;
    pthread_mutex_unlock(&boxes_lock);
    return box;
}

static void box_delete(struct box *box)
{
    pthread_mutex_destroy(&box->consumer);
    free(box->last);
    free(box);
}

static struct tally *tally_of(struct box *box)
{
    return box->queue == WR_QUEUE_INLINE ? &elsewhere[Q_INLINE] : box->kind & OWN ? &elsewhere[Q_DEFAULT] : &box->tally;
}

/* Runs callbacks of @box by @how, and sees that errno is left alone. */
static size_t consume(struct box *box, size_t max, uint64_t budget_ns)
{
    enum within before = within;
    within = DRAINING;
    errno = MARK;
    size_t n = budget_ns != 0 ? wr_queue_drain_for(box->queue, budget_ns) : wr_queue_drain(box->queue, max);
    CHECK(errno == MARK);
    CHECK(budget_ns != 0 || n <= max);
    within = before;
    return n;
}

/* Who left last. Not from callbacks of other queues: those could wait for each other. */
static void box_free(struct box *box)
{
    struct wr_queue_stats s;
    wr_queue_stats(box->queue, &s);
    count(COUNT_queues_freed);
    if (s.pending != 0)
        count(COUNT_queues_freed_full);
    enum within before = within;
    within = DRAINING;
    box->freed_ns = now_ns();
    atomic_store_explicit(&box->freeing, true, memory_order_relaxed);
    errno = MARK;
    wr_queue_free(box->queue);
    CHECK(errno == MARK);
    atomic_store_explicit(&box->freed, true, memory_order_release);
    within = before;
}

/* ---- the event loop ------------------------------------------------------------------------------------------- */

enum order { LOOP_ADD, LOOP_BYE, LOOP_HELP, LOOP_FREE, LOOP_PAUSE, LOOP_END };
struct post {
    struct post *next;
    enum order order;
    struct box *box;
};

static struct loop {
    pthread_t thread;
    int epoll, wake;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct post *first, **last; /* guarded by lock, as paused */
    bool paused;
    struct hand hand;
} loop = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void loop_post(enum order order, struct box *box)
{
    struct post *post = malloc(sizeof *post);
    CHECK(post != NULL);
    *post = (struct post){.order = order, .box = box};
    pthread_mutex_lock(&loop.lock);
    *loop.last = post;
    loop.last = &post->next;
    pthread_mutex_unlock(&loop.lock);
    uint64_t one = 1;
    CHECK(write(loop.wake, &one, sizeof one) == sizeof one);
}

/* Gives one part of @box back. */
static void box_leave(struct box *box)
{
    if (!tenant_leave(&box->tenant))
        return;
    if (callback_depth == 0)
        box_free(box);
    else
        loop_post(LOOP_FREE, box);
}

static void loop_forget(struct box *box)
{
    CHECK(epoll_ctl(loop.epoll, EPOLL_CTL_DEL, box->fd, NULL) == 0);
}

static size_t drain(struct box *box, size_t max, uint64_t budget_ns);

/* Consumes for barriers where nobody else may, and sees off those that it is the last to serve. Returns how many stay. */
static unsigned loop_help(struct box **helped, unsigned n)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < n; i++) {
        struct box *box = helped[i];
        if (box->kind & LOOPED) {
            if (tenant_leave_alone(&box->tenant, 1)) {
                loop_forget(box);
                box_free(box);
            } else {
                helped[kept++] = box;
            }
        } else if (atomic_load_explicit(&box->waiting, memory_order_relaxed) != 0) {
            drain(box, SIZE_MAX, 0);
            helped[kept++] = box;
        } else {
            box_leave(box);
        }
    }
    return kept;
}

static struct post *loop_take(void)
{
    pthread_mutex_lock(&loop.lock);
    struct post *post = loop.first;
    if (post != NULL) {
        loop.first = post->next;
        if (loop.first == NULL)
            loop.last = &loop.first;
    }
    pthread_mutex_unlock(&loop.lock);
    return post;
}

static void *loop_main(void *arg)
{
    (void)arg;
    enum { MOST_HELPED = 1024 };
    static struct box *helped[MOST_HELPED];
    unsigned n_helped = 0;
    bool end = false;
    hand = &loop.hand;
    while (!end) {
        struct epoll_event event; /* one at a time: the next could be of a queue that this one's callbacks free */
        int n = epoll_wait(loop.epoll, &event, 1, n_helped > 0 ? 1 : -1);
        CHECK(n >= 0 || errno == EINTR);
        if (n == 1 && event.data.ptr != NULL) {
            struct box *box = event.data.ptr;
            hand->looping = box;
            drain(box, 16, 0);
            hand->looping = NULL;
        }
        uint64_t value;
        CHECK(read(loop.wake, &value, sizeof value) == sizeof value || errno == EAGAIN);
        bool pause = false;
        for (struct post *post; !pause && (post = loop_take()) != NULL; free(post)) {
            struct box *box = post->box;
            switch (post->order) {
            case LOOP_ADD:
                CHECK(epoll_ctl(loop.epoll, EPOLL_CTL_ADD, box->fd,
                                &(struct epoll_event){.events = EPOLLIN, .data.ptr = box}) == 0);
                break;
            case LOOP_BYE:
            case LOOP_HELP:
                CHECK(n_helped < MOST_HELPED);
                helped[n_helped++] = box;
                break;
            case LOOP_FREE:
                box_free(box);
                break;
            case LOOP_PAUSE:
                pause = true;
                break;
            case LOOP_END:
                end = true;
            }
        }
        n_helped = loop_help(helped, n_helped);
        if (pause) {
            pthread_mutex_lock(&loop.lock);
            bool more = loop.first != NULL || n_helped > 0;
            pthread_mutex_unlock(&loop.lock);
            if (more) {
                loop_post(LOOP_PAUSE, NULL);
                continue;
            }
            pthread_mutex_lock(&loop.lock);
            loop.paused = true;
            pthread_cond_broadcast(&loop.changed);
            while (loop.paused)
                pthread_cond_wait(&loop.changed, &loop.lock);
            pthread_mutex_unlock(&loop.lock);
        }
    }
    return NULL;
}

static void loop_pause(void)
{
    loop_post(LOOP_PAUSE, NULL);
    pthread_mutex_lock(&loop.lock);
    while (!loop.paused)
        pthread_cond_wait(&loop.changed, &loop.lock);
    pthread_mutex_unlock(&loop.lock);
}

static void loop_resume(void)
{
    pthread_mutex_lock(&loop.lock);
    loop.paused = false;
    pthread_cond_broadcast(&loop.changed);
    pthread_mutex_unlock(&loop.lock);
}

/* ---- consumers ---------------------------------------------------------------------------------------------- */

/* As far as @box may be drained by this thread now. Requires: a part of it, and not in a callback of its own. */
static size_t drain(struct box *box, size_t max, uint64_t budget_ns)
{
    if (!(box->kind & ORDERED))
        return consume(box, max, budget_ns);
    if (pthread_mutex_trylock(&box->consumer) != 0)
        return 0;
    size_t n = box->manned ? 0 : consume(box, max, budget_ns);
    pthread_mutex_unlock(&box->consumer);
    return n;
}

/* Those that are not ORDERED are started and stopped by all at once. */
static void crew_start(struct box *box, struct random *r)
{
    if (box->kind & (OWN | LOOPED))
        return;
    int error;
    if (!(box->kind & ORDERED)) {
        error = wr_queue_start(box->queue, random_below(r, 4) + 1);
        CHECK(error == 0 || error == -EBUSY);
    } else {
        if (pthread_mutex_trylock(&box->consumer) != 0)
            return;
        error = wr_queue_start(box->queue, 1);
        CHECK(error == (box->manned ? -EBUSY : 0));
        box->manned = true;
        pthread_mutex_unlock(&box->consumer);
    }
    if (error == 0)
        count(COUNT_crews);
}

static void crew_stop(struct box *box)
{
    if (box->kind & (OWN | LOOPED))
        return;
    bool lock = box->kind & ORDERED;
    if (lock && pthread_mutex_trylock(&box->consumer) != 0)
        return;
    CHECK(wr_queue_stop(box->queue) == 0);
    count(COUNT_stops);
    if (lock) {
        box->manned = false;
        pthread_mutex_unlock(&box->consumer);
    }
}

/* Requires: a part of it, and no callback on this stack. */
static void wait_on(struct box *box)
{
    bool served = box->kind & (OWN | LOOPED);
    atomic_fetch_add_explicit(&box->waiting, 1, memory_order_relaxed);
    if (!served) {
        atomic_fetch_add_explicit(&box->tenant.users, 1, memory_order_relaxed);
        loop_post(LOOP_HELP, box);
    }
    CHECK(wr_queue_barrier(box->queue) == 0);
    atomic_fetch_sub_explicit(&box->waiting, 1, memory_order_relaxed);
    count(COUNT_barriers);
}

static struct box *box_make(struct place *place, struct random *r)
{
    unsigned kind = random_below(r, 16);
    struct box *box = box_new(place, NULL, kind & ORDERED ? kind & ~(unsigned)HELPED : kind);
    if (box->kind & LOOPED) {
        atomic_store(&box->has_fd, true);
        box->fd = wr_queue_fd(box->queue);
        CHECK(box->fd >= 0 && wr_queue_fd(box->queue) == box->fd);
        atomic_fetch_add_explicit(&box->tenant.users, 1, memory_order_relaxed);
        loop_post(LOOP_ADD, box);
    }
    return box;
}

/* Puts another queue in the place of @box. True: it stood there, and the place's part of it is the caller's. */
static bool box_replace(struct box *box, struct random *r)
{
    struct box *new = box_make(box->place, r);
    if (place_swap(box->place, &box->tenant, &new->tenant))
        return true;
    if (new->kind & LOOPED)
        loop_post(LOOP_BYE, new);
    box_leave(new);
    return false;
}

/* ---- callbacks ---------------------------------------------------------------------------------------------- */

/* What a callback does: bits of batch->acts. */
enum { ACT_RELEASE = 1, ACT_WATCH = 2, ACT_DRAIN = 4, ACT_FREE = 8, ACT_REFUSED = 16, ACT_YIELD = 32 };

static void callback(wr_weak *dead, void *ctx);
static void let_go(struct subject *subject);
static struct subject *batch_make(struct random *r, unsigned n, struct box *const *from, unsigned n_from);

/* Nobody else can name the queue of @box; this is a callback of it, the only one on this stack. */
static void free_inside(struct box *box)
{
    static const wr_type type = {.name = "late", .size = 8};
    void *late = wr_new(&type);
    CHECK(late != NULL);
    count(COUNT_queues_freed_inside);
    count(COUNT_queues_freed);
    box->freed_ns = now_ns();
    atomic_store_explicit(&box->freeing, true, memory_order_relaxed);
    wr_queue_free(box->queue); /* ends when this callback has returned */
    CHECK(wr_on_death(late, box->queue, callback, NULL) == -ECANCELED);
    CHECK(wr_queue_start(box->queue, 1) == -ECANCELED);
    atomic_store_explicit(&box->freed, true, memory_order_release);
    wr_release(late);
}

/* The same, if it comes about. By a thread that drains: so that it is known when it is over. */
static void act_free(struct box *box, struct random *r)
{
    if (callback_depth != 1 || hand == NULL || (box->kind & OWN) || !box_replace(box, r))
        return;
    struct box **lease = &hand->lease[box->place - places];
    bool leased = *lease == box, looping = hand->looping == box;
    if (!tenant_leave_alone(&box->tenant, 1u + leased + looping)) {
        if (box->kind & LOOPED)
            loop_post(LOOP_BYE, box);
        box_leave(box);
        return;
    }
    if (leased)
        *lease = NULL;
    if (looping) {
        hand->looping = NULL;
        loop_forget(box);
    }
    free_inside(box);
}

static void act(struct ticket *t)
{
    struct random r;
    struct batch *batch = t->batch;
    random_start(&r, options.seed, atomic_load_explicit(&round_now, memory_order_relaxed), (uintptr_t)t);
    unsigned acts = batch->acts & (unsigned)random_next(&r);
    struct box *box = t->box;
    if (acts & ACT_YIELD)
        sched_yield();
    if (acts & ACT_RELEASE)
        let_go(atomic_exchange_explicit(&cells[random_below(&r, N_BATCH_CELLS)], NULL, memory_order_acq_rel));
    if ((acts & (ACT_WATCH | ACT_DRAIN | ACT_REFUSED)) && callback_depth < DEPTH_MOST) {
        struct place *place = &places[random_below(&r, N_PLACES)];
        struct box *other = (struct box *)place_enter(place);
        if ((acts & ACT_REFUSED) && other == box && box->queue != WR_QUEUE_INLINE) {
            CHECK(wr_queue_barrier(box->queue) == -EDEADLK);
            CHECK(wr_queue_stop(box->queue) == -EDEADLK);
            CHECK(wr_queue_cancel_all(box->queue) == -EDEADLK);
        }
        if (acts & ACT_WATCH) {
            struct subject *subject = batch_make(&r, random_below(&r, 4) + 1, &other, 1);
            if (subject != NULL)
                let_go(
                    atomic_exchange_explicit(&cells[random_below(&r, N_BATCH_CELLS)], subject, memory_order_acq_rel));
        }
        /* An ordered queue's own consumer is this thread: nested, it goes on in order. */
        if ((acts & ACT_DRAIN) && other != box) {
            drain(other, random_below(&r, 8) + 1, 0);
            count(COUNT_nested);
        } else if (acts & ACT_DRAIN) {
            consume(other, 2, 0);
            count(COUNT_nested);
        }
        box_leave(other);
    }
    if ((acts & ACT_FREE) && !(box->kind & ALONE) && random_one_in(&r, 512))
        act_free(box, &r);
}

static void callback(wr_weak *dead, void *ctx)
{
    struct ticket *t = ctx;
    struct box *box = t->box;
    struct batch *batch = t->batch;
    if (atomic_fetch_add_explicit(&t->ran, 1, memory_order_relaxed) != 0)
        violation("ticket %u of a batch of %u ran twice", (unsigned)t->index, batch->n);
    if (atomic_load_explicit(&t->cancelled, memory_order_relaxed) != 0)
        violation("ticket %u of a batch of %u ran after WR_CANCELLED", (unsigned)t->index, batch->n);
    if (box->queue != WR_QUEUE_INLINE && !(box->kind & HELPED) && within == RELEASING)
        violation("queue %s: a callback ran inside wr_release()", wr_queue_name(box->queue));
    if (worker_self()->index < options.n_threads && box->queue != WR_QUEUE_INLINE && !(box->kind & HELPED))
        CHECK(within == DRAINING);
    CHECK(wr_weak_is_dead(dead) && wr_upgrade(dead) == NULL);
    CHECK(atomic_load_explicit(&batch->destroyed, memory_order_relaxed) == 1);
    tally_add(&tally_of(box)->delivered, 1);
    count(COUNT_delivered);
    if (hand == &loop.hand)
        count(COUNT_looped);
    if ((box->kind & ORDERED) && batch->producer < options.n_threads) {
        uint64_t key = batch->order << 14 | (batch->n - 1 - t->index), *last = &box->last[batch->producer];
        if (key <= *last)
            violation("ordered queue: death %llu of thread %u, watch %u of %u, came after death %llu",
                      (unsigned long long)batch->order, batch->producer, (unsigned)t->index, batch->n,
                      (unsigned long long)(*last >> 14));
        *last = key;
    }
    /* Relaxed, both: nothing here may order what the library has to order. */
    atomic_fetch_add_explicit(&acting, 1, memory_order_relaxed);
    if (!atomic_load_explicit(&calm, memory_order_relaxed)) {
        enum within before = within;
        within = NOWHERE;
        callback_depth++;
        act(t);
        callback_depth--;
        within = before;
    }
    if ((box->kind & ALONE) && t->index == batch->n / 2 && tenant_leave_alone(&box->tenant, 1))
        free_inside(box);
    t->returned = true;
    atomic_fetch_sub_explicit(&acting, 1, memory_order_relaxed);
    errno = EDOM; /* to be put back */
}

/* ---- batches ------------------------------------------------------------------------------------------------ */

static const wr_type plain, deferred, elsewhere_type;

static void subject_destroy(void *obj)
{
    struct subject *subject = obj;
    struct batch *batch = subject->batch;
    CHECK(subject->magic == SUBJECT);
    subject->magic = 0;
    if (atomic_fetch_add_explicit(&batch->destroyed, 1, memory_order_relaxed) != 0)
        violation("a subject is destroyed twice");
    /* Callbacks in the midst of the hand-over can bring about other deaths: no order then. */
    batch->producer = wr_type_of(obj) != &plain || batch->has_inline ? UINT_MAX : worker_self()->index;
    batch->order = ++deaths_here;
    if (batch->destroys != NULL) {
        CHECK(within != RELEASING || (batch->destroys->kind & HELPED) ||
              atomic_load_explicit(&batch->destroys->freeing, memory_order_relaxed));
        tally_add(&tally_of(batch->destroys)->delivered, 1);
        count(COUNT_destroyed_there);
    }
}

static const wr_type plain = {.name = "subject", .size = sizeof(struct subject), .destroy = subject_destroy};
static const wr_type deferred = {
    .name = "deferred subject", .size = sizeof(struct subject), .destroy = subject_destroy, .flags = WR_TYPE_DEFERRED};

static _Thread_local struct box *destroys_next; /* for the object that is made now */

static wr_queue *destroy_on(void)
{
    return destroys_next->queue;
}

static const wr_type elsewhere_type = {.name = "subject destroyed elsewhere",
                                       .size = sizeof(struct subject),
                                       .destroy = subject_destroy,
                                       .destroy_on = destroy_on};

/* An object with @n watches on queues of @from, which the caller has parts of; NULL: the round has enough. */
static struct subject *batch_make(struct random *r, unsigned n, struct box *const *from, unsigned n_from)
{
    if (atomic_fetch_sub_explicit(&tickets_left, n, memory_order_relaxed) < n) {
        atomic_fetch_add_explicit(&tickets_left, n, memory_order_relaxed);
        return NULL;
    }
    const wr_type *type = &plain;
    if (!(from[0]->kind & ALONE))
        type = random_one_in(r, 8)                                        ? &deferred
               : from[0]->queue != WR_QUEUE_INLINE && random_one_in(r, 8) ? &elsewhere_type
                                                                          : &plain;
    destroys_next = from[0];
    struct subject *subject = wr_new(type);
    struct batch *batch = calloc(1, sizeof *batch + n * sizeof *batch->tickets);
    CHECK(subject != NULL && batch != NULL);
    subject->magic = SUBJECT;
    subject->batch = batch;
    atomic_init(&batch->handed_ns, NEVER);
    batch->n = n;
    if (type == &elsewhere_type) {
        batch->destroys = from[0];
        tally_add(&tally_of(from[0])->watched, 1);
    }
    batch->acts = (unsigned)(random_next(r) & random_next(r) & 63);
    unsigned at = random_below(r, n_from), change = random_one_in(r, 2) ? 0 : random_below(r, 8) + 1;
    for (unsigned i = 0; i < n; i++) {
        if (change != 0 && random_one_in(r, change))
            at = random_below(r, n_from);
        struct ticket *t = &batch->tickets[i];
        struct box *box = from[at];
        t->box = box;
        t->batch = batch;
        t->index = i;
        batch->has_inline = batch->has_inline || box->queue == WR_QUEUE_INLINE || (box->kind & HELPED);
        tally_add(&tally_of(box)->watched, 1);
        if (random_one_in(r, 4)) {
            wr_watch *handle = wr_watch_new(subject, box->queue, callback, t);
            if (handle == NULL)
                violation("wr_watch_new(): errno %d", errno);
            atomic_store_explicit(&t->handle, handle, memory_order_release);
        } else {
            int error = wr_on_death(subject, box->queue, callback, t);
            if (error != 0)
                violation("wr_on_death(): %d", error);
        }
    }
    count_many(COUNT_watches, n);
    batch->next = atomic_load_explicit(&batches, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&batches, &batch->next, batch, memory_order_release,
                                                  memory_order_relaxed))
        ;
    return subject;
}

/* @subject: [consumed] its only reference, or NULL. */
static void let_go(struct subject *subject)
{
    if (subject == NULL)
        return;
    struct batch *batch = subject->batch;
    bool now = wr_type_of(subject) == &plain;
    count(batch->n >= 1000 ? COUNT_storms : COUNT_hand_overs);
    enum within before = within;
    within = RELEASING;
    errno = MARK;
    wr_release(subject);
    CHECK(errno == MARK);
    within = before;
    atomic_store_explicit(&batch->released, true, memory_order_relaxed);
    if (now &&
        callback_depth == 0) /* else the death may wait for the end of one that goes on further down this stack */
        atomic_store_explicit(&batch->handed_ns, now_ns(), memory_order_relaxed);
}

/* Takes a handle out of @t and cancels, or lets go of it. */
static void ticket_end(struct ticket *t, struct random *r)
{
    wr_watch *handle = atomic_exchange_explicit(&t->handle, NULL, memory_order_acq_rel);
    if (handle == NULL)
        return;
    if (random_one_in(r, 4)) {
        wr_watch_release(handle);
        return;
    }
    bool sync = callback_depth == 0 && random_one_in(r, 3);
    int answer = sync ? wr_watch_cancel_sync(handle) : wr_watch_cancel(handle);
    switch (answer) {
    case WR_CANCELLED:
        if (atomic_load_explicit(&t->ran, memory_order_relaxed) != 0)
            violation("ticket %u of a batch of %u: WR_CANCELLED after it ran", (unsigned)t->index, t->batch->n);
        atomic_fetch_add_explicit(&t->cancelled, 1, memory_order_relaxed);
        tally_add(&tally_of(t->box)->cancelled, 1);
        count(COUNT_cancelled);
        break;
    case WR_RUNNING:
        CHECK(!sync);
        count(COUNT_running);
        break;
    case WR_DELIVERED:
        CHECK(atomic_load_explicit(&t->ran, memory_order_relaxed) == 1);
        count(COUNT_too_late);
        break;
    default:
        violation("cancel answers %d", answer);
    }
    wr_watch_release(handle);
}

/* ---- operations --------------------------------------------------------------------------------------------- */

static unsigned any(struct worker *w, unsigned n)
{
    return random_below(&w->random, n);
}

static struct hand *hand_of(struct worker *w)
{
    return &hands[w->index];
}

static struct box *any_box(struct worker *w)
{
    struct box **lease = &hand_of(w)->lease[any(w, N_PLACES)];
    if (*lease == NULL)
        *lease = (struct box *)place_enter(&places[lease - hand_of(w)->lease]);
    return *lease;
}

static void op_lease(struct worker *w)
{
    struct box **lease = &hand_of(w)->lease[any(w, N_PLACES)];
    struct box *old = *lease;
    *lease = NULL;
    if (old != NULL)
        box_leave(old);
}

static void op_replace(struct worker *w)
{
    struct box *box = any_box(w);
    if ((box->kind & OWN) || !box_replace(box, &w->random))
        return;
    if (box->kind & LOOPED)
        loop_post(LOOP_BYE, box);
    box_leave(box);
}

static void op_death(struct worker *w)
{
    struct random *r = &w->random;
    struct box *from[4];
    for (unsigned i = 0; i < 4; i++)
        from[i] = any_box(w);
    unsigned n = random_below(r, 8) + 1;
    if (random_one_in(r, 128)) {
        n = 1u << random_below(r, 14);
        n = n + random_below(r, n);
        n = n < MOST_WATCHES ? n : MOST_WATCHES;
    }
    struct subject *subject = batch_make(r, n, from, random_below(r, 4) + 1);
    if (subject == NULL)
        return;
    unsigned at = random_below(r, N_RECENT);
    hand_of(w)->recent[at] = subject->batch;
    hand_of(w)->handed[at] = random_one_in(r, 2);
    if (!hand_of(w)->handed[at])
        subject = atomic_exchange_explicit(&cells[random_below(r, N_BATCH_CELLS)], subject, memory_order_acq_rel);
    bool later = subject != NULL && wr_type_of(subject) != &plain;
    let_go(subject);
    hand_of(w)->handed[at] = hand_of(w)->handed[at] && !later;
}

static void op_release(struct worker *w)
{
    let_go(atomic_exchange_explicit(&cells[any(w, N_BATCH_CELLS)], NULL, memory_order_acq_rel));
}

static void op_drain(struct worker *w)
{
    struct box *box = any_box(w);
    struct random *r = &w->random;
    if (box->queue == WR_QUEUE_INLINE)
        CHECK(consume(box, 1, 0) == 0);
    else if (random_one_in(r, 3))
        drain(box, 1, random_below(r, 100000) + 1);
    else
        drain(box, random_one_in(r, 8) ? SIZE_MAX : random_below(r, 64) + 1, 0);
}

static void op_start(struct worker *w)
{
    crew_start(any_box(w), &w->random);
}

static void op_stop(struct worker *w)
{
    crew_stop(any_box(w));
}

static void op_barrier(struct worker *w)
{
    struct box *box = any_box(w);
    const struct hand *h = hand_of(w);
    if (!random_one_in(&w->random, 4))
        return;
    wait_on(box);
    for (unsigned i = 0; i < N_RECENT && !(box->kind & SWEPT); i++)
        for (unsigned k = 0; h->handed[i] && k < h->recent[i]->n; k++) {
            const struct ticket *t = &h->recent[i]->tickets[k];
            if (t->box == box && atomic_load_explicit(&t->cancelled, memory_order_relaxed) == 0 && !t->returned)
                violation(
                    "queue of kind %u: ticket %u of a batch of %u has not run, and wr_queue_barrier() has returned",
                    box->kind, k, h->recent[i]->n);
        }
}

static void op_sweep(struct worker *w)
{
    struct box *box = any_box(w);
    if (!(box->kind & SWEPT))
        return;
    atomic_store_explicit(&box->was_swept, true, memory_order_relaxed);
    CHECK(wr_queue_cancel_all(box->queue) == 0);
    count(COUNT_sweeps);
}

static void op_cancel(struct worker *w)
{
    struct random *r = &w->random;
    struct batch *batch = hand_of(w)->recent[random_below(r, N_RECENT)];
    if (batch == NULL)
        return;
    unsigned n = random_below(r, 16) + 1;
    for (unsigned i = random_below(r, batch->n); n > 0 && i < batch->n; i++, n--)
        ticket_end(&batch->tickets[i], r);
}

static void op_look(struct worker *w)
{
    struct box *box = any_box(w);
    struct wr_queue_stats s;
    wr_queue_stats(box->queue, &s);
    if (box->queue == WR_QUEUE_INLINE)
        CHECK(wr_queue_fd(box->queue) == -EINVAL);
    else if (random_one_in(&w->random, 4)) {
        CHECK(wr_queue_fd(box->queue) >= 0);
        atomic_store_explicit(&box->has_fd, true, memory_order_relaxed);
    }
}

static void past_the_mark(wr_queue *queue, uint64_t pending, void *ctx)
{
    struct box *box = ctx;
    CHECK(queue == box->queue && pending > 0);
    box->hooked++;
    count(COUNT_marks);
    enum within before = within;
    within = NOWHERE;
    struct wr_queue_stats s;
    wr_queue_stats(queue, &s);
    CHECK(s.high_water > 0);
    within = before;
    errno = EDOM;
}

static void op_mark(struct worker *w)
{
    struct box *box = any_box(w);
    if (box->kind & OWN)
        return;
    unsigned help = box->kind & HELPED ? any(w, 4) : 0;
    if (any(w, 4) == 0)
        CHECK(wr_queue_set_high_water(box->queue, 0, NULL, NULL, 0) == 0);
    else
        CHECK(wr_queue_set_high_water(box->queue, any(w, 200) + 1, past_the_mark, box, help) == 0);
    CHECK(wr_queue_set_slow_limit(box->queue, any(w, 100000) + 1) == 0);
}

/* A queue of its own, which one of its callbacks frees, on this thread or on one of the queue's. */
static void op_free_inside(struct worker *w)
{
    struct random *r = &w->random;
    struct box *box = box_new(NULL, NULL, ALONE);
    struct subject *subject = batch_make(r, random_below(r, 32) + 1, &box, 1);
    bool by_threads = random_one_in(r, 2);
    if (subject == NULL) {
        box_leave(box);
        return;
    }
    if (by_threads)
        CHECK(wr_queue_start(box->queue, random_below(r, 3) + 1) == 0);
    let_go(subject);
    if (by_threads)
        return;
    drain(box, SIZE_MAX, 0);
    CHECK(atomic_load_explicit(&box->freed, memory_order_relaxed));
}

static const struct op queue_ops[] = {
    {op_free_inside, "wr_queue_free in a callback", 6, MODE_QUEUE},
    {op_lease, "coming and going", 40, MODE_QUEUE},
    {op_replace, "replacing a queue", 2, MODE_QUEUE},
    {op_death, "a death with many watches", 100, MODE_QUEUE},
    {op_release, "releasing what is watched", 60, MODE_QUEUE},
    {op_drain, "draining", 60, MODE_QUEUE},
    {op_start, "wr_queue_start", 10, MODE_QUEUE},
    {op_stop, "wr_queue_stop", 6, MODE_QUEUE},
    {op_barrier, "wr_queue_barrier", 12, MODE_QUEUE},
    {op_sweep, "wr_queue_cancel_all", 8, MODE_QUEUE},
    {op_cancel, "cancelling tickets", 40, MODE_QUEUE},
    {op_look, "wr_queue_stats", 10, MODE_QUEUE},
    {op_mark, "wr_queue_set_high_water", 10, MODE_QUEUE},
};

/* ---- the laws ------------------------------------------------------------------------------------------------ */

static bool readable(const struct box *box)
{
    struct pollfd p = {.fd = wr_queue_fd(box->queue), .events = POLLIN};
    CHECK(p.fd >= 0);
    return poll(&p, 1, 0) == 1;
}

/* Where each ticket is, nothing moves, and only queues without threads have anything pending. */
static void check_tickets(void)
{
    for (struct box *box = boxes; box != NULL; box = box->next)
        box->armed = box->left = 0;
    for (struct batch *b = atomic_load(&batches); b != NULL; b = b->next) {
        bool alive = atomic_load(&b->destroyed) == 0;
        if (b->destroys != NULL && alive)
            *(atomic_load(&b->released) ? &b->destroys->left : &b->destroys->armed) += 1;
        for (unsigned i = 0; i < b->n; i++) {
            struct ticket *t = &b->tickets[i];
            struct box *box = t->box;
            unsigned ran = atomic_load(&t->ran), cancelled = atomic_load(&t->cancelled);
            if (ran + cancelled > 1 || (alive && ran != 0))
                violation("ticket %u of a batch of %u: ran %u times, cancelled %u times", i, b->n, ran, cancelled);
            if (ran + cancelled != 0)
                continue;
            if (alive)
                box->armed++;
            else
                box->left++; /* pending, or cancelled with others */
            if (!alive && box->freed && b->handed_ns < box->freed_ns && !box->was_swept)
                violation("queue %s: ticket %u of a batch of %u was pending when its queue was freed, and is lost",
                          box->kind & ORDERED ? "ordered" : "any", i, b->n);
        }
    }
}

/* What the queue says, of one that is still there. */
static void check_box(struct box *box)
{
    if ((box->kind & OWN) || box->freed)
        return;
    struct wr_queue_stats s;
    wr_queue_stats(box->queue, &s);
    struct tally *t = &box->tally;
    uint64_t swept = s.cancelled - atomic_load(&t->cancelled);
    if (s.watched != s.armed + s.pending + s.delivered + s.cancelled || s.running != 0 ||
        s.watched != atomic_load(&t->watched) || s.delivered != atomic_load(&t->delivered) || s.armed != box->armed ||
        box->swept_before + box->left != swept + s.pending || (swept != 0 && !box->was_swept))
        violation(
            "queue of kind %u: watched %llu, armed %llu, pending %llu, delivered %llu, cancelled %llu, running %llu; "
            "counted here: watched %llu, armed %llu, delivered %llu, cancelled %llu, swept %llu, left %llu",
            box->kind, (unsigned long long)s.watched, (unsigned long long)s.armed, (unsigned long long)s.pending,
            (unsigned long long)s.delivered, (unsigned long long)s.cancelled, (unsigned long long)s.running,
            (unsigned long long)atomic_load(&t->watched), (unsigned long long)box->armed,
            (unsigned long long)atomic_load(&t->delivered), (unsigned long long)atomic_load(&t->cancelled),
            (unsigned long long)box->swept_before, (unsigned long long)box->left);
    CHECK(s.high_water >= s.pending && s.high_water <= s.watched && s.slow <= s.delivered);
    count_many(COUNT_quiet_pending, s.pending);
    count_many(COUNT_quiet_armed, s.armed);
    if (box->has_fd && s.delivered + s.cancelled != 0)
        count(s.pending != 0 ? COUNT_quiet_readable : COUNT_quiet_unreadable);
    if (s.latency_p50_ns > s.latency_p99_ns || s.latency_p99_ns > s.latency_max_ns)
        violation("queue of kind %u: latencies p50 %llu, p99 %llu, max %llu ns of %llu delivered", box->kind,
                  (unsigned long long)s.latency_p50_ns, (unsigned long long)s.latency_p99_ns,
                  (unsigned long long)s.latency_max_ns, (unsigned long long)s.delivered);
    if (box->has_fd && readable(box) != (s.pending != 0))
        violation("queue of kind %u: %llu pending, and its descriptor is %sreadable", box->kind,
                  (unsigned long long)s.pending, s.pending != 0 ? "not " : "");
}

static void check_boxes(void)
{
    check_tickets();
    for (struct box *box = boxes; box != NULL; box = box->next)
        check_box(box);
}

/* What the library's own threads still have to do comes to an end. */
static void calm_down(void)
{
    for (unsigned i = 0; i < 3; i++) {
        CHECK(wr_barrier() == 0);
        CHECK(wr_queue_barrier(wr_queue_default()) == 0);
    }
}

/* A queue that is there, whose threads, if any, may be asked to do all that is pending. */
static bool has_threads(struct box *box, struct random *r)
{
    if (box->kind & (ORDERED | LOOPED))
        return box->manned || (box->kind & LOOPED);
    return random_one_in(r, 2) && wr_queue_start(box->queue, 1) == -EBUSY;
}

/* What callbacks on other threads changed under these locks is seen from now on: `acting` orders nothing. */
static void see_places(void)
{
    for (unsigned i = 0; i < N_PLACES; i++) {
        pthread_mutex_lock(&places[i].lock);
        pthread_mutex_unlock(&places[i].lock);
    }
    pthread_mutex_lock(&boxes_lock);
    pthread_mutex_unlock(&boxes_lock);
}

static void queue_quiet(void)
{
    struct random r;
    random_start(&r, options.seed, atomic_load(&round_now), 77);
    atomic_store(&calm, true);
    while (atomic_load(&acting) != 0)
        sched_yield();
    see_places();
    calm_down();
    for (unsigned i = 2; i < N_PLACES; i++) {
        struct box *box = (struct box *)places[i].tenant;
        if (has_threads(box, &r))
            CHECK(wr_queue_barrier(box->queue) == 0); /* a lost wake-up would show here */
        pthread_mutex_lock(&box->consumer);           /* the loop goes on */
        CHECK(wr_queue_stop(box->queue) == 0);
        box->manned = false;
        pthread_mutex_unlock(&box->consumer);
    }
    loop_pause();
    for (struct box *box = boxes; box != NULL; box = box->next) {
        if (!(box->kind & ALONE))
            continue;
        while (!atomic_load(&box->freed) || atomic_load(&box->tally.watched) != atomic_load(&box->tally.delivered))
            sched_yield(); /* its own threads are at it */
    }
    calm_down();
    check_boxes();
    for (unsigned i = 2; i < N_PLACES; i++)
        consume((struct box *)places[i].tenant, random_below(&r, 64), 0);
    check_boxes();
}

static bool queue_settle(void)
{
    size_t n = 0;
    for (unsigned i = 0; i < N_BATCH_CELLS; i++) {
        struct subject *subject = atomic_exchange(&cells[i], NULL);
        n += subject != NULL;
        let_go(subject);
    }
    CHECK(wr_barrier() == 0);
    for (unsigned i = 2; i < N_PLACES; i++)
        n += consume((struct box *)places[i].tenant, SIZE_MAX, 0);
    return n > 0;
}

static void begin(void)
{
    atomic_store(&tickets_left, (int64_t)options.n_threads * options.n_ops * TICKETS_PER_OP);
    atomic_store(&calm, false);
    loop_resume();
}

static void queue_verify(void)
{
    check_boxes();
    for (struct batch *b; (b = atomic_load(&batches)) != NULL; free(b)) {
        atomic_store(&batches, b->next);
        CHECK(atomic_load(&b->destroyed) == 1);
        for (unsigned i = 0; i < b->n; i++)
            wr_watch_release(atomic_load(&b->tickets[i].handle));
    }
    for (struct box **link = &boxes, *box; (box = *link) != NULL;) {
        CHECK(box->armed == 0 && (box->left == 0 || !(box->kind & (OWN | ALONE))));
        count_many(COUNT_swept, box->left);
        if (box->freed) {
            *link = box->next;
            box_delete(box);
            continue;
        }
        CHECK(box->kind & OWN || atomic_load(&box->tenant.users) == 1u + ((box->kind & LOOPED) != 0));
        box->swept_before += box->left;
        link = &box->next;
    }
    begin();
}

static void queue_enter(struct worker *w)
{
    hand = hand_of(w);
}

static void queue_leave(struct worker *w)
{
    for (unsigned i = 0; i < N_PLACES; i++)
        if (hand_of(w)->lease[i] != NULL)
            box_leave(hand_of(w)->lease[i]);
    *hand_of(w) = (struct hand){.looping = NULL};
}

static void queue_start(void)
{
    struct random r;
    random_start(&r, options.seed, 0, 78);
    hands = calloc(options.n_threads, sizeof *hands);
    CHECK(hands != NULL);
    loop.last = &loop.first;
    loop.epoll = epoll_create1(EPOLL_CLOEXEC);
    loop.wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    CHECK(loop.epoll >= 0 && loop.wake >= 0);
    CHECK(epoll_ctl(loop.epoll, EPOLL_CTL_ADD, loop.wake, &(struct epoll_event){.events = EPOLLIN}) == 0);
    CHECK(pthread_create(&loop.thread, NULL, loop_main, NULL) == 0);
    for (unsigned i = 0; i < N_PLACES; i++) {
        pthread_mutex_init(&places[i].lock, NULL);
        struct box *box = i == 0   ? box_new(&places[i], WR_QUEUE_INLINE, OWN)
                          : i == 1 ? box_new(&places[i], wr_queue_default(), OWN)
                                   : box_make(&places[i], &r);
        places[i].tenant = &box->tenant;
    }
    atomic_store(&tickets_left, (int64_t)options.n_threads * options.n_ops * TICKETS_PER_OP);
}

static void queue_stop(void)
{
    enum { ENOUGH = 500000 };
    loop_pause();
    for (unsigned i = 0; i < N_PLACES; i++) {
        struct box *box = (struct box *)places[i].tenant;
        if (!(box->kind & OWN)) {
            if (box->kind & LOOPED)
                loop_forget(box);
            box_free(box);
        }
        box_delete(box);
    }
    loop_resume();
    loop_post(LOOP_END, NULL);
    pthread_join(loop.thread, NULL);
    close(loop.wake);
    close(loop.epoll);
    free(hands);
    static const enum count races[] = {COUNT_quiet_pending,
                                       COUNT_quiet_armed,
                                       COUNT_quiet_readable,
                                       COUNT_quiet_unreadable,
                                       COUNT_queues_freed_full,
                                       COUNT_queues_freed_inside,
                                       COUNT_storms,
                                       COUNT_nested,
                                       COUNT_looped,
                                       COUNT_crews,
                                       COUNT_stops,
                                       COUNT_barriers,
                                       COUNT_sweeps,
                                       COUNT_swept};
    races_verify(races, sizeof races / sizeof *races, count_sum(COUNT_hand_overs) >= ENOUGH);
}

const struct part queue_part = {
    .mode = MODE_QUEUE,
    .ops = queue_ops,
    .n_ops = sizeof queue_ops / sizeof *queue_ops,
    .start = queue_start,
    .enter = queue_enter,
    .leave = queue_leave,
    .quiet = queue_quiet,
    .settle = queue_settle,
    .verify = queue_verify,
    .stop = queue_stop,
};
