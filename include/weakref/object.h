/* F4 object: memory that is destroyed once, when its last strong reference goes.
 *
 * wr_new() makes an object with one strong reference; wr_retain() adds one, wr_release() gives one back, and the last
 * one ends it: weak references are dead from that instant, `destroy` runs, callbacks go to their queues. `void *obj` is
 * always the payload; the 16 bytes of header in front of it are the library's.
 *
 * Three rules: (1) whoever stores a pointer for longer than a call retains it; (2) every reference is released once,
 * and not used afterwards; (3) what points back (child to parent, cache to value) is a weak reference.
 *
 * When not to use it: for memory with one obvious owner (malloc and free), or for plain sharing without weak references
 * inside one thread (an int will do).
 *
 * Example:
 *     static void conn_destroy(void *obj) { conn *c = obj; close(c->fd); }
 *     static const wr_type conn_type = {.name = "conn", .size = sizeof(conn), .destroy = conn_destroy};
 *
 *     conn *c = wr_new(&conn_type);          // strong count 1, zeroed
 *     worker->conn = wr_retain(c);           // 2: the worker's
 *     wr_release(c);                         // 1: ours is gone
 *
 * Guarantees:
 *   A. destroy runs exactly once, after every other holder's last use, and before any callback of a watch.
 *   B. From the moment the count is closed no upgrade succeeds, on any thread; no path resurrects.
 *   C. Deep structures (a list whose nodes own the next) are released in constant stack.
 *   D. Overflow saturates: the object becomes immortal, warned of once and counted; it never wraps.
 * Progress: wr_retain() wait-free; wr_release() wait-free but for the last one, which closes the word lock-free and, where
 * watches or dictionary entries hang on the object, takes spinlocks for a bounded number of steps; wr_new() is as malloc, and
 * what gives memory back, in this header and the others, is as free besides.
 *
 * Idea: the sticky counter with a token of Parkinson, Clebsch and Simner, "Wait-Free Weak Reference Counting", ISMM 2023.
 */
#ifndef WEAKREF_OBJECT_H
#define WEAKREF_OBJECT_H

#include <weakref/detail/header.h>
#include <weakref/types.h>

/** Objects of this type wait, once dead, for running guards before destroy runs: wr_peek() works on them. */
#define WR_TYPE_DEFERRED UINT32_C(1)

/**
 * What an object is. One constant per type, alive as long as any object of it, and any handle of a dead one.
 * In C: `static const wr_type t = {.name = ..., ...}`; in C11 and C++17 alike: WR_TYPE_INIT().
 */
struct wr_type {
    const char *name; /* [kept] shown in messages; NULL: "object" */
    size_t size;      /* of the payload, in bytes; may be 0 */
    size_t align;     /* of the payload: a power of two, or 0 for that of max_align_t */

    /* [borrowed] Runs once, when the object is dead, under no lock. Downgrading obj works here (a dead handle). NULL: none.
     * On the releasing thread; for WR_TYPE_DEFERRED where deferred work runs. What it releases last is dead at once, but
     * destroyed after it has returned, when obj's memory may be gone: no raw pointers back. It must return (no longjmp(),
     * no C++ exception): a thread that exits or is cancelled in it is a panic. */
    void (*destroy)(void *obj);

    /* For dictionaries keyed by objects: both or neither; NULL: identity. Under no lock. */
    uint64_t (*hash)(const void *obj);
    bool (*equal)(const void *a, const void *b);

    /* Writes a short text like snprintf (same result); NULL: "<NAME at ADDRESS>". */
    int (*describe)(const void *obj, char *buf, size_t size);

    uint32_t flags; /* WR_TYPE_DEFERRED; all other bits 0 */

    /* [borrowed] Answers on which queue destroy runs, instead of the releasing thread: closing, flushing and freeing off the hot
     * thread, in portions (wr_queue_drain_for()). Asked by wr_new(), on its thread and under no lock, so that it may be "the
     * queue of the loop that made it". It answers NULL or WR_QUEUE_INLINE for "where it is released". NULL: always there.
     * The object is dead at once; its callbacks follow its destroy. Such a destroy counts in the queue's statistics like a
     * watch that was made by wr_new(), and cannot be cancelled: wr_queue_cancel_all() leaves it pending. If the queue was freed,
     * it runs where the object is released after all, and counts as cancelled there. */
    wr_queue *(*destroy_on)(void);
    void (*traverse)(const void *obj, void (*visit)(void *ref, void *ctx), void *ctx); /* NULL for now */
    void *reserved[4];                                                                 /* NULL */
} __attribute__((aligned(8))); /* so that the header can keep something beside the type's address */

/**
 * WR_TYPE_INIT(.name = "conn", .size = sizeof(conn), ...) - an initialiser with designators that C++17 takes too.
 * Up to ten members, each as `.member = value`.
 */
