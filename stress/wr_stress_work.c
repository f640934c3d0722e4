/* wr-stress: what a worker does in a round. */
#include "wr_stress.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum { N_HELD = 12, N_OWN = 40 };

struct hands {
    void *held[N_HELD];
    wr_weak *weak[N_HELD], *weak_deferred[N_HELD]; /* the latter of deferred types alone: may be peeked */
    struct watch *watches[N_HELD];
    void *own[N_OWN]; /* in dictionaries, under keys that no other worker uses */
};

static unsigned any(struct worker *w, unsigned n)
{
    return random_below(&w->random, n);
}

static void **any_held(struct worker *w)
{
    return &w->hands->held[any(w, N_HELD)];
}

void *worker_held(struct worker *w)
{
    void *obj = *any_held(w);
    if (obj != NULL)
        object_touch(obj);
    return obj;
}

/* @obj: [consumed] may be NULL. */
void worker_keep(struct worker *w, void *obj)
{
    if (obj != NULL)
        object_touch(obj);
    void **place = any_held(w);
    void *old = *place;
    *place = obj;
    wr_release(old);
}

static void linger(struct worker *w)
{
    for (unsigned i = any(w, 64); i > 0; i--)
        atomic_signal_fence(memory_order_seq_cst);
    if (random_one_in(&w->random, 64))
        sched_yield();
}

/* ---- strong references ------------------------------------------------------------------------------------ */

static void op_new(struct worker *w)
{
    void *child = any(w, 2) ? worker_held(w) : NULL;
    if (child != NULL)
        wr_retain(child);
    uint32_t key = any(w, 3) ? any(w, N_KEYS) : NO_KEY;
    worker_keep(w, object_new(object_kind_random(&w->random), key, child));
}

/* Deep: each node owns the next. Deferred ones are short: every link takes a grace period. */
static void op_chain(struct worker *w)
{
    bool deferred = any(w, 4) == 0;
    unsigned n = objects_left() / (4 * options.n_threads), most = deferred ? 6 : 3000;
    n = any(w, n < most ? n + 1 : most);
    void *head = NULL;
    for (unsigned i = 0; i < n; i++) {
        void *next = object_new(deferred ? DEFERRED : any(w, 2) ? PLAIN : SIZED, NO_KEY, head);
        if (next == NULL)
            return; /* head went with it */
        head = next;
    }
    worker_keep(w, head);
}

static void op_retain(struct worker *w)
{
    void *obj = worker_held(w);
    if (obj != NULL) {
        CHECK(wr_retain(obj) == obj);
        worker_keep(w, obj);
    }
}

static void op_release(struct worker *w)
{
    worker_keep(w, NULL);
}

static void op_release_later(struct worker *w)
{
    void **place = any_held(w);
    if (*place != NULL)
        count(COUNT_released_later);
    wr_release_later(*place);
    *place = NULL;
}

static void op_give(struct worker *w)
{
    void **place = any_held(w);
    _Atomic(void *) *cell = &shared.strong[any(w, N_CELLS)];
    *place = atomic_exchange_explicit(cell, *place, memory_order_acq_rel);
    if (*place != NULL)
        object_touch(*place);
}

static void op_survive(struct worker *w)
{
    void **place = any_held(w);
    if (*place != NULL && random_one_in(&w->random, 8)) {
        void *obj = atomic_exchange_explicit(&shared.survivors[any(w, N_SURVIVORS)], *place, memory_order_acq_rel);
        *place = NULL;
        worker_keep(w, obj);
    }
}

static void op_describe(struct worker *w)
{
    char text[64];
    void *obj = worker_held(w);
    if (obj == NULL)
        return;
    CHECK(wr_describe(obj, text, sizeof text) > 0);
    CHECK(text[0] == '<' && strlen(text) < sizeof text);
    CHECK(wr_strong_count(obj) > 0);
    wr_weak *weak = wr_downgrade(obj);
    CHECK(wr_weak_describe(weak, text, sizeof text) > 0);
    CHECK(strstr(text, "; dead>") == NULL);
    (void)wr_weak_count(obj); /* exact at the round's end; here others watch the object and let go */
    wr_weak_release(weak);
}

