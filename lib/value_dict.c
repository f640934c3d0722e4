/* F7 value_dict: entries that die with their objects, and creates that fly alone.
 *
 * An entry is that of dict.h, and behind it the key.
 *
 * A look-up that finds an entry and cannot upgrade it has seen a death, but not yet that the key has no living
 * object: the entry may have been replaced before the object died. It searches again. Finding the same entry a second
 * time, it was linked after the death: the key is missing. Else the new entry is tried.
 *
 * Flooding: who knows the hash key, or learns of it by what keys do, can choose keys that share a bucket. A shard where that
 * is seen is *hardened* for good: what comes into it from then on has a tag made by SipHash with a key of its own. What was
 * there keeps its tag, and so does what replaces it; so a key never stands under both, nodes never change their tags, and
 * iterators notice nothing. A search looks under the one tag and then under the other: few more than the crowd that gave it
 * away share the first one.
 *
 * Flights: while a key is being created, its flight stands in its shard's list (guarded by the shard lock). Who wants
 * to create and finds no living entry and no flight, under one lock, starts one; who finds a flight joins. Landing
 * takes it off the list in the same section that links the entry, so between the two no second create can start. From
 * then on nobody joins, and the number of those who wait is fixed. In a forked child a flight whose creator is gone is
 * dropped by who comes by, and one whose creator came along has lost those who waited.
 */
#include <weakref/value_dict.h>

#include "alloc.h"
#include "dict.h"
#include "event.h"
#include "fork.h"
#include "keep.h"
#include "pool.h"
#include "queue.h"

#include <errno.h>
#include <limits.h>

typedef struct entry {
    wr_entry base;       /* its tag's own bits: the key's size, or LONG_KEY */
    unsigned char key[]; /* with LONG_KEY first its size, a size_t */
} entry;

#define LONG_KEY 255u

/* What stands in front of an entry, in a dictionary with a function that hears of removals: by it the function learns of a
 * death after the destroy, as a watch does, while the entry left before. */
typedef struct removal {
    union {
        wr_watcher
            watcher; /* klass NULL: called off by a verb, which says so under the shard lock, before it detaches the entry */
        wr_task task; /* once it has fired */
    };
    wr_atomic_u32 state; /* of the task */
} removal;

enum { REMOVAL_PENDING, REMOVAL_RUNNING, REMOVAL_CANCELLED };

/* Of dict.flags. In front of each entry, and of its removal, stands a wr_kept. */
#define KEEPS 1u

struct wr_value_dict {
    wr_value_dict_removal_fn *on_removal; /* or NULL */
    void *ctx;
    wr_queue *queue;
    wr_watcher_class removal_klass;
    wr_hash_key sip_key;
    size_t front;  /* bytes in front of each entry: those of a wr_kept, of a removal, of both, or 0 */
    wr_keep *keep; /* or NULL */
    wr_value_dict_size_fn *size_of;
    wr_dict dict; /* last: its size varies */
};

/* A key on its way. */
typedef struct probe {
    const void *key;
    size_t size;
    uint64_t tag;
} probe;

struct found {
    void *obj; /* owned */
    entry *from;
};

typedef struct flight {
    struct flight *next; /* the shard's flights. Guarded by the shard's lock, as n_waiters */
    wr_value_dict *dict;
    probe probe;      /* its key is the blank's, which no caller can write to: valid while the flight is listed */
    entry *blank;     /* for the landing; the creator's */
    uint64_t creator; /* the ordinal of its thread */
    uint32_t process; /* in which n_waiters and refs were counted: see flight_recount(). Guarded by the shard's lock */
    unsigned n_waiters;
    WR_ATOMIC(unsigned) refs; /* the creator's, and the waiters' */
    wr_atomic_u32 landed;
    wr_event event; /* signalled after landed is set */
    int result;     /* set before landed */
    void *obj;      /* with one strong reference for each waiter. Set before landed */
} flight;

/* ---- keys ------------------------------------------------------------------------------------------------- */

static inline bool is_bad(const wr_value_dict *d, const void *key, size_t size)
{
    return d == NULL || (key == NULL && size > 0);
}

static inline probe probe_of(const wr_value_dict *d, const void *key, size_t size)
{
    uint64_t hash = wr_hash_bytes(&d->dict.hash_key, key, size);
    probe p = {key, size, wr_table_tag(hash, size < LONG_KEY ? (unsigned)size : LONG_KEY)};
    return p;
}

static inline entry *entry_of(const wr_table_node *node)
{
    return (entry *)((uintptr_t)node - offsetof(entry, base.node));
}

static inline uint64_t differing(const unsigned char *a, const unsigned char *b, size_t at)
{
    return wr_hash_load64(a + at) ^ wr_hash_load64(b + at);
}

/* Equal bytes? By loads from both ends, which may overlap, since most keys are short and memcmp() is a call. */
static inline __attribute__((always_inline)) bool equal_bytes(const unsigned char *a, const unsigned char *b,
                                                              size_t size)
{
    if (size >= 8 && size <= 16)
        return (differing(a, b, 0) | differing(a, b, size - 8)) == 0;
    if (size > 16 && size <= 32)
        return (differing(a, b, 0) | differing(a, b, 8) | differing(a, b, size - 16) | differing(a, b, size - 8)) == 0;
    if (size > 32)
        return memcmp(a, b, size) == 0;
    if (size >= 4)
        return wr_hash_load32(a) == wr_hash_load32(b) && wr_hash_load32(a + size - 4) == wr_hash_load32(b + size - 4);
    return size == 0 || (a[0] == b[0] && a[size / 2] == b[size / 2] && a[size - 1] == b[size - 1]);
}

static inline size_t long_size(const entry *e)
{
    size_t size;
    memcpy(&size, e->key, sizeof size);
    return size;
}

/* A wr_table_match. Equal tags mean equal sizes, but for long keys. */
static inline __attribute__((always_inline)) bool match_key(const wr_table_node *node, const void *probe_)
{
    const probe *p = probe_;
    const entry *e = entry_of(node);
    if (wr_likely(p->size < LONG_KEY))
        return equal_bytes(e->key, p->key, p->size);
    return long_size(e) == p->size && memcmp(e->key + sizeof p->size, p->key, p->size) == 0;
}

/* A wr_table_order: by size, then by bytes. */
static inline int order_key(const wr_table_node *node, const void *probe_)
{
    const probe *p = probe_;
    const entry *e = entry_of(node);
    if (p->size == 0)
        return 0;
    if (p->size < LONG_KEY)
        return memcmp(e->key, p->key, p->size);
    size_t size = long_size(e);
    if (size != p->size)
        return size < p->size ? -1 : 1;
    return memcmp(e->key + sizeof size, p->key, size);
}

static inline size_t key_size(const entry *e)
{
    size_t own = (size_t)(e->base.node.tag & WR_TABLE_OWN_MASK);
    return own < LONG_KEY ? own : long_size(e);
}

