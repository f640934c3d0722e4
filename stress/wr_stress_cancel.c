/* wr-stress: watches that others cancel, finalizers, methods.
 *
 * A group is an object's watches, up to eight. What a callback works on is memory of its own, freed as soon as it may be,
 * so that a callback that comes too late is seen: by who got WR_CANCELLED, by who waited with cancel_sync, or else by
 * the callback itself. Handles stand in the group and belong to who takes them out. Groups are kept to the end of
 * the round.
 *
 * A callback that waits for another (cancel_sync) is the only one on its stack, and waits for an older sibling: so no
 * circle of waiting can close.
 */
#include "wr_stress.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum {
    N_GROUP = 8,
    N_GROUP_CELLS = 16,
    N_FIN_CELLS = 8,
    N_METHOD_CELLS = 8,
    N_MINE = 8,
    N_ETERNAL = SANITIZED ? 10000 : 100000, /* watches that stay on one object */
    N_CHURN = 64
};
#define MAGIC UINT64_C(0x63616e63656c2121)

/* By hand: workers drain it. Dead end: nobody ever does; all that is pending there is cancelled, and must leave nothing. */
enum { C_HAND, C_POOL, C_DEAD_END, C_DEFAULT, C_INLINE, N_C };
static wr_queue *cqueues[N_C];
static struct tally tallies[N_C];

static struct tally *tally_of(unsigned q)
{
    return q == C_DEFAULT ? &elsewhere[Q_DEFAULT] : q == C_INLINE ? &elsewhere[Q_INLINE] : &tallies[q];
}

struct context {
    uint64_t magic;
    struct group *group;
    unsigned index, queue, acts;
    bool frees;     /* its callback frees it, or who cancelled; else its canceller, who waits */
    uint64_t wrote; /* by the callback, plain */
};

struct entry {
    wr_watch *handle;
    struct context *context; /* not to be looked into, if the callback frees it, before WR_CANCELLED */
    unsigned queue;
    bool frees;
};

struct group {
    struct group *next;
    unsigned n;
    _Atomic(struct entry *) entries[N_GROUP]; /* owned by who takes it */
};

struct subject {
    uint64_t magic;
};

/* A finalizer and its handle, owned by who takes it. */
struct fin {
    wr_finalizer *finalizer;
    struct context *context; /* freed by the function, or by who detached */
    unsigned queue;
};

struct mine {
    void *subjects[N_MINE];
    struct group *groups[N_MINE];
};
static struct mine *mine;

static _Atomic(struct group *) groups;
static _Atomic(struct group *) group_cells[N_GROUP_CELLS];
static _Atomic(void *) subject_cells[N_GROUP_CELLS];
static _Atomic(struct fin *) fin_cells[N_FIN_CELLS];
static _Atomic(wr_method *) method_cells[N_METHOD_CELLS];
static _Atomic uint64_t fins_made, contexts; /* the latter: how many are there */
static _Thread_local bool calling;           /* wr_finalizer_call() is on the stack */
static struct subject *eternal;              /* lives throughout, and has N_ETERNAL watches */
static _Atomic uint64_t eternal_ran;

static void subject_destroy(void *obj)
{
    struct subject *subject = obj;
    CHECK(subject->magic == MAGIC);
    subject->magic = ~MAGIC;
}

static const wr_type subject_types[] = {
    {.name = "victim", .size = sizeof(struct subject), .destroy = subject_destroy},
    {.name = "deferred victim", .size = sizeof(struct subject), .destroy = subject_destroy, .flags = WR_TYPE_DEFERRED},
};

static void *subject_new(struct random *r)
{
    struct subject *subject = wr_new(&subject_types[random_one_in(r, 6)]);
    CHECK(subject != NULL);
    subject->magic = MAGIC;
    return subject;
}

/* ---- contexts ------------------------------------------------------------------------------------------------- */

static struct context *context_new(unsigned queue)
{
    struct context *c = malloc(sizeof *c);
    CHECK(c != NULL);
    *c = (struct context){.magic = MAGIC, .queue = queue};
    tally_add(&contexts, 1);
    return c;
}

