/* Tests of the table alone, with nodes that have a number for a key. */
#include "table.h"

#include "hash.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "fail_alloc.h"
#include "race.h"

struct item {
    wr_retired retired;
    wr_table_node node;
    uint64_t key;
};

static const wr_hash_key hash_key = {{UINT64_C(0x243f6a8885a308d3), UINT64_C(0x13198a2e03707344)}};

static uint64_t tag_of(uint64_t key)
{
    return wr_table_tag(wr_hash_bytes(&hash_key, &key, sizeof key), 8);
}

static struct item *item_of(const wr_table_node *node)
{
    return (struct item *)((uintptr_t)node - offsetof(struct item, node));
}

static bool match(const wr_table_node *node, const void *probe)
{
    return item_of(node)->key == *(const uint64_t *)probe;
}

static int order(const wr_table_node *node, const void *probe)
{
    uint64_t key = *(const uint64_t *)probe, its = item_of(node)->key;
    return (its > key) - (its < key);
}

static struct item *item_new(uint64_t key, uint64_t tag)
{
    struct item *item = malloc(sizeof *item);
    item->key = key;
    item->node.tag = tag;
    return item;
}

static void item_reclaim(wr_retired *r)
{
    free((char *)r - offsetof(struct item, retired));
}

static wr_table *table_new(unsigned n_shards, size_t n_entries)
{
    void *memory = NULL;
    cr_assert_eq(posix_memalign(&memory, 64, wr_table_size(n_shards)), 0);
    cr_assert_eq(wr_table_init(memory, n_shards, n_entries), 0);
    return memory;
}

static void check(wr_table *t)
{
    (void)t;
#if WR_DEBUG
    wr_table_check(t);
#endif
}

/* Returns whether it was there. */
static bool remove_tag(wr_table *t, uint64_t key, uint64_t tag)
{
    wr_table_node *found;
    wr_table_shard *shard = wr_table_lock(t, tag);
    wr_table_link *link = wr_table_seek(shard, tag, order, &key, &found);
    if (found != NULL) {
        wr_table_unlink(shard, link);
        wr_retire_memory(&item_of(found)->retired, item_reclaim);
    }
    wr_table_unlock(shard);
    wr_retire_relax();
    return found != NULL;
}

/* In place of what was there; returns whether something was. */
static bool put_tag(wr_table *t, uint64_t key, uint64_t tag)
{
    cr_assert_eq(wr_table_reserve(t, tag), 0);
    struct item *item = item_new(key, tag);
    wr_table_node *found;
    wr_table_shard *shard = wr_table_lock(t, tag);
    wr_table_link *link = wr_table_seek(shard, tag, order, &key, &found);
    if (found == NULL) {
        wr_table_insert(shard, link, &item->node);
    } else {
        wr_table_replace(shard, link, &item->node);
        wr_retire_memory(&item_of(found)->retired, item_reclaim);
    }
    wr_table_unlock(shard);
    wr_retire_relax();
    return found != NULL;
}

static bool has_tag(wr_table *t, uint64_t key, uint64_t tag)
{
    wr_guard_enter();
    wr_table_node *node = wr_table_find(t, tag, match, &key);
    bool right = node == NULL || (item_of(node)->key == key && node->tag == tag);
    wr_guard_exit();
    cr_assert(right);
    return node != NULL;
}

static bool put(wr_table *t, uint64_t key)
{
    return put_tag(t, key, tag_of(key));
}

static bool take(wr_table *t, uint64_t key)
{
    return remove_tag(t, key, tag_of(key));
}

static bool has(wr_table *t, uint64_t key)
{
    return has_tag(t, key, tag_of(key));
}

static void table_free(wr_table *t)
{
    for (uint64_t i = 0; i <= t->shard_mask; i++) {
        uint64_t cursor = 0;
        wr_table_link *link;
        wr_table_lock_shard(&t->shard[i]);
        do {
            while ((link = wr_table_sweep(&t->shard[i], &cursor)) != NULL) {
                struct item *item = item_of(wr_atomic_load_relaxed(link));
                wr_table_unlink(&t->shard[i], link);
                wr_retire_memory(&item->retired, item_reclaim);
            }
        } while (cursor != 0);
        wr_table_unlock(&t->shard[i]);
    }
    cr_assert_eq(wr_table_count(t), 0);
    check(t);
    cr_assert_eq(wr_synchronize(), 0);
    wr_table_fini(t);
    free(t);
}

