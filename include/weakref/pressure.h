/* F7 pressure: dictionaries that keep let go when the kernel runs short of memory.
 *
 * What value dictionaries keep (the keep_* options of value_dict.h) is there because it might be wanted again. Once started,
 * a thread waits for the kernel to say that tasks stall for want of memory (pressure stall information), or that the process's
 * cgroup has come to its limit; then a part of what each such dictionary of the process keeps is let go, of those first
 * that have not been used for longest.
 *
 * When not to use it: where a fixed keep_size is right anyway. It is a help against the worst, not a way to find out
 * how much memory there is: between the first stall and the trimming lies up to some seconds.
 *
 * Example:
 *     wr_value_dict *cache = wr_value_dict_new(&options);    // with a keep_size, say
 *     int err = wr_pressure_start(NULL);                     // trimmed on the default queue
 *     if (err == -ENOTSUP)
 *         ...                                                // call wr_value_dict_trim() when you see fit
 *     ...
 *     wr_pressure_stop();
 *
 * Where it listens, the first of:
 *   1. the path in the options;
 *   2. $MEMORY_PRESSURE_WATCH, and what $MEMORY_PRESSURE_WRITE says to write there: systemd sets them for services (see
 *      https://systemd.io/MEMORY_PRESSURE); with /dev/null there: nowhere, -ENOTSUP;
 *   3. memory.pressure of the process's own cgroup (version 2);
 *   4. /proc/pressure/memory, which is of the whole machine.
 * And, if there is a file memory.events beside the first three, at its counts of high, max and oom: once in a window at most, and
 * only while tasks do stall, since a cgroup that is full of page cache is at its limit all the time.
 *
 * Idea: Linux's PSI (Weiner, 2018) and its triggers; the protocol is systemd's.
 */
#ifndef WEAKREF_PRESSURE_H
#define WEAKREF_PRESSURE_H

#include <weakref/types.h>

WR_BEGIN_DECLS

/* What is zero has its default; fields may be added at the end. */
struct wr_pressure_options {
    size_t struct_size; /* sizeof(struct wr_pressure_options) */
    const char *path;  /* [borrowed] a file of pressure stall information; or a FIFO, each write to which is an event */
    unsigned percent;  /* of what each dictionary keeps, let go at each event: 1 to 100; 0: 25 */
    unsigned stall_ms; /* an event is: some task stalls for so long in all, 0: 200 ... */
    unsigned
        window_ms; /* ... within so long, 0: 2000. Without CAP_SYS_RESOURCE the kernel takes multiples of 2000 only */
};

/**
 * wr_pressure_start() - trim all dictionaries that keep whenever memory is short, from now on.
 * @queue: [kept] where the trimming runs, and the destroys of what dies by it; NULL: the default queue. WR_QUEUE_INLINE: on the
 *         thread that waits for the kernel.
 *
 * An event that comes while the trimming of an earlier one is pending is one with it. Dictionaries made later take part, too.
 * The trimming counts in the queue's figures as a watch. Once the queue is freed nothing is trimmed any more.
 * In a forked child nothing is: it has to start by itself.
 *
 * Returns: 0, or a negative errno: then nothing has changed.
 * Errors:  -ENOTSUP: nothing to listen at, or the kernel does not let us. -EBUSY: it is started (or is being started or
 *          stopped). -EAGAIN: no thread. -ENOMEM, -EMFILE, -ENFILE; -ECANCELED: the queue is being freed.
 * Threads: any. Runs no user code.
 * Order:   none.
 */
WR_API int wr_pressure_start(wr_queue *queue);

/**
 * wr_pressure_start_with() - the same, with options.
 * @queue:   [kept] as above.
 * @options: [borrowed] NULL for the defaults.
 *
 * Returns: 0, or a negative errno: then nothing has changed.
 * Errors:  as above; -EINVAL: struct_size too small, fields set that this version does not know, percent above 100.
 * Threads: any. Runs no user code.
 * Order:   none.
 */
WR_API int wr_pressure_start_with(wr_queue *queue, const struct wr_pressure_options *options);

/**
 * wr_pressure_stop() - no more of that.
 *
 * A trimming that is pending is cancelled, one that runs is waited for.
 *
 * Returns: 0: also if it was not started, in this process.
 * Errors:  -EDEADLK: called from the trimming itself (a destroy). -EBUSY: it is being started or stopped.
 * Threads: any. Blocks. Runs no user code.
 * Order:   all that it trimmed happens before its return.
 */
WR_API int wr_pressure_stop(void);

WR_END_DECLS

#endif
