/* A fuzz target over the dictionaries' whole API: bytes are calls, and after each one an oracle of plain arrays must agree.
 *
 * Everything is one thread's, but for deferred work, so all answers are known: what is in each dictionary and set, who dies when,
 * which entries an iterator must meet. The user's code re-enters: creates, destroys and equals use the dictionaries they are
 * called from. Allocations fail where the bytes say so, and then nothing may have changed.
 *
 * With clang and WEAKREF_FUZZ libFuzzer feeds it; else replay.c does, from files or at random.
 */
#include <weakref/weakref.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                                         \
    ((condition) ? (void)0                                                                                       \
                 : (fprintf(stderr, "fuzz_dict: %s:%d: %s does not hold, in call %u (%u)\n", __FILE__, __LINE__, \
                            #condition, n_calls, call_now),                                                      \
                    abort()))

enum { KEYS = 18, SLOTS = 12, DICTS = 3, KEYED = 4, SETS = 4, STRINGS = 4, CALLS_MOST = 3000, NONE = -1 };
#define MAGIC UINT32_C(0x66757a7a)

static unsigned n_calls, call_now;

/* ---- input --------------------------------------------------------------------------------------------------- */

static const uint8_t *input, *input_end;

static unsigned draw(unsigned below)
{
    return input < input_end ? *input++ % below : 0;
}

/* ---- memory: fails where it is told to ------------------------------------------------------------------------- */

static _Thread_local unsigned fail_in; /* 0: never */
static bool failed;

static void *take_block(size_t size, size_t align, void *ctx)
{
    (void)ctx;
    if (fail_in != 0 && --fail_in == 0) {
        failed = true;
        return NULL;
    }
    void *memory = NULL;
    return posix_memalign(&memory, align < sizeof(void *) ? sizeof(void *) : align, size) == 0 ? memory : NULL;
}

static void free_block(void *memory, void *ctx)
{
    (void)ctx;
    free(memory);
}

/* ---- the oracle -------------------------------------------------------------------------------------------------- */

struct thing {
    uint32_t magic;
    uint8_t klass; /* what `equal` compares */
    uint8_t act;   /* what its destroy does */
    uint8_t operand;
};

struct note {
    uint32_t magic;
    uint32_t number;
    wr_weak *about; /* its key: held weakly, as the header recommends */
};

static struct slot {
    struct thing *obj; /* with the program's only reference, or NULL */
    unsigned type;
} slots[SLOTS];

/* Maps are arrays; the stamp says when a place changed last, for iterators. */
static struct values {
    wr_value_dict *d;
    int slot[KEYS]; /* or NONE */
    unsigned stamp[KEYS];
} values[DICTS]; /* 0 hears of removals */

static struct keyed {
    wr_key_dict *d;
    bool equal, raw;
    int note[SLOTS]; /* by the slot of the key that is in there: a number, or NONE */
    unsigned stamp[SLOTS];
} keyed[KEYED];

static struct members {
    wr_set *s;
    bool equal;
    bool in[SLOTS];
    unsigned stamp[SLOTS];
} sets[SETS];

static struct {
    wr_value_dict_iter values;
    wr_key_dict_iter keys;
    wr_set_iter members;
    int of[3]; /* which one each goes through; NONE: none */
    bool orphan[3];
    unsigned begun[3];
    bool met[3][KEYS > SLOTS ? KEYS : SLOTS];
} iters;

static wr_intern_pool *pool;
static struct {
    wr_interned *string;
    unsigned key;
} strings[STRINGS];

static wr_queue *queue;
static unsigned now; /* stamps */
static unsigned long heard_due, heard, things_made, notes_made, raws_made;
static atomic_ulong things_gone, notes_gone, raws_gone;
static uint32_t numbers;
static unsigned equal_act;
static int pinned = NONE; /* a key that a call works with: it and its equals are not let go of meanwhile */

static size_t key_of(unsigned k, unsigned char key[512])
{
    static const unsigned short sizes[KEYS] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 23, 24, 64, 65, 254, 255, 256, 511};
    memset(key, 'k', 512);
    if (sizes[k] > 0)
        key[sizes[k] / 2] = (unsigned char)k;
    return sizes[k];
}

static int key_number(const void *bytes, size_t size)
{
    unsigned char key[512];
    for (unsigned k = 0; k < KEYS; k++)
        if (key_of(k, key) == size && memcmp(bytes, key, size) == 0)
            return (int)k;
    CHECK(size != size); /* no key that was ever set */
    return NONE;
}

static int slot_of(const void *obj)
{
    CHECK(((const struct thing *)obj)->magic == MAGIC);
    for (unsigned i = 0; i < SLOTS; i++)
        if (slots[i].obj == obj)
            return (int)i;
    CHECK(obj == NULL); /* none that lives */
    return NONE;
}

static void put_value(struct values *v, unsigned k, int slot)
{
    if (v->slot[k] != slot)
        v->stamp[k] = ++now;
    v->slot[k] = slot;
}

static void put_note(struct keyed *d, unsigned slot, int number)
{
    if (d->note[slot] != number)
        d->stamp[slot] = ++now;
    d->note[slot] = number;
}

