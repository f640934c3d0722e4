/* F7 keyed: the key dictionary: an entry is that of dict.h, and behind it the value.
 *
 * The entry owns a strong reference to its value for as long as it is whole: until the grace period after it was taken
 * out. So whoever finds it in a guard, or stands on it, may retain the value, which is alive.
 */
#include <weakref/key_dict.h>

#include "alloc.h"
#include "keyed.h"

#include <errno.h>

typedef struct entry {
    wr_entry base;
    void *value; /* set before it is linked */
} entry;

/* Of a dictionary with a release function, which stays until its entries are reclaimed. */
typedef struct owning_entry {
    entry entry;
    wr_dict *dict;
    bool given; /* to who popped it; set in a guard, or by who stands on it */
} owning_entry;

struct wr_key_dict {
    void (*release)(void *value);
    wr_dict dict; /* last: its size varies */
};

static wr_key_dict *of_dict(const wr_dict *d)
{
    return (wr_key_dict *)((uintptr_t)d - offsetof(wr_key_dict, dict));
}

static inline bool is_raw(const wr_key_dict *d)
{
    return (d->dict.flags & WR_VALUES_RAW) != 0;
}

static void *value_of(const wr_entry *e)
{
    return ((const entry *)e)->value;
}

/* Requires: in a guard that found @e, standing on it, or it is linked and its shard locked. */
static inline void *value_retain(const wr_key_dict *d, const wr_entry *e)
{
    return is_raw(d) ? value_of(e) : wr_retain(value_of(e));
}

/* ---- kinds ------------------------------------------------------------------------------------------------ */

static void dict_reclaim(wr_retired *r)
{
    wr_dict *d = (wr_dict *)((char *)r - offsetof(wr_dict, retired));
    wr_table_fini(&d->table);
    wr_free(of_dict(d));
}

static void dict_retire(wr_dict *d)
{
    wr_retire_memory(&d->retired, dict_reclaim);
}

static wr_entry *entry_of_record(wr_retired *r)
{
    return (wr_entry *)((char *)r - offsetof(wr_entry, retired));
}

static void entry_free(wr_entry *e)
{
    wr_watcher_release_weak(e->watcher.header);
    wr_free(e);
}

/* Values that are objects. */
static void object_reclaim(wr_retired *r)
{
    wr_entry *e = entry_of_record(r);
    if (wr_entry_is_stood_on(e))
        return;
    void *value = value_of(e);
    entry_free(e);
    wr_release(value);
}

static void object_retire(wr_entry *e)
{
    wr_retire_user(&e->retired, object_reclaim);
}

/* Values that are nobody's. */
static void raw_reclaim(wr_retired *r)
{
    wr_entry *e = entry_of_record(r);
    if (!wr_entry_is_stood_on(e))
        entry_free(e);
}

static void raw_retire(wr_entry *e)
{
    wr_retire_memory(&e->retired, raw_reclaim);
}

/* Values that are given back. */
static void owning_reclaim(wr_retired *r)
{
    wr_entry *e = entry_of_record(r);
    if (wr_entry_is_stood_on(e))
        return;
    const owning_entry *o = (const owning_entry *)e;
    wr_dict *d = o->dict;
    void *value = o->entry.value;
    bool given = o->given;
    entry_free(e);
    if (!given)
        of_dict(d)->release(value);
    wr_dict_release(d);
}

static void owning_retire(wr_entry *e)
{
    wr_retire_user(&e->retired, owning_reclaim);
}

static const wr_dict_kind object_kind = {.order = wr_keyed_order, .retire = object_retire, .retire_dict = dict_retire};
static const wr_dict_kind raw_kind = {.order = wr_keyed_order, .retire = raw_retire, .retire_dict = dict_retire};
static const wr_dict_kind owning_kind = {.order = wr_keyed_order, .retire = owning_retire, .retire_dict = dict_retire};

/* Not linked, not attached; with its reference to the value: for entry_drop(). Makes the room in the table, too. 0, or -ENOMEM. */
static int entry_new(wr_key_dict *d, uint64_t tag, void *value, wr_entry **out)
{
    if (wr_table_reserve(&d->dict.table, tag) != 0)
        return -ENOMEM;
    entry *e = wr_alloc(d->release != NULL ? sizeof(owning_entry) : sizeof(entry));
    if (e == NULL)
        return -ENOMEM;
    e->base.watcher.klass = &d->dict.klass;
    e->base.node.tag = tag;
    e->value = is_raw(d) ? value : wr_retain(value);
    if (d->release != NULL) {
        owning_entry *o = (owning_entry *)e;
        o->dict = &d->dict;
        o->given = false;
        /* Relaxed: the caller keeps the dictionary. */
        wr_atomic_fetch_add_relaxed(&d->dict.refs, 1);
    }
    *out = &e->base;
    return 0;
}

