/* F7 value_dict: a dictionary from keys to objects that it does not keep alive.
 *
 * Keys are bytes, copied into the entry. Values are objects, held weakly: an entry lives as long as its object and
 * leaves by itself when the object dies. Made for caches and registries whose contents somebody else owns: open files
 * by path, sessions by id, one shared object per distinct name.
 *
 * When not to use it: for entries that the dictionary alone is to keep (a plain map of owned references does that); for
 * a handful of entries of one thread (an array is faster). And mind circles: a value that holds its own key strongly
 * never dies where that key leads back to it, nor does any object that holds itself through however many others; its
 * entry never leaves. Hold one side of the circle weakly (wr_downgrade()).
 *
 * Example:
 *     wr_value_dict *files = wr_value_dict_new(NULL);
 *     struct file *f = wr_new(&file_type);
 *     wr_value_dict_set_str(files, "/etc/motd", f);
 *     void *same = wr_value_dict_get_str(files, "/etc/motd");  // owned: f
 *     wr_release(same);
 *     wr_release(f);                                           // the last one: f dies, its entry leaves
 *     assert(wr_value_dict_get_str(files, "/etc/motd") == NULL);
 *     wr_value_dict_free(files);
 *
 * Guarantees:
 *   A. A look-up finds every key that has a living object in the dictionary throughout the call, also while the
 *      dictionary grows or shrinks, and while the key's object is replaced.
 *   B. From the instant of its object's death an entry is not seen any more. It is out before the object's destroy
 *      runs, and never takes out what replaced it.
 *   C. Each call is one step (linearizable) for its key. clear, free and len are not one step over all keys.
 *   D. At most one create runs for a key at a time, and callers with different keys never wait for each other's.
 *   E. No user code runs under a lock of the library. Each call but free may be made from a destroy, a callback or a
 *      create, on the same dictionary too, and inside a guard.
 *   F. Freeing a dictionary waits for nobody, and leaves its objects alone; but see "Keeping".
 *   G. An iterator meets every entry that lives, with the same object, throughout the iteration exactly once, and no entry
 *      twice, whatever others change meanwhile, the size of the table included. What comes or goes meanwhile it meets or not.
 *   H. Keys that were chosen to share a bucket, by somebody who knows or guesses the dictionary's hash, cost about what others
 *      do: where too many meet, new ones are placed by SipHash.
 * Progress: get, peek, contains: lock-free, and they store to no shared memory but the object's count. len: wait-free.
 * set, remove, remove_if, replace, pop, popitem, setdefault, clear, free: blocking, on a spinlock of one part of the dictionary that is
 * held for a bounded number of steps and the comparing of keys. Iterators: they take no lock of the dictionary. get_or_create: lock-free if there is one; else it may wait for another's create.
 *
 * Bad arguments (no dictionary; key NULL with a size above 0) are refused: -EINVAL, or the value that means "none" with
 * errno EINVAL. "Not there" is an answer: it leaves errno alone.
 *
 * Keeping: a dictionary made with one of the keep_* options is a cache. It holds strong references to the objects that were used most
 * recently, within these limits; what it lets go stays to be found for as long as somebody else holds it, as all objects
 * do without these options, and is kept again when it is used then.
 *   - A use is: being set or created, and being the answer of get, peek, setdefault, get_or_create. Not: contains, iterators,
 *     copy and update of another dictionary. peek, which holds nothing, does not keep again what was let go.
 *   - Who is let go is decided by SIEVE (Zhang et al., NSDI 2024): the oldest that was not used since the last look at it. A
 *     use of what is kept takes no lock and sets one mark, if it is not yet set; one of what was let go takes a short spinlock.
 *   - It is let go by the calls that keep something new, and for time's sake by these and trim: no thread looks after it. A set that finds
 *     much out of time lets go some of it, trim (0 will do) all. wr_pressure_start() (pressure.h) trims when memory is short.
 *   - Objects whose last reference goes die on the thread that makes the call: with these options each call that sets, creates,
 *     gets, takes out, clears or frees may run the destroy of objects that it lets go, under no lock; so such a call
 *     may well be the wrong one inside WR_NO_DESTROY. Their destroys may use the dictionary, but not free it; nor may an on_removal
 *     on WR_QUEUE_INLINE.
 *   - What is replaced, taken out or cleared is let go at once; pop gives it to the caller. Freeing the dictionary lets go all of it,
 *     and waits for a trim under pressure that is at this dictionary, on another thread. Destroys of deferred types, and on queues, come
 *     later, and find it freed.
 *   - Each entry counts by itself, also of an object that has several. While several threads set at once, some more may be
 *     kept for a moment.
 *
 * Idea: Python's weakref.WeakValueDictionary, for threads.
 */
