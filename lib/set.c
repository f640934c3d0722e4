/* F7 keyed: the set: an entry is that of dict.h, and nothing more. What takes two sets is made of the calls on one. */
#include <weakref/set.h>

#include "alloc.h"
#include "keyed.h"
#include "pool.h"

#include <errno.h>

struct wr_set {
    wr_dict dict; /* last: its size varies */
};

/* ---- life ------------------------------------------------------------------------------------------------- */

static void entry_reclaim(wr_retired *r)
{
    wr_entry *e = (wr_entry *)((char *)r - offsetof(wr_entry, retired));
    if (wr_entry_is_stood_on(e))
        return;
    wr_watcher_release_weak(e->watcher.header);
    wr_pool_free(e, sizeof *e);
}

static void entry_retire(wr_entry *e)
{
    wr_retire_memory(&e->retired, entry_reclaim);
}

static void dict_reclaim(wr_retired *r)
{
    wr_dict *d = (wr_dict *)((char *)r - offsetof(wr_dict, retired));
    wr_table_fini(&d->table);
    wr_free(d);
}

static void dict_retire(wr_dict *d)
{
    wr_retire_memory(&d->retired, dict_reclaim);
}

static const wr_dict_kind kind = {.order = wr_keyed_order, .retire = entry_retire, .retire_dict = dict_retire};

static wr_set *fail(int err)
{
    errno = -err;
    return NULL;
}

/* [owned] @s, or with an error NULL in its place. */
static wr_set *unless(wr_set *s, int err)
{
    if (err == 0)
        return s;
    wr_set_free(s);
    return fail(err);
}

wr_set *wr_set_new(const struct wr_set_options *given)
{
    struct wr_set_options options;
    int err = wr_dict_options(given, &options, sizeof options, offsetof(struct wr_set_options, flags));
    if (err == 0 && (options.flags & ~WR_KEYS_BY_EQUAL) != 0)
        err = -EINVAL;
    void *block;
    if (err == 0)
        err = wr_dict_new(offsetof(wr_set, dict), &kind, options.initial_size, &block);
    if (err != 0)
        return fail(err);
    wr_set *s = block;
    s->dict.flags = options.flags;
    return s;
}

static wr_set *new_like(const wr_set *s)
{
    if (s == NULL)
        return fail(-EINVAL);
    struct wr_set_options options = {.struct_size = sizeof options, .flags = s->dict.flags};
    return wr_set_new(&options);
}

wr_set *wr_set_from_array(const struct wr_set_options *options, void *const *objs, size_t n)
{
    wr_set *s = wr_set_new(options);
    return s != NULL ? unless(s, wr_set_update_array(s, objs, n)) : NULL;
}

wr_set *wr_set_copy(wr_set *from)
{
    wr_set *s = new_like(from);
    return s != NULL ? unless(s, wr_set_update(s, from)) : NULL;
}

void wr_set_free(wr_set *s)
{
    if (s != NULL)
        wr_dict_free(&s->dict);
}

void wr_set_clear(wr_set *s)
{
    if (s != NULL)
        wr_dict_clear(&s->dict);
}

size_t wr_set_len(const wr_set *s)
{
    if (s == NULL) {
        errno = EINVAL;
        return 0;
    }
    return wr_table_count(&s->dict.table);
}

/* ---- members ---------------------------------------------------------------------------------------------- */

int(wr_set_add)(wr_set *s, void *obj)
{
    if (s == NULL || obj == NULL)
        return -EINVAL;
    int err = wr_watcher_prepare(obj);
    if (err != 0)
        return err;
    uint64_t tag = wr_keyed_tag(&s->dict, obj);
    if (wr_table_reserve(&s->dict.table, tag) != 0)
        return -ENOMEM;
    wr_entry *e = wr_pool_alloc(sizeof *e), *old = NULL;
    if (e == NULL)
        return -ENOMEM;
    e->watcher.klass = &s->dict.klass;
    e->node.tag = tag;
    wr_keyed_place place;
    wr_keyed_lock(&s->dict, obj, tag, &place);
    bool there = place.found != NULL;
    if (!there)
        err = wr_keyed_link(&s->dict, &place, e, obj, &old);
    wr_keyed_unlock(&s->dict, &place, old);
    if (there || err != 0)
        wr_pool_free(e, sizeof *e);
    return err;
}

int(wr_set_remove)(wr_set *s, const void *obj)
{
    if (s == NULL || obj == NULL)
        return -EINVAL;
    wr_entry *old = NULL;
    wr_keyed_place place;
    wr_keyed_lock(&s->dict, obj, wr_keyed_tag(&s->dict, obj), &place);
    int err = wr_keyed_unlink(&s->dict, &place, &old);
    wr_keyed_unlock(&s->dict, &place, old);
    return err;
}

int(wr_set_discard)(wr_set *s, const void *obj)
{
    int err = wr_set_remove(s, obj);
    return err == -ENOENT ? 0 : err;
}

void *(wr_set_get)(const wr_set *s, const void *obj)
{
    if (s == NULL || obj == NULL)
        return fail(-EINVAL);
    uint64_t tag = wr_keyed_tag(&s->dict, obj);
    void *same = wr_keyed_resolve(&s->dict, obj, tag);
    if (same == NULL)
        return NULL;
    wr_guard_enter();
    bool there = wr_keyed_find(&s->dict, same, tag) != NULL;
    wr_guard_exit();
    if (there)
        return same;
    wr_release(same);
    return NULL;
}