/* One that was never linked. The caller still has its own reference to the value. */
static void entry_drop(wr_key_dict *d, wr_entry *e)
{
    if (e == NULL)
        return;
    if (!is_raw(d))
        wr_release(value_of(e));
    if (d->release != NULL)
        wr_dict_release(&d->dict);
    wr_free(e);
}

/* ---- life ------------------------------------------------------------------------------------------------- */

wr_key_dict *wr_key_dict_new(const struct wr_key_dict_options *given)
{
    struct wr_key_dict_options options;
    int err = wr_dict_options(given, &options, sizeof options, offsetof(struct wr_key_dict_options, flags));
    bool raw = (options.flags & WR_VALUES_RAW) != 0;
    if (err == 0 && ((options.flags & ~(WR_KEYS_BY_EQUAL | WR_VALUES_RAW)) != 0 || (options.release != NULL && !raw)))
        err = -EINVAL;
    const wr_dict_kind *kind = options.release != NULL ? &owning_kind : raw ? &raw_kind : &object_kind;
    void *block;
    if (err == 0)
        err = wr_dict_new(offsetof(wr_key_dict, dict), kind, options.initial_size, &block);
    if (err != 0) {
        errno = -err;
        return NULL;
    }
    wr_key_dict *d = block;
    d->release = options.release;
    d->dict.flags = options.flags;
    return d;
}

void wr_key_dict_free(wr_key_dict *d)
{
    if (d != NULL)
        wr_dict_free(&d->dict);
}

void wr_key_dict_clear(wr_key_dict *d)
{
    if (d != NULL)
        wr_dict_clear(&d->dict);
}

size_t wr_key_dict_len(const wr_key_dict *d)
{
    if (d == NULL) {
        errno = EINVAL;
        return 0;
    }
    return wr_table_count(&d->dict.table);
}

/* ---- look-ups --------------------------------------------------------------------------------------------- */

static inline bool is_bad(const wr_key_dict *d, const void *key)
{
    if (wr_likely(d != NULL && key != NULL))
        return false;
    errno = EINVAL;
    return true;
}

/* The entry of exactly this object, if that lives. Requires: in a guard. */
static wr_entry *find_living(const wr_key_dict *d, const void *key, uint64_t tag)
{
    wr_entry *e = wr_keyed_find(&d->dict, key, tag);
    return e != NULL && !wr_weak_is_dead(wr_entry_weak(e)) ? e : NULL;
}

/* The value as it is in the dictionary at some instant: owned, raw, or with @borrow borrowed. */
static void *look(const wr_key_dict *d, const void *key, bool borrow, bool *found)
{
    uint64_t tag = wr_keyed_tag(&d->dict, key);
    void *same = NULL, *value = NULL;
    if (d->dict.flags & WR_KEYS_BY_EQUAL) {
        same = wr_keyed_resolve(&d->dict, key, tag);
        if (same == NULL) {
            *found = false;
            return NULL;
        }
        key = same;
    }
    wr_guard_enter();
    wr_entry *e = find_living(d, key, tag);
    if (e != NULL)
        value = borrow ? value_of(e) : value_retain(d, e);
    wr_guard_exit();
    wr_release(same);
    *found = e != NULL;
    return value;
}

void *(wr_key_dict_get)(const wr_key_dict *d, const void *key)
{
    bool found;
    return is_bad(d, key) ? NULL : look(d, key, false, &found);
}

void *(wr_key_dict_peek)(const wr_key_dict *d, const void *key)
{
    bool found;
    if (is_bad(d, key))
        return NULL;
    WR_ASSERT(wr_guard_is_inside());
    return look(d, key, true, &found);
}

bool(wr_key_dict_contains)(const wr_key_dict *d, const void *key)
{
    bool found;
    if (is_bad(d, key))
        return false;
    (void)look(d, key, true, &found);
    return found;
}

/* ---- changes ---------------------------------------------------------------------------------------------- */

