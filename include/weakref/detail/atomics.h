/* F1 atomics: named-order wrappers over the compiler's atomic builtins.
 *
 * The one place of the public headers that names a memory order. They are macros over __atomic builtins and
 * not <stdatomic.h>, because the inline paths must compile as C11 and as C++17 and mean the same
 * object in both. An atomic is a struct around its value, so that a plain access does not compile
 * by accident; WR_ATOMIC(T) declares one, the operations work on any of them.
 *
 * With WR_SCHED_POINTS every operation first calls a hook where tests let another thread run;
 * without it nothing is left of that.
 */
#ifndef WEAKREF_DETAIL_ATOMICS_H
#define WEAKREF_DETAIL_ATOMICS_H

#include <stdint.h>

#define WR_ATOMIC(T) \
    struct {         \
        T v;         \
    }

typedef WR_ATOMIC(uint32_t) wr_atomic_u32;
typedef WR_ATOMIC(uint64_t) wr_atomic_u64;
typedef WR_ATOMIC(uintptr_t) wr_atomic_uptr;
typedef WR_ATOMIC(void *) wr_atomic_ptr;

#if defined(WR_SCHED_POINTS) && WR_SCHED_POINTS
#ifdef __cplusplus
extern "C"
#endif
    __attribute__((visibility("default"))) void
    wr_sched_point(void);
#define WR_SCHED_POINT_() wr_sched_point()
#else
#define WR_SCHED_POINT_() ((void)0)
#endif

#define wr_likely(x) __builtin_expect(!!(x), 1)
#define wr_unlikely(x) __builtin_expect(!!(x), 0)

/* Before the program has threads, or where nobody else can see the atomic yet. */
#define wr_atomic_init(p, x) ((void)((p)->v = (x)))

#define wr_atomic_load_relaxed(p) (WR_SCHED_POINT_(), __atomic_load_n(&(p)->v, __ATOMIC_RELAXED))
#define wr_atomic_load_acquire(p) (WR_SCHED_POINT_(), __atomic_load_n(&(p)->v, __ATOMIC_ACQUIRE))
#define wr_atomic_load_seq_cst(p) (WR_SCHED_POINT_(), __atomic_load_n(&(p)->v, __ATOMIC_SEQ_CST))

#define wr_atomic_store_relaxed(p, x) (WR_SCHED_POINT_(), __atomic_store_n(&(p)->v, x, __ATOMIC_RELAXED))
#define wr_atomic_store_release(p, x) (WR_SCHED_POINT_(), __atomic_store_n(&(p)->v, x, __ATOMIC_RELEASE))
#define wr_atomic_store_seq_cst(p, x) (WR_SCHED_POINT_(), __atomic_store_n(&(p)->v, x, __ATOMIC_SEQ_CST))

#define wr_atomic_exchange_acquire(p, x) (WR_SCHED_POINT_(), __atomic_exchange_n(&(p)->v, x, __ATOMIC_ACQUIRE))
#define wr_atomic_exchange_release(p, x) (WR_SCHED_POINT_(), __atomic_exchange_n(&(p)->v, x, __ATOMIC_RELEASE))
#define wr_atomic_exchange_acq_rel(p, x) (WR_SCHED_POINT_(), __atomic_exchange_n(&(p)->v, x, __ATOMIC_ACQ_REL))
#define wr_atomic_exchange_seq_cst(p, x) (WR_SCHED_POINT_(), __atomic_exchange_n(&(p)->v, x, __ATOMIC_SEQ_CST))

/* Strong compare-exchange: true when it stored; on false *expected holds what was there, read with
 * the failure order: acquire where success acquires, else relaxed. */
#define wr_atomic_cas_relaxed(p, expected, desired) \
    (WR_SCHED_POINT_(), __atomic_compare_exchange_n(&(p)->v, expected, desired, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
#define wr_atomic_cas_release(p, expected, desired) \
    (WR_SCHED_POINT_(), __atomic_compare_exchange_n(&(p)->v, expected, desired, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
#define wr_atomic_cas_acquire(p, expected, desired) \
    (WR_SCHED_POINT_(), __atomic_compare_exchange_n(&(p)->v, expected, desired, 0, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE))
#define wr_atomic_cas_acq_rel(p, expected, desired) \
    (WR_SCHED_POINT_(), __atomic_compare_exchange_n(&(p)->v, expected, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
#define wr_atomic_cas_seq_cst(p, expected, desired) \
    (WR_SCHED_POINT_(), __atomic_compare_exchange_n(&(p)->v, expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))

#define wr_atomic_fetch_add_relaxed(p, x) (WR_SCHED_POINT_(), __atomic_fetch_add(&(p)->v, x, __ATOMIC_RELAXED))
#define wr_atomic_fetch_add_acquire(p, x) (WR_SCHED_POINT_(), __atomic_fetch_add(&(p)->v, x, __ATOMIC_ACQUIRE))
#define wr_atomic_fetch_add_seq_cst(p, x) (WR_SCHED_POINT_(), __atomic_fetch_add(&(p)->v, x, __ATOMIC_SEQ_CST))
#define wr_atomic_fetch_sub_relaxed(p, x) (WR_SCHED_POINT_(), __atomic_fetch_sub(&(p)->v, x, __ATOMIC_RELAXED))
#define wr_atomic_fetch_sub_release(p, x) (WR_SCHED_POINT_(), __atomic_fetch_sub(&(p)->v, x, __ATOMIC_RELEASE))
#define wr_atomic_fetch_sub_acq_rel(p, x) (WR_SCHED_POINT_(), __atomic_fetch_sub(&(p)->v, x, __ATOMIC_ACQ_REL))
#define wr_atomic_fetch_sub_seq_cst(p, x) (WR_SCHED_POINT_(), __atomic_fetch_sub(&(p)->v, x, __ATOMIC_SEQ_CST))

/* Keeps the compiler, not the processor, from moving accesses across; the other half of the order
 * is the reclaimer's membarrier(2). */
#define wr_atomic_compiler_barrier() __atomic_signal_fence(__ATOMIC_SEQ_CST)

#endif
