/* F7 finalize: something to be done once when an object is gone, or earlier by hand, or at the exit of the process.
 *
 * A finalizer is a watch with a will of its own: it lives on without a handle, it can be run or called off at any time
 * before, and with WR_FINALIZE_ATEXIT it also runs when the process exits while the object still lives. Whoever comes
 * first - the death's delivery, wr_finalizer_call(), wr_finalizer_detach(), the exit - has it, and the others find it
 * spent: the function runs exactly once, or, detached, never.
 *
 * When not to use it: for what every object of a type must do at its end (use destroy); where the callback wants the
 * dead handle (use a watch).
 *
 * Example:
 *     static void remove_dir(void *ctx) { rmdir(ctx); free(ctx); }
 *
 *     wr_finalizer *f = wr_finalize(job, NULL, remove_dir, strdup(path), WR_FINALIZE_ATEXIT);
 *     ...
 *     wr_finalizer_call(f);                         // by hand; or leave it to the death of job, or to exit()
 *     wr_finalizer_release(f);                      // the handle; without it the finalizer lives on
 *
 * Guarantees:
 *   A. The function runs at most once, and exactly once unless the finalizer is detached, or the callback cancelled with its queue, or
 *      the process ends first without it being due.
 *   B. Neither the finalizer nor its handle keeps the object alive; dropping the handle loses nothing.
 *   C. No memory shortage loses it: all it needs is reserved when it is made.
 *   D. At exit, those with WR_FINALIZE_ATEXIT that are still alive run on the exiting thread, newest first; others do not.
 *   E. A forked child runs at its exit only what it made itself. What was running on another thread of the parent is spent there.
 * Progress: alive is wait-free; peek, call and detach are lock-free but for short spinlocks; detach_sync waits for a
 * running function.
 *
 * Idea: weakref.finalize of Python. Unlike there, WR_FINALIZE_ATEXIT is asked for.
 */
#ifndef WEAKREF_FINALIZE_H
#define WEAKREF_FINALIZE_H

#include <weakref/object.h>
#include <weakref/queue.h>

WR_BEGIN_DECLS

/** Run it at exit() or wr_shutdown(), if it is still alive then. */
#define WR_FINALIZE_ATEXIT 1u

/**
 * wr_finalize() - have @fn run once: when @obj has died, or when it is called, or at exit.
 * @obj:   [borrowed] of which the caller holds a strong reference.
 * @queue: [kept] where it runs after a death; NULL: wr_queue_default(). Calls and the exit run it on their own thread.
 * @fn:    [kept] not NULL. It may use the whole library, make finalizers, and call exit(). It must return: by no longjmp(), no C++
 *         exception. The thread's cancellation is held off meanwhile; that it ends in @fn, or after @fn was left otherwise,
 *         is a panic.
 * @ctx:   [kept] handed to @fn; stays the caller's. It must not hold @obj strongly: that would keep it for ever.
 * @flags: 0 or WR_FINALIZE_ATEXIT.
 *
 * At exit means: exit(), also by the return of main, on whatever thread; not _exit(), quick_exit() or a signal.
 * Handlers given to atexit() after the first such finalizer run before these, earlier ones after. One that is
 * running on another thread is waited for, up to two seconds. A finalizer may make others: they run, too. The function may call
 * exit(): the rest still runs. Two such functions on two threads that call wr_shutdown(WR_NO_TIMEOUT) wait for each other: the callers'
 * deadlock. The end of its queue does not call the run at exit off.
 *
 * Returns: [owned] the handle, for one wr_finalizer_release(), at once if it is not wanted; NULL with errno set, and nothing has changed.
 * Errors:  EINVAL: no object, no function, unknown flags. ENOMEM, also where the exit handler cannot be registered. ESTALE: the object
 *          is dead (this is its destroy). ECANCELED: the queue is being freed. EAGAIN: the default queue's thread cannot be started.
 * Threads: any, beside any call on the object. Takes short spinlocks; runs no user code.
 * Order:   what the caller did before happens before @fn.
 */
WR_API WR_NODISCARD wr_finalizer *wr_finalize(void *obj, wr_queue *queue, void (*fn)(void *ctx), void *ctx,
                                              unsigned flags);

