/* F5 keep: the queue, the hand, the buckets, and the list of all keeps.
 *
 * INV-1: n and size are those of what stands in by_age; with a time limit, what stands there stands in a bucket, too.
 * INV-2: what stands there is KEPT or VISITED, and the keep owns a reference to it; what does not is LOOSE or GONE.
 * INV-3: the hand is NULL (it begins with the oldest) or stands on a record of the queue.
 *
 * Who lets go holds the lock for STEPS steps at most, with VICTIMS references at most to give up after it; then again. An
 * addition comes first and what is too much goes then, so that the decision falls outside of the dictionary's locks;
 * the newest record is spared by it, as if the hand had walked before the addition.
 */
#include "keep.h"

#include "alloc.h"
#include "event.h"
#include "fork.h"

#include <time.h>

enum {
    STEPS = 64,           /* of the hand, and looks into buckets, in one section */
    VICTIMS = 32,         /* let go in one section */
    EXPIRED_A_CALL = 128, /* let go for time's sake in one call, but for trims */
    SECTIONS_A_CALL = 16, /* of looking for such */
    TICKS = 8,            /* of the time that is allowed */
    BUCKETS = 2 * TICKS   /* a power of two, above TICKS + 1 */
};

struct wr_keep {
    struct wr_keep_uses uses;
    wr_keep_limits limits;
    uint64_t (*clock_ns)(void);
    bool ended; /* written while no other call runs */

    wr_spin lock __attribute__((aligned(64))); /* WR_RANK_LIST */
    wr_keep_link by_age;                       /* next: the newest. Guarded by lock, as all up to bucket */
    wr_keep_link *hand;
    size_t n, size;
    uint64_t swept;      /* the tick whose bucket was looked through last, or is being */
    wr_keep_link cursor; /* in that bucket: what is behind has been looked at. next NULL: in none */
    wr_keep_link bucket[BUCKETS];

    wr_keep *before, *after;  /* in the list of all. Guarded by list_lock */
    uint64_t round;           /* of wr_keep_trim_all(). Guarded by list_lock */
    WR_ATOMIC(unsigned) refs; /* the owner's, and trims' of all */
};

static uint64_t coarse_clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t (*clock_of_new)(void) = coarse_clock_ns;

void wr_keep_set_clock(uint64_t (*clock_ns)(void))
{
    clock_of_new = clock_ns != NULL ? clock_ns : coarse_clock_ns;
}

/* 0: time is not limited. Else far enough from 0 that there is always something before. */
static uint64_t tick_now(const wr_keep *k)
{
    return k->uses.tick_ns != 0 ? k->clock_ns() / k->uses.tick_ns + 2 * BUCKETS : 0;
}

/* ---- links ------------------------------------------------------------------------------------------------ */

static void ring_init(wr_keep_link *ring)
{
    ring->prev = ring->next = ring;
}

/* In front of @at. */
static void link_before(wr_keep_link *at, wr_keep_link *link)
{
    link->next = at;
    link->prev = at->prev;
    at->prev->next = link;
    at->prev = link;
}

static void unlink_one(wr_keep_link *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
}

static wr_kept *of_age(wr_keep_link *link)
{
    return (wr_kept *)((uintptr_t)link - offsetof(wr_kept, by_age));
}

static wr_kept *of_tick(wr_keep_link *link)
{
    return (wr_kept *)((uintptr_t)link - offsetof(wr_kept, by_tick));
}

static wr_keep_link *bucket_of(wr_keep *k, uint64_t tick)
{
    return &k->bucket[tick % BUCKETS];
}

/* ---- the list of all --------------------------------------------------------------------------------------- */

static wr_spin list_lock = WR_SPIN_INIT; /* WR_RANK_LIST; never together with the lock of a keep */
static wr_keep *first, *last;            /* most idle first. Guarded by list_lock, as the following */
static uint64_t rounds;

