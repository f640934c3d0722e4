/* F7 keyed: a set of objects that it does not keep alive.
 *
 * A member leaves by itself when it dies. Made for registries: all open connections, all subscribers, whatever somebody is to
 * go through without owning it.
 *
 * When not to use it: for a few objects of one thread (an array of weak handles); for something to be called at an event
 * (signal.h).
 *
 * Example:
 *     wr_set *open = wr_set_new(NULL);
 *     struct conn *c = wr_new(&conn_type);
 *     wr_set_add(open, c);
 *     wr_set_iter it;
 *     void *obj;
 *     wr_set_iter_begin(&it, open);
 *     while (wr_set_iter_next(&it, &obj))         // each: owned
 *         wr_release(obj);
 *     wr_set_iter_end(&it);
 *     wr_release(c);                              // c dies, and is out
 *     wr_set_free(open);
 *
 * Which objects are the same: as the keys of key_dict.h, with its option WR_KEYS_BY_EQUAL. An equal object that is added
 * changes nothing: the first one stays.
 *
 * Guarantees, progress: those of key_dict.h, but for what is said of values there. What takes two sets goes through one
 * as an iterator does and changes the other one object at a time: it is one step for each object, not for all, and holds
 * nothing in between. What compares two sets is right if nobody changes them meanwhile.
 *
 * Bad arguments are refused: -EINVAL, or the value that means "none" with errno EINVAL.
 *
 * Idea: Python's weakref.WeakSet, for threads.
 */
#ifndef WEAKREF_SET_H
#define WEAKREF_SET_H

#include <weakref/detail/iter.h>
#include <weakref/key_dict.h>
#include <weakref/types.h>

WR_BEGIN_DECLS

/* Options of a new set. What is zero has its default; fields may be added at the end. */
struct wr_set_options {
    size_t struct_size;  /* sizeof(struct wr_set_options) */
    size_t initial_size; /* as in value_dict.h */
    unsigned flags;      /* WR_KEYS_BY_EQUAL */
};

/**
 * wr_set_new() - make an empty set.
 * @options: [borrowed] NULL for the defaults.
 *
 * Returns: [owned] the set, for wr_set_free(); NULL on failure.
 * Errors:  errno ENOMEM; EINVAL: struct_size too small, fields or flags that this version does not know; EAGAIN: the
 *          reclaimer thread cannot be started.
 * Threads: any.
 * Order:   handing the set to other threads is the caller's own synchronisation.
 */
WR_API WR_NODISCARD wr_set *wr_set_new(const struct wr_set_options *options);

/**
 * wr_set_from_array() - a new set of what is in an array.
 * @options: [borrowed] NULL for the defaults.
 * @objs:    [borrowed] the caller holds strong references.
 * @n:       how many.
 *
 * Returns: [owned] the set, for wr_set_free(); NULL on failure.
 * Errors:  errno: those of wr_set_new() and wr_set_add().
 * Threads: any.
 * Order:   none.
 */
WR_API WR_NODISCARD wr_set *wr_set_from_array(const struct wr_set_options *options, void *const *objs, size_t n);

/**
 * wr_set_copy() - a new set of what is in another one, with the same flags.
 * @from: [borrowed].
 *
 * Returns: [owned] the set, for wr_set_free(); NULL on failure.
 * Errors:  errno ENOMEM, EINVAL, EAGAIN.
 * Threads: any, beside any call on @from.
 * Order:   none.
 */
WR_API WR_NODISCARD wr_set *wr_set_copy(wr_set *from);

/**
 * wr_set_free() - give a set back. Its members are left alone.
 * @s: [consumed] NULL allowed.
 *
 * Returns: nothing.
 * Errors:  none.
 * Threads: no other call on the set may be running or follow, but for the next and end of iterators, which come to their end.
 *          Its members may be dying meanwhile. Does not wait; runs no user code.
 * Order:   none.
 */
WR_API void wr_set_free(wr_set *s);

/**
 * wr_set_add() - put an object in, unless an equal one is there.
 * @s:   [borrowed].
 * @obj: [borrowed] the caller holds a strong reference. The set holds it weakly.
 *
 * Returns: 0: it, or an equal one, is in the set; or a negative errno. When it fails the set is as it was.
 * Errors:  -ENOMEM; -ESTALE: the object is dead (the call comes from its destroy); -EINVAL.
 * Threads: any. Blocking: briefly, for one part's lock. By equality runs hash and equal.
 * Order:   what the caller did before is seen by whoever then gets the object from the set.
 */
WR_API int wr_set_add(wr_set *s, void *obj);

/**
 * wr_set_discard() - take an object out if it is there.
 * @s:   [borrowed].
 * @obj: [borrowed] the caller holds a strong reference, or is its destroy.
 *
 * Returns: 0: it is not in the set; or -EINVAL.
 * Errors:  -EINVAL.
 * Threads: any. Blocking: briefly, for one part's lock. By equality runs hash and equal.
 * Order:   as an add.
 */
