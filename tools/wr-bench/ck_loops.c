/* wr-bench: loops around ConcurrencyKit. */
#include "ck_loops.h"

#include <ck_epoch.h>
#include <ck_hs.h>
#include <ck_ht.h>
#include <ck_spinlock.h>
#include <stdlib.h>
#include <string.h>

static void keep(const void *value)
{
    __asm__ volatile("" : : "r,m"(value) : "memory");
}

/* ---- sections -------------------------------------------------------------------------------------------- */

struct ck_loops_reader {
    ck_epoch_record_t record;
};

static ck_epoch_t epoch = {.epoch = 1};

struct ck_loops_reader *ck_loops_reader_new(void)
{
    ck_epoch_record_t *record = ck_epoch_recycle(&epoch, NULL);
    if (record == NULL) {
        record = aligned_alloc(_Alignof(ck_epoch_record_t), sizeof *record);
        if (record == NULL)
            abort();
        ck_epoch_register(&epoch, record, NULL);
    }
    return (struct ck_loops_reader *)record;
}

/* For the next thread: the epoch keeps its records. */
void ck_loops_reader_free(struct ck_loops_reader *reader)
{
    ck_epoch_unregister(&reader->record);
}

void ck_loops_sections(struct ck_loops_reader *reader, void *const *word, size_t n)
{
    for (size_t k = 0; k < n; k++) {
        ck_epoch_begin(&reader->record, NULL);
        keep(ck_pr_load_ptr(word));
        ck_epoch_end(&reader->record, NULL);
    }
}

/* ---- maps ------------------------------------------------------------------------------------------------ */

/* What a ck_hs points to, and who owns the copy of a key. */
struct item {
    struct ck_loops_key key;
    void *value;
};

struct ck_loops_map {
    enum ck_loops_kind kind;
    bool numbers;
    ck_spinlock_t lock;
    ck_ht_t ht;
    ck_hs_t hs;
    struct item *items;
    size_t n_items;
};

static void *get_memory(size_t size)
{
    return malloc(size);
}

static void free_memory(void *memory, size_t size, bool defer)
{
    (void)size;
    (void)defer; /* nobody reads while the map is filled */
    free(memory);
}

static struct ck_malloc allocator = {.malloc = get_memory, .free = free_memory};

static unsigned long hash_bytes(const void *item, unsigned long seed)
{
    const struct ck_loops_key *key = item;
    (void)seed;
    return ck_loops_hash(key->data, key->size);
}

static bool same_bytes(const void *a, const void *b)
{
    const struct ck_loops_key *one = a, *other = b;
    return one->size == other->size && memcmp(one->data, other->data, one->size) == 0;
}

static unsigned long hash_number(const void *item, unsigned long seed)
{
    const struct ck_loops_key *key = item;
    uint64_t hash = key->number * UINT64_C(0x9e3779b97f4a7c15);
    (void)seed;
    return hash ^ hash >> 32;
}

static bool same_number(const void *a, const void *b)
{
    return ((const struct ck_loops_key *)a)->number == ((const struct ck_loops_key *)b)->number;
}

struct ck_loops_map *ck_loops_map_new(enum ck_loops_kind kind, bool numbers, size_t n)
{
    struct ck_loops_map *map = calloc(1, sizeof *map);
    bool made;
    if (map == NULL || (map->items = calloc(n, sizeof *map->items)) == NULL)
        abort();
    map->kind = kind;
    map->numbers = numbers;
    ck_spinlock_init(&map->lock);
    if (kind == CK_LOOPS_HS)
        made = ck_hs_init(&map->hs, CK_HS_MODE_SPMC | CK_HS_MODE_OBJECT, numbers ? hash_number : hash_bytes,
                          numbers ? same_number : same_bytes, &allocator, 2 * n, 1);
    else
        made = ck_ht_init(&map->ht, numbers ? CK_HT_MODE_DIRECT : CK_HT_MODE_BYTESTRING, NULL, &allocator, 2 * n, 1);
    if (!made)
        abort();
    return map;
}

void ck_loops_map_free(struct ck_loops_map *map)
{
    if (map->kind == CK_LOOPS_HS)
        ck_hs_destroy(&map->hs);
    else
        ck_ht_destroy(&map->ht);
    for (size_t i = 0; i < map->n_items; i++)
        free((void *)map->items[i].key.data);
    free(map->items);
    free(map);
}

