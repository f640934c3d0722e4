/* F5 queue: a stack that many push on, a list that consumers share, and the counts that tell when it is over.
 *
 * How a task goes
 *     wr_handover_begin():  handed += n
 *     wr_handover_end():    the whole chain, newest first, goes on `stack` with one compare-exchange
 *     make_ready():         a consumer that has nothing ready exchanges the stack for NULL, turns it round and appends it to
 *                           `ready`, oldest first, with ascending sequence numbers
 *     take():               one consumer takes the first of `ready`; what it does not take, others can. gone += 1
 *     run():                with no lock held; the consumer's frame, which is in `frames`, carries the number meanwhile
 *     pending == handed - gone.
 *
 * Who writes which line
 *     The releasing threads write the first, consumers the second; each reads the other's once a batch, not once a task. Hence
 *     two counts that only grow where one that goes up and down would do, and hence `alarm_at`: by it a releasing thread knows
 *     from its own count that the queue cannot be longer than it ever was, nor as long as the high-water mark.
 *
 * What guards what
 *     The first line and n_settling are atomics. lock (a spinlock, WR_RANK_QUEUE) guards ready, ready_last, flushed,
 *     frames, n_waiters, has_fd, crew, crew_busy, closed, storm, delays, and all changes of gone, delivered, told and look_mark.
 *     Nothing is allocated, freed, run or waited for under it.
 *
 * How long the queue lives
 *     `life` counts armed tasks in its low half and holders in its high half: the owner, each consumer, each task that
 *     was admitted with hold (a watch with a handle, which may be cancelled at any time). Who brings it to 0 frees the queue. A
 *     handing-over thread takes its tasks out of the armed ones as its very last act, so the queue outlasts it.
 *
 * Sleeping consumers
 *     Who pushes on an empty stack signals `work` if anybody is asleep; a thread sleeps only if it has seen ready and stack
 *     empty after it counted itself in n_asleep and read the event (Dekker). A stack that is not empty was signalled after its
 *     first push, or is about to be.
 *
 * Cancelling what is pending
 *     The canceller moves the task's state, then takes it off the ready list by its two links. Three cases: it is linked; a
 *     consumer took it off meanwhile and discards it (seq is TAKEN); or it is not yet on the stack: its hand-over is in
 *     progress. Then the canceller leaves UNWANTED in seq and counts it in n_unwanted; the pusher, which looks at that count
 *     after its push, or whoever makes it ready, drops it. Either the pusher sees the count, or the canceller, which looks
 *     at the stack once more after counting, sees the push (both ends are seq_cst).
 *
 * The descriptor
 *     Two rules: whoever may have changed whether pending is 0 afterwards calls settle_fd(); and every read or write of the
 *     descriptor is followed by a look at pending that agrees with it, or by another try (settle_fd() does so). So at rest
 *     it is readable exactly if pending is not 0: take the last operation on the descriptor and the look that followed it
 *     and agreed. Had pending changed between 0 and not 0 after this look, the one who changed it would have settled
 *     afterwards, with an operation later than the last: a contradiction. No initial read is needed, and
 *     the descriptor stays readable for other loops while one of them is busy with the first of many callbacks.
 *     Who changes `gone` knows whether it met `handed`. Who changes `handed` cannot know whether gone met the old value just
 *     then, only that gone has reached it since: that is when it settles, sometimes for nothing. The look reads gone
 *     first: when it finds them different they were, or a change of gone came between, whose author settles.
 *
 * Freeing
 *     OPEN -> CLOSING (hand-overs that begin from here cancel) -> threads stopped, the rest delivered -> CLOSED -> what late
 *     pushers brought is cancelled, or, if it cannot be, run. A pusher looks at the state again after its push: either it
 *     sees CLOSED and does so itself, or its push came before and the freeing thread sees it (both ends are seq_cst).
 *
 * Fork
 *     A hand-over is one step for the gate, from its count to its armed ones; the rest changes under locks. So in the child
 *     handed and delivered are right, what is pending is linked, and what was cancelled follows. All that is
 *     pending is cancelled at once, and freed by the next consumer (`cut`); destroys are leaked. The consumers of
 *     other threads are forgotten; the descriptor gets an eventfd of its own; the crew is started again, in the place that is there
 *     for it, by the next watch, hand-over or wait (`n_lost`).
 *
 * Invariants (wr_queue_check)
 *     INV-1 ready is ascending in seq, none above flushed; ready_last is its last; prev and next agree.
 *     INV-3 a queue in CLOSED that nobody pushes to has nothing linked.
 *     INV-4 quiet: watched == armed + pending + delivered + cancelled, that is, gone == delivered + cancelled while pending, each
 *           counted on its own; watched is not counted but summed up from armed, handed and cancelled while armed.
 */
#include "queue.h"

#include "alloc.h"
#include "event.h"
#include "fork.h"
#include "histogram.h"
#include "no_destroy.h"
#include "object.h"
#include "thread.h"
#include "ticks.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define ARMED UINT64_C(1)
#define ARMED_MASK UINT64_C(0xffffffff)
#define HOLDER (UINT64_C(1) << 32)
#define IDLE UINT64_MAX  /* the seq of a consumer that is between two callbacks */
#define THREADS_MAX 4096 /* of one queue */
#define SLOW_DEFAULT_NS UINT64_C(10000000)
#define SLOW_FIRST_TICKS UINT64_C(20000) /* below any sensible limit, whatever a tick is */
#define PAUSES_FIRST 128                 /* between a consumer's first two looks at an empty stack */
#define PAUSES_MOST 512                  /* then it sleeps: after some microseconds in all */

#define SAMPLED \
    8 /* of so many hand-overs of a thread, at least one has its delay measured: the clock costs as much as a push */

/* Of a task's seq. */
#define TAKEN UINT64_MAX          /* off the ready list; whoever took it off runs or discards it */
#define UNWANTED (UINT64_MAX - 1) /* cancelled before it was on the stack */

enum state { OPEN, CLOSING, CLOSED };

/* A consumer that is on some thread's stack, running a callback or between two. */
struct wr_frame {
    struct wr_frame *below;       /* the next older one of this thread */
    struct wr_frame *next, *prev; /* the queue's. Guarded by the queue's lock; unused when inline */
    wr_queue *queue;
    wr_task *task; /* what is running; only this thread looks */
    bool lasting;  /* the task outlasts its run: a destroy's does not, and another may have its address */
    uint64_t seq;  /* its number, or IDLE. Guarded by the queue's lock */
    uint64_t now;  /* ticks, at its last look: when task began, or ended */
    bool frees;    /* a callback has freed the queue: do it when the callback has returned */
};

/* What happens at the high-water mark. */
struct storm {
    uint64_t mark; /* 0: nothing */
    wr_queue_hook *hook;
    void *ctx;
    unsigned help;
    bool above;   /* the mark was reached, and pending has not been half of it since */
    bool calling; /* the hook runs now, on @caller */
    pthread_t caller;
};

/* The queue's threads. */
struct crew {
    unsigned n, size; /* how many there are; how many there should be: more only in a forked child */
    pthread_t threads[];
};

struct wr_queue {
    /* Touched by who watches and who hands over. */
    WR_ATOMIC(wr_task *) stack; /* handed over and not yet ready, newest first */
    wr_atomic_u64 handed;       /* tasks that were handed over, ever */
    wr_atomic_u64 alarm_at;     /* below this value of handed there is nothing to look_closer() at */
    wr_atomic_u64 life;
    WR_ATOMIC(int) fd;        /* the eventfd, or -1; made under lock */
    wr_atomic_u32 n_settling; /* threads that use it now */
    wr_atomic_u32 n_asleep;   /* consumers that sleep, or are about to */
    wr_atomic_u32 n_unwanted; /* cancelled, and to be pushed nevertheless */
    wr_atomic_u32 state;      /* enum state */
    wr_atomic_u32 n_lost;     /* threads of the crew that a fork has left behind */
    wr_atomic_u32 told;       /* of this storm the hook was told, and nobody is to help: nothing to do at the mark */

    /* Touched by consumers. */
    __attribute__((aligned(128))) wr_spin lock; /* processors fetch lines in pairs */
    unsigned n_waiters;                         /* threads in wait_for() */
    wr_atomic_u32 stopping;
    bool has_fd;                 /* there is, or was, a descriptor */
    bool closed;                 /* freed: what can be cancelled is not begun any more */
    wr_task *ready, *ready_last; /* to be run, oldest first */
    uint64_t flushed;            /* the highest seq given */
    wr_atomic_u64 gone;          /* begun, or cancelled since they were handed over */
    wr_atomic_u64 delivered;
    struct wr_frame *frames; /* the consumers */
    wr_task *cut;            /* cancelled by a fork, to be discarded */
    bool crew_busy;          /* somebody starts or stops the crew */
    struct crew *crew;
    wr_atomic_u64 cancelled;       /* while pending */
    wr_atomic_u64 cancelled_armed; /* before */
    wr_atomic_u64 high_water;      /* the most that was ever pending */
    wr_atomic_u64 look_mark;       /* storm.mark */
    wr_atomic_u64 n_slow;
    wr_atomic_u64 slow_ns;    /* 0: SLOW_DEFAULT_NS */
    wr_atomic_u64 slow_ticks; /* no callback that took less is slow; 0: not known yet */
    struct storm storm;
    wr_histogram delays; /* of a sample: ticks from hand-over to begin */

