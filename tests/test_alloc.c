/* Tests of the allocator hook. */
#include "alloc.h"
#include "expect.h"
#include "fail_alloc.h"

#include <weakref/object.h>
#include <weakref/weak.h>

static const wr_type plain_type = {.name = "plain", .size = 100};
static const wr_type aligned_type = {.name = "aligned", .size = 100, .align = 64};

/* ---- malloc ----------------------------------------------------------------------------------------------- */

Test(alloc, memory_is_aligned_for_anything)
{
    for (size_t size = 0; size < 300; size++) {
        void *a = wr_alloc(size), *b = wr_alloc_zero(size);
        cr_assert_not_null(a);
        cr_assert_not_null(b);
        cr_assert_eq((uintptr_t)a % _Alignof(max_align_t), 0);
        cr_assert_eq((uintptr_t)b % _Alignof(max_align_t), 0);
        memset(a, 0xff, size);
        wr_free(a);
        wr_free(b);
    }
    wr_free(NULL);
}

Test(alloc, zeroed_memory_is_zeroed_whatever_was_there)
{
    for (size_t size = 1; size < 10000; size += size < 2100 ? 13 : 1001)
        for (unsigned i = 0; i < 3; i++) {
            unsigned char *p = wr_alloc_zero(size);
            for (size_t at = 0; at < size; at++)
                cr_assert_eq(p[at], 0, "byte %zu of %zu", at, size);
            memset(p, 0xff, size);
            wr_free(p);
        }
}

Test(alloc, aligned_memory_is_aligned)
{
    for (size_t align = 1; align <= 65536; align *= 2)
        for (size_t size = 1; size < 5000; size = size * 3 + 1) {
            unsigned char *p = wr_alloc_aligned(align, size);
            cr_assert_not_null(p);
            cr_assert_eq((uintptr_t)p % align, 0, "align %zu size %zu", align, size);
            memset(p, 0xff, size);
            wr_free(p);
        }
}

Test(alloc, aligned_size_that_overflows_is_null)
{
    cr_assert_null(wr_alloc_aligned(4096, SIZE_MAX));
    cr_assert_null(wr_alloc_aligned(4096, SIZE_MAX - 4094));
}

/* ---- the hook --------------------------------------------------------------------------------------------- */

struct arena {
    unsigned allocs, frees;
    size_t last_size, last_align;
};

static void *arena_alloc(size_t size, size_t align, void *ctx)
{
    struct arena *arena = ctx;
    arena->allocs++;
    arena->last_size = size;
    arena->last_align = align;
    void *p = NULL;
    if (posix_memalign(&p, align, size) != 0)
        return NULL;
    memset(p, 0x5a, size); /* what comes is not zero */
    return p;
}

static void arena_free(void *memory, void *ctx)
{
    struct arena *arena = ctx;
    cr_assert_not_null(memory);
    arena->frees++;
    free(memory);
}

Test(alloc, hook_serves_all_memory_of_objects)
{
    struct arena arena = {0};
    const struct wr_allocator allocator = {arena_alloc, arena_free, &arena};
    cr_assert_eq(wr_set_allocator(&allocator), 0);
    unsigned char *p = wr_new(&plain_type);
    cr_assert_eq(arena.allocs, 1);
    cr_assert_geq(arena.last_size, 100 + 16);
    cr_assert_eq(arena.last_align, _Alignof(max_align_t));
    for (unsigned i = 0; i < 100; i++)
        cr_assert_eq(p[i], 0);
    wr_release(p);
    cr_assert_eq(arena.frees, 1);

    p = wr_new(&aligned_type);
    cr_assert_eq(arena.allocs, 2);
    cr_assert_eq(arena.last_align, 64);
    cr_assert_eq((uintptr_t)p % 64, 0);
    for (unsigned i = 0; i < 100; i++)
        cr_assert_eq(p[i], 0);
    wr_weak *weak = wr_downgrade(p);
    wr_release(p);
    cr_assert_eq(arena.frees, 1);
    wr_weak_release(weak);
    cr_assert_eq(arena.frees, 2);
    wr_free(NULL);
    cr_assert_eq(arena.frees, 2, "NULL never gets there");
}

Test(alloc, hook_is_copied)
{
    struct arena arena = {0};
    struct wr_allocator allocator = {arena_alloc, arena_free, &arena};
    cr_assert_eq(wr_set_allocator(&allocator), 0);
    memset(&allocator, 0, sizeof allocator);
    wr_release(wr_new(&plain_type));
    cr_assert_eq(arena.frees, 1);
}

Test(alloc, hook_without_one_of_its_functions_is_refused)
{
    struct arena arena = {0};
    const struct wr_allocator no_alloc = {NULL, arena_free, &arena}, no_free = {arena_alloc, NULL, &arena};
    cr_assert_eq(wr_set_allocator(&no_alloc), -EINVAL);
    cr_assert_eq(wr_set_allocator(&no_free), -EINVAL);
    wr_release(wr_new(&plain_type));
    cr_assert_eq(arena.allocs, 0, "a refused one changes nothing");
}

Test(alloc, hook_comes_too_late_once_memory_was_taken)
{
    struct arena arena = {0};
    const struct wr_allocator allocator = {arena_alloc, arena_free, &arena};
    wr_release(wr_new(&plain_type));
    cr_assert_eq(wr_set_allocator(&allocator), -EBUSY);
    cr_assert_eq(wr_set_allocator(NULL), -EBUSY);
    wr_release(wr_new(&plain_type));
    cr_assert_eq(arena.allocs, 0);
}

Test(alloc, null_puts_malloc_back)
{
    struct arena arena = {0};
    const struct wr_allocator allocator = {arena_alloc, arena_free, &arena};
    cr_assert_eq(wr_set_allocator(&allocator), 0);
    cr_assert_eq(wr_set_allocator(NULL), 0);
    wr_release(wr_new(&plain_type));
    cr_assert_eq(arena.allocs, 0);
}

Test(alloc, failing_hook_is_enomem_and_the_next_call_works)
{
    fail_alloc_install();
    for (long n = 1; n <= 2; n++) {
        fail_alloc_at(n);
        errno = 0;
        void *first = wr_new(&plain_type), *second = wr_new(&aligned_type);
        cr_assert(fail_alloc_hit());
        cr_assert_eq(errno, ENOMEM);
        cr_assert_eq(first == NULL, n == 1);
        cr_assert_eq(second == NULL, n == 2);
        wr_release(first);
        wr_release(second);
        cr_assert_eq(fail_alloc_live(), 0);
    }
}
