/* F3 guard: reading without counting.
 *
 * Inside a guard, what was reached through wr_peek(), wr_slot_peek() or a dictionary's peek stays whole: its memory
 * and its destroy wait until every guard that runs now has ended. Entering costs a store to the thread's own record:
 * no shared memory is written, so guards on any number of threads do not disturb each other.
 *
 * When not to use it: to hold something longer than a few microseconds (retain it), or across anything that blocks:
 * a thread that sleeps in a guard stalls all reclamation (memory grows, wr_stats() names the thread).
 *
 * Example:
 *     WR_GUARD {
 *         conn *c = wr_peek(weak);              // borrowed, no counting
 *         if (c != NULL && c->wants_more)
 *             kept = wr_retain_live(c);         // owned now, or NULL: it died meanwhile
 *     }
 *     if (kept != NULL) {
 *         conn_feed(kept);
 *         wr_release(kept);
 *     }
 *
 * Guarantees:
 *   A. What a guard could reach when it began, or reaches while it runs, is not destroyed (WR_TYPE_DEFERRED) and not
 *      freed before it ends.
 *   B. No user code runs in wr_guard_enter() and wr_guard_exit().
 *   C. Guards nest; only the outermost one counts.
 * Progress: enter, exit, wr_peek(), wr_retain_live(): wait-free. wr_synchronize(), wr_barrier(): blocking.
 *
 * Idea: quiescent-state and epoch schemes (Fraser, "Practical Lock-Freedom", 2004; McKenney's RCU), made asymmetric
 * with membarrier(2) as in liburcu and folly.
 */
#ifndef WEAKREF_GUARD_H
#define WEAKREF_GUARD_H

#include <weakref/detail/thread.h>
#include <weakref/types.h>

WR_BEGIN_DECLS

/* Out-of-line halves of the inline functions below; not for direct use. */
WR_API WR_COLD void WR_LAYOUT(wr_guard_enter_cold)(void);
WR_API WR_COLD void WR_LAYOUT(wr_guard_exit_cold)(void);
WR_API WR_COLD void *WR_LAYOUT(wr_peek_cold)(const wr_weak *weak);
WR_API WR_COLD void *WR_LAYOUT(wr_retain_live_settle)(void *borrowed);

/* Begins an outermost section inline. False: this is not one, or it begins out of line; nothing has happened. */
static inline bool wr_guard_enter_outermost_(void)
{
    /* The record is named in full each time: gcc's UBSan takes a pointer to a thread-local for null at -O1. */
    /* Relaxed: its own thread's. */
    if (wr_unlikely(wr_atomic_load_relaxed(&WR_LAYOUT(wr_self).section) != WR_GUARD_ASYMMETRIC))
        return false;
    /* Acquire [epoch]: a section that reads t+1 sees all that was unlinked before the collector wrote it.
     * Pairs with the release store of the epoch in guard.c's collect(). */
    uint64_t now = wr_atomic_load_acquire(&WR_LAYOUT(wr_epoch).now);
    /* Relaxed: ordered before the section's loads by the compiler here and the collector's membarrier. */
    wr_atomic_store_relaxed(&WR_LAYOUT(wr_self).section, now);
    wr_atomic_compiler_barrier();
    return true;
}

/* Ends it. */
static inline void wr_guard_exit_outermost_(void)
{
    /* Release [section]: the section's reads happen before the reclaim. Pairs with the acquire load of the
     * records in guard.c's collect(). */
    wr_atomic_store_release(&WR_LAYOUT(wr_self).section, WR_GUARD_ASYMMETRIC);
}

/**
 * wr_guard_enter() - begin a read section.
 *
 * Returns: nothing.
 * Errors:  none. A thread that cannot be registered on its first use (the C library may want memory for that) shares a record.
 * Threads: any; not in a signal handler. Wait-free; runs no user code. Sections of one thread nest.
 * Order:   what was unlinked before the current epoch began is not reached from inside.
 */
static inline void wr_guard_enter(void)
{
    if (wr_likely(wr_guard_enter_outermost_()))
        return;
    /* Relaxed: its own thread's. */
    if (wr_likely(wr_atomic_load_relaxed(&WR_LAYOUT(wr_self).section) & WR_SECTION_INLINE))
        WR_LAYOUT(wr_self).nested++;
    else
        WR_LAYOUT(wr_guard_enter_cold)();
}

/**
 * wr_guard_exit() - end a read section; borrowed pointers are dead after the outermost one.
 *
 * Returns: nothing.
 * Errors:  none. Without a matching wr_guard_enter() on this thread: panic.
 * Threads: the thread that entered. Wait-free; runs no user code, frees nothing.
 * Order:   the section's reads happen before anything it could reach is reclaimed.
 */
static inline void wr_guard_exit(void)
{
    /* Relaxed: its own thread's. */
    if (wr_unlikely(!(wr_atomic_load_relaxed(&WR_LAYOUT(wr_self).section) & WR_SECTION_INLINE))) {
        WR_LAYOUT(wr_guard_exit_cold)();
    } else if (wr_likely(WR_LAYOUT(wr_self).nested == 0)) {
        wr_guard_exit_outermost_();
    } else {
        WR_LAYOUT(wr_self).nested--;
    }
}

#if defined(WR_DEBUG) && WR_DEBUG
#define WR_MAY_PEEK_() wr_section_is_open()
#else
#define WR_MAY_PEEK_() true
#endif