    struct wr_event work;    /* consumers sleep here */
    struct wr_event done;    /* who waits for callbacks, or for the crew, sleeps here */
    const char *name;        /* behind the struct, or static */
    wr_queue *newer, *older; /* all queues that wr_queue_new() made. Guarded by queues_lock */
};

/* Both have one holder for ever. */
static wr_queue default_queue = {.life = {HOLDER},
                                 .fd = {-1},
                                 .lock = WR_SPIN_INIT,
                                 .work = WR_EVENT_INIT,
                                 .done = WR_EVENT_INIT,
                                 .name = "default"};
static wr_queue inline_queue = {
    .life = {HOLDER}, .fd = {-1}, .lock = WR_SPIN_INIT, .work = WR_EVENT_INIT, .done = WR_EVENT_INIT, .name = "inline"};

/* What the inline queue counts. Its callbacks run on all threads at once, and a line that all of them wrote would cost more than
 * they do: so each thread counts in one of several places, and only their sums mean anything. */
enum { STRIPES = 32 };
static struct stripe {
    __attribute__((aligned(128))) wr_atomic_u64 armed;
    wr_atomic_u64 running, delivered, cancelled;
} stripes[STRIPES];

static struct stripe *own_stripe(void)
{
    return &stripes[wr_thread_ordinal() % STRIPES];
}

static wr_spin queues_lock = WR_SPIN_INIT; /* WR_RANK_LIST */
static wr_queue *queues;                   /* the newest. Guarded by queues_lock */

/* Not 0: the default queue's thread was started, or the program has started or stopped it: no more starting by itself. */
static wr_atomic_u32 default_managed;

static int start(wr_queue *q, unsigned n_threads, bool lazily);
static void queue_in_child(void);
static size_t consume(wr_queue *q, size_t max, uint64_t until_ns);

/* Whoever has a queue to name has this file linked, and so this. */
static __attribute__((constructor)) void offer_destroyer(void)
{
    wr_object_set_destroyer(&wr_queue_destroyer);
    wr_fork_register(WR_FORK_QUEUE, queue_in_child);
}

/* ---- life ------------------------------------------------------------------------------------------ */

static void life_add(wr_queue *q, uint64_t what)
{
    /* Relaxed: the caller has the queue from someone who holds it. */
    (void)wr_atomic_fetch_add_relaxed(&q->life, what);
}

/* True: that was the last, and the caller calls end_life(). */
static bool life_give(wr_queue *q, uint64_t what)
{
    /* Acquire-release [queue-life]: every holder's use happens before the free. Pairs with itself in other threads. */
    uint64_t old = wr_atomic_fetch_sub_acq_rel(&q->life, what);
    WR_ASSERT((old & ARMED_MASK) >= (what & ARMED_MASK) && old >= what);
    return old == what;
}

/* Takes: queues_lock. */
static WR_COLD void end_life(wr_queue *q)
{
    WR_ASSERT(q->ready == NULL && q->frames == NULL && q->crew == NULL);
    wr_spin_lock(&queues_lock, WR_RANK_LIST);
    if (q->newer != NULL)
        q->newer->older = q->older;
    else
        queues = q->older;
    if (q->older != NULL)
        q->older->newer = q->newer;
    wr_spin_unlock(&queues_lock, WR_RANK_LIST);
    wr_free(q);
}

static void life_sub(wr_queue *q, uint64_t what)
{
    if (wr_unlikely(life_give(q, what)))
        end_life(q);
}

