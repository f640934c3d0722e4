/* F1 alloc: malloc, or the program's allocator; set once, before anything was taken. */
#include "alloc.h"

#include "atomics.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Above this calloc() is asked, which gets big blocks zeroed from the kernel; below, clearing is cheaper. */
#define ZERO_BY_HAND 1024

/* Written before other threads use the library (wr_set_allocator()'s contract), then only read. */
static struct wr_allocator hook;
static bool hooked;
static WR_ATOMIC(bool) taken; /* something was allocated: the allocator is settled */

static void *hook_alloc(size_t size, size_t align)
{
    return hook.alloc(size, align, hook.ctx);
}

static void note_taken(void)
{
    /* Relaxed: a flag for wr_set_allocator(), which runs before there are threads; the load keeps the line shared. */
    if (wr_unlikely(!wr_atomic_load_relaxed(&taken)))
        wr_atomic_store_relaxed(&taken, true);
}

void *wr_alloc(size_t size)
{
    note_taken();
    return wr_likely(!hooked) ? malloc(size) : hook_alloc(size, _Alignof(max_align_t));
}

void *wr_alloc_zero(size_t size)
{
    note_taken();
    if (wr_likely(!hooked) && size > ZERO_BY_HAND)
        return calloc(1, size);
    void *memory = wr_likely(!hooked) ? malloc(size) : hook_alloc(size, _Alignof(max_align_t));
    if (wr_likely(memory != NULL))
        memset(memory, 0, size);
    return memory;
}

void *wr_alloc_aligned(size_t align, size_t size)
{
    if (align <= _Alignof(max_align_t))
        return wr_alloc(size);
    note_taken();
    if (hooked)
        return hook_alloc(size, align);
    size_t rounded = (size + align - 1) & ~(align - 1);
    return rounded < size ? NULL : aligned_alloc(align, rounded);
}

void wr_free(void *memory)
{
    if (wr_likely(!hooked))
        free(memory);
    else if (memory != NULL)
        hook.free(memory, hook.ctx);
}

/* What malloc() gives is private and anonymous: MADV_DONTNEED takes the pages at once. A program's own allocator may have mapped a
 * file or registered its pages with a device: MADV_FREE refuses what is not private and anonymous, passes over what somebody
 * else holds, and takes the rest when memory is short.
 * No huge page begins where the range does: of those some kernels would take more than was asked for. */
void wr_alloc_discard(void *memory, size_t size)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)memory + page - 1) & ~(page - 1);
    uintptr_t end = ((uintptr_t)memory + size) & ~(page - 1);
    if (begin % (8 * page) == 0)
        begin += page;
    if (begin >= end)
        return;
    int saved = errno;
    (void)madvise((void *)begin, end - begin, hooked ? MADV_FREE : MADV_DONTNEED);
    errno = saved;
}

bool wr_alloc_is_hooked(void)
{
    return hooked;
}

int wr_set_allocator(const struct wr_allocator *allocator)
{
    if (allocator != NULL && (allocator->alloc == NULL || allocator->free == NULL))
        return -EINVAL;
    /* Relaxed: no other thread uses the library yet, or the caller broke the contract. */
    if (wr_atomic_load_relaxed(&taken))
        return -EBUSY;
    hooked = allocator != NULL;
    hook = hooked ? *allocator : (struct wr_allocator){NULL, NULL, NULL};
    return 0;
}
