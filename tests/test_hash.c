/* Tests of the keyed hash: every length, every bit, and keys as programs have them. */
#include "hash.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static const wr_hash_key key = {{UINT64_C(0x0123456789abcdef), UINT64_C(0xfedcba9876543210)}};

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static size_t count_twins(uint64_t *hashes, size_t n)
{
    size_t twins = 0;
    qsort(hashes, n, sizeof *hashes, compare_u64);
    for (size_t i = 1; i < n; i++)
        twins += hashes[i] == hashes[i - 1];
    return twins;
}

static unsigned ones(uint64_t bits)
{
    return (unsigned)__builtin_popcountll(bits);
}

Test(hash, same_bytes_have_the_same_hash_wherever_they_lie)
{
    unsigned char room[256 + 8 + 8];
    for (size_t size = 0; size <= 256; size++) {
        uint64_t first = 0;
        for (size_t at = 0; at < 8; at++) {
            memset(room, (int)(at * 31 + 1), sizeof room);
            for (size_t i = 0; i < size; i++)
                room[at + i] = (unsigned char)(i * 7 + 3);
            uint64_t h = wr_hash_bytes(&key, room + at, size);
            if (at == 0)
                first = h;
            cr_assert_eq(h, first, "size %zu at %zu", size, at);
        }
    }
}

Test(hash, reads_no_byte_outside)
{
    for (size_t size = 0; size <= 256; size++) {
        unsigned char *exact = malloc(size ? size : 1); /* the address sanitizer watches its ends */
        memset(exact, 0x5a, size);
        (void)wr_hash_bytes(&key, exact, size);
        free(exact);
    }
    (void)wr_hash_bytes(&key, NULL, 0);
}

Test(hash, each_bit_of_each_length_counts)
{
    unsigned char bytes[257];
    for (size_t size = 1; size <= 256; size++) {
        memset(bytes, 0, sizeof bytes);
        uint64_t plain = wr_hash_bytes(&key, bytes, size);
        for (size_t bit = 0; bit < size * 8; bit++) {
            bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
            uint64_t other = wr_hash_bytes(&key, bytes, size);
            bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
            unsigned changed = ones(plain ^ other);
            cr_assert(changed >= 8 && changed <= 56, "size %zu bit %zu changes %u bits", size, bit, changed);
        }
    }
}

Test(hash, avalanche_every_input_bit_flips_every_output_bit_half_the_time)
{
    enum { TRIALS = 4000 };
    const size_t sizes[] = {1, 3, 4, 7, 8, 12, 16, 17, 23, 32, 33, 48, 49, 64, 100};
    uint64_t random = 42;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        size_t size = sizes[s];
        static unsigned flips[800][64];
        memset(flips, 0, sizeof flips);
        size_t step = size > 16 ? 5 : 1; /* not every bit of the long ones: time */
        for (unsigned t = 0; t < TRIALS; t++) {
            unsigned char bytes[104];
            for (size_t i = 0; i < sizeof bytes; i += 8) {
                random = random * UINT64_C(6364136223846793005) + 1442695040888963407u;
                uint64_t word = random ^ random >> 29;
                memcpy(bytes + i, &word, 8);
            }
            uint64_t plain = wr_hash_bytes(&key, bytes, size);
            for (size_t bit = t % step; bit < size * 8; bit += step) {
                bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
                uint64_t changed = plain ^ wr_hash_bytes(&key, bytes, size);
                bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
                for (unsigned out = 0; out < 64; out++)
                    flips[bit][out] += (unsigned)(changed >> out & 1);
            }
        }
        for (size_t bit = 0; bit < size * 8; bit++)
            for (unsigned out = 0; out < 64; out++) {
                double share = (double)flips[bit][out] * (double)step / TRIALS;
                double slack = size > 16 ? 0.10 : 0.045; /* about 5.6 standard deviations */
                /* One byte has 256 values: the trials repeat themselves. */
                if (size < 3)
                    slack = 0.25;
                cr_assert(share > 0.5 - slack && share < 0.5 + slack, "size %zu: bit %zu flips output %u in %.3f", size,
                          bit, out, share);
            }
    }
}

/* Chi-squared over 256 cells; 255 degrees of freedom: mean 255, deviation 22.6. */
static double chi_squared(const uint64_t *hashes, size_t n, unsigned shift)
{
    size_t cells[256] = {0};
    double expected = (double)n / 256, sum = 0;
    for (size_t i = 0; i < n; i++)
        cells[hashes[i] >> shift & 255]++;
    for (unsigned i = 0; i < 256; i++)
        sum += ((double)cells[i] - expected) * ((double)cells[i] - expected) / expected;
    return sum;
}

static void check_spread(const char *what, uint64_t *hashes, size_t n)
{
    for (unsigned shift = 0; shift <= 56; shift += 8) {
        double chi = chi_squared(hashes, n, shift);
        cr_assert(chi < 255 + 6 * 22.6, "%s: bits from %u: chi squared %.0f", what, shift, chi);
    }
    cr_assert_eq(count_twins(hashes, n), 0, "%s: twins", what);
}

enum { KEYS = 200000 };

