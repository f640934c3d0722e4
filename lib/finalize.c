/* F7 finalize: a watcher that becomes a task, as a watch is (watch.c), and four parties who want to be the one that ends it.
 *
 * States, and who moves them
 *
 *                 call, exit       detach            death (fire)            consumer          cancel_all, free
 *     ARMED       -> RUNNING       -> DROPPED        -> QUEUED (inline:      cannot be: it     of a freed queue: fire
 *                                                    -> RUNNING)             is not linked     finds it, -> DROPPED
 *     QUEUED      -> RUNNING       -> DROPPED        cannot be: once         -> RUNNING        -> DROPPED
 *     RUNNING     answers          answers (sync     lets go of it           cannot be         lets go of it
 *                                  waits)
 *     DONE        answers          answers           lets go of it           discards it       lets go of it
 *     DROPPED     answers          answers           lets go of it           discards it       lets go of it
 *
 *     Alive is ARMED or QUEUED. Who moves it out of these *ends* it: exactly one party does, by one compare-exchange, and that
 *     one also takes it off the exit list. RUNNING -> DONE is the same party's, when the function has returned.
 *     Who ends it from outside (call, exit, detach) takes a pin in the same step; so the finalizer is there while it
 *     asks wr_watcher_detach() whether the death has the watcher already, and while the function runs. Did the death
 *     have it, then fire() lets go of it; was it QUEUED, the queue will discard it.
 *
 * Memory
 *     USER: the handle has not been released. LIBRARY: the object's list, the queue or its runner has the finalizer. Pins:
 *     threads that work on it. When LIBRARY and pins are gone the weak count of the header goes; when USER is gone, too,
 *     the memory. Until then the finalizer holds its queue (wr_queue_admit), since a call may come at any time.
 *     INV-1: what is on the exit list has LIBRARY or a pin: whoever ends it takes it off the list before letting go.
 *
 * The exit
 *     exit_lock (a spinlock, WR_RANK_LIST) guards the list of finalizers with WR_FINALIZE_ATEXIT, newest first, and
 *     the figures beside it. Nothing runs or is allocated under it. The newest is ended under the lock: so it cannot go
 *     before it is ended, and two threads that exit at once take turns.
 *     The C library runs each registration of at_exit() once, and a nested exit() does not come back to one that has
 *     begun. So `registered` is cleared as it begins, and whoever then puts something on the list, or is about to run
 *     a function that may call exit(), registers again.
 */
#include "finalize.h"

#include <weakref/weak.h>

#include "alloc.h"
#include "event.h"
#include "fork.h"
#include "object.h"
#include "queue.h"

#include <errno.h>
#include <stdlib.h>

enum {
    STATE_ARMED,
    STATE_QUEUED,
    STATE_RUNNING,
    STATE_DONE,
    STATE_DROPPED,
    STATE_MASK = 7,
    WAITED = 8, /* somebody sleeps until it is not RUNNING */
    USER = 16,
    LIBRARY = 32,
    PIN = 64 /* and all bits above */
};

#define EXIT_WAIT_NS UINT64_C(2000000000) /* for how long exit() waits for what other threads are running */

struct wr_finalizer {
    union {
        wr_watcher watcher; /* until fire() */
        wr_task task;       /* from then on */
    };
    wr_header *header; /* the object; with one weak count while LIBRARY or pins are there */
    wr_queue *queue;
    void (*fn)(void *ctx);
    void *ctx;
    wr_atomic_u64 runner; /* the ordinal of the thread on which it is RUNNING; 0: about to be set */
    wr_atomic_u32 state;
    uint32_t process; /* which wr_fork_process() made it; 0: it does not run at exit */
    bool listed;      /* on the exit list. Guarded by exit_lock, as the next two */
    wr_finalizer *newer, *older;
};

/* A finalizer's function on this thread's stack. */
struct frame {
    struct frame *below;
    const wr_finalizer *finalizer;
};
static __thread struct frame *frames __attribute__((tls_model("initial-exec")));

