/* F6 dict: who takes an entry out, who retires it, and who stands on it meanwhile.
 *
 * Four parties take entries out:
 *
 *     remove, pop, clear   unlink it, then wr_watcher_detach()
 *     set                  puts another in its place, then wr_watcher_detach()
 *     free                 as clear
 *     the object's death   detaches it, then entry_fire() unlinks exactly this entry, if it is still linked; a guest: see below
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
 * That is so for entries on a list. A *guest* (object.c), as most entries are, is not detached by the death: entry_fire_guest()
 * looks under the shard lock whether it is linked, and who unlinked it has all of it. So guests leave no orphans.
 *
 * So the dictionary's memory stays for as long as a fire can come: while entries are linked free() has not yet got to
 * them, and then they are orphans, or guests, whose fire has been in a guard since it met them. After its last unlocking no
 * fire counts any more, but it is in a guard, and the memory is retired like an entry's. Nobody waits for anybody.
 *
 * Iterators walk as (g) of table.c tells, in a guard that ends with each step. In between they *stand* on an entry,
 * whose key says where they are: it stays whole until they leave it. An iterator that steps on an entry says so, in its
 * guard, in a stripe of a small table that all dictionaries share; so when the entry's grace period is over, whoever reclaims
 * it finds the iterator there, and leaves the entry to it. (A count in the entry would cost each of them 4 bytes, which
 * malloc makes 16.) As the entry has a second grace period then, nothing of the user's runs in an iterator's step.
 * An iterator holds a reference of the dictionary, so that it may outlive a free: it comes to its end.
 */
#include "dict.h"

#include "alloc.h"
#include "fork.h"

#include <errno.h>
#include <string.h>

/* ---- life ------------------------------------------------------------------------------------------------- */

static wr_watcher *entry_fire(wr_watcher *first);
static void entry_fire_guest(wr_watcher *guest);

int wr_dict_options(const void *from, void *to, size_t size, size_t least)
{
    memset(to, 0, size);
    if (from == NULL)
        return 0;
    size_t given;
    memcpy(&given, from, sizeof given);
    if (given < least)
        return -EINVAL;
    for (size_t i = size; i < given; i++)
        if (((const unsigned char *)from)[i] != 0)
            return -EINVAL;
    memcpy(to, from, given < size ? given : size);
    return 0;
}

int wr_dict_new(size_t before, const wr_dict_kind *kind, size_t n_entries, void **block)
{
    int err = wr_reclaimer_start();
    if (err != 0)
        return err;
    unsigned n_shards = wr_table_shards_for(n_entries);
    char *memory = wr_alloc_aligned(_Alignof(wr_dict), before + offsetof(wr_dict, table) + wr_table_size(n_shards));
    if (memory == NULL)
        return -ENOMEM;
    wr_dict *d = (wr_dict *)(void *)(memory + before);
    if (wr_table_init(&d->table, n_shards, n_entries) != 0) {
        wr_free(memory);
        return -ENOMEM;
    }
    d->hash_key = wr_hash_key_random();
    d->klass = (wr_watcher_class){
        .stage = WR_WATCHER_INTERNAL, .fire = entry_fire, .fire_guest = entry_fire_guest, .usual_type = &d->usual_type};
    wr_atomic_init(&d->usual_type, NULL);
    d->kind = kind;
    d->flags = 0;
    wr_atomic_init(&d->refs, 1);
    wr_atomic_init(&d->janitor_called, 0);
    wr_atomic_init(&d->pop_from, 0);
    *block = memory;
    return 0;
}

void wr_dict_release(wr_dict *d)
{
    /* Acquire-release [dict-ref]: the last one frees after all others' last use. Pairs with itself in other threads. */
    if (wr_atomic_fetch_sub_acq_rel(&d->refs, 1) == 1)
        d->kind->retire_dict(d);
}

static void clear_shard(wr_dict *d, wr_table_shard *shard, bool settle)
{
    enum { AT_ONCE = 128 }; /* buckets and entries per locking */
    uint64_t cursor = 0;
    bool more;
    do {
        wr_entry *mine[AT_ONCE];
        unsigned n_mine = 0, steps = 0;
        wr_table_lock_shard(shard);
        do {
            wr_table_link *link = wr_table_sweep(shard, &cursor);
            more = link != NULL || cursor != 0;
            if (link == NULL)
                continue;
            /* Relaxed: under the lock. */
            wr_entry *e = wr_entry_of(wr_atomic_load_relaxed(link));
            cursor = e->node.tag;
            wr_table_unlink(shard, link);
            e = wr_dict_detach(d, e);
            if (e != NULL)
                mine[n_mine++] = e;
        } while (more && ++steps < AT_ONCE);
        wr_table_unlock(shard);
        while (n_mine > 0)
            d->kind->retire(mine[--n_mine]);
        wr_retire_relax();
    } while (more);
    if (settle)
        wr_table_settle(shard);
}