/* ---- weak handles ------------------------------------------------------------------------------------------ */

static wr_weak **any_weak(struct worker *w, bool *deferred)
{
    *deferred = any(w, 2);
    return &(*deferred ? w->hands->weak_deferred : w->hands->weak)[any(w, N_HELD)];
}

static void op_downgrade(struct worker *w)
{
    void *obj = worker_held(w);
    if (obj == NULL)
        return;
    bool deferred = kind_is_deferred((enum kind)object_check(obj)->kind) && any(w, 4);
    wr_weak **place = &(deferred ? w->hands->weak_deferred : w->hands->weak)[any(w, N_HELD)];
    wr_weak *weak = wr_downgrade(obj);
    CHECK(wr_weak_is(weak, obj));
    CHECK(!wr_weak_is_dead(weak));
    wr_weak_release(*place);
    *place = weak;
}

static void op_weak_give(struct worker *w)
{
    bool deferred;
    wr_weak **place = any_weak(w, &deferred);
    *place = atomic_exchange_explicit(&(deferred ? shared.weak_deferred : shared.weak)[any(w, N_CELLS)], *place,
                                      memory_order_acq_rel);
}

/* A second handle, to somebody else. */
static void op_weak_retain(struct worker *w)
{
    bool deferred;
    wr_weak *weak = *any_weak(w, &deferred);
    if (weak == NULL)
        return;
    CHECK(wr_weak_retain(weak) == weak);
    wr_weak_release(atomic_exchange_explicit(&(deferred ? shared.weak_deferred : shared.weak)[any(w, N_CELLS)], weak,
                                             memory_order_acq_rel));
}

static void op_weak_release(struct worker *w)
{
    bool deferred;
    wr_weak **place = any_weak(w, &deferred);
    wr_weak_release(*place);
    *place = NULL;
}

static void *upgrade(wr_weak *weak)
{
    void *obj = wr_upgrade(weak);
    count(obj != NULL ? COUNT_upgrades_won : COUNT_upgrades_lost);
    if (obj != NULL) {
        object_touch(obj);
        CHECK(wr_weak_is(weak, obj));
    } else {
        CHECK(wr_weak_is_dead(weak));
    }
    return obj;
}

static void op_upgrade(struct worker *w)
{
    bool deferred;
    wr_weak **place = any_weak(w, &deferred);
    if (*place == NULL)
        return;
    void *obj = upgrade(*place);
    if (obj != NULL) {
        worker_keep(w, obj);
    } else {
        CHECK(wr_upgrade(*place) == NULL); /* final */
        wr_weak_release(*place);
        *place = NULL;
    }
}

/* A few times through zero, if this is the only reference, against whoever does the same. */
static void op_upgrade_often(struct worker *w)
{
    bool deferred;
    wr_weak *weak = *any_weak(w, &deferred);
    for (unsigned i = 0; weak != NULL && i < 16; i++) {
        void *obj = upgrade(weak);
        if (obj == NULL)
            return;
        wr_release(obj);
    }
}

/* ---- slots --------------------------------------------------------------------------------------------------- */

static wr_slot *any_slot(struct worker *w)
{
    return &shared.slots[any(w, N_SLOTS)];
}

static void op_slot_load(struct worker *w)
{
    void *obj = wr_slot_load(any_slot(w));
    count(COUNT_slot_loads);
    if (obj != NULL)
        worker_keep(w, obj);
}

static void op_slot_store(struct worker *w)
{
    void *obj = any(w, 4) ? worker_held(w) : NULL;
    count(COUNT_slot_stores);
    if (any(w, 2)) {
        wr_slot_store(any_slot(w), obj);
    } else {
        void *old = wr_slot_exchange(any_slot(w), obj);
        if (old != NULL)
            object_touch(old);
        wr_release(old);
    }
}