static void put_member(struct members *s, unsigned slot, bool in)
{
    if (s->in[slot] != in)
        s->stamp[slot] = ++now;
    s->in[slot] = in;
}

static bool same_key(bool equal, unsigned a, unsigned b)
{
    return a == b || (equal && slots[a].obj != NULL && slots[b].obj != NULL && slots[a].type != 2 &&
                      slots[b].type != 2 && slots[a].obj->klass == slots[b].obj->klass);
}

/* The slot of the key in @d that is the same as @slot, or NONE. */
static int find_key(const struct keyed *d, unsigned slot)
{
    for (unsigned i = 0; i < SLOTS; i++)
        if (d->note[i] != NONE && same_key(d->equal, i, slot))
            return (int)i;
    return NONE;
}

static int find_member(const struct members *s, unsigned slot)
{
    for (unsigned i = 0; i < SLOTS; i++)
        if (s->in[i] && same_key(s->equal, i, slot))
            return (int)i;
    return NONE;
}

/* ---- objects ----------------------------------------------------------------------------------------------------- */

static void expect_value(struct values *v, unsigned k);

static void drop(unsigned slot)
{
    struct thing *obj = slots[slot].obj;
    if (obj == NULL || (pinned != NONE && same_key(true, slot, (unsigned)pinned)))
        return;
    for (unsigned i = 0; i < DICTS; i++)
        for (unsigned k = 0; k < KEYS; k++)
            if (values[i].slot[k] == (int)slot) {
                put_value(&values[i], k, NONE);
                heard_due += i == 0;
            }
    for (unsigned i = 0; i < KEYED; i++)
        put_note(&keyed[i], slot, NONE);
    for (unsigned i = 0; i < SETS; i++)
        put_member(&sets[i], slot, false);
    slots[slot].obj = NULL;
    wr_release(obj);
}

/* Nothing finds it any more, nothing takes it in; and it changes what it comes from. */
static void thing_destroy(void *obj)
{
    struct thing *t = obj;
    CHECK(t->magic == MAGIC);
    struct values *v = &values[t->operand % DICTS];
    unsigned k = t->operand % KEYS;
    unsigned char key[512];
    size_t size = key_of(k, key);
    unsigned may_fail = fail_in;
    fail_in = 0;
    if (wr_type_of(obj)->flags == 0) { /* others are destroyed on another thread */
        switch (t->act % 6) {
        case 1:
            expect_value(v, k);
            break;
        case 2:
            CHECK(wr_value_dict_remove(v->d, key, size) == (v->slot[k] != NONE ? 0 : -ENOENT));
            put_value(v, k, NONE);
            break;
        case 3:
            if (slots[t->operand % SLOTS].obj != NULL) {
                CHECK(wr_value_dict_set(v->d, key, size, slots[t->operand % SLOTS].obj) == 0);
                put_value(v, k, t->operand % SLOTS);
            }
            break;
        case 4:
            CHECK(wr_value_dict_set(v->d, key, size, obj) == -ESTALE);
            CHECK(wr_key_dict_set(keyed[0].d, obj, v) == -ESTALE || keyed[0].d == NULL);
            CHECK(wr_set_add(sets[0].s, obj) == -ESTALE);
            CHECK(!wr_set_contains(sets[0].s, obj) && wr_key_dict_get(keyed[0].d, obj) == NULL);
            break;
        case 5:
            drop(t->operand % SLOTS);
            break;
        default:
            break;
        }
    }
    fail_in = may_fail;
    t->magic = 0;
    atomic_fetch_add(&things_gone, 1);
}

static uint64_t thing_hash(const void *obj)
{
    return ((const struct thing *)obj)->klass % 2; /* some share one */
}

static bool thing_equal(const void *a, const void *b)
{
    const struct thing *x = a, *y = b;
    CHECK(x->magic == MAGIC && y->magic == MAGIC);
    if (equal_act != 0) {
        unsigned act = equal_act - 1, slot = act % SLOTS;
        equal_act = 0;
        drop(slot);
    }
    return x->klass == y->klass;
}

static const wr_type types[3] = {
    {.name = "thing", .size = sizeof(struct thing), .destroy = thing_destroy, .hash = thing_hash, .equal = thing_equal},
    {.name = "deferred",
     .size = sizeof(struct thing),
     .destroy = thing_destroy,
     .hash = thing_hash,
     .equal = thing_equal,
     .flags = WR_TYPE_DEFERRED},
    {.name = "one of its kind", .size = sizeof(struct thing), .destroy = thing_destroy},
};

static void note_destroy(void *obj)
{
    struct note *n = obj;
    CHECK(n->magic == MAGIC);
    wr_weak_release(n->about);
    atomic_fetch_add(&notes_gone, 1);
}

static const wr_type note_type = {.name = "note", .size = sizeof(struct note), .destroy = note_destroy};

static void raw_release(void *value)
{
    struct note *n = value;
    CHECK(n->magic == MAGIC);
    free(n);
    atomic_fetch_add(&raws_gone, 1);
}