static inline const unsigned char *key_of(const entry *e)
{
    return e->key + (key_size(e) < LONG_KEY ? 0 : sizeof(size_t));
}

/* The same of a node and an entry. */
static int order_entry(const wr_table_node *node, const void *entry_)
{
    const entry *e = entry_;
    probe p = {key_of(e), key_size(e), e->base.node.tag};
    return order_key(node, &p);
}

/* ---- entries ---------------------------------------------------------------------------------------------- */

static inline wr_weak *weak_of(const entry *e)
{
    return wr_entry_weak(&e->base);
}

/* Of an entry with its key. */
static inline size_t size_with_key(size_t key_size)
{
    return sizeof(entry) + (key_size < LONG_KEY ? 0 : sizeof key_size) + key_size;
}

/* With what stands in front of it: @front bytes. */
static void give_memory_back(wr_entry *e, size_t front)
{
    wr_pool_free((char *)e - front, front + size_with_key(key_size((entry *)e)));
}

static void entry_reclaim(wr_retired *r)
{
    wr_entry *e = (wr_entry *)((char *)r - offsetof(wr_entry, retired));
    if (wr_entry_is_stood_on(e))
        return;
    wr_watcher_release_weak(e->watcher.header);
    give_memory_back(e, 0);
}

static void entry_retire(wr_entry *e)
{
    wr_retire_memory(&e->retired, entry_reclaim);
}

static void dict_reclaim(wr_retired *r)
{
    wr_dict *d = (wr_dict *)((char *)r - offsetof(wr_dict, retired));
    wr_table_fini(&d->table);
    wr_free((char *)d - offsetof(wr_value_dict, dict));
}

static void dict_retire(wr_dict *d)
{
    wr_retire_memory(&d->retired, dict_reclaim);
}

static const wr_dict_kind plain_kind = {.order = order_entry, .retire = entry_retire, .retire_dict = dict_retire};

/* ---- removals --------------------------------------------------------------------------------------------- */

static removal *removal_of(const wr_entry *e)
{
    return (removal *)((uintptr_t)e - sizeof(removal));
}

static wr_entry *entry_of_task(const wr_task *task)
{
    return (wr_entry *)((uintptr_t)task - offsetof(removal, task) + sizeof(removal));
}

static wr_value_dict *dict_of(const wr_entry *e)
{
    return (wr_value_dict *)((uintptr_t)e->watcher.klass - offsetof(wr_value_dict, dict.klass));
}

static void heard_entry_reclaim(wr_retired *r)
{
    wr_entry *e = (wr_entry *)((char *)r - offsetof(wr_entry, retired));
    if (wr_entry_is_stood_on(e))
        return;
    wr_header *h = e->watcher.header;
    give_memory_back(e, sizeof(removal));
    wr_watcher_release_weak(h);
    wr_watcher_release_weak(h); /* the other watcher's */
}

static void heard_entry_retire(wr_entry *e)
{
    wr_retire_memory(&e->retired, heard_entry_reclaim);
}

/* A verb is about to take @e out: nobody will hear of it. Of two watchers the death has both or none, so whoever detached
 * this one first may lose the other, but not the other way round. */
static bool heard_call_off(wr_entry *e)
{
    removal *r = removal_of(e);
    if (!wr_watcher_detach(&r->watcher)) {
        /* Relaxed: the entry's fire, which wants this lock, comes before that of the removal. */
        wr_atomic_store_relaxed(&r->state, REMOVAL_CANCELLED);
        return false;
    }
    r->watcher.klass = NULL;
    wr_queue_count_cancelled(dict_of(e)->queue, 1); /* atomics only: the caller of the dictionary keeps the queue */
    return true;
}

static void heard_died(wr_dict *d, wr_entry *e)
{
    if (removal_of(e)->watcher.klass != NULL)
        return; /* the reference is the task's, until that is through with it */
    d->kind->retire(e);
    wr_dict_release(d);
}

static const wr_dict_kind heard_kind = {
    .order = order_entry,
    .retire = heard_entry_retire,
    .retire_dict = dict_retire,
    .call_off = heard_call_off,
    .died = heard_died,
};

/* The end of the task: back to where a plain entry goes at once. */
static void removal_end(wr_entry *e)
{
    wr_dict *d = &dict_of(e)->dict;
    d->kind->retire(e);
    wr_dict_release(d);
    wr_retire_relax();
}

static bool removal_move(const wr_task *task, uint32_t to)
{
    uint32_t pending = REMOVAL_PENDING;
    /* Acquire-release [removal]: one of the consumer and who cancels wins. Pairs with itself in other threads. */
    return wr_atomic_cas_acq_rel(&removal_of(entry_of_task(task))->state, &pending, to);
}

static bool removal_begin(wr_task *task)
{
    return removal_move(task, REMOVAL_RUNNING);
}

static void removal_run(wr_task *task)
{
    const entry *e = (const entry *)entry_of_task(task);
    const wr_value_dict *d = dict_of(&e->base);
    d->on_removal(key_of(e), key_size(e), d->ctx);
}

static void removal_finish(wr_task *task)
{
    removal_end(entry_of_task(task));
}

static bool removal_cancel(wr_task *task)
{
    return removal_move(task, REMOVAL_CANCELLED);
}

static const wr_task_class removal_task_class = {
    .begin = removal_begin,
    .run = removal_run,
    .finish = removal_finish,
    .cancel = removal_cancel,
    .discard = removal_finish,
};

/* Nobody is to hear of it: a verb was first, or the queue has been freed. Its count keeps the queue: that goes last. */
static void removal_drop(removal *r, wr_queue *queue)
{
    removal_end(entry_of_task(&r->task));
    wr_queue_count_cancelled(queue, 1);
}

/* All entries of one object in one dictionary, one push. USER stage: after destroy. */
static wr_watcher *removal_fire(wr_watcher *first)
{
    const wr_watcher_class *klass = first->klass;
    wr_queue *queue = ((wr_value_dict *)((uintptr_t)klass - offsetof(wr_value_dict, removal_klass)))->queue;
    wr_watcher *end = first, *next, *dropped = NULL;
    uint64_t n = 0;
    for (; end != NULL && end->klass == klass; end = end->next)
        n++;
    wr_handover h;
    bool is_inline = wr_queue_is_inline(queue);
    bool open = !is_inline && wr_handover_begin(&h, queue, n);
    for (wr_watcher *w = first; w != end; w = next) {
        removal *r = (removal *)((uintptr_t)w - offsetof(removal, watcher));
        next = w->next;
        /* Relaxed: set before, if at all, as heard_call_off() tells. */
        if (!(is_inline || open) || wr_atomic_load_relaxed(&r->state) == REMOVAL_CANCELLED) {
            w->next = dropped;
            dropped = w;
            continue;
        }
        if (is_inline)
            wr_object_no_destroy_check(w->header);
        r->task.seq = 0;
        r->task.klass = &removal_task_class;
        if (is_inline)
            wr_queue_run_inline(queue, &r->task);
        else
            wr_handover_add(&h, &r->task);
    }
    if (open)
        wr_handover_end(&h);
    for (; dropped != NULL; dropped = next) {
        next = dropped->next;
        removal_drop((removal *)((uintptr_t)dropped - offsetof(removal, watcher)), queue);
    }
    return end;
}

