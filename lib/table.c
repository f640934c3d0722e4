/* F5 table: how a shard is changed and resized under its readers.
 *
 * Contract
 *   A reader finds every key that is in the table throughout its search; what it finds was in the table at
 *   some instant of the search; and what it does not find was absent at some instant of the search. It takes no lock,
 *   stores nothing, and is never sent round by a writer that does not move the very bucket it looks at.
 *   No writer holds a lock for longer than it takes to move STEP buckets and its own.
 *
 * How
 *   A shard's buckets are chains, ascending by (tag, key). The bucket of a tag is its top bits, so the buckets
 *   themselves ascend, and an array of twice the size has the same nodes in the same order, cut more finely:
 *
 *       old  b:     A B | C D                  the tags of A and B go on with bit 0, those of C and D with bit 1
 *       new  2b:    A B      2b+1:  C D
 *
 *   So a move never changes the order of nodes, never copies one and changes one link at most. The new array is
 *   allocated and zeroed outside the lock (large ones come zeroed from the kernel, page by page as they are used),
 *   installed as `next` of the old one, and filled a few buckets at a time by the writers that come along. Each of
 *   them first moves the bucket that its own key is in, then works in the new array alone: no moved bucket is written
 *   to any more (a sweep takes nodes out of buckets that have not moved; those stores come before the move). When all have moved, the new array becomes the shard's and the old one is retired.
 *
 *   Growing moves one bucket to two, in this order, each store a release:
 *       1. new[2b] = A, new[2b+1] = C      2. old[b] = MOVED      3. B.next = NULL, the cut
 *   Shrinking moves two buckets to one:
 *       1. B.next = C, the joint           2. new[b] = A          3. old[2b] = old[2b+1] = MOVED
 *
 * What if it changes meanwhile
 *   All stores to a shard's links are made under its lock; number the critical sections. The list at number j is what
 *   the section j left: each linked node is in exactly one chain, reached from exactly one bucket (INV-1).
 *
 *   (a) No array changes. Let the reader start after section e, that is, all stores up to e happen before its loads.
 *   Each load gives the last store up to e or a later one. Claim: each node it reaches was linked after e. The head:
 *   its value was the head at some number from e on. A step from such a node N to v = N.next: v was N's successor
 *   from the section that stored it to the one that overwrote it, or until N was unlinked, as a node's link is frozen
 *   from then on; N was linked after e, so there is a number from e on at which N was linked and v its successor: v
 *   was linked then. If a key K is linked throughout and the reader steps from below K to beyond it (or to the end),
 *   there is a number at which these two were neighbours while K was linked: the chain was not ascending:
 *   contradiction. So permanent keys are found, past any number of nodes that are unlinked, replaced or inserted
 *   under the reader's feet; a miss means that the key was absent at some number; and what is found was linked at
 *   some number.
 *
 *   (b) A bucket splits in section m. A reader in the old array looks at its bucket again after a miss. If it is not
 *   MOVED then, no link that it loaded was stored after step 2 of section m: such a load would have acquired from a
 *   release store that comes after MOVED, in the same section or by the lock in a later one, and the look could not
 *   have missed MOVED. So all it saw was stored before m, the argument of (a) holds with numbers from e to m-1, and
 *   the miss is right. If it is MOVED, the reader knows nothing and searches in the next array, from its head: a new
 *   search, for which (a) and (b) hold in turn. A hit needs no second look: as in (a), each node it reaches was
 *   linked, in whatever array.
 *
 *   (c) Two buckets merge in section m. The joint is stored before MOVED, so the reader of the lower bucket can run
 *   through it and see no MOVED. It then reaches C, whose tag is above every tag of the lower bucket, and stops,
 *   where without the joint it would have stopped at the end: the same answer, right by (a) up to m-1. Links stored
 *   after the joint's section it cannot have loaded without seeing MOVED, as in (b). The reader of the upper bucket
 *   passes no link that the merge changes.
 *
 *   (d) Several resizes in a row under one reader. The next resize begins when the previous one has ended, so arrays
 *   form a chain by `next`, each set before the first MOVED of its array. A reader that holds an old array is in
 *   a guard since before that was retired, hence since before any later array was: none of them goes away.
 *
 *   (e) Reclaimed nodes. A node is retired after it was unlinked. Unlinked nodes can point at unlinked nodes, but
 *   a reader that reaches one began before it was unlinked, by the claim of (a): its guard keeps it.
 *
 *   (f) The shared empty array, where each shard begins, is never moved: its reader's miss is right as of its load of
 *   shard->array, before the first insert was published.
 *
 *   (g) A walk asks for the first node above a point P, and takes what it finds as the next P. If K is linked throughout
 *   and above P, a step from a node below K to one beyond it, or a head beyond it, is excluded as in (a): at the number of
 *   that step the chain covered a range of tags, and either K was in it (and not ascending), or above it (and the
 *   step's end below K). So what is found is K or stands before it, in whatever array. The end of a chain is believed as
 *   a miss is, by (b) and (c); then nothing that lasts stands between P and the end of the bucket's range, which is where
 *   the walk goes on, in the array of that time.
 *
 *   These need acquire and release and nothing stronger. A reader's start after section e is established by whatever
 *   tells its thread that e has happened.
 *
 * Limits
 *   Between two writes a resize stands still, so that a shard nobody writes to can stay half moved: its readers pay
 *   one hop more for the moved half. Arrays of up to STEP buckets move at once. A grown array needs size / STEP
 *   further writes to be complete, long before the next doubling is due. A death, which allocates nothing, only tells
 *   its dictionary that its shard has become too large (wr_table_settle()). Where there is no memory for a larger array
 *   the chains grow longer, and each write tries again. The order of equal tags is the dictionary's; all nodes with
 *   one tag are in one chain, at any size.
 *
 * Invariants (shard->lock held)
 *   INV-1  a chain holds exactly the nodes whose tags belong to its bucket, ascending by tag
 *   INV-2  a MOVED bucket stands only in an array that has a next, and its nodes are there
 *   INV-3  shard->count is the number of nodes in all chains
 *   INV-4  units below shard->n_moved are MOVED; no next of a next; shard->moving says whether there is a next
 *
 * Idea: split-ordered lists (Shalev and Shavit, JACM 2006) for order that survives resizing; relativistic hash tables
 * (Triplett, McKenney, Walpole, ATC 2011) for unzipping under readers. Here one cut does, since chains are sorted.
 */
