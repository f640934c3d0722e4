/* F5 weak: handles that do not keep their object alive, and can be made strong while it lives.
 *
 * A weak handle is 8 bytes without a heap block of its own: it points at the object's header. Two handles of one object
 * are equal pointers, also after its death, and while one is held its address is not used again: `==` is identity, and
 * the pointer is its own hash.
 *
 * When not to use it: a handle keeps the memory of the dead object (header and payload in one block) until it is
 * released; a table of handles that nobody ever prunes keeps all that memory. Use a watch or a weak dictionary to prune.
 * Of a payload of 16 KiB or more only the ends stay: see wr_new().
 *
 * Example:
 *     wr_weak *weak = wr_downgrade(c);
 *     ...
 *     conn *again = wr_upgrade(weak);        // strong, or NULL: dead
 *     if (again != NULL) {
 *         conn_send(again, "hello");
 *         wr_release(again);
 *     }
 *     wr_weak_release(weak);
 *
 * Guarantees:
 *   A. wr_upgrade() gives the object exactly as long as somebody holds it strongly; NULL is final.
 *   B. Releasing a handle never runs user code and never loses a callback.
 * Progress: all calls wait-free; the last wr_weak_release() of a dead object frees its memory.
 */
#ifndef WEAKREF_WEAK_H
#define WEAKREF_WEAK_H

#include <weakref/guard.h>
#include <weakref/object.h>

WR_BEGIN_DECLS

/* Out-of-line halves of the inline functions below; not for direct use. */
WR_API WR_COLD wr_weak *WR_LAYOUT(wr_weak_retain_cold)(wr_header *h, uint64_t old, const char *call);
WR_API WR_OUT_OF_LINE void *WR_LAYOUT(wr_upgrade_cold)(wr_header *h, uint64_t old);
WR_API WR_OUT_OF_LINE void WR_LAYOUT(wr_weak_release_cold)(wr_header *h, uint64_t old);

/**
 * wr_downgrade() - a weak handle on an object.
 * @obj: [borrowed] of which the caller holds a strong reference; or the object whose destroy is running (a dead handle,
 *       usable as identity). NULL: NULL with errno EINVAL.
 *
 * Returns: [owned] the handle, for one wr_weak_release().
 * Errors:  none. Allocates nothing. 2^31 handles: the header becomes immortal.
 * Threads: any, beside any call on the object. Wait-free; runs no user code.
 * Order:   none.
 */
static inline wr_weak *wr_downgrade(void *obj)
{
    if (wr_likely(obj != NULL)) {
        wr_header *h = wr_header_of(obj);
        uint64_t old = wr_word_weak_retain_begin(&h->word);
        if (wr_likely(wr_word_weak_is_plain(old, 1)))
            return wr_weak_of_header(h);
        return WR_LAYOUT(wr_weak_retain_cold)(h, old, "wr_downgrade");
    }
    return WR_LAYOUT(wr_weak_retain_cold)(NULL, 0, "wr_downgrade");
}

/**
 * wr_upgrade() - turn a weak reference into a strong one, if it still can be.
 * @weak: [borrowed] stays usable whatever the answer. NULL: NULL with errno EINVAL.
 *
 * Returns: [owned] the object, for one wr_release(); NULL once it is dead. Final.
 * Errors:  none. Allocates nothing.
 * Threads: any, beside any call on the object. Wait-free; runs no user code.
 * Order:   non-NULL happens after every earlier wr_release(): sees those writes.
 */
static inline WR_NODISCARD void *wr_upgrade(wr_weak *weak)
{
    if (wr_likely(weak != NULL)) {
        wr_header *h = wr_header_of_weak(weak);
        uint64_t old = wr_word_upgrade_begin(&h->word);
        if (wr_likely(wr_word_is_plain(old, 1)))
            return wr_payload_of(h);
        return WR_LAYOUT(wr_upgrade_cold)(h, old);
    }
    return WR_LAYOUT(wr_upgrade_cold)(NULL, 0);
}