static size_t buckets_of(const wr_table_shard *shard)
{
    return (size_t)1 << (64 - wr_table_array_now(shard)->shift);
}

static bool is_moving(const wr_table_shard *shard)
{
    return wr_atomic_load_relaxed(&wr_table_array_now(shard)->next) != NULL;
}

/* ---- life ------------------------------------------------------------------------------------------------- */

Test(table, a_new_table_is_empty)
{
    wr_table *t = table_new(64, 0);
    cr_assert_eq(wr_table_count(t), 0);
    cr_assert(!has(t, 1));
    cr_assert(!take(t, 1));
    check(t);
    table_free(t);
}

Test(table, room_made_at_once_is_not_grown_into)
{
    wr_table *t = table_new(4, 4000);
    size_t before[4];
    for (unsigned i = 0; i < 4; i++)
        before[i] = buckets_of(&t->shard[i]);
    for (uint64_t key = 0; key < 3600; key++)
        put(t, key);
    for (unsigned i = 0; i < 4; i++)
        cr_assert_eq(buckets_of(&t->shard[i]), before[i]);
    table_free(t);
}

Test(table, shards_follow_the_size_asked_for)
{
    cr_assert_eq(wr_table_shards_for(0), 64);
    cr_assert_eq(wr_table_shards_for(1), 4);
    cr_assert_eq(wr_table_shards_for(SIZE_MAX), 64);
    cr_assert_geq(wr_table_shards_for(100), 4);
}

/* ---- contract --------------------------------------------------------------------------------------------- */

Test(table, what_was_put_is_found_and_what_was_taken_is_not)
{
    wr_table *t = table_new(64, 0);
    for (uint64_t key = 0; key < 1000; key++)
        cr_assert(!put(t, key));
    cr_assert_eq(wr_table_count(t), 1000);
    for (uint64_t key = 0; key < 1000; key += 2)
        cr_assert(take(t, key));
    for (uint64_t key = 0; key < 1000; key++)
        cr_assert_eq(has(t, key), key % 2 == 1);
    cr_assert_eq(wr_table_count(t), 500);
    check(t);
    table_free(t);
}

Test(table, replacing_keeps_the_count)
{
    wr_table *t = table_new(4, 0);
    cr_assert(!put(t, 7));
    cr_assert(put(t, 7));
    cr_assert_eq(wr_table_count(t), 1);
    table_free(t);
}

Test(table, nodes_with_one_tag_are_told_apart_at_every_size)
{
    enum { N = 200 };
    wr_table *t = table_new(4, 0);
    const uint64_t tags[] = {0, UINT64_C(0xff), UINT64_MAX, UINT64_C(1) << 63, UINT64_C(0x8000000000000100)};
    for (uint64_t key = 0; key < N; key++)
        for (size_t i = 0; i < sizeof tags / sizeof *tags; i++)
            cr_assert(!put_tag(t, (key * 77) % N, tags[i]));
    check(t);
    for (uint64_t key = 0; key < N; key++)
        for (size_t i = 0; i < sizeof tags / sizeof *tags; i++)
            cr_assert(has_tag(t, key, tags[i]));
    for (uint64_t key = 0; key < N; key++) {
        for (size_t i = 0; i < sizeof tags / sizeof *tags; i++) {
            cr_assert(remove_tag(t, key, tags[i]));
            cr_assert(!has_tag(t, key, tags[i]));
        }
    }
    check(t);
    table_free(t);
}

/* Puts it, as a dictionary does. Returns whether the shard is marked now. */
static bool put_and_harden(wr_table *t, uint64_t key, uint64_t tag)
{
    cr_assert(!put_tag(t, key, tag));
    wr_table_shard *shard = wr_table_lock(t, tag);
    wr_table_harden(shard, tag);
    wr_table_unlock(shard);
    return wr_table_is_hardened(shard);
}