#include "table.h"

#include "alloc.h"
#include "fork.h"

#include <errno.h>

enum {
    LEAST_SHIFT = 62, /* 4 buckets: the smallest array that is made */
    STAY_SHIFT = 60,  /* 16 buckets: arrays of so many or fewer stay */
    LARGE_SHIFT = 51, /* 8192 buckets: arrays from here on are given back by the reclaimer thread */
    STEP = 32         /* units moved by each write beside its own */
};

__extension__ wr_table_array wr_table_empty = {.shift = WR_TABLE_EMPTY_SHIFT, .bucket = {{NULL}, {NULL}}};

static uintptr_t with_shift(const wr_table_array *a)
{
    return (uintptr_t)a | a->shift;
}

static wr_table_array *array_new(unsigned shift)
{
    size_t n = (size_t)1 << (64 - shift);
    if (n > (SIZE_MAX - sizeof(wr_table_array) - WR_TABLE_SHIFT_MASK) / sizeof(wr_table_link))
        return NULL;
    /* Aligned by hand, since calloc() alone has zeros that need not be written. */
    size_t size = offsetof(wr_table_array, bucket) + n * sizeof(wr_table_link) + WR_TABLE_SHIFT_MASK;
    char *memory = wr_alloc_zero(size);
    if (memory == NULL)
        return NULL;
    wr_table_array *a = wr_table_array_of((uintptr_t)memory + WR_TABLE_SHIFT_MASK);
    a->memory = memory;
    a->shift = shift;
    return a;
}

/* @a: may be NULL. */
static void array_free(wr_table_array *a)
{
    if (a != NULL)
        wr_free(a->memory);
}

static void array_reclaim(wr_retired *r)
{
    array_free((wr_table_array *)((uintptr_t)r - offsetof(wr_table_array, retired)));
}

/* ---- life ------------------------------------------------------------------------------------------------- */

unsigned wr_table_shards_for(size_t n_entries)
{
    unsigned n = WR_TABLE_SHARDS;
    if (n_entries > 0)
        while (n > 4 && n_entries < n * (size_t)4)
            n /= 2;
    return n;
}

size_t wr_table_size(unsigned n_shards)
{
    return offsetof(wr_table, shard) + n_shards * sizeof(wr_table_shard);
}