static wr_spin exit_lock = WR_SPIN_INIT;
static wr_finalizer *newest;   /* all of these: guarded by exit_lock */
static bool registered;        /* at_exit() is registered and has not begun */
static uint64_t n_exits;       /* how often at_exit() has begun */
static uint64_t exit_until_ns; /* until when exits wait, all of them together; 0: none has had to */
static uint64_t n_listed;      /* on the list */
static uint64_t n_running;     /* taken off it by who runs their function, and not over */

static struct wr_event changed = WR_EVENT_INIT; /* one is no longer running, or left the list */

static wr_watcher *fire(wr_watcher *first);
static const wr_watcher_class finalize_watcher_class = {.stage = WR_WATCHER_USER, .fire = fire};

static wr_finalizer *of_watcher(wr_watcher *w)
{
    return (wr_finalizer *)((char *)w - offsetof(wr_finalizer, watcher));
}

static wr_finalizer *of_task(const wr_task *task)
{
    return (wr_finalizer *)((uintptr_t)task - offsetof(wr_finalizer, task));
}

/* ---- the state word -------------------------------------------------------------------------------- */

static bool is_alive(uint32_t state)
{
    return (state & STATE_MASK) <= STATE_QUEUED;
}

/* Moves the state from @from to @to, if it is @from. Atomics only. Requires: the caller is who the table says. */
static bool move(wr_finalizer *f, uint32_t from, uint32_t to)
{
    /* Relaxed: the exchange orders. */
    uint32_t cur = wr_atomic_load_relaxed(&f->state);
    while ((cur & STATE_MASK) == from) {
        /* Acquire-release [finalize-state]: one move wins, and sees what earlier ones left. @from -> @to. */
        if (wr_atomic_cas_acq_rel(&f->state, &cur, cur - from + to))
            return true;
    }
    return false;
}

/* The caller has moved it to RUNNING, in this same step of the gate, and runs it. */
static void note_runner(wr_finalizer *f)
{
    /* Relaxed: only a forked child goes by it, where the fork orders. */
    wr_atomic_store_relaxed(&f->runner, wr_thread_ordinal());
}

/* From @from to RUNNING, on this thread. */
static bool move_to_running(wr_finalizer *f, uint32_t from)
{
    wr_gate_enter();
    bool moved = move(f, from, STATE_RUNNING);
    if (moved)
        note_runner(f);
    wr_gate_leave();
    return moved;
}

/* Whether it is RUNNING on a thread that a fork has left behind: then it will never be over. */
static bool is_cut(const wr_finalizer *f)
{
    /* Relaxed: as in note_runner(). */
    uint64_t runner = wr_atomic_load_relaxed(&f->runner);
    return runner != 0 && wr_thread_is_gone(runner);
}

/* Subtracts @amount, which gives back some of USER, LIBRARY and a pin, and may move the state on. */
static void drop(wr_finalizer *f, uint32_t amount)
{
    const uint32_t held = ~(uint32_t)(STATE_MASK | WAITED | USER);
    wr_header *h = f->header;
    wr_queue *q = f->queue;
    /* Acquire-release [finalize-state]: every use happens before the free; and DONE is seen after what the function did. */
    uint32_t old = wr_atomic_fetch_sub_acq_rel(&f->state, amount);
    uint32_t now = old - amount;
    /* Without LIBRARY and pins only the handle's owner still looks at it, and not at the header. */
    if ((now & held) == 0) {
        if ((old & held) != 0)
            wr_watcher_release_weak(h);
        if (!(now & USER)) {
            wr_free(f);
            wr_queue_drop(q);
        }
    }
    if ((old & STATE_MASK) != (now & STATE_MASK) && (old & WAITED))
        wr_event_signal(&changed);
}

/* ---- the exit list --------------------------------------------------------------------------------- */

/* Whether the figures count it. Requires: exit_lock held. */
static bool counts(const wr_finalizer *f)
{
    return f->process == wr_fork_process();
}

/* Requires: exit_lock held; it is listed. */
static void unlink_listed(wr_finalizer *f)
{
    if (f->newer != NULL)
        f->newer->older = f->older;
    else
        newest = f->older;
    if (f->older != NULL)
        f->older->newer = f->newer;
    f->listed = false;
    n_listed -= counts(f);
}