/**
 * wr_weak_retain() - one more handle on the same object, dead or alive.
 * @weak: [borrowed] not NULL (NULL: NULL with errno EINVAL).
 *
 * Returns: [owned] the same pointer, for one more wr_weak_release().
 * Errors:  a handle that was released: panic, where the memory still is.
 * Threads: any. Wait-free; runs no user code.
 * Order:   none.
 */
static inline wr_weak *wr_weak_retain(wr_weak *weak)
{
    if (wr_likely(weak != NULL)) {
        wr_header *h = wr_header_of_weak(weak);
        uint64_t old = wr_word_weak_retain_begin(&h->word);
        if (wr_likely(wr_word_weak_is_plain(old, 1)))
            return weak;
        return WR_LAYOUT(wr_weak_retain_cold)(h, old, "wr_weak_retain");
    }
    return WR_LAYOUT(wr_weak_retain_cold)(NULL, 0, "wr_weak_retain");
}

/**
 * wr_weak_release() - give a handle back; the last one of a dead object frees its memory.
 * @weak: [consumed] NULL does nothing.
 *
 * Returns: nothing.
 * Errors:  none; more releases than handles: panic, where the memory still is.
 * Threads: any. Wait-free; runs no user code.
 * Order:   all uses of the header happen before it is freed.
 */
static inline void wr_weak_release(wr_weak *weak)
{
    if (wr_likely(weak != NULL)) {
        wr_header *h = wr_header_of_weak(weak);
        uint64_t old = wr_word_weak_release_begin(&h->word);
        if (wr_unlikely(!wr_word_weak_is_plain(old, 2)))
            WR_LAYOUT(wr_weak_release_cold)(h, old);
    }
}

/**
 * wr_weak_is_dead() - whether upgrades fail from now on.
 * @weak: [borrowed] NULL counts as dead.
 *
 * Returns: true: dead, for ever. false: it was alive, or about to die, a moment ago.
 * Errors:  none.
 * Threads: any. Wait-free, one load; runs no user code.
 * Order:   true happens after the closing of the object.
 */
static inline bool wr_weak_is_dead(const wr_weak *weak)
{
    return weak == NULL || (wr_word_peek(&wr_header_of_weak(weak)->word) & WR_WORD_CLOSED) != 0;
}

/**
 * wr_weak_is() - whether the handle is one of this object.
 * @weak: [borrowed] or NULL.
 * @obj:  [borrowed] or NULL; only its address is used.
 *
 * Returns: true if @obj is the object of @weak, dead or alive; false if either is NULL.
 * Errors:  none.
 * Threads: any. Wait-free.
 * Order:   none.
 */
static inline bool wr_weak_is(const wr_weak *weak, const void *obj)
{
    return weak != NULL && obj != NULL && wr_header_of(obj) == wr_header_of_weak(weak);
}

/**
 * wr_weak_describe() - "<weakref at 0x...; to 'conn' at 0x...>" or "<weakref at 0x...; dead>".
 * @weak: [borrowed] not NULL.
 * @buf:  [borrowed] at least @size bytes; may be NULL if @size is 0. Ends with a NUL if @size > 0.
 * @size: bytes of @buf.
 *
 * Returns: the length that the whole text has, as snprintf.
 * Errors:  -EINVAL: no handle, or no buffer with a size.
 * Threads: any. Holds the object meanwhile: if all others let go of it just then, it dies here.
 * Order:   none.
 */
WR_API int wr_weak_describe(const wr_weak *weak, char *buf, size_t size);

WR_END_DECLS

/* Handing what is no object to these calls does not compile: see types.h. */
#ifdef __cplusplus
WR_TAKES_OBJECT_(wr_downgrade);
WR_TAKES_OBJECT_AFTER_(wr_weak_is, const wr_weak *);
#else
#define wr_downgrade(obj) wr_downgrade(WR_OBJECT_(obj))
#define wr_weak_is(weak, obj) wr_weak_is(weak, WR_OBJECT_(obj))
#endif

#endif