/* Who trims all, on its stack: the owner of a keep waits until it has been left, since the destroys that a trim runs may use the
 * dictionary. */
struct trimmer {
    struct trimmer *next;
    const wr_keep *at; /* or NULL: between two */
    uint64_t thread;   /* its ordinal */
};

static struct trimmer *trimmers;
static wr_event left = WR_EVENT_INIT; /* signalled when a trimmer has left a keep */

/* Requires: list_lock held. */
static void list_append(wr_keep *k)
{
    k->before = last;
    k->after = NULL;
    *(last != NULL ? &last->after : &first) = k;
    last = k;
}

/* Requires: list_lock held. */
static void list_remove(wr_keep *k)
{
    *(k->before != NULL ? &k->before->after : &first) = k->after;
    *(k->after != NULL ? &k->after->before : &last) = k->before;
}

/* Requires: list_lock held. */
static void age(void)
{
    wr_keep *end = last, *k = first, *next;
    for (bool more = k != NULL; more; k = next) {
        next = k->after;
        more = k != end;
        /* Relaxed, both: a mark. A use between the two is taken for one before. */
        if (wr_atomic_load_relaxed(&k->uses.touched) == 0)
            continue;
        wr_atomic_store_relaxed(&k->uses.touched, 0);
        list_remove(k);
        list_append(k);
    }
}

void wr_keep_age(void)
{
    wr_spin_lock(&list_lock, WR_RANK_LIST);
    age();
    wr_spin_unlock(&list_lock, WR_RANK_LIST);
}

/* [owned] the first that has not had this round; NULL: all have, and the trimmer is gone. */
static wr_keep *next_of_round(struct trimmer *self, uint64_t round)
{
    wr_spin_lock(&list_lock, WR_RANK_LIST);
    wr_keep *k = first;
    while (k != NULL && k->round >= round)
        k = k->after;
    if (k != NULL) {
        k->round = round;
        /* Relaxed: what is in the list has its owner's reference. */
        wr_atomic_fetch_add_relaxed(&k->refs, 1);
    } else {
        struct trimmer **link = &trimmers;
        while (*link != self)
            link = &(*link)->next;
        *link = self->next;
    }
    self->at = k;
    wr_spin_unlock(&list_lock, WR_RANK_LIST);
    wr_event_signal(&left);
    return k;
}

/* Whether another thread trims @k just now. */
static bool is_being_trimmed(const wr_keep *k)
{
    bool found = false;
    uint64_t self = wr_thread_ordinal();
    wr_spin_lock(&list_lock, WR_RANK_LIST);
    for (const struct trimmer *t = trimmers; t != NULL; t = t->next)
        found = found || (t->at == k && t->thread != self);
    wr_spin_unlock(&list_lock, WR_RANK_LIST);
    return found;
}

/* In the child: forgets the trimmers that did not come along. */
static void keep_in_child(void)
{
    for (struct trimmer **link = &trimmers; *link != NULL;) {
        if (wr_thread_is_gone((*link)->thread))
            *link = (*link)->next;
        else
            link = &(*link)->next;
    }
}

__attribute__((constructor(101))) static void keep_start(void)
{
    wr_fork_register(WR_FORK_KEEP, keep_in_child);
}

size_t wr_keep_trim_all(double fraction)
{
    struct trimmer self = {.thread = wr_thread_ordinal()};
    wr_spin_lock(&list_lock, WR_RANK_LIST);
    age();
    uint64_t round = ++rounds;
    self.next = trimmers;
    trimmers = &self;
    wr_spin_unlock(&list_lock, WR_RANK_LIST);
    size_t n = 0;
    wr_keep *k;
    while ((k = next_of_round(&self, round)) != NULL) {
        n += wr_keep_trim(k, fraction);
        wr_keep_release(k);
    }
    return n;
}

/* ---- life ------------------------------------------------------------------------------------------------- */

