/* F5 queue: where callbacks wait until somebody runs them, and who that is.
 *
 * A watch names the queue that its callback goes to when the object dies. The releasing thread only hands over: one
 * push, no allocation, no user code. Who runs the callbacks is the queue's owner's choice: threads of the queue
 * (wr_queue_start), an event loop that watches a descriptor (wr_queue_fd) and drains, or a plain wr_queue_drain()
 * where it suits. WR_QUEUE_INLINE runs them on the releasing thread; NULL means the default queue, whose one thread is
 * started with the first watch.
 *
 * When not to use it: as a general work queue (a task here is a death), or with WR_QUEUE_INLINE where the callback
 * takes a lock that the releasing code may hold. If the releasing thread itself can clean up, use the type's destroy.
 *
 * Example:
 *     wr_queue *queue = wr_queue_new("loop");
 *     wr_on_death(c, queue, log_death, NULL);
 *     struct epoll_event want = {.events = EPOLLIN, .data.ptr = queue};
 *     epoll_ctl(loop, EPOLL_CTL_ADD, wr_queue_fd(queue), &want);
 *     ...                                       // the descriptor is readable:
 *     wr_queue_drain(queue, 64);                // runs callbacks and resets it
 *     ...
 *     wr_queue_free(queue);                     // delivers the rest
 *
 * Guarantees:
 *   A. First handed over, first begun. With one consumer that is the order of running; with several it is not.
 *   B. Each callback is in the end delivered once or cancelled once: watched == armed + pending + delivered + cancelled
 *      whenever no call on the queue and no callback is running (one that runs counts as `running`).
 *   C. Callbacks run with no lock of the library held, and leave errno of the thread they run on as it was.
 *   D. The descriptor is readable exactly while work is pending, once all calls have returned; no wake-up is lost.
 *   E. What one consumer has taken and not begun, any other can run.
 *   F. In a forked child what was pending or running on other threads counts as cancelled, and is the parent's; armed tasks stay armed; the
 *      descriptor is one of the child's own under the same number; threads come back with the next watch or hand-over.
 * Progress: handing over is lock-free; drain takes a short spinlock per callback; start, stop, barrier and free block.
 */
#ifndef WEAKREF_QUEUE_H
#define WEAKREF_QUEUE_H

#include <weakref/types.h>

WR_BEGIN_DECLS

/** Names the queue whose callbacks run at once, on the thread whose release ended the object, under no lock. Statistics,
 * drain and barrier work on it (there is never anything pending); it has no threads, no descriptor and no end. */
#define WR_QUEUE_INLINE ((wr_queue *)(uintptr_t)1)

/** What a queue counted; grows at its end. Exact when nothing moves. */
struct wr_queue_stats {
    uint64_t watched;   /* watches made for this queue, ever */
    uint64_t armed;     /* of these: the object lives, or its death has not handed over yet */
    uint64_t pending;   /* handed over, not begun, not cancelled */
    uint64_t delivered; /* callbacks that have returned */
    uint64_t cancelled; /* will never run */
    uint64_t running;   /* callbacks that are running now */
    uint64_t
        high_water; /* the most that a hand-over saw pending; it may miss a peak of which consumers took some just then */
    uint64_t slow; /* callbacks that ran longer than the limit (wr_queue_set_slow_limit()) */
    /* How long callbacks waited, from the death's hand-over until they began, in nanoseconds: the time that half of them,
     * and 99 of 100, did not exceed, at most a quarter too high; and the longest. Of a sample: each that was the first to
     * be handed over since a consumer last looked, and of the others every eighth of a thread. 0 for WR_QUEUE_INLINE. */
    uint64_t latency_p50_ns, latency_p99_ns, latency_max_ns;
};

/** What wr_queue_set_high_water() has called. @pending: how many callbacks are pending, at least the mark. */
typedef void wr_queue_hook(wr_queue *queue, uint64_t pending, void *ctx);

/**
 * wr_queue_new() - make a queue.
 * @name: [borrowed] copied; shown in messages, and as the name of the queue's threads (its first 15 bytes). NULL: "queue".
 *
 * Returns: [owned] the queue, for one wr_queue_free(); NULL with errno set.
 * Errors:  ENOMEM.
 * Threads: any. As malloc.
 * Order:   none.
 */
WR_API WR_NODISCARD wr_queue *wr_queue_new(const char *name);

