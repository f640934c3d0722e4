/* F6 watch: from an object's death to a task on a queue, and how a watch is called off on the way.
 *
 * One block of memory is first a watcher on the object's list and then a task of the queue: the links of the one are
 * dead when those of the other are used, so they share their place.
 *
 * States, and who moves them
 *
 *                 cancel                      death (fire)           consumer           finish
 *     ARMED       -> CANCELLED, then detach   -> QUEUED              cannot be: it      cannot be
 *                                             (inline: -> RUNNING)   is not linked
 *     QUEUED      -> CANCELLED                cannot be: it fires    -> RUNNING         cannot be
 *                                             once
 *     RUNNING     answers; sync waits         cannot be              cannot be: taken   -> DELIVERED
 *                                                                    once
 *     DELIVERED   answers                     cannot be              cannot be          cannot be
 *     CANCELLED   answers                     drops it; or, while    unlinks and        cannot be
 *                                             DETACHING, -> FIRED    drops it
 *
 *     The window between the death's taking of the watcher list and fire() (destroy runs there): the cancel wins the state,
 *     then learns from wr_watcher_detach() that the death has the watch. Of these two, cancel and fire, the second one
 *     past it cleans up: fire that finds DETACHING leaves FIRED and does not touch the watch again; the cancel that finds
 *     FIRED cleans up itself. So detach is called once, by the one winner, and what it looks at (the side record, which
 *     lives by the watch's weak count) is there until it returns.
 *
 * Memory
 *     USER: the handle has not been released. LIBRARY: the object's list, the queue or a runner has the watch. Who clears the
 *     second of them frees it. Without USER nobody else can get at the state: whoever has the watch then moves it by plain
 *     stores. The weak count of the header goes as soon as the watch is delivered or cancelled, not with the handle.
 *     A watch with a handle holds its queue (wr_queue_admit), since a cancel may come at any time.
 *
 *     A watch without handle that was the only thing to remember its object goes to the pool *spent*, as it is: who
 *     makes the next watch, most often the thread that made and released the object, settles it. So the object's
 *     memory never has to go to the consumer's processor and back.
 *
 * Fork
 *     A watch that is RUNNING on a thread that did not come along into the child is CANCELLED there, by who first asks.
 *     Pending ones the queue cancels. Armed ones stay.
 *
 * Waiting
 *     cancel_sync sets WAITED and sleeps on one event that all watches share: no event can be freed under a sleeper.
 */
#include <weakref/watch.h>

#include "event.h"
#include "fork.h"
#include "object.h"
#include "pool.h"
#include "queue.h"

#include <errno.h>

enum {
    STATE_ARMED,
    STATE_QUEUED,
    STATE_RUNNING,
    STATE_DELIVERED,
    STATE_CANCELLED,
    STATE_MASK = 7,
    WATCH_WAITED = 8,     /* somebody sleeps until it is not RUNNING */
    WATCH_DETACHING = 16, /* its canceller has not heard from wr_watcher_detach() yet */
    WATCH_FIRED = 32,     /* and meanwhile fire() has come by */
    WATCH_USER = 64,
    WATCH_LIBRARY = 128,
    WATCH_HAD_HANDLE = 256 /* made with USER: holds its queue */
};

struct wr_watch {
    union {
        wr_watcher watcher; /* until fire() */
        wr_task task;       /* from then on */
    };
    wr_header *header; /* the object; with one weak count until it is delivered or cancelled */
    wr_queue *queue;
    wr_callback *fn;
    void *ctx;
    wr_atomic_u32 state;
    uint32_t block;       /* from fire() on, without a handle: what its settling may free */
    wr_atomic_u32 runner; /* of the thread on which it is RUNNING, the ordinal's low half; 0: about to be set */
};

_Static_assert(sizeof(void *) != 8 || sizeof(struct wr_watch) == 96, "a watch is 96 bytes");

static struct wr_event no_longer_running = WR_EVENT_INIT;