WR_API int wr_set_discard(wr_set *s, const void *obj);

/**
 * wr_set_remove() - take an object out, and say whether it was there.
 * @s:   [borrowed].
 * @obj: [borrowed] the caller holds a strong reference, or is its destroy.
 *
 * Returns: 0: it was there and is out; or a negative errno.
 * Errors:  -ENOENT; -EINVAL.
 * Threads: any. Blocking: briefly, for one part's lock. By equality runs hash and equal.
 * Order:   as an add.
 */
WR_API int wr_set_remove(wr_set *s, const void *obj);

/**
 * wr_set_contains() - whether an object, or an equal one, is in the set.
 * @s:   [borrowed].
 * @obj: [borrowed] the caller holds a strong reference, or is its destroy.
 *
 * Returns: the answer as of some instant of the call.
 * Errors:  errno EINVAL (and false).
 * Threads: any. Lock-free; by equality runs hash and equal.
 * Order:   none.
 */
WR_API bool wr_set_contains(const wr_set *s, const void *obj);

/**
 * wr_set_get() - the member that equals an object: the one of all equal ones that came first.
 * @s:   [borrowed].
 * @obj: [borrowed] the caller holds a strong reference, or is its destroy.
 *
 * Returns: [owned] the member, for one wr_release(); NULL if there is none (errno untouched).
 * Errors:  errno EINVAL.
 * Threads: any. Lock-free; by equality runs hash and equal.
 * Order:   non-NULL happens after the add that put it there.
 */
WR_API WR_NODISCARD void *wr_set_get(const wr_set *s, const void *obj);

/**
 * wr_set_pop() - take some member out.
 * @s: [borrowed].
 *
 * Returns: [owned] the object, for one wr_release(); NULL if there is none left (errno untouched).
 * Errors:  errno EINVAL.
 * Threads: any. Blocking: briefly, for one part's lock; may run the destroy of an object, whose last reference it finds
 *          itself with because another caller took it out first.
 * Order:   as a remove.
 */
WR_API WR_NODISCARD void *wr_set_pop(wr_set *s);

/**
 * wr_set_len() - how many members there are.
 * @s: [borrowed].
 *
 * Returns: exact when no other thread writes and no member is dying; otherwise no further off than what
 *          came and went during the call, with dying members counted until they are out.
 * Errors:  errno EINVAL (and 0).
 * Threads: any. Wait-free.
 * Order:   none.
 */
WR_API size_t wr_set_len(const wr_set *s);

/**
 * wr_set_clear() - take out all that is there when it is called.
 * @s: [borrowed] NULL allowed.
 *
 * Returns: nothing.
 * Errors:  none.
 * Threads: any. Blocking: briefly, for one part's lock after the other. Runs no user code.
 * Order:   as a remove of each.
 */
WR_API void wr_set_clear(wr_set *s);

/* ---- all of them; see value_dict.h --------------------------------------------------------------------- */

typedef struct wr_set_iter {
    struct wr_dict_iter iter; /* the library's */
} wr_set_iter;

/**
 * wr_set_iter_begin() - begin to go through a set.
 * @it: [out] for wr_set_iter_end().
 * @s:  [borrowed] or NULL: then there is nothing in it, and errno is EINVAL.
 *
 * Returns: nothing.
 * Errors:  none: it needs no memory.
 * Threads: any, beside any call on the set.
 * Order:   none.
 */
WR_API void wr_set_iter_begin(wr_set_iter *it, wr_set *s);

/**
 * wr_set_iter_next() - the next living member.
 * @it:  [borrowed].
 * @obj: [out owned] for one wr_release(). NULL at the end.
 *
 * Returns: whether there was one. After the end: false, again and again.
 * Errors:  none: it needs no memory.
 * Threads: one at a time for one iterator, beside any call on the set. Lock-free but for a spinlock shared with
 *          few other iterators; runs no user code.
 * Order:   happens after the add that put it there.
 */
WR_API bool wr_set_iter_next(wr_set_iter *it, void **obj);

/**
 * wr_set_iter_next_ref() - the next member, as a weak handle: keeps nothing alive, not even for a moment.
 * @it:  [borrowed].
 * @ref: [out owned] for one wr_weak_release(). Untouched at the end.
 *
 * Returns: whether there was one. It was alive at some instant of the call.
 * Errors:  none: it needs no memory.
 * Threads: as wr_set_iter_next().
 * Order:   none.
 */
WR_API bool wr_set_iter_next_ref(wr_set_iter *it, wr_weak **ref);

/**
 * wr_set_iter_end() - leave the set.
 * @it: [consumed] begun. Ending it once more does nothing.
 *
 * Returns: nothing.
 * Errors:  none.
 * Threads: as wr_set_iter_next().
 * Order:   none.
 */