wr_queue *wr_queue_new(const char *name)
{
    if (name == NULL)
        name = "queue";
    size_t length = strlen(name) + 1;
    wr_queue *q = wr_alloc_aligned(_Alignof(wr_queue), sizeof *q + length);
    if (q == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    memset(q, 0, sizeof *q);
    wr_atomic_init(&q->life, HOLDER);
    wr_atomic_init(&q->fd, -1);
    wr_spin_init(&q->lock);
    wr_event_init(&q->work);
    wr_event_init(&q->done);
    q->name = memcpy(q + 1, name, length);
    wr_spin_lock(&queues_lock, WR_RANK_LIST);
    q->older = queues;
    if (queues != NULL)
        queues->newer = q;
    queues = q;
    wr_spin_unlock(&queues_lock, WR_RANK_LIST);
    return q;
}

wr_queue *wr_queue_default(void)
{
    return &default_queue;
}

/* From a public pointer; NULL stays NULL. */
static wr_queue *queue_of(const wr_queue *queue)
{
    return queue == WR_QUEUE_INLINE ? &inline_queue : (wr_queue *)(uintptr_t)queue;
}

bool wr_queue_is_inline(const wr_queue *queue)
{
    return queue == &inline_queue;
}

const char *wr_queue_name(const wr_queue *queue)
{
    return queue == NULL ? NULL : queue_of(queue)->name;
}

/* Where threads, descriptors and waits make sense; else NULL. */
static wr_queue *queue_with_consumers(wr_queue *queue)
{
    return queue == NULL || queue == WR_QUEUE_INLINE ? NULL : queue;
}

/* ---- frames ---------------------------------------------------------------------------------------- */

/* The outermost callback of @q on this thread's stack, or NULL. */
static struct wr_frame *outermost(const wr_queue *q)
{
    struct wr_frame *found = NULL;
    for (struct wr_frame *frame = wr_thread_stack()->frames; frame != NULL; frame = frame->below)
        if (frame->queue == q && frame->task != NULL)
            found = frame;
    return found;
}

bool wr_task_is_below(const wr_task *task)
{
    for (struct wr_frame *frame = wr_thread_stack()->frames; frame != NULL; frame = frame->below)
        if (frame->task == task && frame->lasting)
            return true;
    return false;
}

static void frame_push(struct wr_frame *frame, wr_queue *q)
{
    (void)wr_thread_self(); /* registered, its end in a callback is noticed */
    wr_thread *self = wr_thread_stack();
    *frame = (struct wr_frame){.below = self->frames, .queue = q, .seq = IDLE};
    self->frames = frame;
}

static void frame_pop(struct wr_frame *frame)
{
    wr_thread *self = wr_thread_stack();
    WR_ASSERT(self->frames == frame);
    self->frames = frame->below;
}

/* Takes: q->lock. */
static void frame_link(struct wr_frame *frame, wr_queue *q)
{
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    frame->next = q->frames;
    if (q->frames != NULL)
        q->frames->prev = frame;
    q->frames = frame;
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
}

/* Takes: q->lock. */
static void frame_unlink(struct wr_frame *frame, wr_queue *q)
{
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    WR_ASSERT(frame->seq == IDLE);
    if (frame->next != NULL)
        frame->next->prev = frame->prev;
    if (frame->prev != NULL)
        frame->prev->next = frame->next;
    else
        q->frames = frame->next;
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
}

/* A callback took so long that it may be a slow one. Takes: q->lock, lest a new limit be overwritten by what an old one
 * comes to in ticks. */
static WR_COLD void judge_slow(wr_queue *q, uint64_t ticks)
{
    uint64_t ns = wr_ticks_to_ns(ticks);
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    /* Relaxed, all: figures and a limit. */
    uint64_t limit = wr_atomic_load_relaxed(&q->slow_ns);
    if (limit == 0)
        limit = SLOW_DEFAULT_NS;
    if (ns > limit)
        (void)wr_atomic_fetch_add_relaxed(&q->n_slow, 1);
    /* From here on most that are quick enough are told from ticks alone. */
    double ticks_per_ns = ns == 0 ? 0 : (double)ticks / (double)ns;
    double least = 0.9 * (double)limit * ticks_per_ns;
    wr_atomic_store_relaxed(&q->slow_ticks, least < 1 ? 1 : least < 1e18 ? (uint64_t)least : (uint64_t)1e18);
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
}

/* Runs the task; @began: ticks. Returns the ticks at its end. Requires: no wr lock held (runs user code). */
static uint64_t run(wr_queue *q, wr_task *task, uint64_t began)
{
    int saved = errno;
    wr_lock_assert_none("callback");
    task->klass->run(task);
    uint64_t now = wr_ticks();
    /* Relaxed: a limit. */
    uint64_t slow = wr_atomic_load_relaxed(&q->slow_ticks), took = now - began;
    if (wr_unlikely(took > (slow != 0 ? slow : SLOW_FIRST_TICKS)) && (int64_t)took > 0)
        judge_slow(q, took);
    errno = saved;
    return now;
}

/* ---- pending, and the descriptor that shows it --------------------------------------------------- */

/* For the descriptor: see there. */
static bool is_pending(wr_queue *q)
{
    /* Seq_cst [queue-pending], both: one order with the changes of handed and gone in wr_handover_begin() and gone_add(). */
    uint64_t gone = wr_atomic_load_seq_cst(&q->gone);
    return wr_atomic_load_seq_cst(&q->handed) != gone;
}

/* See "The descriptor" above. May be called at any time, by anybody; leaves errno alone. */
static WR_COLD void settle_fd(wr_queue *q)
{
    int saved = errno, cancel = wr_cancel_hold(); /* read() and write() are cancellation points */
    /* Seq_cst [queue-fd]: either this is seen by the one who closes the descriptor, or the load sees -1. Pairs with
     * close_fd(). The load also stands behind the caller's change of pending, for wr_queue_fd(). */
    (void)wr_atomic_fetch_add_seq_cst(&q->n_settling, 1);
    int fd = wr_atomic_load_seq_cst(&q->fd);
    while (fd >= 0) {
        bool pending = is_pending(q);
        uint64_t value = 1;
        /* Neither blocks. A read that finds nothing to reset, and a write beyond 2^64-2, change nothing, as they should. */
        ssize_t moved = pending ? write(fd, &value, sizeof value) : read(fd, &value, sizeof value);
        (void)moved;
        if (is_pending(q) == pending)
            break;
    }
    /* Release [queue-fd]: the last use of the descriptor happens before its close. Pairs with close_fd(). */
    (void)wr_atomic_fetch_sub_release(&q->n_settling, 1);
    wr_cancel_restore(cancel);
    errno = saved;
}

/* What is pending now, about: exact where neither count moves. */
static uint64_t pending_now(wr_queue *q)
{
    /* Relaxed, both: figures. Gone first: it never exceeds handed. */
    uint64_t gone = wr_atomic_load_relaxed(&q->gone), handed = wr_atomic_load_relaxed(&q->handed);
    return (int64_t)(handed - gone) > 0 ? handed - gone : 0;
}

/* The mark means something again, or something else. Requires: q->lock held. */
static void set_look_mark(wr_queue *q, uint64_t mark)
{
    /* Seq_cst [queue-alarm], both: pairs with look_closer(), which looks at the mark again after it has set the alarm. */
    wr_atomic_store_seq_cst(&q->look_mark, mark);
    wr_atomic_store_seq_cst(&q->alarm_at, 0);
}

/* The storm is on, or over. Requires: q->lock held. */
static void set_above(wr_queue *q, bool above)
{
    q->storm.above = above;
    /* Seq_cst [queue-alarm]: stands before a look at handed. Pairs with the look in look_closer(). */
    wr_atomic_store_seq_cst(&q->told, above && q->storm.help == 0);
}

/* Fewer are pending. Requires: q->lock held. */
static void ebb(wr_queue *q)
{
    if (wr_likely(!q->storm.above) || pending_now(q) > q->storm.mark / 2)
        return;
    set_above(q, false);
    /* Relaxed: changed under the lock. Seq_cst [queue-alarm]: either this sees the hand-over, and the storm goes on, or that
     * one sees that it has to tell. Pairs with wr_handover_begin(). */
    uint64_t gone = wr_atomic_load_relaxed(&q->gone);
    if ((int64_t)(wr_atomic_load_seq_cst(&q->handed) - gone) > (int64_t)(q->storm.mark / 2))
        set_above(q, true);
}

/* @n tasks are no longer pending. True: perhaps none is, and there is a descriptor; the caller calls settle_fd() when it has
 * left the lock. Requires: q->lock held. */
static bool gone_add(wr_queue *q, uint64_t n)
{
    /* Relaxed: changed under the lock only. */
    uint64_t gone = wr_atomic_load_relaxed(&q->gone) + n;
    if (wr_likely(!q->has_fd)) {
        /* Relaxed: a figure as long as there is no descriptor; wr_queue_fd() takes the lock before it looks. */
        wr_atomic_store_relaxed(&q->gone, gone);
        ebb(q);
        return false;
    }
    /* Seq_cst [queue-pending], both: one order with wr_handover_begin()'s change of handed and look at gone. */
    wr_atomic_store_seq_cst(&q->gone, gone);
    ebb(q);
    return wr_atomic_load_seq_cst(&q->handed) == gone;
}

int wr_queue_fd(wr_queue *queue)
{
    wr_queue *q = queue_with_consumers(queue);
    if (q == NULL)
        return -EINVAL;
    /* Seq_cst [queue-fd]: as below. */
    int fd = wr_atomic_load_seq_cst(&q->fd);
    if (fd >= 0)
        return fd;
    int made = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (made < 0)
        return -errno;
    int none = -1;
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    /* Seq_cst [queue-fd]: under the lock for who changes gone; in one order with handed for who hands over: who changes
     * them from here on sees the descriptor, and what was changed before, the settling below sees. */
    bool first = wr_atomic_cas_seq_cst(&q->fd, &none, made);
    q->has_fd = true;
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    if (!first) {
        int cancel = wr_cancel_hold();
        close(made);
        wr_cancel_restore(cancel);
        return none;
    }
    settle_fd(q);
    return made;
}

static void close_fd(wr_queue *q)
{
    /* Seq_cst [queue-fd]: who settles from here on sees -1; who sees the descriptor is counted already. */
    int fd = wr_atomic_exchange_seq_cst(&q->fd, -1);
    if (fd < 0)
        return;
    /* Seq_cst [queue-fd]: pairs with the count in settle_fd(), and acquires its release. */
    while (wr_atomic_load_seq_cst(&q->n_settling) != 0)
        sched_yield();
    close(fd);
}

/* ---- from the stack to the ready list ------------------------------------------------------------ */

/* Requires: no wr lock held. @scrap: cancelled tasks that are no longer linked, or NULL. */
static void discard_all(wr_task *scrap)
{
    for (wr_task *next; scrap != NULL; scrap = next) {
        next = scrap->next;
        scrap->klass->discard(scrap);
    }
}

/* Moves what was handed over behind what is ready, and what of it is unwanted to @scrap. Returns whether anything is ready.
 * Requires: q->lock held; the caller discards the scrap when it has left it. */
static bool make_ready(wr_queue *q, wr_task **scrap)
{
    while (wr_unlikely(q->cut != NULL)) {
        wr_task *task = q->cut;
        q->cut = task->next;
        task->next = *scrap;
        *scrap = task;
    }
    __builtin_prefetch((const void *)&q->stack, 1); /* look and exchange: one transfer of the line, not two */
    /* Seq_cst [queue-push]: a look, to save the exchange. One order with the pushes, q->state and q->n_unwanted; a push that it
     * misses comes later than all that the caller did before. */
    if (wr_atomic_load_seq_cst(&q->stack) == NULL)
        return q->ready != NULL;
    /* Acquire [queue-push]: sees what was written to the tasks before their push in wr_handover_end(). */
    wr_task *task = wr_atomic_exchange_acquire(&q->stack, NULL);

    wr_task *first = NULL, *last = NULL;
    uint64_t n = 0;
    for (wr_task *older; task != NULL; task = older) {
        older = task->next;
        /* The list's links alone would have one cache line come after the other. A stale address does no harm. */
        __builtin_prefetch(task->ahead, 1);
        __builtin_prefetch((const void *)((uintptr_t)task->ahead + 64), 1); /* NULL, at the end */
        if (wr_unlikely(task->seq == UNWANTED)) {
            task->next = *scrap;
            *scrap = task;
            /* Relaxed: changed under this lock only; the pushers' look needs no zero in time. */
            (void)wr_atomic_fetch_sub_relaxed(&q->n_unwanted, 1);
            continue;
        }
        task->next = first;
        if (first != NULL)
            first->prev = task;
        else
            last = task;
        first = task;
        n++;
    }
    if (first == NULL)
        return q->ready != NULL;
    first->prev = q->ready_last;
    if (q->ready == NULL)
        q->ready = first;
    else
        q->ready_last->next = first;
    q->ready_last = last;
    uint64_t seq = q->flushed;
    q->flushed += n;
    for (task = first; task != NULL; task = task->next)
        task->seq = ++seq;
    return true;
}

/* Takes @task off the ready list. Requires: q->lock held; it is linked there. */
static void take_off(wr_queue *q, wr_task *task)
{
    if (task->next != NULL)
        task->next->prev = task->prev;
    else
        q->ready_last = task->prev;
    if (task->prev != NULL)
        task->prev->next = task->next;
    else
        q->ready = task->next;
    task->seq = TAKEN;
}

/* Drops what is unwanted and on the stack. Takes: q->lock. */
static WR_COLD void drop_unwanted(wr_queue *q)
{
    wr_task *scrap = NULL;
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    (void)make_ready(q, &scrap);
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    discard_all(scrap);
}

/* Cancels all that is pending and can be cancelled. Takes: q->lock. */
static void cancel_pending(wr_queue *q)
{
    wr_task *scrap = NULL, *taken = NULL;
    wr_gate_enter(); /* no fork between a task's leaving of the list and its state: a child would find it neither pending nor over */
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    (void)make_ready(q, &scrap);
    for (wr_task *task = q->ready, *next; task != NULL; task = next) {
        next = task->next;
        if (task->klass->cancel == NULL)
            continue;
        take_off(q, task);
        task->next = taken;
        taken = task;
    }
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);

    uint64_t n = 0;
    for (wr_task *task = taken; task != NULL; task = task->next)
        n += task->klass->cancel(task); /* else it was cancelled alone, and is counted there */
    /* Relaxed: a count. */
    (void)wr_atomic_fetch_add_relaxed(&q->cancelled, n);
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    bool empty = gone_add(q, n);
    bool wake = q->n_waiters > 0;
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    wr_gate_leave();
    if (empty)
        settle_fd(q);
    discard_all(scrap);
    discard_all(taken);
    if (wake)
        wr_event_signal(&q->done);
}