int wr_table_init(wr_table *t, unsigned n_shards, size_t n_entries)
{
    unsigned shift = LEAST_SHIFT;
    while (shift > 8 && ((size_t)1 << (64 - shift)) / 2 < n_entries / n_shards)
        shift--;
    t->shard_mask = n_shards - 1;
    for (unsigned i = 0; i < n_shards; i++) {
        wr_table_shard *shard = &t->shard[i];
        memset(shard, 0, sizeof *shard);
        wr_spin_init(&shard->lock);
        shard->most = (unsigned char)(n_entries > 0 && shift < STAY_SHIFT ? shift : STAY_SHIFT);
        wr_atomic_init(&shard->array, wr_table_nothing());
    }
    for (unsigned i = 0; n_entries > 0 && i < n_shards; i++) {
        wr_table_array *a = array_new(shift);
        if (a == NULL) {
            wr_table_fini(t);
            return -ENOMEM;
        }
        wr_atomic_init(&t->shard[i].array, with_shift(a));
    }
    return 0;
}

void wr_table_fini(wr_table *t)
{
    for (uint64_t i = 0; i <= t->shard_mask; i++) {
        wr_table_array *a = wr_table_array_now(&t->shard[i]); /* nobody else is left, by the grace period */
        if (a == &wr_table_empty)
            continue;
        array_free(wr_atomic_load_relaxed(&a->next)); /* relaxed, for the same reason */
        array_free(a);
    }
}

size_t wr_table_count(const wr_table *t)
{
    size_t n = 0;
    for (uint64_t i = 0; i <= t->shard_mask; i++)
        n += wr_atomic_load_relaxed(&t->shard[i].count); /* relaxed: a figure, nothing is read by it */
    return n;
}

/* ---- resizing ------------------------------------------------------------------------------------------------- */

/* A unit is what moves at once: a bucket that splits, or two that merge. It spans tags alike in their top bits. */
static unsigned unit_shift(const wr_table_array *from, const wr_table_array *to)
{
    return from->shift > to->shift ? from->shift : to->shift;
}

/* Requires: shard->lock held. All loads are relaxed, since only this lock's holder stores. */
static void split(wr_table_array *from, wr_table_array *to, size_t b)
{
    wr_table_link *source = &from->bucket[b];
    wr_table_node *head = wr_atomic_load_relaxed(source), *node = head; /* relaxed: under the lock */
    if (head == WR_TABLE_MOVED)
        return;
    wr_table_link *cut = NULL;
    while (node != NULL && (node->tag >> to->shift & 1) == 0) {
        cut = &node->next;
        node = wr_atomic_load_relaxed(cut); /* relaxed: under the lock */
    }
    /* Release [table-link]: whoever comes by the new heads, or by MOVED to them, sees the nodes. */
    wr_atomic_store_release(&to->bucket[2 * b], cut != NULL ? head : NULL);
    wr_atomic_store_release(&to->bucket[2 * b + 1], node);
    wr_atomic_store_release(source, WR_TABLE_MOVED);
    /* Release [table-link]: whoever runs into the cut sees MOVED when it looks again. */
    if (cut != NULL && node != NULL)
        wr_atomic_store_release(cut, NULL);
}

/* Requires: shard->lock held. */
static void merge(wr_table_array *from, wr_table_array *to, size_t b)
{
    wr_table_link *low = &from->bucket[2 * b], *high = &from->bucket[2 * b + 1];
    wr_table_node *head = wr_atomic_load_relaxed(low);   /* relaxed: under the lock */
    wr_table_node *upper = wr_atomic_load_relaxed(high); /* relaxed: under the lock */
    if (head == WR_TABLE_MOVED)
        return;
    if (head == NULL) {
        head = upper;
    } else if (upper != NULL) {
        wr_table_link *last = &head->next;
        wr_table_node *node;
        while ((node = wr_atomic_load_relaxed(last)) != NULL) /* relaxed: under the lock */
            last = &node->next;
        /* Release [table-link]: whoever steps over the joint sees the nodes behind it. */
        wr_atomic_store_release(last, upper);
    }
    /* Release [table-link]: whoever sees MOVED sees the new head, and from there the joint. */
    wr_atomic_store_release(&to->bucket[b], head);
    wr_atomic_store_release(low, WR_TABLE_MOVED);
    wr_atomic_store_release(high, WR_TABLE_MOVED);
}

static void move_unit(wr_table_array *from, wr_table_array *to, size_t unit)
{
    if (to->shift < from->shift)
        split(from, to, unit);
    else
        merge(from, to, unit);
}

