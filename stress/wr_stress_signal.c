/* wr-stress: signals that come and go, emitters, and receivers that connect, disconnect and die meanwhile.
 *
 * A post is a signal and what is known of it; posts stand in places (wr_stress.h). A receiver is an object with a
 * function for each of its connections (links). What a handler works on beside its object, the link, is memory of its
 * own, freed once wr_signal_disconnect_sync() has returned, or in the receiver's destroy.
 *
 * Receivers are LOOSE: who holds one connects and disconnects, and handlers keep to their own link; or FIXED: connected when
 * they are made, and then their handlers disconnect themselves and each other.
 *
 * Each emission notes whom it called: nobody twice, in order of connection, nobody who connected after it began. Its
 * emitter knows links that are its own throughout: each must have been called.
 */
#include "wr_stress.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum {
    N_PLACES = 4,
    N_CELLS_HERE = 12,
    N_FN = 6,
    N_MINE = 4,
    N_SHOTS = 4,
    MOST_NUMBERS = 32768, /* connections of one signal */
    DEPTH_MOST = 3
};
#define MAGIC UINT64_C(0x7369676e616c2121)
#define NOT_YET UINT64_MAX

struct post {
    struct tenant tenant;
    struct place *place;
    wr_signal *signal;
    struct post *next; /* of all this round */
    _Atomic uint64_t clock;
    _Atomic unsigned numbers;
    _Atomic int64_t connected;
    _Atomic bool freeing, freed;
};

struct link {
    uint64_t magic;
    struct post *post;
    unsigned number;
    _Atomic(wr_connection *) handle; /* owned by who takes it */
    _Atomic uint64_t before, after;  /* the post's clock around the connecting */
    _Atomic bool off;                /* disconnected by a call */
    _Atomic bool over;               /* disconnect_sync has returned */
    bool steady;                     /* no handler disconnects it */
    uint64_t touched[TOUCHERS];      /* by handlers, plain; read by who waited for them */
    _Atomic uint64_t told;
};

struct receiver {
    uint64_t magic;
    bool fixed;
    struct link *links[N_FN];
};

/* One emission; handlers get it as their argument. */
struct emission {
    struct post *post;
    struct worker *worker;
    size_t n;
    uint64_t latest; /* `before` of those called */
    uint64_t began;  /* the clock at the first handler */
    bool quiet;
    uint64_t called[MOST_NUMBERS / 64];
};

/* A signal for one emission, which another thread frees meanwhile. */
struct shot {
    struct shot *next;
    wr_signal *signal;
    struct receiver *receivers[3];
    _Atomic bool begun, done;
    _Atomic unsigned ran;
};

struct mine {
    struct post *lease[N_PLACES];
    struct receiver *receivers[N_MINE];
    struct shot *shot;
    unsigned depth; /* of emissions */
};

static struct place places[N_PLACES];
static struct post *posts; /* Guarded by posts_lock */
static pthread_mutex_t posts_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic(void *) cells[N_CELLS_HERE]; /* receivers, owned */
static _Atomic(struct shot *) shots[N_SHOTS], all_shots;
static struct mine *mine;

static struct mine *mine_of(struct worker *w)
{
    return &mine[w->index];
}

/* ---- posts ------------------------------------------------------------------------------------------------------ */

static struct post *post_new(struct place *place)
{
    struct post *p = calloc(1, sizeof *p);
    CHECK(p != NULL);
    p->signal = wr_signal_new("stress");
    CHECK(p->signal != NULL);
    atomic_init(&p->tenant.users, 1);
    p->place = place;
    pthread_mutex_lock(&posts_lock);
    p->next = posts;
    posts = p;
    pthread_mutex_unlock(&posts_lock);
    return p;
}

static void post_free(struct post *p)
{
    count(COUNT_signals_freed);
    atomic_store_explicit(&p->freeing, true, memory_order_relaxed);
    wr_signal_free(p->signal);
    atomic_store_explicit(&p->freed, true, memory_order_relaxed);
}

static void post_leave(struct post *p)
{
    if (tenant_leave(&p->tenant))
        post_free(p);
}

static bool post_replace(struct post *p)
{
    struct post *new = post_new(p->place);
    if (place_swap(p->place, &p->tenant, &new->tenant))
        return true;
    post_leave(new);
    return false;
}