#ifndef WEAKREF_VALUE_DICT_H
#define WEAKREF_VALUE_DICT_H

#include <string.h>

#include <weakref/detail/iter.h>
#include <weakref/types.h>

WR_BEGIN_DECLS

/**
 * wr_value_dict_removal_fn - hears that an entry left because its object died.
 * @key:  [borrowed] its key. Another object may have it by now.
 * @size: its size in bytes.
 * @ctx:  [borrowed] what the options gave.
 */
typedef void wr_value_dict_removal_fn(const void *key, size_t size, void *ctx);

/**
 * wr_value_dict_size_fn - what an object counts for in keep_size: its bytes, say, or its cost.
 * @obj: [borrowed] the object that is about to be kept.
 * @ctx: [borrowed] what the options gave.
 *
 * Called once per set, before it, under no lock; it may use the dictionary. What the object grows by later is not seen.
 */
typedef size_t wr_value_dict_size_fn(const void *obj, void *ctx);

/* Options of a new dictionary. What is zero has its default; fields may be added at the end. */
struct wr_value_dict_options {
    size_t struct_size;  /* sizeof(struct wr_value_dict_options) */
    size_t initial_size; /* entries to make room for at once; a small number also makes the empty
                            dictionary small (at the price of less parallel writers) */
    /* Called for each entry that leaves by death, as a watch's callback is: on the queue, after the object's destroy, in the order
     * of deaths, once, and without needing memory then. Not called for what remove, pop, set, clear or free took
     * out while the object lived. Each entry counts in the queue's figures as a watch. It may use the dictionary, and free it.
     * What is pending when the dictionary is freed still comes (wr_queue_barrier() waits for it); the queue must not
     * be freed before the dictionary is. Costs 48 bytes per entry. */
    wr_value_dict_removal_fn *on_removal; /* or NULL */
    void *ctx;                            /* for on_removal and size_of */
    wr_queue *queue;                      /* where on_removal runs; NULL: the default queue */
    /* What the dictionary keeps: see "Keeping". Any of the three makes it keep; of several, all are limits. Costs 64 bytes per
     * entry. */
    size_t keep_objects;            /* so many objects */
    size_t keep_size;               /* so much of what size_of says; one object that is larger is not kept at all */
    uint64_t keep_ms;               /* milliseconds since the last use: between so many and an eighth more */
    wr_value_dict_size_fn *size_of; /* with keep_size, and only then */
};

/**
 * wr_value_dict_create_fn - makes the object that a key lacks, for wr_value_dict_get_or_create().
 * @key:  [borrowed] the key asked for.
 * @size: its size in bytes.
 * @ctx:  [borrowed] what the caller gave.
 * @obj:  [out owned] the object; looked at only when 0 is returned.
 *
 * Returns: 0, or a negative errno of its own choice.
 */
typedef int wr_value_dict_create_fn(const void *key, size_t size, void *ctx, void **obj);

/**
 * wr_value_dict_new() - make an empty dictionary.
 * @options: [borrowed] NULL for the defaults.
 *
 * Returns: [owned] the dictionary, for wr_value_dict_free(); NULL on failure.
 * Errors:  errno ENOMEM; EINVAL: struct_size too small, or fields set that this version does not know; EAGAIN: the reclaimer
 *          thread, or that of the default queue, cannot be started; ECANCELED: the queue is being freed.
 * Threads: any.
 * Order:   handing the dictionary to other threads is the caller's own synchronisation.
 */
WR_API WR_NODISCARD wr_value_dict *wr_value_dict_new(const struct wr_value_dict_options *options);

/**
 * wr_value_dict_free() - give a dictionary back. Its objects are left alone.
 * @d: [consumed] NULL allowed.
 *
 * Returns: nothing.
 * Errors:  none.
 * Threads: no other call on the dictionary may be running or follow, but for the next and end of iterators, which
 *          come to their end. Its objects may be dying meanwhile on any thread. Does not wait; runs no user code.
 * Order:   none.
 */
WR_API void wr_value_dict_free(wr_value_dict *d);

