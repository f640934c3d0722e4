/* F1 alloc: where all memory of the library comes from: malloc, or the program's own allocator.
 *
 * Also the seam for fault injection: a test sets an allocator that fails its n-th call.
 */
#ifndef WR_LIB_ALLOC_H
#define WR_LIB_ALLOC_H

#include <weakref/alloc.h>

/* All three: [owned] memory for wr_free(), or NULL. errno is not relied on. */
void *wr_alloc(size_t size);
void *wr_alloc_zero(size_t size);
/* @align: a power of two. */
void *wr_alloc_aligned(size_t align, size_t size);
void wr_free(void *memory);
/* @memory: [borrowed] part of a block of wr_alloc(), whose contents are not needed any more: whole pages in it may go back to the
 * system, and read as anything until they are written. A system call. Keeps errno. */
void wr_alloc_discard(void *memory, size_t size);
/* Whether it is the program's own allocator. Settled once something was taken. */
bool wr_alloc_is_hooked(void);

#endif