/* The caller has ended it; @runs: and is about to run it. Takes: exit_lock. */
static void unlist(wr_finalizer *f, bool runs)
{
    if (f->process == 0)
        return;
    wr_spin_lock(&exit_lock, WR_RANK_LIST);
    if (f->listed)
        unlink_listed(f);
    if (runs && counts(f))
        n_running++;
    wr_spin_unlock(&exit_lock, WR_RANK_LIST);
    if (!runs)
        wr_event_signal(&changed);
}

/* Runs the function of a finalizer that is RUNNING and not listed. Requires: no wr lock held. Takes: exit_lock. */
static void run_here(wr_finalizer *f)
{
    struct frame frame = {frames, f};
    frames = &frame;
    wr_lock_assert_none("finalizer");
    int cancel = wr_cancel_hold(); /* else it would run for ever, and its object's header with it */
    wr_thread_call_begin();
    f->fn(f->ctx);
    wr_thread_call_end();
    wr_cancel_restore(cancel);
    frames = frame.below;
    if (f->process != 0) {
        wr_spin_lock(&exit_lock, WR_RANK_LIST);
        n_running -= counts(f);
        wr_spin_unlock(&exit_lock, WR_RANK_LIST);
        wr_event_signal(&changed);
    }
}

static bool is_below(const wr_finalizer *f)
{
    for (struct frame *frame = frames; frame != NULL; frame = frame->below)
        if (frame->finalizer == f)
            return true;
    return false;
}

/* ---- as a task ------------------------------------------------------------------------------------- */

static bool task_begin(wr_task *task)
{
    return move_to_running(of_task(task), STATE_QUEUED);
}

static void task_run(wr_task *task)
{
    wr_finalizer *f = of_task(task);
    unlist(f, true);
    run_here(f);
}

static void task_finish(wr_task *task)
{
    /* RUNNING -> DONE, and LIBRARY given back. */
    drop(of_task(task), LIBRARY - (STATE_DONE - STATE_RUNNING));
}

static bool task_cancel(wr_task *task)
{
    wr_finalizer *f = of_task(task);
    if (!move(f, STATE_QUEUED, STATE_DROPPED))
        return false;
    unlist(f, false);
    return true;
}

static void task_discard(wr_task *task)
{
    drop(of_task(task), LIBRARY);
}

static const wr_task_class finalize_task_class = {
    .begin = task_begin,
    .run = task_run,
    .finish = task_finish,
    .cancel = task_cancel,
    .discard = task_discard,
};

/* ---- the death ------------------------------------------------------------------------------------- */

static void fire_inline(wr_finalizer *f)
{
    if (!move_to_running(f, STATE_ARMED)) {
        drop(f, LIBRARY);
        return;
    }
    wr_object_no_destroy_check(f->header);
    f->task.klass = &finalize_task_class;
    wr_queue_run_inline(f->queue, &f->task);
}

/* The queue was freed. */
static void fire_freed(wr_finalizer *f)
{
    if (move(f, STATE_ARMED, STATE_DROPPED)) {
        unlist(f, false);
        wr_queue_count_cancelled(f->queue, 1);
    }
    drop(f, LIBRARY);
}

/* The longest run of finalizers for one queue goes over with one push. */
static wr_watcher *fire(wr_watcher *first)
{
    wr_queue *q = of_watcher(first)->queue;
    wr_watcher *end = first->next;
    uint64_t n = 1;
    for (; end != NULL && end->klass == &finalize_watcher_class && of_watcher(end)->queue == q; end = end->next)
        n++;

    wr_handover h;
    bool is_inline = wr_queue_is_inline(q);
    bool open = !is_inline && wr_handover_begin(&h, q, n);
    wr_watcher *ended = NULL; /* they hold the queue: they go when it is no longer needed */
    for (wr_watcher *watcher = first, *next; watcher != end; watcher = next) {
        wr_finalizer *f = of_watcher(watcher);
        next = watcher->next;
        f->task.seq = 0; /* before it can be found as QUEUED */
        if (is_inline) {
            fire_inline(f);
        } else if (!open) {
            fire_freed(f);
        } else if (move(f, STATE_ARMED, STATE_QUEUED)) {
            f->task.klass = &finalize_task_class;
            wr_handover_add(&h, &f->task);
        } else {
            watcher->next = ended;
            ended = watcher;
        }
    }
    if (open)
        wr_handover_end(&h);
    for (wr_watcher *next; ended != NULL; ended = next) {
        next = ended->next;
        drop(of_watcher(ended), LIBRARY);
    }
    return end;
}