/* ---- what is kept ------------------------------------------------------------------------------------------ */

static inline bool keeps(const wr_value_dict *d)
{
    return wr_unlikely((d->dict.flags & KEEPS) != 0);
}

/* Requires: keeps(d). */
static wr_kept *kept_of(const wr_value_dict *d, const wr_entry *e)
{
    return (wr_kept *)((uintptr_t)e - d->front);
}

static void reclaim_kept(wr_retired *r, size_t front)
{
    wr_entry *e = (wr_entry *)((char *)r - offsetof(wr_entry, retired));
    if (wr_entry_is_stood_on(e))
        return;
    wr_header *h = e->watcher.header;
    give_memory_back(e, front);
    wr_watcher_release_weak(h);
    if (front > sizeof(wr_kept))
        wr_watcher_release_weak(h); /* the removal's */
}

static void kept_entry_reclaim(wr_retired *r)
{
    reclaim_kept(r, sizeof(wr_kept));
}

static void kept_heard_entry_reclaim(wr_retired *r)
{
    reclaim_kept(r, sizeof(wr_kept) + sizeof(removal));
}

/* What was kept until now is let go here: in a guard only where the caller holds it, too, as in wr_value_dict_pop(), or where
 * nothing was kept, as at a death. */
static void kept_entry_retire(wr_entry *e)
{
    void *obj = wr_kept_owed(kept_of(dict_of(e), e));
    wr_retire_memory(&e->retired, kept_entry_reclaim);
    wr_release(obj);
}

static void kept_heard_entry_retire(wr_entry *e)
{
    void *obj = wr_kept_owed(kept_of(dict_of(e), e));
    wr_retire_memory(&e->retired, kept_heard_entry_reclaim);
    wr_release(obj);
}

static bool kept_call_off(wr_entry *e)
{
    const wr_value_dict *d = dict_of(e);
    wr_keep_gone(d->keep, kept_of(d, e));
    return true;
}

static bool kept_heard_call_off(wr_entry *e)
{
    return kept_call_off(e) && heard_call_off(e);
}

static const wr_dict_kind kept_kind = {
    .order = order_entry,
    .retire = kept_entry_retire,
    .retire_dict = dict_retire,
    .call_off = kept_call_off,
};

static const wr_dict_kind kept_heard_kind = {
    .order = order_entry,
    .retire = kept_heard_entry_retire,
    .retire_dict = dict_retire,
    .call_off = kept_heard_call_off,
    .died = heard_died,
};

/* ---- entries, in the making ------------------------------------------------------------------------------- */

/* For no object yet, and not linked: for entry_free(). Makes the room in the table, too. 0, or -ENOMEM. */
static int entry_new(wr_value_dict *d, const probe *p, entry **out)
{
    size_t prefix = p->size < LONG_KEY ? 0 : sizeof p->size;
    *out = NULL;
    if (p->size > SIZE_MAX / 2 || wr_table_reserve(&d->dict.table, p->tag) != 0)
        return -ENOMEM;
    char *memory = wr_pool_alloc(d->front + size_with_key(p->size));
    if (memory == NULL)
        return -ENOMEM;
    entry *e = (entry *)(void *)(memory + d->front);
    if (keeps(d))
        wr_kept_init(kept_of(d, &e->base));
    if (wr_unlikely(d->on_removal != NULL)) {
        removal_of(&e->base)->watcher.klass = &d->removal_klass;
        wr_atomic_init(&removal_of(&e->base)->state, REMOVAL_PENDING);
    }
    e->base.watcher.klass = &d->dict.klass;
    e->base.node.tag = p->tag;
    memcpy(e->key, &p->size, prefix);
    if (p->size > 0)
        memcpy(e->key + prefix, p->key, p->size);
    *out = e;
    return 0;
}

/* Not linked, not attached. */
static void entry_free(const wr_value_dict *d, entry *e)
{
    if (e == NULL)
        return;
    if (keeps(d))
        wr_kept_undo(kept_of(d, &e->base));
    give_memory_back(&e->base, d->front);
}

/* @e, which is new, is going to be for @obj. 0, -ESTALE, -ENOMEM. Requires: no wr lock held (runs user code). */
static inline int entry_prepare(const wr_value_dict *d, entry *e, void *obj)
{
    int err =
        wr_unlikely(d->on_removal != NULL) ? wr_watcher_prepare(obj) : wr_watcher_prepare_guest(&e->base.watcher, obj);
    if (err == 0 && keeps(d)) {
        wr_lock_assert_none("size_of");
        wr_keep_prepare(d->keep, kept_of(d, &e->base), obj, d->size_of != NULL ? d->size_of(obj, d->ctx) : 0);
    }
    return err;
}

/* Hangs @e on the object, under the lock under which it is linked: no fork comes between, and nobody meets an entry that never
 * was in the table. 0; -EAGAIN: prepare_again() first. Requires: the shard locked; the caller's reference keeps the death away. */
static inline int entry_attach(const wr_value_dict *d, entry *e, void *obj)
{
    if (wr_likely(d->on_removal == NULL))
        return wr_watcher_attach_guest(&e->base.watcher, obj);
    (void)wr_watcher_attach_prepared(&e->base.watcher, obj);
    (void)wr_watcher_attach_prepared(&removal_of(&e->base)->watcher, obj);
    return 0;
}

/* With its key, for @obj. 0, or *out is NULL and -ESTALE, -ENOMEM. Requires: no wr lock held (runs user code). */
static inline int entry_new_for(wr_value_dict *d, const probe *p, void *obj, entry **out)
{
    int err = entry_new(d, p, out);
    if (err == 0)
        err = entry_prepare(d, *out, obj);
    if (wr_unlikely(err != 0)) {
        entry_free(d, *out);
        *out = NULL;
    }
    return err;
}

/* ---- life ------------------------------------------------------------------------------------------------- */

/* Which kind of entries, and what stands in front of them. */
static const wr_dict_kind *kind_of(bool heard, bool kept, size_t *front)
{
    *front = (heard ? sizeof(removal) : 0) + (kept ? sizeof(wr_kept) : 0);
    if (kept)
        return heard ? &kept_heard_kind : &kept_kind;
    return heard ? &heard_kind : &plain_kind;
}

