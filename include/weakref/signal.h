/* F7 method: signals: lists of methods that are called together, and that do not keep their objects.
 *
 * Receivers connect a function on an object; emitting calls all of them, in the order in which they were connected. The signal
 * holds the objects weakly: a receiver that dies is disconnected by its death, on whatever thread, and needs no farewell.
 * Emitters take no lock, and do not disturb those who connect and disconnect meanwhile.
 *
 * The list is read inside a guard, but handlers run outside of it: each has its connection pinned, and the object
 * strongly, so that a handler may block for as long as it likes without holding up the reclamation of memory, and the
 * emission goes on from where it stands, whatever was disconnected meanwhile.
 *
 * When not to use it: for the end of an object (use a watch); across threads with a hand-over (handlers run on the emitting
 * thread: let the handler push to your loop).
 *
 * Example:
 *     static int on_price(void *obj, void *arg) { chart_add(obj, arg); return 0; }
 *
 *     wr_signal *price = wr_signal_new("price");
 *     wr_signal_connect(price, chart, on_price, NULL);
 *     wr_signal_emit(price, &quote);                // calls on_price(chart, &quote)
 *     wr_release(chart);                            // dead, and disconnected
 *     assert(wr_signal_emit(price, &quote) == 0 && wr_signal_len(price) == 0);
 *     wr_signal_free(price);
 *
 * Guarantees:
 *   A. A handler runs on a living object, which lives to the end of the call, under no lock of the library and in no guard.
 *   B. Once wr_signal_disconnect() has returned, no emission turns to this handler any more; one that had turned to it just before
 *      may still be about to call it. Once the _sync form has returned, no thread runs it, and none will.
 *   C. An emission calls, in order of connection, each handler that is connected throughout, once. One that is connected after it
 *      began is not called by it; so handlers may connect others without end.
 *   D. Handlers may connect, disconnect (themselves, too), emit, release anything, and free the signal.
 *   E. A connection does not keep its object alive, nor does a handle of it.
 * Progress: emit is lock-free but for the handlers and for a short spinlock where it is the last to leave one that was disconnected;
 * connect and disconnect take short spinlocks; disconnect_sync waits for running handlers; len is wait-free.
 *
 * Idea: signals and slots of Qt, and blinker's signals of Python, whose receivers are weak.
 */
#ifndef WEAKREF_SIGNAL_H
#define WEAKREF_SIGNAL_H

#include <weakref/method.h>

WR_BEGIN_DECLS

/**
 * wr_signal_new() - make a signal without receivers.
 * @name: [borrowed] copied; shown in messages. NULL: "signal".
 *
 * Returns: [owned] the signal, for one wr_signal_free(); NULL with errno set.
 * Errors:  ENOMEM. EAGAIN: the reclaimer thread cannot be started.
 * Threads: any. As malloc.
 * Order:   none.
 */
WR_API WR_NODISCARD wr_signal *wr_signal_new(const char *name);

/**
 * wr_signal_free() - disconnect all receivers and give the signal up.
 * @signal: [consumed] NULL does nothing. Freed twice, where that can be seen: panic.
 *
 * Returns: nothing. Handlers that are running go on; emissions that are under way end with them. Who must know that they are over
 *          (to free what they use, to unload their code) calls wr_signal_disconnect_sync() on each connection before.
 * Errors:  none.
 * Threads: beside emissions that have begun, deaths, and disconnects, but no other call that names the signal; also from its own
 *          handlers. Takes short spinlocks; runs no user code, does not wait.
 * Order:   none.
 */
WR_API void wr_signal_free(wr_signal *signal);

/**
 * wr_signal_name() - what it was called.
 * @signal: [borrowed] not NULL.
 *
 * Returns: [borrowed] the name, alive as long as the signal; NULL for NULL.
 * Errors:  none.
 * Threads: any. Wait-free.
 * Order:   none.
 */
WR_API const char *wr_signal_name(const wr_signal *signal);

/**
 * wr_signal_connect() - have @fn called on @obj by each emission from now on.
 * @signal:     [borrowed] not NULL.
 * @obj:        [borrowed] of which the caller holds a strong reference. The signal does not keep it.
 * @fn:         [kept] not NULL. Its result is ignored by emissions.
 * @connection: [out owned] the handle, for one wr_connection_release(). May be NULL: not wanted; then only the object's death
 *              or that of the signal ends the connection, and nobody can wait for its handler. Untouched on failure.
 *
 * The same pair may be connected more than once, and is then called as often.
 *
 * Returns: 0.
 * Errors:  -EINVAL: no signal, object or function. -ENOMEM. -ESTALE: the object is dead (this is its destroy). -ECANCELED: the
 *          signal has been freed (a handler of it that still runs asks).
 * Threads: any, also inside handlers. Takes short spinlocks; runs no user code.
 * Order:   what the caller did before happens before the handler.
 */