/* ---- ending it from outside -------------------------------------------------------------------------- */

/* Moves it to @to if it is alive, with a pin. Returns the state before. Atomics only. */
static uint32_t end(wr_finalizer *f, uint32_t to)
{
    wr_gate_enter();
    /* Relaxed: the exchange orders. */
    uint32_t cur = wr_atomic_load_relaxed(&f->state);
    while (is_alive(cur)) {
        /* Acquire-release [finalize-state]: one party ends it. ARMED, QUEUED -> @to. */
        if (wr_atomic_cas_acq_rel(&f->state, &cur, cur - (cur & STATE_MASK) + to + PIN)) {
            if (to == STATE_RUNNING)
                note_runner(f);
            break;
        }
    }
    wr_gate_leave();
    return cur;
}

/* After end() has ended it, and it is off the exit list: takes it out of where it stood. @before: what end() answered. */
static void leave(wr_finalizer *f, uint32_t before)
{
    if ((before & STATE_MASK) == STATE_ARMED) {
        if (wr_watcher_detach(&f->watcher))
            drop(f, LIBRARY);
        wr_queue_count_cancelled(f->queue, 1);
    } else {
        wr_queue_task_cancelled(f->queue, &f->task);
    }
}

/* The same, and runs it. */
static void leave_and_run(wr_finalizer *f, uint32_t before)
{
    leave(f, before);
    run_here(f);
    /* RUNNING -> DONE, and the pin given back. */
    drop(f, PIN - (STATE_DONE - STATE_RUNNING));
}

/* ---- the exit -------------------------------------------------------------------------------------- */

static void at_exit(void);

/* 0, or -ENOMEM. Registered twice, by two threads at once, it does no harm. Takes: exit_lock. */
static int register_at_exit(void)
{
    wr_spin_lock(&exit_lock, WR_RANK_LIST);
    bool done = registered;
    uint64_t seen = n_exits;
    wr_spin_unlock(&exit_lock, WR_RANK_LIST);
    if (done)
        return 0;
    if (atexit(at_exit) != 0)
        return -ENOMEM;
    wr_spin_lock(&exit_lock, WR_RANK_LIST);
    /* One that has begun since may have been this one: then the next caller registers again. */
    if (n_exits == seen)
        registered = true;
    wr_spin_unlock(&exit_lock, WR_RANK_LIST);
    return 0;
}

/* Takes: exit_lock. */
static void list(wr_finalizer *f)
{
    wr_spin_lock(&exit_lock, WR_RANK_LIST);
    f->listed = true;
    f->newer = NULL;
    f->older = newest;
    if (newest != NULL)
        newest->newer = f;
    newest = f;
    n_listed += counts(f);
    wr_spin_unlock(&exit_lock, WR_RANK_LIST);
    /* If the exit began meanwhile, and has been through the list. Without success the process is past running it. */
    (void)register_at_exit();
}

/* Ends the newest that can be ended, if @may; NULL: none was. @busy: whether any is left, listed or running on another
 * thread. Takes: exit_lock. */