/* *keep: NULL if there is nothing to keep. 0, -EINVAL, -ENOMEM. */
static int keep_new(const struct wr_value_dict_options *options, wr_keep **keep)
{
    *keep = NULL;
    if ((options->keep_size > 0) != (options->size_of != NULL))
        return -EINVAL;
    const wr_keep_limits limits = {
        .objects = options->keep_objects > 0 ? options->keep_objects : SIZE_MAX,
        .size = options->keep_size > 0 ? options->keep_size : SIZE_MAX,
        .ms = options->keep_ms > 0 ? options->keep_ms : UINT64_MAX,
    };
    if (options->keep_objects == 0 && options->keep_size == 0 && options->keep_ms == 0)
        return 0;
    *keep = wr_keep_new(&limits);
    return *keep != NULL ? 0 : -ENOMEM;
}

static void keep_free(wr_keep *k)
{
    if (k == NULL)
        return;
    wr_keep_end(k);
    wr_keep_release(k);
}

wr_value_dict *wr_value_dict_new(const struct wr_value_dict_options *given)
{
    struct wr_value_dict_options options;
    int err = wr_dict_options(given, &options, sizeof options, offsetof(struct wr_value_dict_options, on_removal));
    bool heard = options.on_removal != NULL;
    wr_queue *queue = NULL;
    wr_keep *keep = NULL;
    size_t front = 0;
    void *block;
    if (err == 0 && heard)
        err = wr_queue_resolve(options.queue, &queue);
    if (err == 0)
        err = keep_new(&options, &keep);
    if (err == 0)
        err = wr_dict_new(offsetof(wr_value_dict, dict), kind_of(heard, keep != NULL, &front), options.initial_size,
                          &block);
    if (err != 0) {
        keep_free(keep);
        errno = -err;
        return NULL;
    }
    wr_value_dict *d = block;
    d->on_removal = options.on_removal;
    d->ctx = options.ctx;
    d->queue = queue;
    d->removal_klass = (wr_watcher_class){.stage = WR_WATCHER_USER, .fire = removal_fire};
    d->front = front;
    d->keep = keep;
    d->size_of = options.size_of;
    d->dict.flags = keep != NULL ? KEEPS : 0;
    d->sip_key = wr_hash_key_random();
    return d;
}

void wr_value_dict_clear(wr_value_dict *d)
{
    if (d != NULL)
        wr_dict_clear(&d->dict);
}

/* What was kept is let go while the dictionary is still whole, since its destroys may use it; and nothing more is kept. So the
 * second clearing, after which the dictionary goes, finds at most what they have set, and runs no user code. */
void wr_value_dict_free(wr_value_dict *d)
{
    if (d == NULL)
        return;
    wr_keep *keep = d->keep;
    if (keep != NULL) {
        struct wr_deaths *deaths = &wr_thread_stack()->deaths, around = *deaths;
        wr_keep_end(keep);
        *deaths = (struct wr_deaths){NULL, NULL, false}; /* in a destroy, too: now, and not after it */
        wr_dict_clear(&d->dict);
        *deaths = around;
    }
    wr_dict_free(&d->dict);
    if (keep != NULL)
        wr_keep_release(keep);
}

size_t wr_value_dict_trim(wr_value_dict *d, double fraction)
{
    if (wr_unlikely(d == NULL || !(fraction >= 0 && fraction <= 1))) {
        errno = EINVAL;
        return 0;
    }
    return keeps(d) ? wr_keep_trim(d->keep, fraction) : 0;
}

size_t wr_value_dict_kept(const wr_value_dict *d, size_t *size)
{
    size_t n = 0, sum = 0;
    if (d == NULL)
        errno = EINVAL;
    else if (keeps(d))
        n = wr_keep_count(d->keep, &sum);
    if (size != NULL)
        *size = sum;
    return n;
}

size_t wr_value_dict_len(const wr_value_dict *d)
{
    if (d == NULL) {
        errno = EINVAL;
        return 0;
    }
    return wr_table_count(&d->dict.table);
}

/* ---- look-ups --------------------------------------------------------------------------------------------- */

/* The tag of a key that comes into a hardened shard: in the same shard, with the same own bits. */
static WR_COLD uint64_t hard_tag(const wr_value_dict *d, const probe *p)
{
    uint64_t keep = WR_TABLE_OWN_MASK | d->dict.table.shard_mask << WR_TABLE_OWN_BITS;
    return (wr_hash_sip13(&d->sip_key, p->key, p->size) & ~keep) | (p->tag & keep);
}

/* By value: a probe whose address is known nowhere stays in registers. */
static WR_COLD wr_table_node *find_hard(const wr_value_dict *d, probe p)
{
    return wr_table_find(&d->dict.table, hard_tag(d, &p), match_key, &p);
}

/* Requires: in a guard. */
static inline __attribute__((always_inline)) entry *find(const wr_value_dict *d, const probe *p)
{
    wr_table_node *node = wr_table_find(&d->dict.table, p->tag, match_key, p);
    if (node == NULL && wr_unlikely(wr_table_is_hardened(wr_table_shard_of(&d->dict.table, p->tag))))
        node = find_hard(d, *p);
    return node != NULL ? entry_of(node) : NULL;
}

/* Where a key is (found is its node) or would be. */
typedef struct place {
    wr_table_shard *shard; /* locked */
    wr_table_link *link;
    wr_table_node *found;
    uint64_t tag;
    bool unsettled; /* wr_keep_settle() is to follow */
} place;

/* Takes: the lock of the key's shard. */
static inline place lock_and_seek(wr_value_dict *d, const probe *p)
{
    place at = {.tag = p->tag};
    uint64_t hard = 0;
    bool known = wr_unlikely(wr_table_is_hardened(wr_table_shard_of(&d->dict.table, p->tag)));
    if (known)
        hard = hard_tag(d, p); /* not under the lock: a key may be long */
    at.shard = wr_table_lock(&d->dict.table, p->tag);
    at.link = wr_table_seek(at.shard, p->tag, order_key, p, &at.found);
    if (at.found == NULL && wr_unlikely(wr_table_is_hardened(at.shard))) {
        at.tag = known ? hard : hard_tag(d, p);
        wr_table_move(at.shard, at.tag);
        at.link = wr_table_seek(at.shard, at.tag, order_key, p, &at.found);
    }
    return at;
}

/* Links @e, which is attached, at its place. Returns what is to be retired, or NULL. Requires: the shard locked. */
static inline wr_entry *link_at(wr_value_dict *d, place *at, entry *e)
{
    e->base.node.tag = at->tag;
    if (keeps(d)) /* before anybody can find it */
        at->unsettled = wr_keep_add(d->keep, kept_of(d, &e->base));
    if (wr_unlikely(d->on_removal != NULL))
        wr_queue_admit(d->queue, false);
    wr_entry *old = wr_dict_link(&d->dict, at->shard, at->link, at->found, &e->base);
    if (at->found == NULL)
        wr_table_harden(at->shard, at->tag);
    return old;
}