static void op_slot_cas(struct worker *w)
{
    wr_slot *slot = any_slot(w);
    void *expected = any(w, 4) ? wr_slot_load(slot) : NULL;
    if (expected != NULL)
        object_touch(expected);
    linger(w);
    bool won = wr_slot_compare_exchange(slot, expected, worker_held(w));
    count(won ? COUNT_cas_won : COUNT_cas_lost);
    wr_release(expected);
}

static void op_weak_slot_set(struct worker *w)
{
    wr_weak_slot_set(&shared.weak_slots[any(w, N_SLOTS)], any(w, 8) ? worker_held(w) : NULL);
}

static void op_weak_slot_get(struct worker *w)
{
    void *obj = wr_weak_slot_get(&shared.weak_slots[any(w, N_SLOTS)]);
    count(obj != NULL ? COUNT_weak_gets_won : COUNT_weak_gets_lost);
    if (obj == NULL)
        return;
    object_touch(obj);
    if (any(w, 3))
        wr_release(obj);
    else
        worker_keep(w, obj);
}

/* A slot in an object, to an older one. */
static void op_link(struct worker *w)
{
    void *from = worker_held(w), *to = worker_held(w);
    if (from == NULL)
        return;
    struct node *node = object_check(from);
    if (!kind_has_links((enum kind)node->kind))
        return;
    if (to != NULL && object_check(to)->number < node->number)
        wr_slot_store(&node->link, any(w, 4) ? to : NULL);
    void *found = wr_slot_load(&node->link);
    if (found != NULL) {
        CHECK(object_touch(found)->number < node->number);
        wr_release(found);
    }
}

/* ---- read sections ------------------------------------------------------------------------------------------ */

static void peek_weak(struct worker *w, void **keep)
{
    wr_weak *weak = w->hands->weak_deferred[any(w, N_HELD)];
    if (weak == NULL)
        return;
    void *obj = wr_peek(weak);
    count(obj != NULL ? COUNT_peeks : COUNT_peeks_dead);
    if (obj == NULL) {
        CHECK(wr_weak_is_dead(weak));
        return;
    }
    const struct node *node = object_check(obj);
    linger(w);
    object_check(obj);
    if (wr_weak_is_dead(weak)) {
        count(COUNT_died_in_guard);
        CHECK(object_destroyed(node->number) == 0); /* not before the guard ends */
    }
    if (*keep == NULL && any(w, 2)) {
        *keep = wr_retain_live(obj);
        count(*keep != NULL ? COUNT_retain_live_won : COUNT_retain_live_lost);
        if (*keep == NULL)
            CHECK(wr_weak_is_dead(weak));
        object_check(obj);
    }
}

static void peek_slot(struct worker *w, void **keep)
{
    void *obj = wr_slot_peek(any_slot(w));
    count(COUNT_peeks);
    if (obj == NULL)
        return;
    struct node *node = object_check(obj);
    linger(w);
    object_check(obj);
    CHECK(object_destroyed(node->number) == 0);
    if (kind_has_links((enum kind)node->kind)) {
        void *next = wr_slot_peek(&node->link);
        if (next != NULL)
            object_check(next);
    }
    if (*keep == NULL && any(w, 2))
        *keep = wr_retain(obj);
}

static void op_guard(struct worker *w)
{
    void *keep[4] = {NULL};
    unsigned n = any(w, 4) + 1;
    WR_GUARD {
        for (unsigned i = 0; i < n; i++) {
            switch (any(w, options.mode & MODE_DICT ? 4 : 3)) {
            case 0:
                wr_guard_enter(); /* nested */
                peek_weak(w, &keep[i]);
                wr_guard_exit();
                break;
            case 1:
                peek_weak(w, &keep[i]);
                break;
            case 2:
                peek_slot(w, &keep[i]);
                break;
            default:
                dict_peek_in_guard(w, &keep[i]);
            }
            linger(w);
        }
    }
    for (unsigned i = 0; i < n; i++)
        if (keep[i] != NULL)
            worker_keep(w, keep[i]);
}

