/* Histories of single keys: many threads at one key, every answer written down, and afterwards a search for an order of
 * the calls that explains all answers (linearizability, as by Wing and Gong).
 *
 * A call took effect at some instant between its begin and its end, and so did each death: between the begin of the last
 * release that is known and the begin of destroy. So a get that answers an object that was replaced or dead for the whole
 * call, or misses one that was there for the whole call, has no place in any order; nor has any other verb's answer that is
 * wrong. Instants come from the clock, not from a shared counter, which would order the threads under test; around each call
 * its stores are waited for, since the clock is not memory: else a call would end before others can see what it did.
 *
 * A history that must not pass is shown to the checker first: see self_test(). */
#include <weakref/weakref.h>

#include <errno.h>
#include <limits.h>

#include "race.h"

enum { SIDES = 8, OPS_MOST = 32, EVENTS_MOST = 2 * OPS_MOST, NONE = 255 };

enum what {
    SET,        /* key, value */
    GET,        /* got */
    CONTAINS,   /* ok */
    REMOVE,     /* ok */
    POP,        /* got */
    REMOVE_IF,  /* expected, ok */
    REPLACE,    /* key, value, expected, ok */
    SETDEFAULT, /* key, value, got */
    ADD,        /* key: comes if nothing is there */
    DIE,        /* key */
    N_WHAT
};
static const char *const names[N_WHAT] = {"set",       "get",     "contains",   "remove", "pop",
                                          "remove_if", "replace", "setdefault", "add",    "death"};

/* A call, or a death. Objects are numbers. */
struct event {
    uint64_t from, to;
    unsigned char what, key, value, expected, got;
    bool ok;
};

struct history {
    struct event events[EVENTS_MOST];
    unsigned n;
    bool keeps_key; /* an entry keeps the key that it came with; else it is known by its value alone */
};

/* ---- the checker ------------------------------------------------------------------------------------------------ */

/* What the key maps to. The entry dies with @key; in a dictionary of values both are the value. */
struct state {
    unsigned char key, value;
};

/* Whether the answer of @e is right at @s, which it changes. */
static bool step(const struct event *e, bool keeps_key, struct state *s)
{
    bool there = s->value != NONE;
    struct state put = {keeps_key && there ? s->key : e->key, e->value}, none = {NONE, NONE};
    switch (e->what) {
    case SET:
        *s = put;
        return true;
    case GET:
        return e->got == s->value;
    case CONTAINS:
        return e->ok == there;
    case REMOVE:
        *s = none;
        return e->ok == there;
    case POP:
        if (e->got != s->value)
            return false;
        *s = none;
        return true;
    case REMOVE_IF:
        if (e->ok != (there && s->value == e->expected))
            return false;
        if (e->ok)
            *s = none;
        return true;
    case REPLACE:
        if (e->ok != (there && s->value == e->expected))
            return false;
        if (e->ok)
            *s = put;
        return true;
    case SETDEFAULT:
        if (e->got != (there ? s->value : e->value))
            return false;
        if (!there)
            *s = put;
        return true;
    case ADD:
        if (!there)
            *s = put;
        return true;
    default:
        if (s->key == e->key)
            *s = none;
        return true;
    }
}

/* Where the search has been: what is done, and the state after it. */
enum { SEEN = 1 << 16 };
static struct seen {
    uint64_t done;
    unsigned search;
    struct state state;
} seen[SEEN];
static unsigned searches, n_seen;

static bool is_new(uint64_t done, struct state s)
{
    uint64_t hash =
        done * UINT64_C(0x9e3779b97f4a7c15) ^ (uint64_t)(s.key << 8 | s.value) * UINT64_C(0xbf58476d1ce4e5b9);
    for (uint64_t i = hash >> 40;; i++) {
        struct seen *at = &seen[i % SEEN];
        if (at->search != searches) {
            RACE_CHECK(++n_seen < SEEN / 2); /* else the histories are too wide for this */
            *at = (struct seen){done, searches, s};
            return true;
        }
        if (at->done == done && at->state.key == s.key && at->state.value == s.value)
            return false;
    }
}