wr_keep *wr_keep_new(const wr_keep_limits *limits)
{
    wr_keep *k = wr_alloc_aligned(_Alignof(wr_keep), sizeof *k);
    if (k == NULL)
        return NULL;
    *k = (wr_keep){.limits = *limits, .clock_ns = clock_of_new};
    if (limits->size != SIZE_MAX && limits->size > SIZE_MAX >> 16)
        k->limits.size = SIZE_MAX >> 16; /* so that sums do not overflow */
    wr_spin_init(&k->lock);
    ring_init(&k->by_age);
    if (limits->ms != UINT64_MAX) {
        uint64_t ms = limits->ms < UINT64_C(1) << 40 ? limits->ms : UINT64_C(1) << 40; /* 34 years */
        k->uses.tick_ns = (ms * 1000000 + TICKS - 1) / TICKS;
        k->swept = tick_now(k) - TICKS - 1;
        for (unsigned i = 0; i < BUCKETS; i++)
            ring_init(&k->bucket[i]);
    }
    wr_atomic_init(&k->uses.touched, 1);
    wr_atomic_init(&k->refs, 1);
    wr_spin_lock(&list_lock, WR_RANK_LIST);
    k->round = rounds; /* not in one that runs, which is to end some time */
    list_append(k);
    wr_spin_unlock(&list_lock, WR_RANK_LIST);
    return k;
}

void wr_keep_end(wr_keep *k)
{
    wr_spin_lock(&list_lock, WR_RANK_LIST);
    list_remove(k);
    wr_spin_unlock(&list_lock, WR_RANK_LIST);
    for (;;) {
        uint32_t value = wr_event_value(&left);
        if (!is_being_trimmed(k))
            break;
        (void)wr_event_wait(&left, value, WR_EVENT_FOREVER);
    }
    k->ended = true;
}

void wr_keep_release(wr_keep *k)
{
    /* Acquire-release [keep-ref]: the last one frees after all others' last use. Pairs with itself in other threads. */
    if (wr_atomic_fetch_sub_acq_rel(&k->refs, 1) == 1) {
        WR_ASSERT(k->n == 0 && k->size == 0 && k->by_age.next == &k->by_age);
        wr_free(k);
    }
}

/* ---- records ---------------------------------------------------------------------------------------------- */

static bool is_too_much(const wr_keep *k)
{
    return k->n > k->limits.objects || k->size > k->limits.size;
}

/* The last tick whose bucket's time has come. */
static uint64_t due(uint64_t now)
{
    return now - TICKS - 1;
}

/* @now: 0 if time is not limited. Requires: k->lock held. */
static bool is_unsettled(const wr_keep *k, uint64_t now)
{
    return is_too_much(k) || (now != 0 && (k->swept != due(now) || k->cursor.next != NULL));
}

/* Requires: k->lock held; @r is LOOSE; its reference is handed in. */
static void keep(wr_keep *k, wr_kept *r, uint64_t now)
{
    link_before(k->by_age.next, &r->by_age);
    k->n++;
    k->size += r->size;
    /* Relaxed, all: as in wr_keep_mark(). */
    if (k->uses.tick_ns != 0) {
        wr_atomic_store_relaxed(&r->tick, now);
        link_before(bucket_of(k, now), &r->by_tick);
    }
    wr_atomic_store_relaxed(&r->state, WR_KEPT_KEPT);
}

/* Takes @r out of queue and bucket; its reference is the caller's. Requires: k->lock held. */
static void unkeep(wr_keep *k, wr_kept *r)
{
    if (k->hand == &r->by_age)
        k->hand = r->by_age.prev != &k->by_age ? r->by_age.prev : NULL;
    unlink_one(&r->by_age);
    if (k->uses.tick_ns != 0)
        unlink_one(&r->by_tick);
    k->n--;
    k->size -= r->size;
}

void wr_keep_prepare(wr_keep *k, wr_kept *r, void *obj, size_t size)
{
    if (k->ended || size > k->limits.size)
        return;
    r->size = size;
    r->obj = wr_retain(obj);
}

