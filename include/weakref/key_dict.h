/* F7 keyed: a dictionary from objects, which it does not keep alive, to what is known of them.
 *
 * Keys are objects, held weakly: an entry lives as long as its key and leaves by itself when the key dies. Values are objects,
 * held strongly by their entry (or any pointers, by option). Made for what belongs to an object but has no place in it: the
 * statistics of a connection, a plugin's notes on the host's objects.
 *
 * When not to use it: where the object's own struct can have a field.
 *
 * Mind circles: a value that holds its own key strongly keeps it alive, and by it the entry, and by that itself: it never
 * dies, as in every dictionary of this kind. Recipe: let the value hold its key weakly, and upgrade where it needs it:
 *
 *     notes->about = wr_downgrade(conn);          // and not wr_retain(conn)
 *     wr_key_dict_set(d, conn, notes);            // wr_weak_release(notes->about) in the destroy of notes
 *
 * Example:
 *     wr_key_dict *notes = wr_key_dict_new(NULL);
 *     struct conn *c = wr_new(&conn_type);
 *     struct note *n = wr_new(&note_type);
 *     wr_key_dict_set(notes, c, n);
 *     wr_release(n);                              // the dictionary has a reference of its own
 *     n = wr_key_dict_get(notes, c);              // owned
 *     wr_release(n);
 *     wr_release(c);                              // c dies, the entry leaves, and n is released later
 *     wr_key_dict_free(notes);
 *
 * Which keys are the same: by default an object equals itself alone. With WR_KEYS_BY_EQUAL objects are the same key whose types
 * have the same `equal`, which says so; `hash` must agree with it, and both must not change while the object is in the
 * dictionary. An equal key that is set again keeps the object that was the key first, and its life. Objects whose type
 * has no `equal` are compared by identity all the same.
 *
 * Guarantees:
 *   A. A look-up finds every key that is in the dictionary throughout the call, also while it grows or shrinks and while
 *      its value is replaced.
 *   B. From the instant of its key's death an entry is not seen any more. It is out before the key's destroy runs, and
 *      takes nothing else with it.
 *   C. Each call is one step (linearizable) for its key. clear, free and len are not one step over all keys.
 *   D. The dictionary's reference to a value is given back once all guards that run at that time have ended, as a slot's
 *      is: by wr_barrier(), or by the library's own thread, at most some 10 ms later. So a value that was peeked at stays alive until the
 *      guard ends. In a chain, where a value holds the key of another entry, each link takes a round of its own.
 *   E. No user code runs under a lock of the library: `hash` and `equal` run on the calling thread, `equal` outside of
 *      guards, too, with both objects held. Each call but free may be made from any of them, a destroy or a callback. But an
 *      `equal` that changes the dictionary each time it runs can keep a set from ever ending, where keys share a hash.
 *   F. Freeing a dictionary waits for nobody.
 *   G. An iterator meets every entry that lives, with the same value, throughout the iteration exactly once, and no entry
 *      twice, whatever others change meanwhile.
 * Progress: by identity get, peek and contains are lock-free, and store to no shared memory but the value's count; len is
 * wait-free; iterators take no lock of the dictionary; all others block on a spinlock of one part of it, for a bounded number of
 * steps. By equality each call also upgrades and releases what has the same hash, and so may run the destroy of a key.
 *
 * Bad arguments are refused: -EINVAL, or the value that means "none" with errno EINVAL.
 *
 * Idea: Python's weakref.WeakKeyDictionary, for threads.
 */
#ifndef WEAKREF_KEY_DICT_H
#define WEAKREF_KEY_DICT_H

#include <weakref/detail/iter.h>
#include <weakref/types.h>

WR_BEGIN_DECLS

/* Compare keys by the `equal` of their types; also an option of sets. */
#define WR_KEYS_BY_EQUAL 1u
/* Values are pointers that the library does not look at. A get is then a peek: what keeps the value whole is the caller's
 * guard, or that values are never given back. */
#define WR_VALUES_RAW 2u