/**
 * wr_queue_free() - stop the queue's threads, run what is pending, and give the queue up.
 * @queue: [consumed] NULL does nothing. The default queue and WR_QUEUE_INLINE: panic. Freed twice, where it can be seen: panic.
 *
 * Runs on the calling thread all that was pending, and waits for callbacks that run elsewhere. Watches that are still
 * armed for it count as cancelled when their object dies; so do deaths from inside those last callbacks. Called from
 * a callback of the queue itself, it returns at once, and all this happens when the outermost such callback returns.
 *
 * From then on using the queue, also for a new watch, is using freed memory. Only as long as something still holds it (a watch
 * that is armed for it, one of its threads or callbacks) can that be seen, and is -ECANCELED or a panic: nothing to rely on.
 *
 * Returns: nothing.
 * Errors:  none.
 * Threads: beside deaths and cancels, but no other call that names the queue. Blocks; runs user code. Called from a callback
 *          that one of the callbacks waited for waits for: the callers' deadlock.
 * Order:   all callbacks of the queue happen before its return.
 */
WR_API void wr_queue_free(wr_queue *queue);

/**
 * wr_queue_default() - the queue that a watch with queue NULL uses.
 *
 * Its one thread is started when the first watch names it (by NULL or by this pointer), unless the program has
 * started or stopped it before: then the program sees to it from there.
 *
 * Returns: [borrowed] always the same queue; it is never freed.
 * Errors:  none.
 * Threads: any. Wait-free.
 * Order:   none.
 */
WR_API wr_queue *wr_queue_default(void);

/**
 * wr_queue_name() - what it was called.
 * @queue: [borrowed] not NULL.
 *
 * Returns: [borrowed] the name, alive as long as the queue.
 * Errors:  none.
 * Threads: any. Wait-free.
 * Order:   none.
 */
WR_API const char *wr_queue_name(const wr_queue *queue);

/**
 * wr_queue_start() - give the queue threads of its own.
 * @queue:     [borrowed] not NULL.
 * @n_threads: how many, 1 to 4096. Only with 1 callbacks run one after the other, in order.
 *
 * The threads carry the queue's name, and have all signals blocked but those that a thread brings about itself (SIGSEGV, ...).
 *
 * Returns: 0.
 * Errors:  -EINVAL: no queue, WR_QUEUE_INLINE, no threads, or more than 4096. -EBUSY: it has threads (stop it first), or is being started or stopped.
 *          -ENOMEM, -EAGAIN: no memory, no threads: none is left running. -ECANCELED: the queue is being freed.
 * Threads: any. Runs no user code itself.
 * Order:   none.
 */
WR_API int wr_queue_start(wr_queue *queue, unsigned n_threads);

/**
 * wr_queue_stop() - end the queue's threads: each finishes the callback it runs; what is pending stays.
 * @queue: [borrowed] not NULL. Without threads nothing happens. wr_queue_start() goes on.
 *
 * Returns: 0 once they have ended; also where another thread's stop ended them.
 * Errors:  -EINVAL: no queue, WR_QUEUE_INLINE. -EDEADLK: called from a callback of this queue.
 * Threads: any. Blocks until the running callbacks return. Two that stop each other's queue from callbacks: the callers'
 *          deadlock.
 * Order:   all those threads did happens before its return.
 */
WR_API int wr_queue_stop(wr_queue *queue);

/**
 * wr_queue_fd() - a descriptor for poll, epoll or a loop library: readable while work is pending.
 * @queue: [borrowed] not NULL.
 *
 * Made on first use. It needs no reading or writing (and bears neither): wr_queue_drain() resets it. A forked child has one of
 * its own under the same number, for a new epoll set: an inherited set shows the parent's.
 *
 * Returns: [borrowed] an eventfd, close-on-exec; the queue closes it at its end.
 * Errors:  -EINVAL: no queue, WR_QUEUE_INLINE. What eventfd(2) says: -EMFILE, -ENFILE, -ENOMEM.
 * Threads: any. Runs no user code.
 * Order:   readable happens after the handing over.
 */
WR_API int wr_queue_fd(wr_queue *queue);

/**
 * wr_queue_drain() - run pending callbacks here and now.
 * @queue: [borrowed] not NULL (NULL: 0).
 * @max:   run at most so many; SIZE_MAX: until none is pending, those included that the callbacks cause.
 *
 * Returns: how many were run; less than @max: nothing more was pending.
 * Errors:  none.
 * Threads: any, also beside the queue's threads and other drains, also inside a callback. Runs user code.
 * Order:   each callback happens after the handing over of its death.
 */
WR_API size_t wr_queue_drain(wr_queue *queue, size_t max);

/**
 * wr_queue_drain_for() - the same until a time has passed.
 * @queue:     [borrowed] not NULL (NULL: 0).
 * @budget_ns: nanoseconds; no callback is begun after that. The first one is run in any case.
 *
 * Returns: how many were run.
 * Errors:  none.
 * Threads: as wr_queue_drain().
 * Order:   as wr_queue_drain().
 */