WR_API void wr_set_iter_end(wr_set_iter *it);

/* ---- two sets ------------------------------------------------------------------------------------------------
 *
 * These change @s by what is in @other, which may be @s itself.
 *
 * Returns: 0, or a negative errno: then what was done so far is done.
 * Errors:  -EINVAL; where something is added, -ENOMEM.
 * Threads: any. As an iterator and a change for each object: two may change each other at the same time. May run the
 *          destroy of an object that everybody else lets go of meanwhile.
 * Order:   as the changes, one by one. */

/** wr_set_update() - what is in @other comes to be in @s, too. @s: [borrowed]. @other: [borrowed]. */
WR_API int wr_set_update(wr_set *s, wr_set *other);
/** wr_set_update_array() - the same with what is in an array. @objs: [borrowed] the caller holds references. @n: how many. */
WR_API int wr_set_update_array(wr_set *s, void *const *objs, size_t n);
/** wr_set_intersection_update() - what is not in @other leaves @s. @s: [borrowed]. @other: [borrowed]. */
WR_API int wr_set_intersection_update(wr_set *s, wr_set *other);
/** wr_set_difference_update() - what is in @other leaves @s. @s: [borrowed]. @other: [borrowed]. */
WR_API int wr_set_difference_update(wr_set *s, wr_set *other);
/** wr_set_symmetric_difference_update() - what is in @other leaves @s if it is there, and comes if not. @s: [borrowed].
 * @other: [borrowed]. */
WR_API int wr_set_symmetric_difference_update(wr_set *s, wr_set *other);

/* These make a new set, with the flags of @a.
 *
 * Returns: [owned] the set, for wr_set_free(); NULL on failure.
 * Errors:  errno ENOMEM, EINVAL, EAGAIN.
 * Threads: any, as above.
 * Order:   as above. */

/** wr_set_union() - what is in one or the other. @a: [borrowed]. @b: [borrowed]. */
WR_API WR_NODISCARD wr_set *wr_set_union(wr_set *a, wr_set *b);
/** wr_set_intersection() - what is in both. @a: [borrowed]. @b: [borrowed]. */
WR_API WR_NODISCARD wr_set *wr_set_intersection(wr_set *a, wr_set *b);
/** wr_set_difference() - what is in @a and not in @b. @a: [borrowed]. @b: [borrowed]. */
WR_API WR_NODISCARD wr_set *wr_set_difference(wr_set *a, wr_set *b);
/** wr_set_symmetric_difference() - what is in one and not in the other. @a: [borrowed]. @b: [borrowed]. */
WR_API WR_NODISCARD wr_set *wr_set_symmetric_difference(wr_set *a, wr_set *b);

/* These compare the living members.
 *
 * Returns: the answer, if nobody changes the sets meanwhile.
 * Errors:  errno EINVAL (and false).
 * Threads: any. As an iterator and a look-up for each object. May run the destroy of an object that everybody else lets go
 *          of meanwhile.
 * Order:   none. */

/** wr_set_isdisjoint() - nothing is in both. @a: [borrowed]. @b: [borrowed]. */
WR_API bool wr_set_isdisjoint(wr_set *a, wr_set *b);
/** wr_set_issubset() - all that is in @a is in @b. @a: [borrowed]. @b: [borrowed]. */
WR_API bool wr_set_issubset(wr_set *a, wr_set *b);
/** wr_set_issuperset() - all that is in @b is in @a. @a: [borrowed]. @b: [borrowed]. */
WR_API bool wr_set_issuperset(wr_set *a, wr_set *b);
/** wr_set_equal() - both have the same members. @a: [borrowed]. @b: [borrowed]. */
WR_API bool wr_set_equal(wr_set *a, wr_set *b);

WR_END_DECLS

/* Handing what is no object to these calls does not compile: see types.h. */
#ifdef __cplusplus
WR_TAKES_OBJECT_AFTER_(wr_set_add, wr_set *);
WR_TAKES_OBJECT_AFTER_(wr_set_discard, wr_set *);
WR_TAKES_OBJECT_AFTER_(wr_set_remove, wr_set *);
WR_TAKES_OBJECT_AFTER_(wr_set_contains, const wr_set *);
WR_TAKES_OBJECT_AFTER_(wr_set_get, const wr_set *);
#else
#define wr_set_add(s, obj) wr_set_add(s, WR_OBJECT_(obj))
#define wr_set_discard(s, obj) wr_set_discard(s, WR_OBJECT_(obj))
#define wr_set_remove(s, obj) wr_set_remove(s, WR_OBJECT_(obj))
#define wr_set_contains(s, obj) wr_set_contains(s, WR_OBJECT_(obj))
#define wr_set_get(s, obj) wr_set_get(s, WR_OBJECT_(obj))
#endif

#endif
