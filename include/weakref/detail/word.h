/* F2 word: the count word, a strong and a weak count and the state of one object in 64 bits.
 *
 * Pure protocol: no allocation, no callback, nothing included but the atomics, so that this very
 * file can be put under a model checker. Each operation returns a verdict; the object layer acts.
 *
 *     bits 63..35 strong count   34 reserved (0)   33 DEFERRED   32 CLOSED   31..0 weak count
 *
 * A new word is strong 1, weak 1. All strong references together own one weak count, the *token*.
 *
 * The token
 *   Whoever takes the strong count to zero carries the token until it has either closed the word and
 *   destroyed the object, or lost (strong came back, or another closed it) and released the token. (Where there
 *   is nothing to destroy, and something else keeps the header meanwhile, it may give the token up as it closes.) An
 *   upgrade that finds zero repays the token, because the thread that brought the zero will lose and
 *   release one. So a thread that sleeps between its zero and its CAS still keeps the header. (The rule
 *   of Parkinson, Clebsch and Simner, "Wait-Free Weak Reference Counting", ISMM 2023, on one word.)
 *
 * States
 *             retain   release          upgrade          downgrade,    weak release
 *                                                        weak retain
 *   LIVE>1    +S       -S               +S               +1            -1
 *   LIVE=1    +S       -S: ZERO         +S               +1            -1
 *   ZERO      panic    panic            +S, repay 1:     +1            -1; the last one cannot
 *                      (holder of none)  LIVE again                    be here: tokens are out
 *   DEAD      panic    panic            stray +S: NULL   +1            -1; last: FREE
 *   ZERO -> DEAD is the one CAS of the thread that brought the zero. DEAD is final: nothing clears CLOSED.
 *   In DEAD the strong field is garbage (strays wrap off the top) and is read as 0.
 *
 * Saturation
 *   A strong half of 2^28 or more in a word that is not CLOSED, or a weak half of 2^31 or more, is
 *   saturated: who sees it sets that half to its middle. It is then immortal; no run of increments or
 *   decrements reaches the edge, since every one that sees it sets it back.
 *
 * Memory ordering
 *   release-decrements [drop] pair with the acquire load [drop] of the thread that ends the object (or the
 *   header): it sees all that earlier holders wrote. An upgrade acquires, so that what it finds follows every
 *   earlier release-decrement [drop]. Retain and downgrade are relaxed: their caller already holds
 *   what keeps the word, and handing the new reference to another thread is the caller's own synchronisation.
 *   No stand-alone fences: ThreadSanitizer does not model them.
 */
#ifndef WEAKREF_DETAIL_WORD_H
#define WEAKREF_DETAIL_WORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <weakref/detail/atomics.h>

typedef struct wr_word {
    wr_atomic_u64 bits;
} wr_word;

#define WR_WORD_STRONG_SHIFT 35
#define WR_WORD_STRONG (UINT64_C(1) << WR_WORD_STRONG_SHIFT)
#define WR_WORD_DEFERRED (UINT64_C(1) << 33)
#define WR_WORD_CLOSED (UINT64_C(1) << 32)
#define WR_WORD_WEAK UINT64_C(1)
#define WR_WORD_WEAK_MASK UINT64_C(0xffffffff)
#define WR_WORD_STRONG_MASK (~UINT64_C(0) << WR_WORD_STRONG_SHIFT)
#define WR_WORD_STRONG_MIDDLE (UINT64_C(3) << 62)
#define WR_WORD_WEAK_SATURATED (UINT64_C(1) << 31)
#define WR_WORD_WEAK_MIDDLE (UINT64_C(3) << 30)

enum wr_word_verdict {
    WR_WORD_OK,         /* done, nothing to do for the caller */
    WR_WORD_DEAD,       /* upgrade, retain_live: the object is dead */
    WR_WORD_DIES,       /* this call closed the word: destroy, then release the token */
    WR_WORD_DIES_ALONE, /* as DIES, and nobody else could reach it: wr_word_forget() ends it */
    WR_WORD_FREE,       /* that was the last weak count: free the header */
    WR_WORD_SATURATED,  /* done; the count was set to its middle, the object is immortal */
    WR_WORD_IS_DEAD,    /* misuse: the object is dead */
    WR_WORD_UNDERFLOW   /* misuse: more releases than references */
};