/* One bucket is flooded; every so many-th key goes to another one, at any place in the round. */
Test(table, a_flooded_bucket_is_seen_whatever_comes_between)
{
    enum { MOST = 32 };
    for (unsigned every = 1; every <= 32; every++) {
        for (unsigned place = 0; place < every; place++) {
            wr_table *t = table_new(1, 0);
            unsigned n_crowd = 0;
            for (uint64_t key = 0; n_crowd <= MOST; key++) {
                bool elsewhere = every > 1 && key % every == place;
                uint64_t tag = elsewhere ? (2 * key + 1) << 48 | UINT64_C(1) << 63 : key << WR_TABLE_OWN_BITS;
                n_crowd += !elsewhere;
                if (put_and_harden(t, key, tag))
                    break;
            }
            cr_assert_leq(n_crowd, MOST, "every %u at %u", every, place);
            cr_assert_gt(n_crowd, 16, "every %u at %u", every, place);
            table_free(t);
        }
    }
}

Test(table, chance_is_no_flood)
{
    wr_table *t = table_new(1, 0);
    for (uint64_t key = 0; key < 20000; key++)
        cr_assert(!put_and_harden(t, key, tag_of(key)));
    table_free(t);
}

Test(table, exactly_this_node_is_unlinked)
{
    wr_table *t = table_new(4, 0);
    uint64_t tag = tag_of(1);
    struct item *mine = item_new(1, tag), *other = item_new(1, tag);
    cr_assert_eq(wr_table_reserve(t, tag), 0);
    wr_table_node *found;
    uint64_t key = 1;
    wr_table_shard *shard = wr_table_lock(t, tag);
    wr_table_link *link = wr_table_seek(shard, tag, order, &key, &found);
    wr_table_insert(shard, link, &mine->node);
    wr_table_replace(shard, link, &other->node);
    cr_assert(!wr_table_unlink_node(shard, &mine->node));
    cr_assert_eq(wr_atomic_load_relaxed(&shard->count), 1);
    cr_assert(wr_table_unlink_node(shard, &other->node));
    cr_assert_eq(wr_atomic_load_relaxed(&shard->count), 0);
    wr_table_unlock(shard);
    free(mine);
    free(other);
    table_free(t);
}

Test(table, the_version_tells_of_every_change_and_of_no_look)
{
    wr_table *t = table_new(4, 0);
    uint64_t tag = tag_of(5), version = wr_table_version(t, tag);
    cr_assert(!has(t, 5));
    cr_assert(!take(t, 5));
    cr_assert_eq(wr_table_version(t, tag), version);
    put(t, 5);
    cr_assert_neq(wr_table_version(t, tag), version);
    version = wr_table_version(t, tag);
    put(t, 5);
    cr_assert_neq(wr_table_version(t, tag), version);
    version = wr_table_version(t, tag);
    take(t, 5);
    cr_assert_neq(wr_table_version(t, tag), version);
    table_free(t);
}

Test(table, grows_and_shrinks_again_and_finds_all_at_every_step)
{
    enum { N = RACE_SIZE(20000, 4000) };
    wr_table *t = table_new(4, 0);
    size_t most = 0;
    unsigned moving = 0;
    for (uint64_t key = 0; key < N; key++) {
        put(t, key);
        moving += is_moving(&t->shard[0]);
        for (uint64_t back = 1; back <= key; back *= 3)
            cr_assert(has(t, key - back));
        cr_assert(!has(t, key + 1));
        if (key % 1000 == 0)
            check(t);
    }
    cr_assert_gt(moving, 0, "no look was taken at a table in mid-move");
    most = buckets_of(&t->shard[0]);
    cr_assert_geq(most, N / 4 / 2);
    moving = 0;
    for (uint64_t key = N; key-- > 0;) {
        cr_assert(take(t, key));
        moving += is_moving(&t->shard[0]);
        for (uint64_t back = 1; back <= key; back *= 3)
            cr_assert(has(t, key - back));
        cr_assert(!has(t, key));
        if (key % 1000 == 0)
            check(t);
    }
    cr_assert_gt(moving, 0);
    cr_assert_lt(buckets_of(&t->shard[0]), 100);
    cr_assert_eq(wr_table_count(t), 0);
    table_free(t);
}