/**
 * wr_peek() - look at the object of a weak handle without counting.
 * @weak: [borrowed] not NULL, for an object of a type with WR_TYPE_DEFERRED.
 *
 * Returns: [borrowed] the object until the outermost guard ends, or NULL: it is dead. The object may die while it is
 *          looked at; it stays whole. It may be read and handed to wr_retain_live(), nothing else.
 * Errors:  a type without WR_TYPE_DEFERRED: panic, since its memory would not wait. NULL: NULL with errno EINVAL.
 *          Outside a guard: panic where the caller is compiled with WR_DEBUG=1, else the answer may dangle.
 * Threads: any, beside any call. Wait-free, one load; runs no user code.
 * Order:   as reading a pointer that was published with release: sees the object as it was constructed.
 */
static inline void *wr_peek(const wr_weak *weak)
{
    if (wr_likely(weak != NULL && WR_MAY_PEEK_())) {
        const wr_header *h = wr_header_of_weak(weak);
        if (wr_likely((wr_word_peek(&h->word) & (WR_WORD_DEFERRED | WR_WORD_CLOSED)) == WR_WORD_DEFERRED))
            return wr_payload_of(h);
    }
    return WR_LAYOUT(wr_peek_cold)(weak);
}

/**
 * wr_retain_live() - keep what was peeked.
 * @borrowed: [borrowed] from wr_peek() or a dictionary's peek, in the guard that still runs. NULL gives NULL.
 *
 * Returns: [owned] the same object, for one wr_release(); NULL: it died meanwhile.
 * Errors:  outside a guard: panic. Allocates nothing.
 * Threads: any, beside any call on the object, inside a guard. Wait-free; runs no user code.
 * Order:   non-NULL happens after every earlier wr_release(): sees those writes.
 */
static inline void *wr_retain_live(void *borrowed)
{
    return borrowed == NULL ? NULL : WR_LAYOUT(wr_retain_live_settle)(borrowed);
}

/**
 * wr_release_later() - release after all guards that run now.
 * @obj: [consumed] a strong reference; NULL does nothing. Stays valid for the running guards.
 *
 * Returns: nothing.
 * Errors:  without memory for its record it waits for a grace period to bring one back; where that cannot be (inside a
 *          guard, or where membarrier(2) stopped working) the reference is leaked, counted (wr_stats) and warned of. A
 *          dead object: panic.
 * Threads: any. The release, and so a destroy, runs on the reclaimer thread or in wr_synchronize(), wr_barrier().
 * Order:   the guards' reads happen before the release.
 */
WR_API void wr_release_later(void *obj);

/**
 * wr_synchronize() - wait until every guard that runs now has ended; run what became due and nobody else has begun.
 *
 * Returns: 0.
 * Errors:  -EDEADLK inside a guard of the calling thread; -ENOTSUP if membarrier(2) stopped working after start.
 * Threads: any, but not with a lock held that a destroy wants. Blocking. Runs deferred user code (releases, destroy of
 *          deferred types), of any thread; called from inside such code it only waits.
 * Order:   all sections that began before happen before the return. Work that the reclaimer thread has begun may still be
 *          running: wr_barrier() waits for that, too.
 */
WR_API int wr_synchronize(void);

/**
 * wr_barrier() - wait until all work deferred before, by any thread, has run, and what that work deferred in turn.
 *
 * Returns: 0.
 * Errors:  -EDEADLK inside a guard, and inside deferred work; -ENOTSUP as wr_synchronize().
 * Threads: any, but not with a lock held that a destroy wants. Blocking. Runs deferred user code.
 * Order:   all that work happens before the return.
 */
WR_API int wr_barrier(void);

WR_END_DECLS

/**
 * WR_GUARD { ... } - a read section around a block; leaving it by return, break, goto or continue ends the section.
 * `break` and `continue` leave the block, not a loop around it.
 */
#ifdef __cplusplus
struct wr_guard_scope {
    bool once;
    wr_guard_scope() : once(true)
    {
        wr_guard_enter();
    }
    ~wr_guard_scope()
    {
        wr_guard_exit();
    }
    wr_guard_scope(const wr_guard_scope &) = delete;
    wr_guard_scope &operator=(const wr_guard_scope &) = delete;
};
#define WR_GUARD_(scope) for (wr_guard_scope scope; scope.once; scope.once = false)
#else
struct wr_guard_scope {
    bool once;
};
static inline struct wr_guard_scope wr_guard_scope_enter(void)
{
    struct wr_guard_scope scope = {true};
    wr_guard_enter();
    return scope;
}
static inline void wr_guard_scope_leave(struct wr_guard_scope *scope)
{
    (void)scope;
    wr_guard_exit();
}
#define WR_GUARD_(scope)                                                                                      \
    for (struct wr_guard_scope scope __attribute__((cleanup(wr_guard_scope_leave))) = wr_guard_scope_enter(); \
         scope.once; scope.once = false)
#endif
#define WR_GUARD WR_GUARD_(WR_CONCAT_(wr_guard_scope_, __COUNTER__)) /* a name of its own, for nesting */

/* Handing what is no object to these calls does not compile: see types.h. */
#ifdef __cplusplus
WR_TAKES_OBJECT_(wr_retain_live);
WR_TAKES_OBJECT_(wr_release_later);
#else
#define wr_retain_live(borrowed) wr_retain_live(WR_OBJECT_(borrowed))
#define wr_release_later(obj) wr_release_later(WR_OBJECT_(obj))
#endif

#endif