static void context_free(struct context *c)
{
    CHECK(c->magic == MAGIC);
    memset(c, 0xdd, sizeof *c);
    free(c);
    tally_add(&contexts, (uint64_t)-1);
}

/* ---- cancelling ------------------------------------------------------------------------------------------------- */

static void entry_free(struct entry *e)
{
    wr_watch_release(e->handle);
    free(e);
}

enum how { RELEASE, CANCEL, SYNC };

/* Ends @at's entry, if it is there and can be ended; @how: SYNC only where waiting is allowed. */
static void entry_end(_Atomic(struct entry *) *at, enum how how)
{
    struct entry *e = atomic_exchange_explicit(at, NULL, memory_order_acq_rel);
    if (e == NULL)
        return;
    if (how == RELEASE && e->frees && e->queue != C_DEAD_END) {
        entry_free(e);
        return;
    }
    int answer = how == SYNC ? wr_watch_cancel_sync(e->handle) : wr_watch_cancel(e->handle);
    switch (answer) {
    case WR_CANCELLED:
        count(COUNT_cancelled);
        tally_add(&tally_of(e->queue)->cancelled, 1);
        CHECK(wr_watch_cancel(e->handle) == WR_CANCELLED);
        CHECK(e->context->wrote == 0);
        context_free(e->context);
        break;
    case WR_RUNNING:
        CHECK(how != SYNC);
        count(COUNT_running);
        if (!e->frees) { /* another time, by who may wait; if its callback is on this stack or not */
            e = atomic_exchange_explicit(at, e, memory_order_acq_rel);
            CHECK(e == NULL);
            return;
        }
        break;
    case WR_DELIVERED:
        count(COUNT_too_late);
        if (!e->frees && how != SYNC) {
            /* Over, or below on this stack: then it still is in use. */
            int over = callback_depth == 0 ? WR_DELIVERED : -EDEADLK;
            if (callback_depth > 0 || wr_watch_cancel_sync(e->handle) != over) {
                e = atomic_exchange_explicit(at, e, memory_order_acq_rel);
                CHECK(e == NULL);
                return;
            }
        }
        if (!e->frees) {
            CHECK(e->context->wrote == MAGIC);
            context_free(e->context);
        }
        break;
    default:
        violation("cancel answers %d", answer);
    }
    entry_free(e);
}

/* ---- callbacks -------------------------------------------------------------------------------------------------- */

enum { ACT_SELF = 1, ACT_SIBLINGS = 2, ACT_SIBLINGS_SYNC = 4, ACT_OTHERS = 8, ACT_RELEASE = 16, ACT_LINGER = 32 };

static void act_self(struct context *c)
{
    struct entry *e = atomic_exchange_explicit(&c->group->entries[c->index], NULL, memory_order_acq_rel);
    if (e == NULL)
        return;
    CHECK(wr_watch_cancel(e->handle) == WR_DELIVERED);
    CHECK(wr_watch_cancel_sync(e->handle) == -EDEADLK);
    count(COUNT_deadlk);
    if (e->frees)
        entry_free(e);
    else
        CHECK(atomic_exchange_explicit(&c->group->entries[c->index], e, memory_order_acq_rel) == NULL);
}

static void act(struct context *c, struct random *r)
{
    struct group *group = c->group;
    if (c->acts & ACT_LINGER)
        for (unsigned i = random_below(r, 4); i > 0; i--)
            sched_yield();
    if (c->acts & ACT_SELF)
        act_self(c);
    bool sync = (c->acts & ACT_SIBLINGS_SYNC) && callback_depth == 1;
    if (c->acts & (ACT_SIBLINGS | ACT_SIBLINGS_SYNC))
        for (unsigned i = 0; i < group->n; i++)
            if (i != c->index && random_one_in(r, 2)) {
                entry_end(&group->entries[i], sync && i < c->index ? SYNC : CANCEL);
                count(COUNT_siblings);
            }
    if (c->acts & ACT_OTHERS) {
        struct group *other = atomic_load_explicit(&group_cells[random_below(r, N_GROUP_CELLS)], memory_order_acquire);
        if (other != NULL)
            entry_end(&other->entries[random_below(r, N_GROUP)], random_one_in(r, 3) ? RELEASE : CANCEL);
    }
    if (c->acts & ACT_RELEASE)
        wr_release(
            atomic_exchange_explicit(&subject_cells[random_below(r, N_GROUP_CELLS)], NULL, memory_order_acq_rel));
}