bool(wr_set_contains)(const wr_set *s, const void *obj)
{
    void *same = wr_set_get(s, obj);
    wr_release(same);
    return same != NULL;
}

void *wr_set_pop(wr_set *s)
{
    if (s == NULL)
        return fail(-EINVAL);
    struct wr_dict_iter it;
    void *obj = NULL;
    bool refused;
    const wr_entry *e = wr_dict_pop_any(&s->dict, &it, &obj, NULL, NULL, &refused);
    wr_dict_iter_end(&it);
    return e != NULL ? obj : NULL;
}

/* ---- all of them ------------------------------------------------------------------------------------------ */

void wr_set_iter_begin(wr_set_iter *it, wr_set *s)
{
    if (s == NULL)
        errno = EINVAL;
    wr_dict_iter_begin(&it->iter, s != NULL ? &s->dict : NULL);
}

bool wr_set_iter_next(wr_set_iter *it, void **obj)
{
    *obj = NULL;
    return wr_dict_iter_next(&it->iter, obj) != NULL;
}

bool wr_set_iter_next_ref(wr_set_iter *it, wr_weak **ref)
{
    const wr_entry *e = wr_dict_iter_next(&it->iter, NULL);
    if (e != NULL)
        *ref = wr_weak_retain(wr_entry_weak(e));
    return e != NULL;
}

void wr_set_iter_end(wr_set_iter *it)
{
    wr_dict_iter_end(&it->iter);
}

/* ---- two sets --------------------------------------------------------------------------------------------- */

/* Calls visit(s, obj) for each member of @from that is, or is not, in @of (NULL: for each) until it answers other than 0, which is
 * returned. */
static int for_each(wr_set *from, int (*visit)(wr_set *s, void *obj), wr_set *s, const wr_set *of, bool is_in)
{
    wr_set_iter it;
    int answer = 0;
    wr_set_iter_begin(&it, from);
    for (void *obj; answer == 0 && wr_set_iter_next(&it, &obj); wr_release(obj))
        if (of == NULL || wr_set_contains(of, obj) == is_in)
            answer = visit(s, obj);
    wr_set_iter_end(&it);
    return answer;
}

static int take(wr_set *s, void *obj)
{
    return wr_set_discard(s, obj);
}

static int toggle(wr_set *s, void *obj)
{
    int err = wr_set_remove(s, obj);
    return err == -ENOENT ? wr_set_add(s, obj) : err;
}

static int found(wr_set *s, void *obj)
{
    (void)s;
    (void)obj;
    return 1;
}

int wr_set_update(wr_set *s, wr_set *other)
{
    return s == NULL || other == NULL ? -EINVAL : for_each(other, wr_set_add, s, NULL, true);
}

int wr_set_update_array(wr_set *s, void *const *objs, size_t n)
{
    int err = s == NULL || (objs == NULL && n > 0) ? -EINVAL : 0;
    for (size_t i = 0; err == 0 && i < n; i++)
        err = wr_set_add(s, objs[i]);
    return err;
}

int wr_set_intersection_update(wr_set *s, wr_set *other)
{
    return s == NULL || other == NULL ? -EINVAL : for_each(s, take, s, other, false);
}

int wr_set_difference_update(wr_set *s, wr_set *other)
{
    return s == NULL || other == NULL ? -EINVAL : for_each(other, take, s, NULL, true);
}

int wr_set_symmetric_difference_update(wr_set *s, wr_set *other)
{
    return s == NULL || other == NULL ? -EINVAL : for_each(other, s == other ? take : toggle, s, NULL, true);
}

wr_set *wr_set_union(wr_set *a, wr_set *b)
{
    wr_set *s = b != NULL ? wr_set_copy(a) : fail(-EINVAL);
    return s != NULL ? unless(s, wr_set_update(s, b)) : NULL;
}

/* What of @a is, or is not, in @b. */
static wr_set *part(wr_set *a, wr_set *b, bool is_in)
{
    wr_set *s = b != NULL ? new_like(a) : fail(-EINVAL);
    return s != NULL ? unless(s, for_each(a, wr_set_add, s, b, is_in)) : NULL;
}

wr_set *wr_set_intersection(wr_set *a, wr_set *b)
{
    return part(a, b, true);
}

wr_set *wr_set_difference(wr_set *a, wr_set *b)
{
    return part(a, b, false);
}

wr_set *wr_set_symmetric_difference(wr_set *a, wr_set *b)
{
    wr_set *s = part(a, b, false);
    return s != NULL ? unless(s, for_each(b, wr_set_add, s, a, false)) : NULL;
}

/* No member of @a is, or is not, in @b. */
static bool none(wr_set *a, wr_set *b, bool is_in)
{
    if (a == NULL || b == NULL) {
        errno = EINVAL;
        return false;
    }
    return for_each(a, found, NULL, b, is_in) == 0;
}

bool wr_set_isdisjoint(wr_set *a, wr_set *b)
{
    return none(a, b, true);
}

bool wr_set_issubset(wr_set *a, wr_set *b)
{
    return none(a, b, false);
}

bool wr_set_issuperset(wr_set *a, wr_set *b)
{
    return none(b, a, false);
}

bool wr_set_equal(wr_set *a, wr_set *b)
{
    return none(a, b, false) && none(b, a, false);
}