WR_API size_t wr_queue_drain_for(wr_queue *queue, uint64_t budget_ns);

/**
 * wr_queue_barrier() - wait until all that was pending when called has run or was cancelled, and what was running has ended.
 * @queue: [borrowed] not NULL. WR_QUEUE_INLINE: 0 at once.
 *
 * Pending is what a wr_release() that has returned, or that happens before this call, handed over.
 *
 * Returns: 0.
 * Errors:  -EINVAL: no queue. -EDEADLK: called from a callback of this queue.
 * Threads: any. Blocks; without consumers, which in a forked child means also: if its threads cannot be started again, it
 *          waits until there is one. Runs no user code. Callbacks of two queues that
 *          wait for each other's barrier: the callers' deadlock.
 * Order:   the callbacks it waited for happen before its return.
 */
WR_API int wr_queue_barrier(wr_queue *queue);

/**
 * wr_queue_cancel_all() - cancel all that is pending, and wait for what is running.
 * @queue: [borrowed] not NULL. WR_QUEUE_INLINE: 0 at once.
 *
 * Watches that are armed stay armed. Destroys that wait here (destroy_on of a type) stay pending: they cannot be cancelled.
 *
 * Returns: 0: nothing that was pending when called will run, or is running.
 * Errors:  -EINVAL: no queue. -EDEADLK: called from a callback of this queue; nothing is cancelled then.
 * Threads: any. Blocks until the running callbacks return; runs no user code.
 * Order:   callbacks that were running happen before its return.
 */
WR_API int wr_queue_cancel_all(wr_queue *queue);

/**
 * wr_queue_set_high_water() - be told, and optionally slow the releasing threads down, when callbacks pile up.
 * @queue: [borrowed] not NULL, not WR_QUEUE_INLINE.
 * @mark:  so many pending are a storm; 0, with no hook and no help: never.
 * @hook:  [kept] called once when pending reaches @mark, and again only after pending has been @mark / 2 or less. NULL: none.
 * @ctx:   [kept] handed to @hook.
 * @help:  past the mark, the releasing thread itself runs up to so many callbacks after each hand-over; 0: it does not help.
 *
 * The hook runs where the object's end runs: on the releasing thread, in its wr_release(), or, for deferred types, on the
 * reclaimer thread; under no lock of the library. It may use the whole library, and must not end the thread. What it releases
 * last is destroyed after it has returned, but where the queue is that of a type's destroy_on. One call at a time. With help,
 * callbacks run on releasing threads, and no longer one after the other: for callbacks that bear it. A thread does not help
 * from inside a callback of the same queue, nor from inside deferred work.
 *
 * Returns: 0; what was set before counts for no hand-over to come, and the earlier hook is not running (unless it made this call
 *          itself). A thread that helps already may still be at it.
 * Errors:  -EINVAL: no queue, WR_QUEUE_INLINE; a mark of 0 with a hook or help.
 * Threads: any. Waits for a hook that runs on another thread.
 * Order:   the calls of the earlier hook happen before its return.
 */
WR_API int wr_queue_set_high_water(wr_queue *queue, uint64_t mark, wr_queue_hook *hook, void *ctx, unsigned help);

/**
 * wr_queue_set_slow_limit() - which callbacks count as slow in the statistics.
 * @queue:    [borrowed] or WR_QUEUE_INLINE; not NULL.
 * @limit_ns: nanoseconds, at least 1. Without this call: 10 ms.
 *
 * Returns: 0.
 * Errors:  -EINVAL: no queue, a limit of 0.
 * Threads: any. Takes a short spinlock.
 * Order:   none.
 */
WR_API int wr_queue_set_slow_limit(wr_queue *queue, uint64_t limit_ns);

#ifdef __GNUC__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow" /* C++: a struct and a function of one name */
#endif

WR_API void wr_queue_stats_sized(wr_queue *queue, struct wr_queue_stats *stats, size_t size);

/**
 * wr_queue_stats() - the queue's figures as they are now.
 * @queue: [borrowed] or WR_QUEUE_INLINE; NULL: all 0.
 * @stats: [borrowed] not NULL; filled.
 *
 * Returns: nothing.
 * Errors:  none.
 * Threads: any. Takes a short spinlock.
 * Order:   sees what the caller's own calls did.
 */
static inline void wr_queue_stats(wr_queue *queue, struct wr_queue_stats *stats)
{
    wr_queue_stats_sized(queue, stats, sizeof *stats);
}

#ifdef __GNUC__
#pragma GCC diagnostic pop
#endif

WR_END_DECLS

#endif