static void clear(wr_dict *d, bool settle)
{
    for (uint64_t i = 0; i <= d->table.shard_mask; i++)
        clear_shard(d, &d->table.shard[i], settle);
}

void wr_dict_clear(wr_dict *d)
{
    clear(d, true);
}

void wr_dict_free(wr_dict *d)
{
    clear(d, false);
    wr_dict_release(d);
    wr_retire_relax();
}

/* ---- entries ---------------------------------------------------------------------------------------------- */

wr_entry *wr_dict_detach(wr_dict *d, wr_entry *e)
{
    bool free_to_go = d->kind->call_off == NULL || d->kind->call_off(e);
    if (free_to_go && wr_watcher_detach(&e->watcher))
        return e;
    /* Relaxed: the caller keeps the dictionary, by its own reference or by the lock that the fire wants first. */
    wr_atomic_fetch_add_relaxed(&d->refs, 1);
    return NULL;
}

wr_entry *wr_dict_link(wr_dict *d, wr_table_shard *shard, wr_table_link *link, wr_table_node *found, wr_entry *e)
{
    if (found == NULL) {
        wr_table_insert(shard, link, &e->node);
        return NULL;
    }
    wr_table_replace(shard, link, &e->node);
    return wr_dict_detach(d, wr_entry_of(found));
}

void wr_dict_unlock(wr_dict *d, wr_table_shard *shard, wr_entry *old)
{
    wr_table_unlock(shard);
    if (old != NULL)
        d->kind->retire(old);
    wr_retire_relax();
}

bool wr_dict_take(wr_dict *d, wr_entry *e)
{
    wr_table_shard *shard = wr_table_lock(&d->table, e->node.tag);
    bool linked = wr_table_unlink_node(shard, &e->node);
    wr_dict_unlock(d, shard, linked ? wr_dict_detach(d, e) : NULL);
    return linked;
}

/* Deaths call the janitor, since they allocate nothing themselves. It is user work, so that it runs on the reclaimer thread,
 * or where others wait anyway. */
static void janitor_run(wr_retired *r)
{
    wr_dict *d = (wr_dict *)((char *)r - offsetof(wr_dict, janitor));
    /* Acquire-release [dict-janitor]: sees what the deaths did that found it called already; and from here on it can be called
     * again, by who sees that its record was read. */
    (void)wr_atomic_exchange_acq_rel(&d->janitor_called, 0);
    for (uint64_t i = 0; i <= d->table.shard_mask; i++)
        wr_table_settle(&d->table.shard[i]);
    wr_dict_release(d);
}

/* Gives a reference of the dictionary to the janitor, or back. */
static WR_COLD void janitor_call(wr_dict *d)
{
    uint32_t no = 0;
    /* Acquire-release [dict-janitor]: one of the callers retires its record; what the others did before, it sees. */
    if (wr_atomic_cas_acq_rel(&d->janitor_called, &no, 1))
        wr_retire_chore(&d->janitor, janitor_run);
    else
        wr_dict_release(d);
}

static inline wr_dict *dict_of(const wr_watcher *w)
{
    return (wr_dict *)((uintptr_t)w->klass - offsetof(wr_dict, klass));
}

static inline wr_entry *entry_of(wr_watcher *w)
{
    return (wr_entry *)((char *)w - offsetof(wr_entry, watcher));
}

/* Takes the entry of a dead object out of the table, if it is linked: returns whether it was. Gives the caller @n_refs
 * references of the dictionary then. Requires: in a guard, which keeps the dictionary once the shard is unlocked. */
static inline bool unlink_dead(wr_dict *d, wr_entry *e, bool guest, size_t n_refs)
{
    wr_table_shard *shard = wr_table_lock(&d->table, e->node.tag);
    bool linked = wr_table_unlink_node(shard, &e->node);
    bool due = linked && wr_table_is_due(shard);
    size_t more = linked ? n_refs + due : 0;
    if (linked && guest)
        wr_watcher_leave_dead(&e->watcher);
    if (more > 0) {
        /* Relaxed: the owner's reference stands, for this shard has not been cleared yet. */
        wr_atomic_fetch_add_relaxed(&d->refs, more);
    }
    wr_table_unlock_as_is(shard);
    if (due)
        janitor_call(d);
    return linked;
}