static wr_watcher *fire(wr_watcher *first);
static const wr_watcher_class watch_watcher_class = {.stage = WR_WATCHER_USER, .fire = fire};
static const wr_watcher_class handleless_watcher_class = {.stage = WR_WATCHER_FOR_GOOD, .fire = fire};

static wr_watch *of_watcher(wr_watcher *w)
{
    return (wr_watch *)((char *)w - offsetof(wr_watch, watcher));
}

static wr_watch *of_task(const wr_task *task)
{
    return (wr_watch *)((uintptr_t)task - offsetof(wr_watch, task));
}

_Static_assert(sizeof(struct wr_watch) <= WR_POOL_SPENT_SIZE, "spent watches are of the pool's spent class");

/* ---- the state word -------------------------------------------------------------------------------- */

/* Moves the state from @from to @to, if it is @from. Requires: the caller is who the table above says. */
static inline bool move(wr_watch *w, uint32_t from, uint32_t to)
{
    /* Acquire [watch-state]: without USER, what the handle's last user did happens before. Pairs with the release in
     * wr_watch_release() and, below, with that of the one who moved it before. */
    uint32_t cur = wr_atomic_load_acquire(&w->state);
    while ((cur & STATE_MASK) == from) {
        if (!(cur & WATCH_USER)) {
            /* Relaxed: nobody else can get at it, and whoever gets the watch next gets it through the queue. */
            wr_atomic_store_relaxed(&w->state, cur - from + to);
            return true;
        }
        /* Acquire-release [watch-state]: one move wins, and sees what earlier ones left. @from -> @to. */
        if (wr_atomic_cas_acq_rel(&w->state, &cur, cur - from + to))
            return true;
    }
    return false;
}

/* To RUNNING, on this thread. Requires: inside the gate. */
static bool move_to_running(wr_watch *w, uint32_t from)
{
    if (!move(w, from, STATE_RUNNING))
        return false;
    /* Relaxed: only a forked child goes by it, where the fork orders. */
    wr_atomic_store_relaxed(&w->runner, (uint32_t)wr_thread_ordinal());
    return true;
}

/* Whether it is RUNNING on a thread that a fork has left behind. */
static bool is_cut(const wr_watch *w)
{
    /* Relaxed: as above. */
    uint32_t runner = wr_atomic_load_relaxed(&w->runner);
    return runner != 0 && wr_thread_is_gone_low(runner);
}

static void free_watch(wr_watch *w, uint32_t state)
{
    if (state & WATCH_HAD_HANDLE)
        wr_queue_drop(w->queue);
    wr_pool_free(w, WR_POOL_SPENT_SIZE);
}

/* Clears @bits, which are set; whoever clears the last of USER and LIBRARY frees. Returns the state before. */
static uint32_t clear(wr_watch *w, uint32_t bits)
{
    /* Acquire-release [watch-state]: every use of the watch happens before the free. */
    uint32_t old = wr_atomic_fetch_sub_acq_rel(&w->state, bits);
    if (((old - bits) & (WATCH_USER | WATCH_LIBRARY)) == 0)
        free_watch(w, old);
    return old;
}

/* The library has no more business with a cancelled watch. */
static void drop_cancelled(wr_watch *w, uint32_t bits)
{
    wr_watcher_release_weak(w->header);
    (void)clear(w, bits);
}

/* ---- as a task ------------------------------------------------------------------------------------- */

static bool watch_begin(wr_task *task)
{
    return move_to_running(of_task(task), STATE_QUEUED);
}

static void watch_run(wr_task *task)
{
    wr_watch *w = of_task(task);
    w->fn(wr_weak_of_header(w->header), w->ctx);
}

