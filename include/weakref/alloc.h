/* F1 alloc: where the library gets its memory.
 *
 * When not to use it: to trace leaks; any tool that sees malloc sees this library.
 *
 * Example:
 *     static const struct wr_allocator arena = {arena_alloc, arena_free, &the_arena};
 *     if (wr_set_allocator(&arena) != 0)
 *         abort();                          // too late: something was made already
 */
#ifndef WEAKREF_ALLOC_H
#define WEAKREF_ALLOC_H

#include <weakref/types.h>

WR_BEGIN_DECLS

/** Where the library gets its memory. */
struct wr_allocator {
    /* [owned] at least @size bytes at a multiple of @align (a power of two), or NULL. In a large one that a dead object leaves to
     * its handles, pages that are private and anonymous may read as zeros after its destroy: see wr_new(). */
    void *(*alloc)(size_t size, size_t align, void *ctx);
    /* @memory: [consumed] from alloc, never NULL. */
    void (*free)(void *memory, void *ctx);
    void *ctx;
};

/**
 * wr_set_allocator() - use another allocator than malloc.
 * @allocator: [borrowed] copied; NULL: malloc again.
 *
 * Returns: 0.
 * Errors:  -EINVAL: one of its functions is missing. -EBUSY: the library has taken memory already, which would go
 *          to the wrong free.
 * Threads: before other threads use the library. Its functions are called from any thread, the reclaimer's included.
 * Order:   none.
 */
WR_API int wr_set_allocator(const struct wr_allocator *allocator);

WR_END_DECLS

#endif
