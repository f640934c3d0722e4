/* F5 slot: a shared variable that holds a reference, read and replaced by any thread.
 *
 * wr_slot holds its object strongly (a configuration that is swapped while requests read it), wr_weak_slot weakly
 * (a "current connection" that may go). A slot keeps a reference of its own; arguments stay the caller's, results are
 * the caller's. The reference that a store replaces is released after the guards that run now, which is what makes
 * reading lock-free: a reader retains what it found, or looks at it without counting.
 *
 * When not to use it: for a pointer that only one thread touches, or that is written as often as it is read.
 *
 * Example:
 *     static wr_slot current;                       // zeroed is empty
 *     wr_slot_init(&current, config);               // the slot has its own reference
 *     config_t *c = wr_slot_load(&current);         // owned
 *     WR_GUARD { use(((config_t *)wr_slot_peek(&current))->limit); }   // borrowed
 *     wr_slot_store(&current, fresh);
 *     wr_release(c);
 *     wr_slot_fini(&current);
 *
 * Guarantees:
 *   A. A load gives an object that was in the slot at some moment during the call.
 *   B. What a store, exchange or fini replaced stays alive for every guard that may have seen it.
 *   C. No user code runs in any call here; the last release of a replaced object runs as deferred work.
 * Progress: load, peek, get: wait-free. store, exchange, compare_exchange, set, fini: wait-free but for memory (a
 * record for the deferred release; see wr_release_later()).
 */
#ifndef WEAKREF_SLOT_H
#define WEAKREF_SLOT_H

#include <weakref/guard.h>
#include <weakref/object.h>

/** An atomic strong reference. All zero is an empty one. */
struct wr_slot {
    wr_atomic_ptr obj;
};

/** An atomic weak reference. All zero is an empty one. */
struct wr_weak_slot {
    wr_atomic_ptr header;
};

WR_BEGIN_DECLS

/**
 * wr_slot_init() - begin with @obj; wr_slot_fini() - end. The slot is not shared yet, or no more.
 * @slot: [borrowed] not NULL; memory of the caller.
 * @obj:  [borrowed] the slot takes a reference of its own; NULL: empty.
 *
 * Returns: nothing.
 * Errors:  an object in its destroy: panic. fini as wr_release_later().
 * Threads: init: nobody else uses the slot. fini: loads and guards of others may still run.
 * Order:   none for init: publish the slot as you would any memory.
 */
WR_API void wr_slot_init(wr_slot *slot, void *obj);
WR_API void wr_slot_fini(wr_slot *slot);

/**
 * wr_slot_peek() - look at the object without counting.
 * @slot: [borrowed] not NULL.
 *
 * Returns: [borrowed] the object until the outermost guard ends, or NULL: empty. Any type; it is alive for that long and
 *          may be retained.
 * Errors:  none. Outside a guard the pointer may dangle.
 * Threads: any, beside any call on the slot, inside a guard. Wait-free, one load.
 * Order:   sees what was written before the store that put it there.
 */
static inline void *wr_slot_peek(wr_slot *slot)
{
    /* Acquire [slot]: sees the object as it was when it was stored. Pairs with wr_slot_exchange()'s exchange. */
    return wr_atomic_load_acquire(&slot->obj);
}

/**
 * wr_slot_load() - the object, with a reference.
 * @slot: [borrowed] not NULL.
 *
 * Returns: [owned] the object, for one wr_release(); NULL: empty.
 * Errors:  none.
 * Threads: any, beside any call on the slot. Wait-free; runs no user code.
 * Order:   sees what was written before the store that put it there.
 */
static inline void *wr_slot_load(wr_slot *slot)
{
    wr_guard_enter();
    void *obj = wr_slot_peek(slot);
    if (obj != NULL)
        obj = (wr_retain)(obj);
    wr_guard_exit();
    return obj;
}

/**
 * wr_slot_store() - replace the object.
 * @slot: [borrowed] not NULL.
 * @obj:  [borrowed] the slot takes a reference of its own; NULL: empty.
 *
 * Returns: nothing.
 * Errors:  an object in its destroy: panic. Memory: as wr_release_later().
 * Threads: any, beside any call on the slot. Runs no user code.
 * Order:   what was written before is seen by loads and peeks that find @obj.
 */
