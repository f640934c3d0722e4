/* F6 dict: what the weak dictionaries and sets have in common: entries that leave with their object, and iterators.
 *
 * An entry is a node of the table and a watcher of its object, in one block, and then what the dictionary at hand puts
 * behind (or in front of) them. It owns one weak count of the object's header, so a reader that found it in a
 * guard may try the header. Keys and their meaning are the dictionaries' own: this unit never calls user code.
 */
#ifndef WR_LIB_DICT_H
#define WR_LIB_DICT_H

#include "hash.h"
#include "object.h"
#include "table.h"

#include <weakref/detail/iter.h>
#include <weakref/weak.h>

typedef struct wr_dict wr_dict;

typedef struct wr_entry {
    union {
        wr_watcher watcher; /* its header stays valid until the entry is reclaimed */
        wr_retired retired; /* once detached, in place of the watcher's links */
    };
    wr_table_node node;
} wr_entry;

_Static_assert(sizeof(void *) != 8 || sizeof(wr_entry) == 48, "an entry with a key of 24 bytes takes 72");
_Static_assert(sizeof(wr_retired) <= offsetof(wr_watcher, klass), "retiring leaves class and header alone");

/* What a dictionary tells of itself. */
typedef struct wr_dict_kind {
    /* The order of nodes with one tag, for iterators: of a node and a wr_entry. Bytes and addresses only. */
    wr_table_order *order;
    /* Gives an entry that is unlinked and detached to a grace period, after which it is reclaimed unless
     * wr_entry_is_stood_on() (then this is called again). Called under no lock, perhaps in a guard. */
    void (*retire)(wr_entry *e);
    /* Or NULL: what is to be done before a change detaches @e, with the shard lock held. False: the death has it, and @e is
     * left to its fire without a look at wr_watcher_detach(). */
    bool (*call_off)(wr_entry *e);
    /* Or NULL: instead of retire when @e's fire is through with it. With a reference of the dictionary, which is the callee's. */
    void (*died)(wr_dict *d, wr_entry *e);
    /* The last reference is gone: frees the dictionary after a grace period. */
    void (*retire_dict)(wr_dict *d);
} wr_dict_kind;

struct wr_dict {
    wr_hash_key hash_key;
    wr_watcher_class klass; /* of its entries alone: by it a fire finds the dictionary */
    wr_atomic_type usual_type;
    const wr_dict_kind *kind;
    unsigned flags; /* the dictionary's own */
    wr_retired retired;
    WR_ATOMIC(size_t) refs; /* the owner's until free, one for each orphan and iterator, and the janitor's */
    wr_retired janitor;     /* brings the table's size down after deaths */
    wr_atomic_u32 janitor_called;
    wr_atomic_u64 pop_from; /* a tag where a popitem may well begin */
    wr_table table;         /* last: its size varies */
};

/* ---- life ------------------------------------------------------------------------------------------------- */

/* Reads the options that a caller, older or newer than the library, gave (NULL: none) into the @size bytes of @to. Both begin with
 * a size_t struct_size, of at least @least. 0, or -EINVAL: too small, or asks for what this version does not know. */
int wr_dict_options(const void *from, void *to, size_t size, size_t least);

/* Makes a dictionary with room for @n_entries (0: not known) at the end of a block with @before bytes of the caller's own,
 * and starts the reclaimer thread, without which nobody would free entries. [out owned] the block. 0, -ENOMEM, -EAGAIN. */
int wr_dict_new(size_t before, const wr_dict_kind *kind, size_t n_entries, void **block);

/* The owner's end: takes all entries out and gives the owner's reference back. Waits for nobody. */
void wr_dict_free(wr_dict *d);
void wr_dict_clear(wr_dict *d);

void wr_dict_release(wr_dict *d);

/* ---- entries ---------------------------------------------------------------------------------------------- */

static inline wr_entry *wr_entry_of(const wr_table_node *node)
{
    return (wr_entry *)((uintptr_t)node - offsetof(wr_entry, node));
}

static inline wr_weak *wr_entry_weak(const wr_entry *e)
{
    return wr_weak_of_header(e->watcher.header);
}

/* After @e was unlinked: returns it if it is the caller's to retire, NULL if its fire will do that.
 * Requires: shard lock held. Takes: the side lock. */
wr_entry *wr_dict_detach(wr_dict *d, wr_entry *e);

/* Links @e, which is attached, where wr_table_seek() found @found or nothing. Returns what is to be retired, or NULL.
 * Requires: shard->lock held. */
wr_entry *wr_dict_link(wr_dict *d, wr_table_shard *shard, wr_table_link *link, wr_table_node *found, wr_entry *e);

/* Ends a change: drops the lock, retires @old (NULL: nothing), collects. */
void wr_dict_unlock(wr_dict *d, wr_table_shard *shard, wr_entry *old);

/* Takes exactly this entry out, if it is linked, and retires it. Requires: no wr lock held; a guard or an iterator keeps @e. */
bool wr_dict_take(wr_dict *d, wr_entry *e);

/* For a reclaim: whether an iterator stands on @e, which then has it retired once more when it leaves. */
bool wr_entry_is_stood_on(const wr_entry *e);

/* ---- iterators -------------------------------------------------------------------------------------------- */

/* @d NULL: one that is at its end. */
void wr_dict_iter_begin(struct wr_dict_iter *it, wr_dict *d);

/* Leaves the entry it stands on for the next one whose object lives: [out owned] *obj; with @obj NULL, for the next one
 * whose object is not known to be dead. NULL: there is none. Lock-free but for the stripe; allocates nothing. */
wr_entry *wr_dict_iter_next(struct wr_dict_iter *it, void **obj);

void wr_dict_iter_end(struct wr_dict_iter *it);

/* Takes some living entry out: [out owned] *obj. The iterator, which the callee begins and the caller ends, stands on it.
 * @fits: NULL, or whether this entry may be taken; the first that may not ends the search (*refused). NULL: none. */
wr_entry *wr_dict_pop_any(wr_dict *d, struct wr_dict_iter *it, void **obj, bool (*fits)(const wr_entry *e, void *ctx),
                          void *ctx, bool *refused);

#endif