static void op_grace_period(struct worker *w)
{
    if (!random_one_in(&w->random, SANITIZED ? 8 : 24))
        return;
    count(COUNT_grace_periods);
    if (any(w, 3))
        CHECK(wr_synchronize() == 0);
    else
        CHECK(wr_barrier() == 0);
}

/* ---- watches ------------------------------------------------------------------------------------------------- */

static void op_watch(struct worker *w)
{
    void *obj = worker_held(w);
    if (obj == NULL)
        return;
    const struct node *node = object_check(obj);
    void *payload = any(w, 4) ? NULL : worker_held(w);
    if (payload != NULL)
        payload = object_check(payload)->number < node->number ? wr_retain(payload) : NULL;
    struct watch *watch = watch_new(obj, node, &w->random, payload);
    if (watch == NULL)
        return;
    struct watch **place = &w->hands->watches[any(w, N_HELD)];
    struct watch *old = *place;
    *place = watch;
    if (old != NULL)
        watch_give_up(old);
}

static void op_watch_end(struct worker *w)
{
    struct watch **place = &w->hands->watches[any(w, N_HELD)];
    struct watch *watch = *place;
    *place = NULL;
    if (watch != NULL)
        watch_end(watch, &w->random, true);
}

static void op_watch_give(struct worker *w)
{
    struct watch **place = &w->hands->watches[any(w, N_HELD)];
    *place = atomic_exchange_explicit(&shared.watches[any(w, N_CELLS)], *place, memory_order_acq_rel);
}

/* Watched, let go and cancelled at once: the death and the cancel meet. */
static void op_watch_race(struct worker *w)
{
    void **place = any_held(w);
    if (*place == NULL)
        return;
    struct watch *watch = watch_new(*place, object_touch(*place), &w->random, NULL);
    wr_release(atomic_exchange_explicit(&shared.strong[any(w, N_CELLS)], *place, memory_order_acq_rel));
    *place = NULL;
    linger(w);
    if (watch != NULL)
        watch_end(watch, &w->random, true);
}

static void op_drain(struct worker *w)
{
    queues_drain(&w->random);
}

static void op_queue_barrier(struct worker *w)
{
    if (random_one_in(&w->random, 24))
        CHECK(wr_queue_barrier(queues[any(w, 2) ? Q_DEFAULT : Q_POOL]) == 0);
}

/* ---- dictionaries -------------------------------------------------------------------------------------------- */

static void op_dict(struct worker *w)
{
    dict_op(w, any(w, N_DICT_OPS));
}

static void op_dict_own(struct worker *w)
{
    dict_own_op(w, w->hands->own, N_OWN);
}

static void op_dict_burst(struct worker *w)
{
    dict_burst(w);
}

/* ---- the round ---------------------------------------------------------------------------------------------- */

const struct part *const parts[N_PARTS] = {&keyed_part, &queue_part, &cancel_part, &signal_part, &fork_part};
_Thread_local unsigned callback_depth;

bool part_used(unsigned i)
{
    return (parts[i]->mode & options.mode) != 0;
}

