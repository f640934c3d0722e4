/* F2 hash: a fast keyed hash of bytes, and the random keys for it. */
#ifndef WR_LIB_HASH_H
#define WR_LIB_HASH_H

#include <weakref/types.h>

typedef struct wr_hash_key {
    uint64_t k[2];
} wr_hash_key;

/* A fresh key from getrandom(2). */
wr_hash_key wr_hash_key_random(void);

/* All 64 bits are well mixed: the top ones choose a bucket. */
uint64_t wr_hash_bytes(const wr_hash_key *key, const void *data, size_t size);

#endif
