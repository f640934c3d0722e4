/* wr-stress: the rest of mode dict: key dictionaries, sets, iterators, removals, copies, and dictionaries that come and go.
 *
 * Steady containers: each worker puts in and takes out its own members alone, so it knows what each look-up, each
 * iterator and each copy must find of them, whatever the others do to theirs; and how many deaths are to be heard of.
 * Wild containers: all put in, take out, clear and update. Each member comes into each of them once, by its maker: so it is
 * popped once at most.
 */
#include "wr_stress.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include <weakref/key_dict.h>
#include <weakref/set.h>

enum { N_MINE = 16, N_WILD_KEYS = 48, N_WILD_HELD = 12, N_FLOWN = 8, BURST_MOST = 400 };
enum container { IN_VALUES, IN_KEYS, IN_KEYS_EQUAL, IN_RAW, IN_SET, IN_SET_EQUAL, N_CONTAINERS };
#define ALL_CONTAINERS ((1u << N_CONTAINERS) - 1)
#define MAGIC UINT64_C(0x6d656d6265722121)
#define NOBODY UINT32_MAX

struct member {
    uint64_t magic;
    uint64_t serial; /* what `equal` compares; only a twin has the same */
    uint32_t id;     /* its key in dictionaries of values */
    uint32_t owner;  /* whose it is in the steady containers, or NOBODY */
    uint32_t slot;
    _Atomic unsigned taken; /* bits of enum wild */
};

/* A value of a key dictionary. It knows its key as the header recommends. */
struct note {
    uint64_t magic, serial;
    wr_weak *about;
};

struct raw {
    uint64_t magic, serial;
    struct raw *next; /* of those that were popped */
};

enum wild { WILD_VALUES, WILD_KEYS, WILD_SET };

/* A worker's place for a member. */
struct own {
    struct member *member;
    struct note *note;
    struct raw *raw;
    unsigned in; /* bits of enum container */
};

struct mine {
    struct own own[N_MINE];
    struct member *held[N_WILD_HELD];
};

static struct {
    wr_value_dict *values;
    wr_key_dict *keys, *keys_equal, *raw;
    wr_set *set, *set_equal;
} steady;

static struct {
    wr_value_dict *values, *pair[2];
    wr_key_dict *keys;
    wr_set *set, *other_set;
} wild;

static wr_value_dict *flown;
static _Atomic unsigned creating[N_FLOWN];
static wr_queue *hearing;
static struct mine *mine;
static _Atomic uint64_t serials, members_made, members_gone, notes_made, notes_gone, raws_made, raws_gone;
static _Atomic uint64_t deaths_due, deaths_heard, lives_made, lives_ended;
static _Atomic(struct raw *) raws_popped;
static _Thread_local unsigned inside; /* of an equal or a destroy that uses a container */

static struct mine *mine_of(struct worker *w)
{
    return &mine[w->index];
}

/* ---- objects ---------------------------------------------------------------------------------------------------- */

static struct member *member_check(const void *obj)
{
    struct member *m = (struct member *)(uintptr_t)obj;
    if (m->magic != MAGIC)
        violation("member %p: its memory reads %llx", obj, (unsigned long long)m->magic);
    return m;
}

static struct note *note_check(void *obj, uint64_t serial)
{
    struct note *n = obj;
    if (n->magic != MAGIC || n->serial != serial)
        violation("the value of member %llu is that of %llu, magic %llx", (unsigned long long)serial,
                  (unsigned long long)n->serial, (unsigned long long)n->magic);
    return n;
}

/* From the instant of its death it is nowhere, and cannot come back. */
static void member_destroy(void *obj)
{
    struct member *m = member_check(obj);
    struct key key;
    key_make(&key, m->id);
    if (m->serial % 4 == 0) {
        CHECK(!wr_set_contains(steady.set, obj) && !wr_key_dict_contains(wild.keys, obj));
        CHECK(wr_key_dict_get(steady.keys, obj) == NULL);
        CHECK(wr_set_add(wild.set, obj) == -ESTALE);
        CHECK(wr_value_dict_set(wild.values, key.bytes, key.size, obj) == -ESTALE);
        CHECK(wr_set_remove(steady.set, obj) == -ENOENT);
        void *other = wr_value_dict_get(steady.values, key.bytes, key.size);
        CHECK(other != obj);
        wr_release(other);
    }
    m->magic = 0;
    atomic_fetch_add_explicit(&members_gone, 1, memory_order_relaxed);
}

static uint64_t member_hash(const void *obj)
{
    return member_check(obj)->serial / 4;
}

static bool member_equal(const void *a, const void *b)
{
    const struct member *x = member_check(a), *y = member_check(b);
    CHECK(x != y);
    if (inside == 0 && x->serial % 16 == 0) { /* it may use the container that asks */
        inside++;
        (void)wr_key_dict_contains(steady.keys_equal, a);
        (void)wr_set_contains(steady.set_equal, b);
        inside--;
    }
    return x->serial == y->serial;
}

static void note_destroy(void *obj)
{
    struct note *n = obj;
    CHECK(n->magic == MAGIC);
    n->magic = 0;
    wr_weak_release(n->about);
    atomic_fetch_add_explicit(&notes_gone, 1, memory_order_relaxed);
}