static uint64_t tick(struct post *p)
{
    /* Relaxed: one object's order of changes is enough, and nothing here may order what the library has to order. */
    return atomic_fetch_add_explicit(&p->clock, 1, memory_order_relaxed) + 1;
}

/* ---- links ------------------------------------------------------------------------------------------------------ */

static int handler_0(void *obj, void *arg), handler_1(void *obj, void *arg), handler_2(void *obj, void *arg),
    handler_3(void *obj, void *arg), handler_4(void *obj, void *arg), handler_5(void *obj, void *arg);
static wr_method_fn *const handlers[N_FN] = {handler_0, handler_1, handler_2, handler_3, handler_4, handler_5};

static void link_off(struct link *l)
{
    if (!atomic_exchange_explicit(&l->off, true, memory_order_relaxed))
        atomic_fetch_sub_explicit(&l->post->connected, 1, memory_order_relaxed);
}

/* A place for function @at of @r; false: the signal has had enough. */
static bool link_make(struct receiver *r, unsigned at, struct post *p, struct random *random)
{
    unsigned number = atomic_fetch_add_explicit(&p->numbers, 1, memory_order_relaxed);
    if (number >= MOST_NUMBERS)
        return false;
    struct link *l = calloc(1, sizeof *l);
    CHECK(l != NULL);
    l->magic = MAGIC;
    l->post = p;
    l->number = number;
    l->steady = !r->fixed && random_one_in(random, 2);
    atomic_init(&l->after, NOT_YET);
    r->links[at] = l;
    return true;
}

/* The caller has a part of the post, or stands in an emission of it. */
static void link_connect(struct receiver *r, unsigned at, struct random *random)
{
    struct link *l = r->links[at];
    struct post *p = l->post;
    atomic_store_explicit(&l->before, tick(p), memory_order_relaxed);
    wr_connection *handle = NULL;
    int error;
    /* Before, so that a handler that disconnects at once does not take it below. */
    atomic_fetch_add_explicit(&p->connected, 1, memory_order_relaxed);
    bool without = random_one_in(random, 6);
    if (random_one_in(random, 3)) {
        wr_method *m = wr_method_new(r, handlers[at]);
        CHECK(m != NULL);
        error = wr_signal_connect_method(p->signal, m, without ? NULL : &handle);
        wr_method_release(m);
    } else {
        error = wr_signal_connect(p->signal, r, handlers[at], without ? NULL : &handle);
    }
    if (error != 0) {
        CHECK(error == -ECANCELED && atomic_load_explicit(&p->freed, memory_order_relaxed));
        link_off(l);
        return;
    }
    count(COUNT_connects);
    atomic_store_explicit(&l->after, tick(p), memory_order_relaxed);
    atomic_store_explicit(&l->handle, handle, memory_order_release);
}

/* With its handle, which the caller has taken. */
static void disconnect(struct link *l, wr_connection *handle)
{
    int answer = wr_signal_disconnect(handle);
    count(answer == 1 ? COUNT_disconnects : COUNT_disconnects_late);
    CHECK(answer == 1 || (answer == 0 && (atomic_load_explicit(&l->off, memory_order_relaxed) ||
                                          atomic_load_explicit(&l->post->freeing, memory_order_relaxed))));
    CHECK(!wr_connection_is_connected(handle));
    CHECK(wr_signal_disconnect(handle) == 0);
    link_off(l);
}

static void link_free(struct link *l)
{
    uint64_t touched = 0;
    for (unsigned i = 0; i < TOUCHERS; i++)
        touched += l->touched[i];
    CHECK(l->magic == MAGIC && touched == atomic_load_explicit(&l->told, memory_order_relaxed));
    memset(l, 0xdd, sizeof *l);
    free(l);
}

/* ---- receivers -------------------------------------------------------------------------------------------------- */

static void receiver_destroy(void *obj)
{
    struct receiver *r = obj;
    CHECK(r->magic == MAGIC);
    r->magic = 0;
    for (unsigned i = 0; i < N_FN; i++) {
        struct link *l = r->links[i];
        if (l == NULL)
            continue;
        wr_connection *handle = atomic_exchange_explicit(&l->handle, NULL, memory_order_acq_rel);
        CHECK(!wr_connection_is_connected(handle)); /* by the death */
        wr_connection_release(handle);
        link_off(l);
        link_free(l);
    }
}