void wr_queue_task_cancelled(wr_queue *q, wr_task *task)
{
    wr_task *scrap = NULL;
    /* Relaxed: a count. */
    (void)wr_atomic_fetch_add_relaxed(&q->cancelled, 1);
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    (void)make_ready(q, &scrap);
    if (wr_unlikely(task->seq == 0)) {
        /* Seq_cst [queue-unwanted]: stands before the look at the stack in make_ready(). Pairs with the look in
         * wr_handover_end(). */
        (void)wr_atomic_fetch_add_seq_cst(&q->n_unwanted, 1);
        task->seq = UNWANTED;
        (void)make_ready(q, &scrap); /* if its push came between, it is scrap now */
    } else if (task->seq != TAKEN) {
        take_off(q, task);
        task->next = scrap;
        scrap = task;
    }
    bool empty = gone_add(q, 1);
    bool wake = q->n_waiters > 0;
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    if (empty)
        settle_fd(q);
    discard_all(scrap);
    if (wake)
        wr_event_signal(&q->done);
}

/* ---- admission and hand-over --------------------------------------------------------------------- */

static int restart_lost(wr_queue *q);

static bool has_lost(const wr_queue *q)
{
    /* Relaxed: written before this process had threads, then under the lock. */
    return wr_atomic_load_relaxed(&q->n_lost) != 0;
}

static int start_default(void)
{
    for (;;) {
        /* Acquire [queue-managed]: a thread that was started by another caller is there. Pairs with the store in
         * wr_queue_start(). */
        if (wr_likely(wr_atomic_load_acquire(&default_managed) != 0))
            return 0;
        int error = start(&default_queue, 1, true);
        if (error != -EBUSY)
            return error == 0 ? 0 : -EAGAIN;
        sched_yield(); /* another thread is about to start it */
    }
}

int wr_queue_resolve(wr_queue *queue, wr_queue **resolved)
{
    wr_queue *q = queue == NULL ? &default_queue : queue_of(queue);
    if (q == &default_queue) {
        int error = start_default();
        if (error != 0)
            return error;
    }
    /* Relaxed: a queue that is freed beside this call may be used or refused; both are right. */
    if (wr_atomic_load_relaxed(&q->state) != OPEN)
        return -ECANCELED;
    if (wr_unlikely(has_lost(q)) && restart_lost(q) != 0)
        return -EAGAIN;
    *resolved = q;
    return 0;
}

/* The inline queue is never freed: nobody has to hold it. */
void wr_queue_admit(wr_queue *q, bool hold)
{
    if (wr_queue_is_inline(q))
        (void)wr_atomic_fetch_add_relaxed(&own_stripe()->armed, 1); /* relaxed: a count */
    else
        life_add(q, hold ? HOLDER + ARMED : ARMED);
}

void wr_queue_refuse(wr_queue *q, bool hold)
{
    if (wr_queue_is_inline(q))
        (void)wr_atomic_fetch_sub_relaxed(&own_stripe()->armed, 1); /* relaxed: a count */
    else
        life_sub(q, hold ? HOLDER + ARMED : ARMED);
}

void wr_queue_drop(wr_queue *q)
{
    if (!wr_queue_is_inline(q))
        life_sub(q, HOLDER);
}

void wr_queue_count_cancelled(wr_queue *q, uint64_t n)
{
    if (wr_queue_is_inline(q)) {
        struct stripe *own = own_stripe();
        /* Relaxed, both: counts. */
        (void)wr_atomic_fetch_add_relaxed(&own->cancelled, n);
        (void)wr_atomic_fetch_sub_relaxed(&own->armed, n);
        return;
    }
    /* Relaxed: a count. */
    (void)wr_atomic_fetch_add_relaxed(&q->cancelled_armed, n);
    life_sub(q, n * ARMED);
}

/* The three are inlined into wr_handover_one(), where they come to half. */
static inline __attribute__((always_inline)) bool handover_begin(wr_handover *h, wr_queue *q, uint64_t at_most)
{
    /* Relaxed: if it misses the closing, wr_handover_end() looks again. */
    if (wr_unlikely(wr_atomic_load_relaxed(&q->state) != OPEN))
        return false;
    wr_gate_enter();
    *h = (wr_handover){.queue = q, .expected = at_most};
    /* Seq_cst [queue-pending]: one order with gone, see gone_add(). Before any of them can be cancelled as pending: so gone
     * never exceeds it. */
    h->handed = wr_atomic_fetch_add_seq_cst(&q->handed, at_most) + at_most;
    return true;
}

static inline __attribute__((always_inline)) void handover_add(wr_handover *h, wr_task *task)
{
    wr_thread *self = wr_thread_stack();
    const void **ring = &self->handed[self->n_handed++ % WR_HANDED_AHEAD];
    task->ahead = *ring;
    *ring = task;
    task->stamp = 0;
    if (self->n_handed % SAMPLED == 0)
        h->sample = task;
    task->next = h->newest;
    h->newest = task;
    if (h->oldest == NULL)
        h->oldest = task;
    h->n++;
}

/* Some of them had been cancelled as armed: for the counts, as pending. Takes: q->lock. */
static WR_COLD void handed_too_many(wr_queue *q, uint64_t n)
{
    /* Relaxed, both: counts. The first may be below 0 for a moment. */
    (void)wr_atomic_fetch_sub_relaxed(&q->cancelled_armed, n);
    (void)wr_atomic_fetch_add_relaxed(&q->cancelled, n);
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    (void)gone_add(q, n);
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
}

static void look_closer(wr_queue *q, uint64_t handed);

/* What is seldom to be done at the end of a hand-over: all that may free, call the system or run user code. */
enum { END_CLOSED = 1, END_UNWANTED = 2, END_SETTLE = 4, END_ALARM = 8 };

/* The caller holds q. */
static WR_COLD void end_slowly(wr_queue *q, unsigned what, uint64_t handed)
{
    if (what & END_CLOSED) {
        cancel_pending(q);
        (void)consume(q, SIZE_MAX, 0);
    }
    if (what & END_UNWANTED)
        drop_unwanted(q);
    if (what & END_SETTLE)
        settle_fd(q);
    if (what & END_ALARM) {
        look_closer(q, handed);
        if (has_lost(q) && restart_lost(q) != 0) {
            /* Seq_cst [queue-alarm]: as in set_look_mark(): the next hand-over tries again. */
            wr_atomic_store_seq_cst(&q->alarm_at, 0);
        }
    }
}

static inline __attribute__((always_inline)) void handover_end(wr_handover *h)
{
    wr_queue *q = h->queue;
    unsigned slow = 0;
    if (wr_unlikely(h->n < h->expected))
        handed_too_many(q, h->expected - h->n);

    if (wr_likely(h->n > 0)) {
        /* Relaxed: the head is only linked to, not looked into. */
        wr_task *head = wr_atomic_load_relaxed(&q->stack);
        if (head == NULL)
            h->sample = h->oldest;
        if (h->sample != NULL)
            h->sample->stamp = wr_ticks();
        do {
            h->oldest->next = head;
            /* Seq_cst [queue-push]: releases the tasks to the exchange in make_ready(); and one order with the state, see
             * "Freeing", with n_unwanted and with n_asleep. */
        } while (wr_unlikely(!wr_atomic_cas_seq_cst(&q->stack, &head, h->newest)));
        /* Seq_cst [queue-asleep]: stands behind the push. Pairs with sleep_until_work(). */
        if (head == NULL && wr_atomic_load_seq_cst(&q->n_asleep) != 0)
            wr_event_signal(&q->work);

        /* Seq_cst [queue-closed]: the push stands before it. Pairs with the store in finish_free(): either it sees CLOSED,
         * or the freeing thread sees the push. */
        if (wr_unlikely(wr_atomic_load_seq_cst(&q->state) == CLOSED))
            slow |= END_CLOSED;
        /* Seq_cst [queue-unwanted]: some of them may have been cancelled before the push, by a thread that could not find them
         * yet. Pairs with the count in wr_queue_task_cancelled(). */
        if (wr_unlikely(wr_atomic_load_seq_cst(&q->n_unwanted) != 0))
            slow |= END_UNWANTED;
    }
    /* Seq_cst [queue-fd]: stands behind the change of handed. Either it sees the descriptor, or the settling in
     * wr_queue_fd() sees the change. Seq_cst [queue-pending]: see "The descriptor". */
    if (wr_atomic_load_seq_cst(&q->fd) >= 0 && wr_atomic_load_seq_cst(&q->gone) >= h->handed - h->expected)
        slow |= END_SETTLE;
    /* Seq_cst [queue-alarm]: stands behind the change of handed. Pairs with look_closer(). */
    if (wr_unlikely(h->handed >= wr_atomic_load_seq_cst(&q->alarm_at)))
        slow |= END_ALARM;
    if (wr_likely(slow == 0)) {
        bool last = h->n > 0 && life_give(q, h->n * ARMED);
        wr_gate_leave();
        if (wr_unlikely(last))
            end_life(q);
        return;
    }
    life_add(q, HOLDER - h->n * ARMED); /* the armed ones, for a hold */
    wr_gate_leave();
    end_slowly(q, slow, h->handed);
    life_sub(q, HOLDER);
}

