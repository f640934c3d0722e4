/* F7 value_dict: entries that die with their objects, and creates that fly alone.
 *
 * An entry is a node of the table, a watcher of its object, and the key, in one block. It owns one weak count of the
 * object's header, so a reader that found it in a guard may try the header. Four parties take entries out:
 *
 *     remove, pop, clear   unlink it, then wr_watcher_detach()
 *     set                  puts another in its place, then wr_watcher_detach()
 *     free                 as clear
 *     the object's death   detaches it, then entry_fire() unlinks exactly this entry, if it is still linked
 *
 * The shard lock decides who unlinks, the side lock who detaches; who detached retires the entry. All four hold the
 * shard lock while they unlink, and the first three also while they detach (lock order: shard, side), so:
 *
 *     unlinked by   detached by   retired by       then
 *     verb          verb          verb
 *     verb          death         entry_fire()     the verb leaves an *orphan*, which holds a reference of the
 *                                                  dictionary until its fire comes by
 *     death         death         entry_fire()     no verb finds it any more
 *     death         verb          cannot be: who is not linked is not found by verbs
 *
 * So the dictionary's memory stays for as long as a fire can come: while entries are linked free() has not yet got to
 * them, and then they are orphans. After its last unlocking a fire does not count any more, but is in a guard, and
 * the memory is retired like an entry's. Nobody waits for anybody.
 *
 * A look-up that finds an entry and cannot upgrade it has seen a death, but not yet that the key has no living
 * object: the entry may have been replaced before the object died. It searches again. Finding the same entry a second
 * time, it was linked after the death: the key is missing. Else the new entry is tried.
 *
 * Flights: while a key is being created, its flight stands in its shard's list (guarded by the shard lock). Who wants
 * to create and finds no living entry and no flight, under one lock, starts one; who finds a flight joins. Landing
 * takes it off the list in the same section that links the entry, so between the two no second create can start. From
 * then on nobody joins, and the number of those who wait is fixed.
 */
#include <weakref/value_dict.h>

#include <weakref/weak.h>

#include "alloc.h"
#include "event.h"
#include "hash.h"
#include "object.h"
#include "table.h"

#include <errno.h>

typedef struct entry {
    union {
        wr_watcher watcher; /* its header stays valid until the entry is reclaimed */
        wr_retired retired; /* once detached, in place of the watcher's links */
    };
    wr_table_node node;  /* the tag's own bits: the key's size, or LONG_KEY */
    unsigned char key[]; /* with LONG_KEY first its size, a size_t */
} entry;

_Static_assert(sizeof(entry) == 48, "an entry with a key of 24 bytes takes 72");
_Static_assert(sizeof(wr_retired) <= offsetof(wr_watcher, klass), "retiring leaves class and header alone");

#define LONG_KEY 255u

struct wr_value_dict {
    wr_hash_key hash_key;
    wr_watcher_class klass; /* of its entries alone: by it a fire finds the dictionary */
    wr_retired retired;
    WR_ATOMIC(size_t) refs; /* the owner's until free, one for each orphan, and the janitor's */
    wr_retired janitor;     /* brings the table's size down after deaths; see entry_fire() */
    wr_atomic_u32 janitor_called;
    wr_table table; /* last: its size varies */
};

/* A key on its way. */
typedef struct probe {
    const void *key;
    size_t size;
    uint64_t tag;
} probe;

typedef struct flight {
    struct flight *next; /* the shard's flights. Guarded by the shard's lock, as n_waiters */
    wr_value_dict *dict;
    probe probe;  /* its key is the blank's, which no caller can write to: valid while the flight is listed */
    entry *blank; /* for the landing; the creator's */
    pthread_t creator;
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
    uint64_t hash = wr_hash_bytes(&d->hash_key, key, size);
    probe p = {key, size, wr_table_tag(hash, size < LONG_KEY ? (unsigned)size : LONG_KEY)};
    return p;
}