static bool explain(const struct history *h, uint64_t done, struct state s)
{
    uint64_t first_end = UINT64_MAX;
    bool all = true;
    for (unsigned i = 0; i < h->n; i++)
        if (!(done >> i & 1)) {
            all = false;
            first_end = h->events[i].to < first_end ? h->events[i].to : first_end;
        }
    if (all)
        return true;
    if (!is_new(done, s))
        return false;
    for (unsigned i = 0; i < h->n; i++) {
        struct state next = s;
        if (!(done >> i & 1) && h->events[i].from <= first_end && step(&h->events[i], h->keeps_key, &next) &&
            explain(h, done | UINT64_C(1) << i, next))
            return true;
    }
    return false;
}

static bool history_is_right(const struct history *h)
{
    searches++;
    n_seen = 0;
    return explain(h, 0, (struct state){NONE, NONE});
}

static void history_print(const struct history *h)
{
    for (unsigned i = 0; i < h->n; i++) {
        const struct event *e = &h->events[i];
        fprintf(stderr, "%12llu to %12llu  %-10s key %3u value %3u expected %3u got %3u %s\n",
                (unsigned long long)(e->from - h->events[0].from), (unsigned long long)(e->to - h->events[0].from),
                names[e->what], e->key, e->value, e->expected, e->got, e->ok ? "ok" : "");
    }
}

/* ---- the checker's own test ----------------------------------------------------------------------------------- */

#define HISTORY(...) ((struct event[]){__VA_ARGS__}), sizeof((struct event[]){__VA_ARGS__}) / sizeof(struct event)

static void expect(bool right, bool keeps_key, const char *which, const struct event *events, size_t n)
{
    struct history h = {.n = (unsigned)n, .keeps_key = keeps_key};
    memcpy(h.events, events, n * sizeof *events);
    if (history_is_right(&h) == right)
        return;
    fprintf(stderr, "the checker %s a history that is %s: %s\n", right ? "refuses" : "accepts",
            right ? "right" : "wrong", which);
    history_print(&h);
    abort();
}

#define SETS(from, to, k)                           \
    {                                               \
        from, to, .what = SET, .key = k, .value = k \
    }
#define GETS(from, to, v)               \
    {                                   \
        from, to, .what = GET, .got = v \
    }
#define DIES(from, to, k)               \
    {                                   \
        from, to, .what = DIE, .key = k \
    }
#define POPS(from, to, v)               \
    {                                   \
        from, to, .what = POP, .got = v \
    }
#define DEFAULTS(from, to, k, v)                                     \
    {                                                                \
        from, to, .what = SETDEFAULT, .key = k, .value = k, .got = v \
    }
#define REPLACES(from, to, e, v, is)                                             \
    {                                                                            \
        from, to, .what = REPLACE, .key = v, .value = v, .expected = e, .ok = is \
    }