static const wr_type member_types[] = {
    {.name = "member",
     .size = sizeof(struct member),
     .destroy = member_destroy,
     .hash = member_hash,
     .equal = member_equal},
    {.name = "deferred member",
     .size = sizeof(struct member),
     .destroy = member_destroy,
     .hash = member_hash,
     .equal = member_equal,
     .flags = WR_TYPE_DEFERRED},
};

static const wr_type note_type = {.name = "note", .size = sizeof(struct note), .destroy = note_destroy};

static struct member *member_new(struct random *r, uint32_t id, uint64_t serial)
{
    struct member *m = wr_new(&member_types[random_one_in(r, 3)]);
    CHECK(m != NULL);
    m->magic = MAGIC;
    m->serial = serial != 0 ? serial : 1 + atomic_fetch_add_explicit(&serials, 1, memory_order_relaxed);
    m->id = id;
    m->owner = NOBODY;
    atomic_fetch_add_explicit(&members_made, 1, memory_order_relaxed);
    return m;
}

static struct note *note_new(struct member *about)
{
    struct note *n = wr_new(&note_type);
    CHECK(n != NULL);
    n->magic = MAGIC;
    n->serial = about->serial;
    n->about = wr_downgrade(about);
    atomic_fetch_add_explicit(&notes_made, 1, memory_order_relaxed);
    return n;
}

static struct raw *raw_new(uint64_t serial)
{
    struct raw *raw = malloc(sizeof *raw);
    CHECK(raw != NULL);
    *raw = (struct raw){MAGIC, serial, NULL};
    atomic_fetch_add_explicit(&raws_made, 1, memory_order_relaxed);
    return raw;
}

static void raw_release(void *value)
{
    struct raw *raw = value;
    CHECK(raw->magic == MAGIC);
    raw->magic = 0;
    free(raw);
    atomic_fetch_add_explicit(&raws_gone, 1, memory_order_relaxed);
}

/* Popped: the caller's, but who stands on it with an iterator, or is in a guard, still looks at it. */
static void raw_keep(struct raw *raw)
{
    raw->next = atomic_load_explicit(&raws_popped, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&raws_popped, &raw->next, raw, memory_order_release,
                                                  memory_order_relaxed))
        ;
}

/* ---- steady containers: a worker's own members -------------------------------------------------------------------- */

static wr_key_dict *keyed_by(enum container c)
{
    return c == IN_KEYS ? steady.keys : c == IN_KEYS_EQUAL ? steady.keys_equal : steady.raw;
}

static wr_set *set_by(enum container c)
{
    return c == IN_SET ? steady.set : steady.set_equal;
}

static void own_put(struct own *o, enum container c)
{
    struct key key;
    switch (c) {
    case IN_VALUES:
        key_make(&key, o->member->id);
        CHECK(wr_value_dict_set(steady.values, key.bytes, key.size, o->member) == 0);
        break;
    case IN_KEYS:
    case IN_KEYS_EQUAL:
        CHECK(wr_key_dict_set(keyed_by(c), o->member, o->note) == 0);
        break;
    case IN_RAW:
        o->raw = raw_new(o->member->serial); /* the one before is given back */
        CHECK(wr_key_dict_set(steady.raw, o->member, o->raw) == 0);
        break;
    default:
        CHECK(wr_set_add(set_by(c), o->member) == 0);
    }
    o->in |= 1u << c;
}

/* In one of the ways there are; says what is right. */
static void own_take(struct own *o, enum container c, struct random *r)
{
    bool there = (o->in >> c & 1) != 0, pop = random_one_in(r, 2);
    struct key key;
    void *was = NULL;
    switch (c) {
    case IN_VALUES:
        key_make(&key, o->member->id);
        if (pop)
            CHECK((was = wr_value_dict_pop(steady.values, key.bytes, key.size)) == (there ? o->member : NULL));
        else
            CHECK(wr_value_dict_remove_if(steady.values, key.bytes, key.size, o->member) == (there ? 0 : -ENOENT));
        break;
    case IN_KEYS:
    case IN_KEYS_EQUAL:
        if (pop)
            CHECK((was = wr_key_dict_pop(keyed_by(c), o->member)) == (there ? o->note : NULL));
        else
            CHECK(wr_key_dict_remove(keyed_by(c), o->member) == (there ? 0 : -ENOENT));
        break;
    case IN_RAW:
        if (pop && there) {
            CHECK(wr_key_dict_pop(steady.raw, o->member) == o->raw);
            raw_keep(o->raw);
            there = false;
        }
        CHECK(wr_key_dict_remove_if(steady.raw, o->member, o) == -ENOENT);
        CHECK(wr_key_dict_remove(steady.raw, o->member) == (there ? 0 : -ENOENT));
        break;
    default:
        CHECK(wr_set_remove(set_by(c), o->member) == (there ? 0 : -ENOENT));
    }
    wr_release(was);
    o->in &= ~(1u << c);
}