/* Requires: shard->lock held, shard->moving. */
static void move_units(wr_table_shard *shard, const uint64_t *tag)
{
    wr_table_array *from = wr_table_array_now(shard);
    wr_table_array *to = wr_atomic_load_relaxed(&from->next); /* relaxed: under the lock */
    unsigned shift = unit_shift(from, to);
    size_t n_units = (size_t)1 << (64 - shift);
    if (tag != NULL)
        move_unit(from, to, (size_t)(*tag >> shift));
    for (unsigned i = 0; i < STEP && shard->n_moved < n_units; i++)
        move_unit(from, to, shard->n_moved++);
    if (shard->n_moved == n_units) {
        shard->n_moved = 0;
        shard->moving = false;
        /* Release [table-array]: who begins in the new array sees every bucket in it. */
        wr_atomic_store_release(&shard->array, with_shift(to));
        /* The kernel takes its time with large ones, and the shards of a table come to this together. */
        if (from->shift <= LARGE_SHIFT)
            wr_retire_chore(&from->retired, array_reclaim);
        else
            wr_retire_memory(&from->retired, array_reclaim);
    }
}

void wr_table_move_cold(wr_table_shard *shard, uint64_t tag)
{
    move_units(shard, &tag);
}

/* Moves some units if the shard is being resized. Requires: shard->lock held. */
static void move_some(wr_table_shard *shard)
{
    if (wr_unlikely(shard->moving))
        move_units(shard, NULL);
}

/* Requires: no wr lock held (allocates), shard->resizing set by the caller, which keeps others from this. */
static WR_COLD bool resize(wr_table_shard *shard, unsigned shift)
{
    wr_table_array *to = array_new(shift);
    wr_spin_lock(&shard->lock, WR_RANK_SHARD);
    shard->resizing = 0;
    if (to != NULL) {
        wr_table_array *from = wr_table_array_now(shard);
        /* Release [table-array]: a reader that MOVED sends here sees the array as it was made. */
        wr_atomic_store_release(&from->next, to);
        shard->moving = true;
        move_some(shard);
    }
    wr_spin_unlock(&shard->lock, WR_RANK_SHARD);
    return to != NULL; /* there was memory */
}

/* ---- writing ------------------------------------------------------------------------------------------------- */

int wr_table_reserve_cold(wr_table_shard *shard)
{
    wr_table_array *a = array_new(LEAST_SHIFT);
    if (a == NULL)
        return -ENOMEM;
    wr_spin_lock(&shard->lock, WR_RANK_SHARD);
    if (wr_table_array_now(shard) == &wr_table_empty) {
        /* Release [table-array]: readers see it zeroed. */
        wr_atomic_store_release(&shard->array, with_shift(a));
        a = NULL;
    }
    wr_spin_unlock(&shard->lock, WR_RANK_SHARD);
    array_free(a);
    return 0;
}

void wr_table_lock_shard(wr_table_shard *shard)
{
    (void)wr_thread_self(); /* as in wr_table_lock() */
    wr_spin_lock(&shard->lock, WR_RANK_SHARD);
    move_some(shard);
}

void wr_table_harden_cold(wr_table_shard *shard, const wr_table_node *node)
{
    /* Buckets hold 1/2 on average at the most, and 1 while the shard grows: by chance 24 in one of 2^20 is unheard of. */
    enum { CROWD = 24 };
    if (wr_table_is_hardened(shard))
        return;
    unsigned n = 0;
    /* Relaxed, both: under the lock. */
    for (; node != NULL && n < CROWD; n++)
        node = wr_atomic_load_relaxed(&node->next);
    if (n == CROWD)
        wr_atomic_store_relaxed(&shard->hardened, 1);
}

/* The shift that a resize should begin for now, or 0. Requires: shard->lock held. */
static unsigned due_shift(const wr_table_shard *shard)
{
    int by = wr_table_misfit(shard);
    if (by == 0 || shard->moving || wr_table_array_now(shard) == &wr_table_empty ||
        shard->resizing == wr_fork_process())
        return 0;
    return wr_table_array_now(shard)->shift - (unsigned)by;
}

bool wr_table_is_due_cold(const wr_table_shard *shard)
{
    return due_shift(shard) != 0;
}

void wr_table_unlock_cold(wr_table_shard *shard)
{
    unsigned shift = due_shift(shard);
    if (shift != 0)
        shard->resizing = wr_fork_process();
    wr_spin_unlock(&shard->lock, WR_RANK_SHARD);
    if (shift != 0)
        (void)resize(shard, shift);
}

void wr_table_settle(wr_table_shard *shard)
{
    enum { RESIZES = 64 }; /* others may insert and remove all the time: this ends */
    for (unsigned n = 0; n < RESIZES;) {
        wr_table_lock_shard(shard); /* moves a step */
        bool moving = shard->moving;
        unsigned shift = due_shift(shard);
        if (shift != 0)
            shard->resizing = wr_fork_process();
        wr_spin_unlock(&shard->lock, WR_RANK_SHARD);
        if (shift != 0) {
            n++;
            if (!resize(shard, shift))
                return;
        } else if (!moving) {
            return;
        }
    }
}