/**
 * wr_value_dict_set() - map a key to an object, in place of what it was mapped to.
 * @d:    [borrowed].
 * @key:  [borrowed] copied; may be NULL if @size is 0.
 * @size: bytes; 0 is a key like any other.
 * @obj:  [borrowed] the caller holds a strong reference. The entry holds it weakly.
 *
 * Returns: 0, or a negative errno. When it fails the dictionary is as it was.
 * Errors:  -ENOMEM; -ESTALE: the object is dead (the call comes from its destroy); -EINVAL.
 * Threads: any. Blocking: briefly, for one part's lock. Runs no user code.
 * Order:   what the caller did before is seen by whoever then gets the object from the dictionary.
 */
WR_API int wr_value_dict_set(wr_value_dict *d, const void *key, size_t size, void *obj);

/**
 * wr_value_dict_get() - the living object of a key.
 * @d:    [borrowed].
 * @key:  [borrowed].
 * @size: bytes.
 *
 * Returns: [owned] the object, for one wr_release(); NULL if there is none (errno untouched).
 * Errors:  errno EINVAL.
 * Threads: any. Lock-free; runs no user code, allocates nothing.
 * Order:   non-NULL happens after the set that put the object there.
 */
WR_API WR_NODISCARD void *wr_value_dict_get(const wr_value_dict *d, const void *key, size_t size);

/**
 * wr_value_dict_peek() - a look at the object of a key without counting it. Only within a guard.
 * @d:    [borrowed].
 * @key:  [borrowed].
 * @size: bytes.
 *
 * Returns: [borrowed] the object until the outermost guard ends, or NULL: there is none. It may die while it is looked
 *          at; it stays whole. It may be read and handed to wr_retain_live(), nothing else.
 * Errors:  errno EINVAL. A type without WR_TYPE_DEFERRED: panic. Outside a guard: panic in debug builds.
 * Threads: any that is in a guard. Lock-free; runs no user code, stores to no shared memory.
 * Order:   non-NULL happens after the set that put the object there.
 */
WR_API void *wr_value_dict_peek(const wr_value_dict *d, const void *key, size_t size);

/**
 * wr_value_dict_contains() - whether a key has a living object.
 * @d:    [borrowed].
 * @key:  [borrowed].
 * @size: bytes.
 *
 * Returns: the answer as of some instant of the call.
 * Errors:  errno EINVAL (and false).
 * Threads: any. Lock-free; runs no user code, stores to no shared memory.
 * Order:   none. Do not get after it: get, and look whether it is NULL.
 */
WR_API bool wr_value_dict_contains(const wr_value_dict *d, const void *key, size_t size);

/**
 * wr_value_dict_remove() - take a key out.
 * @d:    [borrowed].
 * @key:  [borrowed].
 * @size: bytes.
 *
 * Returns: 0: it was there and is out; or a negative errno.
 * Errors:  -ENOENT: no such key, or its object is dead; -EINVAL.
 * Threads: any. Blocking: briefly, for one part's lock. Runs no user code.
 * Order:   as a set.
 */
WR_API int wr_value_dict_remove(wr_value_dict *d, const void *key, size_t size);

/**
 * wr_value_dict_remove_if() - take a key out if it still maps to this object.
 * @d:    [borrowed].
 * @key:  [borrowed].
 * @size: bytes.
 * @obj:  [borrowed] the caller holds a reference to it, or the answer means nothing.
 *
 * Returns: 0: it did and is out; or a negative errno.
 * Errors:  -ENOENT: no such key, another object, or the object is dead; -EINVAL.
 * Threads: any. Blocking: briefly, for one part's lock. Runs no user code.
 * Order:   as a set.
 */
WR_API int wr_value_dict_remove_if(wr_value_dict *d, const void *key, size_t size, const void *obj);

/**
 * wr_value_dict_replace() - map a key to another object if it still maps to this one.
 * @d:        [borrowed].
 * @key:      [borrowed] copied.
 * @size:     bytes.
 * @expected: [borrowed] the caller holds a reference to it, or the answer means nothing.
 * @obj:      [borrowed] the caller holds a strong reference.
 *
 * Returns: 0: it did and maps to @obj now; or a negative errno. When it fails the dictionary is as it was.
 * Errors:  -ENOENT: no such key, another object, or @expected is dead; -ENOMEM; -ESTALE: @obj is dead; -EINVAL.
 * Threads: any. Blocking: briefly, for one part's lock. Runs no user code.
 * Order:   as a set.
 */
WR_API int wr_value_dict_replace(wr_value_dict *d, const void *key, size_t size, const void *expected, void *obj);