/* The object of @first died. INTERNAL stage: no lock held, no user code. */
static wr_watcher *entry_fire(wr_watcher *first)
{
    wr_watcher *rest = first->next;
    wr_entry *e = entry_of(first);
    wr_dict *d = dict_of(first);
    bool heard = d->kind->died != NULL;
    wr_guard_enter();
    bool linked = unlink_dead(d, e, false, heard);
    if (heard)
        d->kind->died(d, e);
    else
        d->kind->retire(e);
    if (!linked && !heard)
        wr_dict_release(d);
    wr_guard_exit();
    return rest;
}

static void entry_fire_guest(wr_watcher *guest)
{
    wr_dict *d = dict_of(guest);
    WR_ASSERT(d->kind->died == NULL); /* what hears of deaths is on a list, behind a second watcher */
    if (unlink_dead(d, entry_of(guest), true, 0))
        d->kind->retire(entry_of(guest));
}

/* ---- standing on an entry --------------------------------------------------------------------------------- */

static struct stripe {
    WR_ATOMIC(struct wr_dict_stand *) first; /* those who stand on an entry of this stripe. Written under the lock */
    wr_spin lock;                            /* WR_RANK_LIST */
} stripes[64];

static struct stripe *stripe_of(const void *entry)
{
    return &stripes[(uint64_t)(uintptr_t)entry / 16 * WR_HASH_PHI >> 58];
}

/* One that stands on @entry, or NULL. Requires: the stripe's lock held. */
static struct wr_dict_stand *stands_on(const struct stripe *s, const void *entry)
{
    /* Relaxed: under the lock. */
    struct wr_dict_stand *other = wr_atomic_load_relaxed(&s->first);
    while (other != NULL && other->entry != entry)
        other = other->next;
    return other;
}

/* Requires: @e was found linked in the guard that the caller is in. */
static void stand_on(struct wr_dict_stand *self, const wr_entry *e)
{
    struct stripe *s = stripe_of(e);
    self->entry = e;
    self->owes = false;
    self->thread = pthread_self();
    self->prev = NULL;
    wr_spin_lock(&s->lock, WR_RANK_LIST);
    self->next = wr_atomic_load_relaxed(&s->first); /* relaxed: under the lock */
    if (self->next != NULL)
        self->next->prev = self;
    /* Release [stand]: whoever reclaims the entry does so after this guard; it sees this, or what came after it. */
    wr_atomic_store_release(&s->first, self);
    wr_spin_unlock(&s->lock, WR_RANK_LIST);
}

/* Requires: the stripe's lock held. */
static void unlist(struct stripe *s, struct wr_dict_stand *self)
{
    if (self->next != NULL)
        self->next->prev = self->prev;
    if (self->prev != NULL) {
        self->prev->next = self->next;
    } else {
        /* Release [stand]: whoever sees that nobody is here frees after the last look at the entry. */
        wr_atomic_store_release(&s->first, self->next);
    }
}

static void leave(struct wr_dict_stand *self)
{
    wr_entry *e = (wr_entry *)(uintptr_t)self->entry;
    if (e == NULL)
        return;
    struct stripe *s = stripe_of(e);
    wr_spin_lock(&s->lock, WR_RANK_LIST);
    unlist(s, self);
    self->entry = NULL;
    struct wr_dict_stand *heir = self->owes ? stands_on(s, e) : NULL;
    bool mine = self->owes && heir == NULL;
    if (heir != NULL)
        heir->owes = true;
    wr_spin_unlock(&s->lock, WR_RANK_LIST);
    if (mine) {
        self->dict->kind->retire(e);
        wr_retire_relax();
    }
}

bool wr_entry_is_stood_on(const wr_entry *e)
{
    struct stripe *s = stripe_of(e);
    /* Acquire [stand]: those who stood on @e did so in guards that have ended. If none is here, they have left. */
    if (wr_likely(wr_atomic_load_acquire(&s->first) == NULL))
        return false;
    wr_spin_lock(&s->lock, WR_RANK_LIST);
    struct wr_dict_stand *stand = stands_on(s, e);
    if (stand != NULL)
        stand->owes = true;
    wr_spin_unlock(&s->lock, WR_RANK_LIST);
    return stand != NULL;
}