/* Options of a new dictionary. What is zero has its default; fields may be added at the end. */
struct wr_key_dict_options {
    size_t struct_size;           /* sizeof(struct wr_key_dict_options) */
    size_t initial_size;          /* as in value_dict.h */
    unsigned flags;               /* WR_KEYS_BY_EQUAL, WR_VALUES_RAW */
    void (*release)(void *value); /* of raw values, where guarantee D has wr_release(); NULL: nothing is done */
};

/**
 * wr_key_dict_new() - make an empty dictionary.
 * @options: [borrowed] NULL for the defaults.
 *
 * Returns: [owned] the dictionary, for wr_key_dict_free(); NULL on failure.
 * Errors:  errno ENOMEM; EINVAL: struct_size too small, fields or flags that this version does not know, a release for
 *          values that are not raw; EAGAIN: the reclaimer thread cannot be started.
 * Threads: any.
 * Order:   handing the dictionary to other threads is the caller's own synchronisation.
 */
WR_API WR_NODISCARD wr_key_dict *wr_key_dict_new(const struct wr_key_dict_options *options);

/**
 * wr_key_dict_free() - give a dictionary back. Its values are released as by D.
 * @d: [consumed] NULL allowed.
 *
 * Returns: nothing.
 * Errors:  none.
 * Threads: no other call on the dictionary may be running or follow, but for the next and end of iterators, which
 *          come to their end. Its keys may be dying meanwhile. Does not wait; runs no user code.
 * Order:   none.
 */
WR_API void wr_key_dict_free(wr_key_dict *d);

/**
 * wr_key_dict_set() - map a key to a value, in place of what it was mapped to.
 * @d:     [borrowed].
 * @key:   [borrowed] the caller holds a strong reference. The entry holds it weakly.
 * @value: [borrowed] the entry takes a strong reference of its own. Raw: [kept] unless the call fails.
 *
 * Returns: 0, or a negative errno. When it fails the dictionary is as it was.
 * Errors:  -ENOMEM; -ESTALE: the key is dead (the call comes from its destroy); -EINVAL: no key, or no value (raw: NULL is one).
 * Threads: any. Blocking: briefly, for one part's lock. By equality runs hash and equal.
 * Order:   what the caller did before is seen by whoever then gets the value.
 */
WR_API int wr_key_dict_set(wr_key_dict *d, void *key, void *value);

/**
 * wr_key_dict_get() - the value of a key.
 * @d:   [borrowed].
 * @key: [borrowed] the caller holds a strong reference, or is its destroy.
 *
 * Returns: [owned] the value, for one wr_release(); raw: [borrowed]. NULL if there is none (errno untouched).
 * Errors:  errno EINVAL.
 * Threads: any. Lock-free; by equality runs hash and equal.
 * Order:   non-NULL happens after the set that put the value there.
 */
WR_API WR_NODISCARD void *wr_key_dict_get(const wr_key_dict *d, const void *key);

/**
 * wr_key_dict_peek() - the same without counting. Only within a guard; values of every type.
 * @d:   [borrowed].
 * @key: [borrowed] the caller holds a strong reference, or is its destroy.
 *
 * Returns: [borrowed] the value until the outermost guard ends, or NULL. It is alive until then.
 * Errors:  errno EINVAL. Outside a guard: panic in debug builds.
 * Threads: any that is in a guard. Lock-free; by equality runs hash and equal.
 * Order:   as a get.
 */
WR_API void *wr_key_dict_peek(const wr_key_dict *d, const void *key);

/**
 * wr_key_dict_contains() - whether a key is there.
 * @d:   [borrowed].
 * @key: [borrowed] the caller holds a strong reference, or is its destroy.
 *
 * Returns: the answer as of some instant of the call.
 * Errors:  errno EINVAL (and false).
 * Threads: any. Lock-free; by equality runs hash and equal.
 * Order:   none.
 */
WR_API bool wr_key_dict_contains(const wr_key_dict *d, const void *key);