/* wr_dict_unlock(), and lets go what is no longer kept. Requires: no guard of the library's own (runs user code). */
static inline void unlock_and_settle(wr_value_dict *d, const place *at, wr_entry *old)
{
    wr_dict_unlock(&d->dict, at->shard, old);
    if (wr_unlikely(at->unsettled))
        wr_keep_settle(d->keep);
}

/* Another watcher came to @obj since it was prepared. Drops the lock. 0, to try again; or -ENOMEM, and @e is freed. */
static WR_COLD int prepare_again(wr_value_dict *d, const place *at, entry *e, void *obj)
{
    wr_dict_unlock(&d->dict, at->shard, NULL);
    int err = wr_watcher_prepare(obj);
    if (err != 0)
        entry_free(d, e);
    return err;
}

/* After @e was found and its object was seen dead: whether there is another entry by now. Requires: in a guard. */
static WR_COLD entry *find_other(const wr_value_dict *d, probe p, const entry *e)
{
    entry *other = find(d, &p);
    return other == e ? NULL : other;
}

/* The same for find_and_upgrade(): the living object, and its entry. */
static WR_COLD struct found find_and_upgrade_other(const wr_value_dict *d, probe p, const entry *e)
{
    for (entry *other; (other = find_other(d, p, e)) != NULL; e = other) {
        void *obj = wr_upgrade(weak_of(other));
        if (obj != NULL)
            return (struct found){obj, other};
    }
    return (struct found){NULL, NULL};
}

/* [owned] the living object, and the entry that led to it; or NULL. Requires: in a guard. */
static inline __attribute__((always_inline)) struct found find_and_upgrade(const wr_value_dict *d, const probe *p)
{
    entry *e = find(d, p);
    if (e == NULL)
        return (struct found){NULL, NULL};
    void *obj = wr_upgrade(weak_of(e));
    if (wr_unlikely(obj == NULL))
        return find_and_upgrade_other(d, *p, e);
    return (struct found){obj, e};
}

/* A get that counts as a use. */
static WR_OUT_OF_LINE void *get_kept(const wr_value_dict *d, probe p)
{
    wr_guard_enter();
    struct found it = find_and_upgrade(d, &p);
    bool unsettled = it.obj != NULL && wr_keep_use(d->keep, kept_of(d, &it.from->base));
    wr_guard_exit();
    if (wr_unlikely(unsettled))
        wr_keep_settle(d->keep);
    return it.obj;
}

static inline void *get(const wr_value_dict *d, const probe *p)
{
    if (keeps(d))
        return get_kept(d, *p);
    wr_guard_enter();
    void *obj = find_and_upgrade(d, p).obj;
    wr_guard_exit();
    return obj;
}

/* Requires: in a guard. */
static inline __attribute__((always_inline)) void *peek(const wr_value_dict *d, const probe *p)
{
    for (entry *e = find(d, p); e != NULL; e = find_other(d, *p, e)) {
        const wr_header *h = e->base.watcher.header;
        uint64_t bits = wr_word_peek(&h->word);
        if (wr_unlikely((bits & WR_WORD_DEFERRED) == 0))
            wr_object_panic("wr_value_dict_peek", h, "its type lacks WR_TYPE_DEFERRED");
        if (wr_likely((bits & WR_WORD_CLOSED) == 0)) {
            if (keeps(d))
                (void)wr_keep_mark(d->keep, kept_of(d, &e->base));
            return wr_payload_of(h);
        }
    }
    return NULL;
}

static WR_OUT_OF_LINE void *get_any(const wr_value_dict *d, const void *key, size_t size)
{
    if (wr_unlikely(is_bad(d, key, size))) {
        errno = EINVAL;
        return NULL;
    }
    probe p = probe_of(d, key, size);
    return get(d, &p);
}

static WR_OUT_OF_LINE void *peek_any(const wr_value_dict *d, const void *key, size_t size)
{
    if (wr_unlikely(is_bad(d, key, size))) {
        errno = EINVAL;
        return NULL;
    }
    probe p = probe_of(d, key, size);
    return peek(d, &p);
}

/* The common look-up is code of its own, without a call, so that it keeps all in registers: keys of 8 to 16 bytes, and once more
 * of 17 to 32, nothing kept, no crowd in the shard, an object that lives. Whatever else it meets begins again in the function
 * for any. */
static inline bool is_common(const wr_value_dict *d, const void *key, size_t size, size_t least, size_t most)
{
    return d != NULL && key != NULL && size >= least && size <= most && !keeps(d);
}

/* The header of the object; or NULL: there is none, or (*any) begin again. Requires: in a guard; is_common(). */
static inline __attribute__((always_inline)) wr_header *find_common(const wr_value_dict *d, const probe *p, bool *any)
{
    wr_table_node *node = wr_table_find(&d->dict.table, p->tag, match_key, p);
    *any = node == NULL && wr_unlikely(wr_table_is_hardened(wr_table_shard_of(&d->dict.table, p->tag)));
    return node != NULL ? entry_of(node)->base.watcher.header : NULL;
}

/* Where an upgrade has found something unusual: what it has added is settled. In a guard. */
static WR_COLD void *get_unusual(const wr_value_dict *d, const void *key, size_t size, wr_header *h, uint64_t old)
{
    void *obj = WR_LAYOUT(wr_upgrade_cold)(h, old);
    wr_guard_exit();
    return obj != NULL ? obj : get_any(d, key, size);
}

/* Requires: is_common(). */
static inline __attribute__((always_inline)) void *get_common(const wr_value_dict *d, const void *key, size_t size)
{
    probe p = probe_of(d, key, size);
    bool any;
    if (wr_unlikely(!wr_guard_enter_outermost_()))
        return get_any(d, key, size);
    wr_header *h = find_common(d, &p, &any);
    if (wr_likely(h != NULL)) {
        uint64_t old = wr_word_upgrade_begin(&h->word);
        if (wr_unlikely(!wr_word_is_plain(old, 1)))
            return get_unusual(d, key, size, h, old);
    }
    wr_guard_exit_outermost_();
    if (wr_likely(h != NULL))
        return wr_payload_of(h);
    return any ? get_any(d, key, size) : NULL;
}

static WR_OUT_OF_LINE void *get_short(const wr_value_dict *d, const void *key, size_t size)
{
    return wr_likely(is_common(d, key, size, 8, 16)) ? get_common(d, key, size) : get_any(d, key, size);
}

void *wr_value_dict_get(const wr_value_dict *d, const void *key, size_t size)
{
    return wr_likely(is_common(d, key, size, 17, 32)) ? get_common(d, key, size) : get_short(d, key, size);
}

