/* F5 table: sharded chains of hashed nodes: read without a lock, resized a few buckets at a time.
 *
 * What a dictionary is built on: it brings the nodes, their keys and their meaning; the table finds, links, unlinks
 * and grows. It knows nothing of objects and calls nothing but what it is given. Why readers are right beside
 * everything that writers do is told in table.c.
 *
 * A node has a *tag*: the top 56 bits of its key's hash, and below them 8 bits of the dictionary's own that hold for
 * equal keys alike (the key's size, say). Tags are compared first; nodes with equal tags are told apart by the
 * dictionary.
 *
 *     tag    63..........................14 13....8 7.....0
 *            bucket, from the top down       shard   own
 *
 * Reading: in a guard, wr_table_find(), or wr_table_above() to walk; no lock, no store.
 *
 * Writing: wr_table_lock(), wr_table_seek(), then at most one of insert, replace and unlink for what was sought,
 * wr_table_unlock(); and for an insert, wr_table_reserve() before. What is unlinked keeps its
 * link fields until a grace period has passed: the dictionary retires it, under the lock or later.
 *
 * Code of the user (an `equal`) runs under no lock, thus: note wr_table_version(), wr_table_find() with it, lock, and
 * if the version is still the same the answer still holds; else again. wr_table_seek() takes an order of
 * the library's own (bytes, addresses), by which it finds the node's place.
 *
 * Locks: each shard's lock (WR_RANK_SHARD) guards its chains and fields. The side lock may be taken under it.
 */
#ifndef WR_LIB_TABLE_H
#define WR_LIB_TABLE_H

#include "guard.h"

#include <stddef.h>

#define WR_TABLE_SHARDS 64
#define WR_TABLE_OWN_BITS 8
#define WR_TABLE_OWN_MASK UINT64_C(0xff)

typedef struct wr_table_node wr_table_node;
typedef WR_ATOMIC(wr_table_node *) wr_table_link;

/* Stands at the head of a bucket whose nodes have moved to the next array. Final. */
#define WR_TABLE_MOVED ((wr_table_node *)1)

struct wr_table_node {
    wr_table_link next; /* ascending by (tag, the dictionary's order). Frozen once the node is unlinked */
    uint64_t tag;       /* set before it is linked */
};

typedef struct wr_table_array wr_table_array;

struct wr_table_array {
    wr_retired retired;
    WR_ATOMIC(wr_table_array *) next; /* the array that this one's buckets move to, or NULL. Set once */
    void *memory;                     /* to be freed */
    unsigned shift;                   /* bucket of a tag: tag >> shift */
    wr_table_link bucket[];           /* a chain, or WR_TABLE_MOVED */
} __attribute__((aligned(64)));

/* An array's address with its shift in the low bits, so that a search reaches its bucket with one load less. */
enum { WR_TABLE_SHIFT_MASK = 63, WR_TABLE_EMPTY_SHIFT = 63 };

/* Where each shard begins: no nodes, never written to. */
extern wr_table_array wr_table_empty __attribute__((visibility("hidden")));

static inline uintptr_t wr_table_nothing(void)
{
    return (uintptr_t)&wr_table_empty | WR_TABLE_EMPTY_SHIFT;
}

/* A cache line each: a writer disturbs the readers of its own shard alone. */
typedef struct wr_table_shard {
    wr_atomic_uptr array; /* where readers begin, with its shift. Written under the lock */
    wr_spin lock;
    uint32_t resizing;       /* the process in which somebody is out for a new array, or 0. Guarded by lock */
    wr_atomic_u32 hardened;  /* the dictionary's own, 0 at first; see wr_table_harden(). Written under the lock */
    unsigned char most;      /* the shift of the smallest array that it shrinks to. Set at init */
    bool moving;             /* the array has a next one. Guarded by lock */
    size_t n_moved;          /* units of array that are in array->next. Guarded by lock */
    WR_ATOMIC(size_t) count; /* linked nodes. Written under the lock */
    wr_atomic_u64 version;   /* grows with each insert, replace and unlink. Written under the lock */
    void *pending;           /* the dictionary's own, NULL at first. Guarded by lock */
} __attribute__((aligned(64))) wr_table_shard;

_Static_assert(sizeof(wr_table_shard) == 64, "a shard is one cache line");

typedef struct wr_table {
    uint64_t shard_mask;
    wr_table_shard shard[WR_TABLE_SHARDS]; /* only shard_mask + 1 of them have memory: see wr_table_size() */
} wr_table;

static inline uint64_t wr_table_tag(uint64_t hash, unsigned own)
{
    return (hash & ~WR_TABLE_OWN_MASK) | own;
}

static inline wr_table_array *wr_table_array_of(uintptr_t with_shift)
{
    return (wr_table_array *)(with_shift & ~(uintptr_t)WR_TABLE_SHIFT_MASK);
}