static void watch_finish(wr_task *task)
{
    wr_watch *w = of_task(task);
    wr_header *h = w->header;
    /* Acquire [watch-state]: as in move(). */
    uint32_t cur = wr_atomic_load_acquire(&w->state);
    if (!(cur & WATCH_USER)) {
        if (w->block != 0) {
            wr_pool_free_spent(w);
            return;
        }
        free_watch(w, cur);
    } else {
        /* RUNNING -> DELIVERED and LIBRARY cleared in one step, for afterwards the handle may be gone. */
        uint32_t old = clear(w, WATCH_LIBRARY - (STATE_DELIVERED - STATE_RUNNING));
        if (old & WATCH_WAITED)
            wr_event_signal(&no_longer_running);
    }
    wr_watcher_release_weak(h);
}

static bool watch_cancel(wr_task *task)
{
    return move(of_task(task), STATE_QUEUED, STATE_CANCELLED);
}

static void watch_discard(wr_task *task)
{
    drop_cancelled(of_task(task), WATCH_LIBRARY);
}

static const wr_task_class watch_task_class = {
    .begin = watch_begin,
    .run = watch_run,
    .finish = watch_finish,
    .cancel = watch_cancel,
    .discard = watch_discard,
};

/* ---- the death ------------------------------------------------------------------------------------- */

/* Fire, for a watch that was cancelled before. After the call it is not the caller's any more. */
static void fire_cancelled(wr_watch *w)
{
    /* Acquire [watch-state]: the canceller is past it, or will see FIRED. */
    uint32_t cur = wr_atomic_load_acquire(&w->state);
    while (cur & WATCH_DETACHING) {
        /* Acquire-release [watch-state]: pairs with the clearing of DETACHING in cancel_armed(). The canceller cleans up. */
        if (wr_atomic_cas_acq_rel(&w->state, &cur, cur | WATCH_FIRED))
            return;
    }
    drop_cancelled(w, WATCH_LIBRARY);
}

/* The queue was freed: ARMED -> CANCELLED. */
static void fire_freed(wr_watch *w)
{
    wr_queue *q = w->queue;
    if (!move(w, STATE_ARMED, STATE_CANCELLED)) {
        fire_cancelled(w);
        return;
    }
    /* The watch first, the queue last: its armed count keeps it. */
    wr_header *h = w->header;
    (void)clear(w, WATCH_LIBRARY);
    wr_watcher_release_weak(h);
    wr_queue_count_cancelled(q, 1);
}

static void fire_inline(wr_watch *w)
{
    wr_gate_enter();
    bool runs = move_to_running(w, STATE_ARMED);
    wr_gate_leave();
    if (!runs) {
        fire_cancelled(w);
        return;
    }
    wr_object_no_destroy_check(w->header);
    w->task.klass = &watch_task_class;
    wr_queue_run_inline(w->queue, &w->task);
}

/* A single watch without a handle: nobody else can get at it. */
static inline void fire_single(wr_watch *w)
{
    uint64_t block = w->watcher.block;
    w->block = block <= WR_POOL_MAX ? (uint32_t)block : 0;
    w->task.seq = 0;
    w->task.klass = &watch_task_class;
    /* Relaxed, both: as in move(). */
    wr_atomic_store_relaxed(&w->state, STATE_QUEUED | WATCH_LIBRARY);
    if (wr_likely(wr_handover_one(w->queue, &w->task)))
        return;
    wr_atomic_store_relaxed(&w->state, STATE_ARMED | WATCH_LIBRARY);
    fire_freed(w);
}

/* The longest run of watches for one queue goes over with one push. */
static WR_OUT_OF_LINE wr_watcher *fire_run(wr_watcher *first)
{
    wr_queue *q = of_watcher(first)->queue;
    wr_watcher *end = first->next;
    uint64_t n = 1;
    for (; end != NULL && end->klass->fire == fire && of_watcher(end)->queue == q; end = end->next)
        n++;

    wr_handover h;
    bool is_inline = wr_queue_is_inline(q);
    bool open = !is_inline && wr_handover_begin(&h, q, n);
    /* Cancelled ones may be what keeps the queue: they go when it is no longer needed. */
    wr_watcher *cancelled = NULL;
    for (wr_watcher *watcher = first, *next; watcher != end; watcher = next) {
        wr_watch *w = of_watcher(watcher);
        next = watcher->next;
        w->block = watcher->klass->stage == WR_WATCHER_FOR_GOOD && watcher->block <= WR_POOL_MAX
                       ? (uint32_t)watcher->block
                       : 0;
        w->task.seq = 0; /* before it can be found as QUEUED */
        if (is_inline) {
            fire_inline(w);
        } else if (!open) {
            fire_freed(w);
        } else if (move(w, STATE_ARMED, STATE_QUEUED)) {
            w->task.klass = &watch_task_class;
            wr_handover_add(&h, &w->task);
        } else {
            watcher->next = cancelled;
            cancelled = watcher;
        }
    }
    if (open)
        wr_handover_end(&h);
    for (wr_watcher *next; cancelled != NULL; cancelled = next) {
        next = cancelled->next;
        fire_cancelled(of_watcher(cancelled));
    }
    return end;
}