static const wr_type receiver_types[] = {
    {.name = "receiver", .size = sizeof(struct receiver), .destroy = receiver_destroy},
    {.name = "deferred receiver",
     .size = sizeof(struct receiver),
     .destroy = receiver_destroy,
     .flags = WR_TYPE_DEFERRED},
};

static struct receiver *receiver_new(struct random *random, bool fixed)
{
    struct receiver *r = wr_new(&receiver_types[random_one_in(random, 6)]);
    CHECK(r != NULL);
    r->magic = MAGIC;
    r->fixed = fixed;
    return r;
}

/* ---- handlers --------------------------------------------------------------------------------------------------- */

static void emit(struct worker *w, struct post *p, bool quiet);

static void act_free(struct worker *w, struct post *p)
{
    struct mine *m = mine_of(w);
    struct post **lease = &m->lease[p->place - places];
    if (*lease != p || !post_replace(p))
        return;
    if (!tenant_leave_alone(&p->tenant, 2)) {
        post_leave(p);
        return;
    }
    *lease = NULL;
    count(COUNT_signals_freed_inside);
    post_free(p);
}

static void act_disconnect(struct link *l, struct random *r, bool own)
{
    wr_connection *handle = l->steady ? NULL : atomic_exchange_explicit(&l->handle, NULL, memory_order_acq_rel);
    if (handle == NULL)
        return;
    if (own && random_one_in(r, 2)) {
        CHECK(wr_signal_disconnect_sync(handle) == -EDEADLK);
        count(COUNT_disconnects_own);
        link_off(l);
    } else {
        disconnect(l, handle);
    }
    wr_connection_release(handle);
}

static void act(struct emission *e, struct receiver *r, struct link *l)
{
    struct worker *w = e->worker;
    struct random *random = &w->random;
    struct post *p = e->post;
    switch (random_below(random, 32)) {
    case 0:
        act_disconnect(l, random, true);
        break;
    case 1:
        if (r->fixed) {
            struct link *other = r->links[random_below(random, N_FN)];
            if (other != NULL)
                act_disconnect(other, random, other == l);
        }
        break;
    case 2: {
        struct receiver *new = receiver_new(random, true);
        unsigned at = random_below(random, N_FN);
        if (link_make(new, at, p, random))
            link_connect(new, at, random); /* the signal may be freed by now: refused */
        wr_release(atomic_exchange_explicit(&cells[random_below(random, N_CELLS_HERE)], new, memory_order_acq_rel));
        break;
    }
    case 3:
        wr_release(atomic_exchange_explicit(&cells[random_below(random, N_CELLS_HERE)], NULL, memory_order_acq_rel));
        break;
    case 4:
        if (mine_of(w)->depth < DEPTH_MOST && !atomic_load_explicit(&p->freed, memory_order_relaxed))
            emit(w, p, false);
        break;
    case 5:
        if (random_one_in(random, 32))
            act_free(w, p);
        break;
    case 6:
        sched_yield();
    }
}

static int handle(void *obj, void *arg, unsigned at)
{
    struct receiver *r = obj;
    struct emission *e = arg;
    struct link *l = r->links[at];
    CHECK(r->magic == MAGIC && wr_strong_count(obj) > 0);
    if (l == NULL || l->magic != MAGIC)
        violation("a handler started with memory that was freed after disconnect_sync");
    if (atomic_load_explicit(&l->over, memory_order_relaxed))
        violation("a handler started after disconnect_sync had returned");
    CHECK(e->worker == worker_self() && e->post == l->post);
    if (e->quiet && atomic_load_explicit(&l->off, memory_order_relaxed))
        violation("a handler started after its disconnect, and nothing else moved");
    count(COUNT_handlers);

    uint64_t bit = UINT64_C(1) << l->number % 64, *word = &e->called[l->number / 64];
    if (*word & bit)
        violation("connection %u was called twice by one emission", l->number);
    *word |= bit;
    if (e->n++ == 0)
        e->began = tick(e->post);
    uint64_t before = atomic_load_explicit(&l->before, memory_order_relaxed);
    if (before > e->began)
        violation("connection %u is newer than the emission that called it", l->number);
    if (atomic_load_explicit(&l->after, memory_order_relaxed) < e->latest)
        violation("connection %u was called after a younger one", l->number);
    e->latest = before > e->latest ? before : e->latest;

    unsigned index = e->worker->index;
    if (index < TOUCHERS) {
        l->touched[index]++;
        atomic_fetch_add_explicit(&l->told, 1, memory_order_relaxed);
    }
    if (!e->quiet)
        act(e, r, l);
    return 1; /* ignored */
}