static void callback(wr_weak *dead, void *ctx)
{
    struct context *c = ctx;
    if (c->magic != MAGIC)
        violation("a callback ran with memory that was freed: after WR_CANCELLED, or after cancel_sync, or twice");
    CHECK(c->wrote == 0);
    c->wrote = MAGIC;
    CHECK(wr_weak_is_dead(dead));
    count(COUNT_delivered);
    tally_add(&tally_of(c->queue)->delivered, 1);
    callback_depth++;
    if (c->group != NULL) {
        struct random r;
        random_start(&r, options.seed, atomic_load_explicit(&round_now, memory_order_relaxed), (uintptr_t)c);
        act(c, &r);
    }
    callback_depth--;
    if (c->frees)
        context_free(c);
}

/* ---- groups ----------------------------------------------------------------------------------------------------- */

/* @n watches on @subject, on queues of the bits in @which. */
static struct group *group_new(struct random *r, void *subject, unsigned n, unsigned which)
{
    struct group *group = calloc(1, sizeof *group);
    CHECK(group != NULL);
    group->n = n;
    for (unsigned i = 0; i < n; i++) {
        unsigned queue;
        do {
            queue = random_below(r, N_C);
        } while (!(which >> queue & 1));
        struct context *c = context_new(queue);
        struct entry *e = malloc(sizeof *e);
        CHECK(e != NULL);
        c->group = group;
        c->index = i;
        c->acts = (unsigned)(random_next(r) & random_next(r) & 63);
        c->frees = random_one_in(r, 2);
        *e = (struct entry){.context = c, .queue = queue, .frees = c->frees};
        tally_add(&tally_of(queue)->watched, 1);
        count(COUNT_watches);
        if (c->frees && queue != C_DEAD_END && random_one_in(r, 4)) {
            CHECK(wr_on_death(subject, cqueues[queue], callback, c) == 0);
            free(e);
            continue;
        }
        e->handle = wr_watch_new(subject, cqueues[queue], callback, c);
        CHECK(e->handle != NULL);
        atomic_store_explicit(&group->entries[i], e, memory_order_release);
    }
    group->next = atomic_load_explicit(&groups, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&groups, &group->next, group, memory_order_release,
                                                  memory_order_relaxed))
        ;
    return group;
}

/* ---- operations: watches ------------------------------------------------------------------------------------------- */

static unsigned any(struct worker *w, unsigned n)
{
    return random_below(&w->random, n);
}

static struct mine *mine_of(struct worker *w)
{
    return &mine[w->index];
}

/* Where somebody drains. */
static unsigned any_served_queue(struct worker *w)
{
    unsigned queue = any(w, N_C - 1);
    return queue < C_DEAD_END ? queue : queue + 1;
}

enum { ANY_QUEUE = (1 << N_C) - 1 };

static void linger(struct worker *w)
{
    for (unsigned i = any(w, 64); i > 0; i--)
        atomic_signal_fence(memory_order_seq_cst);
    if (any(w, 16) == 0)
        sched_yield();
}

static void op_make(struct worker *w)
{
    struct mine *m = mine_of(w);
    void **at = &m->subjects[any(w, N_MINE)];
    if (*at == NULL)
        *at = subject_new(&w->random);
    struct group *group = group_new(&w->random, *at, any(w, N_GROUP) + 1, ANY_QUEUE);
    m->groups[any(w, N_MINE)] = group;
    if (any(w, 2))
        atomic_store_explicit(&group_cells[any(w, N_GROUP_CELLS)], group, memory_order_release);
}

static void op_release(struct worker *w)
{
    void **at = &mine_of(w)->subjects[any(w, N_MINE)];
    void *subject = *at;
    *at = NULL;
    if (any(w, 2))
        subject = atomic_exchange_explicit(&subject_cells[any(w, N_GROUP_CELLS)], subject, memory_order_acq_rel);
    wr_release(subject);
}