Test(hash, spreads_counting_integers)
{
    uint64_t *hashes = malloc(KEYS * sizeof *hashes);
    for (uint64_t stride = 1; stride != 0; stride <<= 9) {
        for (uint64_t i = 0; i < KEYS; i++) {
            uint64_t number = i * stride;
            if (stride > UINT64_C(1) << 46)
                number = i << 46;
            hashes[i] = wr_hash_bytes(&key, &number, sizeof number);
        }
        check_spread("integers", hashes, KEYS);
    }
    free(hashes);
}

Test(hash, spreads_strings_that_differ_by_a_number)
{
    uint64_t *hashes = malloc(KEYS * sizeof *hashes);
    const char *formats[] = {"%u", "key-%u", "/usr/share/doc/%u/changelog",
                             "%u/the/end/of/a/path/that/is/long/enough.txt"};
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        for (unsigned i = 0; i < KEYS; i++) {
            char text[80];
            int size = snprintf(text, sizeof text, formats[f], i);
            hashes[i] = wr_hash_bytes(&key, text, (size_t)size);
        }
        check_spread(formats[f], hashes, KEYS);
    }
    free(hashes);
}

Test(hash, tells_runs_of_zeros_by_their_length)
{
    static unsigned char zeros[4097];
    uint64_t hashes[4097];
    for (size_t size = 0; size <= 4096; size++)
        hashes[size] = wr_hash_bytes(&key, zeros, size);
    cr_assert_eq(count_twins(hashes, 4097), 0);
}

Test(hash, constants_in_the_input_swallow_nothing)
{
    /* A word equal to one of the public constants must not make its partner irrelevant. */
    const uint64_t constants[] = {0, ~UINT64_C(0), WR_HASH_PHI, WR_HASH_E, WR_HASH_PI};
    enum { N = sizeof constants / sizeof *constants };
    for (size_t words = 1; words <= 12; words++)
        for (size_t at = 0; at < words; at++)
            for (size_t c = 0; c < N; c++) {
                uint64_t hashes[256], input[12] = {0};
                for (unsigned v = 0; v < 256; v++) {
                    for (size_t w = 0; w < words; w++)
                        input[w] = v * WR_HASH_E;
                    input[at] = words > 1 ? constants[c] : v;
                    hashes[v] = wr_hash_bytes(&key, input, words * 8);
                }
                cr_assert_eq(count_twins(hashes, 256), 0, "%zu words, constant %zu at %zu", words, c, at);
            }
}

Test(hash, halves_that_make_one_product_do_not_cancel_out)
{
    const wr_hash_key fresh = wr_hash_key_random();
    for (size_t size = 16; size <= 64; size += 16) {
        uint64_t first = 0;
        unsigned same = 0;
        for (uint64_t i = 0; i < 1000; i++) {
            const uint64_t x = i * WR_HASH_PI, y = i * WR_HASH_E;
            const uint64_t words[8] = {x, y, x ^ WR_HASH_E, y ^ WR_HASH_PHI, x ^ WR_HASH_PI, y ^ WR_HASH_PHI, x, y};
            uint64_t hash = wr_hash_bytes(&fresh, words, size);
            if (i == 0)
                first = hash;
            else
                same += hash == first;
        }
        cr_assert_eq(same, 0, "size %zu: %u", size, same);
    }
}

Test(hash, another_key_is_another_hash)
{
    char text[40];
    memset(text, 'x', sizeof text);
    for (size_t size = 0; size <= sizeof text; size++) {
        uint64_t hashes[128];
        for (unsigned bit = 0; bit < 128; bit++) {
            wr_hash_key other = key;
            other.k[bit / 64] ^= UINT64_C(1) << bit % 64;
            hashes[bit] = wr_hash_bytes(&other, text, size);
        }
        cr_assert_eq(count_twins(hashes, 128), 0, "size %zu", size);
    }
}

Test(hash, random_keys_differ_and_leave_errno_alone)
{
    enum { N = 1000 };
    uint64_t words[2 * N];
    errno = 77;
    for (unsigned i = 0; i < N; i++) {
        wr_hash_key random = wr_hash_key_random();
        words[2 * i] = random.k[0];
        words[2 * i + 1] = random.k[1];
    }
    cr_assert_eq(errno, 77);
    cr_assert_eq(count_twins(words, 2 * N), 0);
}

Test(hash, siphash_is_that_of_the_paper)
{
    const wr_hash_key sip = {{UINT64_C(0x0706050403020100), UINT64_C(0x0f0e0d0c0b0a0908)}};
    unsigned char bytes[64];
    for (unsigned i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)i;
    cr_assert_eq(wr_hash_sip(&sip, bytes, 15, 2, 4), UINT64_C(0xa129ca6149be45e5));
    cr_assert_eq(wr_hash_sip(&sip, bytes, 0, 2, 4), UINT64_C(0x726fdb47dd0e0e31));
    cr_assert_eq(wr_hash_sip13(&sip, bytes, 0), UINT64_C(0xabac0158050fc4dc));
    cr_assert_eq(wr_hash_sip13(&sip, bytes, 1), UINT64_C(0xc9f49bf37d57ca93));
    /* Every byte counts. */
    for (size_t size = 1; size <= sizeof bytes; size++) {
        uint64_t before = wr_hash_sip13(&sip, bytes, size);
        for (size_t i = 0; i < size; i++) {
            bytes[i] ^= 0x80;
            cr_assert_neq(wr_hash_sip13(&sip, bytes, size), before);
            bytes[i] ^= 0x80;
        }
    }
}