bool wr_keep_add(wr_keep *k, wr_kept *r)
{
    if (r->obj == NULL)
        return false;
    uint64_t now = tick_now(k);
    wr_spin_lock(&k->lock, WR_RANK_LIST);
    keep(k, r, now);
    bool unsettled = is_unsettled(k, now);
    wr_spin_unlock(&k->lock, WR_RANK_LIST);
    return unsettled;
}

void wr_keep_gone(wr_keep *k, wr_kept *r)
{
    wr_spin_lock(&k->lock, WR_RANK_LIST);
    /* Relaxed, both: as in wr_keep_mark(); a use that comes later finds it GONE. */
    uint32_t state = wr_atomic_load_relaxed(&r->state);
    wr_atomic_store_relaxed(&r->state, WR_KEPT_GONE);
    if (state == WR_KEPT_KEPT || state == WR_KEPT_VISITED) {
        unkeep(k, r);
        r->owed = true;
    }
    wr_spin_unlock(&k->lock, WR_RANK_LIST);
}

/* ---- uses ------------------------------------------------------------------------------------------------- */

void wr_keep_tick(wr_keep *k, wr_kept *r)
{
    uint64_t now = tick_now(k);
    /* Relaxed, both: a figure; once a tick. */
    if (wr_atomic_load_relaxed(&r->tick) != now)
        wr_atomic_store_relaxed(&r->tick, now);
}

bool wr_keep_again(wr_keep *k, wr_kept *r)
{
    if (r->obj == NULL || k->ended)
        return false;
    uint64_t now = tick_now(k);
    (void)wr_retain(r->obj); /* before the lock, since it may have to warn */
    wr_spin_lock(&k->lock, WR_RANK_LIST);
    /* Relaxed: under the lock; a use alone does not change LOOSE. */
    bool kept = wr_atomic_load_relaxed(&r->state) == WR_KEPT_LOOSE;
    if (kept)
        keep(k, r, now);
    bool unsettled = is_unsettled(k, now);
    wr_spin_unlock(&k->lock, WR_RANK_LIST);
    if (!kept)
        wr_release(r->obj); /* not the last: the caller has one */
    return unsettled;
}

/* ---- letting go ------------------------------------------------------------------------------------------- */

struct victims {
    unsigned steps; /* left in this section */
    unsigned n;
    void *obj[VICTIMS]; /* [owned] */
};

/* Requires: no wr lock held (runs user code). */
static void let_go(struct victims *v)
{
    for (unsigned i = 0; i < v->n; i++)
        wr_release(v->obj[i]);
}

/* Whether there are steps and room for one more; takes the step. */
static bool may_go_on(struct victims *v)
{
    if (v->steps == 0 || v->n == VICTIMS)
        return false;
    v->steps--;
    return true;
}

/* Requires: k->lock held. */
static void take(wr_keep *k, wr_kept *r, struct victims *v)
{
    unkeep(k, r);
    v->obj[v->n++] = r->obj;
}

/* One step of the hand. @spare: the newest is not there. @vain: how many steps it went since it last let one go. Where uses
 * set the marks as fast as the hand takes them, they do not count in the end. Requires: k->lock held; more than the one that
 * is spared is kept. */
static void step(wr_keep *k, bool spare, size_t *vain, struct victims *v)
{
    const wr_keep_link *end = spare ? k->by_age.next : &k->by_age;
    wr_keep_link *at = k->hand;
    if (at == NULL || at == end)
        at = k->by_age.prev;
    wr_kept *r = of_age(at);
    k->hand = at->prev != end ? at->prev : NULL;
    /* Relaxed, all of them: as in wr_keep_mark(); a use may come between the two. */
    uint32_t state = wr_atomic_load_relaxed(&r->state);
    if (state == WR_KEPT_VISITED && (*vain)++ / 2 <= k->n) {
        wr_atomic_store_relaxed(&r->state, WR_KEPT_KEPT);
    } else if (!wr_atomic_cas_relaxed(&r->state, &state, WR_KEPT_LOOSE)) {
        k->hand = at; /* it was used just now */
    } else {
        take(k, r, v);
        *vain = 0;
    }
}