wr_table_link *wr_table_sweep(wr_table_shard *shard, uint64_t *cursor)
{
    wr_table_array *a = wr_table_array_now(shard);
    wr_table_link *link = &a->bucket[*cursor >> a->shift];
    wr_table_node *node = wr_atomic_load_relaxed(link); /* relaxed: under the lock */
    if (node == WR_TABLE_MOVED) {
        a = wr_atomic_load_relaxed(&a->next); /* relaxed: under the lock */
        link = &a->bucket[*cursor >> a->shift];
    }
    while ((node = wr_atomic_load_relaxed(link)) != NULL) { /* relaxed: under the lock */
        if (node->tag >= *cursor)
            return link;
        link = &node->next;
    }
    *cursor = ((*cursor >> a->shift) + 1) << a->shift;
    return NULL;
}

wr_table_node *wr_table_above(const wr_table_shard *shard, uint64_t *from, wr_table_order *order, const void *probe)
{
    /* Acquire [table-array]: as in wr_table_find(). */
    const wr_table_array *a = wr_table_array_of(wr_atomic_load_acquire(&shard->array));
    for (;;) {
        const wr_table_link *bucket = &a->bucket[*from >> a->shift];
        /* Acquire [table-link]: as in wr_table_find(), all three. */
        wr_table_node *node = wr_atomic_load_acquire(bucket);
        if (node != WR_TABLE_MOVED) {
            while (node != NULL) {
                if (node->tag > *from || (node->tag == *from && (probe == NULL || order(node, probe) > 0)))
                    return node;
                /* Acquire [table-link]: as above. */
                node = wr_atomic_load_acquire(&node->next);
            }
            /* Acquire [table-link]: as above. */
            if (wr_atomic_load_acquire(bucket) != WR_TABLE_MOVED) {
                *from = ((*from >> a->shift) + 1) << a->shift;
                return NULL;
            }
        }
        /* Acquire [table-array]: as in wr_table_find(). */
        a = wr_atomic_load_acquire(&a->next);
    }
}

#if WR_DEBUG
static size_t array_size(const wr_table_array *a)
{
    return (size_t)1 << (64 - a->shift);
}

/* Requires: shard->lock held. Returns the number of nodes. */
static size_t check_chain(const wr_table_array *a, size_t b)
{
    size_t n = 0;
    uint64_t last = 0;
    wr_table_node *node = wr_atomic_load_relaxed(&a->bucket[b]);       /* relaxed: under the lock */
    for (; node != NULL; node = wr_atomic_load_relaxed(&node->next)) { /* relaxed: under the lock */
        WR_ASSERT(node->tag >= last);                                  /* INV-1 */
        WR_ASSERT(node->tag >> a->shift == b);                         /* INV-1 */
        last = node->tag;
        n++;
    }
    return n;
}

static void check_shard(wr_table_shard *shard)
{
    wr_table_array *a = wr_table_array_now(shard);
    wr_table_array *to = wr_atomic_load_relaxed(&a->next); /* relaxed: under the lock */
    size_t n = 0;
    for (size_t b = 0; b < array_size(a); b++) {
        bool moved = wr_atomic_load_relaxed(&a->bucket[b]) == WR_TABLE_MOVED; /* relaxed: under the lock */
        WR_ASSERT(!moved || to != NULL);                                      /* INV-2 */
        if (to != NULL && ((uint64_t)b << a->shift) >> unit_shift(a, to) < shard->n_moved)
            WR_ASSERT(moved); /* INV-4 */
        if (!moved)
            n += check_chain(a, b);
    }
    if (to != NULL) {
        WR_ASSERT(wr_atomic_load_relaxed(&to->next) == NULL); /* INV-4; relaxed: under the lock */
        for (size_t b = 0; b < array_size(to); b++)
            n += check_chain(to, b);
    }
    WR_ASSERT(n == wr_atomic_load_relaxed(&shard->count)); /* INV-3; relaxed: under the lock */
}

void wr_table_check(wr_table *t)
{
    for (uint64_t i = 0; i <= t->shard_mask; i++) {
        wr_spin_lock(&t->shard[i].lock, WR_RANK_SHARD);
        check_shard(&t->shard[i]);
        wr_spin_unlock(&t->shard[i].lock, WR_RANK_SHARD);
    }
}
#endif