/* Requires: is_common(); in a guard. */
static inline __attribute__((always_inline)) void *peek_common(const wr_value_dict *d, const void *key, size_t size)
{
    probe p = probe_of(d, key, size);
    bool any;
    const wr_header *h = find_common(d, &p, &any);
    if (wr_unlikely(h == NULL))
        return any ? peek_any(d, key, size) : NULL;
    if (wr_likely((wr_word_peek(&h->word) & (WR_WORD_DEFERRED | WR_WORD_CLOSED)) == WR_WORD_DEFERRED))
        return wr_payload_of(h);
    return peek_any(d, key, size);
}

static WR_OUT_OF_LINE void *peek_short(const wr_value_dict *d, const void *key, size_t size)
{
    return wr_likely(is_common(d, key, size, 8, 16)) ? peek_common(d, key, size) : peek_any(d, key, size);
}

void *wr_value_dict_peek(const wr_value_dict *d, const void *key, size_t size)
{
    WR_ASSERT(d == NULL || wr_guard_is_inside());
    return wr_likely(is_common(d, key, size, 17, 32)) ? peek_common(d, key, size) : peek_short(d, key, size);
}

bool wr_value_dict_contains(const wr_value_dict *d, const void *key, size_t size)
{
    if (wr_unlikely(is_bad(d, key, size))) {
        errno = EINVAL;
        return false;
    }
    probe p = probe_of(d, key, size);
    wr_guard_enter();
    entry *e = find(d, &p);
    while (e != NULL && wr_weak_is_dead(weak_of(e)))
        e = find_other(d, p, e);
    wr_guard_exit();
    return e != NULL;
}

/* ---- changes ---------------------------------------------------------------------------------------------- */

int(wr_value_dict_set)(wr_value_dict *d, const void *key, size_t size, void *obj)
{
    if (wr_unlikely(is_bad(d, key, size) || obj == NULL))
        return -EINVAL;
    probe p = probe_of(d, key, size);
    entry *e;
    int err = entry_new_for(d, &p, obj, &e);
    if (err != 0)
        return err;
    for (;;) {
        place at = lock_and_seek(d, &p);
        if (wr_likely(entry_attach(d, e, obj) == 0)) {
            wr_entry *old = link_at(d, &at, e);
            unlock_and_settle(d, &at, old);
            return 0;
        }
        err = prepare_again(d, &at, e, obj);
        if (err != 0)
            return err;
    }
}

/* @obj: NULL, or what the key must map to. */
static int take_out(wr_value_dict *d, const void *key, size_t size, const void *obj)
{
    probe p = probe_of(d, key, size);
    wr_guard_enter();
    bool there = find(d, &p) != NULL;
    wr_guard_exit();
    if (!there)
        return -ENOENT;

    wr_entry *mine = NULL;
    int err = -ENOENT;
    place at = lock_and_seek(d, &p);
    /* A dead object's entry is left to its fire. */
    if (at.found != NULL && (obj == NULL || wr_weak_is(weak_of(entry_of(at.found)), obj)) &&
        !wr_weak_is_dead(weak_of(entry_of(at.found)))) {
        wr_table_unlink(at.shard, at.link);
        mine = wr_dict_detach(&d->dict, wr_entry_of(at.found));
        err = 0;
    }
    wr_dict_unlock(&d->dict, at.shard, mine);
    return err;
}

int wr_value_dict_remove(wr_value_dict *d, const void *key, size_t size)
{
    if (wr_unlikely(is_bad(d, key, size)))
        return -EINVAL;
    return take_out(d, key, size, NULL);
}

int(wr_value_dict_remove_if)(wr_value_dict *d, const void *key, size_t size, const void *obj)
{
    if (wr_unlikely(is_bad(d, key, size) || obj == NULL))
        return -EINVAL;
    return take_out(d, key, size, obj);
}

int(wr_value_dict_replace)(wr_value_dict *d, const void *key, size_t size, const void *expected, void *obj)
{
    if (wr_unlikely(is_bad(d, key, size) || expected == NULL || obj == NULL))
        return -EINVAL;
    probe p = probe_of(d, key, size);
    entry *e;
    int err = entry_new_for(d, &p, obj, &e);
    while (err == 0) {
        place at = lock_and_seek(d, &p);
        if (at.found == NULL || !wr_weak_is(weak_of(entry_of(at.found)), expected) ||
            wr_weak_is_dead(weak_of(entry_of(at.found)))) {
            wr_dict_unlock(&d->dict, at.shard, NULL);
            entry_free(d, e);
            return -ENOENT;
        }
        if (wr_likely(entry_attach(d, e, obj) == 0)) {
            wr_entry *old = link_at(d, &at, e);
            unlock_and_settle(d, &at, old);
            return 0;
        }
        err = prepare_again(d, &at, e, obj);
    }
    return err;
}

void *wr_value_dict_pop(wr_value_dict *d, const void *key, size_t size)
{
    if (wr_unlikely(is_bad(d, key, size))) {
        errno = EINVAL;
        return NULL;
    }
    probe p = probe_of(d, key, size);
    for (;;) {
        /* Upgraded first, since no lock is held then; the guard keeps the entry's address from being used again. */
        wr_guard_enter();
        struct found it = find_and_upgrade(d, &p);
        bool taken = it.obj != NULL && wr_dict_take(&d->dict, &it.from->base);
        wr_guard_exit();
        if (taken || it.obj == NULL)
            return it.obj;
        wr_release(it.obj);
    }
}

int(wr_value_dict_setdefault)(wr_value_dict *d, const void *key, size_t size, void *obj, void **out)
{
    if (wr_unlikely(is_bad(d, key, size) || obj == NULL || out == NULL))
        return -EINVAL;
    probe p = probe_of(d, key, size);
    entry *e = NULL;
    for (bool done = false; !done;) {
        void *there = get(d, &p);
        if (there != NULL) {
            entry_free(d, e);
            *out = there;
            return 0;
        }
        int err = e == NULL ? entry_new_for(d, &p, obj, &e) : 0;
        if (err != 0)
            return err;
        place at = lock_and_seek(d, &p);
        if (at.found != NULL && !wr_weak_is_dead(weak_of(entry_of(at.found)))) {
            wr_dict_unlock(&d->dict, at.shard, NULL);
        } else if (wr_likely(entry_attach(d, e, obj) == 0)) {
            wr_entry *old = link_at(d, &at, e);
            unlock_and_settle(d, &at, old);
            done = true;
        } else {
            err = prepare_again(d, &at, e, obj);
            if (err != 0)
                return err;
        }
    }
    *out = wr_retain(obj);
    return 0;
}

/* ---- get or create ---------------------------------------------------------------------------------------- */