WR_API int wr_signal_connect(wr_signal *signal, void *obj, wr_method_fn *fn, wr_connection **connection);

/**
 * wr_signal_connect_method() - the same with the object and the function of a method.
 * @signal:     [borrowed] not NULL.
 * @method:     [borrowed] not NULL; it may be released afterwards.
 * @connection: [out owned] as for wr_signal_connect().
 *
 * Returns: 0.
 * Errors:  -EINVAL: no signal or no method. -ESTALE: the method's object is dead. Else those of wr_signal_connect().
 * Threads: as wr_signal_connect(). If meanwhile all other references to the object go, its end runs here.
 * Order:   as wr_signal_connect().
 */
WR_API int wr_signal_connect_method(wr_signal *signal, wr_method *method, wr_connection **connection);

/**
 * wr_signal_disconnect() - have the handler not called any more.
 * @connection: [borrowed] not NULL; stays to be released.
 *
 * Returns: 1: this call disconnected it. 0: it was disconnected already, by a call, the object's death, or the end of the signal.
 * Errors:  -EINVAL: no connection. A released handle, where that can be seen: panic.
 * Threads: any, also inside handlers. Takes short spinlocks; runs no user code, does not wait. Costs the same whatever else is connected.
 * Order:   no emission turns to the handler after its return, whatever it returned. One that had turned to it just before may
 *          still be about to call it, and a call that has begun may still run: wr_signal_disconnect_sync() waits for both.
 */
WR_API int wr_signal_disconnect(wr_connection *connection);

/**
 * wr_signal_disconnect_sync() - the same, and wait while the handler is running on other threads.
 * @connection: [borrowed] not NULL; stays to be released.
 *
 * Returns: 0: the handler is not running and will not: what it uses beside its object can be freed now.
 * Errors:  -EINVAL: no connection. -EDEADLK: the handler is running on the calling thread's own stack: it is disconnected, but not over.
 *          A released handle, where that can be seen: panic.
 * Threads: as wr_signal_disconnect(), but blocks until running handlers return; and, where an emission held the last reference to
 *          the receiver, until its destroy has returned, too (not from that destroy itself). Two handlers that wait for each
 *          other: the callers' deadlock. So is waiting for a handler that needs a lock the caller holds.
 * Order:   what the handler did happens before its return.
 */
WR_API int wr_signal_disconnect_sync(wr_connection *connection);

/**
 * wr_connection_is_connected() - whether emissions still call the handler.
 * @connection: [borrowed] NULL counts as disconnected.
 *
 * Returns: false: disconnected, for ever. true: it was connected a moment ago.
 * Errors:  none.
 * Threads: any. Wait-free, one load.
 * Order:   none.
 */
WR_API bool wr_connection_is_connected(const wr_connection *connection);

/**
 * wr_connection_release() - give the handle back. It disconnects nothing.
 * @connection: [consumed] NULL does nothing. Released twice, where that can be seen: panic.
 *
 * Returns: nothing.
 * Errors:  none.
 * Threads: any, also from the handler; not beside another call on the same handle. Wait-free; runs no user code.
 * Order:   none.
 */
WR_API void wr_connection_release(wr_connection *connection);

/**
 * wr_signal_emit() - call all receivers.
 * @signal: [borrowed] not NULL. It may be freed by a handler.
 * @arg:    [borrowed] handed to each handler.
 *
 * Returns: how many handlers were run. 0 with errno EINVAL for no signal.
 * Errors:  none. Allocates nothing.
 * Threads: any, also on several at once and inside handlers. Runs the handlers here, one after the other; and, if meanwhile all other
 *          references to one of the objects went, its end. A handler must return: by no longjmp(), no C++ exception. The thread's
 *          cancellation is held off meanwhile; that it ends in a handler, or after one was left otherwise, is a panic.
 * Order:   a handler happens after its connecting.
 */
WR_API size_t wr_signal_emit(wr_signal *signal, void *arg);

/**
 * wr_signal_len() - how many handlers are connected.
 * @signal: [borrowed] not NULL (NULL: 0 with errno EINVAL).
 *
 * Returns: the number; beside other threads it is old when it arrives.
 * Errors:  none.
 * Threads: any. Wait-free, one load.
 * Order:   none.
 */
WR_API size_t wr_signal_len(const wr_signal *signal);

WR_END_DECLS

/* Handing what is no object to these calls does not compile: see types.h. */
#ifdef __cplusplus
WR_TAKES_OBJECT_AFTER_(wr_signal_connect, wr_signal *);
#else
#define wr_signal_connect(signal, obj, ...) wr_signal_connect(signal, WR_OBJECT_(obj), __VA_ARGS__)
#endif

#endif