#ifdef __cplusplus
#define WR_TYPE_SET_1_(a) wr_type_init_ a;
#define WR_TYPE_SET_2_(a, ...) \
    wr_type_init_ a;           \
    WR_TYPE_SET_1_(__VA_ARGS__)
#define WR_TYPE_SET_3_(a, ...) \
    wr_type_init_ a;           \
    WR_TYPE_SET_2_(__VA_ARGS__)
#define WR_TYPE_SET_4_(a, ...) \
    wr_type_init_ a;           \
    WR_TYPE_SET_3_(__VA_ARGS__)
#define WR_TYPE_SET_5_(a, ...) \
    wr_type_init_ a;           \
    WR_TYPE_SET_4_(__VA_ARGS__)
#define WR_TYPE_SET_6_(a, ...) \
    wr_type_init_ a;           \
    WR_TYPE_SET_5_(__VA_ARGS__)
#define WR_TYPE_SET_7_(a, ...) \
    wr_type_init_ a;           \
    WR_TYPE_SET_6_(__VA_ARGS__)
#define WR_TYPE_SET_8_(a, ...) \
    wr_type_init_ a;           \
    WR_TYPE_SET_7_(__VA_ARGS__)
#define WR_TYPE_SET_9_(a, ...) \
    wr_type_init_ a;           \
    WR_TYPE_SET_8_(__VA_ARGS__)
#define WR_TYPE_SET_10_(a, ...) \
    wr_type_init_ a;            \
    WR_TYPE_SET_9_(__VA_ARGS__)
#define WR_TYPE_PICK_(_1, _2, _3, _4, _5, _6, _7, _8, _9, _10, macro, ...) macro
#define WR_TYPE_INIT(...)                                                                                           \
    [] {                                                                                                            \
        wr_type wr_type_init_ = wr_type();                                                                          \
        WR_TYPE_PICK_(__VA_ARGS__, WR_TYPE_SET_10_, WR_TYPE_SET_9_, WR_TYPE_SET_8_, WR_TYPE_SET_7_, WR_TYPE_SET_6_, \
                      WR_TYPE_SET_5_, WR_TYPE_SET_4_, WR_TYPE_SET_3_, WR_TYPE_SET_2_, WR_TYPE_SET_1_, 0)            \
        (__VA_ARGS__) return wr_type_init_;                                                                         \
    }()
#else
#define WR_TYPE_INIT(...) \
    {                     \
        __VA_ARGS__       \
    }
#endif

WR_BEGIN_DECLS

/* Out-of-line halves of the inline functions below; not for direct use. */
WR_API WR_COLD void *WR_LAYOUT(wr_retain_cold)(void *obj, uint64_t old);
WR_API WR_OUT_OF_LINE void WR_LAYOUT(wr_release_cold)(void *obj, uint64_t old);

/**
 * wr_new() - make an object of @type with one strong reference.
 * @type: [kept] not NULL, outlives the object.
 *
 * Header and payload are one block, which weak handles keep after the object's death. A payload of 16 KiB or more gives its
 * whole pages back to the system then, after its destroy and by one system call of the dying thread; its contents are lost. So
 * 16 MiB that a handle remembers are some KiB. Smaller ones have few whole pages, and no allocator takes back the end of
 * a block with the promise not to move the rest. Memory of wr_set_allocator() is only offered (MADV_FREE): the system takes it
 * when it is short.
 *
 * Returns: [owned] the payload, zeroed and aligned, for one wr_release(); NULL with errno set.
 * Errors:  ENOMEM; EINVAL: no type, an alignment that is no power of two, unknown flags, members not offered yet;
 *          EAGAIN: a deferred type, and its reclaimer thread cannot be started, or destroy_on names the default queue, and its
 *          thread cannot. ECANCELED: the queue that destroy_on names is being freed.
 * Threads: any. As malloc; runs no user code but destroy_on.
 * Order:   none; hand the object to other threads as you would any memory.
 */
WR_API WR_NODISCARD void *wr_new(const wr_type *type);

/**
 * wr_new_sized() - the same with a payload of @size bytes instead of type->size.
 * @type: [kept] as for wr_new().
 * @size: bytes of payload, any; 16 more than wr_new() needs are spent to remember it.
 *
 * Returns: [owned] as wr_new().
 * Errors:  as wr_new(); ENOMEM also where the size overflows.
 * Threads: as wr_new().
 * Order:   none.
 */
WR_API WR_NODISCARD void *wr_new_sized(const wr_type *type, size_t size);

/**
 * wr_retain() - add a strong reference.
 * @obj: [borrowed] of which the caller holds a strong reference, or borrowed from wr_slot_peek(). NULL: NULL, errno EINVAL.
 *
 * Returns: [owned] @obj, for one more wr_release().
 * Errors:  a dead object: panic. 2^28 references: the object becomes immortal.
 * Threads: any, beside any call on the object. Wait-free; runs no user code.
 * Order:   none: the caller's own reference orders.
 */