/**
 * wr_finalizer_alive() - whether the function is still to be run.
 * @finalizer: [borrowed] NULL counts as not alive.
 *
 * Returns: true: neither begun nor called off; the object may be dead already, and the delivery pending. false: it has begun, has
 *          run or will never run; final.
 * Errors:  none.
 * Threads: any. Wait-free, one load.
 * Order:   none.
 */
WR_API bool wr_finalizer_alive(const wr_finalizer *finalizer);

/**
 * wr_finalizer_peek() - what it is made of, if it is alive.
 * @finalizer: [borrowed] NULL counts as not alive.
 * @obj:       [out owned] the object, for one wr_release(); NULL: it is dead, and the delivery pending. May be NULL: not wanted.
 * @fn:        [out] the function. May be NULL: not wanted.
 * @ctx:       [out borrowed] its context. May be NULL: not wanted.
 *
 * Returns: true: alive, and what is wanted is filled in. false: not alive; all that is wanted is NULL.
 * Errors:  none.
 * Threads: any. Lock-free; runs no user code. It may be run or detached at any moment after.
 * Order:   an object happens after every earlier wr_release(), as with wr_upgrade().
 */
WR_API bool wr_finalizer_peek(wr_finalizer *finalizer, void **obj, void (**fn)(void *ctx), void **ctx);

/**
 * wr_finalizer_call() - run it now, on this thread, if it is alive.
 * @finalizer: [borrowed] not NULL.
 *
 * A delivery that is pending is taken from the queue, which counts it as cancelled.
 *
 * Returns: 0: the function has run. -ESTALE: it is not alive: it has run, is running or was called off.
 * Errors:  -EINVAL: no finalizer. A released handle, where that can be seen: panic.
 * Threads: any, beside the death and all calls on it. Runs the function under no lock of the library.
 * Order:   the function happens before its return.
 */
WR_API int wr_finalizer_call(wr_finalizer *finalizer);

/**
 * wr_finalizer_detach() - call it off: the function will never run.
 * @finalizer: [borrowed] not NULL.
 *
 * Returns: 0: it was alive, and this call ended it; @ctx is the caller's alone now. -ESTALE: it was not alive; the function may be
 *          running on another thread (see wr_finalizer_detach_sync()).
 * Errors:  -EINVAL: no finalizer. A released handle, where that can be seen: panic.
 * Threads: any, beside the death and all calls on it. Takes short spinlocks; runs no user code.
 * Order:   none.
 */
WR_API int wr_finalizer_detach(wr_finalizer *finalizer);

/**
 * wr_finalizer_detach_sync() - the same, and wait while it is running.
 * @finalizer: [borrowed] not NULL.
 *
 * Returns: 0 as wr_finalizer_detach(). -ESTALE: it was not alive, and is not running: in both cases what it uses can be freed now.
 * Errors:  -EINVAL: no finalizer. -EDEADLK: it is running on the calling thread's own stack. A released handle, where that can be seen:
 *          panic.
 * Threads: as wr_finalizer_detach(), but blocks until a running function returns. Two functions that wait for each other: the
 *          callers' deadlock.
 * Order:   after -ESTALE: what the function did happens before the return.
 */
WR_API int wr_finalizer_detach_sync(wr_finalizer *finalizer);

/**
 * wr_finalizer_release() - give the handle back. The finalizer lives on, and cannot be called off any more.
 * @finalizer: [consumed] NULL does nothing. Released twice, where that can be seen: panic.
 *
 * Returns: nothing.
 * Errors:  none.
 * Threads: any, also from the function; not beside another call on the same handle. Wait-free; runs no user code.
 * Order:   none.
 */
WR_API void wr_finalizer_release(wr_finalizer *finalizer);

WR_END_DECLS

/* Handing what is no object to these calls does not compile: see types.h. */
#ifdef __cplusplus
WR_TAKES_OBJECT_(wr_finalize);
#else
#define wr_finalize(obj, ...) wr_finalize(WR_OBJECT_(obj), __VA_ARGS__)
#endif

#endif