/**
 * wr_value_dict_pop() - take a key out and have its object.
 * @d:    [borrowed].
 * @key:  [borrowed].
 * @size: bytes.
 *
 * Returns: [owned] the object that was taken out, for one wr_release(); NULL if there was none. Of several callers at
 *          once one gets it.
 * Errors:  errno EINVAL.
 * Threads: any. Blocking: briefly, for one part's lock. Runs no user code, unless another caller took the
 *          entry first and the reference tried turns out to be the last one.
 * Order:   as a get and a remove in one.
 */
WR_API WR_NODISCARD void *wr_value_dict_pop(wr_value_dict *d, const void *key, size_t size);

/**
 * wr_value_dict_setdefault() - the object of a key; if there is none, map it to this one.
 * @d:    [borrowed].
 * @key:  [borrowed] copied.
 * @size: bytes.
 * @obj:  [borrowed] the caller holds a strong reference.
 * @out:  [out owned] the object that is in the dictionary, for one wr_release(): the one that was there, or @obj.
 *
 * Returns: 0, or a negative errno, with @out untouched. Of racing callers all get the same object.
 * Errors:  -ENOMEM; -ESTALE: @obj is dead and there was no other; -EINVAL.
 * Threads: any. Lock-free if there is one, else as a set.
 * Order:   as a get or a set.
 */
WR_API int wr_value_dict_setdefault(wr_value_dict *d, const void *key, size_t size, void *obj, void **out);

/**
 * wr_value_dict_get_or_create() - the object of a key; if there is none, one caller creates it.
 * @d:      [borrowed].
 * @key:    [borrowed] copied.
 * @size:   bytes.
 * @create: makes the object; runs on this thread, or not at all.
 * @ctx:    [borrowed] for @create.
 * @out:    [out owned] the object, for one wr_release().
 *
 * Callers that come for the same key while a create runs wait for it and share what comes of it, the error too;
 * an error is not remembered. While it runs the key counts as missing: get, contains and len do not see it,
 * and a set meanwhile wins: its object is what all get, and the created one is released.
 *
 * Returns: 0, or a negative errno, with @out untouched.
 * Errors:  -ENOMEM; -EINVAL: bad argument, or create returned 0 without an object or a positive number;
 *          -EDEADLK: called from the create of the same key, or the creating thread ended within it, or it threw (C++);
 *          -ESTALE: create gave a dead object; what create returned.
 * Threads: any. Lock-free if there is one; else blocking while another caller creates, and runs create (with no
 *          lock held). Creates that wait for each other's keys in a circle wait for ever: that is the callers'
 *          to avoid. Inside a guard it works, but holds up reclamation for as long as it
 *          waits, and for ever if the create waits for reclamation (wr_synchronize(), wr_barrier()).
 * Order:   as a get or a set. What create wrote is seen by all who get the object.
 * Idea:    single flight, as in Go's golang.org/x/sync/singleflight.
 */
WR_API int wr_value_dict_get_or_create(wr_value_dict *d, const void *key, size_t size, wr_value_dict_create_fn *create,
                                       void *ctx, void **out);

/**
 * wr_value_dict_get_or_create_timed() - the same, with a limit on the waiting for another caller's create.
 * @d:          [borrowed].
 * @key:        [borrowed] copied.
 * @size:       bytes.
 * @create:     makes the object; runs on this thread, or not at all. Its time is its own: it is not interrupted.
 * @ctx:        [borrowed] for @create.
 * @timeout_ms: milliseconds; 0: do not wait; WR_NO_TIMEOUT (debug.h): no limit.
 * @out:        [out owned] the object, for one wr_release().
 *
 * Returns: 0, or a negative errno, with @out untouched.
 * Errors:  -ETIMEDOUT: another caller's create still runs; else as wr_value_dict_get_or_create().
 * Threads: as wr_value_dict_get_or_create().
 * Order:   as wr_value_dict_get_or_create().
 */
WR_API int wr_value_dict_get_or_create_timed(wr_value_dict *d, const void *key, size_t size,
                                             wr_value_dict_create_fn *create, void *ctx, unsigned timeout_ms,
                                             void **out);

/**
 * wr_value_dict_len() - how many entries there are.
 * @d: [borrowed].
 *
 * Returns: exact when no other thread writes and no object is dying; otherwise no further off than what
 *          came and went during the call, with entries of dying objects counted until they are out.
 * Errors:  errno EINVAL (and 0).
 * Threads: any. Wait-free.
 * Order:   none.
 */
WR_API size_t wr_value_dict_len(const wr_value_dict *d);