static inline entry *entry_of(const wr_table_node *node)
{
    return (entry *)((uintptr_t)node - offsetof(entry, node));
}

/* Equal bytes? In steps of 8 whose last one overlaps, since most keys are short and memcmp() is a call. */
static inline bool equal_bytes(const unsigned char *a, const unsigned char *b, size_t size)
{
    if (size > 64)
        return memcmp(a, b, size) == 0;
    if (size >= 8) {
        for (size_t i = 0; i + 8 < size; i += 8)
            if (wr_hash_load64(a + i) != wr_hash_load64(b + i))
                return false;
        return wr_hash_load64(a + size - 8) == wr_hash_load64(b + size - 8);
    }
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
static inline bool match_key(const wr_table_node *node, const void *probe_)
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

/* ---- entries ---------------------------------------------------------------------------------------------- */

static inline wr_weak *weak_of(const entry *e)
{
    return wr_weak_of_header(e->watcher.header);
}

static void entry_reclaim(wr_retired *r)
{
    entry *e = (entry *)((char *)r - offsetof(entry, retired));
    wr_watcher_release_weak(e->watcher.header);
    wr_free(e);
}

static void entry_retire(entry *e)
{
    if (e != NULL)
        wr_retire_memory(&e->retired, entry_reclaim);
}

/* Not linked, not attached: for wr_free(). Makes the room in the table, too. 0, or -ENOMEM. */
static int entry_new(wr_value_dict *d, const probe *p, entry **out)
{
    size_t prefix = p->size < LONG_KEY ? 0 : sizeof p->size;
    if (p->size > SIZE_MAX / 2 || wr_table_reserve(&d->table, p->tag) != 0)
        return -ENOMEM;
    entry *e = wr_alloc(sizeof(entry) + prefix + p->size);
    if (e == NULL)
        return -ENOMEM;
    e->watcher.klass = &d->klass;
    e->node.tag = p->tag;
    memcpy(e->key, &p->size, prefix);
    if (p->size > 0)
        memcpy(e->key + prefix, p->key, p->size);
    *out = e;
    return 0;
}

static void dict_reclaim(wr_retired *r)
{
    wr_value_dict *d = (wr_value_dict *)((char *)r - offsetof(wr_value_dict, retired));
    wr_table_fini(&d->table);
    wr_free(d);
}

static void dict_release(wr_value_dict *d)
{
    /* Acquire-release [dict-ref]: the last one frees after all others' last use. Pairs with itself in other threads. */
    if (wr_atomic_fetch_sub_acq_rel(&d->refs, 1) == 1)
        wr_retire_memory(&d->retired, dict_reclaim);
}

/* After @e was unlinked: returns it if it is the caller's to retire, NULL if its fire will do that.
 * Requires: shard lock held. Takes: the side lock. */
static entry *entry_detach(wr_value_dict *d, entry *e)
{
    if (wr_watcher_detach(&e->watcher))
        return e;
    /* Relaxed: the caller keeps the dictionary, by its own reference or by the lock that the fire wants first. */
    wr_atomic_fetch_add_relaxed(&d->refs, 1);
    return NULL;
}

/* Deaths call the janitor, since they allocate nothing themselves. It is user work, so that it runs on the reclaimer thread,
 * or where others wait anyway. */
static void janitor_run(wr_retired *r)
{
    wr_value_dict *d = (wr_value_dict *)((char *)r - offsetof(wr_value_dict, janitor));
    /* Acquire-release [dict-janitor]: sees what the deaths did that found it called already; and from here on it can be called
     * again, by who sees that its record was read. */
    (void)wr_atomic_exchange_acq_rel(&d->janitor_called, 0);
    for (uint64_t i = 0; i <= d->table.shard_mask; i++)
        wr_table_settle(&d->table.shard[i]);
    dict_release(d);
}

/* Gives a reference of the dictionary to the janitor, or back. */
static WR_COLD void janitor_call(wr_value_dict *d)
{
    uint32_t no = 0;
    /* Acquire-release [dict-janitor]: one of the callers retires its record; what the others did before, it sees. */
    if (wr_atomic_cas_acq_rel(&d->janitor_called, &no, 1))
        wr_retire_user(&d->janitor, janitor_run);
    else
        dict_release(d);
}

/* The object of @first died. INTERNAL stage: no lock held, no user code. */
static wr_watcher *entry_fire(wr_watcher *first)
{
    wr_watcher *rest = first->next;
    entry *e = (entry *)((char *)first - offsetof(entry, watcher));
    wr_value_dict *d = (wr_value_dict *)((uintptr_t)first->klass - offsetof(wr_value_dict, klass));
    wr_guard_enter(); /* keeps the dictionary once the shard is unlocked */
    wr_table_shard *shard = wr_table_lock(&d->table, e->node.tag);
    bool linked = wr_table_unlink_node(shard, &e->node);
    bool due = linked && wr_table_is_due(shard);
    if (due) {
        /* Relaxed: the owner's reference stands, for this shard has not been cleared yet. */
        wr_atomic_fetch_add_relaxed(&d->refs, 1);
    }
    wr_table_unlock_as_is(shard);
    if (due)
        janitor_call(d);
    if (!linked)
        dict_release(d);
    wr_guard_exit();
    entry_retire(e);
    wr_retire_relax();
    return rest;
}

/* Links @e, which is attached, where wr_table_seek() found @found or nothing. Returns what is to be retired.
 * Requires: shard->lock held. */
static entry *entry_link(wr_value_dict *d, wr_table_shard *shard, wr_table_link *link, wr_table_node *found, entry *e)
{
    if (found == NULL) {
        wr_table_insert(shard, link, &e->node);
        return NULL;
    }
    wr_table_replace(shard, link, &e->node);
    return entry_detach(d, entry_of(found));
}

/* ---- life ------------------------------------------------------------------------------------------------- */

/* Reads what a caller, older or newer than the library, gave. */
static int options_read(const struct wr_value_dict_options *from, struct wr_value_dict_options *to)
{
    const size_t least = offsetof(struct wr_value_dict_options, initial_size) + sizeof from->initial_size;
    memset(to, 0, sizeof *to);
    if (from == NULL)
        return 0;
    if (from->struct_size < least)
        return -EINVAL;
    for (size_t i = sizeof *to; i < from->struct_size; i++)
        if (((const unsigned char *)from)[i] != 0)
            return -EINVAL; /* asks for what this version does not know */
    memcpy(to, from, from->struct_size < sizeof *to ? from->struct_size : sizeof *to);
    return 0;
}

wr_value_dict *wr_value_dict_new(const struct wr_value_dict_options *given)
{
    struct wr_value_dict_options options;
    int err = options_read(given, &options);
    if (err != 0) {
        errno = -err;
        return NULL;
    }
    err = wr_reclaimer_start();
    if (err != 0) {
        errno = -err;
        return NULL;
    }
    unsigned n_shards = wr_table_shards_for(options.initial_size);
    wr_value_dict *d =
        wr_alloc_aligned(_Alignof(wr_value_dict), offsetof(wr_value_dict, table) + wr_table_size(n_shards));
    if (d == NULL || wr_table_init(&d->table, n_shards, options.initial_size) != 0) {
        wr_free(d);
        errno = ENOMEM;
        return NULL;
    }
    d->hash_key = wr_hash_key_random();
    d->klass.stage = WR_WATCHER_INTERNAL;
    d->klass.fire = entry_fire;
    wr_atomic_init(&d->refs, 1);
    wr_atomic_init(&d->janitor_called, 0);
    return d;
}

static void clear_shard(wr_value_dict *d, wr_table_shard *shard, bool settle)
{
    enum { AT_ONCE = 128 }; /* buckets and entries per locking */
    uint64_t cursor = 0;
    bool more;
    do {
        entry *mine[AT_ONCE];
        unsigned n_mine = 0, steps = 0;
        wr_table_lock_shard(shard);
        do {
            wr_table_link *link = wr_table_sweep(shard, &cursor);
            more = link != NULL || cursor != 0;
            if (link == NULL)
                continue;
            /* Relaxed: under the lock. */
            entry *e = entry_of(wr_atomic_load_relaxed(link));
            cursor = e->node.tag;
            wr_table_unlink(shard, link);
            e = entry_detach(d, e);
            if (e != NULL)
                mine[n_mine++] = e;
        } while (more && ++steps < AT_ONCE);
        wr_table_unlock(shard);
        while (n_mine > 0)
            entry_retire(mine[--n_mine]);
        wr_retire_relax();
    } while (more);
    if (settle)
        wr_table_settle(shard);
}

static void clear(wr_value_dict *d, bool settle)
{
    for (uint64_t i = 0; i <= d->table.shard_mask; i++)
        clear_shard(d, &d->table.shard[i], settle);
}

void wr_value_dict_clear(wr_value_dict *d)
{
    if (d != NULL)
        clear(d, true);
}

void wr_value_dict_free(wr_value_dict *d)
{
    if (d == NULL)
        return;
    clear(d, false);
    dict_release(d);
    wr_retire_relax();
}

size_t wr_value_dict_len(const wr_value_dict *d)
{
    if (d == NULL) {
        errno = EINVAL;
        return 0;
    }
    return wr_table_count(&d->table);
}

/* ---- look-ups --------------------------------------------------------------------------------------------- */

/* Requires: in a guard. */
static inline __attribute__((always_inline)) entry *find(const wr_value_dict *d, const probe *p)
{
    wr_table_node *node = wr_table_find(&d->table, p->tag, match_key, p);
    return node != NULL ? entry_of(node) : NULL;
}

/* After @e was found and its object was seen dead: whether there is another entry by now. Requires: in a guard. */
static WR_COLD entry *find_other(const wr_value_dict *d, const probe *p, const entry *e)
{
    entry *other = find(d, p);
    return other == e ? NULL : other;
}

/* [owned] the living object, and the entry that led to it. Requires: in a guard. */
static inline void *find_and_upgrade(const wr_value_dict *d, const probe *p, entry **from)
{
    for (entry *e = find(d, p); e != NULL; e = find_other(d, p, e)) {
        void *obj = wr_upgrade(weak_of(e));
        if (wr_likely(obj != NULL)) {
            *from = e;
            return obj;
        }
    }
    return NULL;
}

static inline void *get(const wr_value_dict *d, const probe *p)
{
    entry *from;
    wr_guard_enter();
    void *obj = find_and_upgrade(d, p, &from);
    wr_guard_exit();
    return obj;
}

void *wr_value_dict_get(const wr_value_dict *d, const void *key, size_t size)
{
    if (wr_unlikely(is_bad(d, key, size))) {
        errno = EINVAL;
        return NULL;
    }
    probe p = probe_of(d, key, size);
    return get(d, &p);
}

void *wr_value_dict_peek(const wr_value_dict *d, const void *key, size_t size)
{
    if (wr_unlikely(is_bad(d, key, size))) {
        errno = EINVAL;
        return NULL;
    }
    WR_ASSERT(wr_guard_is_inside());
    probe p = probe_of(d, key, size);
    for (entry *e = find(d, &p); e != NULL; e = find_other(d, &p, e)) {
        const wr_header *h = e->watcher.header;
        uint64_t bits = wr_word_peek(&h->word);
        if (wr_unlikely((bits & WR_WORD_DEFERRED) == 0))
            wr_object_panic("wr_value_dict_peek", h, "its type lacks WR_TYPE_DEFERRED");
        if (wr_likely((bits & WR_WORD_CLOSED) == 0))
            return wr_payload_of(h);
    }
    return NULL;
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
        e = find_other(d, &p, e);
    wr_guard_exit();
    return e != NULL;
}

/* ---- changes ---------------------------------------------------------------------------------------------- */

int wr_value_dict_set(wr_value_dict *d, const void *key, size_t size, void *obj)
{
    if (wr_unlikely(is_bad(d, key, size) || obj == NULL))
        return -EINVAL;
    int err = wr_watcher_prepare(obj);
    if (err != 0)
        return err;
    probe p = probe_of(d, key, size);
    entry *e, *old = NULL;
    err = entry_new(d, &p, &e);
    if (err != 0)
        return err;
    wr_table_node *found;
    wr_table_shard *shard = wr_table_lock(&d->table, p.tag);
    wr_table_link *link = wr_table_seek(shard, p.tag, order_key, &p, &found);
    err = wr_watcher_attach_prepared(&e->watcher, obj);
    if (err == 0)
        old = entry_link(d, shard, link, found, e);
    wr_table_unlock(shard);
    if (err != 0)
        wr_free(e);
    entry_retire(old);
    wr_retire_relax();
    return err;
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

    entry *mine = NULL;
    int err = -ENOENT;
    wr_table_node *found;
    wr_table_shard *shard = wr_table_lock(&d->table, p.tag);
    wr_table_link *link = wr_table_seek(shard, p.tag, order_key, &p, &found);
    /* A dead object's entry is left to its fire. */
    if (found != NULL && (obj == NULL || wr_weak_is(weak_of(entry_of(found)), obj)) &&
        !wr_weak_is_dead(weak_of(entry_of(found)))) {
        wr_table_unlink(shard, link);
        mine = entry_detach(d, entry_of(found));
        err = 0;
    }
    wr_table_unlock(shard);
    entry_retire(mine);
    wr_retire_relax();
    return err;
}

int wr_value_dict_remove(wr_value_dict *d, const void *key, size_t size)
{
    if (wr_unlikely(is_bad(d, key, size)))
        return -EINVAL;
    return take_out(d, key, size, NULL);
}

int wr_value_dict_remove_if(wr_value_dict *d, const void *key, size_t size, const void *obj)
{
    if (wr_unlikely(is_bad(d, key, size) || obj == NULL))
        return -EINVAL;
    return take_out(d, key, size, obj);
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
        entry *from = NULL, *mine = NULL;
        wr_guard_enter();
        void *obj = find_and_upgrade(d, &p, &from);
        if (obj == NULL) {
            wr_guard_exit();
            return NULL;
        }
        wr_table_shard *shard = wr_table_lock(&d->table, p.tag);
        bool linked = wr_table_unlink_node(shard, &from->node);
        if (linked)
            mine = entry_detach(d, from);
        wr_table_unlock(shard);
        wr_guard_exit();
        entry_retire(mine);
        wr_retire_relax();
        if (linked)
            return obj;
        wr_release(obj);
    }
}