/**
 * wr_key_dict_remove() - take a key out.
 * @d:   [borrowed].
 * @key: [borrowed] the caller holds a strong reference, or is its destroy.
 *
 * Returns: 0: it was there and is out; or a negative errno.
 * Errors:  -ENOENT; -EINVAL.
 * Threads: any. Blocking: briefly, for one part's lock. By equality runs hash and equal.
 * Order:   as a set.
 */
WR_API int wr_key_dict_remove(wr_key_dict *d, const void *key);

/**
 * wr_key_dict_remove_if() - take a key out if it still maps to this value.
 * @d:     [borrowed].
 * @key:   [borrowed] as for remove.
 * @value: [borrowed] only its address is used.
 *
 * Returns: 0: it did and is out; or a negative errno.
 * Errors:  -ENOENT: no such key, or another value; -EINVAL.
 * Threads: any. Blocking: briefly, for one part's lock. By equality runs hash and equal.
 * Order:   as a set.
 */
WR_API int wr_key_dict_remove_if(wr_key_dict *d, const void *key, const void *value);

/**
 * wr_key_dict_replace() - map a key to another value if it still maps to this one.
 * @d:        [borrowed].
 * @key:      [borrowed] as for set.
 * @expected: [borrowed] only its address is used.
 * @value:    [borrowed] as for set.
 *
 * Returns: 0: it did and maps to @value now; or a negative errno. When it fails the dictionary is as it was.
 * Errors:  -ENOENT: no such key, or another value; -ENOMEM; -EINVAL.
 * Threads: any. Blocking: briefly, for one part's lock. By equality runs hash and equal.
 * Order:   as a set.
 */
WR_API int wr_key_dict_replace(wr_key_dict *d, void *key, const void *expected, void *value);

/**
 * wr_key_dict_pop() - take a key out and have its value.
 * @d:   [borrowed].
 * @key: [borrowed] as for remove.
 *
 * Returns: [owned] the value, for one wr_release(); NULL if there was none. Of several callers at once one gets it. Raw: [owned]
 *          it is not given to release; who looks at it in a guard may still do so.
 * Errors:  errno EINVAL.
 * Threads: any. Blocking: briefly, for one part's lock. By equality runs hash and equal.
 * Order:   as a get and a remove in one.
 */
WR_API WR_NODISCARD void *wr_key_dict_pop(wr_key_dict *d, const void *key);

/**
 * wr_key_dict_setdefault() - the value of a key; if there is none, map it to this one.
 * @d:     [borrowed].
 * @key:   [borrowed] as for set.
 * @value: [borrowed] as for set; raw: [kept] if that is what @out becomes.
 * @out:   [out owned] the value that is in the dictionary, for one wr_release(); raw: [out borrowed].
 *
 * Returns: 0, or a negative errno, with @out untouched. Of racing callers all get the same value.
 * Errors:  -ENOMEM; -ESTALE: the key is dead; -EINVAL.
 * Threads: any. Lock-free if there is one, else as a set.
 * Order:   as a get or a set.
 */
WR_API int wr_key_dict_setdefault(wr_key_dict *d, void *key, void *value, void **out);

/**
 * wr_key_dict_len() - how many entries there are.
 * @d: [borrowed].
 *
 * Returns: exact when no other thread writes and no key is dying; otherwise no further off than what
 *          came and went during the call, with entries of dying keys counted until they are out.
 * Errors:  errno EINVAL (and 0).
 * Threads: any. Wait-free.
 * Order:   none.
 */
WR_API size_t wr_key_dict_len(const wr_key_dict *d);

/**
 * wr_key_dict_clear() - take out every entry that is there when it is called.
 * @d: [borrowed] NULL allowed.
 *
 * Returns: nothing.
 * Errors:  none.
 * Threads: any. Blocking: briefly, for one part's lock after the other. Runs no user code.
 * Order:   as a remove of each key.
 */
WR_API void wr_key_dict_clear(wr_key_dict *d);

/* ---- all of them; see value_dict.h --------------------------------------------------------------------- */

typedef struct wr_key_dict_iter {
    struct wr_dict_iter iter; /* the library's */
} wr_key_dict_iter;