/**
 * wr_value_dict_clear() - take out every entry that is there when it is called.
 * @d: [borrowed] NULL allowed.
 *
 * What others set meanwhile stays or goes.
 *
 * Returns: nothing.
 * Errors:  none.
 * Threads: any. Blocking: briefly, for one part's lock after the other. Runs no user code.
 * Order:   as a remove of each key.
 */
WR_API void wr_value_dict_clear(wr_value_dict *d);

/**
 * wr_value_dict_trim() - let go a part of what is kept.
 * @d:        [borrowed].
 * @fraction: 0 to 1: how much of it; of its size, if the dictionary has a keep_size, else of its number. 1: all. 0: only what
 *            is out of time, which goes in any case.
 *
 * Returns: how many were let go: those that nobody else holds have died. 0 without keep_* options.
 * Errors:  errno EINVAL (and 0).
 * Threads: any. Blocking: briefly, for a lock; again and again, but what others add meanwhile is left alone. May run destroys.
 * Order:   none.
 */
WR_API size_t wr_value_dict_trim(wr_value_dict *d, double fraction);

/**
 * wr_value_dict_kept() - how many objects the dictionary holds on to.
 * @d:    [borrowed].
 * @size: [out] their size, as size_of said; 0 without keep_size. May be NULL.
 *
 * Returns: the number, as of some instant of the call; 0 without keep_* options.
 * Errors:  errno EINVAL (and 0).
 * Threads: any. Blocking: briefly, for a lock. Runs no user code.
 * Order:   none.
 */
WR_API size_t wr_value_dict_kept(const wr_value_dict *d, size_t *size);

/* ---- all of them ------------------------------------------------------------------------------------------
 *
 *     wr_value_dict_iter it;
 *     struct wr_value_dict_item item;
 *     wr_value_dict_iter_begin(&it, files);
 *     while (wr_value_dict_iter_next(&it, &item)) {
 *         printf("%.*s\n", (int)item.key_size, (const char *)item.key);
 *         wr_release(item.value);
 *     }
 *     wr_value_dict_iter_end(&it);                             // also after a break
 *
 * The order is the table's own. Between two calls an iterator holds no lock and no guard, so it may take its time; the
 * entry it stands on keeps its memory. It may change the dictionary, or free it. It must not be copied or moved
 * after its first step. In a forked child it is good only if the forking thread made its last step: else end it. */

typedef struct wr_value_dict_iter {
    struct wr_dict_iter iter; /* the library's */
} wr_value_dict_iter;

/* What an iterator gives, and what wr_value_dict_from_items() takes. */
struct wr_value_dict_item {
    const void *key; /* [borrowed] from an iterator: until its next call */
    size_t key_size;
    void *value; /* from an iterator: [owned], for one wr_release(); in an array: [borrowed] */
};

/* The same with a weak handle. */
struct wr_value_dict_ref {
    const void *key; /* [borrowed] until the iterator's next call */
    size_t key_size;
    wr_weak *value; /* [owned] for one wr_weak_release() */
};

/**
 * wr_value_dict_iter_begin() - begin to go through a dictionary.
 * @it: [out] for wr_value_dict_iter_end().
 * @d:  [borrowed] or NULL: then there is nothing in it, and errno is EINVAL.
 *
 * Returns: nothing.
 * Errors:  none: it needs no memory.
 * Threads: any, beside any call on the dictionary.
 * Order:   none.
 */
WR_API void wr_value_dict_iter_begin(wr_value_dict_iter *it, wr_value_dict *d);

/**
 * wr_value_dict_iter_next() - the next entry that has a living object.
 * @it:   [borrowed].
 * @item: [out owned] its value is for one wr_release(). Untouched, but for the value, at the end.
 *
 * Returns: whether there was one. After the end: false, again and again.
 * Errors:  none: it needs no memory.
 * Threads: one at a time for one iterator, beside any call on the dictionary. Lock-free but for a spinlock shared with
 *          few other iterators; runs no user code.
 * Order:   as a get of that key.
 */
WR_API bool wr_value_dict_iter_next(wr_value_dict_iter *it, struct wr_value_dict_item *item);

/**
 * wr_value_dict_iter_next_ref() - the next entry, with a weak handle: keeps nothing alive, not even for a moment.
 * @it:  [borrowed].
 * @ref: [out owned] its value is for one wr_weak_release(). Untouched at the end.
 *
 * Returns: whether there was one. Its object was alive at some instant of the call.
 * Errors:  none: it needs no memory.
 * Threads: as wr_value_dict_iter_next().
 * Order:   none.
 */
