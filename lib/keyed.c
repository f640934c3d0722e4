/* F7 keyed: how the entry of an equal key is found without a lock and changed under one. */
#include "keyed.h"

#include <weakref/object.h>

#include <errno.h>

static int compare(uintptr_t a, uintptr_t b)
{
    return (a > b) - (a < b);
}

int wr_keyed_order(const wr_table_node *node, const void *entry)
{
    const wr_entry *e = entry;
    return compare((uintptr_t)wr_entry_of(node)->watcher.header, (uintptr_t)e->watcher.header);
}

/* The same, of a node and a header. */
static int order_header(const wr_table_node *node, const void *header)
{
    return compare((uintptr_t)wr_entry_of(node)->watcher.header, (uintptr_t)header);
}

static bool match_header(const wr_table_node *node, const void *header)
{
    return wr_entry_of(node)->watcher.header == header;
}

/* For the first of a tag. */
static int order_none(const wr_table_node *node, const void *unused)
{
    (void)node;
    (void)unused;
    return 0;
}

static bool by_equal(const wr_dict *d, const void *obj)
{
    return (d->flags & WR_KEYS_BY_EQUAL) != 0 && wr_type_of(obj)->equal != NULL;
}

uint64_t wr_keyed_tag(const wr_dict *d, const void *obj)
{
    uint64_t word;
    bool equal = by_equal(d, obj);
    if (equal) {
        wr_lock_assert_none("hash");
        word = wr_type_of(obj)->hash(obj);
    } else {
        word = (uint64_t)(uintptr_t)obj;
    }
    return wr_table_tag(wr_hash_bytes(&d->hash_key, &word, sizeof word), equal);
}

wr_entry *wr_keyed_find(const wr_dict *d, const void *obj, uint64_t tag)
{
    wr_table_node *node = wr_table_find(&d->table, tag, match_header, wr_header_of(obj));
    return node != NULL ? wr_entry_of(node) : NULL;
}

static bool is_equal(const void *a, const void *b)
{
    bool (*equal)(const void *, const void *) = wr_type_of(a)->equal;
    wr_lock_assert_none("equal");
    return wr_type_of(b)->equal == equal && equal(a, b);
}

/* [owned] the next living object with this tag whose header is beyond *@after; NULL: none. */
static void *next_candidate(const wr_dict *d, uint64_t tag, const wr_header **after)
{
    const wr_table_shard *shard = wr_table_shard_of(&d->table, tag);
    void *obj = NULL;
    wr_guard_enter();
    while (obj == NULL) {
        uint64_t from = tag;
        wr_table_node *node = wr_table_above(shard, &from, order_header, *after);
        if (node == NULL || node->tag != tag)
            break;
        *after = wr_entry_of(node)->watcher.header;
        obj = wr_upgrade(wr_entry_weak(wr_entry_of(node)));
    }
    wr_guard_exit();
    return obj;
}

void *wr_keyed_resolve(const wr_dict *d, const void *obj, uint64_t tag)
{
    if (!by_equal(d, obj))
        return wr_upgrade(wr_weak_of_header(wr_header_of(obj)));
    const wr_header *after = NULL;
    void *other;
    while ((other = next_candidate(d, tag, &after)) != NULL) {
        if (other == obj || is_equal(other, obj))
            return other;
        wr_release(other);
    }
    return NULL;
}

void wr_keyed_lock(wr_dict *d, const void *obj, uint64_t tag, wr_keyed_place *place)
{
    bool equal = by_equal(d, obj);
    for (;;) {
        uint64_t version = wr_table_version(&d->table, tag);
        place->key = equal ? wr_keyed_resolve(d, obj, tag) : NULL;
        const void *key = place->key != NULL ? place->key : obj;
        place->shard = wr_table_lock(&d->table, tag);
        place->link = wr_table_seek(place->shard, tag, order_header, wr_header_of(key), &place->found);
        if (!equal || place->found != NULL || wr_table_version(&d->table, tag) == version)
            return;
        wr_table_node *first;
        (void)wr_table_seek(place->shard, tag, order_none, NULL, &first);
        if (first == NULL)
            return;
        wr_keyed_unlock(d, place, NULL);
    }
}

void wr_keyed_unlock(wr_dict *d, wr_keyed_place *place, wr_entry *old)
{
    wr_dict_unlock(d, place->shard, old);
    wr_release(place->key);
}

int wr_keyed_link(wr_dict *d, wr_keyed_place *place, wr_entry *e, void *obj, wr_entry **old)
{
    /* What was found keeps its key, though another object equals it. */
    int err = wr_watcher_attach_prepared(&e->watcher, place->found != NULL && place->key != NULL ? place->key : obj);
    if (err == 0)
        *old = wr_dict_link(d, place->shard, place->link, place->found, e);
    return err;
}

int wr_keyed_unlink(wr_dict *d, wr_keyed_place *place, wr_entry **old)
{
    if (place->found == NULL || wr_weak_is_dead(wr_entry_weak(wr_entry_of(place->found))))
        return -ENOENT;
    wr_table_unlink(place->shard, place->link);
    *old = wr_dict_detach(d, wr_entry_of(place->found));
    return 0;
}