Test(table, a_sweep_sees_each_lasting_node_once_in_order_across_resizes)
{
    enum { LASTING = 1500, MORE = 6000 };
    wr_table *t = table_new(4, 0);
    static unsigned seen[LASTING];
    uint64_t extra = LASTING;
    for (uint64_t key = 0; key < LASTING; key++)
        put(t, key);
    unsigned resizes = 0;
    for (unsigned i = 0; i < 4; i++) {
        wr_table_shard *shard = &t->shard[i];
        uint64_t cursor = 0, last = 0;
        bool more, growing = i % 2 == 0;
        do {
            wr_table_lock_shard(shard);
            size_t before = buckets_of(shard);
            wr_table_link *link = wr_table_sweep(shard, &cursor);
            more = link != NULL || cursor != 0;
            if (link != NULL) {
                struct item *item = item_of(wr_atomic_load_relaxed(link));
                cr_assert_geq(item->node.tag, last);
                last = item->node.tag;
                cursor = last + 1;
                if (item->key < LASTING)
                    seen[item->key]++;
            }
            wr_table_unlock(shard);
            for (unsigned j = 0; j < 5; j++) {
                if (growing && extra < LASTING + MORE)
                    put(t, extra++);
                else if (!growing && extra > LASTING)
                    take(t, --extra);
            }
            resizes += buckets_of(shard) != before;
        } while (more);
    }
    for (unsigned key = 0; key < LASTING; key++)
        cr_assert_eq(seen[key], 1, "key %u came %u times", key, seen[key]);
    cr_assert_gt(resizes, 0);
    table_free(t);
}

Test(table, random_operations_agree_with_an_array)
{
    enum { KEYS = 3000, OPERATIONS = RACE_SIZE(400000, 100000) };
    uint64_t random = race_seed();
    static bool oracle[KEYS];
    wr_table *t = table_new(4, 0);
    size_t n = 0;
    for (unsigned i = 0; i < OPERATIONS; i++) {
        uint64_t key = race_draw(&random) % KEYS, what = race_draw(&random) % 100;
        unsigned tide = i / (OPERATIONS / 8) % 2 ? 25 : 55; /* grows, shrinks, grows */
        if (what < tide) {
            cr_assert_eq(put(t, key), oracle[key]);
            n += !oracle[key];
            oracle[key] = true;
        } else if (what < 80) {
            cr_assert_eq(take(t, key), oracle[key]);
            n -= oracle[key];
            oracle[key] = false;
        } else {
            cr_assert_eq(has(t, key), oracle[key]);
        }
        cr_assert_eq(wr_table_count(t), n);
        if (i % 10000 == 0)
            check(t);
    }
    table_free(t);
}

/* ---- no memory -------------------------------------------------------------------------------------------- */

Test(table, without_memory_to_grow_chains_get_longer_and_growth_comes_later)
{
    fail_alloc_install();
    wr_table *t = table_new(4, 0);
    for (uint64_t key = 0; key < 100; key++)
        put(t, key);
    size_t before = buckets_of(&t->shard[0]);
    fail_alloc_all(true);
    for (uint64_t key = 100; key < 1000; key++)
        put(t, key);
    cr_assert(fail_alloc_hit());
    cr_assert_leq(buckets_of(&t->shard[0]), 2 * before);
    for (uint64_t key = 0; key < 1000; key++)
        cr_assert(has(t, key));
    fail_alloc_all(false);
    for (uint64_t key = 0; key < 1000; key++)
        cr_assert(put(t, key));
    cr_assert_gt(buckets_of(&t->shard[0]), 2 * before);
    check(t);
    table_free(t);
    cr_assert_eq(fail_alloc_live(), 0);
}

Test(table, the_first_array_and_the_room_made_at_once_can_fail)
{
    fail_alloc_install();
    wr_table *t = table_new(4, 0);
    fail_alloc_all(true);
    cr_assert_eq(wr_table_reserve(t, tag_of(1)), -ENOMEM);
    fail_alloc_all(false);
    cr_assert_eq(wr_table_reserve(t, tag_of(1)), 0);
    table_free(t);

    void *memory = NULL;
    cr_assert_eq(posix_memalign(&memory, 64, wr_table_size(4)), 0);
    for (long n = 1; n <= 4; n++) {
        fail_alloc_at(n);
        cr_assert_eq(wr_table_init(memory, 4, 1000), -ENOMEM);
        cr_assert(fail_alloc_hit());
    }
    free(memory);
    cr_assert_eq(fail_alloc_live(), 0);
}

