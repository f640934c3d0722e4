/* wr-stress: the value dictionaries, shared keys at random and private keys against a plain model. */
#include "wr_stress.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void key_make(struct key *key, uint32_t id)
{
    uint64_t number = id;
    memset(key, 0, sizeof *key);
    switch (id % 3) {
    case 0:
        memcpy(key->bytes, &number, sizeof number);
        key->size = sizeof number;
        break;
    case 1:
        key->size = (size_t)snprintf((char *)key->bytes, sizeof key->bytes, "stress/%u", (unsigned)id);
        break;
    default:
        key->size = 5 + id * 7 % 59;
        memset(key->bytes, 0xff, key->size);
        memcpy(key->bytes + 1, &id, sizeof id);
    }
}

static uint32_t key_of(void *obj)
{
    return object_check(obj)->key;
}

void *dict_look(wr_value_dict *d, uint32_t id)
{
    struct key key;
    key_make(&key, id);
    void *obj;
    if (id % 3 == 0)
        obj = wr_value_dict_get_u64(d, id);
    else if (id % 3 == 1)
        obj = wr_value_dict_get_str(d, (const char *)key.bytes);
    else
        obj = wr_value_dict_get(d, key.bytes, key.size);
    if (obj != NULL)
        CHECK(key_of(obj) == id);
    return obj;
}

static int dict_set(wr_value_dict *d, uint32_t id, void *obj)
{
    struct key key;
    key_make(&key, id);
    count(COUNT_dict_writes);
    return wr_value_dict_set(d, key.bytes, key.size, obj);
}

/* One of the dictionaries; and an object that may be put in it, [borrowed], or NULL. */
static wr_value_dict *pick(struct worker *w, void **obj)
{
    bool deferred = random_one_in(&w->random, 2);
    *obj = worker_held(w);
    if (*obj != NULL) {
        const struct node *node = object_check(*obj);
        if (node->key >= N_KEYS || (deferred && !kind_is_deferred((enum kind)node->kind)))
            *obj = NULL;
    }
    return deferred ? shared.dict_deferred : shared.dict;
}

static enum kind kind_for(struct worker *w, bool deferred)
{
    if (deferred)
        return random_one_in(&w->random, 3) ? DEFERRED_BARE : DEFERRED;
    return object_kind_random(&w->random);
}

static void take(struct worker *w, void *obj, uint32_t id)
{
    count(obj != NULL ? COUNT_dict_hits : COUNT_dict_misses);
    if (obj == NULL)
        return;
    CHECK(object_touch(obj)->key == id);
    if (random_one_in(&w->random, 3))
        worker_keep(w, obj);
    else
        wr_release(obj);
}

/* ---- get_or_create ------------------------------------------------------------------------------------------- */

struct creation {
    struct worker *worker;
    wr_value_dict *d;
    uint32_t id;
    unsigned depth;
};

static int create(const void *bytes, size_t size, void *ctx, void **obj)
{
    struct creation *c = ctx;
    struct random *r = &c->worker->random;
    struct key key;
    key_make(&key, c->id);
    CHECK(size == key.size && memcmp(bytes, key.bytes, size) == 0);
    CHECK(c->depth == 0);
    switch (random_below(r, 24)) {
    case 0:
        return -EIO;
    case 1:
        *obj = NULL;
        return 0; /* for -EINVAL */
    case 2: {
        struct creation nested = *c;
        nested.depth++;
        void *out = NULL;
        int error = wr_value_dict_get_or_create(c->d, bytes, size, create, &nested, &out);
        CHECK(error == -EDEADLK || (error == 0 && out != NULL)); /* 0: somebody set it meanwhile */
        wr_release(out);
        break;
    }
    case 3: {
        /* A set meanwhile wins. */
        void *other = object_new(kind_for(c->worker, c->d == shared.dict_deferred), c->id, NULL);
        if (other != NULL) {
            CHECK(dict_set(c->d, c->id, other) == 0);
            worker_keep(c->worker, other);
        }
        break;
    }
    case 4:
        wr_release(dict_look(shared.dict, random_below(r, N_KEYS)));
        break;
    default:
        break;
    }
    *obj = object_new(kind_for(c->worker, c->d == shared.dict_deferred), c->id, NULL);
    if (*obj == NULL)
        return -ENFILE;
    count(COUNT_created);
    return 0;
}