/* Where searches begin. Requires: shard->lock held, or that nobody else is left. */
static inline wr_table_array *wr_table_array_now(const wr_table_shard *shard)
{
    return wr_table_array_of(wr_atomic_load_relaxed(&shard->array)); /* relaxed: written under the lock */
}

static inline wr_table_shard *wr_table_shard_of(const wr_table *t, uint64_t tag)
{
    return (wr_table_shard *)(uintptr_t)&t->shard[tag >> WR_TABLE_OWN_BITS & t->shard_mask];
}

/* ---- life ------------------------------------------------------------------------------------------------- */

/* How many shards suit a table of so many entries (0: not known), and the bytes of a wr_table with them. */
unsigned wr_table_shards_for(size_t n_entries);
size_t wr_table_size(unsigned n_shards);

/* @t: wr_table_size(n_shards) bytes, aligned as a wr_table. Makes room for @n_entries at once. 0, or -ENOMEM. */
int wr_table_init(wr_table *t, unsigned n_shards, size_t n_entries);

/* Frees the arrays. Requires: no other thread uses the table, and a grace period since the last did. The nodes are the
 * dictionary's matter. */
void wr_table_fini(wr_table *t);

/* Sum of the shards' counts; exact when nobody writes. Wait-free. */
size_t wr_table_count(const wr_table *t);

/* ---- writing ------------------------------------------------------------------------------------------------- */

/* The cold halves. */
WR_COLD int wr_table_reserve_cold(wr_table_shard *shard);
WR_OUT_OF_LINE void wr_table_move_cold(wr_table_shard *shard, uint64_t tag);
WR_OUT_OF_LINE void wr_table_unlock_cold(wr_table_shard *shard);
WR_OUT_OF_LINE bool wr_table_is_due_cold(const wr_table_shard *shard);
WR_OUT_OF_LINE void wr_table_harden_cold(wr_table_shard *shard, const wr_table_node *node);

/* Before an insert: makes the first array of @tag's shard. 0, or -ENOMEM. Requires: no wr lock held. */
static inline int wr_table_reserve(wr_table *t, uint64_t tag)
{
    wr_table_shard *shard = wr_table_shard_of(t, tag);
    /* Relaxed: only compared; it never becomes empty again. */
    bool has_one = wr_atomic_load_relaxed(&shard->array) != wr_table_nothing();
    return wr_likely(has_one) ? 0 : wr_table_reserve_cold(shard);
}

/* For a tag of this shard other than the one that it was locked with: its bucket takes part in a resize now.
 * Requires: shard->lock held. */
static inline void wr_table_move(wr_table_shard *shard, uint64_t tag)
{
    if (wr_unlikely(shard->moving))
        wr_table_move_cold(shard, tag);
}

/* Takes: the lock of @tag's shard. Moves a few buckets if the shard is being resized, @tag's own among them. */
static inline wr_table_shard *wr_table_lock(wr_table *t, uint64_t tag)
{
    wr_table_shard *shard = wr_table_shard_of(t, tag);
    (void)wr_thread_self(); /* registered now, and not when something is retired under the lock */
    wr_spin_lock(&shard->lock, WR_RANK_SHARD);
    wr_table_move(shard, tag);
    return shard;
}

/* The same for no tag in particular: for wr_table_sweep(). */
void wr_table_lock_shard(wr_table_shard *shard);

/* 1: the shard's array should have twice the size, -1: half of it, 0: it fits: at most every other bucket filled, since the second
 * node of a chain costs a search a wrong guess of the processor's, and at least every eighth. Requires: shard->lock held. */
static inline int wr_table_misfit(const wr_table_shard *shard)
{
    /* Relaxed, both: under the lock. */
    unsigned shift = (unsigned)wr_atomic_load_relaxed(&shard->array) & WR_TABLE_SHIFT_MASK;
    size_t half = (size_t)1 << (63 - shift), count = wr_atomic_load_relaxed(&shard->count);
    if (wr_unlikely(count > half))
        return shift > 8;
    return wr_unlikely(count < half / 4) && shift < shard->most ? -1 : 0;
}

/* Drops the lock. Begins to resize if the count asks for it (allocates; failure leaves the size as it is). What it
 * retires is collected when the caller calls wr_retire_relax(). */
static inline void wr_table_unlock(wr_table_shard *shard)
{
    if (wr_likely(wr_table_misfit(shard) == 0))
        wr_spin_unlock(&shard->lock, WR_RANK_SHARD);
    else
        wr_table_unlock_cold(shard);
}

/* The same without resizing, which allocates: for deaths. If a resize is due, wr_table_settle() should follow some time. */
static inline void wr_table_unlock_as_is(wr_table_shard *shard)
{
    wr_spin_unlock(&shard->lock, WR_RANK_SHARD);
}

