/* F7 method: an object and a function on it, bound, without keeping the object alive.
 *
 * A pointer to a function and a strong reference would keep the object; a pointer and a borrowed reference would outlive it. A
 * method holds the object weakly: each call takes a strong reference for its duration, and answers -ESTALE once the
 * object is dead. Two methods of the same object and function are equal and have the same hash, also after the death, so
 * they can be looked up in lists of callbacks and taken out again.
 *
 * When not to use it: where the function is known at the place of the call (wr_proxy_call() needs no allocation). To call
 * many of them on an event: signal.h.
 *
 * Example:
 *     static int conn_ping(void *obj, void *arg) { return conn_send(obj, arg); }
 *
 *     wr_method *ping = wr_method_new(conn, conn_ping);
 *     timer_add(timer, ping);
 *     ...
 *     if (wr_method_call(ping, "ping") == -ESTALE)   // later, elsewhere
 *         timer_remove(timer, ping);
 *     wr_method_release(ping);
 *
 * Guarantees:
 *   A. The function runs on a living object, which lives to the end of the call, or it does not run.
 *   B. A method does not keep its object alive, whatever refers to the method: there is no circle to break.
 *   C. Equality and hash of a method never change.
 * Progress: call is as wr_upgrade() and wr_release() around the function; all others but new and release wait-free.
 *
 * Idea: weakref.WeakMethod of Python. Unlike there, dead methods go on comparing by object and function.
 */
#ifndef WEAKREF_METHOD_H
#define WEAKREF_METHOD_H

#include <weakref/object.h>
#include <weakref/watch.h>
#include <weakref/weak.h>

WR_BEGIN_DECLS

/**
 * What a method runs.
 * @obj: [borrowed] the object, strong for the duration of the call.
 * @arg: what the call was made with.
 * Returns what wr_method_call() is to return. It may release the object's last other reference, and the method. It must return: where
 * it is left by pthread_exit(), longjmp() or a C++ exception, the object is never released.
 */
typedef int wr_method_fn(void *obj, void *arg);

/**
 * wr_method_new() - bind a function to an object.
 * @obj: [borrowed] of which the caller holds a strong reference; or the object whose destroy is running (a dead method).
 * @fn:  [kept] not NULL.
 *
 * Returns: [owned] the method, for one wr_method_release(); NULL with errno set.
 * Errors:  EINVAL: no object or no function. ENOMEM.
 * Threads: any, beside any call on the object. As malloc; runs no user code.
 * Order:   none.
 */
WR_API WR_NODISCARD wr_method *wr_method_new(void *obj, wr_method_fn *fn);

/**
 * wr_method_retain() - one more handle on the same method.
 * @method: [borrowed] not NULL (NULL: NULL with errno EINVAL).
 *
 * Returns: [owned] @method, for one more wr_method_release().
 * Errors:  none.
 * Threads: any. Wait-free; runs no user code.
 * Order:   none.
 */
WR_API wr_method *wr_method_retain(wr_method *method);

/**
 * wr_method_release() - give a method back. Watches made through it stay.
 * @method: [consumed] NULL does nothing.
 *
 * Returns: nothing.
 * Errors:  none; released more often than retained, where that can be seen: panic.
 * Threads: any. Wait-free but for the last one, which frees; runs no user code.
 * Order:   all uses of the method happen before it is freed.
 */
WR_API void wr_method_release(wr_method *method);

/**
 * wr_method_call() - run the function on the object, if it lives.
 * @method: [borrowed] not NULL. It may be released by the function.
 * @arg:    [borrowed] handed to the function.
 *
 * Returns: what the function returned; -ESTALE: the object is dead, the function did not run.
 * Errors:  -EINVAL: no method.
 * Threads: any. Runs the function under no lock of the library; if meanwhile all other references went, the object's end too.
 * Order:   as wr_upgrade() before the function, as wr_release() after it.
 */
WR_API int wr_method_call(wr_method *method, void *arg);

/**
 * wr_method_is_dead() - whether calls answer -ESTALE from now on.
 * @method: [borrowed] NULL counts as dead.
 *
 * Returns: true: dead, for ever. false: it was alive a moment ago.
 * Errors:  none.
 * Threads: any. Wait-free, one load.
 * Order:   as wr_weak_is_dead().
 */
WR_API bool wr_method_is_dead(const wr_method *method);

/**
 * wr_method_weak() - the object, as a weak handle.
 * @method: [borrowed] or NULL.
 *
 * Returns: [borrowed] as long as the method, equal to every other handle of the object; wr_weak_retain() keeps it. NULL for NULL.
 * Errors:  none.
 * Threads: any. Wait-free.
 * Order:   none.
 */
WR_API wr_weak *wr_method_weak(const wr_method *method);

/**
 * wr_method_function() - the function.
 * @method: [borrowed] or NULL.
 *
 * Returns: the function; NULL for NULL.
 * Errors:  none.
 * Threads: any. Wait-free.
 * Order:   none.
 */
WR_API wr_method_fn *wr_method_function(const wr_method *method);

/**
 * wr_method_equal() - whether two methods have the same object and the same function.
 * @a: [borrowed] or NULL.
 * @b: [borrowed] or NULL.
 *
 * The same object is the identical one: the type's `equal` is not asked. Death changes nothing.
 *
 * Returns: true if they are equal; NULL equals NULL alone.
 * Errors:  none.
 * Threads: any. Wait-free; runs no user code.
 * Order:   none.
 */
WR_API bool wr_method_equal(const wr_method *a, const wr_method *b);

/**
 * wr_method_hash() - a number that equal methods share.
 * @method: [borrowed] or NULL.
 *
 * Returns: the hash, 0 for NULL; the same as long as any method of that object and function, or any weak handle of the object, is held.
 * Errors:  none.
 * Threads: any. Wait-free; runs no user code.
 * Order:   none.
 */
WR_API uint64_t wr_method_hash(const wr_method *method);

/**
 * wr_method_watch_new() - have a callback run when the method's object has died.
 * @method: [borrowed] not NULL. It may be released before: the watch stays.
 * @queue:  [kept] as for wr_watch_new().
 * @fn:     [kept] not NULL.
 * @ctx:    [kept] handed to @fn.
 *
 * Returns: [owned] the watch, for one wr_watch_release(); NULL with errno set, and nothing has changed.
 * Errors:  EINVAL: no method or no function. ESTALE: the object is dead already. Else those of wr_watch_new().
 * Threads: as wr_watch_new(). If meanwhile all other references to the object go, its end runs here.
 * Order:   as wr_watch_new().
 */
WR_API WR_NODISCARD wr_watch *wr_method_watch_new(wr_method *method, wr_queue *queue, wr_callback *fn, void *ctx);

/**
 * wr_method_on_death() - the same without a handle.
 * @method: [borrowed] as for wr_method_watch_new().
 * @queue:  [kept] as for wr_watch_new().
 * @fn:     [kept] not NULL.
 * @ctx:    [kept] handed to @fn.
 *
 * Returns: 0.
 * Errors:  those of wr_method_watch_new(), as negative values.
 * Threads: as wr_method_watch_new().
 * Order:   as wr_watch_new().
 */
WR_API int wr_method_on_death(wr_method *method, wr_queue *queue, wr_callback *fn, void *ctx);

WR_END_DECLS

/* Handing what is no object to these calls does not compile: see types.h. */
#ifdef __cplusplus
WR_TAKES_OBJECT_(wr_method_new);
#else
#define wr_method_new(obj, fn) wr_method_new(WR_OBJECT_(obj), fn)
#endif

#endif
