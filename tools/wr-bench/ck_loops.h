/* wr-bench: loops around ConcurrencyKit, whose headers are not C++. */
#ifndef WR_BENCH_CK_LOOPS_H
#define WR_BENCH_CK_LOOPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ck_loops_reader; /* a thread's record of the one ck_epoch */
struct ck_loops_reader *ck_loops_reader_new(void);
void ck_loops_reader_free(struct ck_loops_reader *reader);

/* @n times: into a section, a load of *@word, out. */
void ck_loops_sections(struct ck_loops_reader *reader, void *const *word, size_t n);

enum ck_loops_kind {
    CK_LOOPS_HT,        /* ck_ht in a section of ck_epoch */
    CK_LOOPS_HT_LOCKED, /* under a ck_spinlock */
    CK_LOOPS_HS,        /* ck_hs in a section */
    CK_LOOPS_N
};

/* Size 0: the key is the number, else so many bytes. */
struct ck_loops_key {
    const void *data;
    size_t size;
    uint64_t number;
};

struct ck_loops_map;
struct ck_loops_map *ck_loops_map_new(enum ck_loops_kind kind, bool numbers, size_t n);
void ck_loops_map_free(struct ck_loops_map *map);
void ck_loops_map_set(struct ck_loops_map *map, const struct ck_loops_key *key, void *value); /* copies the key */

/* Look-ups of the keys order[i & mask], ..., @n of them. */
void ck_loops_look(struct ck_loops_map *map, struct ck_loops_reader *reader, const struct ck_loops_key *order,
                   size_t mask, uint64_t i, size_t n);

/* The hash of the C++ library. */
size_t ck_loops_hash(const void *data, size_t size);

#ifdef __cplusplus
}
#endif

#endif