/* Requires: the shard locked. */
static inline bool wr_table_is_due(const wr_table_shard *shard)
{
    return wr_unlikely(wr_table_misfit(shard) != 0) && wr_table_is_due_cold(shard);
}

/* Brings the shard to the size that it should have, and what moves to its end; holds the lock for a step at a time. Gives up
 * without memory, or where others are at it. Requires: no wr lock held (allocates). */
void wr_table_settle(wr_table_shard *shard);

/* Goes through a shard by ascending tags, a bucket a call, across resizes and across the lock's being dropped. Returns
 * the link of the first node of *cursor's bucket with a tag of *cursor or more; or NULL, with *cursor at the next
 * bucket's first tag, which is 0 after the last bucket. Begin with 0. Requires: shard->lock held. */
wr_table_link *wr_table_sweep(wr_table_shard *shard, uint64_t *cursor);

static inline bool wr_table_is_hardened(const wr_table_shard *shard)
{
    /* Relaxed: nothing is read by it; who knows of a node that came after the mark sees the mark. */
    return wr_atomic_load_relaxed(&shard->hardened) != 0;
}

/* Where @tag belongs. Requires: shard->lock held, by wr_table_lock() with @tag. */
static inline wr_table_link *wr_table_bucket(const wr_table_shard *shard, uint64_t tag)
{
    /* Relaxed, both: these are written under the lock only. */
    uintptr_t array = wr_atomic_load_relaxed(&shard->array);
    wr_table_array *a = wr_table_array_of(array);
    unsigned shift = (unsigned)array & WR_TABLE_SHIFT_MASK;
    if (wr_unlikely(shard->moving)) {
        a = wr_atomic_load_relaxed(&a->next); /* relaxed, as above */
        shift = a->shift;
    }
    return &a->bucket[tag >> shift];
}

/* Where too many nodes have come to be in one bucket for chance to explain it, somebody chooses keys. After an insert: marks
 * the shard if the bucket of @tag is one of these. What the mark means is the dictionary's business: it may give new nodes
 * other tags of the same shard. Requires: shard->lock held. */
static inline void wr_table_harden(wr_table_shard *shard, uint64_t tag)
{
    /* Relaxed, both: under the lock. */
    const wr_table_node *first = wr_atomic_load_relaxed(wr_table_bucket(shard, tag));
    if (wr_unlikely(first != NULL && wr_atomic_load_relaxed(&first->next) != NULL))
        wr_table_harden_cold(shard, first);
}

/* -1, 0, 1: @node, whose tag is that of @probe, stands before, is, stands behind @probe. */
typedef int wr_table_order(const wr_table_node *node, const void *probe);

/* The link where the node of @probe is (*found is it) or would have to be inserted (*found is NULL).
 * Requires: shard->lock held, by wr_table_lock() with @tag. */
static inline __attribute__((always_inline)) wr_table_link *wr_table_seek(wr_table_shard *shard, uint64_t tag,
                                                                          wr_table_order *order, const void *probe,
                                                                          wr_table_node **found)
{
    wr_table_link *link = wr_table_bucket(shard, tag);
    wr_table_node *node;
    /* Relaxed: under the lock. */
    while ((node = wr_atomic_load_relaxed(link)) != NULL && node->tag <= tag) {
        if (node->tag == tag) {
            int place = order(node, probe);
            if (place == 0) {
                *found = node;
                return link;
            }
            if (place > 0)
                break;
        }
        link = &node->next;
    }
    *found = NULL;
    return link;
}

static inline void wr_table_changed_(wr_table_shard *shard, size_t more)
{
    /* Relaxed, both: only this lock's holder stores. */
    wr_atomic_store_relaxed(&shard->count, wr_atomic_load_relaxed(&shard->count) + more);
    uint64_t version = wr_atomic_load_relaxed(&shard->version) + 1;
    /* Release [table-version]: who reads it sees the change. */
    wr_atomic_store_release(&shard->version, version);
}

/* Puts @node at @link, in front of what is there: @link is from wr_table_seek(), which found nothing.
 * Requires: shard->lock held, by wr_table_lock() with the same tag. */
static inline void wr_table_insert(wr_table_shard *shard, wr_table_link *link, wr_table_node *node)
{
    /* Relaxed, both: nobody sees the node yet; the link is read under the lock. */
    wr_table_node *next = wr_atomic_load_relaxed(link);
    wr_atomic_store_relaxed(&node->next, next);
    /* Release [table-link]: readers see the node as it was made. */
    wr_atomic_store_release(link, node);
    wr_table_changed_(shard, 1);
}

