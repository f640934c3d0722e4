/* F2 hash: long inputs, and where keys come from. */
#include "hash.h"

#include <errno.h>
#include <sys/random.h>
#include <time.h>

uint64_t wr_hash_long(const wr_hash_key *key, const void *data, size_t size)
{
    const unsigned char *p = (const unsigned char *)data;
    const uint64_t s[3] = {key->k[1] ^ WR_HASH_PHI, key->k[1] ^ WR_HASH_E, key->k[1] ^ WR_HASH_PI};
    uint64_t h[3] = {key->k[0], key->k[0] ^ WR_HASH_E, key->k[0] ^ WR_HASH_PI};
    size_t left = size;

    /* Three lanes of 16 bytes, since one multiplication takes longer than it takes to begin the next. */
    for (; left > 48; p += 48, left -= 48)
        for (unsigned i = 0; i < 3; i++)
            h[i] = wr_hash_fold(wr_hash_load64(p + 16 * i) ^ h[i], wr_hash_load64(p + 16 * i + 8) ^ s[i]);
    for (; left > 16; p += 16, left -= 16)
        h[0] = wr_hash_fold(wr_hash_load64(p) ^ h[0], wr_hash_load64(p + 8) ^ s[0]);
    /* The last 16 bytes, which may overlap what was read: there are more than 32. */
    p -= 16 - left;
    uint64_t last = wr_hash_fold(wr_hash_load64(p) ^ s[1], wr_hash_load64(p + 8) ^ h[0]);
    return wr_hash_finish(key, last ^ wr_hash_fold(h[1] ^ s[2], h[2] ^ s[0]), size);
}

static inline uint64_t rotate(uint64_t x, unsigned bits)
{
    return x << bits | x >> (64 - bits);
}

static inline void sip_round(uint64_t *v)
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

static inline void sip_word(uint64_t *v, uint64_t word, unsigned rounds)
{
    v[3] ^= word;
    for (unsigned i = 0; i < rounds; i++)
        sip_round(v);
    v[0] ^= word;
}

/* Little-endian, as the paper has it, so that its values hold everywhere. */
static inline uint64_t sip_load(const unsigned char *p, size_t n)
{
    uint64_t word = 0;
    for (size_t i = 0; i < n; i++)
        word |= (uint64_t)p[i] << (8 * i);
    return word;
}

uint64_t wr_hash_sip(const wr_hash_key *key, const void *data, size_t size, unsigned rounds, unsigned last_rounds)
{
    const unsigned char *p = (const unsigned char *)data;
    uint64_t v[4] = {key->k[0] ^ UINT64_C(0x736f6d6570736575), key->k[1] ^ UINT64_C(0x646f72616e646f6d),
                     key->k[0] ^ UINT64_C(0x6c7967656e657261), key->k[1] ^ UINT64_C(0x7465646279746573)};
    size_t left = size;
    for (; left >= 8; p += 8, left -= 8)
        sip_word(v, sip_load(p, 8), rounds);
    sip_word(v, sip_load(p, left) | (uint64_t)size << 56, rounds);
    v[2] ^= 0xff;
    for (unsigned i = 0; i < last_rounds; i++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

uint64_t wr_hash_sip13(const wr_hash_key *key, const void *data, size_t size)
{
    return wr_hash_sip(key, data, size, 1, 3);
}

/* Where the kernel gives nothing: unlike from run to run and from call to call, but to be guessed. */
static void key_from_surroundings(wr_hash_key *key)
{
    static const char anchor;
    struct timespec real, cpu;
    clock_gettime(CLOCK_REALTIME, &real);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
    uint64_t time = (uint64_t)real.tv_sec << 30 ^ (uint64_t)real.tv_nsec;
    uint64_t place = (uint64_t)(uintptr_t)&real << 24 ^ (uint64_t)(uintptr_t)&anchor;
    key->k[0] = wr_hash_fold(time ^ WR_HASH_PHI, place ^ WR_HASH_E);
    key->k[1] = wr_hash_fold((uint64_t)cpu.tv_nsec ^ key->k[0], (uint64_t)(uintptr_t)key ^ time ^ WR_HASH_PI);
}

wr_hash_key wr_hash_key_random(void)
{
    wr_hash_key key = {{0, 0}};
    ssize_t n;
    int saved = errno;
    do
        n = getrandom(&key, sizeof key, GRND_NONBLOCK);
    while (n < 0 && errno == EINTR);
    if (n != (ssize_t)sizeof key)
        key_from_surroundings(&key);
    errno = saved;
    return key;
}