/* What each container says of @o is what its owner knows. @as: the member, or by equality a twin of it. */
static void own_look(const struct own *o, struct member *as)
{
    bool twin = as != o->member;
    struct key key;
    key_make(&key, o->member->id);
    void *obj = wr_value_dict_get(steady.values, key.bytes, key.size);
    CHECK(obj == (o->in >> IN_VALUES & 1 ? o->member : NULL));
    wr_release(obj);
    for (enum container c = IN_KEYS; c <= IN_KEYS_EQUAL; c++) {
        bool there = (o->in >> c & 1) != 0 && (!twin || c == IN_KEYS_EQUAL);
        void *note = wr_key_dict_get(keyed_by(c), as);
        CHECK(note == (there ? o->note : NULL));
        CHECK(wr_key_dict_contains(keyed_by(c), as) == there);
        wr_release(note);
        WR_GUARD {
            CHECK(wr_key_dict_peek(keyed_by(c), as) == (there ? o->note : NULL));
        }
    }
    WR_GUARD {
        CHECK(wr_key_dict_peek(steady.raw, as) == ((o->in >> IN_RAW & 1) && !twin ? o->raw : NULL));
    }
    CHECK(wr_set_contains(steady.set, as) == ((o->in >> IN_SET & 1) != 0 && !twin));
    obj = wr_set_get(steady.set_equal, as);
    CHECK(obj == (o->in >> IN_SET_EQUAL & 1 ? o->member : NULL));
    wr_release(obj);
}

/* Lets the member die, unless somebody looks at it just now: then later. */
static void own_drop(struct own *o)
{
    if (o->member == NULL)
        return;
    if (o->in >> IN_VALUES & 1)
        atomic_fetch_add_explicit(&deaths_due, 1, memory_order_relaxed);
    struct key key;
    key_make(&key, o->member->id);
    wr_weak *weak = wr_downgrade(o->member);
    wr_release(o->member);
    if (wr_weak_is_dead(weak)) {
        CHECK(!wr_value_dict_contains(steady.values, key.bytes, key.size));
        count(COUNT_dict_deaths);
    }
    wr_weak_release(weak);
    wr_release(o->note);
    *o = (struct own){0};
}

static void own_make(struct worker *w, struct own *o, uint32_t slot)
{
    own_drop(o);
    o->member = member_new(&w->random, 0, 0);
    /* A key of its own: the one before may still be held by somebody who looks at it, and must be heard of. */
    o->member->id = UINT32_C(0x20000000) | (uint32_t)o->member->serial;
    o->member->owner = w->index;
    o->member->slot = slot;
    o->note = note_new(o->member);
    unsigned in = random_one_in(&w->random, 2) ? ALL_CONTAINERS : (unsigned)random_next(&w->random) & ALL_CONTAINERS;
    for (enum container c = 0; c < N_CONTAINERS; c++)
        if (in >> c & 1)
            own_put(o, c);
}

/* The value changes: by set, by a replace that finds what it expects, not by one that does not. */
static void own_change(struct own *o, enum container c, struct random *r)
{
    if (o->in >> IN_VALUES & 1) {
        struct member *other = member_new(r, o->member->id, 0);
        struct key key;
        void *out = NULL;
        key_make(&key, o->member->id);
        CHECK(wr_value_dict_replace(steady.values, key.bytes, key.size, other, o->member) == -ENOENT);
        CHECK(wr_value_dict_setdefault(steady.values, key.bytes, key.size, other, &out) == 0 && out == o->member);
        wr_release(out);
        /* There and back, so that the old one goes while it lives: nobody hears of that. */
        CHECK(wr_value_dict_replace(steady.values, key.bytes, key.size, o->member, other) == 0);
        CHECK(wr_value_dict_set(steady.values, key.bytes, key.size, o->member) == 0);
        wr_release(other);
    }
    if (c != IN_KEYS && c != IN_KEYS_EQUAL)
        return;
    wr_key_dict *d = keyed_by(c);
    bool there = (o->in >> c & 1) != 0;
    struct note *other = note_new(o->member);
    void *out = NULL;
    CHECK(wr_key_dict_replace(d, o->member, other, o->note) == -ENOENT);
    CHECK(wr_key_dict_replace(d, o->member, o->note, other) == (there ? 0 : -ENOENT));
    CHECK(wr_key_dict_setdefault(d, o->member, o->note, &out) == 0 && out == (there ? other : o->note));
    wr_release(out);
    CHECK(wr_key_dict_set(d, o->member, o->note) == 0);
    o->in |= 1u << c;
    wr_release(other);
}

static void op_steady(struct worker *w)
{
    struct random *r = &w->random;
    uint32_t slot = random_below(r, N_MINE);
    struct own *o = &mine_of(w)->own[slot];
    enum container c = random_below(r, N_CONTAINERS);
    unsigned which = random_below(r, 8);
    if (o->member == NULL || which == 0)
        own_make(w, o, slot);
    else if (which == 1)
        own_drop(o);
    else if (which < 4)
        own_take(o, c, r);
    else if (which == 4)
        own_put(o, c);
    else if (which == 5)
        own_change(o, c, r);
    if (o->member == NULL)
        return;
    own_look(o, o->member);
    if (random_one_in(r, 4)) {
        struct member *twin = member_new(r, o->member->id, o->member->serial);
        own_look(o, twin);
        wr_release(twin);
    }
}

/* So many that the tables grow and shrink beside all others. */
static void op_steady_burst(struct worker *w)
{
    static _Atomic unsigned at_it; /* one at a time: the memory stays small */
    if (!random_one_in(&w->random, 4) || atomic_exchange_explicit(&at_it, 1, memory_order_relaxed))
        return;
    unsigned n = 16 + random_below(&w->random, SANITIZED ? BURST_MOST / 4 : BURST_MOST);
    struct own *all = calloc(n, sizeof *all);
    CHECK(all != NULL);
    for (unsigned i = 0; i < n; i++)
        own_make(w, &all[i], N_MINE + i);
    for (unsigned i = 0; i < n; i++) {
        own_look(&all[i], all[i].member);
        if (random_one_in(&w->random, 3))
            own_drop(&all[i]);
    }
    for (unsigned i = 0; i < n; i++)
        own_drop(&all[i]);
    free(all);
    atomic_store_explicit(&at_it, 0, memory_order_relaxed);
}