WR_API bool wr_value_dict_iter_next_ref(wr_value_dict_iter *it, struct wr_value_dict_ref *ref);

/**
 * wr_value_dict_iter_end() - leave the dictionary.
 * @it: [consumed] begun. Ending it once more does nothing.
 *
 * Returns: nothing.
 * Errors:  none.
 * Threads: as wr_value_dict_iter_next().
 * Order:   none.
 */
WR_API void wr_value_dict_iter_end(wr_value_dict_iter *it);

/**
 * wr_value_dict_popitem() - take some entry out and have its key and object.
 * @d:    [borrowed].
 * @key:  [out] room for the key, or NULL.
 * @size: [in out] the room's bytes; then the key's. NULL if @key is: nobody asks for the key.
 *
 * Returns: [owned] the object, for one wr_release(); NULL if there is none left (errno untouched, as @size), or on failure.
 * Errors:  errno ENOSPC: the key of the one that was met takes *@size bytes; nothing was taken out; EINVAL.
 * Threads: any. Blocking: briefly, for one part's lock; may run the destroy of an object, whose last reference it finds
 *          itself with because another caller took the entry first.
 * Order:   as a wr_value_dict_pop() of that key.
 */
WR_API WR_NODISCARD void *wr_value_dict_popitem(wr_value_dict *d, void *key, size_t *size);

/**
 * wr_value_dict_update() - set all that is in another dictionary.
 * @d:    [borrowed].
 * @from: [borrowed] or the same.
 *
 * It iterates over @from and sets in @d, one key after the other, and holds nothing in between: two may update each other at
 * the same time.
 *
 * Returns: 0, or a negative errno: then what was set so far is set.
 * Errors:  -ENOMEM; -EINVAL.
 * Threads: any. As a set for each key. May run the destroy of an object of which everybody else lets go meanwhile.
 * Order:   as a get and a set for each key.
 */
WR_API int wr_value_dict_update(wr_value_dict *d, wr_value_dict *from);

/**
 * wr_value_dict_update_items() - set all that is in an array, in its order.
 * @d:     [borrowed].
 * @items: [borrowed] the values, too: the caller holds strong references.
 * @n:     how many.
 *
 * Returns: 0, or a negative errno: then what was set so far is set.
 * Errors:  those of wr_value_dict_set().
 * Threads: any. As a set for each key.
 * Order:   as a set for each key.
 */
WR_API int wr_value_dict_update_items(wr_value_dict *d, const struct wr_value_dict_item *items, size_t n);

/**
 * wr_value_dict_from_items() - a new dictionary of what is in an array.
 * @options: [borrowed] NULL for the defaults.
 * @items:   [borrowed] as for wr_value_dict_update_items().
 * @n:       how many.
 *
 * Returns: [owned] the dictionary, for wr_value_dict_free(); NULL on failure.
 * Errors:  errno: those of wr_value_dict_new() and wr_value_dict_set().
 * Threads: any.
 * Order:   none.
 */
WR_API WR_NODISCARD wr_value_dict *wr_value_dict_from_items(const struct wr_value_dict_options *options,
                                                            const struct wr_value_dict_item *items, size_t n);

/**
 * wr_value_dict_copy() - a new dictionary, with default options (so it keeps nothing), of what is in another one.
 * @from: [borrowed].
 *
 * Returns: [owned] the dictionary, for wr_value_dict_free(); NULL on failure.
 * Errors:  errno ENOMEM, EINVAL, EAGAIN.
 * Threads: any, beside any call on @from; it is no snapshot, but goes through it as an iterator does.
 * Order:   as wr_value_dict_update().
 */
WR_API WR_NODISCARD wr_value_dict *wr_value_dict_copy(wr_value_dict *from);

/**
 * wr_value_dict_union() - a new dictionary, with default options, of what is in two; where both have a key, the second's.
 * @a: [borrowed].
 * @b: [borrowed] NULL: then it is a copy of @a.
 *
 * Returns: [owned] the dictionary, for wr_value_dict_free(); NULL on failure.
 * Errors:  errno ENOMEM, EINVAL, EAGAIN.
 * Threads: as wr_value_dict_copy().
 * Order:   as wr_value_dict_update().
 */
WR_API WR_NODISCARD wr_value_dict *wr_value_dict_union(wr_value_dict *a, wr_value_dict *b);