WR_API void wr_slot_store(wr_slot *slot, void *obj);

/**
 * wr_slot_exchange() - replace the object and get the former one.
 * @slot: [borrowed] not NULL.
 * @obj:  [borrowed] as wr_slot_store().
 *
 * Returns: [owned] the former object, a reference of the caller's own that is safe to release at once; NULL: it was empty.
 * Errors:  as wr_slot_store().
 * Threads: as wr_slot_store().
 * Order:   as wr_slot_store() for @obj, as wr_slot_load() for the result.
 */
WR_API WR_NODISCARD void *wr_slot_exchange(wr_slot *slot, void *obj);

/**
 * wr_slot_compare_exchange() - replace the object if it is @expected.
 * @slot:     [borrowed] not NULL.
 * @expected: [borrowed] an object that the caller holds (or NULL: if empty).
 * @desired:  [borrowed] as wr_slot_store(); kept only on success.
 *
 * Returns: whether it was replaced. Does not fail spuriously.
 * Errors:  as wr_slot_store().
 * Threads: as wr_slot_store().
 * Order:   success as wr_slot_exchange(); failure: none.
 */
WR_API bool wr_slot_compare_exchange(wr_slot *slot, void *expected, void *desired);

/**
 * wr_weak_slot_init() - begin with @obj; wr_weak_slot_fini() - end; wr_weak_slot_set() - replace.
 * @slot: [borrowed] not NULL; memory of the caller.
 * @obj:  [borrowed] held weakly; NULL: empty.
 *
 * Returns: nothing.
 * Errors:  an object in its destroy: panic. set and fini as wr_release_later().
 * Threads: init: nobody else uses the slot. set, fini: beside any call.
 * Order:   what was written before a set is seen by a get that finds @obj.
 */
WR_API void wr_weak_slot_init(wr_weak_slot *slot, void *obj);
WR_API void wr_weak_slot_set(wr_weak_slot *slot, void *obj);
WR_API void wr_weak_slot_fini(wr_weak_slot *slot);

/**
 * wr_weak_slot_get() - the object, with a strong reference, if it lives.
 * @slot: [borrowed] not NULL.
 *
 * Returns: [owned] the object, for one wr_release(); NULL: empty, or dead.
 * Errors:  none.
 * Threads: any, beside any call on the slot. Wait-free; runs no user code.
 * Order:   as wr_upgrade().
 */
WR_API WR_NODISCARD void *wr_weak_slot_get(wr_weak_slot *slot);

WR_END_DECLS

/* Handing what is no object to these calls does not compile: see types.h. */
#ifdef __cplusplus
WR_TAKES_OBJECT_AFTER_(wr_slot_init, wr_slot *);
WR_TAKES_OBJECT_AFTER_(wr_slot_store, wr_slot *);
WR_TAKES_OBJECT_AFTER_(wr_slot_exchange, wr_slot *);
WR_TAKES_OBJECT_AFTER_(wr_slot_compare_exchange, wr_slot *);
WR_TAKES_OBJECT_AFTER_(wr_slot_compare_exchange, wr_slot *, void *);
WR_TAKES_OBJECT_AFTER_(wr_weak_slot_init, wr_weak_slot *);
WR_TAKES_OBJECT_AFTER_(wr_weak_slot_set, wr_weak_slot *);
#else
#define wr_slot_init(slot, obj) wr_slot_init(slot, WR_OBJECT_(obj))
#define wr_slot_store(slot, obj) wr_slot_store(slot, WR_OBJECT_(obj))
#define wr_slot_exchange(slot, obj) wr_slot_exchange(slot, WR_OBJECT_(obj))
#define wr_slot_compare_exchange(slot, expected, desired) \
    wr_slot_compare_exchange(slot, WR_OBJECT_(expected), WR_OBJECT_(desired))
#define wr_weak_slot_init(slot, obj) wr_weak_slot_init(slot, WR_OBJECT_(obj))
#define wr_weak_slot_set(slot, obj) wr_weak_slot_set(slot, WR_OBJECT_(obj))
#endif

#endif