static enum how any_how(struct worker *w)
{
    static const enum how often[] = {RELEASE, CANCEL, CANCEL, SYNC, SYNC};
    return often[any(w, sizeof often / sizeof *often)];
}

static void op_end(struct worker *w)
{
    struct group *group = any(w, 2) ? mine_of(w)->groups[any(w, N_MINE)]
                                    : atomic_load_explicit(&group_cells[any(w, N_GROUP_CELLS)], memory_order_acquire);
    if (group != NULL)
        entry_end(&group->entries[any(w, group->n)], any_how(w));
}

/* A death, by this thread or another, and the cancels of its watches, by both: at once. */
static void op_race(struct worker *w)
{
    void *subject = subject_new(&w->random);
    struct group *group = group_new(&w->random, subject, any(w, 3) + 1, any(w, 2) ? 1 << C_POOL : ANY_QUEUE);
    atomic_store_explicit(&group_cells[any(w, N_GROUP_CELLS)], group, memory_order_release);
    wr_release(atomic_exchange_explicit(&subject_cells[any(w, N_GROUP_CELLS)], subject, memory_order_acq_rel));
    linger(w);
    for (unsigned i = 0; i < group->n; i++)
        entry_end(&group->entries[i], any_how(w));
}

/* Watches whose queue nobody drains: their memory must not stay. */
static void op_pending(struct worker *w)
{
    unsigned n = any(w, N_GROUP) + 1;
    struct group *made[N_GROUP];
    for (unsigned i = 0; i < n; i++) {
        void *subject = subject_new(&w->random);
        made[i] = group_new(&w->random, subject, any(w, N_GROUP) + 1, 1 << C_DEAD_END);
        wr_release(subject);
    }
    for (unsigned i = 0; i < n; i++)
        for (unsigned k = 0, at = any(w, N_GROUP); k < N_GROUP; k++, at = (at + 1) % N_GROUP)
            entry_end(&made[i]->entries[at], any(w, 2) ? CANCEL : SYNC);
}

static void op_drain(struct worker *w)
{
    if (any(w, 4))
        wr_queue_drain(cqueues[C_HAND], any(w, 32) + 1);
    else
        wr_queue_drain_for(cqueues[C_HAND], any(w, 50000) + 1);
}

static void eternal_callback(wr_weak *dead, void *ctx)
{
    (void)dead, (void)ctx;
    tally_add(&eternal_ran, 1);
    tally_add(&tallies[C_HAND].delivered, 1);
}

/* On an object with many other watches. */
static void op_churn(struct worker *w)
{
    wr_watch *handles[N_CHURN];
    for (unsigned i = 0; i < N_CHURN; i++) {
        handles[i] = wr_watch_new(eternal, cqueues[C_HAND], eternal_callback, NULL);
        CHECK(handles[i] != NULL);
    }
    tally_add(&tallies[C_HAND].watched, N_CHURN);
    for (unsigned left = N_CHURN; left > 0; left--) {
        unsigned at = any(w, left);
        CHECK((any(w, 2) ? wr_watch_cancel(handles[at]) : wr_watch_cancel_sync(handles[at])) == WR_CANCELLED);
        wr_watch_release(handles[at]);
        handles[at] = handles[left - 1];
    }
    tally_add(&tallies[C_HAND].cancelled, N_CHURN);
    count_many(COUNT_churned, N_CHURN);
}

/* ---- operations: finalizers ---------------------------------------------------------------------------------------- */

static void finalize(void *ctx)
{
    struct context *c = ctx;
    if (c->magic != MAGIC)
        violation("a finalizer ran with memory that was freed: after it was detached, or twice");
    CHECK(c->wrote == 0);
    c->wrote = MAGIC;
    if (!calling) {
        count(COUNT_fin_ran);
        tally_add(&tally_of(c->queue)->delivered, 1);
    }
    context_free(c);
}