int wr_value_dict_setdefault(wr_value_dict *d, const void *key, size_t size, void *obj, void **out)
{
    if (wr_unlikely(is_bad(d, key, size) || obj == NULL || out == NULL))
        return -EINVAL;
    probe p = probe_of(d, key, size);
    entry *e = NULL, *old = NULL;
    int err = 0;
    for (;;) {
        void *there = get(d, &p);
        if (there != NULL) {
            wr_free(e);
            *out = there;
            return 0;
        }
        if (e == NULL) {
            err = wr_watcher_prepare(obj);
            if (err == 0)
                err = entry_new(d, &p, &e);
            if (err != 0)
                return err;
        }
        wr_table_node *found;
        wr_table_shard *shard = wr_table_lock(&d->table, p.tag);
        wr_table_link *link = wr_table_seek(shard, p.tag, order_key, &p, &found);
        bool missing = found == NULL || wr_weak_is_dead(weak_of(entry_of(found)));
        if (missing) {
            err = wr_watcher_attach_prepared(&e->watcher, obj);
            if (err == 0)
                old = entry_link(d, shard, link, found, e);
        }
        wr_table_unlock(shard);
        if (missing)
            break;
    }
    if (err != 0)
        wr_free(e);
    else
        *out = wr_retain(obj);
    entry_retire(old);
    wr_retire_relax();
    return err;
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
    f->probe.key = f->blank->key + (p->size < LONG_KEY ? 0 : sizeof p->size);
    f->creator = pthread_self();
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
    wr_free(f->blank);
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

/* Requires: shard->lock held. */
static void flight_unlist(wr_table_shard *shard, flight *f)
{
    flight *first = shard->pending;
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
    wr_free(f->blank);
    /* Release [flight]: whoever sees it landed sees the result. */
    wr_atomic_store_release(&f->landed, 1);
    wr_event_signal(&f->event);
    flight_release(f);
}

/* Blocks until the flight has landed. [out owned] this waiter's share of the object. */
static int flight_wait(flight *f, void **out)
{
    for (;;) {
        uint32_t value = wr_event_value(&f->event);
        /* Acquire [flight]: sees the result. */
        if (wr_atomic_load_acquire(&f->landed))
            break;
        wr_event_wait(&f->event, value, WR_EVENT_FOREVER);
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
    wr_table_shard *shard = wr_table_lock(&f->dict->table, f->probe.tag);
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
    entry *old = NULL;
    void *there, *stale = NULL;
    bool unlisted = false;
    if (err == 0)
        err = wr_watcher_prepare(created);
    do {
        wr_release(stale);
        entry *from = NULL;
        wr_guard_enter(); /* keeps the address of that entry from being used again */
        there = created != NULL ? find_and_upgrade(d, p, &from) : NULL;
        wr_table_node *found;
        wr_table_shard *shard = wr_table_lock(&d->table, p->tag);
        wr_table_link *link = wr_table_seek(shard, p->tag, order_key, p, &found);
        /* What was found may have been removed since: those who joined after that must not get it. */
        bool stands = there != NULL && found == &from->node;
        bool missing = found == NULL || wr_weak_is_dead(weak_of(entry_of(found)));
        if (err == 0 && missing) {
            err = wr_watcher_attach_prepared(&f->blank->watcher, created);
            if (err == 0) {
                old = entry_link(d, shard, link, found, f->blank);
                f->blank = NULL;
            }
        }
        if (stands || created == NULL || missing) {
            flight_unlist(shard, f);
            unlisted = true;
        }
        wr_table_unlock(shard);
        wr_guard_exit();
        stale = stands ? NULL : there;
        there = stands ? there : NULL;
    } while (!unlisted);

    void *unused = NULL;
    if (there != NULL) {
        err = 0;
        unused = created;
    } else if (err != 0) {
        unused = err != -ESTALE ? created : NULL; /* dead: nobody can have given a reference */
    } else {
        there = created;
    }
    flight_end(f, err, there);
    entry_retire(old);
    wr_retire_relax();
    if (err == 0)
        *out = there;
    wr_release(unused);
    wr_release(stale);
    return err;
}

int wr_value_dict_get_or_create(wr_value_dict *d, const void *key, size_t size, wr_value_dict_create_fn *create,
                                void *ctx, void **out)
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
        wr_table_node *found;
        wr_table_shard *shard = wr_table_lock(&d->table, p.tag);
        (void)wr_table_seek(shard, p.tag, order_key, &p, &found);
        bool missing = found == NULL || wr_weak_is_dead(weak_of(entry_of(found)));
        flight *other = missing ? flight_of(shard, &p) : NULL;
        bool mine = other != NULL && pthread_equal(other->creator, pthread_self());
        bool takes_off = missing && other == NULL && own != NULL;
        if (other != NULL && !mine) {
            other->n_waiters++;
            /* Relaxed: the creator's reference stands as long as the flight is listed. */
            wr_atomic_fetch_add_relaxed(&other->refs, 1);
        } else if (takes_off) {
            own->next = shard->pending;
            shard->pending = own;
        }
        wr_table_unlock(shard);
        if (takes_off)
            break;
        if (other != NULL) {
            flight_free(own);
            return mine ? -EDEADLK : flight_wait(other, out);
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