bool wr_handover_begin(wr_handover *h, wr_queue *q, uint64_t at_most)
{
    return handover_begin(h, q, at_most);
}

void wr_handover_add(wr_handover *h, wr_task *task)
{
    handover_add(h, task);
}

void wr_handover_end(wr_handover *h)
{
    handover_end(h);
}

bool wr_handover_one(wr_queue *q, wr_task *task)
{
    wr_handover h;
    if (!handover_begin(&h, q, 1))
        return false;
    handover_add(&h, task);
    handover_end(&h);
    return true;
}

void wr_queue_run_inline(wr_queue *q, wr_task *task)
{
    struct wr_frame frame;
    struct stripe *own = own_stripe();
    int cancel = wr_cancel_hold();
    frame_push(&frame, q);
    frame.task = task;
    frame.lasting = true;
    /* Relaxed, all: counts. */
    (void)wr_atomic_fetch_add_relaxed(&own->running, 1);
    (void)wr_atomic_fetch_sub_relaxed(&own->armed, 1);
    (void)run(q, task, wr_ticks());
    (void)wr_atomic_fetch_add_relaxed(&own->delivered, 1);
    (void)wr_atomic_fetch_sub_relaxed(&own->running, 1);
    frame_pop(&frame);
    task->klass->finish(task);
    wr_cancel_restore(cancel);
}

/* ---- the high-water mark ----------------------------------------------------------------------------- */

/* From which value of handed on look_closer() has something to do. */
static uint64_t next_alarm(uint64_t gone, uint64_t high, uint64_t mark)
{
    return gone + (mark != 0 && mark <= high ? mark : high + 1);
}

/* pending has reached the mark. The caller holds q, by an armed task. Runs user code. Takes: q->lock. */
static WR_COLD void storm(wr_queue *q, uint64_t pending)
{
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    while (q->storm.mark != 0 && pending >= q->storm.mark && !q->storm.above && !q->storm.calling) {
        wr_queue_hook *hook = q->storm.hook;
        void *ctx = q->storm.ctx;
        set_above(q, true);
        ebb(q); /* consumers were quicker than this thread */
        if (hook == NULL)
            break;
        q->storm.calling = true;
        q->storm.caller = pthread_self();
        wr_spin_unlock(&q->lock, WR_RANK_QUEUE);

        int saved = errno, cancel = wr_cancel_hold();
        wr_lock_assert_none("high-water hook");
        wr_no_destroy_check("high-water hook of queue", q->name, q);
        hook(q, pending, ctx);
        errno = saved;
        wr_cancel_restore(cancel);

        wr_spin_lock(&q->lock, WR_RANK_QUEUE);
        q->storm.calling = false;
        if (q->n_waiters > 0) {
            wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
            wr_event_signal(&q->done);
            wr_spin_lock(&q->lock, WR_RANK_QUEUE);
        }
        pending = pending_now(q); /* who brought the next storm meanwhile, left it to this thread */
    }
    unsigned help = q->storm.mark != 0 && pending >= q->storm.mark ? q->storm.help : 0;
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);

    /* Not in its own callback: each would help before it is done. Nor in deferred work: a callback may wait for that. */
    if (help > 0 && outermost(q) == NULL && wr_thread_stack()->deferred_depth == 0) {
        wr_no_destroy_check("help with queue", q->name, q);
        (void)consume(q, help, 0);
    }
}

static WR_COLD void look_closer(wr_queue *q, uint64_t handed)
{
    /* Relaxed: gone only grows, so an old value gives an early alarm. */
    uint64_t gone = wr_atomic_load_relaxed(&q->gone), mark;
    uint64_t pending = handed > gone ? handed - gone : 0;
    /* Relaxed, both: a figure that only grows. */
    uint64_t high = wr_atomic_load_relaxed(&q->high_water);
    while (pending > high && !wr_atomic_cas_relaxed(&q->high_water, &high, pending))
        ;
    if (pending > high)
        high = pending;
    do {
        /* Seq_cst [queue-alarm], all: whoever changes the mark sets the alarm to 0 afterwards; if this sets it by an older mark
         * after that, it sees the newer mark now. Pairs with set_look_mark(). */
        mark = wr_atomic_load_seq_cst(&q->look_mark);
        wr_atomic_store_seq_cst(&q->alarm_at, next_alarm(gone, high, mark));
    } while (wr_atomic_load_seq_cst(&q->look_mark) != mark);
    if (mark == 0)
        return;
    if (pending < mark) {
        /* Seq_cst [queue-alarm]: a hand-over that saw an alarm by an older mark is seen here. Pairs with wr_handover_end(). */
        handed = wr_atomic_load_seq_cst(&q->handed);
        gone = wr_atomic_load_relaxed(&q->gone); /* relaxed: as above */
        pending = handed > gone ? handed - gone : 0;
    }
    /* Seq_cst [queue-alarm]: stands behind the change of handed. Pairs with ebb(). */
    if (pending >= mark && wr_atomic_load_seq_cst(&q->told) == 0)
        storm(q, pending);
}

/* Waits until no earlier hook is running, but for the one that calls this; then sets another. */
static void storm_set(wr_queue *q, const struct storm *storm)
{
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    q->n_waiters++;
    while (q->storm.calling && !pthread_equal(q->storm.caller, pthread_self())) {
        uint32_t value = wr_event_value(&q->done);
        wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
        (void)wr_event_wait(&q->done, value, WR_EVENT_FOREVER);
        wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    }
    q->n_waiters--;
    q->storm.mark = storm->mark;
    q->storm.hook = storm->hook;
    q->storm.ctx = storm->ctx;
    q->storm.help = storm->help;
    set_above(q, false);
    set_look_mark(q, storm->mark);
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
}

int wr_queue_set_high_water(wr_queue *queue, uint64_t mark, wr_queue_hook *hook, void *ctx, unsigned help)
{
    wr_queue *q = queue_with_consumers(queue);
    if (q == NULL || (mark == 0 && (hook != NULL || help != 0)))
        return -EINVAL;
    storm_set(q, &(struct storm){.mark = hook != NULL || help != 0 ? mark : 0, .hook = hook, .ctx = ctx, .help = help});
    return 0;
}

int wr_queue_set_slow_limit(wr_queue *queue, uint64_t limit_ns)
{
    wr_queue *q = queue_of(queue);
    if (q == NULL || limit_ns == 0)
        return -EINVAL;
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    /* Relaxed, both: callbacks to come use them; one that races them is judged by either. */
    wr_atomic_store_relaxed(&q->slow_ns, limit_ns);
    wr_atomic_store_relaxed(&q->slow_ticks, 1);
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    return 0;
}

/* ---- consumers ------------------------------------------------------------------------------------- */

/* The callback that @frame carries has returned. Requires: q->lock held. */
static void ended(wr_queue *q, struct wr_frame *frame)
{
    /* Relaxed, both: changed under the lock only. */
    wr_atomic_store_relaxed(&q->delivered, wr_atomic_load_relaxed(&q->delivered) + 1);
    frame->seq = IDLE;
    frame->task = NULL;
}

/* Requires: q->lock held. @ticks: may be negative. */
static void note_delay(wr_queue *q, uint64_t ticks)
{
    wr_histogram_add(&q->delays, (int64_t)ticks > 0 ? ticks : 0);
}

/* The next task to be begun, still linked, or NULL. Requires: q->lock held; @scrap: as for make_ready(). */
static wr_task *next_ready(wr_queue *q, wr_task **scrap)
{
    if (q->ready == NULL && !make_ready(q, scrap))
        return NULL;
    wr_task *task = q->ready;
    /* On a freed queue who pushed it cancels it: it is about to see CLOSED. */
    while (wr_unlikely(q->closed) && task != NULL && task->klass->cancel != NULL)
        task = task->next;
    return task;
}