static void self_test(void)
{
    expect(true, false, "nothing, then a set, then a get", HISTORY(GETS(1, 2, NONE), SETS(3, 4, 1), GETS(5, 6, 1)));
    expect(true, false, "a get beside a set answers either", HISTORY(SETS(1, 9, 1), GETS(2, 3, NONE), GETS(4, 5, 1)));
    expect(true, false, "a get beside a replacement answers the old",
           HISTORY(SETS(1, 2, 1), SETS(3, 6, 2), GETS(4, 5, 1)));
    expect(true, false, "a get that began before the replacement ended",
           HISTORY(SETS(1, 2, 1), SETS(3, 5, 2), GETS(4, 9, 1)));
    expect(false, false, "a get of what was never set", HISTORY(SETS(1, 2, 1), GETS(3, 4, 2)));
    expect(false, false, "a get of what is set later", HISTORY(GETS(1, 2, 1), SETS(3, 4, 1)));
    expect(false, false, "a get of what was replaced for the whole call",
           HISTORY(SETS(1, 2, 1), SETS(3, 4, 2), GETS(5, 6, 1)));
    expect(false, false, "a get of what was dead for the whole call",
           HISTORY(SETS(1, 2, 1), DIES(3, 4, 1), GETS(5, 6, 1)));
    expect(true, false, "a get beside the death", HISTORY(SETS(1, 2, 1), DIES(3, 6, 1), GETS(4, 5, 1)));
    expect(false, false, "a get that misses what is there", HISTORY(SETS(1, 2, 1), GETS(3, 4, NONE), GETS(5, 6, 1)));
    expect(false, false, "the death of the replaced takes the new one along",
           HISTORY(SETS(1, 2, 1), SETS(3, 4, 2), DIES(5, 6, 1), GETS(7, 8, NONE)));
    expect(false, false, "two gets one after the other see new and old",
           HISTORY(SETS(1, 2, 1), SETS(3, 9, 2), GETS(4, 5, 2), GETS(6, 7, 1)));
    expect(false, false, "two pops get the same", HISTORY(SETS(1, 2, 1), POPS(3, 6, 1), POPS(4, 5, 1)));
    expect(false, false, "two setdefaults get their own", HISTORY(DEFAULTS(1, 4, 1, 1), DEFAULTS(2, 3, 2, 2)));
    expect(true, false, "of two setdefaults one wins", HISTORY(DEFAULTS(1, 4, 1, 2), DEFAULTS(2, 3, 2, 2)));
    expect(false, false, "a replace that found what was gone",
           HISTORY(SETS(1, 2, 1), SETS(3, 4, 2), REPLACES(5, 6, 1, 3, true)));
    expect(false, false, "a replace that did not find what was there",
           HISTORY(SETS(1, 2, 1), REPLACES(3, 4, 1, 2, false), GETS(5, 6, 1)));
    expect(false, false, "a dead object's entry under a new value",
           HISTORY(SETS(1, 2, 1), SETS(3, 4, 2), DIES(5, 6, 2), GETS(7, 8, 2)));
    expect(true, true, "an entry dies with the key that came first",
           HISTORY(SETS(1, 2, 1), SETS(3, 4, 2), DIES(5, 6, 1), GETS(7, 8, NONE)));
    expect(false, true, "an entry dies with a key that only equals its own",
           HISTORY(SETS(1, 2, 1), SETS(3, 4, 2), DIES(5, 6, 2), GETS(7, 8, NONE)));

    /* One of many, somewhere: a long history, each call beside the next one, right until one get is far too late. */
    uint64_t random = race_seed();
    for (unsigned round = 0; round < 200; round++) {
        struct history h = {.n = EVENTS_MOST};
        for (unsigned i = 0; i < h.n; i++) {
            unsigned char number = (unsigned char)i;
            h.events[i] = (struct event){.from = 2 * i, .to = 2 * i + 3, .what = SET, .key = number, .value = number};
            if (i > 2 && race_draw(&random) % 2 == 0) {
                h.events[i].what = GET;
                h.events[i].value = h.events[i].got = h.events[i - 1].value;
            }
        }
        RACE_CHECK(history_is_right(&h));
        struct event *late = &h.events[8 + race_draw(&random) % (h.n - 8)];
        late->what = GET;
        late->got = 0;
        RACE_CHECK(!history_is_right(&h));
    }
}

/* ---- what is under test ----------------------------------------------------------------------------------------- */

enum subject { VALUES, KEYS, MEMBERS };

struct thing {
    unsigned char number;
};

/* What is known of an object of this round. */
struct life {
    _Atomic uint64_t released, died; /* the begin of the last release; of destroy */
};

static struct {
    enum subject subject;
    wr_value_dict *values;
    wr_key_dict *keys;
    wr_set *members;
    struct life lives[EVENTS_MOST];
    _Atomic unsigned n_things, side;
    struct history history;
    _Atomic unsigned n_events;
    struct thing *kept[SIDES][EVENTS_MOST];
    unsigned n_kept[SIDES];
    bool cleaning;
    uint64_t randoms[SIDES];
} now;