static int flight_new(wr_value_dict *d, const probe *p, flight **out)
{
    flight *f = wr_alloc_zero(sizeof *f);
    if (f == NULL)
        return -ENOMEM;
    int err = entry_new(d, p, &f->blank);
    if (err != 0) {
        wr_free(f);
        return err;
    }
    f->dict = d;
    f->probe = *p;
    f->probe.key = key_of(f->blank);
    f->creator = wr_thread_ordinal();
    f->process = wr_fork_process();
    wr_atomic_init(&f->refs, 1);
    wr_event_init(&f->event);
    *out = f;
    return 0;
}

/* One that never took off. */
static void flight_free(flight *f)
{
    if (f == NULL)
        return;
    entry_free(f->dict, f->blank);
    wr_free(f);
}

static void flight_release(flight *f)
{
    /* Acquire-release [dict-ref]: as in dict_release(), for flights. */
    if (wr_atomic_fetch_sub_acq_rel(&f->refs, 1) == 1)
        wr_free(f);
}

/* Requires: shard->lock held. */
static flight *flight_of(const wr_table_shard *shard, const probe *p)
{
    flight *f = shard->pending;
    while (f != NULL && !(f->probe.tag == p->tag && f->probe.size == p->size &&
                          (p->size == 0 || memcmp(f->probe.key, p->key, p->size) == 0)))
        f = f->next;
    return f;
}

/* In a forked child those who waited are gone. Requires: shard->lock held. */
static void flight_recount(flight *f)
{
    if (wr_likely(f->process == wr_fork_process()))
        return;
    f->process = wr_fork_process();
    f->n_waiters = 0;
    /* Relaxed: whoever else is going to count here takes the lock first. */
    wr_atomic_store_relaxed(&f->refs, 1);
}

/* Requires: shard->lock held. */
static void flight_unlist(wr_table_shard *shard, flight *f)
{
    flight *first = shard->pending;
    flight_recount(f);
    if (first == f) {
        shard->pending = f->next;
        return;
    }
    while (first->next != f)
        first = first->next;
    first->next = f->next;
}

/* Hands the result to those who wait; @obj, with a 0, stays the caller's. The flight is unlisted: nobody joins. Gives
 * the creator's reference and the blank, if it was not used, back. */
static void flight_end(flight *f, int result, void *obj)
{
    for (unsigned i = 0; result == 0 && i < f->n_waiters; i++)
        (void)wr_retain(obj);
    f->result = result;
    f->obj = obj;
    entry_free(f->dict, f->blank);
    /* Release [flight]: whoever sees it landed sees the result. */
    wr_atomic_store_release(&f->landed, 1);
    wr_event_signal(&f->event);
    flight_release(f);
}

/* A waiter has had enough. False: the flight is about to land, with a share for it. */
static bool flight_leave(flight *f)
{
    wr_table_shard *shard = wr_table_lock(&f->dict->dict.table, f->probe.tag);
    const flight *listed = shard->pending;
    while (listed != NULL && listed != f)
        listed = listed->next;
    if (listed != NULL)
        f->n_waiters--;
    wr_table_unlock(shard);
    wr_retire_relax();
    return listed != NULL;
}

/* Blocks until the flight has landed; or until @until_ns (WR_EVENT_FOREVER: no limit): -ETIMEDOUT. [out owned] this
 * waiter's share of the object. */
static int flight_wait(flight *f, uint64_t until_ns, void **out)
{
    for (;;) {
        uint32_t value = wr_event_value(&f->event);
        /* Acquire [flight]: sees the result. */
        if (wr_atomic_load_acquire(&f->landed))
            break;
        uint64_t now = until_ns != WR_EVENT_FOREVER ? wr_clock_ns() : 0;
        if (now < until_ns) {
            (void)wr_event_wait(&f->event, value, until_ns != WR_EVENT_FOREVER ? until_ns - now : WR_EVENT_FOREVER);
        } else if (flight_leave(f)) {
            flight_release(f);
            return -ETIMEDOUT;
        } else {
            until_ns = WR_EVENT_FOREVER; /* nothing that takes time is left */
        }
    }
    int result = f->result;
    if (result == 0)
        *out = f->obj;
    flight_release(f);
    return result;
}

/* The creating thread ends within create (pthread_exit() or cancellation). */
static void flight_abandon(void *flight_)
{
    flight *f = flight_;
    wr_table_shard *shard = wr_table_lock(&f->dict->dict.table, f->probe.tag);
    flight_unlist(shard, f);
    wr_table_unlock(shard);
    flight_end(f, -EDEADLK, NULL);
    wr_retire_relax();
}

static int flight_create(flight *f, wr_value_dict_create_fn *create, void *ctx, void **obj)
{
    int result;
    wr_lock_assert_none("create");
    pthread_cleanup_push(flight_abandon, f);
    result = create(f->probe.key, f->probe.size, ctx, obj);
    pthread_cleanup_pop(0);
    if (result > 0 || (result == 0 && *obj == NULL))
        return -EINVAL;
    return result;
}

/* After create: links what was created (@created: [consumed], NULL with an error), unless a set came first, in one
 * section with the end of the flight. [out owned] what all get. */
static int flight_land(flight *f, int err, void *created, void **out)
{
    wr_value_dict *d = f->dict;
    const probe *p = &f->probe; /* until the flight is unlisted: then the blank may go, or its entry */
    wr_entry *old = NULL;
    void *there, *stale = NULL;
    bool unlisted = false, unsettled = false, again = false;
    if (err == 0)
        err = entry_prepare(d, f->blank, created);
    do {
        wr_release(stale);
        if (wr_unlikely(again))
            err = wr_watcher_prepare(created);
        struct found it = {NULL, NULL};
        wr_guard_enter(); /* keeps the address of that entry from being used again */
        if (created != NULL)
            it = find_and_upgrade(d, p);
        there = it.obj;
        place at = lock_and_seek(d, p);
        /* What was found may have been removed since: those who joined after that must not get it. */
        bool stands = there != NULL && at.found == &it.from->base.node;
        bool missing = at.found == NULL || wr_weak_is_dead(weak_of(entry_of(at.found)));
        again = err == 0 && missing && entry_attach(d, f->blank, created) != 0;
        if (err == 0 && missing && !again) {
            old = link_at(d, &at, f->blank);
            unsettled = at.unsettled;
            f->blank = NULL;
        }
        if (stands || created == NULL || (missing && !again)) {
            flight_unlist(at.shard, f);
            unlisted = true;
        }
        wr_dict_unlock(&d->dict, at.shard, old);
        wr_guard_exit();
        stale = stands ? NULL : there;
        there = stands ? there : NULL;
    } while (!unlisted);

    void *unused = err != -ESTALE ? created : NULL; /* dead: nobody can have given a reference */
    if (there != NULL) {
        err = 0;
    } else if (err == 0) {
        there = created;
        unused = NULL;
    }
    flight_end(f, err, there);
    if (err == 0)
        *out = there;
    wr_release(unused);
    wr_release(stale);
    if (wr_unlikely(unsettled))
        wr_keep_settle(d->keep);
    return err;
}