/* Ends the callback that @frame carries, if any, and takes the next. Takes: q->lock. */
static bool take(wr_queue *q, struct wr_frame *frame)
{
    wr_task *scrap = NULL;
    bool empty = false;
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    bool was_running = frame->task != NULL;
    if (was_running)
        ended(q, frame);
    for (wr_task *task; (task = next_ready(q, &scrap)) != NULL;) {
        uint64_t seq = task->seq;
        take_off(q, task);
        if (wr_likely(task->klass->begin(task))) {
            frame->task = task;
            frame->lasting = task->klass->cancel != NULL;
            frame->seq = seq;
            if (task->stamp != 0)
                note_delay(q, frame->now - task->stamp);
            empty = gone_add(q, 1);
            break;
        }
        task->next = scrap; /* cancelled just now; its canceller will find it TAKEN */
        scrap = task;
    }
    bool wake = q->n_waiters > 0 && was_running;
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);

    if (wr_unlikely(empty))
        settle_fd(q);
    discard_all(scrap);
    if (wake)
        wr_event_signal(&q->done);
    return frame->task != NULL;
}

/* Ends the callback that @frame carries. Takes: q->lock. */
static void end(wr_queue *q, struct wr_frame *frame)
{
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    ended(q, frame);
    bool wake = q->n_waiters > 0;
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    if (wake)
        wr_event_signal(&q->done);
}

static bool is_stopping(wr_queue *q)
{
    /* Acquire [queue-stop]: pairs with the store in crew_end(). */
    return wr_atomic_load_acquire(&q->stopping) != 0;
}

/* Runs callbacks until none is pending, @max were run, the time is @until_ns (0: no limit), the queue was freed by one, or,
 * for a thread of the @crew, it is being stopped. Returns how many. Requires: no wr lock held (runs user code). */
static size_t run_some(wr_queue *q, struct wr_frame *frame, size_t max, uint64_t until_ns, bool crew)
{
    size_t n = 0;
    frame->now = wr_ticks();
    while (n < max && take(q, frame)) {
        wr_task *task = frame->task;
        const wr_task_class *klass = task->klass;
        frame->now = run(q, task, frame->now);
        klass->finish(task); /* before the frame ends: who waits for the frame finds the task delivered */
        n++;
        if (frame->frees || (until_ns != 0 && wr_clock_ns() >= until_ns) || (crew && is_stopping(q)))
            break;
    }
    if (frame->task != NULL)
        end(q, frame);
    return n;
}

static void finish_free(wr_queue *q);

/* run_some() with a frame of its own. Requires: q is held by somebody; no wr lock held (runs user code). */
static size_t consume(wr_queue *q, size_t max, uint64_t until_ns)
{
    struct wr_frame frame;
    int cancel = wr_cancel_hold();
    life_add(q, HOLDER);
    frame_push(&frame, q);
    frame_link(&frame, q);
    /* Called from a destroy, this would leave the deaths that callbacks cause to that destroy's end: they are to be handed over
     * before the drain is over. */
    wr_thread *self = wr_thread_stack();
    struct wr_deaths around = self->deaths;
    self->deaths = (struct wr_deaths){NULL, NULL, false};
    size_t n = run_some(q, &frame, max, until_ns, false);
    self->deaths = around;
    WR_AUDIT((wr_queue_check(q), true));
    frame_unlink(&frame, q);
    frame_pop(&frame);
    if (wr_unlikely(frame.frees))
        finish_free(q);
    life_sub(q, HOLDER);
    wr_cancel_restore(cancel);
    return n;
}

size_t wr_queue_drain(wr_queue *queue, size_t max)
{
    wr_queue *q = queue_with_consumers(queue);
    return q == NULL ? 0 : consume(q, max, 0);
}

size_t wr_queue_drain_for(wr_queue *queue, uint64_t budget_ns)
{
    wr_queue *q = queue_with_consumers(queue);
    uint64_t now = wr_clock_ns();
    return q == NULL ? 0 : consume(q, SIZE_MAX, budget_ns < UINT64_MAX - now ? now + budget_ns : UINT64_MAX);
}

/* ---- threads of the queue ------------------------------------------------------------------------ */

static bool has_work(wr_queue *q)
{
    /* Seq_cst [queue-asleep]: stands behind the count of who is about to sleep. Pairs with the push in wr_handover_end(). */
    if (wr_atomic_load_seq_cst(&q->stack) != NULL)
        return true;
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    bool work = q->ready != NULL;
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    return work;
}

/* May return early. */
static void sleep_until_work(wr_queue *q)
{
    /* Rare looks: each takes the line from those who hand over, and what has gathered meanwhile costs the line once. */
    for (unsigned pauses = PAUSES_FIRST; pauses <= PAUSES_MOST; pauses *= 2) {
        for (unsigned i = 0; i < pauses; i++)
            wr_atomic_pause();
        __builtin_prefetch((const void *)&q->stack, 1);
        /* Relaxed: a look; take() looks again. */
        if (wr_atomic_load_relaxed(&q->stack) != NULL)
            return;
    }
    /* Seq_cst [queue-asleep]: stands before the look at the stack. Pairs with the look in wr_handover_end(). */
    (void)wr_atomic_fetch_add_seq_cst(&q->n_asleep, 1);
    uint32_t value = wr_event_value(&q->work);
    if (!is_stopping(q) && !has_work(q))
        (void)wr_event_wait(&q->work, value, WR_EVENT_FOREVER);
    /* Relaxed: one signal too many is harmless. */
    (void)wr_atomic_fetch_sub_relaxed(&q->n_asleep, 1);
}

static void *crew_main(void *arg)
{
    wr_queue *q = arg; /* [owned] a hold on it */
    char name[16];
    size_t length = strlen(q->name);
    memcpy(name, q->name, length < 15 ? length : 15);
    name[length < 15 ? length : 15] = '\0';
    (void)pthread_setname_np(pthread_self(), name);
    (void)wr_cancel_hold();

    struct wr_frame frame;
    frame_push(&frame, q);
    frame_link(&frame, q);
    while (!is_stopping(q) && !frame.frees)
        if (run_some(q, &frame, SIZE_MAX, 0, true) == 0)
            sleep_until_work(q);
    WR_AUDIT((wr_queue_check(q), true));
    frame_unlink(&frame, q);
    frame_pop(&frame);
    if (frame.frees)
        finish_free(q);
    wr_queue_drop(q);
    return NULL;
}

/* Ends the threads of @crew, of which only the caller knows now. */
static void crew_end(wr_queue *q, struct crew *crew)
{
    /* Release [queue-stop]: pairs with the loads in crew_main() and consume(). */
    wr_atomic_store_release(&q->stopping, 1);
    wr_event_signal(&q->work);
    for (unsigned i = 0; i < crew->n; i++) {
        if (pthread_equal(crew->threads[i], pthread_self()))
            (void)pthread_detach(crew->threads[i]); /* freed from its own callback: it ends after this */
        else
            (void)pthread_join(crew->threads[i], NULL);
    }
    wr_free(crew);
}

/* Starting or stopping is over. Takes: q->lock. */
static void crew_set(wr_queue *q, struct crew *crew)
{
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    q->crew = crew;
    q->crew_busy = false;
    if (crew != NULL && q == &default_queue) {
        /* Release [queue-managed]: pairs with the load in start_default(). With the crew, for a child that is forked beside it. */
        wr_atomic_store_release(&default_managed, 1);
    }
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    wr_event_signal(&q->done);
}

/* Starts threads until there are @crew->size. 0, or -EAGAIN. */
static int crew_fill(wr_queue *q, struct crew *crew)
{
    int error = 0;
    sigset_t before;
    wr_signals_hold(&before);
    while (crew->n < crew->size && error == 0) {
        life_add(q, HOLDER);
        error = pthread_create(&crew->threads[crew->n], NULL, crew_main, q);
        if (error == 0)
            crew->n++;
        else
            wr_queue_drop(q);
    }
    wr_signals_restore(&before);
    return error == 0 ? 0 : -EAGAIN;
}

/* The caller has set crew_busy, and holds @q: a callback on a new thread may free it. */
static int crew_start(wr_queue *q, unsigned n_threads)
{
    struct crew *crew = wr_alloc(sizeof *crew + n_threads * sizeof crew->threads[0]);
    if (crew == NULL) {
        crew_set(q, NULL);
        return -ENOMEM;
    }
    crew->n = 0;
    crew->size = n_threads;
    /* Relaxed: the threads are made after it. */
    wr_atomic_store_relaxed(&q->stopping, 0);
    int error = crew_fill(q, crew);
    if (error != 0) {
        crew_end(q, crew);
        crew_set(q, NULL);
        return error;
    }
    crew_set(q, crew);
    return 0;
}