/* What an iterator gives, and what wr_key_dict_from_items() takes. */
struct wr_key_dict_item {
    void *key;   /* from an iterator: [owned], for one wr_release(); in an array: [borrowed] */
    void *value; /* the same; raw: from an iterator [borrowed] until its next call, or until its popper ends it */
};

/**
 * wr_key_dict_iter_begin() - begin to go through a dictionary.
 * @it: [out] for wr_key_dict_iter_end().
 * @d:  [borrowed] or NULL: then there is nothing in it, and errno is EINVAL.
 *
 * Returns: nothing.
 * Errors:  none: it needs no memory.
 * Threads: any, beside any call on the dictionary.
 * Order:   none.
 */
WR_API void wr_key_dict_iter_begin(wr_key_dict_iter *it, wr_key_dict *d);

/**
 * wr_key_dict_iter_next() - the next entry that has a living key.
 * @it:   [borrowed].
 * @item: [out owned] key and value are for one wr_release() each.
 *
 * Returns: whether there was one. After the end: false, again and again.
 * Errors:  none: it needs no memory.
 * Threads: one at a time for one iterator, beside any call on the dictionary. Lock-free but for a spinlock shared with
 *          few other iterators; runs no user code.
 * Order:   as a get of that key.
 */
WR_API bool wr_key_dict_iter_next(wr_key_dict_iter *it, struct wr_key_dict_item *item);

/**
 * wr_key_dict_iter_next_ref() - the next key, as a weak handle: keeps nothing alive, not even for a moment.
 * @it:  [borrowed].
 * @key: [out owned] for one wr_weak_release(). Untouched at the end.
 *
 * Returns: whether there was one. It was alive at some instant of the call.
 * Errors:  none: it needs no memory.
 * Threads: as wr_key_dict_iter_next().
 * Order:   none.
 */
WR_API bool wr_key_dict_iter_next_ref(wr_key_dict_iter *it, wr_weak **key);

/**
 * wr_key_dict_iter_end() - leave the dictionary.
 * @it: [consumed] begun. Ending it once more does nothing.
 *
 * Returns: nothing.
 * Errors:  none.
 * Threads: as wr_key_dict_iter_next().
 * Order:   none.
 */
WR_API void wr_key_dict_iter_end(wr_key_dict_iter *it);

/**
 * wr_key_dict_popitem() - take some entry out and have its key and value.
 * @d:    [borrowed].
 * @item: [out owned] key and value are for one wr_release() each; a raw value as from pop. Untouched if there is none.
 *
 * Returns: whether there was one.
 * Errors:  errno EINVAL (and false).
 * Threads: any. Blocking: briefly, for one part's lock; may run the destroy of a key, whose last reference it finds
 *          itself with because another caller took the entry first.
 * Order:   as a pop of that key.
 */
WR_API bool wr_key_dict_popitem(wr_key_dict *d, struct wr_key_dict_item *item);

/**
 * wr_key_dict_update() - set all that is in another dictionary, whose values must be of the same kind (raw, or not).
 * @d:    [borrowed].
 * @from: [borrowed] or the same.
 *
 * Returns: 0, or a negative errno: then what was set so far is set.
 * Errors:  -ENOMEM; -EINVAL: raw values that a release waits for in one of the two, or of one kind here and another there.
 * Threads: any. As an iterator and a set for each key: two may update each other at the same time.
 * Order:   as a get and a set for each key.
 */
WR_API int wr_key_dict_update(wr_key_dict *d, wr_key_dict *from);

/**
 * wr_key_dict_update_items() - set all that is in an array, in its order.
 * @d:     [borrowed].
 * @items: [borrowed] the caller holds strong references.
 * @n:     how many.
 *
 * Returns: 0, or a negative errno: then what was set so far is set.
 * Errors:  those of wr_key_dict_set().
 * Threads: any. As a set for each key.
 * Order:   as a set for each key.
 */
WR_API int wr_key_dict_update_items(wr_key_dict *d, const struct wr_key_dict_item *items, size_t n);