#define HANDLER(n)                               \
    static int handler_##n(void *obj, void *arg) \
    {                                            \
        return handle(obj, arg, n);              \
    }
HANDLER(0)
HANDLER(1)
HANDLER(2)
HANDLER(3)
HANDLER(4)
HANDLER(5)

static bool was_called(const struct emission *e, const struct link *l)
{
    return e->called[l->number / 64] >> l->number % 64 & 1;
}

static void emit(struct worker *w, struct post *p, bool quiet)
{
    struct mine *m = mine_of(w);
    struct emission e;
    memset(&e, 0, sizeof e);
    e.post = p;
    e.worker = w;
    e.quiet = quiet;
    m->depth++;
    size_t n = wr_signal_emit(p->signal, &e);
    m->depth--;
    count(COUNT_emissions);
    if (n != e.n)
        violation("wr_signal_emit() answers %zu, and %zu handlers ran", n, e.n);
    if (quiet && ((int64_t)n != atomic_load(&p->connected) || wr_signal_len(p->signal) != n))
        violation("%zu handlers ran, len is %zu, and %lld are connected", n, wr_signal_len(p->signal),
                  (long long)atomic_load(&p->connected));
    if (atomic_load_explicit(&p->freed, memory_order_relaxed))
        return;
    for (unsigned i = 0; i < N_MINE; i++)
        for (unsigned k = 0; m->receivers[i] != NULL && !m->receivers[i]->fixed && k < N_FN; k++) {
            struct link *l = m->receivers[i]->links[k];
            if (l != NULL && l->steady && l->post == p && !atomic_load_explicit(&l->off, memory_order_relaxed) &&
                !was_called(&e, l))
                violation("connection %u was there throughout an emission, and was not called", l->number);
        }
}

/* ---- operations ------------------------------------------------------------------------------------------------- */

static unsigned any(struct worker *w, unsigned n)
{
    return random_below(&w->random, n);
}

static struct post *any_post(struct worker *w)
{
    struct post **lease = &mine_of(w)->lease[any(w, N_PLACES)];
    if (*lease == NULL)
        *lease = (struct post *)place_enter(&places[lease - mine_of(w)->lease]);
    return *lease;
}

static void op_lease(struct worker *w)
{
    struct post **lease = &mine_of(w)->lease[any(w, N_PLACES)];
    struct post *old = *lease;
    *lease = NULL;
    if (old != NULL)
        post_leave(old);
}

static void op_replace(struct worker *w)
{
    struct post *p = any_post(w);
    if (post_replace(p))
        post_leave(p);
}

static void op_emit(struct worker *w)
{
    emit(w, any_post(w), false);
}

static void op_make(struct worker *w)
{
    struct receiver **at = &mine_of(w)->receivers[any(w, N_MINE)];
    wr_release(*at);
    *at = receiver_new(&w->random, any(w, 3) == 0);
    if (!(*at)->fixed)
        return;
    /* All places first: handlers of the first look at them. */
    unsigned n = 0, most = any(w, N_FN) + 1;
    while (n < most && link_make(*at, n, any_post(w), &w->random))
        n++;
    for (unsigned i = 0; i < n; i++)
        link_connect(*at, i, &w->random);
}

/* Takes a LOOSE receiver's link away. */
static void link_end(struct worker *w, struct receiver *r, unsigned at)
{
    struct link *l = r->links[at];
    wr_connection *handle = atomic_exchange_explicit(&l->handle, NULL, memory_order_acq_rel);
    if (handle == NULL)
        return; /* a handler has it, or nobody: it stays to the end */
    if (any(w, 4) == 0) {
        disconnect(l, handle);
        if (any(w, 2)) { /* not waited for: it stays to the end */
            wr_connection_release(handle);
            return;
        }
    }
    CHECK(wr_signal_disconnect_sync(handle) == 0);
    atomic_store_explicit(&l->over, true, memory_order_relaxed);
    count(COUNT_disconnects_sync);
    CHECK(!wr_connection_is_connected(handle) && wr_signal_disconnect(handle) == 0);
    link_off(l);
    r->links[at] = NULL;
    link_free(l);
    wr_connection_release(handle);
}