void ck_loops_map_set(struct ck_loops_map *map, const struct ck_loops_key *key, void *value)
{
    ck_ht_entry_t entry;
    ck_ht_hash_t hash;
    bool done;
    struct item *item = &map->items[map->n_items++];
    item->key = *key;
    item->value = value;
    if (key->size > 0) {
        void *copy = malloc(key->size);
        if (copy == NULL)
            abort();
        item->key.data = memcpy(copy, key->data, key->size);
    }
    if (map->kind == CK_LOOPS_HS) {
        done = ck_hs_put(&map->hs, map->numbers ? hash_number(item, 0) : hash_bytes(item, 0), item);
    } else if (map->numbers) {
        ck_ht_hash_direct(&hash, &map->ht, key->number);
        ck_ht_entry_set_direct(&entry, hash, key->number, (uintptr_t)value);
        done = ck_ht_put_spmc(&map->ht, hash, &entry);
    } else {
        ck_ht_hash(&hash, &map->ht, key->data, (uint16_t)key->size);
        ck_ht_entry_set(&entry, hash, item->key.data, (uint16_t)key->size, value);
        done = ck_ht_put_spmc(&map->ht, hash, &entry);
    }
    if (!done)
        abort();
}

static inline void *ht_get(struct ck_loops_map *map, bool numbers, const struct ck_loops_key *key)
{
    ck_ht_entry_t entry;
    ck_ht_hash_t hash;
    if (numbers) {
        ck_ht_hash_direct(&hash, &map->ht, key->number);
        ck_ht_entry_key_set_direct(&entry, key->number);
        return ck_ht_get_spmc(&map->ht, hash, &entry) ? (void *)ck_ht_entry_value_direct(&entry) : NULL;
    }
    ck_ht_hash(&hash, &map->ht, key->data, (uint16_t)key->size);
    ck_ht_entry_key_set(&entry, key->data, (uint16_t)key->size);
    return ck_ht_get_spmc(&map->ht, hash, &entry) ? ck_ht_entry_value(&entry) : NULL;
}

static inline void *hs_get(struct ck_loops_map *map, bool numbers, const struct ck_loops_key *key)
{
    const struct item *item = ck_hs_get(&map->hs, numbers ? hash_number(key, 0) : hash_bytes(key, 0), key);
    return item == NULL ? NULL : item->value;
}

/* Made anew for each constant kind and numbers. */
static inline __attribute__((always_inline)) void look(struct ck_loops_map *map, enum ck_loops_kind kind, bool numbers,
                                                       struct ck_loops_reader *reader, const struct ck_loops_key *order,
                                                       size_t mask, uint64_t i, size_t n)
{
    for (size_t k = 0; k < n; k++, i++) {
        const struct ck_loops_key *key = &order[i & mask];
        void *value;
        if (kind == CK_LOOPS_HT_LOCKED) {
            ck_spinlock_lock(&map->lock);
            value = ht_get(map, numbers, key);
            ck_spinlock_unlock(&map->lock);
        } else {
            ck_epoch_begin(&reader->record, NULL);
            value = kind == CK_LOOPS_HS ? hs_get(map, numbers, key) : ht_get(map, numbers, key);
            ck_epoch_end(&reader->record, NULL);
        }
        keep(value);
    }
}

void ck_loops_look(struct ck_loops_map *map, struct ck_loops_reader *reader, const struct ck_loops_key *order,
                   size_t mask, uint64_t i, size_t n)
{
    if (map->kind == CK_LOOPS_HT && map->numbers)
        look(map, CK_LOOPS_HT, true, reader, order, mask, i, n);
    else if (map->kind == CK_LOOPS_HT)
        look(map, CK_LOOPS_HT, false, reader, order, mask, i, n);
    else if (map->kind == CK_LOOPS_HS && map->numbers)
        look(map, CK_LOOPS_HS, true, reader, order, mask, i, n);
    else if (map->kind == CK_LOOPS_HS)
        look(map, CK_LOOPS_HS, false, reader, order, mask, i, n);
    else if (map->numbers)
        look(map, CK_LOOPS_HT_LOCKED, true, reader, order, mask, i, n);
    else
        look(map, CK_LOOPS_HT_LOCKED, false, reader, order, mask, i, n);
}