static void fin_end(struct fin *f, unsigned how)
{
    int answer = -ESTALE;
    void *obj, *ctx;
    void (*fn)(void *);
    switch (how) {
    case 0:
        calling = true;
        answer = wr_finalizer_call(f->finalizer);
        calling = false;
        count(answer == 0 ? COUNT_fin_called : COUNT_fin_late);
        break;
    case 1:
    case 2:
        answer = how == 1 ? wr_finalizer_detach(f->finalizer) : wr_finalizer_detach_sync(f->finalizer);
        count(answer == 0 ? COUNT_fin_detached : COUNT_fin_late);
        if (answer == 0)
            context_free(f->context);
        break;
    case 3:
        if (wr_finalizer_peek(f->finalizer, &obj, &fn, &ctx)) {
            CHECK(fn == finalize && ctx == f->context);
            CHECK(obj == NULL || ((struct subject *)obj)->magic == MAGIC);
            wr_release(obj);
        } else {
            CHECK(obj == NULL && fn == NULL && ctx == NULL && !wr_finalizer_alive(f->finalizer));
        }
        return;
    default:
        break;
    }
    if (answer == 0)
        tally_add(&tally_of(f->queue)->cancelled, 1);
    if (how < 3) {
        CHECK(answer == 0 || answer == -ESTALE);
        CHECK(!wr_finalizer_alive(f->finalizer) && wr_finalizer_call(f->finalizer) == -ESTALE);
    }
    wr_finalizer_release(f->finalizer);
    f->finalizer = NULL;
}

static void fin_drop(struct fin *f)
{
    if (f != NULL) {
        fin_end(f, 4);
        free(f);
    }
}

static void op_fin_make(struct worker *w)
{
    void *subject = any(w, 3) ? mine_of(w)->subjects[any(w, N_MINE)] : NULL;
    void *own = subject != NULL ? NULL : (subject = subject_new(&w->random));
    unsigned queue = any_served_queue(w);
    struct fin *f = malloc(sizeof *f);
    CHECK(f != NULL);
    *f = (struct fin){.context = context_new(queue), .queue = queue};
    tally_add(&tally_of(queue)->watched, 1);
    tally_add(&fins_made, 1);
    f->finalizer = wr_finalize(subject, cqueues[queue], finalize, f->context, any(w, 4) ? 0 : WR_FINALIZE_ATEXIT);
    CHECK(f->finalizer != NULL);
    fin_drop(atomic_exchange_explicit(&fin_cells[any(w, N_FIN_CELLS)], f, memory_order_acq_rel));
    wr_release(own); /* its death beside those who find it in the cell */
}

static void op_fin_end(struct worker *w)
{
    _Atomic(struct fin *) *cell = &fin_cells[any(w, N_FIN_CELLS)];
    struct fin *f = atomic_exchange_explicit(cell, NULL, memory_order_acq_rel);
    if (f == NULL)
        return;
    fin_end(f, any(w, 5));
    if (f->finalizer != NULL)
        fin_drop(atomic_exchange_explicit(cell, f, memory_order_acq_rel));
    else
        free(f);
}

/* ---- operations: methods ------------------------------------------------------------------------------------------- */

static int method_run(void *obj, void *arg)
{
    CHECK(((struct subject *)obj)->magic == MAGIC && wr_strong_count(obj) > 0);
    *(unsigned *)arg += 1;
    return 7;
}

static void op_method_make(struct worker *w)
{
    void *subject = mine_of(w)->subjects[any(w, N_MINE)];
    if (subject == NULL)
        return;
    wr_method *m = wr_method_new(subject, method_run), *same = wr_method_new(subject, method_run);
    CHECK(m != NULL && same != NULL && wr_method_equal(m, same) && wr_method_hash(m) == wr_method_hash(same));
    wr_method_release(same);
    wr_method_release(atomic_exchange_explicit(&method_cells[any(w, N_METHOD_CELLS)], m, memory_order_acq_rel));
}