int wr_value_dict_get_or_create(wr_value_dict *d, const void *key, size_t size, wr_value_dict_create_fn *create,
                                void *ctx, void **out)
{
    return wr_value_dict_get_or_create_timed(d, key, size, create, ctx, UINT_MAX, out);
}

int wr_value_dict_get_or_create_timed(wr_value_dict *d, const void *key, size_t size, wr_value_dict_create_fn *create,
                                      void *ctx, unsigned timeout_ms, void **out)
{
    if (wr_unlikely(is_bad(d, key, size) || create == NULL || out == NULL))
        return -EINVAL;
    probe p = probe_of(d, key, size);
    flight *own = NULL;
    for (;;) {
        void *there = get(d, &p);
        if (there != NULL) {
            flight_free(own);
            *out = there;
            return 0;
        }
        place at = lock_and_seek(d, &p);
        bool missing = at.found == NULL || wr_weak_is_dead(weak_of(entry_of(at.found)));
        flight *other = missing ? flight_of(at.shard, &p) : NULL, *cut = NULL;
        if (wr_unlikely(other != NULL && wr_thread_is_gone(other->creator))) {
            flight_unlist(at.shard, other); /* a fork has left its create behind: this one flies in its place */
            cut = other;
            other = NULL;
        }
        bool mine = other != NULL && other->creator == wr_thread_ordinal();
        bool takes_off = missing && other == NULL && own != NULL;
        if (other != NULL && !mine) {
            flight_recount(other);
            other->n_waiters++;
            /* Relaxed: the creator's reference stands as long as the flight is listed. */
            wr_atomic_fetch_add_relaxed(&other->refs, 1);
        } else if (takes_off) {
            own->next = at.shard->pending;
            at.shard->pending = own;
        }
        wr_table_unlock(at.shard);
        flight_free(cut);
        if (takes_off)
            break;
        if (other != NULL) {
            flight_free(own);
            if (mine)
                return -EDEADLK;
            uint64_t until_ns = WR_EVENT_FOREVER;
            if (timeout_ms != UINT_MAX)
                until_ns = wr_clock_ns() + timeout_ms * UINT64_C(1000000);
            return flight_wait(other, until_ns, out);
        }
        if (missing) {
            int err = flight_new(d, &p, &own);
            if (err != 0)
                return err;
        }
    }
    void *created = NULL;
    int err = flight_create(own, create, ctx, &created);
    return flight_land(own, err, err == 0 ? created : NULL, out);
}

/* ---- all of them ------------------------------------------------------------------------------------------ */

void wr_value_dict_iter_begin(wr_value_dict_iter *it, wr_value_dict *d)
{
    if (d == NULL)
        errno = EINVAL;
    wr_dict_iter_begin(&it->iter, d != NULL ? &d->dict : NULL);
}

bool wr_value_dict_iter_next(wr_value_dict_iter *it, struct wr_value_dict_item *item)
{
    const entry *e = (const entry *)wr_dict_iter_next(&it->iter, &item->value);
    if (e == NULL)
        return false;
    item->key = key_of(e);
    item->key_size = key_size(e);
    return true;
}

bool wr_value_dict_iter_next_ref(wr_value_dict_iter *it, struct wr_value_dict_ref *ref)
{
    const entry *e = (const entry *)wr_dict_iter_next(&it->iter, NULL);
    if (e == NULL)
        return false;
    ref->key = key_of(e);
    ref->key_size = key_size(e);
    ref->value = wr_weak_retain(weak_of(e));
    return true;
}

void wr_value_dict_iter_end(wr_value_dict_iter *it)
{
    wr_dict_iter_end(&it->iter);
}

struct popped {
    void *key;
    size_t room, size;
};

static bool popped_fits(const wr_entry *e, void *popped_)
{
    struct popped *popped = popped_;
    popped->size = key_size((const entry *)e);
    return popped->size <= popped->room;
}

void *wr_value_dict_popitem(wr_value_dict *d, void *key, size_t *size)
{
    if (wr_unlikely(d == NULL || (size == NULL && key != NULL) || (key == NULL && size != NULL && *size > 0))) {
        errno = EINVAL;
        return NULL;
    }
    struct popped popped = {.key = key, .room = size != NULL ? *size : SIZE_MAX};
    struct wr_dict_iter it;
    void *obj = NULL;
    bool refused;
    const entry *e = (const entry *)wr_dict_pop_any(&d->dict, &it, &obj, popped_fits, &popped, &refused);
    if (e != NULL || refused) {
        if (size != NULL)
            *size = popped.size;
        if (refused)
            errno = ENOSPC;
        else if (key != NULL)
            memcpy(key, key_of(e), popped.size);
    }
    wr_dict_iter_end(&it);
    return e != NULL ? obj : NULL;
}

int wr_value_dict_update(wr_value_dict *d, wr_value_dict *from)
{
    if (wr_unlikely(d == NULL || from == NULL))
        return -EINVAL;
    if (d == from)
        return 0;
    wr_value_dict_iter it;
    struct wr_value_dict_item item;
    int err = 0;
    wr_value_dict_iter_begin(&it, from);
    while (err == 0 && wr_value_dict_iter_next(&it, &item)) {
        err = wr_value_dict_set(d, item.key, item.key_size, item.value);
        wr_release(item.value);
    }
    wr_value_dict_iter_end(&it);
    return err;
}

int wr_value_dict_update_items(wr_value_dict *d, const struct wr_value_dict_item *items, size_t n)
{
    int err = d == NULL || (items == NULL && n > 0) ? -EINVAL : 0;
    for (size_t i = 0; err == 0 && i < n; i++)
        err = wr_value_dict_set(d, items[i].key, items[i].key_size, items[i].value);
    return err;
}

/* [owned] @d, or with an error NULL in its place. */
static wr_value_dict *unless(wr_value_dict *d, int err)
{
    if (err == 0)
        return d;
    wr_value_dict_free(d);
    errno = -err;
    return NULL;
}

wr_value_dict *wr_value_dict_from_items(const struct wr_value_dict_options *options,
                                        const struct wr_value_dict_item *items, size_t n)
{
    wr_value_dict *d = wr_value_dict_new(options);
    return d != NULL ? unless(d, wr_value_dict_update_items(d, items, n)) : NULL;
}

wr_value_dict *wr_value_dict_copy(wr_value_dict *from)
{
    return wr_value_dict_union(from, NULL);
}

wr_value_dict *wr_value_dict_union(wr_value_dict *a, wr_value_dict *b)
{
    if (a == NULL) {
        errno = EINVAL;
        return NULL;
    }
    wr_value_dict *d = wr_value_dict_new(NULL);
    if (d == NULL)
        return NULL;
    int err = wr_value_dict_update(d, a);
    if (err == 0 && b != NULL)
        err = wr_value_dict_update(d, b);
    return unless(d, err);
}