/* What set, replace and setdefault are made of. @expected: NULL, or points to what the key must map to. @unless_there: and
 * with that, nothing is done if the key is there: *there. */
static int put(wr_key_dict *d, void *key, void *value, const void *const *expected, bool unless_there, bool *there)
{
    int err = wr_watcher_prepare(key);
    if (err != 0)
        return err;
    uint64_t tag = wr_keyed_tag(&d->dict, key);
    wr_entry *e, *old = NULL;
    err = entry_new(d, tag, value, &e);
    if (err != 0)
        return err;
    wr_keyed_place place;
    wr_keyed_lock(&d->dict, key, tag, &place);
    *there = place.found != NULL;
    bool is_other = expected != NULL && (!*there || value_of(wr_entry_of(place.found)) != *expected);
    if (is_other)
        err = -ENOENT;
    else if (!(unless_there && *there))
        err = wr_keyed_link(&d->dict, &place, e, key, &old);
    wr_keyed_unlock(&d->dict, &place, old);
    if (err != 0 || (unless_there && *there))
        entry_drop(d, e);
    return err;
}

static inline bool is_bad_pair(const wr_key_dict *d, const void *key, const void *value)
{
    return d == NULL || key == NULL || (value == NULL && !is_raw(d));
}

int(wr_key_dict_set)(wr_key_dict *d, void *key, void *value)
{
    bool there;
    return is_bad_pair(d, key, value) ? -EINVAL : put(d, key, value, NULL, false, &there);
}

int(wr_key_dict_replace)(wr_key_dict *d, void *key, const void *expected, void *value)
{
    bool there;
    if (is_bad_pair(d, key, value) || is_bad_pair(d, key, expected))
        return -EINVAL;
    int err = put(d, key, value, &expected, false, &there);
    return err == -ESTALE ? -ENOENT : err;
}

int(wr_key_dict_setdefault)(wr_key_dict *d, void *key, void *value, void **out)
{
    if (is_bad_pair(d, key, value) || out == NULL)
        return -EINVAL;
    for (;;) {
        bool there;
        void *now = look(d, key, false, &there);
        if (there) {
            *out = now;
            return 0;
        }
        int err = put(d, key, value, NULL, true, &there);
        if (err != 0)
            return err;
        if (!there) {
            *out = is_raw(d) ? value : wr_retain(value);
            return 0;
        }
    }
}

static int take_out(wr_key_dict *d, const void *key, const void *const *expected)
{
    wr_entry *old = NULL;
    wr_keyed_place place;
    int err = -ENOENT;
    uint64_t tag = wr_keyed_tag(&d->dict, key);
    wr_keyed_lock(&d->dict, key, tag, &place);
    if (expected == NULL || (place.found != NULL && value_of(wr_entry_of(place.found)) == *expected))
        err = wr_keyed_unlink(&d->dict, &place, &old);
    wr_keyed_unlock(&d->dict, &place, old);
    return err;
}

int(wr_key_dict_remove)(wr_key_dict *d, const void *key)
{
    return d == NULL || key == NULL ? -EINVAL : take_out(d, key, NULL);
}

int(wr_key_dict_remove_if)(wr_key_dict *d, const void *key, const void *value)
{
    return is_bad_pair(d, key, value) ? -EINVAL : take_out(d, key, &value);
}

/* @e was taken out, by this thread: nobody else's pop has it. Requires: in a guard, or standing on it. */
static void *take_value(wr_key_dict *d, wr_entry *e)
{
    void *value = value_retain(d, e);
    if (d->release != NULL)
        ((owning_entry *)e)->given = true; /* its reclaim comes after the guard */
    return value;
}

void *(wr_key_dict_pop)(wr_key_dict *d, const void *key)
{
    if (is_bad(d, key))
        return NULL;
    uint64_t tag = wr_keyed_tag(&d->dict, key);
    bool equal = (tag & WR_TABLE_OWN_MASK) != 0; /* not for every type: see wr_keyed_tag() */
    for (;;) {
        void *value = NULL, *same = NULL;
        if (equal && (same = wr_keyed_resolve(&d->dict, key, tag)) == NULL)
            return NULL;
        wr_guard_enter();
        wr_entry *e = find_living(d, same != NULL ? same : key, tag);
        bool taken = e != NULL && wr_dict_take(&d->dict, e);
        if (taken)
            value = take_value(d, e);
        wr_guard_exit();
        wr_release(same);
        if (taken || (e == NULL && !equal))
            return value;
    }
}