static void op_method_call(struct worker *w)
{
    _Atomic(wr_method *) *cell = &method_cells[any(w, N_METHOD_CELLS)];
    wr_method *m = atomic_exchange_explicit(cell, NULL, memory_order_acq_rel);
    if (m == NULL)
        return;
    CHECK(wr_method_retain(m) == m);
    wr_method_release(atomic_exchange_explicit(cell, m, memory_order_acq_rel)); /* others use it meanwhile */
    unsigned ran = 0;
    int answer = wr_method_call(m, &ran);
    count(answer == 7 ? COUNT_method_calls : COUNT_method_dead);
    CHECK(ran == 1 ? answer == 7 : answer == -ESTALE && ran == 0 && wr_method_is_dead(m));
    if (any(w, 4) == 0) {
        unsigned queue = any_served_queue(w);
        struct context *c = context_new(queue);
        c->frees = true;
        tally_add(&tally_of(queue)->watched, 1);
        answer = wr_method_on_death(m, cqueues[queue], callback, c);
        CHECK(answer == 0 || (answer == -ESTALE && wr_method_is_dead(m)));
        if (answer != 0) {
            tally_add(&tally_of(queue)->watched, (uint64_t)-1);
            context_free(c);
        }
    }
    wr_method_release(m);
}

static const struct op cancel_ops[] = {
    {op_make, "watches", 60, MODE_CANCEL},
    {op_release, "releasing what is watched", 60, MODE_CANCEL},
    {op_end, "cancelling", 120, MODE_CANCEL},
    {op_race, "a death beside cancels", 80, MODE_CANCEL},
    {op_pending, "cancelling what is pending", 15, MODE_CANCEL},
    {op_drain, "wr_queue_drain", 40, MODE_CANCEL},
    {op_churn, "churn on a long-lived object", 20, MODE_CANCEL},
    {op_fin_make, "wr_finalize", 40, MODE_CANCEL},
    {op_fin_end, "ending finalizers", 60, MODE_CANCEL},
    {op_method_make, "wr_method_new", 20, MODE_CANCEL},
    {op_method_call, "wr_method_call", 40, MODE_CANCEL},
};

/* ---- the laws -------------------------------------------------------------------------------------------------- */

static const char *const cnames[N_C] = {"by hand", "pool", "dead end", "default", "inline"};

/* @settled: only the long-lived object's watches are armed. False: callbacks are pending or running. */
static bool check_queues(bool settled)
{
    for (unsigned q = 0; q < C_DEFAULT; q++) { /* the library's own: queues_verify() */
        struct wr_queue_stats s;
        wr_queue_stats(cqueues[q], &s);
        if (s.running != 0 || (q != C_DEAD_END && q != C_HAND && s.pending != 0) || (settled && s.pending != 0))
            return false;
        const struct tally *t = &tallies[q];
        uint64_t left = eternal != NULL && q == C_HAND ? N_ETERNAL : 0;
        if (s.watched != s.armed + s.pending + s.delivered + s.cancelled || s.watched != atomic_load(&t->watched) ||
            s.delivered != atomic_load(&t->delivered) || s.cancelled != atomic_load(&t->cancelled) ||
            (settled && s.armed != left))
            violation("queue %s: watched %llu, armed %llu, pending %llu, delivered %llu, cancelled %llu; counted here: "
                      "watched %llu, delivered %llu, cancelled %llu",
                      cnames[q], (unsigned long long)s.watched, (unsigned long long)s.armed,
                      (unsigned long long)s.pending, (unsigned long long)s.delivered, (unsigned long long)s.cancelled,
                      (unsigned long long)atomic_load(&t->watched), (unsigned long long)atomic_load(&t->delivered),
                      (unsigned long long)atomic_load(&t->cancelled));
    }
    return true;
}

static void rest(void)
{
    for (unsigned i = 0; i < 2; i++) {
        CHECK(wr_barrier() == 0);
        CHECK(wr_queue_barrier(wr_queue_default()) == 0);
        CHECK(wr_queue_barrier(cqueues[C_POOL]) == 0);
    }
}

static void cancel_quiet(void)
{
    do {
        rest();
    } while (!check_queues(false));
}