static inline void *wr_retain(void *obj)
{
    if (wr_likely(obj != NULL)) {
        uint64_t old = wr_word_retain_begin(&wr_header_of(obj)->word);
        if (wr_likely(wr_word_is_plain(old, 1)))
            return obj;
        return WR_LAYOUT(wr_retain_cold)(obj, old);
    }
    return WR_LAYOUT(wr_retain_cold)(obj, 0);
}

/**
 * wr_release() - give a strong reference back; the last one ends the object.
 * @obj: [consumed] a strong reference; NULL does nothing.
 *
 * Returns: nothing.
 * Errors:  none; releasing a dead object or more often than retained: panic, where the memory still is.
 * Threads: any. Wait-free, but for the last one, which runs destroy and WR_QUEUE_INLINE callbacks (user code) under no lock
 *          of the library, hands the others to their queues, allocates nothing and waits for nobody. Within a destroy or
 *          such a callback, those of further objects run when it has returned, in the order of death.
 * Order:   everything done with any reference before its release happens before destroy.
 */
static inline void wr_release(void *obj)
{
    if (wr_likely(obj != NULL)) {
        uint64_t old = wr_word_release_begin(&wr_header_of(obj)->word);
        if (wr_unlikely(!wr_word_is_plain(old, 2)))
            WR_LAYOUT(wr_release_cold)(obj, old);
    }
}

/**
 * wr_strong_count() - how many strong references there are.
 * @obj: [borrowed] an object that the caller may use; NULL: 0.
 *
 * Returns: the count, 0 inside destroy. Beside other threads it is old when it arrives.
 * Errors:  none.
 * Threads: any. Wait-free, one load.
 * Order:   none.
 */
WR_API size_t wr_strong_count(const void *obj);

/**
 * wr_weak_count() - how many weak handles, proxies and weak slots refer to the object.
 * @obj: [borrowed] an object that the caller may use; NULL: 0. Watches and dictionary entries do not count.
 *
 * Returns: the count; exact when no other thread works on the object and nothing of it is still deferred: what has left a
 *          dictionary or a weak slot counts until the grace period after that is over.
 * Errors:  none.
 * Threads: any. Wait-free.
 * Order:   none.
 */
WR_API size_t wr_weak_count(const void *obj);

/**
 * wr_type_of() - the type that the object was made with.
 * @obj: [borrowed] not NULL (NULL: NULL with errno EINVAL).
 *
 * Returns: [borrowed] the type.
 * Errors:  none.
 * Threads: any. Wait-free.
 * Order:   none.
 */
WR_API const wr_type *wr_type_of(const void *obj);

/**
 * wr_describe() - a short text about the object: its type's describe, or "<conn at 0x...>".
 * @obj:  [borrowed] not NULL, for the whole call.
 * @buf:  [borrowed] at least @size bytes; may be NULL if @size is 0. Ends with a NUL if @size > 0.
 * @size: bytes of @buf.
 *
 * Returns: the length that the whole text has, as snprintf.
 * Errors:  -EINVAL: no object, or no buffer with a size.
 * Threads: any. Runs the type's describe under no lock.
 * Order:   none.
 */
WR_API int wr_describe(const void *obj, char *buf, size_t size);

/** An object around memory of another library. Its payload, so wr_retain(), wr_downgrade() etc. take it. */
struct wr_box {
    void *ptr;                  /* [kept] what was adopted */
    void (*destroy)(void *ptr); /* or NULL */
};

/**
 * wr_box_new() - adopt memory of another library, so that it can be held weakly.
 * @ptr:     [consumed] on success; on failure it stays the caller's. NULL is allowed.
 * @destroy: called once with @ptr when the box dies; NULL: nothing is.
 *
 * Returns: [owned] the box, for one wr_release(); NULL with errno set.
 * Errors:  ENOMEM.
 * Threads: any. As malloc.
 * Order:   as wr_new().
 */
WR_API WR_NODISCARD wr_box *wr_box_new(void *ptr, void (*destroy)(void *ptr));

WR_END_DECLS

/* Handing what is no object to these calls does not compile: see types.h. */
#ifdef __cplusplus
WR_TAKES_OBJECT_(wr_retain);
WR_TAKES_OBJECT_(wr_release);
WR_TAKES_OBJECT_(wr_strong_count);
WR_TAKES_OBJECT_(wr_weak_count);
WR_TAKES_OBJECT_(wr_type_of);
WR_TAKES_OBJECT_(wr_describe);
#else
#define wr_retain(obj) wr_retain(WR_OBJECT_(obj))
#define wr_release(obj) wr_release(WR_OBJECT_(obj))
#define wr_strong_count(obj) wr_strong_count(WR_OBJECT_(obj))
#define wr_weak_count(obj) wr_weak_count(WR_OBJECT_(obj))
#define wr_type_of(obj) wr_type_of(WR_OBJECT_(obj))
#define wr_describe(obj, ...) wr_describe(WR_OBJECT_(obj), __VA_ARGS__)
#endif

#endif
