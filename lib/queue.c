/* F5 queue: a stack that many push on, a list that consumers share, and the counts that tell when it is over.
 *
 * How a task goes
 *     wr_handover_begin():  pending += n
 *     wr_handover_end():    the whole chain, newest first, goes on `stack` with one compare-exchange
 *     make_ready():         a consumer exchanges the stack for NULL, turns it round and appends it to `ready`, oldest
 *                           first, with ascending sequence numbers
 *     take():               one consumer takes the first of `ready`; what it does not take, others can. pending -= 1
 *     run():                with no lock held; the consumer's frame, which is in `frames`, carries the number meanwhile
 *
 * What guards what
 *     stack, pending, life, watched, delivered, cancelled, high_water, state, stopping, fd are atomics.
 *     lock (a spinlock, WR_RANK_QUEUE) guards ready, ready_last, flushed, n_stale, frames, n_waiters, crew, crew_busy.
 *     Nothing is allocated, freed, run or waited for under it.
 *
 * How long the queue lives
 *     `life` counts armed tasks in its low half and holders in its high half: the owner, each consumer, each task that
 *     was admitted with hold (a watch with a handle, which may be cancelled at any time). Who brings it to 0 frees the queue. A
 *     handing-over thread takes its tasks out of the armed ones as its very last act, so the queue outlasts it.
 *
 * Sleeping consumers
 *     Who pushes on an empty stack signals `work`; a thread sleeps only if it has seen ready and stack empty after it
 *     read the event. A stack that is not empty was signalled after its first push, or is about to be.
 *
 * The descriptor
 *     Two rules: whoever changes whether pending is 0 afterwards calls settle(); and every read or write of the
 *     descriptor is followed by a load of pending that agrees with it, or by another try (settle() does so). So at rest
 *     it is readable exactly if pending is not 0: take the last operation on the descriptor and the load that followed it
 *     and agreed. Had pending changed between 0 and not 0 after this load, the one who changed it would have called
 *     settle() afterwards, with an operation later than the last: a contradiction. No initial read is needed, and
 *     the descriptor stays readable for other loops while one of them is busy with the first of many callbacks.
 *
 * Freeing
 *     OPEN -> CLOSING (hand-overs that begin from here cancel) -> threads stopped, the rest delivered -> CLOSED -> what late
 *     pushers brought is cancelled. A pusher looks at the state again after its push: either it sees CLOSED and cancels what
 *     is there itself, or its push came before and the freeing thread sees it (both ends are seq_cst).
 *
 * Invariants (wr_queue_check)
 *     INV-1 ready is ascending in seq, none above flushed; ready_last is its last.
 *     INV-2 at most n_stale of the linked tasks are cancelled, when no cancel is in progress; n_stale is 0 or above then.
 *     INV-3 a queue in CLOSED that nobody pushes to has nothing linked.
 *     INV-4 quiet: watched == armed + pending + delivered + cancelled. Each is counted on its own.
 */
#include "queue.h"

#include "alloc.h"
#include "event.h"
#include "thread.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define ARMED UINT64_C(1)
#define ARMED_MASK UINT64_C(0xffffffff)
#define HOLDER (UINT64_C(1) << 32)
#define IDLE UINT64_MAX  /* the seq of a consumer that is between two callbacks */
#define THREADS_MAX 4096 /* of one queue */
#define STALE_MIN 64     /* so many cancelled tasks may lie about in any case */

enum state { OPEN, CLOSING, CLOSED };

/* A consumer that is on some thread's stack, running a callback or between two. */
struct wr_frame {
    struct wr_frame *below;       /* the next older one of this thread */
    struct wr_frame *next, *prev; /* the queue's. Guarded by the queue's lock; unused when inline */
    wr_queue *queue;
    wr_task *task; /* what is running; only this thread looks */
    uint64_t seq;  /* its number, or IDLE. Guarded by the queue's lock */
    bool frees;    /* a callback has freed the queue: do it when the callback has returned */
};

/* The queue's threads. */
struct crew {
    unsigned n;
    pthread_t threads[];
};