static inline uint64_t wr_word_strong(uint64_t bits)
{
    return (bits & WR_WORD_CLOSED) ? 0 : bits >> WR_WORD_STRONG_SHIFT;
}

static inline uint32_t wr_word_weak(uint64_t bits)
{
    return (uint32_t)bits;
}

static inline void wr_word_init(wr_word *w, bool deferred)
{
    wr_atomic_init(&w->bits, WR_WORD_STRONG | WR_WORD_WEAK | (deferred ? WR_WORD_DEFERRED : 0));
}

/* Each operation is the read-modify-write, a test that the common outcome passes, and the rest
 * ("settle"). The inline callers keep the first two; the settling half is called out of line. */

/* Not CLOSED, and strong in [least, 2^28): one signed compare, since the top bit is saturation. */
static inline bool wr_word_is_plain(uint64_t bits, int64_t least)
{
    return (int64_t)bits >= (least << WR_WORD_STRONG_SHIFT) && !(bits & WR_WORD_CLOSED);
}

static inline enum wr_word_verdict wr_word_saturate_strong(wr_word *w)
{
    /* Relaxed: the object is immortal from here, so no order hangs on this count any more. */
    uint64_t cur = wr_atomic_load_relaxed(&w->bits);
    while (!(cur & WR_WORD_CLOSED) && (int64_t)cur < 0) {
        uint64_t middle = (cur & ~WR_WORD_STRONG_MASK) | WR_WORD_STRONG_MIDDLE;
        /* Relaxed, as above. */
        if (cur == middle || wr_atomic_cas_relaxed(&w->bits, &cur, middle))
            return WR_WORD_SATURATED;
    }
    return WR_WORD_OK;
}

static inline enum wr_word_verdict wr_word_saturate_weak(wr_word *w)
{
    /* Relaxed: the header is immortal from here, so no order hangs on this count any more. */
    uint64_t cur = wr_atomic_load_relaxed(&w->bits);
    while (cur & WR_WORD_WEAK_SATURATED) {
        uint64_t middle = (cur & ~WR_WORD_WEAK_MASK) | WR_WORD_WEAK_MIDDLE;
        /* Relaxed, as above. */
        if (cur == middle || wr_atomic_cas_relaxed(&w->bits, &cur, middle))
            return WR_WORD_SATURATED;
    }
    return WR_WORD_OK;
}

/* ---- weak retain, downgrade -------------------------------------------------------------------- */

static inline uint64_t wr_word_weak_retain_begin(wr_word *w)
{
    /* Relaxed: the caller holds a reference, weak or strong, that keeps the header; nothing is read. */
    return wr_atomic_fetch_add_relaxed(&w->bits, WR_WORD_WEAK);
}

/* Weak in [1, 2^31): one signed compare. For weak release the least is 2. */
static inline bool wr_word_weak_is_plain(uint64_t bits, int32_t least)
{
    return (int32_t)(uint32_t)bits >= least;
}

static inline enum wr_word_verdict wr_word_weak_retain_settle(wr_word *w, uint64_t old)
{
    if (wr_word_weak(old) == 0)
        return WR_WORD_UNDERFLOW;
    return wr_word_saturate_weak(w);
}

static inline enum wr_word_verdict wr_word_weak_retain(wr_word *w)
{
    uint64_t old = wr_word_weak_retain_begin(w);
    return wr_word_weak_is_plain(old, 1) ? WR_WORD_OK : wr_word_weak_retain_settle(w, old);
}

/* ---- weak release, token ------------------------------------------------------------------------ */

static inline uint64_t wr_word_weak_release_begin(wr_word *w)
{
    /* Release [drop]: what this holder did happens before the free. Pairs with the acquire load in
     * wr_word_weak_release_settle(). */
    return wr_atomic_fetch_sub_release(&w->bits, WR_WORD_WEAK);
}