/* Puts @node in the place of the node at @link, in one step. Requires: shard->lock held. */
static inline void wr_table_replace(wr_table_shard *shard, wr_table_link *link, wr_table_node *node)
{
    wr_table_node *old = wr_atomic_load_relaxed(link); /* relaxed: under the lock */
    WR_ASSERT(old->tag == node->tag);
    /* Relaxed, both: nobody sees the node yet; the old one's link is read under the lock. */
    wr_table_node *next = wr_atomic_load_relaxed(&old->next);
    wr_atomic_store_relaxed(&node->next, next);
    /* Release [table-link]: readers see the node as it was made. The old one keeps its link for those who are on it. */
    wr_atomic_store_release(link, node);
    wr_table_changed_(shard, 0);
}

/* Takes the node at @link out. Requires: shard->lock held. */
static inline void wr_table_unlink(wr_table_shard *shard, wr_table_link *link)
{
    wr_table_node *node = wr_atomic_load_relaxed(link);        /* relaxed: under the lock */
    wr_table_node *next = wr_atomic_load_relaxed(&node->next); /* relaxed: under the lock */
    /* Release [table-link]: readers see the node behind, which another thread may have made. */
    wr_atomic_store_release(link, next);
    wr_table_changed_(shard, (size_t)0 - 1);
}

static inline int wr_table_order_identity_(const wr_table_node *node, const void *probe)
{
    return node == probe ? 0 : -1;
}

/* Takes exactly this node out, if it is linked. Requires: shard->lock held, by wr_table_lock() with the node's tag. */
static inline bool wr_table_unlink_node(wr_table_shard *shard, wr_table_node *node)
{
    wr_table_node *found;
    wr_table_link *link = wr_table_seek(shard, node->tag, wr_table_order_identity_, node, &found);
    if (found != NULL)
        wr_table_unlink(shard, link);
    return found != NULL;
}

/* ---- reading ------------------------------------------------------------------------------------------------- */

/* Whether @node, whose tag is that of @probe, is the one. */
typedef bool wr_table_match(const wr_table_node *node, const void *probe);

/* The node of @probe, or NULL. Lock-free: it goes on to another array only where a writer has just moved the bucket.
 * Requires: in a guard. */
static inline __attribute__((always_inline)) wr_table_node *wr_table_find(const wr_table *t, uint64_t tag,
                                                                          wr_table_match *match, const void *probe)
{
    /* Acquire [table-array]: sees the array as it was made, and all buckets moved into it. */
    uintptr_t array = wr_atomic_load_acquire(&wr_table_shard_of(t, tag)->array);
    const wr_table_array *a = wr_table_array_of(array);
    unsigned shift = (unsigned)array & WR_TABLE_SHIFT_MASK;
    for (;;) {
        const wr_table_link *bucket = &a->bucket[tag >> shift];
        /* Acquire [table-link]: sees the node as it was made; and where it is MOVED, the bucket it moved to. */
        wr_table_node *node = wr_atomic_load_acquire(bucket);
        if (wr_likely(node != WR_TABLE_MOVED)) {
            while (node != NULL) {
                if (wr_likely(node->tag == tag) && wr_likely(match(node, probe)))
                    return node;
                if (node->tag > tag)
                    break;
                /* Acquire [table-link]: as above; and if a move cut or joined the chain here, sees its MOVED below. */
                node = wr_atomic_load_acquire(&node->next);
            }
            /* Acquire [table-link]: still not MOVED means that no link on the way was written after a move. */
            if (wr_likely(wr_atomic_load_acquire(bucket) != WR_TABLE_MOVED))
                return NULL;
        }
        /* Acquire [table-array]: sees the array as it was made. Not NULL: it was set before any MOVED. */
        a = wr_atomic_load_acquire(&a->next);
        shift = a->shift;
    }
}

/* For those who walk: the first node of *from's bucket that stands behind @probe, which has the tag *from; or with @probe
 * NULL, that has a tag of *from or more. NULL: there is none, and *from is the next bucket's first tag, 0 after the last.
 * Who goes on like this from 0, with what was found as the probe, meets every node that is linked throughout, in order,
 * across resizes: see (g) of table.c. Lock-free, as wr_table_find(). Requires: in a guard; the probe stays whole. */
wr_table_node *wr_table_above(const wr_table_shard *shard, uint64_t *from, wr_table_order *order, const void *probe);

/* How often the shard of @tag was changed, for the protocol at the top. */
static inline uint64_t wr_table_version(const wr_table *t, uint64_t tag)
{
    /* Acquire [table-version]: the search that follows sees every change that is counted. */
    return wr_atomic_load_acquire(&wr_table_shard_of(t, tag)->version);
}

#if WR_DEBUG
/* INV-1 to INV-4 of table.c, shard by shard under its lock; panics. */
void wr_table_check(wr_table *t);
#endif

#endif
