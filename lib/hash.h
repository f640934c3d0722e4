/* F2 hash: a fast keyed hash of bytes, and the random keys for it.
 *
 * Words of the input, each hidden by a secret or by what came before, are multiplied pairwise to 128 bits, and the two
 * halves of the product are folded together. (The idea of folding a wide product is that of MUM hash and wyhash; the
 * arrangement is our own.) A word that equals what hides it makes a product of zero and its partner does not count;
 * so every word is hidden by a part of the key, and an outsider meets that with a chance of 2^-64 per word.
 *
 * Short inputs are read by two overlapping loads at their ends, so that no byte is looped over. The value depends on
 * the byte order of the machine: it never leaves the process.
 *
 * Limits: good against chance and against those who cannot see the effects of their keys; it is not a cipher. Against
 * crafted keys stands SipHash.
 */
#ifndef WR_LIB_HASH_H
#define WR_LIB_HASH_H

#include <weakref/types.h>

#include <string.h>

typedef struct wr_hash_key {
    uint64_t k[2];
} wr_hash_key;

/* A fresh key: from getrandom(2), or where that is refused or not ready, mixed from clocks and addresses. */
wr_hash_key wr_hash_key_random(void);

/* SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", INDOCRYPT 2012): some times slower, and nobody is
 * known to find collisions without the key, whatever is seen of their effects. */
uint64_t wr_hash_sip13(const wr_hash_key *key, const void *data, size_t size);

/* The same with so many rounds for each word and at the end, for tests: the paper has values for 2 and 4. */
uint64_t wr_hash_sip(const wr_hash_key *key, const void *data, size_t size, unsigned rounds, unsigned last_rounds);

/* For more than 32 bytes; wr_hash_bytes() calls it. */
uint64_t wr_hash_long(const wr_hash_key *key, const void *data, size_t size);

/* Odd, with about as many ones as zeros in each byte; from the digits of the golden ratio, of e and of pi. */
#define WR_HASH_PHI UINT64_C(0x9e3779b97f4a7c15)
#define WR_HASH_E UINT64_C(0xadf85458a2bb4a9b)
#define WR_HASH_PI UINT64_C(0xc90fdaa22168c235)

static inline uint64_t wr_hash_load64(const unsigned char *p)
{
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

static inline uint64_t wr_hash_load32(const unsigned char *p)
{
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

/* The halves of the 128-bit product, folded. */
static inline uint64_t wr_hash_fold(uint64_t a, uint64_t b)
{
#ifdef __SIZEOF_INT128__
    __extension__ unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
#else
    uint64_t low = (a & UINT32_MAX) * (b & UINT32_MAX), high = (a >> 32) * (b >> 32);
    uint64_t one = (a >> 32) * (b & UINT32_MAX), two = (a & UINT32_MAX) * (b >> 32);
    uint64_t middle = (low >> 32) + (one & UINT32_MAX) + (two & UINT32_MAX);
    low = (low & UINT32_MAX) | middle << 32;
    high += (one >> 32) + (two >> 32) + (middle >> 32);
    return low ^ high;
#endif
}

/* What ends every hash: all 64 bits depend on all that went in. The size parts inputs that the overlapping loads
 * read alike. */
static inline uint64_t wr_hash_finish(const wr_hash_key *key, uint64_t h, size_t size)
{
    return wr_hash_fold(h ^ key->k[1], (uint64_t)size ^ WR_HASH_PI);
}

/* All 64 bits are well mixed: a table may take its bucket from the top and other choices from below. */
static inline uint64_t wr_hash_bytes(const wr_hash_key *key, const void *data, size_t size)
{
    const unsigned char *p = (const unsigned char *)data;
    uint64_t a, b, h;
    if (size <= 16) {
        if (size >= 8) {
            a = wr_hash_load64(p);
            b = wr_hash_load64(p + size - 8);
        } else if (size >= 4) {
            a = wr_hash_load32(p);
            b = wr_hash_load32(p + size - 4);
        } else if (size > 0) {
            a = (uint64_t)p[0] << 16 | (uint64_t)p[size / 2] << 8 | p[size - 1];
            b = 0;
        } else {
            a = b = 0;
        }
    } else if (size <= 32) {
        /* Side by side, then multiplied: were they xored, halves that make one product would cancel out whatever the key is. */
        h = wr_hash_fold(wr_hash_load64(p) ^ key->k[0], wr_hash_load64(p + 8) ^ key->k[1] ^ WR_HASH_PHI);
        a = wr_hash_fold(wr_hash_load64(p + size - 16) ^ key->k[1],
                         wr_hash_load64(p + size - 8) ^ key->k[0] ^ WR_HASH_E);
        return wr_hash_fold(h ^ key->k[1], a ^ (uint64_t)size ^ WR_HASH_PI);
    } else {
        return wr_hash_long(key, data, size);
    }
    h = wr_hash_fold(a ^ key->k[0], b ^ key->k[1] ^ WR_HASH_PHI);
    return wr_hash_finish(key, h, size);
}

#endif