/* In a forked child: starts the threads that did not come along. 0, also if another thread is at it; or -EAGAIN. Takes: q->lock. */
static int restart_lost(wr_queue *q)
{
    if (!wr_fork_may_start_threads())
        return 0;
    int error = 0, cancel = wr_cancel_hold();
    life_add(q, HOLDER);
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    struct crew *crew = q->crew;
    bool mine = has_lost(q) && !q->crew_busy;
    if (mine)
        q->crew_busy = true;
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    if (mine) {
        error = crew_fill(q, crew);
        /* Relaxed: see has_lost(); crew_busy is this thread's. */
        wr_atomic_store_relaxed(&q->n_lost, crew->size - crew->n);
        crew_set(q, crew);
    }
    life_sub(q, HOLDER);
    wr_cancel_restore(cancel);
    return error;
}

/* @lazily: not if the program sees to the default queue's threads itself. */
static int start(wr_queue *q, unsigned n_threads, bool lazily)
{
    int cancel = wr_cancel_hold();
    life_add(q, HOLDER);
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    /* Relaxed, both: freeing beside this call is the caller's mistake, from a callback it is this thread's; default_managed is
     * stored by wr_queue_stop() under this lock, or by who had crew_busy. */
    bool managed = lazily && wr_atomic_load_relaxed(&default_managed) != 0;
    int error = wr_atomic_load_relaxed(&q->state) != OPEN ? -ECANCELED : q->crew != NULL || q->crew_busy ? -EBUSY : 0;
    if (error == 0 && !managed)
        q->crew_busy = true;
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    if (managed)
        error = 0;
    else if (error == 0)
        error = crew_start(q, n_threads);
    life_sub(q, HOLDER);
    wr_cancel_restore(cancel);
    return error;
}

int wr_queue_start(wr_queue *queue, unsigned n_threads)
{
    wr_queue *q = queue_with_consumers(queue);
    if (q == NULL || n_threads == 0 || n_threads > THREADS_MAX)
        return -EINVAL;
    return start(q, n_threads, false);
}

/* Stops the threads, if there are any; waits for another that starts or stops them. Takes: q->lock. */
static void stop_crew(wr_queue *q)
{
    struct crew *crew;
    for (;;) {
        uint32_t value = wr_event_value(&q->done);
        wr_spin_lock(&q->lock, WR_RANK_QUEUE);
        bool busy = q->crew_busy;
        crew = q->crew;
        if (!busy && crew != NULL) {
            q->crew_busy = true;
            q->crew = NULL; /* it is freed before crew_set() */
            /* Relaxed, both: crew_end() releases the first, for the second see has_lost(); for a child that is forked in between. */
            wr_atomic_store_relaxed(&q->stopping, 1);
            wr_atomic_store_relaxed(&q->n_lost, 0);
        }
        wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
        if (!busy)
            break;
        (void)wr_event_wait(&q->done, value, WR_EVENT_FOREVER);
    }
    if (crew != NULL) {
        crew_end(q, crew);
        crew_set(q, NULL);
    }
}

int wr_queue_stop(wr_queue *queue)
{
    wr_queue *q = queue_with_consumers(queue);
    if (q == NULL)
        return -EINVAL;
    if (outermost(q) != NULL)
        return -EDEADLK;
    int cancel = wr_cancel_hold(); /* joining is a cancellation point */
    if (q == &default_queue) {
        wr_spin_lock(&q->lock, WR_RANK_QUEUE);
        /* Release [queue-managed]: from here on the program sees to its threads. Under the lock for start(). */
        wr_atomic_store_release(&default_managed, 1);
        wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    }
    stop_crew(q);
    wr_cancel_restore(cancel);
    return 0;
}

/* ---- waiting --------------------------------------------------------------------------------------- */

/* No thread runs what is pending. (In a forked child the crew may be there without its threads.) Requires: q->lock held. */
static bool is_alone(const wr_queue *q)
{
    return !q->crew_busy && (q->crew == NULL || q->crew->n == 0); /* while it is busy, n changes without the lock */
}

/* What wait_for() waits for. */
enum wait {
    UNTIL_RUN,          /* nothing up to seq is ready or running */
    UNTIL_RUN_OR_ALONE, /* the same, or the queue has no threads (any more) */
    UNTIL_RETURNED      /* nothing up to seq is running */
};

/* Until that, or until @until_ns (WR_EVENT_FOREVER: no limit): then false.
 * Requires: q is held; no callback of q on this stack. Takes: q->lock. */
static bool wait_for(wr_queue *q, uint64_t seq, uint64_t until_ns, enum wait what)
{
    bool late = false;
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    q->n_waiters++;
    for (;;) {
        uint32_t value = wr_event_value(&q->done);
        bool over = what == UNTIL_RETURNED || q->ready == NULL || q->ready->seq > seq;
        for (struct wr_frame *frame = q->frames; frame != NULL && over; frame = frame->next)
            over = frame->seq > seq;
        over = over || (what == UNTIL_RUN_OR_ALONE && q->ready != NULL && is_alone(q));
        if (over || late)
            q->n_waiters--;
        wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
        if (over || late)
            return over;
        if (until_ns == WR_EVENT_FOREVER) {
            (void)wr_event_wait(&q->done, value, WR_EVENT_FOREVER);
        } else {
            uint64_t now = wr_clock_ns();
            late = now >= until_ns || (!wr_event_wait(&q->done, value, until_ns - now) && wr_clock_ns() >= until_ns);
        }
        wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    }
}

/* Makes ready what was handed over. Returns the highest seq given so far; in @left (may be NULL), whether anything is
 * ready or running, in @alone whether there are no threads. Takes: q->lock. */
static uint64_t flushed_now(wr_queue *q, bool *left, bool *alone)
{
    wr_task *scrap = NULL;
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    bool more = make_ready(q, &scrap);
    for (struct wr_frame *frame = q->frames; frame != NULL; frame = frame->next)
        more = more || frame->seq != IDLE;
    uint64_t seq = q->flushed;
    if (left != NULL)
        *left = more;
    if (alone != NULL)
        *alone = is_alone(q);
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    discard_all(scrap);
    return seq;
}

int wr_queue_barrier(wr_queue *queue)
{
    wr_queue *q = queue_with_consumers(queue);
    if (q == NULL)
        return queue == NULL ? -EINVAL : 0;
    if (outermost(q) != NULL)
        return -EDEADLK;
    life_add(q, HOLDER);
    if (has_lost(q))
        (void)restart_lost(q);
    (void)wait_for(q, flushed_now(q, NULL, NULL), WR_EVENT_FOREVER, UNTIL_RUN);
    life_sub(q, HOLDER);
    return 0;
}

bool wr_queue_is_below(const wr_queue *q)
{
    return outermost(q) != NULL;
}

bool wr_queue_flush(wr_queue *q, uint64_t until_ns)
{
    bool good, alone, more, late;
    life_add(q, HOLDER);
    if (has_lost(q))
        (void)restart_lost(q);
    do {
        uint64_t seq = flushed_now(q, NULL, &alone);
        late = until_ns != WR_EVENT_FOREVER && wr_clock_ns() >= until_ns;
        if (alone && !late)
            (void)consume(q, SIZE_MAX, until_ns == WR_EVENT_FOREVER ? 0 : until_ns);
        good = wait_for(q, seq, until_ns, late ? UNTIL_RUN : UNTIL_RUN_OR_ALONE);
        (void)flushed_now(q, &more, NULL); /* more: by those callbacks, or beside them */
    } while (good && more && !late);
    life_sub(q, HOLDER);
    return good && !more;
}

int wr_queue_cancel_all(wr_queue *queue)
{
    wr_queue *q = queue_with_consumers(queue);
    if (q == NULL)
        return queue == NULL ? -EINVAL : 0;
    if (outermost(q) != NULL)
        return -EDEADLK;
    life_add(q, HOLDER);
    cancel_pending(q);
    (void)wait_for(q, flushed_now(q, NULL, NULL), WR_EVENT_FOREVER, UNTIL_RETURNED);
    life_sub(q, HOLDER);
    return 0;
}

/* ---- the end --------------------------------------------------------------------------------------- */

/* CLOSING -> CLOSED, and gives the owner's hold up. Requires: no callback of q on this stack. */
static void finish_free(wr_queue *q)
{
    stop_crew(q);
    (void)consume(q, SIZE_MAX, 0);
    /* Seq_cst [queue-closed]: stands before the taking of what is on the stack. Pairs with the load in wr_handover_end().
     * CLOSING -> CLOSED. */
    wr_atomic_store_seq_cst(&q->state, CLOSED);
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    q->closed = true; /* a callback that was begun before is waited for below */
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    cancel_pending(q);
    (void)consume(q, SIZE_MAX, 0);
    (void)wait_for(q, flushed_now(q, NULL, NULL), WR_EVENT_FOREVER, UNTIL_RUN);
    storm_set(q, &(struct storm){0});
    close_fd(q);
    life_sub(q, HOLDER);
}