/* ---- races ------------------------------------------------------------------------------------------------ */

struct tide {
    wr_table *t;
    uint64_t n_lasting, n_more;
    unsigned rounds;
    atomic_bool over;
    atomic_ulong looks;
    unsigned seed;
};

/* Every lasting key is found at every look, and what never was never is. */
static void *tide_reader(void *ctx)
{
    struct tide *tide = ctx;
    uint64_t random = race_seed() + atomic_fetch_add(&tide->looks, 1);
    unsigned long looks = 0;
    while (!atomic_load_explicit(&tide->over, memory_order_relaxed)) {
        wr_guard_enter();
        for (unsigned i = 0; i < 16; i++) {
            uint64_t key = race_draw(&random) % tide->n_lasting;
            wr_table_node *node = wr_table_find(tide->t, tag_of(key), match, &key);
            RACE_CHECK(node != NULL && item_of(node)->key == key);
            uint64_t never = UINT64_MAX - key;
            RACE_CHECK(wr_table_find(tide->t, tag_of(never), match, &never) == NULL);
        }
        wr_guard_exit();
        looks += 16;
    }
    atomic_fetch_add(&tide->looks, looks);
    return NULL;
}

/* Puts and takes keys of its own half, and replaces lasting ones now and then. */
static void *tide_writer(void *ctx)
{
    struct tide *tide = ctx;
    static atomic_uint writers;
    uint64_t base = tide->n_lasting + (atomic_fetch_add(&writers, 1) % 2) * tide->n_more;
    for (unsigned round = 0; round < tide->rounds; round++) {
        for (uint64_t i = 0; i < tide->n_more; i++) {
            RACE_CHECK(!put(tide->t, base + i));
            if (i % 4 == 0)
                RACE_CHECK(put(tide->t, i % tide->n_lasting));
        }
        for (uint64_t i = 0; i < tide->n_more; i++) {
            RACE_CHECK(take(tide->t, base + i));
            if (i % 4 == 0)
                RACE_CHECK(put(tide->t, i % tide->n_lasting));
        }
    }
    return NULL;
}

static void tide_run(unsigned n_shards, uint64_t n_lasting, uint64_t n_more, unsigned rounds)
{
    struct tide tide = {.t = table_new(n_shards, 0), .n_lasting = n_lasting, .n_more = n_more, .rounds = rounds};
    (void)race_seed();
    for (uint64_t key = 0; key < n_lasting; key++)
        put(tide.t, key);
    pthread_t readers[2], writers[2];
    for (unsigned i = 0; i < 2; i++)
        cr_assert_eq(pthread_create(&readers[i], NULL, tide_reader, &tide), 0);
    for (unsigned i = 0; i < 2; i++)
        cr_assert_eq(pthread_create(&writers[i], NULL, tide_writer, &tide), 0);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(writers[i], NULL);
    atomic_store(&tide.over, true);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(readers[i], NULL);
    cr_assert_gt(atomic_load(&tide.looks), 100);
    cr_assert_eq(wr_table_count(tide.t), n_lasting);
    check(tide.t);
    table_free(tide.t);
}

/* One shard of 4 to 256 buckets, over and over: nearly every look meets a move. */
Test(table, readers_miss_nothing_while_a_small_shard_grows_and_shrinks)
{
    tide_run(1, 20, 150, RACE_SIZE(1000, 60));
}

Test(table, readers_miss_nothing_from_one_to_a_hundred_thousand_and_back)
{
    tide_run(4, 1, RACE_SIZE(50000, 5000), RACE_SIZE(2, 1));
}

/* A chain of many lasting nodes that stay together up to 128 buckets, and are cut at 256 and at 512. */
enum { CHAIN = 32 };

static uint64_t chain_tag(uint64_t key)
{
    return key << 52 | 8;
}

static void *chain_reader(void *ctx)
{
    struct tide *tide = ctx;
    uint64_t random = race_seed() + atomic_fetch_add(&tide->looks, 1);
    unsigned long looks = 0;
    for (; !atomic_load_explicit(&tide->over, memory_order_relaxed); looks++) {
        uint64_t key = race_draw(&random) % CHAIN;
        wr_guard_enter();
        RACE_CHECK(wr_table_find(tide->t, chain_tag(key), match, &key) != NULL);
        wr_guard_exit();
    }
    atomic_fetch_add(&tide->looks, looks);
    return NULL;
}

