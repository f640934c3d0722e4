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