void wr_queue_free(wr_queue *queue)
{
    if (queue == NULL)
        return;
    wr_queue *q = queue_of(queue);
    if (q == &default_queue || q == &inline_queue)
        wr_panic("wr_queue_free", "queue", q->name, q, "is the library's own and is never freed");
    uint32_t open = OPEN;
    /* Acquire-release [queue-closed]: of two that free it, one sees the other. Pairs with itself. OPEN -> CLOSING. */
    if (!wr_atomic_cas_acq_rel(&q->state, &open, CLOSING))
        wr_panic("wr_queue_free", "queue", q->name, q, "is being freed already");
    struct wr_frame *frame = outermost(q);
    if (frame != NULL) {
        frame->frees = true;
        return;
    }
    int cancel = wr_cancel_hold();
    finish_free(q);
    wr_cancel_restore(cancel);
}

/* ---- fork ------------------------------------------------------------------------------------------ */

/* Cancels what is linked from @task on. */
static void cut_tasks(wr_queue *q, wr_task *task)
{
    for (wr_task *next; task != NULL; task = next) {
        next = task->next;
        if (task->klass->cancel == NULL)
            continue; /* a destroy: the parent's */
        if (task->seq != UNWANTED)
            (void)task->klass->cancel(task); /* or it was cancelled by a thread that had yet to find it */
        task->seq = TAKEN;
        task->next = q->cut;
        q->cut = task;
    }
}

/* The consumers that came along are this thread's. Returns how many callbacks of the queue run on it. */
static uint64_t keep_own_frames(wr_queue *q)
{
    uint64_t n = 0;
    q->frames = NULL;
    for (struct wr_frame *frame = wr_thread_stack()->frames; frame != NULL; frame = frame->below) {
        if (frame->queue != q)
            continue;
        n += frame->task != NULL;
        if (q == &inline_queue)
            continue; /* they are not linked */
        frame->prev = NULL;
        frame->next = q->frames;
        if (q->frames != NULL)
            q->frames->prev = frame;
        q->frames = frame;
    }
    return n;
}

static void cut_crew(wr_queue *q)
{
    struct crew *crew = q->crew;
    /* Relaxed, all: there is one thread. */
    bool ending = wr_atomic_load_relaxed(&q->stopping) != 0;
    q->crew_busy = false;
    if (crew == NULL)
        return;
    unsigned n = 0;
    for (unsigned i = 0; i < crew->n; i++)
        n += pthread_equal(crew->threads[i], pthread_self()) != 0;
    if (!ending)
        life_add(q, (uint64_t)(n - (uint64_t)crew->n) * HOLDER); /* the threads' */
    crew->n = n;
    if (n > 0)
        crew->threads[0] = pthread_self();
    if (ending && n == 0)
        q->crew = NULL;
    else if (!ending)
        wr_atomic_store_relaxed(&q->n_lost, crew->size - n); /* relaxed: as above */
}

/* An eventfd of its own under the same number; without one, none: not the parent's. */
static void renew_fd(wr_queue *q)
{
    /* Relaxed, both: there is one thread. */
    int fd = wr_atomic_load_relaxed(&q->fd);
    if (fd < 0)
        return;
    int made = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (made < 0) {
        close(fd); /* no descriptor is left: one is now */
        made = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    }
    if (made < 0 || (made != fd && dup3(made, fd, O_CLOEXEC) < 0))
        wr_atomic_store_relaxed(&q->fd, -1); /* relaxed: as above */
    if (made >= 0 && made != fd)
        close(made);
}

/* What other threads had begun, or had to begin, is cancelled: the counts of what was handed over and delivered say how much
 * that is. */
static void recount(wr_queue *q, uint64_t running)
{
    /* Relaxed, all: there is one thread. */
    uint64_t handed = wr_atomic_load_relaxed(&q->handed), delivered = wr_atomic_load_relaxed(&q->delivered);
    if (q == &inline_queue) {
        uint64_t lost = -running;
        for (struct stripe *s = stripes; s < stripes + STRIPES; s++) {
            /* Relaxed, both: as above. */
            lost += wr_atomic_load_relaxed(&s->running);
            wr_atomic_store_relaxed(&s->running, 0);
        }
        /* Relaxed, both: as above. */
        (void)wr_atomic_fetch_add_relaxed(&own_stripe()->cancelled, lost);
        wr_atomic_store_relaxed(&own_stripe()->running, running);
    } else {
        /* Relaxed: as above. */
        wr_atomic_store_relaxed(&q->cancelled, handed - delivered - running);
    }
    /* Relaxed, all: as above. */
    wr_atomic_store_relaxed(&q->stack, NULL);
    wr_atomic_store_relaxed(&q->gone, handed);
    wr_atomic_store_relaxed(&q->n_unwanted, 0);
    /* Relaxed, all: as above. */
    wr_atomic_store_relaxed(&q->n_settling, 0);
    wr_atomic_store_relaxed(&q->n_asleep, 0);
    wr_atomic_store_relaxed(&q->alarm_at, 0);
    q->n_waiters = 0;
}

static void cut(wr_queue *q)
{
    uint64_t running = keep_own_frames(q);
    /* Relaxed: there is one thread. */
    cut_tasks(q, wr_atomic_load_relaxed(&q->stack));
    cut_tasks(q, q->ready);
    q->ready = q->ready_last = NULL;
    recount(q, running);
    ebb(q);
    q->storm.calling = q->storm.calling && pthread_equal(q->storm.caller, pthread_self());
    cut_crew(q);
    renew_fd(q);
}

static void queue_in_child(void)
{
    cut(&default_queue);
    cut(&inline_queue);
    for (wr_queue *q = queues; q != NULL; q = q->older)
        cut(q);
}

/* ---- figures --------------------------------------------------------------------------------------- */

void wr_queue_stats_sized(wr_queue *queue, struct wr_queue_stats *stats, size_t size)
{
    struct wr_queue_stats all = {0};
    wr_queue *q = queue_of(queue);
    if (q != NULL) {
        wr_spin_lock(&q->lock, WR_RANK_QUEUE);
        for (struct wr_frame *frame = q->frames; frame != NULL; frame = frame->next)
            all.running += frame->seq != IDLE;
        /* Relaxed, all: figures of a moment; exact when nothing moves. */
        all.pending = pending_now(q);
        all.delivered = wr_atomic_load_relaxed(&q->delivered);
        wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
        if (q == &inline_queue) {
            for (struct stripe *s = stripes; s < stripes + STRIPES; s++) {
                /* Relaxed, all: as above. */
                all.armed += wr_atomic_load_relaxed(&s->armed);
                all.running += wr_atomic_load_relaxed(&s->running);
                all.delivered += wr_atomic_load_relaxed(&s->delivered);
                all.cancelled += wr_atomic_load_relaxed(&s->cancelled);
            }
            all.watched = all.armed + all.running + all.delivered + all.cancelled;
        } else {
            /* Relaxed, all: as above. */
            uint64_t before = wr_atomic_load_relaxed(&q->cancelled_armed);
            all.armed = wr_atomic_load_relaxed(&q->life) & ARMED_MASK;
            all.watched = all.armed + wr_atomic_load_relaxed(&q->handed) + before;
            all.cancelled = wr_atomic_load_relaxed(&q->cancelled) + before;
        }
        /* Relaxed, both: as above. */
        all.high_water = wr_atomic_load_relaxed(&q->high_water);
        all.slow = wr_atomic_load_relaxed(&q->n_slow);
        all.latency_p50_ns = wr_ticks_to_ns(wr_histogram_quantile(&q->delays, 0.5));
        all.latency_p99_ns = wr_ticks_to_ns(wr_histogram_quantile(&q->delays, 0.99));
        all.latency_max_ns = wr_ticks_to_ns(wr_histogram_max(&q->delays));
        /* Each conversion measures how long a tick is anew. */
        if (all.latency_p99_ns > all.latency_max_ns)
            all.latency_p99_ns = all.latency_max_ns;
        if (all.latency_p50_ns > all.latency_p99_ns)
            all.latency_p50_ns = all.latency_p99_ns;
    }
    memset(stats, 0, size);
    memcpy(stats, &all, size < sizeof all ? size : sizeof all);
}

#if WR_DEBUG
void wr_queue_check(wr_queue *q)
{
    const char *wrong = NULL;
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    uint64_t seq = 0;
    wr_task *last = NULL;
    for (wr_task *task = q->ready; task != NULL; last = task, task = task->next) {
        if (task->prev != last)
            wrong = "INV-1: prev and next do not agree";
        if (task->seq <= seq || task->seq > q->flushed)
            wrong = "INV-1: ready is not in order";
        seq = task->seq;
    }
    if (last != q->ready_last)
        wrong = "INV-1: ready_last is not the last";
    /* Relaxed: set by this thread, or long ago. */
    if (q->ready != NULL && wr_atomic_load_relaxed(&q->state) == CLOSED && q->frames == NULL)
        wrong = "INV-3: closed, with tasks";
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    if (wrong != NULL)
        wr_panic("wr_queue_check", "queue", q->name, q, wrong);
}
#endif