/* Looks through the buckets whose time has come by @now. True: all of them. Requires: k->lock held; time is limited. */
static bool sweep(wr_keep *k, uint64_t now, struct victims *v)
{
    uint64_t to = due(now);
    if (k->cursor.next == NULL && (int64_t)(to - k->swept) > BUCKETS)
        k->swept = to - BUCKETS; /* each once */
    for (;;) {
        if (k->cursor.next == NULL) {
            if ((int64_t)(to - k->swept) <= 0)
                return true;
            k->swept++;
            link_before(bucket_of(k, k->swept), &k->cursor);
        }
        if (!may_go_on(v))
            return false;
        wr_keep_link *at = bucket_of(k, k->swept)->next;
        if (at == &k->cursor) {
            unlink_one(at);
            at->next = NULL;
            continue;
        }
        wr_kept *r = of_tick(at);
        /* Relaxed: a figure, as old as the last use that this thread knows of. */
        uint64_t used = wr_atomic_load_relaxed(&r->tick);
        if ((int64_t)(used - to) > 0) {
            unlink_one(at);
            link_before(bucket_of(k, used), at);
        } else {
            /* Relaxed: as in wr_keep_mark(). */
            wr_atomic_store_relaxed(&r->state, WR_KEPT_LOOSE);
            take(k, r, v);
        }
    }
}

void wr_keep_settle(wr_keep *k)
{
    uint64_t now = tick_now(k);
    size_t vain = 0, n_expired = 0;
    unsigned sections = 0;
    bool swept = now == 0, more = true;
    while (more) {
        struct victims v = {.steps = STEPS};
        wr_spin_lock(&k->lock, WR_RANK_LIST);
        if (!swept)
            swept = sweep(k, now, &v);
        n_expired += v.n;
        while (is_too_much(k) && k->n > 1 && may_go_on(&v))
            step(k, true, &vain, &v);
        more = (is_too_much(k) && k->n > 1) || (!swept && n_expired < EXPIRED_A_CALL && ++sections < SECTIONS_A_CALL);
        wr_spin_unlock(&k->lock, WR_RANK_LIST);
        let_go(&v);
    }
}

size_t wr_keep_trim(wr_keep *k, double fraction)
{
    size_t size, n = wr_keep_count(k, &size), n_gone = 0, size_gone = 0, vain = 0;
    bool by_size = k->limits.size != SIZE_MAX && size > 0;
    double goal = (double)(by_size ? size : n) * fraction;
    uint64_t now = tick_now(k);
    bool swept = now == 0, more = true;
    while (more) {
        struct victims v = {.steps = STEPS};
        wr_spin_lock(&k->lock, WR_RANK_LIST);
        size_t before = k->size;
        if (!swept)
            swept = sweep(k, now, &v);
        for (;;) {
            size_t gone = by_size ? size_gone + (before - k->size) : n_gone + v.n;
            more = k->n > 0 && n_gone + v.n < n && ((double)gone < goal || fraction >= 1);
            if (!more || !swept || !may_go_on(&v))
                break;
            step(k, false, &vain, &v);
        }
        more = more || !swept;
        n_gone += v.n;
        size_gone += before - k->size;
        wr_spin_unlock(&k->lock, WR_RANK_LIST);
        let_go(&v);
    }
    return n_gone;
}

size_t wr_keep_count(wr_keep *k, size_t *size)
{
    wr_spin_lock(&k->lock, WR_RANK_LIST);
    size_t n = k->n;
    *size = k->size;
    wr_spin_unlock(&k->lock, WR_RANK_LIST);
    return n;
}