static void op_get_or_create(struct worker *w, wr_value_dict *d)
{
    struct creation c = {.worker = w, .d = d, .id = random_below(&w->random, N_KEYS)};
    uint32_t id = c.id;
    struct key key;
    key_make(&key, id);
    void *out = NULL;
    int error = wr_value_dict_get_or_create(d, key.bytes, key.size, create, &c, &out);
    if (error == 0) {
        CHECK(out != NULL);
        count(COUNT_shared);
        take(w, out, id);
        return;
    }
    if (error != -EIO && error != -EINVAL && error != -ENFILE)
        violation("wr_value_dict_get_or_create() answers %d", error);
    CHECK(out == NULL);
    count(COUNT_create_failed);
}

/* ---- shared keys ------------------------------------------------------------------------------------------------ */

static void op_set_default(struct worker *w, wr_value_dict *d, void *obj)
{
    void *out = NULL;
    uint32_t id = key_of(obj);
    struct key key;
    key_make(&key, id);
    CHECK(wr_value_dict_setdefault(d, key.bytes, key.size, obj, &out) == 0);
    CHECK(out != NULL);
    take(w, out, id);
}

void dict_op(struct worker *w, unsigned which)
{
    void *obj;
    wr_value_dict *d = pick(w, &obj);
    uint32_t id = obj != NULL ? key_of(obj) : random_below(&w->random, N_KEYS);
    struct key key;
    key_make(&key, id);
    int error;
    switch (which) {
    case 0:
        id = random_below(&w->random, N_KEYS);
        take(w, dict_look(d, id), id);
        break;
    case 1: {
        bool is = wr_value_dict_contains(d, key.bytes, key.size);
        void *found = dict_look(d, id);
        if (is && found == NULL)
            count(COUNT_dict_dead_hits);
        take(w, found, id);
        break;
    }
    case 2:
    case 3:
        if (obj != NULL) {
            error = dict_set(d, id, obj);
            if (error != 0)
                violation("wr_value_dict_set() of a living object answers %d", error);
        }
        break;
    case 4:
        count(COUNT_dict_writes);
        error = wr_value_dict_remove(d, key.bytes, key.size);
        CHECK(error == 0 || error == -ENOENT);
        break;
    case 5:
        if (obj != NULL) {
            count(COUNT_dict_writes);
            error = wr_value_dict_remove_if(d, key.bytes, key.size, obj);
            CHECK(error == 0 || error == -ENOENT);
        }
        break;
    case 6:
        take(w, wr_value_dict_pop(d, key.bytes, key.size), id);
        break;
    case 7:
        if (obj != NULL)
            op_set_default(w, d, obj);
        break;
    case 8:
        op_get_or_create(w, d);
        break;
    default:
        (void)wr_value_dict_len(d);
        if (random_one_in(&w->random, 64))
            wr_value_dict_clear(d);
    }
}

void dict_peek_in_guard(struct worker *w, void **keep)
{
    uint32_t id = random_below(&w->random, N_KEYS);
    struct key key;
    key_make(&key, id);
    void *obj = wr_value_dict_peek(shared.dict_deferred, key.bytes, key.size);
    count(COUNT_peeks);
    if (obj == NULL)
        return;
    CHECK(key_of(obj) == id);
    if (*keep == NULL && random_one_in(&w->random, 3)) {
        *keep = wr_retain_live(obj);
        count(*keep != NULL ? COUNT_retain_live_won : COUNT_retain_live_lost);
    }
}

void dict_refuses(void *dying, uint32_t id)
{
    CHECK(dict_set(shared.dict, id, dying) == -ESTALE);
    struct key key;
    key_make(&key, id);
    void *out = NULL;
    int error = wr_value_dict_setdefault(shared.dict, key.bytes, key.size, dying, &out);
    CHECK(error == -ESTALE || (error == 0 && out != NULL && out != dying));
    wr_release(out);
    count(COUNT_stale);
}