static wr_finalizer *end_newest(bool may, uint32_t *before, bool *busy)
{
    wr_finalizer *f;
    uint64_t left = 0, mine = 0;
    wr_spin_lock(&exit_lock, WR_RANK_LIST);
    for (f = newest; f != NULL; f = f->older) {
        if (!counts(f))
            continue; /* of a parent process, which sees to it itself */
        *before = may ? end(f, STATE_RUNNING) : STATE_DONE;
        if (is_alive(*before))
            break;
        left++; /* else it was ended a moment ago, and is about to leave the list */
    }
    for (struct frame *frame = frames; frame != NULL; frame = frame->below)
        mine += counts(frame->finalizer);
    *busy = left > 0 || n_running > mine;
    if (f != NULL) {
        unlink_listed(f);
        n_running++;
    }
    wr_spin_unlock(&exit_lock, WR_RANK_LIST);
    return f;
}

/* Until when an exit waits. Takes: exit_lock. */
static uint64_t exit_patience(uint64_t now)
{
    wr_spin_lock(&exit_lock, WR_RANK_LIST);
    if (exit_until_ns == 0)
        exit_until_ns = now + EXIT_WAIT_NS;
    uint64_t until_ns = exit_until_ns;
    wr_spin_unlock(&exit_lock, WR_RANK_LIST);
    return until_ns;
}

/* Runs all that can be run before @until_ns; then waits for other threads until then, or, @exiting, as long as exits wait.
 * Returns false if something is left. */
static bool flush(uint64_t until_ns, bool exiting)
{
    for (;;) {
        uint32_t value = wr_event_value(&changed);
        uint32_t before;
        bool busy;
        uint64_t now = wr_clock_ns();
        wr_finalizer *f = end_newest(now < until_ns, &before, &busy);
        if (f != NULL) {
            (void)register_at_exit(); /* its function may call exit() */
            /* In a destroy the deaths that the function causes would be left to that destroy's end: an exit never comes to it. */
            wr_thread *self = wr_thread_stack();
            struct wr_deaths around = self->deaths;
            self->deaths = (struct wr_deaths){NULL, NULL, false};
            leave_and_run(f, before);
            self->deaths = around;
            continue;
        }
        if (!busy)
            return true;
        uint64_t waits = exiting ? exit_patience(now) : until_ns;
        if (now >= waits)
            return false;
        (void)wr_event_wait(&changed, value, waits == WR_EVENT_FOREVER ? WR_EVENT_FOREVER : waits - now);
    }
}

bool wr_finalize_flush(uint64_t until_ns)
{
    return flush(until_ns, false);
}

static void at_exit(void)
{
    wr_spin_lock(&exit_lock, WR_RANK_LIST);
    registered = false;
    n_exits++;
    wr_spin_unlock(&exit_lock, WR_RANK_LIST);
    (void)flush(WR_EVENT_FOREVER, true);
}

/* ---- fork ------------------------------------------------------------------------------------------ */

/* In the child. The list of the parent's stays, as they are alive: it sees to them itself. */
static void finalize_in_child(void)
{
    n_listed = n_running = 0;
    exit_until_ns = 0;
}

__attribute__((constructor(101))) static void finalize_start(void)
{
    wr_fork_register(WR_FORK_FINALIZE, finalize_in_child);
}

uint64_t wr_finalize_count(void)
{
    wr_spin_lock(&exit_lock, WR_RANK_LIST);
    uint64_t n = n_listed;
    wr_spin_unlock(&exit_lock, WR_RANK_LIST);
    return n;
}

/* ---- public ---------------------------------------------------------------------------------------- */

static wr_finalizer *fail(int error)
{
    errno = -error;
    return NULL;
}