static inline enum wr_word_verdict wr_word_weak_release_settle(wr_word *w, uint64_t old)
{
    if (wr_word_weak(old) == 0)
        return WR_WORD_UNDERFLOW;
    if (wr_word_weak(old) != 1)
        return wr_word_saturate_weak(w);
    if (!(old & WR_WORD_CLOSED))
        return WR_WORD_UNDERFLOW; /* a token is out as long as the word is not closed */
    /* Acquire [drop]: sees every earlier holder's use of the header. Pairs with the release-decrement
     * of wr_word_weak_release_begin(). The value is known; a load, for a fence would be unmodelled. */
    (void)wr_atomic_load_acquire(&w->bits);
    return WR_WORD_FREE;
}

static inline enum wr_word_verdict wr_word_weak_release(wr_word *w)
{
    uint64_t old = wr_word_weak_release_begin(w);
    return wr_word_weak_is_plain(old, 2) ? WR_WORD_OK : wr_word_weak_release_settle(w, old);
}

/* ---- retain ---------------------------------------------------------------------------------------- */

static inline uint64_t wr_word_retain_begin(wr_word *w)
{
    /* Relaxed: the caller holds a strong reference; whoever gets the new one gets it by the caller's
     * own synchronisation. */
    return wr_atomic_fetch_add_relaxed(&w->bits, WR_WORD_STRONG);
}

static inline enum wr_word_verdict wr_word_retain_settle(wr_word *w, uint64_t old)
{
    if (old & WR_WORD_CLOSED)
        return WR_WORD_IS_DEAD;
    if (wr_word_strong(old) == 0)
        return WR_WORD_UNDERFLOW;
    return wr_word_saturate_strong(w);
}

static inline enum wr_word_verdict wr_word_retain(wr_word *w)
{
    uint64_t old = wr_word_retain_begin(w);
    return wr_word_is_plain(old, 1) ? WR_WORD_OK : wr_word_retain_settle(w, old);
}

/* ---- upgrade ----------------------------------------------------------------------------------------- */

static inline uint64_t wr_word_upgrade_begin(wr_word *w)
{
    /* Acquire [drop]: what earlier holders wrote before their release-decrement in wr_word_release_begin()
     * is seen by the new one. ZERO -> LIVE or LIVE -> LIVE; on DEAD a harmless stray. */
    return wr_atomic_fetch_add_acquire(&w->bits, WR_WORD_STRONG);
}

static inline enum wr_word_verdict wr_word_upgrade_settle(wr_word *w, uint64_t old)
{
    if (old & WR_WORD_CLOSED)
        return WR_WORD_DEAD;
    if (wr_word_strong(old) != 0)
        return wr_word_saturate_strong(w);
    /* Relaxed: repays the token of the thread that will lose. Our own weak handle keeps the header
     * even if that thread releases its token first; this count orders nothing. */
    uint64_t weak = wr_atomic_fetch_add_relaxed(&w->bits, WR_WORD_WEAK);
    return wr_word_weak_is_plain(weak, 1) ? WR_WORD_OK : wr_word_saturate_weak(w);
}

static inline enum wr_word_verdict wr_word_upgrade(wr_word *w)
{
    uint64_t old = wr_word_upgrade_begin(w);
    return wr_word_is_plain(old, 1) ? WR_WORD_OK : wr_word_upgrade_settle(w, old);
}

/* ---- release ----------------------------------------------------------------------------------------- */

static inline uint64_t wr_word_release_begin(wr_word *w)
{
    /* Release [drop]: what this holder wrote happens before the destroy. Pairs with the acquire load in
     * wr_word_release_settle_giving_up() and the acquire of wr_word_upgrade_begin(). LIVE -> LIVE or ZERO. */
    return wr_atomic_fetch_sub_release(&w->bits, WR_WORD_STRONG);
}

/* @given_up: WR_WORD_WEAK where the caller has no use for the token, since something else keeps the header: it goes with the
 * close. Or 0. (Once in an object's life, so that a saturated half need not be set back here.) */