/* ---- all of them ------------------------------------------------------------------------------------------ */

void wr_key_dict_iter_begin(wr_key_dict_iter *it, wr_key_dict *d)
{
    if (d == NULL)
        errno = EINVAL;
    wr_dict_iter_begin(&it->iter, d != NULL ? &d->dict : NULL);
}

bool wr_key_dict_iter_next(wr_key_dict_iter *it, struct wr_key_dict_item *item)
{
    void *key;
    const wr_entry *e = wr_dict_iter_next(&it->iter, &key);
    if (e == NULL)
        return false;
    item->key = key;
    item->value = value_retain(of_dict(it->iter.stand.dict), e);
    return true;
}

bool wr_key_dict_iter_next_ref(wr_key_dict_iter *it, wr_weak **key)
{
    const wr_entry *e = wr_dict_iter_next(&it->iter, NULL);
    if (e == NULL)
        return false;
    *key = wr_weak_retain(wr_entry_weak(e));
    return true;
}

void wr_key_dict_iter_end(wr_key_dict_iter *it)
{
    wr_dict_iter_end(&it->iter);
}

bool wr_key_dict_popitem(wr_key_dict *d, struct wr_key_dict_item *item)
{
    if (d == NULL || item == NULL) {
        errno = EINVAL;
        return false;
    }
    struct wr_dict_iter it;
    void *key;
    bool refused;
    wr_entry *e = wr_dict_pop_any(&d->dict, &it, &key, NULL, NULL, &refused);
    if (e != NULL) {
        item->key = key;
        item->value = take_value(d, e);
    }
    wr_dict_iter_end(&it);
    return e != NULL;
}

/* A raw value that is given back has one owner: it cannot be in two dictionaries. */
static bool may_share(const wr_key_dict *d, const wr_key_dict *from)
{
    return d == from || (is_raw(d) == is_raw(from) && d->release == NULL && from->release == NULL);
}

int wr_key_dict_update(wr_key_dict *d, wr_key_dict *from)
{
    if (d == NULL || from == NULL || !may_share(d, from))
        return -EINVAL;
    if (d == from)
        return 0;
    wr_key_dict_iter it;
    struct wr_key_dict_item item;
    int err = 0;
    wr_key_dict_iter_begin(&it, from);
    while (err == 0 && wr_key_dict_iter_next(&it, &item)) {
        err = wr_key_dict_set(d, item.key, item.value);
        if (!is_raw(d))
            wr_release(item.value);
        wr_release(item.key);
    }
    wr_key_dict_iter_end(&it);
    return err;
}

int wr_key_dict_update_items(wr_key_dict *d, const struct wr_key_dict_item *items, size_t n)
{
    int err = d == NULL || (items == NULL && n > 0) ? -EINVAL : 0;
    for (size_t i = 0; err == 0 && i < n; i++)
        err = wr_key_dict_set(d, items[i].key, items[i].value);
    return err;
}

/* [owned] @d, or with an error NULL in its place. */
static wr_key_dict *unless(wr_key_dict *d, int err)
{
    if (err == 0)
        return d;
    wr_key_dict_free(d);
    errno = -err;
    return NULL;
}

wr_key_dict *wr_key_dict_from_items(const struct wr_key_dict_options *options, const struct wr_key_dict_item *items,
                                    size_t n)
{
    wr_key_dict *d = wr_key_dict_new(options);
    if (d == NULL)
        return NULL;
    return unless(d, d->release != NULL ? -EINVAL : wr_key_dict_update_items(d, items, n));
}

wr_key_dict *wr_key_dict_copy(wr_key_dict *from)
{
    return wr_key_dict_union(from, NULL);
}

wr_key_dict *wr_key_dict_union(wr_key_dict *a, wr_key_dict *b)
{
    if (a == NULL || a->release != NULL || (b != NULL && !may_share(a, b))) {
        errno = EINVAL;
        return NULL;
    }
    struct wr_key_dict_options options = {.struct_size = sizeof options, .flags = a->dict.flags};
    wr_key_dict *d = wr_key_dict_new(&options);
    if (d == NULL)
        return NULL;
    int err = wr_key_dict_update(d, a);
    if (err == 0 && b != NULL)
        err = wr_key_dict_update(d, b);
    return unless(d, err);
}