static bool cancel_settle(void)
{
    uint64_t before = count_sum(COUNT_delivered) + count_sum(COUNT_cancelled);
    for (unsigned i = 0; i < N_GROUP_CELLS; i++) {
        atomic_store(&group_cells[i], NULL);
        wr_release(atomic_exchange(&subject_cells[i], NULL));
    }
    for (unsigned i = 0; i < N_FIN_CELLS; i++)
        fin_drop(atomic_exchange(&fin_cells[i], NULL));
    for (unsigned i = 0; i < N_METHOD_CELLS; i++)
        wr_method_release(atomic_exchange(&method_cells[i], NULL));
    rest();
    size_t n = wr_queue_drain(cqueues[C_HAND], SIZE_MAX);
    rest();
    /* Those whose canceller frees are waited for; of the others the handles go. */
    for (struct group *g = atomic_load(&groups); g != NULL; g = g->next)
        for (unsigned i = 0; i < N_GROUP; i++)
            entry_end(&g->entries[i], RELEASE);
    return n > 0 || before != count_sum(COUNT_delivered) + count_sum(COUNT_cancelled);
}

static void cancel_verify(void)
{
    while (!check_queues(true))
        rest();
    for (struct group *g; (g = atomic_load(&groups)) != NULL; free(g))
        atomic_store(&groups, g->next);
    uint64_t ended = count_sum(COUNT_fin_ran) + count_sum(COUNT_fin_called) + count_sum(COUNT_fin_detached);
    if (ended != atomic_load(&fins_made) || atomic_load(&contexts) != 0)
        violation("%llu finalizers, %llu were run or detached; %llu contexts are left",
                  (unsigned long long)atomic_load(&fins_made), (unsigned long long)ended,
                  (unsigned long long)atomic_load(&contexts));
    CHECK(atomic_load(&eternal_ran) == 0);
}

static void cancel_enter(struct worker *w)
{
    (void)w;
}

static void cancel_leave(struct worker *w)
{
    struct mine *m = mine_of(w);
    for (unsigned i = 0; i < N_MINE; i++)
        wr_release(m->subjects[i]);
    memset(m, 0, sizeof *m);
}

static void cancel_start(void)
{
    mine = calloc(options.n_threads, sizeof *mine);
    cqueues[C_HAND] = wr_queue_new("cancel by hand");
    cqueues[C_POOL] = wr_queue_new("cancel pool");
    cqueues[C_DEAD_END] = wr_queue_new("cancel dead end");
    cqueues[C_DEFAULT] = wr_queue_default();
    cqueues[C_INLINE] = WR_QUEUE_INLINE;
    CHECK(mine != NULL && cqueues[C_HAND] != NULL && cqueues[C_POOL] != NULL && cqueues[C_DEAD_END] != NULL);
    CHECK(wr_queue_start(cqueues[C_POOL], 3) == 0);
    struct random r;
    random_start(&r, options.seed, 0, 79);
    eternal = subject_new(&r);
    for (unsigned i = 0; i < N_ETERNAL; i++)
        CHECK(wr_on_death(eternal, cqueues[C_HAND], eternal_callback, NULL) == 0);
    tally_add(&tallies[C_HAND].watched, N_ETERNAL);
}

static void cancel_stop(void)
{
    enum { ENOUGH = 200000 };
    wr_release(eternal);
    eternal = NULL;
    CHECK(wr_barrier() == 0);
    CHECK(wr_queue_drain(cqueues[C_HAND], SIZE_MAX) == N_ETERNAL && atomic_load(&eternal_ran) == N_ETERNAL);
    CHECK(check_queues(true));
    CHECK(wr_queue_stop(cqueues[C_POOL]) == 0);
    for (unsigned q = 0; q < C_DEFAULT; q++)
        wr_queue_free(cqueues[q]);
    free(mine);
    static const enum count answers[] = {COUNT_cancelled,    COUNT_running,  COUNT_too_late,    COUNT_deadlk,
                                         COUNT_fin_ran,      COUNT_fin_late, COUNT_fin_called,  COUNT_fin_detached,
                                         COUNT_method_calls, COUNT_siblings, COUNT_method_dead, COUNT_churned};
    races_verify(answers, sizeof answers / sizeof *answers, count_sum(COUNT_watches) >= ENOUGH);
}

const struct part cancel_part = {
    .mode = MODE_CANCEL,
    .ops = cancel_ops,
    .n_ops = sizeof cancel_ops / sizeof *cancel_ops,
    .start = cancel_start,
    .enter = cancel_enter,
    .leave = cancel_leave,
    .quiet = cancel_quiet,
    .settle = cancel_settle,
    .verify = cancel_verify,
    .stop = cancel_stop,
};