struct wr_queue {
    /* Touched by who hands over. */
    WR_ATOMIC(wr_task *) stack; /* handed over and not yet ready, newest first */
    wr_atomic_u64 pending;      /* handed over, not begun, not cancelled; never too low */
    wr_atomic_u64 life;
    wr_atomic_u64 watched;
    wr_atomic_u64 high_water;
    wr_atomic_u32 state; /* enum state */
    wr_atomic_u32 stopping;
    WR_ATOMIC(int) fd;        /* the eventfd, or -1 */
    wr_atomic_u32 n_settling; /* threads that use it now */

    /* Touched by consumers. */
    __attribute__((aligned(64))) wr_spin lock;
    wr_task *ready, *ready_last; /* to be run, oldest first */
    uint64_t flushed;            /* the highest seq given */
    int64_t n_stale;             /* cancelled tasks that are still linked */
    struct wr_frame *frames;     /* the consumers */
    unsigned n_waiters;          /* threads in wait_for() */
    bool crew_busy;              /* somebody starts or stops the crew */
    struct crew *crew;
    wr_atomic_u64 delivered;
    wr_atomic_u64 cancelled;
    wr_atomic_u64 n_inline; /* callbacks of an inline queue that are running */

    struct wr_event work; /* consumers sleep here */
    struct wr_event done; /* who waits for callbacks, or for the crew, sleeps here */
    const char *name;     /* behind the struct, or static */
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

/* Not 0: the default queue's thread was started, or the program has started or stopped it: no more starting by itself. */
static wr_atomic_u32 default_managed;

static void purge(wr_queue *q);
static int start(wr_queue *q, unsigned n_threads, bool lazily);
static size_t consume(wr_queue *q, size_t max, uint64_t until_ns, bool crew);

/* ---- life ------------------------------------------------------------------------------------------ */

static void life_add(wr_queue *q, uint64_t what)
{
    /* Relaxed: the caller has the queue from someone who holds it. */
    (void)wr_atomic_fetch_add_relaxed(&q->life, what);
}

static void life_sub(wr_queue *q, uint64_t what)
{
    /* Acquire-release [queue-life]: every holder's use happens before the free. Pairs with itself in other threads. */
    uint64_t old = wr_atomic_fetch_sub_acq_rel(&q->life, what);
    WR_ASSERT((old & ARMED_MASK) >= (what & ARMED_MASK) && old >= what);
    if (wr_unlikely(old == what)) {
        WR_ASSERT(q->ready == NULL && q->frames == NULL && q->crew == NULL);
        wr_free(q);
    }
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
        if (frame->task == task)
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

/* Requires: no wr lock held (runs user code). */
static void run(wr_queue *q, wr_task *task)
{
    int saved = errno;
    wr_lock_assert_none("callback");
    task->klass->run(task);
    errno = saved;
    /* Relaxed: who waits for the callback is ordered by the task's own state or by q->lock. */
    (void)wr_atomic_fetch_add_relaxed(&q->delivered, 1);
}

/* ---- pending, and the descriptor that shows it --------------------------------------------------- */

/* See "The descriptor" above. May be called at any time, by anybody; leaves errno alone. */
static WR_COLD void settle_fd(wr_queue *q)
{
    int saved = errno, cancel = wr_cancel_hold(); /* read() and write() are cancellation points */
    /* Seq_cst [queue-fd]: either this is seen by the one who closes the descriptor, or the load sees -1. Pairs with
     * close_fd(). The load also stands behind the caller's change of pending, for wr_queue_fd(). */
    (void)wr_atomic_fetch_add_seq_cst(&q->n_settling, 1);
    int fd = wr_atomic_load_seq_cst(&q->fd);
    while (fd >= 0) {
        /* Seq_cst [queue-pending]: one order with the changes of pending. Pairs with pending_add() and pending_sub(). */
        bool pending = wr_atomic_load_seq_cst(&q->pending) != 0;
        uint64_t value = 1;
        /* Neither blocks. A read that finds nothing to reset, and a write beyond 2^64-2, change nothing, as they should. */
        ssize_t moved = pending ? write(fd, &value, sizeof value) : read(fd, &value, sizeof value);
        (void)moved;
        /* Seq_cst [queue-pending]: as above. */
        if ((wr_atomic_load_seq_cst(&q->pending) != 0) == pending)
            break;
    }
    /* Release [queue-fd]: the last use of the descriptor happens before its close. Pairs with close_fd(). */
    (void)wr_atomic_fetch_sub_release(&q->n_settling, 1);
    wr_cancel_restore(cancel);
    errno = saved;
}

/* To be called after each change of pending between 0 and not 0. */
static void settle(wr_queue *q)
{
    /* Seq_cst [queue-fd]: stands behind the caller's change of pending. Either it sees the descriptor, or the settling in
     * wr_queue_fd() sees the change. */
    if (wr_atomic_load_seq_cst(&q->fd) >= 0)
        settle_fd(q);
}

/* What it was. If that was 0, the caller settles once the tasks are on the stack. */
static uint64_t pending_add(wr_queue *q, uint64_t n)
{
    /* Seq_cst [queue-pending]: one order with the loads of settle_fd(). */
    return wr_atomic_fetch_add_seq_cst(&q->pending, n);
}

/* True: it is 0 now. The caller settles. */
static bool pending_sub(wr_queue *q, uint64_t n)
{
    /* Seq_cst [queue-pending]: one order with the loads of settle_fd(). */
    uint64_t old = wr_atomic_fetch_sub_seq_cst(&q->pending, n);
    WR_ASSERT(old >= n);
    return old == n;
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
    /* Seq_cst [queue-fd]: who changes pending from here on sees the descriptor; what was changed before, the settling below
     * sees. */
    if (!wr_atomic_cas_seq_cst(&q->fd, &none, made)) {
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

/* Moves what was handed over behind what is ready. Returns whether anything is ready. Requires: q->lock held. */
static bool make_ready(wr_queue *q)
{
    /* Seq_cst [queue-push]: a look, to save the exchange. One order with the pushes and q->state, see "Freeing"; a push that it
     * misses comes later than all that the caller did before. */
    if (wr_atomic_load_seq_cst(&q->stack) == NULL)
        return q->ready != NULL;
    /* Acquire [queue-push]: sees what was written to the tasks before their push in wr_handover_end(). */
    wr_task *newest = wr_atomic_exchange_acquire(&q->stack, NULL);

    wr_task *first = NULL;
    for (wr_task *task = newest, *next; task != NULL; task = next) {
        next = task->next;
        task->next = first;
        first = task;
    }
    for (wr_task *task = first; task != NULL; task = task->next)
        task->seq = ++q->flushed;
    if (q->ready == NULL)
        q->ready = first;
    else
        q->ready_last->next = first;
    q->ready_last = newest;
    return true;
}

/* Takes the first of ready off. Requires: q->lock held, ready is not empty. */
static wr_task *pop_ready(wr_queue *q)
{
    wr_task *task = q->ready;
    q->ready = task->next;
    return task;
}

/* Requires: no wr lock held. @scrap: cancelled tasks that are no longer linked, or NULL. */
static void discard_all(wr_task *scrap)
{
    for (wr_task *next; scrap != NULL; scrap = next) {
        next = scrap->next;
        scrap->klass->discard(scrap);
    }
}

/* Unlinks every cancelled task. Takes: q->lock. */
static void purge(wr_queue *q)
{
    wr_task *scrap = NULL, *last = NULL;
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    (void)make_ready(q);
    for (wr_task **link = &q->ready; *link != NULL;) {
        wr_task *task = *link;
        if (task->klass->is_cancelled(task)) {
            *link = task->next;
            task->next = scrap;
            scrap = task;
            q->n_stale--;
        } else {
            last = task;
            link = &task->next;
        }
    }
    q->ready_last = last;
    bool wake = q->n_waiters > 0;
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    discard_all(scrap);
    if (wake)
        wr_event_signal(&q->done);
}

/* Cancels all that is pending. Returns the highest seq given so far. Takes: q->lock. */
static uint64_t cancel_pending(wr_queue *q)
{
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    (void)make_ready(q);
    wr_task *scrap = q->ready;
    uint64_t flushed = q->flushed;
    q->ready = NULL;
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);

    uint64_t n = 0, n_stale = 0;
    for (wr_task *task = scrap; task != NULL; task = task->next)
        *(task->klass->cancel(task) ? &n : &n_stale) += 1;
    /* Relaxed: a count. */
    (void)wr_atomic_fetch_add_relaxed(&q->cancelled, n);
    if (n > 0 && pending_sub(q, n))
        settle(q);

    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    q->n_stale -= (int64_t)n_stale;
    bool wake = q->n_waiters > 0;
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    discard_all(scrap);
    if (wake)
        wr_event_signal(&q->done);
    return flushed;
}

void wr_queue_task_cancelled(wr_queue *q)
{
    /* Relaxed: a count. */
    (void)wr_atomic_fetch_add_relaxed(&q->cancelled, 1);
    if (pending_sub(q, 1))
        settle(q);
    /* Its memory lies in the queue until a consumer comes along. So that it does not pile up where none does: clean up when
     * nothing is left, and when more is cancelled than pending (each walk then frees half of what it sees). */
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    int64_t n_stale = ++q->n_stale;
    bool wake = q->n_waiters > 0;
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    /* Relaxed: a guess is enough; the last cancel sees 0 or a later one does. */
    uint64_t pending = wr_atomic_load_relaxed(&q->pending);
    if (n_stale > 0 && (pending == 0 || (uint64_t)n_stale > pending + STALE_MIN))
        purge(q);
    else if (wake)
        wr_event_signal(&q->done);
}

/* ---- admission and hand-over --------------------------------------------------------------------- */

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
    *resolved = q;
    return 0;
}

void wr_queue_admit(wr_queue *q, bool hold)
{
    life_add(q, hold ? HOLDER + ARMED : ARMED);
    /* Relaxed: a count. */
    (void)wr_atomic_fetch_add_relaxed(&q->watched, 1);
}

void wr_queue_drop(wr_queue *q)
{
    life_sub(q, HOLDER);
}

void wr_queue_count_cancelled(wr_queue *q, uint64_t n)
{
    /* Relaxed: a count. */
    (void)wr_atomic_fetch_add_relaxed(&q->cancelled, n);
    life_sub(q, n * ARMED);
}

bool wr_handover_begin(wr_handover *h, wr_queue *q, uint64_t at_most)
{
    /* Relaxed: if it misses the closing, wr_handover_end() looks again. */
    if (wr_unlikely(wr_atomic_load_relaxed(&q->state) != OPEN))
        return false;
    *h = (wr_handover){.queue = q, .expected = at_most};
    /* Before any of them can be cancelled as pending: so pending is never too low. */
    h->high = pending_add(q, at_most) + at_most;
    return true;
}

void wr_handover_add(wr_handover *h, wr_task *task)
{
    task->next = h->newest;
    h->newest = task;
    if (h->oldest == NULL)
        h->oldest = task;
    h->n++;
}

void wr_handover_end(wr_handover *h)
{
    wr_queue *q = h->queue;
    bool changed = h->high == h->expected; /* it was 0 */
    if (wr_unlikely(h->n < h->expected))
        changed |= pending_sub(q, h->expected - h->n);

    if (wr_likely(h->n > 0)) {
        /* Relaxed: the head is only linked to, not looked into. */
        wr_task *head = wr_atomic_load_relaxed(&q->stack);
        do {
            h->oldest->next = head;
            /* Seq_cst [queue-push]: releases the tasks to the exchange in make_ready(); and one order with the state, see
             * "Freeing". */
        } while (wr_unlikely(!wr_atomic_cas_seq_cst(&q->stack, &head, h->newest)));
        if (head == NULL)
            wr_event_signal(&q->work);

        /* Relaxed: the mark is approximate where several hand over at once, but never below what one of them saw. */
        uint64_t seen = h->high - (h->expected - h->n), high = wr_atomic_load_relaxed(&q->high_water);
        while (wr_unlikely(seen > high) && !wr_atomic_cas_relaxed(&q->high_water, &high, seen))
            ;

        /* Seq_cst [queue-closed]: the push stands before it. Pairs with the store in finish_free(): either it sees CLOSED,
         * or the freeing thread sees the push. */
        if (wr_unlikely(wr_atomic_load_seq_cst(&q->state) == CLOSED))
            (void)cancel_pending(q);
        /* Seq_cst [queue-pending]: some of them may have been cancelled before the push, by a thread that could not find them
         * yet. Either this sees that nothing is pending, or the canceller finds them on the stack. */
        else if (wr_unlikely(wr_atomic_load_seq_cst(&q->pending) == 0))
            purge(q);
    }
    if (changed)
        settle(q);
    if (h->n > 0)
        life_sub(q, h->n * ARMED);
}

void wr_queue_run_inline(wr_queue *q, wr_task *task)
{
    struct wr_frame frame;
    int cancel = wr_cancel_hold();
    frame_push(&frame, q);
    frame.task = task;
    /* Relaxed: a count. */
    (void)wr_atomic_fetch_add_relaxed(&q->n_inline, 1);
    life_sub(q, ARMED);
    run(q, task);
    /* Relaxed: a count. */
    (void)wr_atomic_fetch_sub_relaxed(&q->n_inline, 1);
    frame_pop(&frame);
    task->klass->finish(task);
    wr_cancel_restore(cancel);
}

/* ---- consumers ------------------------------------------------------------------------------------- */

/* Ends the callback that @frame carries, if any, and takes the next. Takes: q->lock. */
static bool take(wr_queue *q, struct wr_frame *frame)
{
    wr_task *scrap = NULL;
    frame->task = NULL;
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    bool ended = frame->seq != IDLE;
    frame->seq = IDLE;
    while (make_ready(q)) {
        wr_task *task = pop_ready(q);
        if (wr_likely(task->klass->begin(task))) {
            frame->task = task;
            frame->seq = task->seq;
            break;
        }
        task->next = scrap;
        scrap = task;
        q->n_stale--;
    }
    bool wake = q->n_waiters > 0 && (ended || scrap != NULL);
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);

    if (frame->task != NULL && pending_sub(q, 1))
        settle(q);
    discard_all(scrap);
    if (wake)
        wr_event_signal(&q->done);
    return frame->task != NULL;
}

/* Ends the callback that @frame carries. Takes: q->lock. */
static void end(wr_queue *q, struct wr_frame *frame)
{
    frame->task = NULL;
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    frame->seq = IDLE;
    bool wake = q->n_waiters > 0;
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    if (wake)
        wr_event_signal(&q->done);
}

static void finish_free(wr_queue *q);

/* Runs callbacks until none is pending, @max were run, the time is @until_ns (0: no limit), or, for a thread of the
 * crew, the queue is being stopped. Requires: q is held by somebody; no wr lock held (runs user code). */
static size_t consume(wr_queue *q, size_t max, uint64_t until_ns, bool crew)
{
    struct wr_frame frame;
    size_t n = 0;
    bool frees = false;
    int cancel = wr_cancel_hold();
    life_add(q, HOLDER);
    frame_push(&frame, q);
    frame_link(&frame, q);
    /* Called from a destroy, this would leave the deaths that callbacks cause to that destroy's end: they are to be handed over
     * before the drain is over. */
    wr_thread *self = wr_thread_stack();
    struct wr_deaths around = self->deaths;
    self->deaths = (struct wr_deaths){NULL, NULL, false};
    while (n < max && take(q, &frame)) {
        wr_task *task = frame.task;
        run(q, task);
        task->klass->finish(task); /* before the frame ends: who waits for the frame finds the task delivered */
        n++;
        frees = frame.frees;
        /* Acquire [queue-stop]: pairs with the store in stop_crew(). */
        if (frees || (until_ns != 0 && wr_clock_ns() >= until_ns) ||
            (crew && wr_atomic_load_acquire(&q->stopping) != 0))
            break;
    }
    self->deaths = around;
    if (frame.task != NULL)
        end(q, &frame);
    WR_AUDIT((wr_queue_check(q), true));
    frame_unlink(&frame, q);
    frame_pop(&frame);
    if (wr_unlikely(frees))
        finish_free(q);
    life_sub(q, HOLDER);
    wr_cancel_restore(cancel);
    return n;
}

size_t wr_queue_drain(wr_queue *queue, size_t max)
{
    wr_queue *q = queue_with_consumers(queue);
    return q == NULL ? 0 : consume(q, max, 0, false);
}

size_t wr_queue_drain_for(wr_queue *queue, uint64_t budget_ns)
{
    wr_queue *q = queue_with_consumers(queue);
    uint64_t now = wr_clock_ns();
    return q == NULL ? 0 : consume(q, SIZE_MAX, budget_ns < UINT64_MAX - now ? now + budget_ns : UINT64_MAX, false);
}

/* ---- threads of the queue ------------------------------------------------------------------------ */

static void *crew_main(void *arg)
{
    wr_queue *q = arg; /* [owned] a hold on it */
    char name[16];
    size_t length = strlen(q->name);
    memcpy(name, q->name, length < 15 ? length : 15);
    name[length < 15 ? length : 15] = '\0';
    (void)pthread_setname_np(pthread_self(), name);

    for (;;) {
        uint32_t value = wr_event_value(&q->work);
        /* Acquire [queue-stop]: pairs with the store in stop_crew(). */
        if (wr_atomic_load_acquire(&q->stopping) != 0)
            break;
        if (consume(q, SIZE_MAX, 0, true) == 0)
            (void)wr_event_wait(&q->work, value, WR_EVENT_FOREVER);
    }
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
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    wr_event_signal(&q->done);
}

/* The caller has set crew_busy, and holds @q: a callback on a new thread may free it. */
static int crew_start(wr_queue *q, unsigned n_threads)
{
    struct crew *crew = wr_alloc(sizeof *crew + n_threads * sizeof crew->threads[0]);
    if (crew == NULL) {
        crew_set(q, NULL);
        return -ENOMEM;
    }
    int error = 0;
    crew->n = 0;
    /* Relaxed: the threads are made after it. */
    wr_atomic_store_relaxed(&q->stopping, 0);

    /* They take no signals: those are for the program's threads. */
    sigset_t all, before;
    sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    while (crew->n < n_threads && error == 0) {
        life_add(q, HOLDER);
        error = pthread_create(&crew->threads[crew->n], NULL, crew_main, q);
        if (error == 0)
            crew->n++;
        else
            wr_queue_drop(q);
    }
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        crew_end(q, crew);
        crew_set(q, NULL);
        return -EAGAIN;
    }
    crew_set(q, crew);
    if (q == &default_queue) {
        /* Release [queue-managed]: pairs with the load in start_default(). */
        wr_atomic_store_release(&default_managed, 1);
    }
    return 0;
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
        if (!busy && crew != NULL)
            q->crew_busy = true;
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

/* Until nothing up to @seq is ready or running, or until @until_ns (WR_EVENT_FOREVER: no limit): then false.
 * @manned: or until the queue has no threads (any more): true, too.
 * Requires: q is held; no callback of q on this stack. Takes: q->lock. */
static bool wait_for(wr_queue *q, uint64_t seq, uint64_t until_ns, bool manned)
{
    bool late = false;
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    q->n_waiters++;
    for (;;) {
        uint32_t value = wr_event_value(&q->done);
        wr_task *scrap = NULL;
        /* Cancelled ones in front do not need a consumer. */
        while (q->ready != NULL && q->ready->seq <= seq && q->ready->klass->is_cancelled(q->ready)) {
            wr_task *task = pop_ready(q);
            task->next = scrap;
            scrap = task;
            q->n_stale--;
        }
        bool over = q->ready == NULL || q->ready->seq > seq;
        for (struct wr_frame *frame = q->frames; frame != NULL && over; frame = frame->next)
            over = frame->seq > seq;
        over = over || (manned && q->ready != NULL && q->crew == NULL && !q->crew_busy);
        if (over || late)
            q->n_waiters--;
        wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
        discard_all(scrap);
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

int wr_queue_barrier(wr_queue *queue)
{
    wr_queue *q = queue_with_consumers(queue);
    if (q == NULL)
        return queue == NULL ? -EINVAL : 0;
    if (outermost(q) != NULL)
        return -EDEADLK;
    life_add(q, HOLDER);
    wr_spin_lock(&q->lock, WR_RANK_QUEUE);
    (void)make_ready(q);
    uint64_t seq = q->flushed;
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    (void)wait_for(q, seq, WR_EVENT_FOREVER, false);
    life_sub(q, HOLDER);
    return 0;
}

bool wr_queue_is_below(const wr_queue *q)
{
    return outermost(q) != NULL;
}

bool wr_queue_flush(wr_queue *q, uint64_t until_ns)
{
    bool good, more, late;
    life_add(q, HOLDER);
    do {
        wr_spin_lock(&q->lock, WR_RANK_QUEUE);
        (void)make_ready(q);
        uint64_t seq = q->flushed;
        bool alone = q->crew == NULL && !q->crew_busy;
        wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
        late = until_ns != WR_EVENT_FOREVER && wr_clock_ns() >= until_ns;
        if (alone && !late)
            (void)consume(q, SIZE_MAX, until_ns == WR_EVENT_FOREVER ? 0 : until_ns, false);
        good = wait_for(q, seq, until_ns, !late);
        wr_spin_lock(&q->lock, WR_RANK_QUEUE);
        more = make_ready(q); /* by those callbacks, or beside them */
        for (struct wr_frame *frame = q->frames; frame != NULL; frame = frame->next)
            more = more || frame->seq != IDLE;
        wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
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
    (void)wait_for(q, cancel_pending(q), WR_EVENT_FOREVER, false);
    life_sub(q, HOLDER);
    return 0;
}

/* ---- the end --------------------------------------------------------------------------------------- */

/* CLOSING -> CLOSED, and gives the owner's hold up. Requires: no callback of q on this stack. */
static void finish_free(wr_queue *q)
{
    stop_crew(q);
    (void)consume(q, SIZE_MAX, 0, false);
    /* Seq_cst [queue-closed]: stands before the taking of what is on the stack. Pairs with the load in wr_handover_end().
     * CLOSING -> CLOSED. */
    wr_atomic_store_seq_cst(&q->state, CLOSED);
    (void)wait_for(q, cancel_pending(q), WR_EVENT_FOREVER, false);
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

/* ---- figures --------------------------------------------------------------------------------------- */

void wr_queue_stats_sized(wr_queue *queue, struct wr_queue_stats *stats, size_t size)
{
    struct wr_queue_stats all = {0};
    wr_queue *q = queue_of(queue);
    if (q != NULL) {
        wr_spin_lock(&q->lock, WR_RANK_QUEUE);
        for (struct wr_frame *frame = q->frames; frame != NULL; frame = frame->next)
            all.running += frame->seq != IDLE;
        wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
        /* Relaxed: figures of a moment; exact when nothing moves. */
        all.watched = wr_atomic_load_relaxed(&q->watched);
        all.armed = wr_atomic_load_relaxed(&q->life) & ARMED_MASK;
        all.pending = wr_atomic_load_relaxed(&q->pending);
        all.delivered = wr_atomic_load_relaxed(&q->delivered);
        all.cancelled = wr_atomic_load_relaxed(&q->cancelled);
        all.running += wr_atomic_load_relaxed(&q->n_inline);
        all.high_water = wr_atomic_load_relaxed(&q->high_water);
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
        if (task->seq <= seq || task->seq > q->flushed)
            wrong = "INV-1: ready is not in order";
        seq = task->seq;
    }
    if (last != NULL && last != q->ready_last)
        wrong = "INV-1: ready_last is not the last";
    /* Relaxed: set by this thread, or long ago. */
    if (q->ready != NULL && wr_atomic_load_relaxed(&q->state) == CLOSED && q->frames == NULL)
        wrong = "INV-3: closed, with tasks";
    wr_spin_unlock(&q->lock, WR_RANK_QUEUE);
    if (wrong != NULL)
        wr_panic("wr_queue_check", "queue", q->name, q, wrong);
}
#endif