static void op_connect(struct worker *w)
{
    struct receiver *r = mine_of(w)->receivers[any(w, N_MINE)];
    if (r == NULL || r->fixed)
        return;
    unsigned at = any(w, N_FN);
    if (r->links[at] != NULL)
        link_end(w, r, at);
    else if (link_make(r, at, any_post(w), &w->random))
        link_connect(r, at, &w->random);
}

static void op_give(struct worker *w)
{
    struct receiver **at = &mine_of(w)->receivers[any(w, N_MINE)];
    *at = atomic_exchange_explicit(&cells[any(w, N_CELLS_HERE)], *at, memory_order_acq_rel);
}

/* Lets it die, connected or not; handlers of it may be running, and keep it to their end. */
static void op_release(struct worker *w)
{
    struct receiver **at = &mine_of(w)->receivers[any(w, N_MINE)];
    wr_release(*at);
    *at = NULL;
}

static void op_len(struct worker *w)
{
    struct post *p = any_post(w);
    CHECK(wr_signal_len(p->signal) <= MOST_NUMBERS);
    struct receiver *r = mine_of(w)->receivers[any(w, N_MINE)];
    if (r == NULL || r->fixed)
        return;
    for (unsigned i = 0; i < N_FN; i++) {
        struct link *l = r->links[i];
        wr_connection *handle = l != NULL && l->steady ? atomic_load(&l->handle) : NULL;
        if (handle == NULL)
            continue;
        bool freed = atomic_load(&l->post->freed), connected = wr_connection_is_connected(handle);
        CHECK(!(connected && freed));
        CHECK(connected || atomic_load(&l->off) || atomic_load(&l->post->freeing));
    }
}

/* ---- freed beside an emission ---------------------------------------------------------------------------------- */

static int shot_handler(void *obj, void *arg)
{
    struct shot *s = arg;
    CHECK(((struct receiver *)obj)->magic == MAGIC);
    atomic_fetch_add_explicit(&s->ran, 1, memory_order_relaxed);
    atomic_store_explicit(&s->begun, true, memory_order_relaxed);
    sched_yield();
    return 0;
}

/* Its maker's part: frees the signal, alone or beside the emission of who took it. */
static void shot_end(struct worker *w)
{
    struct shot *s = mine_of(w)->shot;
    mine_of(w)->shot = NULL;
    if (s == NULL)
        return;
    bool taken = true;
    for (unsigned i = 0; i < N_SHOTS; i++) {
        struct shot *expected = s;
        if (atomic_compare_exchange_strong(&shots[i], &expected, NULL))
            taken = false;
    }
    if (taken) {
        while (!atomic_load_explicit(&s->begun, memory_order_relaxed))
            sched_yield(); /* who took it is about to emit, and all three live */
        if (!atomic_load_explicit(&s->done, memory_order_relaxed))
            count(COUNT_signals_freed_beside);
    }
    wr_signal_free(s->signal);
    for (unsigned i = 0; i < 3; i++)
        wr_release(s->receivers[i]);
}

static void op_shot(struct worker *w)
{
    shot_end(w);
    struct shot *s = calloc(1, sizeof *s);
    CHECK(s != NULL);
    s->signal = wr_signal_new("shot");
    CHECK(s->signal != NULL);
    for (unsigned i = 0; i < 3; i++) {
        s->receivers[i] = receiver_new(&w->random, true);
        CHECK(wr_signal_connect(s->signal, s->receivers[i], shot_handler, NULL) == 0);
    }
    s->next = atomic_load_explicit(&all_shots, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&all_shots, &s->next, s, memory_order_release, memory_order_relaxed))
        ;
    mine_of(w)->shot = s;
    s = atomic_exchange_explicit(&shots[any(w, N_SHOTS)], s, memory_order_acq_rel);
    if (s == NULL)
        return;
    size_t n = wr_signal_emit(s->signal, s);
    CHECK(n == atomic_load_explicit(&s->ran, memory_order_relaxed) && n >= 1 && n <= 3);
    atomic_store_explicit(&s->done, true, memory_order_relaxed);
}

