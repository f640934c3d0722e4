/* F1 atomics: the named-order wrappers, and what only the library's own sources need beside them.
 *
 * The schedule points that every wrapper passes (see sched.c) are switched on per build.
 */
#ifndef WR_LIB_ATOMICS_H
#define WR_LIB_ATOMICS_H

#include <weakref/detail/atomics.h>

#include <stdatomic.h>

/* A full fence, for the Dekker pairs of the read sections where membarrier(2) is refused and of the reclaimer
 * that falls asleep. Where it is used no happens-before hangs on it (ThreadSanitizer does not model
 * fences): it only orders a store before a load. On x86 compilers may emit mfence, four times the price of a
 * locked instruction, hence the latter by hand. */
static inline void wr_atomic_fence_seq_cst(void)
{
    WR_SCHED_POINT_();
#if defined(__x86_64__)
    __asm__ __volatile__("lock; orl $0, (%%rsp)" ::: "memory", "cc");
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

/* One step of a bounded spin. */
static inline void wr_atomic_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield" ::: "memory");
#else
    __asm__ __volatile__("" ::: "memory");
#endif
}

#endif