/* In the child: forgets the iterators of threads that are gone. What they stood on is freed when it leaves the dictionary. */
static void dict_in_child(void)
{
    for (size_t i = 0; i < sizeof stripes / sizeof *stripes; i++) {
        struct stripe *s = &stripes[i];
        wr_spin_lock(&s->lock, WR_RANK_LIST);
        struct wr_dict_stand *stand = wr_atomic_load_relaxed(&s->first); /* relaxed: under the lock */
        for (; stand != NULL; stand = stand->next)
            if (!pthread_equal(stand->thread, pthread_self())) {
                unlist(s, stand);
                stand->entry = NULL; /* if this thread goes on with it: from the tag */
            }
        wr_spin_unlock(&s->lock, WR_RANK_LIST);
    }
}

__attribute__((constructor(101))) static void dict_start(void)
{
    wr_fork_register(WR_FORK_DICT, dict_in_child);
}

/* ---- iterators -------------------------------------------------------------------------------------------- */

void wr_dict_iter_begin(struct wr_dict_iter *it, wr_dict *d)
{
    it->stand = (struct wr_dict_stand){.dict = d};
    if (d != NULL) {
        /* Relaxed: the caller keeps the dictionary. */
        wr_atomic_fetch_add_relaxed(&d->refs, 1);
    }
}

void wr_dict_iter_end(struct wr_dict_iter *it)
{
    struct wr_dict_stand *self = &it->stand;
    if (self->dict == NULL)
        return;
    leave(self);
    wr_dict_release(self->dict);
    self->dict = NULL;
}

/* The part of a step that is in one guard. *done: it has come to the end, or found an entry, which it returns. */
static wr_entry *walk(struct wr_dict_stand *self, void **obj, bool *done)
{
    enum { BUCKETS = 1024 }; /* in one guard */
    wr_dict *d = self->dict;
    const wr_entry *at = self->entry; /* NULL: at the tag */
    const wr_entry *seen_dead = NULL;
    *done = true;
    for (unsigned n = 0; self->shard <= d->table.shard_mask;) {
        wr_table_node *node = wr_table_above(&d->table.shard[self->shard], &self->from, d->kind->order, at);
        if (node == NULL) {
            at = NULL;
            if (self->from == 0)
                self->shard++;
            if (++n < BUCKETS)
                continue;
            *done = false;
            return NULL;
        }
        wr_entry *e = wr_entry_of(node);
        if (obj == NULL) {
            if (!wr_weak_is_dead(wr_entry_weak(e)))
                return e;
        } else if ((*obj = wr_upgrade(wr_entry_weak(e))) != NULL) {
            return e;
        }
        /* As in a look-up: the entry may have been replaced before its object died. Found again it was linked after that. */
        if (e == seen_dead) {
            at = e;
            self->from = e->node.tag;
        }
        seen_dead = e;
    }
    return NULL;
}

wr_entry *wr_dict_iter_next(struct wr_dict_iter *it, void **obj)
{
    struct wr_dict_stand *self = &it->stand;
    if (self->dict == NULL)
        return NULL;
    for (bool done;;) {
        wr_guard_enter();
        wr_entry *e = walk(self, obj, &done);
        leave(self);
        if (e != NULL) {
            self->from = e->node.tag;
            stand_on(self, e);
        }
        wr_guard_exit();
        if (done)
            return e;
    }
}

wr_entry *wr_dict_pop_any(wr_dict *d, struct wr_dict_iter *it, void **obj, bool (*fits)(const wr_entry *e, void *ctx),
                          void *ctx, bool *refused)
{
    wr_dict_iter_begin(it, d);
    /* Relaxed: a hint. Where the last one was found there are more, perhaps; in front of it hardly any. */
    uint64_t tag = wr_atomic_load_relaxed(&d->pop_from);
    it->stand.from = tag;
    it->stand.shard = (unsigned)(wr_table_shard_of(&d->table, tag) - d->table.shard);
    *refused = false;
    for (bool once_more = true;;) {
        wr_entry *e = wr_dict_iter_next(it, obj);
        if (e == NULL) {
            if (!once_more)
                return NULL;
            once_more = false;
            it->stand.from = it->stand.shard = 0;
            continue;
        }
        *refused = fits != NULL && !fits(e, ctx);
        if (!*refused && wr_dict_take(d, e)) {
            /* Relaxed: as above. */
            wr_atomic_store_relaxed(&d->pop_from, e->node.tag);
            return e;
        }
        wr_release(*obj);
        if (*refused)
            return NULL;
    }
}