static wr_watcher *fire(wr_watcher *first)
{
    wr_watch *w = of_watcher(first);
    if (wr_unlikely(first->next != NULL || first->klass != &handleless_watcher_class || wr_queue_is_inline(w->queue)))
        return fire_run(first);
    fire_single(w);
    return NULL;
}

/* ---- public ---------------------------------------------------------------------------------------- */

static void *settle(void *block, size_t *size)
{
    wr_watch *w = block;
    *size = w->block;
    return wr_watcher_settle(w->header) ? w->header : NULL;
}

static __attribute__((constructor)) void offer_settle(void)
{
    wr_pool_set_settle(settle);
}

/* A block for a watch, or NULL. */
static inline void *alloc_watch(void)
{
    void *block = wr_pool_alloc_spent();
    if (block == NULL)
        return wr_pool_alloc(WR_POOL_SPENT_SIZE);
    const wr_watch *next = wr_pool_next_spent();
    if (next != NULL) {
        __builtin_prefetch(next->header, 1);
        __builtin_prefetch((const char *)next->header + 64, 1);
    }
    size_t size;
    void *object = settle(block, &size);
    if (object != NULL)
        wr_pool_free(object, size);
    return block;
}

/* 0 and the watch, or a negative errno. */
static inline int make(void *obj, wr_queue *queue, wr_callback *fn, void *ctx, bool handle, wr_watch **made)
{
    if (obj == NULL || fn == NULL)
        return -EINVAL;
    wr_watch *w = alloc_watch();
    if (w == NULL)
        return -ENOMEM;
    w->watcher.klass = handle ? &watch_watcher_class : &handleless_watcher_class;
    w->fn = fn;
    w->ctx = ctx;
    w->header = wr_header_of(obj);
    wr_atomic_init(&w->runner, 0);
    wr_atomic_init(&w->state, STATE_ARMED | WATCH_LIBRARY | (handle ? WATCH_USER | WATCH_HAD_HANDLE : 0));

    int error = 0;
    if (queue == NULL || queue == wr_queue_default())
        error = wr_watcher_prepare(obj); /* first: resolving may start a thread, and a failed call changes nothing */
    if (error == 0)
        error = wr_queue_resolve(queue, &w->queue);
    if (error == 0) {
        /* Whole, and counted, before it is on the list: a fork may cut this thread off anywhere. */
        wr_queue_admit(w->queue, handle);
        error = handle ? wr_watcher_attach(&w->watcher, obj) : wr_watcher_attach_for_good(&w->watcher, obj);
        if (error != 0)
            wr_queue_refuse(w->queue, handle);
    }
    if (error != 0) {
        wr_pool_free(w, WR_POOL_SPENT_SIZE);
        return error;
    }
    *made = w;
    return 0;
}

wr_watch *(wr_watch_new)(void *obj, wr_queue *queue, wr_callback *fn, void *ctx)
{
    wr_watch *w = NULL;
    int error = make(obj, queue, fn, ctx, true, &w);
    if (error != 0)
        errno = -error;
    return w;
}

int(wr_on_death)(void *obj, wr_queue *queue, wr_callback *fn, void *ctx)
{
    wr_watch *w;
    return make(obj, queue, fn, ctx, false, &w);
}