static const struct op signal_ops[] = {
    {op_lease, "coming and going", 30, MODE_SIGNAL},
    {op_replace, "replacing a signal", 2, MODE_SIGNAL},
    {op_emit, "wr_signal_emit", 60, MODE_SIGNAL},
    {op_make, "receivers", 20, MODE_SIGNAL},
    {op_connect, "connecting and disconnecting", 150, MODE_SIGNAL},
    {op_give, "sharing a receiver", 40, MODE_SIGNAL},
    {op_release, "releasing a receiver", 15, MODE_SIGNAL},
    {op_len, "wr_signal_len", 20, MODE_SIGNAL},
    {op_shot, "wr_signal_free beside an emission", 15, MODE_SIGNAL},
};

/* ---- the laws -------------------------------------------------------------------------------------------------- */

static void signal_quiet(void)
{
    CHECK(wr_barrier() == 0);
    for (unsigned i = 0; i < N_PLACES; i++)
        emit(worker_self(), (struct post *)places[i].tenant, true);
}

static bool signal_settle(void)
{
    bool moved = false;
    for (unsigned i = 0; i < N_CELLS_HERE; i++) {
        struct receiver *r = atomic_exchange(&cells[i], NULL);
        moved = moved || r != NULL;
        wr_release(r);
    }
    CHECK(wr_barrier() == 0);
    return moved;
}

static void signal_verify(void)
{
    signal_quiet();
    for (struct post **link = &posts, *p; (p = *link) != NULL;) {
        CHECK(atomic_load(&p->connected) == 0);
        if (!atomic_load(&p->freed)) {
            CHECK(wr_signal_len(p->signal) == 0 && atomic_load(&p->tenant.users) == 1);
            link = &p->next;
            continue;
        }
        *link = p->next;
        free(p);
    }
    for (struct shot *s; (s = atomic_load(&all_shots)) != NULL; free(s))
        atomic_store(&all_shots, s->next);
    /* Numbers are used up. */
    for (unsigned i = 0; i < N_PLACES; i++) {
        struct post *p = (struct post *)places[i].tenant;
        if (atomic_load(&p->numbers) > MOST_NUMBERS / 2) {
            CHECK(post_replace(p));
            post_leave(p);
        }
    }
}

static void signal_enter(struct worker *w)
{
    (void)w;
}

static void signal_leave(struct worker *w)
{
    struct mine *m = mine_of(w);
    shot_end(w);
    for (unsigned i = 0; i < N_MINE; i++)
        wr_release(m->receivers[i]);
    for (unsigned i = 0; i < N_PLACES; i++)
        if (m->lease[i] != NULL)
            post_leave(m->lease[i]);
    memset(m, 0, sizeof *m);
}

static void signal_start(void)
{
    mine = calloc(options.n_threads, sizeof *mine);
    CHECK(mine != NULL);
    for (unsigned i = 0; i < N_PLACES; i++) {
        pthread_mutex_init(&places[i].lock, NULL);
        places[i].tenant = &post_new(&places[i])->tenant;
    }
}

static void signal_stop(void)
{
    enum { ENOUGH = 200000 };
    while (posts != NULL) {
        struct post *p = posts;
        posts = p->next;
        if (!atomic_load(&p->freed))
            post_free(p);
        free(p);
    }
    free(mine);
    static const enum count races[] = {COUNT_disconnects,          COUNT_disconnects_late,    COUNT_disconnects_sync,
                                       COUNT_disconnects_own,      COUNT_signals_freed,       COUNT_handlers,
                                       COUNT_signals_freed_inside, COUNT_signals_freed_beside};
    races_verify(races, sizeof races / sizeof *races, count_sum(COUNT_connects) >= ENOUGH);
}

const struct part signal_part = {
    .mode = MODE_SIGNAL,
    .ops = signal_ops,
    .n_ops = sizeof signal_ops / sizeof *signal_ops,
    .start = signal_start,
    .enter = signal_enter,
    .leave = signal_leave,
    .quiet = signal_quiet,
    .settle = signal_settle,
    .verify = signal_verify,
    .stop = signal_stop,
};