/* Of this thread alone: it orders nothing between threads. */
static void wait_for_stores(void)
{
#if RACE_SANITIZED
    static _Thread_local atomic_uint own; /* ThreadSanitizer has no fences */
    atomic_fetch_add(&own, 1);
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

static uint64_t clock_now(void)
{
    struct timespec t;
    wait_for_stores();
    clock_gettime(CLOCK_MONOTONIC, &t);
    wait_for_stores();
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void thing_destroy(void *obj)
{
    const struct thing *t = obj;
    if (!now.cleaning)
        atomic_store_explicit(&now.lives[t->number].died, clock_now(), memory_order_relaxed);
}

static uint64_t thing_hash(const void *obj)
{
    (void)obj;
    return 1;
}

static bool thing_equal(const void *a, const void *b)
{
    (void)a, (void)b;
    return true;
}

static const wr_type thing_type = {
    .name = "thing", .size = sizeof(struct thing), .destroy = thing_destroy, .hash = thing_hash, .equal = thing_equal};
/* Values of the key dictionary: it gives their references back later, on a thread of its own. */
static const wr_type note_type = {.name = "note", .size = sizeof(struct thing)};

static struct thing *thing_new(const wr_type *type, unsigned number)
{
    struct thing *t = wr_new(type);
    RACE_CHECK(t != NULL);
    t->number = (unsigned char)number;
    return t;
}

static void thing_release(struct thing *t)
{
    if (t == NULL)
        return;
    uint64_t from = clock_now(), before = atomic_load_explicit(&now.lives[t->number].released, memory_order_relaxed);
    if (wr_type_of(t) == &thing_type)
        while (before < from && !atomic_compare_exchange_weak_explicit(&now.lives[t->number].released, &before, from,
                                                                       memory_order_relaxed, memory_order_relaxed))
            ;
    wr_release(t);
}

/* ---- one side: some calls, written down --------------------------------------------------------------------------- */

static unsigned ops_of_a_side;

static int create(const void *key, size_t size, void *ctx, void **obj)
{
    (void)key, (void)size;
    const unsigned char *number = ctx;
    *obj = thing_new(&thing_type, *number);
    return 0;
}

static const char THE_KEY[] = "the one";

/* Something that came out of the container; it is let go of at once, or at the end of the round. */
static unsigned char take(unsigned side, uint64_t random, struct thing *t)
{
    if (t == NULL)
        return NONE;
    unsigned char number = t->number;
    if (random % 2)
        now.kept[side][now.n_kept[side]++] = t;
    else
        thing_release(t);
    return number;
}

/* What each subject has of verbs. Return whether there is anything to write down: what goes through all entries may miss one
 * that is replaced meanwhile, and who is tired of waiting knows nothing. */
static bool call_values(struct event *e, struct thing *mine, struct thing *expected, uint64_t random,
                        struct thing **out)
{
    wr_value_dict *d = now.values;
    void *obj = NULL;
    bool counts = true;
    int err;
    switch (random % 16) {
    case 0:
    case 1:
        e->what = SET;
        RACE_CHECK(wr_value_dict_set_str(d, THE_KEY, mine) == 0);
        break;
    case 2:
        e->what = REMOVE;
        e->ok = wr_value_dict_remove_str(d, THE_KEY) == 0;
        break;
    case 3:
        e->what = POP;
        obj = wr_value_dict_pop_str(d, THE_KEY);
        break;
    case 4:
        e->what = POP;
        obj = wr_value_dict_popitem(d, NULL, NULL);
        counts = obj != NULL;
        break;
    case 5:
        e->what = REMOVE_IF;
        e->ok = wr_value_dict_remove_if_str(d, THE_KEY, expected) == 0;
        break;
    case 6:
        e->what = REPLACE;
        e->ok = wr_value_dict_replace_str(d, THE_KEY, expected, mine) == 0;
        break;
    case 7:
        e->what = SETDEFAULT;
        RACE_CHECK(wr_value_dict_setdefault_str(d, THE_KEY, mine, &obj) == 0);
        break;
    case 8: {
        unsigned char number = (unsigned char)atomic_fetch_add_explicit(&now.n_things, 1, memory_order_relaxed);
        unsigned timeout = random >> 8 & 1 ? 0 : UINT_MAX;
        e->what = SETDEFAULT; /* and if another one's create made it, no number of this one is seen */
        e->key = e->value = number;
        err = wr_value_dict_get_or_create_timed_str(d, THE_KEY, create, &number, timeout, &obj);
        RACE_CHECK(err == 0 || (err == -ETIMEDOUT && timeout == 0));
        if (err == 0 && ((struct thing *)obj)->number != number)
            e->what = GET;
        counts = err == 0;
        break;
    }
    case 9:
        e->what = CONTAINS;
        e->ok = wr_value_dict_contains_str(d, THE_KEY);
        break;
    case 10: {
        wr_value_dict_iter it;
        struct wr_value_dict_item item;
        e->what = GET;
        wr_value_dict_iter_begin(&it, d);
        counts = wr_value_dict_iter_next(&it, &item);
        if (counts)
            obj = item.value;
        wr_value_dict_iter_end(&it);
        break;
    }
    default:
        e->what = GET;
        obj = wr_value_dict_get_str(d, THE_KEY);
    }
    *out = obj;
    return counts;
}

/* @mine: [borrowed] a key, and its note. */
static bool call_keys(struct event *e, struct thing *mine, struct thing *note, struct thing *expected, uint64_t random,
                      struct thing **out)
{
    wr_key_dict *d = now.keys;
    struct wr_key_dict_item item = {NULL, NULL};
    void *obj = NULL;
    bool counts = true;
    switch (random % 14) {
    case 0:
    case 1:
        e->what = SET;
        RACE_CHECK(wr_key_dict_set(d, mine, note) == 0);
        break;
    case 2:
        e->what = REMOVE;
        e->ok = wr_key_dict_remove(d, mine) == 0;
        break;
    case 3:
        e->what = POP;
        obj = wr_key_dict_pop(d, mine);
        break;
    case 4:
        e->what = POP;
        counts = wr_key_dict_popitem(d, &item);
        break;
    case 5:
        e->what = REMOVE_IF;
        e->ok = wr_key_dict_remove_if(d, mine, expected) == 0;
        break;
    case 6:
        e->what = REPLACE;
        e->ok = wr_key_dict_replace(d, mine, expected, note) == 0;
        break;
    case 7:
        e->what = SETDEFAULT;
        RACE_CHECK(wr_key_dict_setdefault(d, mine, note, &obj) == 0);
        break;
    case 8:
        e->what = CONTAINS;
        e->ok = wr_key_dict_contains(d, mine);
        break;
    case 9: {
        wr_key_dict_iter it;
        e->what = GET;
        wr_key_dict_iter_begin(&it, d);
        counts = wr_key_dict_iter_next(&it, &item);
        wr_key_dict_iter_end(&it);
        break;
    }
    default:
        e->what = GET;
        obj = wr_key_dict_get(d, mine);
    }
    if (item.key != NULL) {
        thing_release(item.key);
        obj = item.value;
    }
    *out = obj;
    return counts;
}

static bool call_members(struct event *e, struct thing *mine, uint64_t random, struct thing **out)
{
    wr_set *s = now.members;
    void *obj = NULL;
    bool counts = true;
    switch (random % 10) {
    case 0:
    case 1:
        e->what = ADD;
        RACE_CHECK(wr_set_add(s, mine) == 0);
        break;
    case 2:
        e->what = REMOVE;
        e->ok = wr_set_remove(s, mine) == 0;
        break;
    case 3:
        e->what = POP;
        obj = wr_set_pop(s);
        counts = obj != NULL;
        break;
    case 4:
        e->what = CONTAINS;
        e->ok = wr_set_contains(s, mine);
        break;
    case 5: {
        wr_set_iter it;
        e->what = GET;
        wr_set_iter_begin(&it, s);
        counts = wr_set_iter_next(&it, &obj);
        wr_set_iter_end(&it);
        break;
    }
    default:
        e->what = GET;
        obj = wr_set_get(s, mine);
    }
    *out = obj;
    return counts;
}

static void write_down(const struct event *e)
{
    now.history.events[atomic_fetch_add_explicit(&now.n_events, 1, memory_order_relaxed)] = *e;
}

/* What was just set is replaced, and dies at once: beside who has found it and not yet taken it. */
static void replace_at_once(unsigned side, struct thing *first, uint64_t random)
{
    unsigned char number = (unsigned char)atomic_fetch_add_explicit(&now.n_things, 1, memory_order_relaxed);
    struct thing *second = thing_new(&thing_type, number);
    struct event e = {.what = SET, .key = number, .value = number, .got = NONE};
    e.from = clock_now();
    RACE_CHECK(wr_value_dict_set_str(now.values, THE_KEY, second) == 0);
    e.to = clock_now();
    thing_release(first);
    write_down(&e);
    (void)take(side, random, second);
}

static void call(unsigned side, uint64_t *random)
{
    uint64_t drawn = race_draw(random), more = race_draw(random);
    unsigned number = atomic_fetch_add_explicit(&now.n_things, 1, memory_order_relaxed);
    struct thing *mine = thing_new(&thing_type, number), *out = NULL, *expected = NULL;
    struct thing *note = now.subject == KEYS ? thing_new(&note_type, number) : NULL;
    unsigned n_kept = now.n_kept[side];
    for (unsigned i = 0; i < n_kept; i++) { /* the latest that can be expected */
        struct thing *t = now.kept[side][i];
        if (now.subject != KEYS || wr_type_of(t) == &note_type)
            expected = t;
    }
    if (expected == NULL)
        expected = note != NULL ? note : mine; /* that is not there */
    struct event e = {
        .key = (unsigned char)number, .value = (unsigned char)number, .expected = expected->number, .got = NONE};
    e.from = clock_now();
    if (drawn >> 60 == 0)
        sched_yield(); /* on one processor, too, calls are to be beside each other */
    bool counts = now.subject == VALUES ? call_values(&e, mine, expected, drawn, &out)
                  : now.subject == KEYS ? call_keys(&e, mine, note, expected, drawn, &out)
                                        : call_members(&e, mine, drawn, &out);
    e.to = clock_now();
    e.got = out != NULL ? out->number : NONE;
    (void)take(side, more, out);
    if (counts)
        write_down(&e);
    if (e.what == SET && now.subject == VALUES && more >> 3 & 1) {
        replace_at_once(side, mine, more >> 4);
        mine = NULL;
    }
    (void)take(side, more >> 1, mine);
    (void)take(side, more >> 2, note);
}

static void play(void *ctx)
{
    (void)ctx;
    unsigned side = atomic_fetch_add_explicit(&now.side, 1, memory_order_relaxed);
    uint64_t random = now.randoms[side];
    for (unsigned i = 0; i < ops_of_a_side; i++)
        call(side, &random);
}

/* ---- rounds ------------------------------------------------------------------------------------------------------ */

static void prepare(void *ctx)
{
    uint64_t *random = ctx;
    atomic_store(&now.n_things, 0);
    atomic_store(&now.side, 0);
    atomic_store(&now.n_events, 0);
    now.cleaning = false;
    for (unsigned i = 0; i < EVENTS_MOST; i++) {
        atomic_store_explicit(&now.lives[i].released, 0, memory_order_relaxed);
        atomic_store_explicit(&now.lives[i].died, 0, memory_order_relaxed);
    }
    for (unsigned i = 0; i < SIDES; i++) {
        now.randoms[i] = race_draw(random);
        now.n_kept[i] = 0;
    }
}

static size_t len(void)
{
    return now.subject == VALUES ? wr_value_dict_len(now.values)
           : now.subject == KEYS ? wr_key_dict_len(now.keys)
                                 : wr_set_len(now.members);
}

enum { FOUND, MISSED };

/* Of some get beside a change or a death. */
static unsigned outcome_of(const struct history *h, uint64_t *random)
{
    unsigned first = (unsigned)(race_draw(random) % h->n);
    for (unsigned n = 0; n < h->n; n++) {
        const struct event *e = &h->events[(first + n) % h->n];
        for (unsigned i = 0; i < h->n && e->what == GET; i++) {
            const struct event *other = &h->events[i];
            if (other->what != GET && other->what != CONTAINS && other->from <= e->to && e->from <= other->to)
                return e->got != NONE ? FOUND : MISSED;
        }
    }
    return RACE_NONE;
}

static unsigned judge(void *ctx)
{
    struct history *h = &now.history;
    h->n = atomic_load(&now.n_events);
    h->keeps_key = now.subject == KEYS;
    for (unsigned i = 0; i < atomic_load(&now.n_things); i++) {
        uint64_t died = atomic_load(&now.lives[i].died), released = atomic_load(&now.lives[i].released);
        if (died == 0)
            continue;
        RACE_CHECK(h->n < EVENTS_MOST && released <= died);
        h->events[h->n++] = (struct event){.from = released, .to = died, .what = DIE, .key = (unsigned char)i};
    }
    if (!history_is_right(h)) {
        fprintf(stderr, "no order of the calls explains their answers; RACE_SEED=%llu\n",
                (unsigned long long)race_seed());
        history_print(h);
        abort();
    }
    unsigned outcome = h->n > 0 ? outcome_of(h, ctx) : RACE_NONE;
    now.cleaning = true;
    for (unsigned side = 0; side < SIDES; side++)
        while (now.n_kept[side] > 0)
            thing_release(now.kept[side][--now.n_kept[side]]);
    RACE_CHECK(len() == 0);
    return outcome;
}

static bool histories(enum subject subject, unsigned n_sides, const char *name)
{
    uint64_t random = race_seed();
    struct race race = {
        .name = name,
        .prepare = prepare,
        .judge = judge,
        .outcomes = {"found beside a change", "missed beside a change"},
        .ctx = &random,
        .rounds = RACE_SIZE(6000, 1200),
    };
    for (unsigned i = 0; i < n_sides; i++)
        race.sides[i] = play;
    /* Each call may be two, or make two objects, and each object may have its death beside it. */
    ops_of_a_side = OPS_MOST / 2 / n_sides;
    now.subject = subject;
    return race_run(&race);
}

int main(void)
{
    struct wr_value_dict_options small = {.struct_size = sizeof small, .initial_size = 1};
    struct wr_key_dict_options keys = {.struct_size = sizeof keys, .initial_size = 1, .flags = WR_KEYS_BY_EQUAL};
    struct wr_set_options members = {.struct_size = sizeof members, .initial_size = 1, .flags = WR_KEYS_BY_EQUAL};
    self_test();
    now.values = wr_value_dict_new(&small);
    now.keys = wr_key_dict_new(&keys);
    now.members = wr_set_new(&members);
    RACE_CHECK(now.values != NULL && now.keys != NULL && now.members != NULL);
    bool good = histories(VALUES, 4, "one key of a dictionary of values, 4 threads");
    good = histories(VALUES, 8, "one key of a dictionary of values, 8 threads") && good;
    good = histories(KEYS, 4, "equal keys of a key dictionary, 4 threads") && good;
    good = histories(KEYS, 8, "equal keys of a key dictionary, 8 threads") && good;
    good = histories(MEMBERS, 4, "equal members of a set, 4 threads") && good;
    wr_value_dict_free(now.values);
    wr_key_dict_free(now.keys);
    wr_set_free(now.members);
    RACE_CHECK(wr_barrier() == 0);
    return good ? 0 : 1;
}