/* ---- private keys, by a model ---------------------------------------------------------------------------------- */

/* Objects of these keys are seen by nobody else, so the dictionary must say what @own says. */
void dict_own_op(struct worker *w, void **own, unsigned n)
{
    unsigned i = random_below(&w->random, n);
    uint32_t id = 100000 + w->index * 1000 + i;
    struct key key;
    key_make(&key, id);
    wr_value_dict *d = shared.dict_private;
    bool deferred = i % 2;
    void *obj;
    switch (random_below(&w->random, 8)) {
    case 0:
    case 1:
        obj = object_new(kind_for(w, deferred), id, NULL);
        if (obj == NULL)
            return;
        CHECK(dict_set(d, id, obj) == 0);
        wr_release(own[i]); /* dies after it was replaced: takes nothing with it */
        own[i] = obj;
        break;
    case 2:
        wr_release(own[i]);
        own[i] = NULL;
        break;
    case 3:
        CHECK(wr_value_dict_remove(d, key.bytes, key.size) == (own[i] != NULL ? 0 : -ENOENT));
        wr_release(own[i]);
        own[i] = NULL;
        break;
    case 4:
        if (own[i] != NULL) {
            void *out = NULL;
            void *other = object_new(kind_for(w, deferred), id, NULL);
            if (other == NULL)
                return;
            CHECK(wr_value_dict_setdefault(d, key.bytes, key.size, other, &out) == 0);
            CHECK(out == own[i]);
            CHECK(wr_value_dict_remove_if(d, key.bytes, key.size, other) == -ENOENT);
            wr_release(out);
            wr_release(other);
        }
        break;
    default:
        break;
    }
    obj = dict_look(d, id);
    if (obj != own[i])
        violation("key %u: the dictionary has %p, not %p", (unsigned)id, obj, own[i]);
    CHECK(wr_value_dict_contains(d, key.bytes, key.size) == (own[i] != NULL));
    wr_release(obj);
    if (deferred)
        WR_GUARD {
            CHECK(wr_value_dict_peek(d, key.bytes, key.size) == own[i]);
        }
}

/* Many keys at once, so that the tables grow and shrink beside the other workers. */
void dict_burst(struct worker *w)
{
    unsigned n = objects_left() / (8 * options.n_threads);
    if (n > 600)
        n = 600;
    if (n < 16)
        return;
    void **all = calloc(n, sizeof *all);
    CHECK(all != NULL);
    uint32_t first = UINT32_C(0x40000000) | w->index << 16;
    for (unsigned i = 0; i < n; i++) {
        all[i] = object_new(random_one_in(&w->random, 2) ? PLAIN : DEFERRED_BARE, first + i, NULL);
        if (all[i] != NULL)
            CHECK(dict_set(shared.dict_private, first + i, all[i]) == 0);
    }
    for (unsigned i = 0; i < n; i++) {
        void *obj = dict_look(shared.dict_private, first + i);
        CHECK(obj == all[i]);
        wr_release(obj);
    }
    for (unsigned i = 0; i < n; i += 2) {
        wr_release(all[i]);
        all[i] = NULL;
    }
    for (unsigned i = 0; i < n; i++) {
        void *obj = dict_look(shared.dict_private, first + i);
        CHECK(obj == all[i]);
        wr_release(obj);
        wr_release(all[i]);
    }
    free(all);
}

/* Nothing moves: what is there is in the shared keys, and counted. @alive: how many objects there are. */
void dict_verify(unsigned alive)
{
    wr_value_dict *const all[] = {shared.dict, shared.dict_deferred, shared.dict_private};
    for (unsigned i = 0; i < 3; i++) {
        size_t n = 0;
        for (uint32_t id = 0; id < N_KEYS; id++) {
            void *obj = dict_look(all[i], id);
            n += obj != NULL;
            wr_release(obj);
        }
        if (wr_value_dict_len(all[i]) != n || n > alive)
            violation("dictionary %u: len %zu, %zu keys found, %u objects alive", i, wr_value_dict_len(all[i]), n,
                      alive);
    }
}