/* ---- the same with a C string, or an integer, as the key ------------------------------------------------
 *
 * _str: the string's bytes without the NUL; a NULL string is a bad argument. _u64: the integer's 8 bytes as
 * they lie in memory. All else as above. */

static inline size_t wr_value_dict_str_size_(const char *key)
{
    return key != NULL ? strlen(key) : 1; /* 1: with NULL that is EINVAL */
}

static inline int wr_value_dict_set_str(wr_value_dict *d, const char *key, void *obj)
{
    return wr_value_dict_set(d, key, wr_value_dict_str_size_(key), obj);
}

static inline int wr_value_dict_set_u64(wr_value_dict *d, uint64_t key, void *obj)
{
    return wr_value_dict_set(d, &key, sizeof key, obj);
}

WR_NODISCARD static inline void *wr_value_dict_get_str(const wr_value_dict *d, const char *key)
{
    return wr_value_dict_get(d, key, wr_value_dict_str_size_(key));
}

WR_NODISCARD static inline void *wr_value_dict_get_u64(const wr_value_dict *d, uint64_t key)
{
    return wr_value_dict_get(d, &key, sizeof key);
}

static inline void *wr_value_dict_peek_str(const wr_value_dict *d, const char *key)
{
    return wr_value_dict_peek(d, key, wr_value_dict_str_size_(key));
}

static inline void *wr_value_dict_peek_u64(const wr_value_dict *d, uint64_t key)
{
    return wr_value_dict_peek(d, &key, sizeof key);
}

static inline bool wr_value_dict_contains_str(const wr_value_dict *d, const char *key)
{
    return wr_value_dict_contains(d, key, wr_value_dict_str_size_(key));
}

static inline bool wr_value_dict_contains_u64(const wr_value_dict *d, uint64_t key)
{
    return wr_value_dict_contains(d, &key, sizeof key);
}

static inline int wr_value_dict_remove_str(wr_value_dict *d, const char *key)
{
    return wr_value_dict_remove(d, key, wr_value_dict_str_size_(key));
}

static inline int wr_value_dict_remove_u64(wr_value_dict *d, uint64_t key)
{
    return wr_value_dict_remove(d, &key, sizeof key);
}

static inline int wr_value_dict_remove_if_str(wr_value_dict *d, const char *key, const void *obj)
{
    return wr_value_dict_remove_if(d, key, wr_value_dict_str_size_(key), obj);
}

static inline int wr_value_dict_remove_if_u64(wr_value_dict *d, uint64_t key, const void *obj)
{
    return wr_value_dict_remove_if(d, &key, sizeof key, obj);
}

static inline int wr_value_dict_replace_str(wr_value_dict *d, const char *key, const void *expected, void *obj)
{
    return wr_value_dict_replace(d, key, wr_value_dict_str_size_(key), expected, obj);
}

static inline int wr_value_dict_replace_u64(wr_value_dict *d, uint64_t key, const void *expected, void *obj)
{
    return wr_value_dict_replace(d, &key, sizeof key, expected, obj);
}

WR_NODISCARD static inline void *wr_value_dict_pop_str(wr_value_dict *d, const char *key)
{
    return wr_value_dict_pop(d, key, wr_value_dict_str_size_(key));
}

WR_NODISCARD static inline void *wr_value_dict_pop_u64(wr_value_dict *d, uint64_t key)
{
    return wr_value_dict_pop(d, &key, sizeof key);
}

static inline int wr_value_dict_setdefault_str(wr_value_dict *d, const char *key, void *obj, void **out)
{
    return wr_value_dict_setdefault(d, key, wr_value_dict_str_size_(key), obj, out);
}

static inline int wr_value_dict_setdefault_u64(wr_value_dict *d, uint64_t key, void *obj, void **out)
{
    return wr_value_dict_setdefault(d, &key, sizeof key, obj, out);
}

static inline int wr_value_dict_get_or_create_str(wr_value_dict *d, const char *key, wr_value_dict_create_fn *create,
                                                  void *ctx, void **out)
{
    return wr_value_dict_get_or_create(d, key, wr_value_dict_str_size_(key), create, ctx, out);
}

static inline int wr_value_dict_get_or_create_u64(wr_value_dict *d, uint64_t key, wr_value_dict_create_fn *create,
                                                  void *ctx, void **out)
{
    return wr_value_dict_get_or_create(d, &key, sizeof key, create, ctx, out);
}