Test(table, readers_of_a_long_chain_miss_nothing_while_it_is_cut_and_joined)
{
    struct tide tide = {.t = table_new(1, 0)};
    pthread_t reader;
    (void)race_seed();
    for (uint64_t key = 0; key < CHAIN; key++)
        put_tag(tide.t, key, chain_tag(key));
    cr_assert_eq(pthread_create(&reader, NULL, chain_reader, &tide), 0);
    for (unsigned round = 0; round < RACE_SIZE(600, 300); round++) {
        for (uint64_t key = CHAIN; key < CHAIN + 300; key++)
            put(tide.t, key);
        for (uint64_t key = CHAIN; key < CHAIN + 300; key++)
            cr_assert(take(tide.t, key));
    }
    atomic_store(&tide.over, true);
    pthread_join(reader, NULL);
    cr_assert_gt(atomic_load(&tide.looks), 100);
    cr_assert_eq(wr_table_count(tide.t), CHAIN);
    check(tide.t);
    table_free(tide.t);
}

/* Meets all of them, in order, at each walk. */
static void *chain_walker(void *ctx)
{
    struct tide *tide = ctx;
    unsigned long walks = 0;
    for (; !atomic_load_explicit(&tide->over, memory_order_relaxed); walks++) {
        uint64_t from = 0, next = 0;
        const uint64_t *at = NULL;
        wr_guard_enter();
        do {
            wr_table_node *node = wr_table_above(&tide->t->shard[0], &from, order, at);
            at = NULL;
            if (node == NULL)
                continue;
            struct item *item = item_of(node);
            RACE_CHECK(node->tag >= from);
            from = node->tag;
            at = &item->key;
            if (item->key < CHAIN)
                RACE_CHECK(item->key == next++);
        } while (from != 0 || at != NULL);
        RACE_CHECK(next == CHAIN);
        wr_guard_exit();
    }
    atomic_fetch_add(&tide->looks, walks);
    return NULL;
}

Test(table, walkers_of_a_long_chain_miss_nothing_while_it_is_cut_and_joined)
{
    struct tide tide = {.t = table_new(1, 0)};
    pthread_t walker;
    (void)race_seed();
    for (uint64_t key = 0; key < CHAIN; key++)
        put_tag(tide.t, key, chain_tag(key));
    cr_assert_eq(pthread_create(&walker, NULL, chain_walker, &tide), 0);
    for (unsigned round = 0; round < RACE_SIZE(600, 300); round++) {
        for (uint64_t key = CHAIN; key < CHAIN + 300; key++)
            put(tide.t, key);
        for (uint64_t key = CHAIN; key < CHAIN + 300; key++)
            cr_assert(take(tide.t, key));
    }
    atomic_store(&tide.over, true);
    pthread_join(walker, NULL);
    cr_assert_gt(atomic_load(&tide.looks), 100);
    table_free(tide.t);
}

struct duel {
    wr_table *t;
    uint64_t tag;
};

static void duel_put(void *ctx)
{
    struct duel *duel = ctx;
    (void)put_tag(duel->t, 1, duel->tag);
}

/* Takes less time than a put: tries some more. */
static void duel_take(void *ctx)
{
    struct duel *duel = ctx;
    for (unsigned i = 0; i < 30; i++)
        if (remove_tag(duel->t, 1, duel->tag))
            return;
}

static unsigned duel_judge(void *ctx)
{
    struct duel *duel = ctx;
    bool there = has_tag(duel->t, 1, duel->tag);
    RACE_CHECK(wr_table_count(duel->t) == (there ? 1 : 0));
    if (there)
        (void)remove_tag(duel->t, 1, duel->tag);
    return there ? 1 : 0;
}

Test(table, put_beside_take_of_one_key)
{
    struct duel duel = {.t = table_new(4, 0), .tag = tag_of(1)};
    const struct race race = {.name = "put beside take",
                              .sides = {duel_put, duel_take},
                              .judge = duel_judge,
                              .outcomes = {"take after", "put after"},
                              .ctx = &duel};
    cr_assert(race_run(&race));
    table_free(duel.t);
}