static const struct op own_ops[] = {
    {op_new, "wr_new", 300, MODE_OBJECTS},
    {op_chain, "chain", 1, MODE_COUNT},
    {op_retain, "wr_retain", 60, MODE_OBJECTS},
    {op_release, "wr_release", 140, MODE_OBJECTS},
    {op_release_later, "wr_release_later", 15, MODE_COUNT},
    {op_give, "sharing an object", 60, MODE_OBJECTS},
    {op_survive, "keeping an object", 40, MODE_OBJECTS},
    {op_describe, "wr_describe", 5, MODE_COUNT},
    {op_downgrade, "wr_downgrade", 90, MODE_OBJECTS},
    {op_weak_give, "sharing a handle", 60, MODE_OBJECTS},
    {op_weak_retain, "wr_weak_retain", 40, MODE_OBJECTS},
    {op_weak_release, "wr_weak_release", 15, MODE_OBJECTS},
    {op_upgrade, "wr_upgrade", 120, MODE_OBJECTS},
    {op_upgrade_often, "wr_upgrade, often", 40, MODE_COUNT},
    {op_slot_load, "wr_slot_load", 50, MODE_COUNT},
    {op_slot_store, "wr_slot_store", 50, MODE_COUNT},
    {op_slot_cas, "wr_slot_compare_exchange", 30, MODE_COUNT},
    {op_weak_slot_set, "wr_weak_slot_set", 40, MODE_COUNT},
    {op_weak_slot_get, "wr_weak_slot_get", 60, MODE_COUNT},
    {op_link, "slot in an object", 30, MODE_COUNT},
    {op_guard, "guard", 90, MODE_COUNT | MODE_DICT},
    {op_grace_period, "wr_synchronize or wr_barrier", 2, MODE_COUNT | MODE_DICT},
    {op_watch, "wr_watch_new", 150, MODE_WATCH},
    {op_watch_end, "wr_watch_cancel", 40, MODE_WATCH},
    {op_watch_give, "sharing a watch", 20, MODE_WATCH},
    {op_watch_race, "a death beside wr_watch_cancel", 40, MODE_WATCH},
    {op_drain, "wr_queue_drain", 30, MODE_WATCH},
    {op_queue_barrier, "wr_queue_barrier", 4, MODE_WATCH},
    {op_dict, "dictionary", 250, MODE_DICT},
    {op_dict_own, "dictionary, private keys", 120, MODE_DICT},
    {op_dict_burst, "dictionary, burst", 1, MODE_DICT},
};
enum { N_OPS_MOST = 256 };

/* Those in use, and the running sums of their weights. */
static const struct op *ops[N_OPS_MOST];
static unsigned until[N_OPS_MOST], n_ops;

static void add_ops(const struct op *these, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (!(these[i].modes & options.mode))
            continue;
        CHECK(n_ops < N_OPS_MOST);
        ops[n_ops] = &these[i];
        until[n_ops] = (n_ops > 0 ? until[n_ops - 1] : 0) + these[i].weight;
        n_ops++;
    }
}

void work_prepare(void)
{
    add_ops(own_ops, sizeof own_ops / sizeof *own_ops);
    for (unsigned i = 0; i < N_PARTS; i++)
        add_ops(parts[i]->ops, parts[i]->n_ops);
}

static const struct op *any_op(struct worker *w)
{
    unsigned at = any(w, until[n_ops - 1]), i = 0;
    while (until[i] <= at)
        i++;
    return ops[i];
}

void doing(struct worker *w, const char *what)
{
    atomic_store_explicit(&w->doing, what, memory_order_relaxed);
}

void work_round(struct worker *w)
{
    struct hands hands;
    memset(&hands, 0, sizeof hands);
    w->hands = &hands;
    for (unsigned i = 0; i < N_PARTS; i++)
        if (part_used(i))
            parts[i]->enter(w);
    for (unsigned i = 0; i < options.n_ops; i++) {
        const struct op *op = any_op(w);
        doing(w, op->name);
        op->run(w);
        count(COUNT_operations);
    }
    doing(w, "letting go");
    for (unsigned i = 0; i < N_OWN; i++)
        wr_release(hands.own[i]);
    for (unsigned i = 0; i < N_HELD; i++) {
        wr_release(hands.held[i]);
        wr_weak_release(hands.weak[i]);
        wr_weak_release(hands.weak_deferred[i]);
        if (hands.watches[i] != NULL)
            watch_give_up(hands.watches[i]);
    }
    w->hands = NULL;
    for (unsigned i = 0; i < N_PARTS; i++)
        if (part_used(i))
            parts[i]->leave(w);
    doing(w, "end of the round");
}