/* The caller has just won ARMED -> CANCELLED | DETACHING. */
static void cancel_armed(wr_watch *w)
{
    if (wr_watcher_detach(&w->watcher)) {
        drop_cancelled(w, WATCH_DETACHING | WATCH_LIBRARY);
    } else {
        /* The death has it; was fire() here already? Then nobody else comes for it any more. */
        uint32_t old = clear(w, WATCH_DETACHING);
        if (old & WATCH_FIRED)
            drop_cancelled(w, WATCH_LIBRARY | WATCH_FIRED);
    }
    wr_queue_count_cancelled(w->queue, 1);
}

static _Noreturn WR_COLD void released(const char *call, const wr_watch *w)
{
    wr_panic(call, "watch", NULL, w, "its handle has been released");
}

static int cancel(wr_watch *w, const char *call)
{
    if (w == NULL)
        return -EINVAL;
    /* Acquire [watch-state]: DELIVERED is read after what the callback did. Pairs with the release in watch_finish(). */
    uint32_t cur = wr_atomic_load_acquire(&w->state);
    for (;;) {
        if (wr_unlikely(!(cur & WATCH_USER)))
            released(call, w);
        switch (cur & STATE_MASK) {
        case STATE_ARMED:
            /* Acquire-release [watch-state]: one of cancel and fire wins. ARMED -> CANCELLED. */
            if (!wr_atomic_cas_acq_rel(&w->state, &cur, cur - STATE_ARMED + STATE_CANCELLED + WATCH_DETACHING))
                continue;
            cancel_armed(w);
            return WR_CANCELLED;
        case STATE_QUEUED:
            if (watch_cancel(&w->task)) {
                wr_queue_task_cancelled(w->queue, &w->task);
                return WR_CANCELLED;
            }
            /* Acquire [watch-state]: as above. */
            cur = wr_atomic_load_acquire(&w->state);
            continue;
        case STATE_RUNNING:
            if (wr_unlikely(is_cut(w))) {
                /* Acquire-release [watch-state]: of several that come by, one. RUNNING -> CANCELLED. */
                if (!wr_atomic_cas_acq_rel(&w->state, &cur, cur - STATE_RUNNING + STATE_CANCELLED))
                    continue;
                drop_cancelled(w, WATCH_LIBRARY);
                return WR_CANCELLED;
            }
            return wr_task_is_below(&w->task) ? WR_DELIVERED : WR_RUNNING;
        case STATE_DELIVERED:
            return WR_DELIVERED;
        default:
            return WR_CANCELLED;
        }
    }
}

int wr_watch_cancel(wr_watch *watch)
{
    return cancel(watch, "wr_watch_cancel");
}

int wr_watch_cancel_sync(wr_watch *w)
{
    int answer = cancel(w, "wr_watch_cancel_sync");
    if (answer == WR_DELIVERED && wr_task_is_below(&w->task))
        return -EDEADLK;
    if (answer != WR_RUNNING)
        return answer;
    for (;;) {
        uint32_t value = wr_event_value(&no_longer_running);
        /* Acquire [watch-state]: once it is DELIVERED, what the callback did is seen. Pairs with watch_finish(). */
        uint32_t cur = wr_atomic_load_acquire(&w->state);
        if ((cur & STATE_MASK) != STATE_RUNNING)
            return WR_DELIVERED;
        /* Acquire-release [watch-state]: watch_finish() sees WAITED, or this fails. */
        if ((cur & WATCH_WAITED) || wr_atomic_cas_acq_rel(&w->state, &cur, cur | WATCH_WAITED))
            (void)wr_event_wait(&no_longer_running, value, WR_EVENT_FOREVER);
    }
}

void wr_watch_release(wr_watch *watch)
{
    if (watch == NULL)
        return;
    uint32_t old = clear(watch, WATCH_USER);
    if (wr_unlikely(!(old & WATCH_USER)))
        released("wr_watch_release", watch);
}
