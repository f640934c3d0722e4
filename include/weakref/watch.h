/* F6 watch: a callback at an object's death, delivered on a queue, once, or cancelled.
 *
 * A watch is made while the object lives and holds all the memory its delivery will need. When the object dies, its watches go
 * to their queues, newest first, after the type's destroy has run. Until the callback begins, the watch can be cancelled;
 * the answer says whether it still runs. Dropping the handle cancels nothing.
 *
 * When not to use it: for what every object of a type must do at its end (use destroy), or to keep a cache clean (a
 * weak dictionary does so by itself).
 *
 * Example:
 *     static void left(wr_weak *dead, void *ctx) { room_forget(ctx, dead); }   // dead: to compare, not to upgrade
 *
 *     wr_watch *watch = wr_watch_new(conn, loop_queue, left, room);
 *     ...
 *     if (wr_watch_cancel_sync(watch) == WR_CANCELLED)
 *         room_forget(room, NULL);              // it will not run any more
 *     wr_watch_release(watch);
 *     free(room);                               // safe: left() is not running and will not
 *
 * Guarantees:
 *   A. Every watch ends in exactly one of: its callback ran once, or it was cancelled and never runs.
 *   B. No memory shortage, no dropped handle and no other callback can lose it.
 *   C. The callback runs after destroy, under no lock of the library, never on the releasing thread unless the watch
 *      names WR_QUEUE_INLINE or that thread drains the queue.
 *   D. Deaths of one thread's making (of types that are not deferred) arrive at a queue in their order; the watches of
 *      one object newest first. (What inline callbacks, hooks and help on that thread end meanwhile comes between.)
 * Progress: cancel is lock-free but for the object's short spinlock; cancel_sync waits for a running callback.
 */
#ifndef WEAKREF_WATCH_H
#define WEAKREF_WATCH_H

#include <weakref/object.h>
#include <weakref/queue.h>
#include <weakref/weak.h>

WR_BEGIN_DECLS

/**
 * What runs when the object is dead.
 * @dead: [borrowed] the handle of the dead object, for this call; wr_weak_retain() keeps it. Equal to every other handle.
 * @ctx:  what the watch was made with.
 * It may use the whole library: cancel its siblings, watch other objects, release, drain, free the queue. errno is
 * put back after it. It must return, by no longjmp() and no C++ exception: the thread's cancellation is held off meanwhile, and that
 * it ends in a callback, or after one was left otherwise, is a panic.
 */
typedef void wr_callback(wr_weak *dead, void *ctx);

/** What wr_watch_cancel() answers. Never negative: those are errors. */
enum {
    WR_CANCELLED, /* it will never run: this call, or an earlier one, cancelled it */
    WR_RUNNING,   /* it is running now, on another thread */
    WR_DELIVERED  /* it has run; or it is running further down on the calling thread's own stack */
};

/**
 * wr_watch_new() - have @fn called when @obj has died.
 * @obj:   [borrowed] of which the caller holds a strong reference.
 * @queue: [kept] where to run it; NULL: wr_queue_default(). It may be freed before: the watch is then cancelled at the death.
 * @fn:    [kept] not NULL.
 * @ctx:   [kept] handed to @fn; stays the caller's.
 *
 * Returns: [owned] the watch, for one wr_watch_release(); NULL with errno set, and nothing has changed.
 * Errors:  EINVAL: no object or no function. ENOMEM. ESTALE: the object is dead (this is its destroy).
 *          ECANCELED: the queue is being freed. EAGAIN: the default queue's thread cannot be started.
 * Threads: any, beside any call on the object. Takes a short spinlock of the object; runs no user code.
 * Order:   what the caller did before happens before the callback.
 */
WR_API WR_NODISCARD wr_watch *wr_watch_new(void *obj, wr_queue *queue, wr_callback *fn, void *ctx);

/**
 * wr_on_death() - the same without a handle: it cannot be cancelled alone. Not for an object that outlives the code of @fn.
 * @obj:   [borrowed] as for wr_watch_new().
 * @queue: [kept] as for wr_watch_new().
 * @fn:    [kept] not NULL.
 * @ctx:   [kept] handed to @fn.
 *
 * Returns: 0.
 * Errors:  those of wr_watch_new(), as negative values.
 * Threads: as wr_watch_new().
 * Order:   as wr_watch_new().
 */
WR_API int wr_on_death(void *obj, wr_queue *queue, wr_callback *fn, void *ctx);

/**
 * wr_watch_cancel() - keep the callback from running, if it has not begun.
 * @watch: [borrowed] not NULL; stays to be released.
 *
 * A death that waits on the queue can still be cancelled. Asking again gives the same answer, or that of a later state.
 *
 * Returns: WR_CANCELLED, WR_RUNNING (on another thread: see wr_watch_cancel_sync()) or WR_DELIVERED.
 * Errors:  -EINVAL: no watch. A released watch, where that can be seen: panic.
 * Threads: any, beside the death, other cancels and the callback. Takes short spinlocks; runs no user code, never waits for
 *          a callback. Costs the same whatever else hangs on the object; what waits on the queue and no consumer has looked
 *          at yet is put in order first, once for all.
 * Order:   after WR_DELIVERED: what the callback did is seen, unless it is further down this stack.
 */
WR_API int wr_watch_cancel(wr_watch *watch);

/**
 * wr_watch_cancel_sync() - the same, and wait while it is running.
 * @watch: [borrowed] not NULL; stays to be released.
 *
 * Returns: WR_CANCELLED or WR_DELIVERED: in both cases what the callback uses can be freed now.
 * Errors:  -EINVAL: no watch. -EDEADLK: the callback is on the calling thread's own stack. A released watch, where that can be
 *          seen: panic.
 * Threads: as wr_watch_cancel(), but blocks until a running callback returns. Two callbacks that wait for each other: the
 *          callers' deadlock. So is waiting for a callback that needs a lock the caller holds.
 * Order:   what the callback did happens before its return.
 */
WR_API int wr_watch_cancel_sync(wr_watch *watch);

/**
 * wr_watch_release() - give the handle back. It cancels nothing.
 * @watch: [consumed] NULL does nothing. Released twice, where that can be seen: panic.
 *
 * Returns: nothing.
 * Errors:  none.
 * Threads: any, also from the callback; not beside another call on the same watch. Wait-free; runs no user code.
 * Order:   none.
 */
WR_API void wr_watch_release(wr_watch *watch);

WR_END_DECLS

/* Handing what is no object to these calls does not compile: see types.h. */
#ifdef __cplusplus
WR_TAKES_OBJECT_(wr_watch_new);
WR_TAKES_OBJECT_(wr_on_death);
#else
#define wr_watch_new(obj, ...) wr_watch_new(WR_OBJECT_(obj), __VA_ARGS__)
#define wr_on_death(obj, ...) wr_on_death(WR_OBJECT_(obj), __VA_ARGS__)
#endif

#endif