wr_finalizer *(wr_finalize)(void *obj, wr_queue *queue, void (*fn)(void *ctx), void *ctx, unsigned flags)
{
    if (obj == NULL || fn == NULL || (flags & ~WR_FINALIZE_ATEXIT) != 0)
        return fail(-EINVAL);
    wr_finalizer *f = wr_alloc_zero(sizeof *f);
    if (f == NULL)
        return fail(-ENOMEM);
    f->watcher.klass = &finalize_watcher_class;
    f->fn = fn;
    f->ctx = ctx;
    f->header = wr_header_of(obj);
    f->process = (flags & WR_FINALIZE_ATEXIT) ? wr_fork_process() : 0;
    wr_atomic_init(&f->state, STATE_ARMED | LIBRARY | USER);

    int error = wr_watcher_prepare(obj); /* first: resolving may start a thread, and a failed call changes nothing */
    if (error == 0 && f->process != 0)
        error = register_at_exit();
    if (error == 0)
        error = wr_queue_resolve(queue, &f->queue);
    if (error == 0) {
        /* Whole, and counted, before it is on the list: a fork may cut this thread off anywhere. */
        wr_queue_admit(f->queue, true);
        error = wr_watcher_attach(&f->watcher, obj);
        if (error != 0)
            wr_queue_refuse(f->queue, true);
    }
    if (error != 0) {
        wr_free(f);
        return fail(error);
    }
    if (f->process != 0)
        list(f);
    return f;
}

static void check_held(const char *call, const wr_finalizer *f)
{
    /* Relaxed: for a caller who holds the handle it does not change. */
    if (wr_unlikely(!(wr_atomic_load_relaxed(&f->state) & USER)))
        wr_panic(call, "finalizer", NULL, f, "its handle has been released");
}

bool wr_finalizer_alive(const wr_finalizer *f)
{
    /* Relaxed: an answer that may be old when it arrives. */
    return f != NULL && is_alive(wr_atomic_load_relaxed(&f->state));
}

bool wr_finalizer_peek(wr_finalizer *f, void **obj, void (**fn)(void *ctx), void **ctx)
{
    bool alive = false;
    if (f != NULL) {
        check_held("wr_finalizer_peek", f);
        /* Relaxed: the pin below counts. */
        uint32_t cur = wr_atomic_load_relaxed(&f->state);
        while (!alive && is_alive(cur)) {
            /* Acquire [finalize-state]: the header is there while the pin is, which drop() gives back. */
            alive = wr_atomic_cas_acquire(&f->state, &cur, cur + PIN);
        }
    }
    if (obj != NULL)
        *obj = alive ? wr_upgrade(wr_weak_of_header(f->header)) : NULL;
    if (fn != NULL)
        *fn = alive ? f->fn : NULL;
    if (ctx != NULL)
        *ctx = alive ? f->ctx : NULL;
    if (alive)
        drop(f, PIN);
    return alive;
}

int wr_finalizer_call(wr_finalizer *f)
{
    if (f == NULL)
        return -EINVAL;
    check_held("wr_finalizer_call", f);
    uint32_t before = end(f, STATE_RUNNING);
    if (!is_alive(before))
        return -ESTALE;
    unlist(f, true);
    leave_and_run(f, before);
    return 0;
}

static int detach(wr_finalizer *f, const char *call)
{
    if (f == NULL)
        return -EINVAL;
    check_held(call, f);
    uint32_t before = end(f, STATE_DROPPED);
    if (!is_alive(before))
        return -ESTALE;
    unlist(f, false);
    leave(f, before);
    drop(f, PIN);
    return 0;
}

int wr_finalizer_detach(wr_finalizer *f)
{
    return detach(f, "wr_finalizer_detach");
}

int wr_finalizer_detach_sync(wr_finalizer *f)
{
    int answer = detach(f, "wr_finalizer_detach_sync");
    if (answer != -ESTALE)
        return answer;
    if (is_below(f))
        return -EDEADLK;
    for (;;) {
        uint32_t value = wr_event_value(&changed);
        /* Acquire [finalize-state]: once it is DONE, what the function did is seen. Pairs with drop(). */
        uint32_t cur = wr_atomic_load_acquire(&f->state);
        if ((cur & STATE_MASK) != STATE_RUNNING || is_cut(f))
            return -ESTALE;
        /* Acquire-release [finalize-state]: drop() sees WAITED, or this fails. */
        if ((cur & WAITED) || wr_atomic_cas_acq_rel(&f->state, &cur, cur | WAITED))
            (void)wr_event_wait(&changed, value, WR_EVENT_FOREVER);
    }
}

void wr_finalizer_release(wr_finalizer *f)
{
    if (f == NULL)
        return;
    check_held("wr_finalizer_release", f);
    drop(f, USER);
}