/* ---- iterators and copies of the steady ones ---------------------------------------------------------------------- */

struct walk {
    struct worker *worker;
    enum container container;
    unsigned met[N_MINE]; /* own members */
    uint64_t *serials;    /* of all that were met */
    size_t n, room;
};

static void walk_meet(struct walk *walk, struct member *m, void *value)
{
    member_check(m);
    CHECK(m->owner != NOBODY || walk->container == IN_VALUES);
    if (walk->n == walk->room) {
        walk->room = walk->room * 2 + 64;
        walk->serials = realloc(walk->serials, walk->room * sizeof *walk->serials);
        CHECK(walk->serials != NULL);
    }
    walk->serials[walk->n++] = walk->container == IN_VALUES ? m->id : m->serial;
    if (walk->container == IN_KEYS || walk->container == IN_KEYS_EQUAL)
        note_check(value, m->serial);
    if (m->owner != walk->worker->index || m->slot >= N_MINE)
        return;
    const struct own *o = &mine_of(walk->worker)->own[m->slot];
    if (m != o->member)
        return; /* let go of, and kept by somebody who looks at it */
    CHECK((o->in >> walk->container & 1) != 0);
    if (walk->container == IN_KEYS || walk->container == IN_KEYS_EQUAL)
        CHECK(value == o->note);
    walk->met[m->slot]++;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* What lives throughout came once, nothing twice. */
static void walk_verify(struct walk *walk, bool whole)
{
    for (uint32_t i = 0; i < N_MINE; i++) {
        const struct own *o = &mine_of(walk->worker)->own[i];
        unsigned due = o->member != NULL && (o->in >> walk->container & 1) != 0;
        if (whole ? walk->met[i] != due : walk->met[i] > due)
            violation("an iterator met member %u of container %u %u times, not %u", i, walk->container, walk->met[i],
                      due);
    }
    if (walk->n > 0)
        qsort(walk->serials, walk->n, sizeof *walk->serials, compare);
    for (size_t i = 1; i < walk->n; i++)
        if (walk->serials[i - 1] == walk->serials[i])
            violation("an iterator of container %u met %llu twice", walk->container,
                      (unsigned long long)walk->serials[i]);
    count_many(COUNT_dict_steps, walk->n);
    free(walk->serials);
}

static bool walk_on(struct worker *w, bool whole)
{
    if (random_one_in(&w->random, 64))
        sched_yield(); /* it stands there while others go on */
    return whole || !random_one_in(&w->random, 32);
}

static void walk_values(struct walk *walk, wr_value_dict *d, bool whole)
{
    wr_value_dict_iter it;
    struct wr_value_dict_item item;
    bool more = true;
    wr_value_dict_iter_begin(&it, d);
    while (more && wr_value_dict_iter_next(&it, &item)) {
        struct key key;
        struct member *m = member_check(item.value);
        key_make(&key, m->id);
        walk_meet(walk, m, NULL);
        more = walk_on(walk->worker, whole);
        CHECK(item.key_size == key.size && memcmp(item.key, key.bytes, key.size) == 0);
        wr_release(m);
    }
    wr_value_dict_iter_end(&it);
}

static void walk_keys(struct walk *walk, wr_key_dict *d, bool whole)
{
    wr_key_dict_iter it;
    struct wr_key_dict_item item;
    bool more = true;
    wr_key_dict_iter_begin(&it, d);
    while (more && wr_key_dict_iter_next(&it, &item)) {
        walk_meet(walk, item.key, item.value);
        more = walk_on(walk->worker, whole);
        if (walk->container == IN_RAW)
            CHECK(((struct raw *)item.value)->magic == MAGIC); /* until the iterator's next call */
        else
            wr_release(item.value);
        wr_release(item.key);
    }
    wr_key_dict_iter_end(&it);
}

static void walk_set(struct walk *walk, wr_set *s, bool whole)
{
    wr_set_iter it;
    bool more = true;
    void *obj;
    wr_set_iter_begin(&it, s);
    while (more && wr_set_iter_next(&it, &obj)) {
        walk_meet(walk, obj, NULL);
        more = walk_on(walk->worker, whole);
        wr_release(obj);
    }
    wr_set_iter_end(&it);
}

static void op_walk(struct worker *w)
{
    struct walk walk = {.worker = w, .container = random_below(&w->random, N_CONTAINERS)};
    bool whole = !random_one_in(&w->random, 4);
    if (walk.container == IN_VALUES)
        walk_values(&walk, steady.values, whole);
    else if (walk.container <= IN_RAW)
        walk_keys(&walk, keyed_by(walk.container), whole);
    else
        walk_set(&walk, set_by(walk.container), whole);
    walk_verify(&walk, whole);
    count(COUNT_dict_walks);
}

/* Of two sets: what @in has of the two decides whether a member must be in the result. */
static void copy_sets(struct worker *w)
{
    wr_set *const a = steady.set, *const b = steady.set_equal;
    unsigned which = random_below(&w->random, 5);
    wr_set *made = which == 0   ? wr_set_copy(a)
                   : which == 1 ? wr_set_union(a, b)
                   : which == 2 ? wr_set_intersection(a, b)
                   : which == 3 ? wr_set_difference(a, b)
                                : wr_set_symmetric_difference(a, b);
    CHECK(made != NULL);
    for (uint32_t i = 0; i < N_MINE; i++) {
        const struct own *o = &mine_of(w)->own[i];
        if (o->member == NULL)
            continue;
        bool in_a = (o->in >> IN_SET & 1) != 0, in_b = (o->in >> IN_SET_EQUAL & 1) != 0;
        bool due = which == 0   ? in_a
                   : which == 1 ? in_a || in_b
                   : which == 2 ? in_a && in_b
                   : which == 3 ? in_a && !in_b
                                : in_a != in_b;
        CHECK(wr_set_contains(made, o->member) == due);
        if (in_a && in_b)
            CHECK(!wr_set_isdisjoint(a, b));
        if (in_a && !in_b)
            CHECK(!wr_set_issubset(a, b) && !wr_set_equal(a, b));
    }
    wr_set_free(made);
}

static void op_copy(struct worker *w)
{
    struct mine *m = mine_of(w);
    unsigned which = random_below(&w->random, 3);
    count(COUNT_dict_copies);
    if (which == 0) {
        copy_sets(w);
        return;
    }
    wr_value_dict *values = which == 1 ? wr_value_dict_union(steady.values, wild.values) : NULL;
    wr_key_dict *keys = which == 2 ? wr_key_dict_union(steady.keys_equal, steady.keys) : NULL;
    CHECK(values != NULL || keys != NULL);
    for (uint32_t i = 0; i < N_MINE; i++) {
        const struct own *o = &m->own[i];
        if (o->member == NULL)
            continue;
        struct key key;
        key_make(&key, o->member->id);
        if (values != NULL)
            CHECK(wr_value_dict_contains(values, key.bytes, key.size) == ((o->in >> IN_VALUES & 1) != 0));
        if (keys != NULL)
            CHECK(wr_key_dict_contains(keys, o->member) == ((o->in & (1u << IN_KEYS | 1u << IN_KEYS_EQUAL)) != 0));
    }
    wr_value_dict_free(values); /* beside the deaths of what is in them */
    wr_key_dict_free(keys);
}

/* ---- wild containers ------------------------------------------------------------------------------------------------- */

/* @m was popped out of a container. */
static void wild_taken(struct member *m, enum wild from)
{
    unsigned bit = 1u << from;
    if (atomic_fetch_or_explicit(&m->taken, bit, memory_order_relaxed) & bit)
        violation("member %llu was popped twice from %u", (unsigned long long)member_check(m)->serial, from);
    count(COUNT_dict_popped);
}

static void wild_make(struct worker *w)
{
    struct member **place = &mine_of(w)->held[random_below(&w->random, N_WILD_HELD)];
    struct member *m = member_new(&w->random, random_below(&w->random, N_WILD_KEYS), 0);
    struct key key;
    key_make(&key, m->id);
    wr_release(*place);
    *place = m;
    struct note *note = note_new(m);
    CHECK(wr_value_dict_set(wild.values, key.bytes, key.size, m) == 0);
    CHECK(wr_value_dict_set(wild.pair[m->serial % 2], key.bytes, key.size, m) == 0);
    CHECK(wr_key_dict_set(wild.keys, m, note) == 0);
    CHECK(wr_set_add(wild.set, m) == 0 && wr_set_add(wild.other_set, m) == 0);
    wr_release(note);
}

static void wild_pop(struct worker *w)
{
    struct key key;
    struct member *m = NULL;
    struct wr_key_dict_item item;
    uint32_t id = random_below(&w->random, N_WILD_KEYS);
    key_make(&key, id);
    switch (random_below(&w->random, 5)) {
    case 0:
        if ((m = wr_value_dict_pop(wild.values, key.bytes, key.size)) != NULL) {
            CHECK(member_check(m)->id == id);
            wild_taken(m, WILD_VALUES);
        }
        break;
    case 1: {
        struct key got;
        got.size = sizeof got.bytes;
        if ((m = wr_value_dict_popitem(wild.values, got.bytes, &got.size)) != NULL) {
            key_make(&key, member_check(m)->id);
            CHECK(got.size == key.size && memcmp(got.bytes, key.bytes, key.size) == 0);
            wild_taken(m, WILD_VALUES);
        }
        break;
    }
    case 2:
        if (wr_key_dict_popitem(wild.keys, &item)) {
            m = item.key;
            wild_taken(m, WILD_KEYS);
            note_check(item.value, m->serial);
            wr_release(item.value);
        }
        break;
    case 3:
        m = wr_retain(mine_of(w)->held[random_below(&w->random, N_WILD_HELD)]);
        if (m != NULL && (item.value = wr_key_dict_pop(wild.keys, m)) != NULL) {
            wild_taken(m, WILD_KEYS);
            note_check(item.value, m->serial);
            wr_release(item.value);
        }
        break;
    default:
        if ((m = wr_set_pop(wild.set)) != NULL)
            wild_taken(member_check(m), WILD_SET);
    }
    wr_release(m);
}

/* Two dictionaries, and two sets, that change each other at once. */
static void wild_update(struct worker *w)
{
    unsigned a = random_below(&w->random, 2);
    switch (random_below(&w->random, 6)) {
    case 0:
        CHECK(wr_value_dict_update(wild.pair[a], wild.pair[!a]) == 0);
        break;
    case 1:
        wr_value_dict_clear(wild.pair[a]);
        break;
    case 2:
        CHECK(wr_set_update(wild.other_set, wild.set) == 0);
        break;
    case 3:
        CHECK(wr_set_symmetric_difference_update(wild.other_set, wild.set) == 0);
        break;
    case 4:
        CHECK(wr_set_intersection_update(wild.other_set, wild.set) == 0);
        break;
    default:
        CHECK(wr_set_difference_update(wild.other_set, wild.other_set) == 0); /* itself: all go */
    }
    count(COUNT_dict_copies);
}

static void wild_clear(struct worker *w)
{
    if (!random_one_in(&w->random, 16))
        return;
    wr_value_dict_clear(wild.values);
    wr_key_dict_clear(wild.keys);
    wr_set_clear(wild.set);
}

static void op_wild(struct worker *w)
{
    unsigned which = random_below(&w->random, 8);
    if (which < 4)
        wild_make(w);
    else if (which < 7)
        wild_pop(w);
    else if (random_one_in(&w->random, 4))
        wild_clear(w);
    else
        wild_update(w);
}

/* ---- creates ---------------------------------------------------------------------------------------------------------- */

struct creation {
    struct worker *worker;
    uint32_t id;
    bool exits;
};

/* One at a time for each key. */
static int create(const void *bytes, size_t size, void *ctx, void **obj)
{
    const struct creation *c = ctx;
    struct key key;
    key_make(&key, c->id);
    CHECK(size == key.size && memcmp(bytes, key.bytes, size) == 0);
    CHECK(atomic_exchange_explicit(&creating[c->id], 1, memory_order_relaxed) == 0);
    if (!c->exits && random_one_in(&c->worker->random, 3))
        sched_yield();
    bool fails = !c->exits && random_one_in(&c->worker->random, 16);
    if (!fails && !c->exits)
        *obj = member_new(&c->worker->random, c->id, 0);
    atomic_store_explicit(&creating[c->id], 0, memory_order_relaxed);
    if (c->exits)
        pthread_exit(NULL);
    count(fails ? COUNT_create_failed : COUNT_created);
    return fails ? -EIO : 0;
}

static void *exit_in_create(void *ctx)
{
    const struct creation *c = ctx;
    struct key key;
    void *out = NULL;
    key_make(&key, c->id);
    int error = wr_value_dict_get_or_create(flown, key.bytes, key.size, create, ctx, &out);
    /* Only if it did not have to create: its own or another creator that exits would tell. */
    CHECK(error == 0 || error == -EIO || error == -EDEADLK);
    wr_release(out);
    return NULL;
}

static void op_fly(struct worker *w)
{
    struct random *r = &w->random;
    struct creation c = {.worker = w, .id = random_below(r, N_FLOWN)};
    struct key key;
    void *out = NULL;
    key_make(&key, c.id);
    if (random_one_in(r, 64)) {
        pthread_t thread;
        c.exits = true;
        CHECK(pthread_create(&thread, NULL, exit_in_create, &c) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        count(COUNT_creators_exited);
        return;
    }
    unsigned timeout = random_one_in(r, 2) ? random_below(r, 2) : WR_NO_TIMEOUT;
    int error = wr_value_dict_get_or_create_timed(flown, key.bytes, key.size, create, &c, timeout, &out);
    CHECK(error == 0 || error == -EIO || error == -EDEADLK || (error == -ETIMEDOUT && timeout != WR_NO_TIMEOUT));
    if (error == -ETIMEDOUT)
        count(COUNT_create_timed_out);
    CHECK((out != NULL) == (error == 0));
    if (out != NULL)
        CHECK(member_check(out)->id == c.id);
    if (random_one_in(r, 2)) {
        wr_release(out);
        return;
    }
    struct member **place = &mine_of(w)->held[random_below(r, N_WILD_HELD)];
    wr_release(*place);
    *place = out;
}

/* ---- dictionaries that come and go -------------------------------------------------------------------------------------- */

static void heard(const void *bytes, size_t size, void *ctx)
{
    (void)ctx;
    CHECK(bytes != NULL && size > 0);
    atomic_fetch_add_explicit(&deaths_heard, 1, memory_order_relaxed);
}

struct life {
    wr_value_dict *d;
    bool is_inline; /* where it hears of its entry */
};

/* Frees the dictionary whose entry it hears of. */
static void heard_and_freed(const void *bytes, size_t size, void *ctx)
{
    struct life *life = ctx;
    uint64_t key;
    CHECK(size == sizeof key);
    memcpy(&key, bytes, sizeof key);
    CHECK(key == (uint64_t)(uintptr_t)life);
    if (life->is_inline)
        tally_add(&elsewhere[Q_INLINE].delivered, 1);
    wr_value_dict_free(life->d);
    free(life);
    atomic_fetch_add_explicit(&lives_ended, 1, memory_order_relaxed);
    count(COUNT_dicts_freed_inside);
}

static void life_ends_inside(struct worker *w)
{
    struct life *life = malloc(sizeof *life);
    CHECK(life != NULL);
    life->is_inline = random_one_in(&w->random, 2);
    struct wr_value_dict_options given = {.struct_size = sizeof given,
                                          .initial_size = 1,
                                          .on_removal = heard_and_freed,
                                          .ctx = life,
                                          .queue = life->is_inline ? WR_QUEUE_INLINE : hearing};
    life->d = wr_value_dict_new(&given);
    CHECK(life->d != NULL);
    atomic_fetch_add_explicit(&lives_made, 1, memory_order_relaxed);
    if (life->is_inline)
        tally_add(&elsewhere[Q_INLINE].watched, 1);
    struct member *m = member_new(&w->random, 0, 0);
    CHECK(wr_value_dict_set_u64(life->d, (uint64_t)(uintptr_t)life, m) == 0);
    wr_release(m);
}

/* What is in it dies on other threads meanwhile; an iterator outlives it. */
static void op_life(struct worker *w)
{
    if (random_one_in(&w->random, 2)) {
        life_ends_inside(w);
        return;
    }
    struct wr_value_dict_options given = {.struct_size = sizeof given, .initial_size = 8};
    wr_value_dict *values = wr_value_dict_new(&given);
    wr_set *set = wr_set_copy(wild.set);
    CHECK(values != NULL && set != NULL);
    CHECK(wr_value_dict_update(values, wild.pair[0]) == 0);
    wr_value_dict_iter it;
    struct wr_value_dict_item item;
    wr_set_iter set_it;
    void *obj;
    wr_value_dict_iter_begin(&it, values);
    wr_set_iter_begin(&set_it, set);
    for (unsigned i = random_below(&w->random, 6); i > 0 && wr_value_dict_iter_next(&it, &item); i--)
        wr_release(item.value);
    if (wr_set_iter_next(&set_it, &obj))
        wr_release(obj);
    wr_value_dict_free(values);
    wr_set_free(set);
    while (wr_value_dict_iter_next(&it, &item))
        wr_release(item.value);
    while (wr_set_iter_next(&set_it, &obj))
        wr_release(obj);
    wr_value_dict_iter_end(&it);
    wr_set_iter_end(&set_it);
    count(COUNT_dicts_freed);
}

static void op_hear(struct worker *w)
{
    callback_depth++;
    (void)wr_queue_drain(hearing, 1 + random_below(&w->random, 16));
    callback_depth--;
}

static const struct op keyed_ops[] = {
    {op_steady, "own members", 120, MODE_DICT},
    {op_steady_burst, "own members, burst", 1, MODE_DICT},
    {op_walk, "iterators", 20, MODE_DICT},
    {op_copy, "copies", 4, MODE_DICT},
    {op_wild, "wild members", 120, MODE_DICT},
    {op_fly, "timed creates", 60, MODE_DICT},
    {op_life, "dictionaries that come and go", 8, MODE_DICT},
    {op_hear, "hearing of removals", 20, MODE_DICT},
};

/* ---- the laws ----------------------------------------------------------------------------------------------------------- */

static void lens_verify(void)
{
    struct wr_value_dict_item value;
    struct wr_key_dict_item item;
    void *obj;
    wr_value_dict *const values[] = {steady.values, wild.values, wild.pair[0], wild.pair[1], flown};
    wr_key_dict *const keys[] = {steady.keys, steady.keys_equal, steady.raw, wild.keys};
    wr_set *const sets[] = {steady.set, steady.set_equal, wild.set, wild.other_set};
    for (unsigned i = 0; i < sizeof values / sizeof *values; i++) {
        size_t n = 0;
        wr_value_dict_iter it;
        for (wr_value_dict_iter_begin(&it, values[i]); wr_value_dict_iter_next(&it, &value); n++)
            wr_release(value.value);
        wr_value_dict_iter_end(&it);
        CHECK(wr_value_dict_len(values[i]) == n);
    }
    for (unsigned i = 0; i < sizeof keys / sizeof *keys; i++) {
        size_t n = 0;
        wr_key_dict_iter it;
        for (wr_key_dict_iter_begin(&it, keys[i]); wr_key_dict_iter_next(&it, &item); n++) {
            if (keys[i] != steady.raw)
                wr_release(item.value);
            wr_release(item.key);
        }
        wr_key_dict_iter_end(&it);
        CHECK(wr_key_dict_len(keys[i]) == n);
    }
    for (unsigned i = 0; i < sizeof sets / sizeof *sets; i++) {
        size_t n = 0;
        wr_set_iter it;
        for (wr_set_iter_begin(&it, sets[i]); wr_set_iter_next(&it, &obj); n++)
            wr_release(obj);
        wr_set_iter_end(&it);
        CHECK(wr_set_len(sets[i]) == n);
        wr_set *copy = wr_set_copy(sets[i]);
        CHECK(copy != NULL && wr_set_equal(copy, sets[i]) && wr_set_issubset(copy, sets[i]));
        CHECK(wr_set_len(copy) == n);
        wr_set_free(copy);
    }
}

static void hearing_verify(void)
{
    struct wr_queue_stats s;
    wr_queue_stats(hearing, &s);
    CHECK(s.watched == s.armed + s.pending + s.delivered + s.cancelled);
}

/* Nobody moves, but the wild members of each worker are there. */
static void keyed_quiet(void)
{
    CHECK(wr_barrier() == 0); /* deferred members are on their way to the queue */
    lens_verify();
    hearing_verify();
}

static bool keyed_settle(void)
{
    bool moved = false;
    for (unsigned i = 0; i < options.n_threads; i++) {
        for (unsigned k = 0; k < N_MINE; k++) {
            moved = moved || mine[i].own[k].member != NULL;
            own_drop(&mine[i].own[k]);
        }
        for (unsigned k = 0; k < N_WILD_HELD; k++) {
            moved = moved || mine[i].held[k] != NULL;
            wr_release(mine[i].held[k]);
            mine[i].held[k] = NULL;
        }
    }
    for (struct raw *raw = atomic_exchange(&raws_popped, NULL), *next; raw != NULL; raw = next) {
        next = raw->next;
        raw_release(raw);
    }
    CHECK(wr_barrier() == 0);
    return wr_queue_drain(hearing, SIZE_MAX) > 0 || moved;
}

static uint64_t figure(_Atomic uint64_t *of)
{
    return atomic_load_explicit(of, memory_order_relaxed);
}

static void keyed_verify(void)
{
    lens_verify();
    hearing_verify();
    CHECK(wr_value_dict_len(steady.values) + wr_value_dict_len(wild.values) + wr_value_dict_len(flown) == 0);
    CHECK(wr_key_dict_len(steady.keys) + wr_key_dict_len(steady.raw) + wr_key_dict_len(wild.keys) == 0);
    CHECK(wr_set_len(steady.set) + wr_set_len(wild.set) == 0);
    struct wr_queue_stats s;
    wr_queue_stats(hearing, &s);
    CHECK(s.armed == 0 && s.pending == 0);
    if (figure(&deaths_due) != figure(&deaths_heard))
        violation("%llu deaths of entries, %llu heard of", (unsigned long long)figure(&deaths_due),
                  (unsigned long long)figure(&deaths_heard));
    CHECK(figure(&members_made) == figure(&members_gone));
    CHECK(figure(&notes_made) == figure(&notes_gone));
    CHECK(figure(&raws_made) == figure(&raws_gone));
    CHECK(figure(&lives_made) == figure(&lives_ended));
    CHECK(wr_barrier() == 0); /* the copies that were made here */
}

static void keyed_enter(struct worker *w)
{
    (void)w;
}

/* Its own members go now, some of the others with the survivors. */
static void keyed_leave(struct worker *w)
{
    for (unsigned i = 0; i < N_MINE; i++)
        if (random_one_in(&w->random, 2))
            own_drop(&mine_of(w)->own[i]);
}

static wr_key_dict *key_dict_new(unsigned flags, void (*release)(void *))
{
    struct wr_key_dict_options o = {.struct_size = sizeof o, .initial_size = 8, .flags = flags, .release = release};
    wr_key_dict *d = wr_key_dict_new(&o);
    CHECK(d != NULL);
    return d;
}

static wr_set *set_new(unsigned flags)
{
    wr_set *s = wr_set_new(&(struct wr_set_options){sizeof(struct wr_set_options), 0, flags});
    CHECK(s != NULL);
    return s;
}

static void keyed_start(void)
{
    mine = calloc(options.n_threads, sizeof *mine);
    hearing = wr_queue_new("removals");
    CHECK(mine != NULL && hearing != NULL);
    struct wr_value_dict_options options_heard = {
        .struct_size = sizeof options_heard, .initial_size = 8, .on_removal = heard, .queue = hearing};
    struct wr_value_dict_options options_small = {.struct_size = sizeof options_small, .initial_size = 1};
    steady.values = wr_value_dict_new(&options_heard);
    steady.keys = key_dict_new(0, NULL);
    steady.keys_equal = key_dict_new(WR_KEYS_BY_EQUAL, NULL);
    steady.raw = key_dict_new(WR_VALUES_RAW, raw_release);
    steady.set = set_new(0);
    steady.set_equal = set_new(WR_KEYS_BY_EQUAL);
    wild.values = wr_value_dict_new(NULL);
    wild.pair[0] = wr_value_dict_new(NULL);
    wild.pair[1] = wr_value_dict_new(&options_small);
    wild.keys = key_dict_new(0, NULL);
    wild.set = set_new(0);
    wild.other_set = set_new(WR_KEYS_BY_EQUAL);
    flown = wr_value_dict_new(&options_small);
    CHECK(steady.values != NULL && wild.values != NULL && wild.pair[0] != NULL && wild.pair[1] != NULL &&
          flown != NULL);
}

static void keyed_stop(void)
{
    enum { ENOUGH = 20000 };
    static const enum count races[] = {
        COUNT_dict_deaths, COUNT_dict_popped,        COUNT_create_timed_out, COUNT_creators_exited,
        COUNT_dicts_freed, COUNT_dicts_freed_inside, COUNT_dict_walks,       COUNT_dict_copies,
    };
    wr_value_dict_free(steady.values);
    wr_key_dict_free(steady.keys);
    wr_key_dict_free(steady.keys_equal);
    wr_key_dict_free(steady.raw);
    wr_set_free(steady.set);
    wr_set_free(steady.set_equal);
    wr_value_dict_free(wild.values);
    wr_value_dict_free(wild.pair[0]);
    wr_value_dict_free(wild.pair[1]);
    wr_key_dict_free(wild.keys);
    wr_set_free(wild.set);
    wr_set_free(wild.other_set);
    wr_value_dict_free(flown);
    wr_queue_free(hearing);
    free(mine);
    races_verify(races, sizeof races / sizeof *races, count_sum(COUNT_dict_walks) >= ENOUGH);
}

const struct part keyed_part = {
    .mode = MODE_DICT,
    .ops = keyed_ops,
    .n_ops = sizeof keyed_ops / sizeof *keyed_ops,
    .start = keyed_start,
    .enter = keyed_enter,
    .leave = keyed_leave,
    .quiet = keyed_quiet,
    .settle = keyed_settle,
    .verify = keyed_verify,
    .stop = keyed_stop,
};
