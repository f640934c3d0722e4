/* F7 keyed: what the key dictionary and the set have in common: entries whose object is the key.
 *
 * Keys are compared by identity, or, with WR_KEYS_BY_EQUAL, by what their type says. Then the tag is that of the type's
 * hash, and nodes with one tag stand by their object's address, so that a search goes on behind a candidate without
 * standing on it. The type's `equal` runs under no lock and outside of guards, with both objects held; what it is
 * given may have left the dictionary meanwhile, and all of it may re-enter the dictionary.
 *
 * An equal key is *resolved* first: to the object in the dictionary that it equals. From there on all is by identity:
 * a held object's address is nobody else's, and a dictionary has one entry at most for an object. Only who is to insert
 * needs to know that nothing equal came meanwhile: that holds if the shard has not changed since before the search, or
 * has no node with that tag.
 */
#ifndef WR_LIB_KEYED_H
#define WR_LIB_KEYED_H

#include "dict.h"

#include <weakref/key_dict.h>
#include <weakref/set.h>

/* The order of two entries: a wr_table_order for wr_dict_kind. */
int wr_keyed_order(const wr_table_node *node, const void *entry);

/* May run the hash of @obj's type. Requires: no wr lock held. */
uint64_t wr_keyed_tag(const wr_dict *d, const void *obj);

/* By equality: [owned] the object in the dictionary that is equal to @obj, or NULL: at some instant there was none. By identity:
 * [owned] @obj, whether it is there or not, or NULL: it is dying. Requires: no wr lock held; runs user code. */
void *wr_keyed_resolve(const wr_dict *d, const void *obj, uint64_t tag);

/* The entry of exactly this object, dead or alive, or NULL. Requires: in a guard. */
wr_entry *wr_keyed_find(const wr_dict *d, const void *obj, uint64_t tag);

/* Where an object is or would be. */
typedef struct wr_keyed_place {
    wr_table_shard *shard; /* locked */
    wr_table_link *link;
    wr_table_node *found; /* the entry of the key, or NULL */
    void *key;            /* [owned] by equality: the equal object, or NULL. Release it after the lock */
} wr_keyed_place;

/* Requires: wr_table_reserve(); no wr lock held; runs user code. */
void wr_keyed_lock(wr_dict *d, const void *obj, uint64_t tag, wr_keyed_place *place);

/* Drops the lock, retires @old (NULL: nothing), releases. */
void wr_keyed_unlock(wr_dict *d, wr_keyed_place *place, wr_entry *old);

/* Hangs @e, which is new, on the key that it is for, and links it. *old is to be retired. 0, or -ESTALE.
 * Requires: wr_watcher_prepare(@obj); the place locked. */
int wr_keyed_link(wr_dict *d, wr_keyed_place *place, wr_entry *e, void *obj, wr_entry **old);

/* Takes the entry that was found out, unless its key is dead. *old is to be retired. 0, or -ENOENT. Requires: as above. */
int wr_keyed_unlink(wr_dict *d, wr_keyed_place *place, wr_entry **old);

#endif