/**
 * wr_key_dict_from_items() - a new dictionary of what is in an array.
 * @options: [borrowed] NULL for the defaults.
 * @items:   [borrowed] the caller holds strong references.
 * @n:       how many.
 *
 * Returns: [owned] the dictionary, for wr_key_dict_free(); NULL on failure.
 * Errors:  errno: those of wr_key_dict_new() and wr_key_dict_set(); EINVAL for options with a release: after a failure nobody
 *          could tell whose the values are.
 * Threads: any.
 * Order:   none.
 */
WR_API WR_NODISCARD wr_key_dict *wr_key_dict_from_items(const struct wr_key_dict_options *options,
                                                        const struct wr_key_dict_item *items, size_t n);

/**
 * wr_key_dict_copy() - a new dictionary of what is in another one, with the same flags.
 * @from: [borrowed].
 *
 * Returns: [owned] the dictionary, for wr_key_dict_free(); NULL on failure.
 * Errors:  errno ENOMEM, EAGAIN; EINVAL, also for raw values that a release waits for: two would own them.
 * Threads: any, beside any call on @from; it is no snapshot, but goes through it as an iterator does.
 * Order:   as wr_key_dict_update().
 */
WR_API WR_NODISCARD wr_key_dict *wr_key_dict_copy(wr_key_dict *from);

/**
 * wr_key_dict_union() - a new dictionary of what is in two, with the flags of the first; where both have a key, the second's value.
 * @a: [borrowed].
 * @b: [borrowed] NULL: then it is a copy of @a.
 *
 * Returns: [owned] the dictionary, for wr_key_dict_free(); NULL on failure.
 * Errors:  errno: as wr_key_dict_copy().
 * Threads: as wr_key_dict_copy().
 * Order:   as wr_key_dict_update().
 */
WR_API WR_NODISCARD wr_key_dict *wr_key_dict_union(wr_key_dict *a, wr_key_dict *b);

WR_END_DECLS

/* Handing what is no object to these calls, as a key, does not compile: see types.h. (A value may be raw, and so anything.) */
#ifdef __cplusplus
WR_TAKES_OBJECT_AFTER_(wr_key_dict_set, wr_key_dict *);
WR_TAKES_OBJECT_AFTER_(wr_key_dict_get, const wr_key_dict *);
WR_TAKES_OBJECT_AFTER_(wr_key_dict_peek, const wr_key_dict *);
WR_TAKES_OBJECT_AFTER_(wr_key_dict_contains, const wr_key_dict *);
WR_TAKES_OBJECT_AFTER_(wr_key_dict_remove, wr_key_dict *);
WR_TAKES_OBJECT_AFTER_(wr_key_dict_remove_if, wr_key_dict *);
WR_TAKES_OBJECT_AFTER_(wr_key_dict_replace, wr_key_dict *);
WR_TAKES_OBJECT_AFTER_(wr_key_dict_pop, wr_key_dict *);
WR_TAKES_OBJECT_AFTER_(wr_key_dict_setdefault, wr_key_dict *);
#else
#define wr_key_dict_set(d, key, ...) wr_key_dict_set(d, WR_OBJECT_(key), __VA_ARGS__)
#define wr_key_dict_get(d, key) wr_key_dict_get(d, WR_OBJECT_(key))
#define wr_key_dict_peek(d, key) wr_key_dict_peek(d, WR_OBJECT_(key))
#define wr_key_dict_contains(d, key) wr_key_dict_contains(d, WR_OBJECT_(key))
#define wr_key_dict_remove(d, key) wr_key_dict_remove(d, WR_OBJECT_(key))
#define wr_key_dict_remove_if(d, key, ...) wr_key_dict_remove_if(d, WR_OBJECT_(key), __VA_ARGS__)
#define wr_key_dict_replace(d, key, ...) wr_key_dict_replace(d, WR_OBJECT_(key), __VA_ARGS__)
#define wr_key_dict_pop(d, key) wr_key_dict_pop(d, WR_OBJECT_(key))
#define wr_key_dict_setdefault(d, key, ...) wr_key_dict_setdefault(d, WR_OBJECT_(key), __VA_ARGS__)
#endif

#endif