static bool make(unsigned slot, unsigned type, unsigned klass, unsigned act, unsigned operand)
{
    drop(slot);
    if (slots[slot].obj != NULL) /* by a destroy */
        return true;
    struct thing *t = wr_new(&types[type]);
    if (t == NULL) {
        CHECK(failed);
        return false;
    }
    *t = (struct thing){MAGIC, (uint8_t)klass, (uint8_t)act, (uint8_t)operand};
    slots[slot] = (struct slot){t, type};
    things_made++;
    return true;
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

static void expect_value(struct values *v, unsigned k)
{
    unsigned char key[512];
    size_t size = key_of(k, key);
    void *obj = wr_value_dict_get(v->d, key, size), *due = v->slot[k] != NONE ? slots[v->slot[k]].obj : NULL;
    CHECK(obj == due);
    CHECK(wr_value_dict_contains(v->d, key, size) == (due != NULL));
    wr_release(obj);
    if (due == NULL || wr_type_of(due)->flags != 0)
        WR_GUARD {
            CHECK(wr_value_dict_peek(v->d, key, size) == due);
        }
}

static size_t values_len(const struct values *v)
{
    size_t n = 0;
    for (unsigned k = 0; k < KEYS; k++)
        n += v->slot[k] != NONE;
    return n;
}

struct creation {
    struct values *v;
    unsigned key, how, slot, depth;
    bool made;
};

static int create(const void *bytes, size_t size, void *ctx, void **obj)
{
    struct creation *c = ctx;
    struct values *v = c->v;
    CHECK(key_number(bytes, size) == (int)c->key);
    CHECK(!wr_value_dict_contains(v->d, bytes, size));
    switch (c->how % 8) {
    case 0:
        return -EIO;
    case 1:
        *obj = NULL;
        return 0;
    case 2:
        return 1;
    case 3: {
        void *out = NULL;
        int err = wr_value_dict_get_or_create(v->d, bytes, size, create, ctx, &out);
        CHECK(err == -EDEADLK && out == NULL);
        break;
    }
    case 4: /* a set meanwhile wins */
        if (slots[c->slot].obj != NULL && wr_value_dict_set(v->d, bytes, size, slots[c->slot].obj) == 0)
            put_value(v, c->key, (int)c->slot);
        break;
    case 5:
        wr_value_dict_clear(v->d);
        for (unsigned k = 0; k < KEYS; k++)
            put_value(v, k, NONE);
        break;
    default:
        break;
    }
    unsigned slot = (c->slot + 1) % SLOTS;
    if (slots[slot].obj != NULL)
        return -EBUSY;
    if (!make(slot, c->how / 8 % 3, c->how / 24 % 5, 0, 0))
        return -ENOMEM;
    c->made = true;
    *obj = wr_retain(slots[slot].obj);
    return 0;
}

static void call_create(struct values *v, unsigned k)
{
    unsigned char key[512];
    size_t size = key_of(k, key);
    struct creation c = {.v = v, .key = k, .how = draw(120), .slot = draw(SLOTS)};
    bool there = v->slot[k] != NONE;
    void *out = NULL;
    int err = draw(2) ? wr_value_dict_get_or_create(v->d, key, size, create, &c, &out)
                      : wr_value_dict_get_or_create_timed(v->d, key, size, create, &c, 0, &out);
    if (there)
        CHECK(err == 0 && !c.made);
    if (err == 0) {
        if (v->slot[k] == NONE) {
            CHECK(c.made);
            put_value(v, k, (int)((c.slot + 1) % SLOTS));
        }
        CHECK(out == slots[v->slot[k]].obj);
    } else {
        unsigned how = c.how % 8;
        CHECK(out == NULL);
        CHECK((err == -ENOMEM && failed) || err == -EBUSY || (err == -EIO && how == 0) ||
              (err == -EINVAL && (how == 1 || how == 2)));
    }
    wr_release(out);
}

static void call_values(void)
{
    struct values *v = &values[draw(DICTS)];
    unsigned k = draw(KEYS), which = draw(12), slot = draw(SLOTS);
    unsigned char key[512];
    size_t size = key_of(k, key);
    struct thing *obj = slots[slot].obj, *there = v->slot[k] != NONE ? slots[v->slot[k]].obj : NULL;
    void *out = NULL;
    int err;
    switch (which) {
    case 0:
    case 1:
        err = wr_value_dict_set(v->d, key, size, obj);
        CHECK(err == (obj != NULL ? 0 : -EINVAL) || (err == -ENOMEM && failed));
        if (err == 0)
            put_value(v, k, (int)slot);
        break;
    case 2:
        CHECK(wr_value_dict_remove(v->d, key, size) == (there != NULL ? 0 : -ENOENT));
        put_value(v, k, NONE);
        break;
    case 3:
        err = wr_value_dict_remove_if(v->d, key, size, obj);
        CHECK(err == (obj == NULL ? -EINVAL : obj == there ? 0 : -ENOENT));
        if (err == 0)
            put_value(v, k, NONE);
        break;
    case 4: {
        struct thing *expected = slots[draw(SLOTS)].obj;
        err = wr_value_dict_replace(v->d, key, size, expected, obj);
        CHECK(err == (obj == NULL || expected == NULL ? -EINVAL
                      : expected == there             ? 0
                                                      : -ENOENT) ||
              (err == -ENOMEM && failed));
        if (err == 0)
            put_value(v, k, (int)slot);
        break;
    }
    case 5:
        out = wr_value_dict_pop(v->d, key, size);
        CHECK(out == there);
        put_value(v, k, NONE);
        wr_release(out);
        break;
    case 6: {
        unsigned char got[512];
        size_t room = draw(2) ? sizeof got : draw(8);
        size_t got_size = room;
        errno = 0;
        out = wr_value_dict_popitem(v->d, got, &got_size);
        if (out == NULL) {
            CHECK(values_len(v) == 0 || (errno == ENOSPC && got_size > room));
        } else {
            int popped = key_number(got, got_size);
            CHECK(v->slot[popped] == slot_of(out));
            put_value(v, (unsigned)popped, NONE);
        }
        wr_release(out);
        break;
    }
    case 7:
        err = wr_value_dict_setdefault(v->d, key, size, obj, &out);
        CHECK(err == (obj == NULL ? -EINVAL : 0) || (err == -ENOMEM && failed));
        if (err == 0) {
            if (there == NULL)
                put_value(v, k, (int)slot);
            CHECK(out == (there != NULL ? there : obj));
        }
        wr_release(out);
        break;
    case 8:
    case 9:
        call_create(v, k);
        break;
    case 10:
        wr_value_dict_clear(v->d);
        for (unsigned i = 0; i < KEYS; i++)
            put_value(v, i, NONE);
        break;
    default:
        expect_value(v, k);
    }
    CHECK(wr_value_dict_len(v->d) == values_len(v));
}

/* ---- keys ---------------------------------------------------------------------------------------------------------- */

static void *note_new(const struct keyed *d, unsigned slot)
{
    struct note *n = d->raw ? malloc(sizeof *n) : wr_new(&note_type);
    if (n == NULL)
        return NULL;
    *n = (struct note){MAGIC, ++numbers, d->raw ? NULL : wr_downgrade(slots[slot].obj)};
    if (d->raw)
        raws_made++;
    else
        notes_made++;
    return n;
}

/* One that is not, or not only, the dictionary's. @value: NULL allowed. */
static void note_done(const struct keyed *d, void *value, bool is_mine)
{
    if (!d->raw)
        wr_release(value);
    else if (value != NULL && is_mine)
        raw_release(value);
}

static int note_number(void *value)
{
    struct note *n = value;
    if (n == NULL)
        return NONE;
    CHECK(n->magic == MAGIC);
    return (int)n->number;
}

static void expect_note(const struct keyed *d, unsigned slot)
{
    void *key = slots[slot].obj;
    if (key == NULL)
        return;
    int at = find_key(d, slot), due = at != NONE ? d->note[at] : NONE;
    WR_GUARD {
        void *value = wr_key_dict_get(d->d, key);
        CHECK(note_number(value) == due);
        CHECK(note_number(wr_key_dict_peek(d->d, key)) == due);
        note_done(d, value, false);
    }
    CHECK(wr_key_dict_contains(d->d, key) == (due != NONE));
}

static size_t keyed_len(const struct keyed *d)
{
    size_t n = 0;
    for (unsigned i = 0; i < SLOTS; i++)
        n += d->note[i] != NONE;
    return n;
}

/* The value of @at in @d changes hands: it comes with a key of its own if the place is empty. */
static void note_put(struct keyed *d, int at, unsigned slot, void *value)
{
    put_note(d, at != NONE ? (unsigned)at : slot, note_number(value));
}

static void call_keyed(void)
{
    struct keyed *d = &keyed[draw(KEYED)];
    unsigned slot = draw(SLOTS), which = draw(10);
    equal_act = draw(4) == 0 ? 1 + draw(SLOTS) : 0;
    void *key = slots[slot].obj, *out = NULL;
    if (key == NULL) {
        CHECK(wr_key_dict_remove(d->d, NULL) == -EINVAL);
        equal_act = 0;
        return;
    }
    pinned = (int)slot;
    int at = find_key(d, slot), due = at != NONE ? d->note[at] : NONE, err;
    struct note *note = which < 4 ? note_new(d, slot) : NULL;
    if (which < 4 && note == NULL) {
        CHECK(failed);
        equal_act = 0;
        pinned = NONE;
        return;
    }
    int number = note_number(note);
    switch (which) {
    case 0:
    case 1:
        err = wr_key_dict_set(d->d, key, note);
        CHECK(err == 0 || (err == -ENOMEM && failed));
        if (err == 0)
            note_put(d, at, slot, note);
        note_done(d, note, err != 0);
        break;
    case 2: {
        void *there = NULL;
        WR_GUARD {
            there = wr_key_dict_peek(d->d, key); /* its address is all that is used of it */
        }
        bool right = draw(2) && there != NULL;
        err = wr_key_dict_replace(d->d, key, right ? there : (void *)note, note);
        CHECK(err == (right ? 0 : -ENOENT) || (err == -ENOMEM && failed));
        if (err == 0)
            note_put(d, at, slot, note);
        note_done(d, note, err != 0);
        break;
    }
    case 3:
        WR_GUARD {
            err = wr_key_dict_setdefault(d->d, key, note, &out);
            CHECK(err == 0 || (err == -ENOMEM && failed));
            if (err == 0) {
                CHECK(note_number(out) == (due != NONE ? due : number));
                if (due == NONE)
                    put_note(d, slot, number);
                note_done(d, out, false);
            }
            note_done(d, note, err != 0 || due != NONE);
        }
        break;
    case 4:
        CHECK(wr_key_dict_remove(d->d, key) == (due != NONE ? 0 : -ENOENT));
        if (at != NONE)
            put_note(d, (unsigned)at, NONE);
        break;
    case 5: {
        void *there = NULL;
        WR_GUARD {
            there = wr_key_dict_peek(d->d, key);
        }
        CHECK(wr_key_dict_remove_if(d->d, key, &there) == -ENOENT);
        err = d->raw || there != NULL ? wr_key_dict_remove_if(d->d, key, there) : -ENOENT;
        CHECK(err == (due != NONE ? 0 : -ENOENT));
        if (at != NONE)
            put_note(d, (unsigned)at, NONE);
        break;
    }
    case 6:
        WR_GUARD {
            out = wr_key_dict_pop(d->d, key);
            CHECK(note_number(out) == due);
        }
        if (at != NONE)
            put_note(d, (unsigned)at, NONE);
        if (d->raw && iters.of[1] == (int)(d - keyed)) /* who stands on it still looks at it */
            wr_key_dict_iter_end(&iters.keys), iters.of[1] = NONE;
        note_done(d, out, true);
        break;
    case 7: {
        struct wr_key_dict_item item;
        bool any = wr_key_dict_popitem(d->d, &item);
        CHECK(any == (keyed_len(d) > 0));
        if (any) {
            int owner = slot_of(item.key);
            CHECK(d->note[owner] == note_number(item.value));
            put_note(d, (unsigned)owner, NONE);
            if (d->raw && iters.of[1] == (int)(d - keyed))
                wr_key_dict_iter_end(&iters.keys), iters.of[1] = NONE;
            note_done(d, item.value, true);
            wr_release(item.key);
        }
        break;
    }
    case 8:
        if (draw(4) == 0) {
            wr_key_dict_clear(d->d);
            for (unsigned i = 0; i < SLOTS; i++)
                put_note(d, i, NONE);
        }
        break;
    default:
        expect_note(d, slot);
    }
    equal_act = 0;
    pinned = NONE;
    CHECK(wr_key_dict_len(d->d) == keyed_len(d));
}

/* ---- sets ------------------------------------------------------------------------------------------------------------ */

static size_t set_len(const struct members *s)
{
    size_t n = 0;
    for (unsigned i = 0; i < SLOTS; i++)
        n += s->in[i];
    return n;
}

static void expect_members(const struct members *s)
{
    CHECK(wr_set_len(s->s) == set_len(s));
    for (unsigned i = 0; i < SLOTS; i++) {
        if (slots[i].obj == NULL)
            continue;
        int due = find_member(s, i);
        void *obj = wr_set_get(s->s, slots[i].obj);
        CHECK(obj == (due != NONE ? slots[due].obj : NULL));
        CHECK(wr_set_contains(s->s, slots[i].obj) == (due != NONE));
        wr_release(obj);
    }
}

static void call_set(void)
{
    struct members *s = &sets[draw(SETS)];
    unsigned slot = draw(SLOTS), which = draw(7);
    void *obj = slots[slot].obj, *out;
    equal_act = draw(4) == 0 ? 1 + draw(SLOTS) : 0;
    pinned = (int)slot;
    int at = obj != NULL ? find_member(s, slot) : NONE, err;
    switch (which) {
    case 0:
    case 1:
    case 2:
        err = wr_set_add(s->s, obj);
        CHECK(err == (obj != NULL ? 0 : -EINVAL) || (err == -ENOMEM && failed));
        if (err == 0 && at == NONE)
            put_member(s, slot, true);
        break;
    case 3:
        err = wr_set_remove(s->s, obj);
        CHECK(err == (obj == NULL ? -EINVAL : at != NONE ? 0 : -ENOENT));
        if (at != NONE)
            put_member(s, (unsigned)at, false);
        break;
    case 4:
        CHECK(wr_set_discard(s->s, obj) == (obj == NULL ? -EINVAL : 0));
        if (at != NONE)
            put_member(s, (unsigned)at, false);
        break;
    case 5:
        out = wr_set_pop(s->s);
        CHECK((out != NULL) == (set_len(s) > 0));
        if (out != NULL) {
            CHECK(s->in[slot_of(out)]);
            put_member(s, (unsigned)slot_of(out), false);
        }
        wr_release(out);
        break;
    default:
        if (draw(4) == 0) {
            wr_set_clear(s->s);
            for (unsigned i = 0; i < SLOTS; i++)
                put_member(s, i, false);
        }
    }
    equal_act = 0;
    pinned = NONE;
    expect_members(s);
}

/* Two sets of one kind. */
static void call_sets(void)
{
    unsigned base = draw(2) * 2;
    struct members *a = &sets[base + draw(2)], *b = &sets[base + draw(2)], result = {.equal = a->equal};
    unsigned which = draw(10), n_common = 0, n_only = 0;
    for (unsigned i = 0; i < SLOTS; i++) {
        bool in_a = a->in[i], in_b = b->in[i];
        bool of_a = in_a && find_member(b, i) != NONE, of_b = in_b && find_member(a, i) != NONE;
        n_common += of_a;
        n_only += in_a && !of_a;
        switch (which % 4) {
        case 0:
            result.in[i] = in_a || (in_b && !of_b);
            break;
        case 1:
            result.in[i] = of_a;
            break;
        case 2:
            result.in[i] = in_a && !of_a;
            break;
        default:
            result.in[i] = (in_a && !of_a) || (in_b && !of_b);
        }
    }
    if (which >= 8) {
        CHECK(wr_set_isdisjoint(a->s, b->s) == (n_common == 0));
        CHECK(wr_set_issubset(a->s, b->s) == (n_only == 0) && wr_set_issuperset(b->s, a->s) == (n_only == 0));
        CHECK(wr_set_equal(a->s, b->s) == (n_only == 0 && set_len(a) == set_len(b)));
        result.s = wr_set_copy(a->s);
        memcpy(result.in, a->in, sizeof result.in);
    } else if (which >= 4) {
        static wr_set *(*const verbs[4])(wr_set *, wr_set *) = {wr_set_union, wr_set_intersection, wr_set_difference,
                                                                wr_set_symmetric_difference};
        result.s = verbs[which - 4](a->s, b->s);
    } else {
        static int (*const verbs[4])(wr_set *, wr_set *) = {
            wr_set_update, wr_set_intersection_update, wr_set_difference_update, wr_set_symmetric_difference_update};
        fail_in = 0; /* what was done so far would be done */
        CHECK(verbs[which](a->s, b->s) == 0);
        for (unsigned i = 0; i < SLOTS; i++)
            put_member(a, i, result.in[i]);
        expect_members(a);
        return;
    }
    if (result.s != NULL)
        expect_members(&result);
    else
        CHECK(failed);
    wr_set_free(result.s);
}

/* ---- copies and updates ------------------------------------------------------------------------------------------------ */

static void call_copies(void)
{
    if (draw(2)) {
        struct values *a = &values[draw(DICTS)], *b = &values[draw(DICTS)], result;
        bool in_place = draw(2);
        result = *a;
        for (unsigned k = 0; k < KEYS; k++)
            if (b->slot[k] != NONE)
                result.slot[k] = b->slot[k];
        if (in_place) {
            fail_in = 0;
            CHECK(wr_value_dict_update(a->d, b->d) == 0);
            for (unsigned k = 0; k < KEYS; k++)
                put_value(a, k, result.slot[k]);
            result.d = a->d;
        } else {
            result.d = wr_value_dict_union(a->d, b->d);
            CHECK(result.d != NULL || failed);
        }
        for (unsigned k = 0; result.d != NULL && k < KEYS; k++)
            expect_value(&result, k);
        if (!in_place)
            wr_value_dict_free(result.d);
        return;
    }
    struct keyed *d = &keyed[draw(KEYED)], result = *d;
    result.d = wr_key_dict_copy(d->d);
    CHECK(result.d != NULL || failed || d->raw);
    CHECK(result.d == NULL || !d->raw);
    for (unsigned i = 0; result.d != NULL && i < SLOTS; i++)
        expect_note(&result, i);
    if (result.d != NULL && draw(2)) { /* and back: nothing changes */
        fail_in = 0;
        CHECK(wr_key_dict_update(d->d, result.d) == 0);
    }
    wr_key_dict_free(result.d);
}

/* ---- iterators ------------------------------------------------------------------------------------------------------------ */

static void iter_end(unsigned which)
{
    if (iters.of[which] == NONE)
        return;
    iters.of[which] = NONE;
    if (which == 0)
        wr_value_dict_iter_end(&iters.values);
    else if (which == 1)
        wr_key_dict_iter_end(&iters.keys);
    else
        wr_set_iter_end(&iters.members);
}

static void iter_begin(unsigned which)
{
    iter_end(which);
    iters.of[which] = (int)draw(which == 0 ? DICTS : which == 1 ? KEYED : SETS);
    iters.orphan[which] = false;
    iters.begun[which] = now;
    memset(iters.met[which], 0, sizeof iters.met[which]);
    if (which == 0)
        wr_value_dict_iter_begin(&iters.values, values[iters.of[0]].d);
    else if (which == 1)
        wr_key_dict_iter_begin(&iters.keys, keyed[iters.of[1]].d);
    else
        wr_set_iter_begin(&iters.members, sets[iters.of[2]].s);
}

/* The place that the next step met, or NONE: the end. */
static int iter_step(unsigned which, bool weak)
{
    int place = NONE;
    if (which == 0) {
        struct wr_value_dict_item item;
        struct wr_value_dict_ref ref;
        if (weak && wr_value_dict_iter_next_ref(&iters.values, &ref)) {
            place = key_number(ref.key, ref.key_size);
            CHECK(wr_weak_is(ref.value, slots[values[iters.of[0]].slot[place]].obj));
            wr_weak_release(ref.value);
        } else if (!weak && wr_value_dict_iter_next(&iters.values, &item)) {
            place = key_number(item.key, item.key_size);
            CHECK(item.value == slots[values[iters.of[0]].slot[place]].obj);
            wr_release(item.value);
        }
    } else if (which == 1) {
        struct wr_key_dict_item item;
        const struct keyed *d = &keyed[iters.of[1]];
        if (wr_key_dict_iter_next(&iters.keys, &item)) {
            place = slot_of(item.key);
            CHECK(d->note[place] == note_number(item.value));
            note_done(d, item.value, false);
            wr_release(item.key);
        }
    } else {
        void *obj;
        if (wr_set_iter_next(&iters.members, &obj)) {
            place = slot_of(obj);
            CHECK(sets[iters.of[2]].in[place]);
            wr_release(obj);
        }
    }
    return place;
}

static void call_iter(void)
{
    unsigned which = draw(3), n = draw(24);
    bool weak = draw(4) == 0;
    if (iters.of[which] == NONE || draw(8) == 0)
        iter_begin(which);
    unsigned count = which == 0 ? KEYS : SLOTS;
    const unsigned *stamps = which == 0   ? values[iters.of[0]].stamp
                             : which == 1 ? keyed[iters.of[1]].stamp
                                          : sets[iters.of[2]].stamp;
    for (; n > 0; n--) {
        int place = iter_step(which, weak);
        CHECK(place == NONE || !iters.orphan[which]);
        if (place == NONE)
            break;
        /* Not twice: but a slot has another object by now if it changed. */
        CHECK(!iters.met[which][place] || (which != 0 && stamps[place] > iters.begun[which]));
        iters.met[which][place] = true;
    }
    if (n == 0)
        return;
    for (unsigned i = 0; i < count && !iters.orphan[which]; i++) {
        bool there = which == 0   ? values[iters.of[0]].slot[i] != NONE
                     : which == 1 ? keyed[iters.of[1]].note[i] != NONE
                                  : sets[iters.of[2]].in[i];
        CHECK(!there || stamps[i] > iters.begun[which] || iters.met[which][i]);
    }
    CHECK(iter_step(which, weak) == NONE);
    iter_end(which);
}

/* ---- life ------------------------------------------------------------------------------------------------------------ */

static void on_removal(const void *key, size_t size, void *ctx)
{
    CHECK(ctx == &heard);
    (void)key_number(key, size);
    heard++;
}

/* Frees the dictionary whose removal it hears of. */
static void on_removal_free(const void *key, size_t size, void *ctx)
{
    wr_value_dict **d = ctx;
    CHECK(size == 8 && memcmp(key, "\1\0\0\0\0\0\0\0", 1) >= 0);
    wr_value_dict_free(*d);
    *d = NULL;
}

static void values_new(unsigned i)
{
    struct wr_value_dict_options options = {.struct_size = sizeof options, .initial_size = i};
    if (i == 0) {
        options.on_removal = on_removal;
        options.ctx = &heard;
        options.queue = queue;
    }
    values[i].d = wr_value_dict_new(i == 1 ? NULL : &options);
    CHECK(values[i].d != NULL);
    for (unsigned k = 0; k < KEYS; k++)
        put_value(&values[i], k, NONE);
}

static void keyed_new(unsigned i)
{
    struct wr_key_dict_options options = {.struct_size = sizeof options, .initial_size = 1};
    keyed[i].equal = i % 2 == 1;
    keyed[i].raw = i >= 2;
    options.flags = (keyed[i].equal ? WR_KEYS_BY_EQUAL : 0) | (keyed[i].raw ? WR_VALUES_RAW : 0);
    options.release = keyed[i].raw ? raw_release : NULL;
    keyed[i].d = wr_key_dict_new(&options);
    CHECK(keyed[i].d != NULL);
    for (unsigned k = 0; k < SLOTS; k++)
        put_note(&keyed[i], k, NONE);
}

static void set_new(unsigned i)
{
    struct wr_set_options options = {.struct_size = sizeof options, .flags = i >= 2 ? WR_KEYS_BY_EQUAL : 0};
    sets[i].equal = i >= 2;
    sets[i].s = wr_set_new(&options);
    CHECK(sets[i].s != NULL);
    for (unsigned k = 0; k < SLOTS; k++)
        put_member(&sets[i], k, false);
}

/* One is freed and another one comes in its place; iterators outlive it. */
static void call_free(void)
{
    unsigned which = draw(4), i = draw(which == 0 ? DICTS : which == 1 ? KEYED : SETS);
    fail_in = 0;
    if (which == 3) {
        wr_value_dict *d;
        struct wr_value_dict_options options = {
            .struct_size = sizeof options, .on_removal = on_removal_free, .ctx = &d, .queue = WR_QUEUE_INLINE};
        d = wr_value_dict_new(&options);
        struct thing *t = wr_new(&types[0]);
        CHECK(d != NULL && t != NULL);
        t->magic = MAGIC;
        things_made++;
        for (uint64_t k = 0; k < 3; k++)
            CHECK(wr_value_dict_set_u64(d, k, k < 2 && slots[k].obj != NULL ? (void *)slots[k].obj : t) == 0);
        wr_value_dict_remove_u64(d, 0);
        wr_value_dict_remove_u64(d, 1);
        wr_release(t);
        CHECK(d == NULL);
        return;
    }
    if (iters.of[which] == (int)i)
        iters.orphan[which] = true;
    if (which == 0) {
        wr_value_dict_free(values[i].d);
        values_new(i);
    } else if (which == 1) {
        wr_key_dict_free(keyed[i].d);
        keyed_new(i);
    } else {
        wr_set_free(sets[i].s);
        set_new(i);
    }
}

static void call_intern(void)
{
    unsigned i = draw(STRINGS), k = draw(KEYS);
    unsigned char key[512];
    wr_interned *s = NULL;
    size_t size = key_of(k, key);
    if (draw(3) > 0)
        s = wr_intern(pool, key, size);
    if (s != NULL)
        CHECK(s->size == size && memcmp(wr_interned_bytes(s), key, size) == 0);
    for (unsigned j = 0; s != NULL && j < STRINGS; j++)
        CHECK(strings[j].string == NULL || (strings[j].string == s) == (strings[j].key == k));
    wr_release(strings[i].string);
    strings[i].string = s;
    strings[i].key = k;
}

static void call_object(void)
{
    unsigned slot = draw(SLOTS), what = draw(64);
    if (what < 16)
        drop(slot);
    else
        (void)make(slot, what % 3, draw(5), draw(6), draw(256));
}

static void call_rest(void)
{
    switch (draw(6)) {
    case 0:
        CHECK(wr_barrier() == 0);
        break;
    case 1:
        wr_queue_drain(queue, 1 + draw(8));
        CHECK(heard <= heard_due);
        break;
    case 2:
        fail_in = 1 + draw(6);
        break;
    case 3:
        call_free();
        break;
    default:
        call_intern();
    }
}

static void start(void)
{
    static bool begun;
    static const struct wr_allocator allocator = {take_block, free_block, NULL};
    if (!begun) {
        CHECK(wr_set_allocator(&allocator) == 0);
        begun = true;
    }
    fail_in = 0;
    queue = wr_queue_new("fuzz");
    pool = wr_intern_pool_new();
    CHECK(queue != NULL && pool != NULL);
    for (unsigned i = 0; i < DICTS; i++)
        values_new(i);
    for (unsigned i = 0; i < KEYED; i++)
        keyed_new(i);
    for (unsigned i = 0; i < SETS; i++)
        set_new(i);
    for (unsigned i = 0; i < 3; i++)
        iters.of[i] = NONE;
}

static void end(void)
{
    fail_in = 0;
    for (unsigned i = 0; i < 3; i++)
        iter_end(i);
    for (unsigned again = 0; again < 2; again++) /* a destroy may set what lives into a dictionary */
        for (unsigned i = 0; i < SLOTS; i++)
            drop(i);
    for (unsigned i = 0; i < STRINGS; i++) {
        wr_release(strings[i].string);
        strings[i].string = NULL;
    }
    CHECK(wr_intern_pool_len(pool) == 0);
    wr_intern_pool_free(pool);
    CHECK(wr_barrier() == 0);
    for (unsigned i = 0; i < DICTS; i++) {
        CHECK(wr_value_dict_len(values[i].d) == 0);
        wr_value_dict_free(values[i].d);
    }
    for (unsigned i = 0; i < KEYED; i++) {
        CHECK(wr_key_dict_len(keyed[i].d) == 0);
        wr_key_dict_free(keyed[i].d);
    }
    for (unsigned i = 0; i < SETS; i++) {
        CHECK(wr_set_len(sets[i].s) == 0);
        wr_set_free(sets[i].s);
    }
    CHECK(wr_barrier() == 0);
    wr_queue_free(queue); /* delivers what is pending */
    CHECK(heard == heard_due);
    CHECK(wr_barrier() == 0);
    CHECK(things_made == atomic_load(&things_gone) && notes_made == atomic_load(&notes_gone));
    CHECK(raws_made == atomic_load(&raws_gone));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const calls[])(void) = {call_values, call_values, call_keyed,  call_keyed,  call_set,    call_sets,
                                          call_copies, call_iter,   call_object, call_object, call_object, call_rest};
    input = data;
    input_end = data + size;
    start();
    for (n_calls = 0; input < input_end && n_calls < CALLS_MOST; n_calls++) {
        call_now = draw(sizeof calls / sizeof *calls);
        unsigned left = fail_in;
        failed = false;
        calls[call_now]();
        if (left != 0) /* a failure was due in this call */
            fail_in = 0;
    }
    end();
    return 0;
}