static inline enum wr_word_verdict wr_word_release_settle_giving_up(wr_word *w, uint64_t old, uint64_t given_up)
{
    if (old & WR_WORD_CLOSED)
        return WR_WORD_IS_DEAD;
    if (wr_word_strong(old) == 0)
        return WR_WORD_UNDERFLOW;
    if (wr_word_strong(old) != 1)
        return wr_word_saturate_strong(w);

    /* Acquire [drop]: sees what every earlier holder wrote. Pairs with wr_word_release_begin(). */
    uint64_t cur = wr_atomic_load_acquire(&w->bits);
    if (old == (WR_WORD_STRONG | WR_WORD_WEAK)) {
        /* Relaxed: no handle and no reader exists that could look; destroy may make handles, and they
         * must find it closed, but those are made by this thread. ZERO -> DEAD. */
        wr_atomic_store_relaxed(&w->bits, WR_WORD_CLOSED | WR_WORD_WEAK);
        return WR_WORD_DIES_ALONE;
    }
    while (wr_word_strong(cur) == 0 && !(cur & WR_WORD_CLOSED)) {
        /* Acquire-release [drop]: acquires for the destroy what a holder that came and went since the
         * load wrote (its release-decrement in wr_word_release_begin()). Releases [closed] to the
         * acquire load of wr_word_peek(). Failure acquires, for the same reason. ZERO -> DEAD. */
        if (wr_atomic_cas_acq_rel(&w->bits, &cur, (cur | WR_WORD_CLOSED) - given_up))
            return WR_WORD_DIES;
    }
    return wr_word_weak_release(w); /* lost: give the token back */
}

static inline enum wr_word_verdict wr_word_release_settle(wr_word *w, uint64_t old)
{
    return wr_word_release_settle_giving_up(w, old, 0);
}

static inline enum wr_word_verdict wr_word_release(wr_word *w)
{
    uint64_t old = wr_word_release_begin(w);
    return wr_word_is_plain(old, 2) ? WR_WORD_OK : wr_word_release_settle(w, old);
}

/* After the destroy that followed WR_WORD_DIES_ALONE: FREE, unless destroy made handles that live on. */
static inline enum wr_word_verdict wr_word_forget(wr_word *w)
{
    /* Acquire [drop]: a handle that destroy made may have been released elsewhere already. Pairs with
     * wr_word_weak_release_begin(). */
    if (wr_atomic_load_acquire(&w->bits) == (WR_WORD_CLOSED | WR_WORD_WEAK))
        return WR_WORD_FREE;
    return wr_word_weak_release(w);
}

/* ---- borrowed pointers (in a guard) --------------------------------------------------------------- */

static inline enum wr_word_verdict wr_word_retain_live(wr_word *w)
{
    /* Acquire [drop]: as an upgrade. The weak 1 that comes along keeps the header while we settle, and is
     * the repayment if the strong count was zero. */
    uint64_t old = wr_atomic_fetch_add_acquire(&w->bits, WR_WORD_STRONG + WR_WORD_WEAK);
    if (old & WR_WORD_CLOSED) {
        enum wr_word_verdict weak = wr_word_weak_release(w);
        return weak == WR_WORD_OK ? WR_WORD_DEAD : weak;
    }
    if (wr_word_strong(old) == 0)
        return WR_WORD_OK;
    enum wr_word_verdict strong = (int64_t)old < 0 ? wr_word_saturate_strong(w) : WR_WORD_OK;
    /* Release [drop]: this weak count ends like any other. The last one it cannot be: ours is a strong
     * reference now, and its token is out. */
    (void)wr_atomic_fetch_sub_release(&w->bits, WR_WORD_WEAK);
    return strong;
}

/* The word as it is, for a look that does not count. */
static inline uint64_t wr_word_peek(const wr_word *w)
{
    /* Acquire [closed]: who reads CLOSED sees what the closing thread did before. Pairs with the CAS of
     * wr_word_release_settle_giving_up(). */
    return wr_atomic_load_acquire(&w->bits);
}

#endif