static inline int wr_value_dict_get_or_create_timed_str(wr_value_dict *d, const char *key,
                                                        wr_value_dict_create_fn *create, void *ctx, unsigned timeout_ms,
                                                        void **out)
{
    return wr_value_dict_get_or_create_timed(d, key, wr_value_dict_str_size_(key), create, ctx, timeout_ms, out);
}

static inline int wr_value_dict_get_or_create_timed_u64(wr_value_dict *d, uint64_t key, wr_value_dict_create_fn *create,
                                                        void *ctx, unsigned timeout_ms, void **out)
{
    return wr_value_dict_get_or_create_timed(d, &key, sizeof key, create, ctx, timeout_ms, out);
}

WR_END_DECLS

/* Handing what is no object to these calls does not compile: see types.h. */
#ifdef __cplusplus
WR_TAKES_OBJECT_AFTER_(wr_value_dict_set, wr_value_dict *, const void *, size_t);
WR_TAKES_OBJECT_AFTER_(wr_value_dict_remove_if, wr_value_dict *, const void *, size_t);
WR_TAKES_OBJECT_AFTER_(wr_value_dict_replace, wr_value_dict *, const void *, size_t);
WR_TAKES_OBJECT_AFTER_(wr_value_dict_replace, wr_value_dict *, const void *, size_t, const void *);
WR_TAKES_OBJECT_AFTER_(wr_value_dict_setdefault, wr_value_dict *, const void *, size_t);
WR_TAKES_OBJECT_AFTER_(wr_value_dict_set_str, wr_value_dict *, const char *);
WR_TAKES_OBJECT_AFTER_(wr_value_dict_remove_if_str, wr_value_dict *, const char *);
WR_TAKES_OBJECT_AFTER_(wr_value_dict_replace_str, wr_value_dict *, const char *);
WR_TAKES_OBJECT_AFTER_(wr_value_dict_replace_str, wr_value_dict *, const char *, const void *);
WR_TAKES_OBJECT_AFTER_(wr_value_dict_setdefault_str, wr_value_dict *, const char *);
WR_TAKES_OBJECT_AFTER_(wr_value_dict_set_u64, wr_value_dict *, uint64_t);
WR_TAKES_OBJECT_AFTER_(wr_value_dict_remove_if_u64, wr_value_dict *, uint64_t);
WR_TAKES_OBJECT_AFTER_(wr_value_dict_replace_u64, wr_value_dict *, uint64_t);
WR_TAKES_OBJECT_AFTER_(wr_value_dict_replace_u64, wr_value_dict *, uint64_t, const void *);
WR_TAKES_OBJECT_AFTER_(wr_value_dict_setdefault_u64, wr_value_dict *, uint64_t);
#else
#define wr_value_dict_set(d, key, size, obj) wr_value_dict_set(d, key, size, WR_OBJECT_(obj))
#define wr_value_dict_remove_if(d, key, size, obj) wr_value_dict_remove_if(d, key, size, WR_OBJECT_(obj))
#define wr_value_dict_replace(d, key, size, expected, obj) \
    wr_value_dict_replace(d, key, size, WR_OBJECT_(expected), WR_OBJECT_(obj))
#define wr_value_dict_setdefault(d, key, size, obj, out) wr_value_dict_setdefault(d, key, size, WR_OBJECT_(obj), out)
#define wr_value_dict_set_str(d, key, obj) wr_value_dict_set_str(d, key, WR_OBJECT_(obj))
#define wr_value_dict_remove_if_str(d, key, obj) wr_value_dict_remove_if_str(d, key, WR_OBJECT_(obj))
#define wr_value_dict_replace_str(d, key, expected, obj) \
    wr_value_dict_replace_str(d, key, WR_OBJECT_(expected), WR_OBJECT_(obj))
#define wr_value_dict_setdefault_str(d, key, obj, out) wr_value_dict_setdefault_str(d, key, WR_OBJECT_(obj), out)
#define wr_value_dict_set_u64(d, key, obj) wr_value_dict_set_u64(d, key, WR_OBJECT_(obj))
#define wr_value_dict_remove_if_u64(d, key, obj) wr_value_dict_remove_if_u64(d, key, WR_OBJECT_(obj))
#define wr_value_dict_replace_u64(d, key, expected, obj) \
    wr_value_dict_replace_u64(d, key, WR_OBJECT_(expected), WR_OBJECT_(obj))
#define wr_value_dict_setdefault_u64(d, key, obj, out) wr_value_dict_setdefault_u64(d, key, WR_OBJECT_(obj), out)
#endif

#endif
