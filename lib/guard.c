/* F3 guard: grace periods, and the reclaimer thread that waits for them.
 *
 * What is retired goes on its thread's own stacks (one push, no lock). A *collector* - whoever comes along with the
 * reclaim lock: the reclaimer thread, wr_synchronize(), wr_barrier(), a thread that retired much - takes all stacks,
 * makes a *batch* of them, and moves the epoch. The argument for when a batch is due stands in guard.h.
 *
 *     NEW      taken or spawned, not tagged yet
 *     WAITING  tagged with the epoch; membarrier done; due when every record is in no section or above the tag
 *     READY    due; its memory half has been reclaimed; its user half waits for a runner
 *
 * Batches live in a fixed array, so that collecting allocates nothing; when it is full, two of one state
 * become one, which keeps what is due due. What a runner's user code retires becomes a batch of the same *origin*: that is how wr_barrier() knows
 * when all work older than itself, and all that this work brought about, is done, while other threads go on retiring.
 */
#include "guard.h"

#include "event.h"
#include "fork.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "alloc.h"

#define N_BATCHES 32
#define COLLECT_AFTER 256                      /* retirements of one thread per membarrier, at least */
#define FREE_IN_PASSING 4096                   /* records that such a thread reclaims, at most */
#define RECLAIMER_TICK_NS UINT64_C(2000000)    /* how soon what became safe is noticed */
#define STALL_WARNING_NS UINT64_C(10000000000) /* a guard that holds a batch back for so long is warned of */

struct wr_epoch_line WR_LAYOUT(wr_epoch) = {.now = {WR_EPOCH_STEP | WR_SECTION_INLINE}};

/* A list in order of retirement. */
struct list {
    wr_retired *first, *last;
    uint64_t n;
};

enum batch_state { FREE, NEW, WAITING, READY };

struct batch {
    enum batch_state state;
    uint64_t tag;    /* the epoch in which it was taken. Set when it becomes WAITING */
    uint64_t origin; /* the epoch in which the work was retired that brought it about */
    struct list memory, user;
};

/* Someone who reclaims, with no lock held: what wr_barrier() must wait for beside the batches. */
struct runner {
    uint64_t origin;
    const wr_thread *thread; /* whose stack it is on */
    struct runner *next, *prev;
};

static wr_mutex reclaim_lock = WR_MUTEX_INIT;
static struct batch batches[N_BATCHES]; /* all of this: guarded by reclaim_lock */
static struct runner *runners;
static uint64_t oldest_guard_ns;
static int oldest_guard_tid;

static bool use_membarrier; /* set by the constructor */
/* Set when membarrier(2) fails after all: from then on nothing is reclaimed. Guarded by reclaim_lock. */
static bool membarrier_broken;
static bool warn_broken, warn_stalled; /* to be said once the lock is left. Guarded by reclaim_lock */

/* LOST: it ran in the parent of this process, and has to be started again. */
enum reclaimer_state { NOT_STARTED, LOST, STARTING, ACTIVE, IDLE };
static wr_atomic_u32 reclaimer_state;
static wr_atomic_u64 reclaimer_ordinal; /* of its thread, once it runs */
static wr_event reclaimer_wake = WR_EVENT_INIT;
static wr_event progress = WR_EVENT_INIT; /* something was reclaimed */

static void enter(void)
{
    wr_mutex_lock(&reclaim_lock, WR_RANK_RECLAIM);
}

/* Leaves reclaim_lock, then says what was found under it: the program's hook may call the library. */
static void leave(void)
{
    bool broken = warn_broken, stalled = warn_stalled;
    warn_broken = warn_stalled = false;
    wr_mutex_unlock(&reclaim_lock, WR_RANK_RECLAIM);
    if (wr_unlikely(broken))
        wr_warn(WR_WARN_NO_MEMBARRIER,
                "membarrier() was refused after start: nothing is reclaimed any more; start with "
                "WR_NO_MEMBARRIER=1 where a sandbox forbids it");
    if (wr_unlikely(stalled))
        wr_warn(WR_WARN_STALLED_GUARD,
                "a guard has been held for ten seconds: nothing is reclaimed meanwhile; wr_stats() names the thread");
}

/* ---- lists -------------------------------------------------------------------------------------- */

static void list_append(struct list *list, struct list more)
{
    if (more.first == NULL)
        return;
    if (list->first == NULL)
        list->first = more.first;
    else
        list->last->next = more.first;
    list->last = more.last;
    list->n += more.n;
}

/* From latest first to the order of retirement. */
static struct list list_reversed(wr_retired *latest)
{
    struct list list = {NULL, latest, 0};
    for (; latest != NULL; list.n++) {
        wr_retired *next = latest->next;
        latest->next = list.first;
        list.first = latest;
        latest = next;
    }
    return list;
}

static void list_reclaim(struct list list)
{
    for (wr_retired *r = list.first, *next; r != NULL; r = next) {
        next = r->next;
        r->reclaim(r);
    }
}

static void list_add(struct list *list, wr_retired *r)
{
    r->next = NULL;
    list_append(list, (struct list){r, r, 1});
}

/* ---- whose user work it is --------------------------------------------------------------------- */

/* The functions that such work is reclaimed with: a handful in all, entered when they are first seen. A record tells them by
 * their place, which leaves room for the owner. */
typedef void reclaim_fn(wr_retired *r);
static WR_ATOMIC(reclaim_fn *) kinds[16];

static uint32_t kind_of(reclaim_fn *reclaim)
{
    for (uint32_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        /* Relaxed, both: functions are there from the beginning; who gets the record sees what its owner saw here. */
        reclaim_fn *there = wr_atomic_load_relaxed(&kinds[i]);
        if (there == NULL && wr_atomic_cas_relaxed(&kinds[i], &there, reclaim))
            return i;
        if (there == reclaim)
            return i;
    }
    wr_panic("retire", "thread", NULL, wr_thread_stack(), "more kinds of deferred work than there are places for");
}

static uint32_t own_owner(void)
{
    uint32_t low = (uint32_t)wr_thread_ordinal();
    return low != WR_OWNER_ALL ? low : 0;
}

/* The calling thread goes on with it in a forked child. */
static bool is_own(const wr_retired *r)
{
    return r->user.owner == WR_OWNER_ALL || r->user.owner == own_owner();
}

/* Runs user code. What it retires is its owner's, too. If it forks, the child goes on only with what is its own. */
static void list_run(struct list list)
{
    wr_thread *self = wr_thread_stack();
    uint32_t process = wr_fork_process(), outer = self->deferred_owner;
    for (wr_retired *r = list.first, *next; r != NULL; r = next) {
        next = r->next;
        if (wr_unlikely(process != wr_fork_process()) && !is_own(r))
            continue;
        self->deferred_owner = r->user.owner;
        /* Relaxed: see kind_of(). */
        wr_atomic_load_relaxed (&kinds[r->user.kind])(r);
    }
    self->deferred_owner = outer;
}

/* ---- read sections ------------------------------------------------------------------------------ */

/* What a record says of its section: the epoch in which it began, or 0: in none. */
static uint64_t section_epoch(const wr_thread *thread)
{
    /* Acquire [section]: a section's reads happen before what follows its end. Pairs with wr_guard_exit(). */
    return wr_atomic_load_acquire(&thread->guard->section) & WR_SECTION_EPOCH;
}

/* Requires: reclaim_lock held, or no other thread there. */
static uint64_t epoch_now(void)
{
    /* Relaxed: only who holds reclaim_lock writes it. */
    return wr_atomic_load_relaxed(&WR_LAYOUT(wr_epoch).now) & WR_SECTION_EPOCH;
}

void WR_LAYOUT(wr_guard_enter_cold)(void)
{
    struct wr_guard_record *self = &WR_LAYOUT(wr_self);
    if (wr_section_is_open()) {
        self->nested++;
        return;
    }
    if (wr_thread_self() != wr_thread_stack()) {
        /* Relaxed: no collector looks at this record; the section stands in the fallback's. */
        wr_atomic_store_relaxed(&self->section, WR_EPOCH_STEP);
        wr_thread_fallback_enter();
        return;
    }
    /* Relaxed: its own thread's. */
    if (wr_atomic_load_relaxed(&self->section) == WR_GUARD_ASYMMETRIC) {
        wr_guard_enter(); /* just registered */
        return;
    }
    /* Acquire [epoch]: as in wr_guard_enter(). */
    uint64_t now = wr_atomic_load_acquire(&WR_LAYOUT(wr_epoch).now);
    /* Relaxed: the fence orders it before the section's loads. */
    wr_atomic_store_relaxed(&self->section, now & WR_SECTION_EPOCH);
    /* [section-fence]: record stored before pointers are loaded. Pairs with the fence in collect(). */
    wr_atomic_fence_seq_cst();
}

void WR_LAYOUT(wr_guard_exit_cold)(void)
{
    struct wr_guard_record *self = &WR_LAYOUT(wr_self);
    if (!wr_section_is_open())
        wr_panic("wr_guard_exit", "thread", "", self, "exit without an enter");
    if (self->nested > 0) {
        self->nested--;
        return;
    }
    /* Release [section]: as in wr_guard_exit(). */
    wr_atomic_store_release(&self->section, WR_GUARD_COLD);
    if (!wr_thread_record.registered)
        wr_thread_fallback_exit();
}

bool wr_guard_is_inside(void)
{
    return wr_section_is_open();
}

bool wr_guard_is_deferred(void)
{
    return wr_thread_stack()->deferred_depth > 0;
}

/* ---- batches -------------------------------------------------------------------------------------- */

static struct batch *batch_find(enum batch_state state)
{
    for (struct batch *b = batches; b < batches + N_BATCHES; b++)
        if (b->state == state)
            return b;
    return NULL;
}

static void batch_merge(struct batch *into, struct batch *from)
{
    list_append(&into->memory, from->memory);
    list_append(&into->user, from->user);
    if (from->tag > into->tag)
        into->tag = from->tag;
    if (from->origin < into->origin)
        into->origin = from->origin;
    *from = (struct batch){.state = FREE};
}

/* The batch of @state with the least tag, or the greatest, that is not @other. */
static struct batch *batch_extreme(enum batch_state state, bool greatest, const struct batch *other)
{
    struct batch *found = NULL;
    for (struct batch *b = batches; b < batches + N_BATCHES; b++)
        if (b->state == state && b != other &&
            (found == NULL || (greatest ? b->tag > found->tag : b->tag < found->tag)))
            found = b;
    return found;
}

/* Makes one of two batches: of READY ones the oldest, which run next; else of WAITING ones the youngest, which have waited
 * least. So no batch is put off again and again while the array stays full. */
static struct batch *batch_make_room(void)
{
    for (int greatest = 0; greatest <= 1; greatest++) {
        enum batch_state state = greatest ? WAITING : READY;
        struct batch *first = batch_extreme(state, greatest, NULL);
        struct batch *second = first != NULL ? batch_extreme(state, greatest, first) : NULL;
        if (second != NULL) {
            batch_merge(first, second);
            return second;
        }
    }
    return NULL; /* cannot be: with one READY and one WAITING the others are NEW, and a NEW one would have been found */
}

/* Work of @origin that no membarrier has followed yet. Requires: reclaim_lock held. */
static void batch_add(uint64_t origin, struct list memory, struct list user)
{
    if (memory.first == NULL && user.first == NULL)
        return;
    struct batch work = {.state = NEW, .origin = origin, .memory = memory, .user = user};
    struct batch *room = batch_find(FREE);
    struct batch *other = room == NULL ? batch_find(NEW) : NULL;
    if (other != NULL) {
        batch_merge(other, &work);
        return;
    }
    if (room == NULL)
        room = batch_make_room();
    WR_ASSERT(room != NULL);
    *room = work;
}

struct taken {
    struct list memory, user;
};

static void take_from(wr_thread *thread, void *ctx)
{
    struct taken *taken = ctx;
    /* Relaxed: an empty stack is left alone; what is pushed a moment later waits for the next collector. */
    if (wr_atomic_load_relaxed(&thread->fresh.memory) != NULL) {
        /* Acquire [retire]: the unlinks before the pushes happen before the epoch moves. Pairs with push(). */
        list_append(&taken->memory, list_reversed(wr_atomic_exchange_acquire(&thread->fresh.memory, NULL)));
    }
    /* Relaxed: as above. */
    if (wr_atomic_load_relaxed(&thread->fresh.user) != NULL) {
        /* Acquire [retire]: as above. */
        list_append(&taken->user, list_reversed(wr_atomic_exchange_acquire(&thread->fresh.user, NULL)));
    }
}

struct scan {
    uint64_t least;     /* of the epochs of all sections; UINT64_MAX: none */
    uint64_t held_back; /* the greatest tag that waits: a section up to it is in the way */
    uint64_t now_ns;
    uint64_t oldest_ns;
    int oldest_tid;
};

static void scan_one(wr_thread *thread, void *ctx)
{
    struct scan *scan = ctx;
    uint64_t epoch = section_epoch(thread);
    if (epoch == 0 || epoch > scan->held_back) {
        thread->seen_epoch = 0;
    } else if (thread->seen_epoch != epoch) {
        thread->seen_epoch = epoch;
        thread->seen_since_ns = scan->now_ns;
    } else if (scan->now_ns - thread->seen_since_ns > scan->oldest_ns) {
        scan->oldest_ns = scan->now_ns - thread->seen_since_ns;
        scan->oldest_tid = thread->tid;
    }
    if (epoch != 0 && epoch < scan->least)
        scan->least = epoch;
}

/* Makes every running thread's earlier store to its record visible to the scan that follows, or its later loads see
 * every earlier unlink. Requires: reclaim_lock held. */
static bool wait_for_processors(void)
{
    if (!use_membarrier) {
        wr_atomic_fence_seq_cst(); /* [section-fence]: unlinks before the scan; pairs with the enter's fence */
        return true;
    }
    if (membarrier_broken)
        return false;
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0)
        return true;
    membarrier_broken = warn_broken = true;
    return false;
}

/* Takes what was retired, moves the epoch if need be, and finds what is due: its memory halves are appended to @due,
 * the least of their origins to @origin; user halves become READY. @move: move the epoch even if nothing was taken.
 * Returns false if nothing can be reclaimed at all. Requires: reclaim_lock held. */
static bool collect(bool wait, bool move, struct list *due, uint64_t *origin)
{
    struct taken taken = {{NULL, NULL, 0}, {NULL, NULL, 0}};
    if (!wr_thread_for_each(wait, take_from, &taken))
        return true;
    uint64_t now = epoch_now();
    batch_add(now, taken.memory, taken.user);
    if (move || batch_find(NEW) != NULL) {
        /* Release [epoch]: the unlinks of all that was taken happen before any section that reads this. Pairs with
         * the acquire load in wr_guard_enter(). */
        wr_atomic_store_release(&WR_LAYOUT(wr_epoch).now, (now + WR_EPOCH_STEP) | WR_SECTION_INLINE);
        if (!wait_for_processors())
            return false;
        for (struct batch *b = batches; b < batches + N_BATCHES; b++) {
            if (b->state == NEW) {
                b->state = WAITING;
                b->tag = now;
            }
        }
    } else if (membarrier_broken) {
        return false;
    }

    struct scan scan = {.least = UINT64_MAX, .now_ns = wr_clock_ns()};
    for (struct batch *b = batches; b < batches + N_BATCHES; b++)
        if (b->state == WAITING && b->tag > scan.held_back)
            scan.held_back = b->tag;
    if (!wr_thread_for_each(wait, scan_one, &scan))
        return true;
    oldest_guard_ns = scan.oldest_ns;
    oldest_guard_tid = scan.oldest_tid;
    if (scan.oldest_ns > STALL_WARNING_NS)
        warn_stalled = true;

    for (struct batch *b = batches; b < batches + N_BATCHES; b++) {
        if (b->state != WAITING || b->tag >= scan.least)
            continue;
        if (!wait && due->n + b->memory.n > FREE_IN_PASSING)
            continue; /* a caller that only comes by: the rest is left to the reclaimer */
        if (b->memory.first != NULL) {
            list_append(due, b->memory);
            if (b->origin < *origin)
                *origin = b->origin;
        }
        b->memory = (struct list){NULL, NULL, 0};
        b->state = b->user.first != NULL ? READY : FREE;
    }
    return true;
}

/* Requires: reclaim_lock held. */
static void runner_begin(struct runner *runner, uint64_t origin)
{
    *runner = (struct runner){.origin = origin, .thread = wr_thread_stack(), .next = runners};
    if (runners != NULL)
        runners->prev = runner;
    runners = runner;
}

/* Requires: reclaim_lock held. */
static void runner_end(struct runner *runner)
{
    if (runner->next != NULL)
        runner->next->prev = runner->prev;
    if (runner->prev != NULL)
        runner->prev->next = runner->next;
    else
        runners = runner->next;
    wr_event_signal(&progress);
}

/* Collects, and reclaims what memory is due. Takes: reclaim_lock (held on entry, and again on return). */
static bool collect_and_free(bool wait, bool move)
{
    struct list due = {NULL, NULL, 0};
    uint64_t origin = UINT64_MAX;
    bool works = collect(wait, move, &due, &origin);
    if (due.first == NULL)
        return works;
    struct runner runner;
    runner_begin(&runner, origin);
    leave();
    list_reclaim(due);
    enter();
    runner_end(&runner);
    return works;
}

/* After work was left for it: wakes the reclaimer if it sleeps; where it is to be started again, sees to it that the
 * next wr_retire_relax() does so. */
static void reclaimer_wake_up(void)
{
    /* Seq_cst [idle]: after the push; either this sees IDLE, or the reclaimer's last look sees the push. */
    uint32_t idle = wr_atomic_load_seq_cst(&reclaimer_state);
    if (wr_unlikely(idle == LOST))
        wr_thread_stack()->n_fresh = COLLECT_AFTER;
    /* Seq_cst [idle]: in one order with the stores of IDLE, so that no load can find this ACTIVE after a later IDLE. */
    if (wr_unlikely(idle == IDLE) && wr_atomic_cas_seq_cst(&reclaimer_state, &idle, ACTIVE))
        wr_event_signal(&reclaimer_wake);
}

/* Runs the user half of the oldest READY batch, if its tag is @limit or less. Returns false if there is none. Takes:
 * reclaim_lock (held on entry, and again on return). Runs user code with no lock held. */
static bool run_ready(uint64_t limit)
{
    struct batch *ready = batch_extreme(READY, false, NULL);
    if (ready == NULL || ready->tag > limit)
        return false;
    struct list user = ready->user;
    struct runner runner;
    runner_begin(&runner, ready->origin);
    *ready = (struct batch){.state = FREE};
    leave();

    wr_thread *self = wr_thread_stack();
    wr_lock_assert_none("deferred work");
    /* A thread that is cancelled in a destroy would take the rest of the batch with it. */
    int cancel = wr_cancel_hold();
    struct wr_deaths around = self->deaths; /* a destroy that called wr_synchronize() */
    self->deaths = (struct wr_deaths){NULL, NULL, false};
    self->deferred_depth++;
    list_run(user);
    self->deferred_depth--;
    self->deaths = around;
    wr_cancel_restore(cancel);

    enter();
    batch_add(runner.origin, list_reversed(self->spawned_memory), list_reversed(self->spawned_user));
    self->spawned_memory = self->spawned_user = NULL;
    runner_end(&runner);
    reclaimer_wake_up(); /* for what was spawned */
    return true;
}

/* ---- retiring ------------------------------------------------------------------------------------- */

static void push(wr_retired_stack *stack, wr_retired *r)
{
    /* Relaxed: the head is only linked to, not looked at. */
    r->next = wr_atomic_load_relaxed(stack);
    /* Seq_cst [retire]: releases the unlink to take_from(). [idle]: stands before the load of the reclaimer's state, as
     * the reclaimer's store of IDLE stands before its last look at the stacks. */
    while (!wr_atomic_cas_seq_cst(stack, &r->next, r))
        ;
}

static void retire(wr_retired *r, bool user)
{
    wr_thread *stack = wr_thread_stack();
    if (stack->deferred_depth > 0) {
        wr_retired **spawned = user ? &stack->spawned_user : &stack->spawned_memory;
        r->next = *spawned;
        *spawned = r;
        return;
    }
    wr_thread *self = wr_thread_self();
    if (user)
        push(&self->fresh.user, r);
    else
        push(&self->fresh.memory, r);
    stack->n_fresh++;
    reclaimer_wake_up();
}

void wr_retire_memory(wr_retired *r, void (*reclaim)(wr_retired *r))
{
    r->reclaim = reclaim;
    retire(r, false);
}

static void retire_work(wr_retired *r, void (*reclaim)(wr_retired *r), uint32_t owner)
{
    r->user.kind = kind_of(reclaim);
    r->user.owner = owner;
    retire(r, true);
}

void wr_retire_user(wr_retired *r, void (*reclaim)(wr_retired *r))
{
    wr_thread *stack = wr_thread_stack();
    retire_work(r, reclaim, stack->deferred_depth > 0 ? stack->deferred_owner : own_owner());
}

void wr_retire_chore(wr_retired *r, void (*reclaim)(wr_retired *r))
{
    retire_work(r, reclaim, WR_OWNER_ALL);
}

void wr_retire_relax(void)
{
    wr_thread *stack = wr_thread_stack();
    if (wr_likely(stack->n_fresh < COLLECT_AFTER) || wr_gate_is_inside())
        return;
    stack->n_fresh = 0;
    /* Relaxed: that it is LOST was written before this process had threads. */
    if (wr_unlikely(wr_atomic_load_relaxed(&reclaimer_state) == LOST))
        (void)wr_reclaimer_start(); /* if it cannot be, the next who retires tries again */
    if (!wr_mutex_trylock(&reclaim_lock, WR_RANK_RECLAIM))
        return; /* somebody collects already */
    collect_and_free(false, false);
    leave();
}

/* ---- deferring a pointer ------------------------------------------------------------------------ */

struct deferral {
    wr_retired retired;
    void (*run)(void *pointer);
    void *pointer;
};

/* For when there is no memory: a few that come back after each grace period. Guarded by reclaim_lock. */
static struct deferral spares[16];
static unsigned n_spares_used; /* of those that were never given back */
static wr_retired *spares_back;

static struct deferral *spare_take(void)
{
    struct deferral *d = (struct deferral *)spares_back;
    if (d != NULL)
        spares_back = d->retired.next;
    else if (n_spares_used < sizeof spares / sizeof spares[0])
        d = &spares[n_spares_used++];
    return d;
}

static void deferral_free(struct deferral *d)
{
    if (wr_likely(d < spares || d >= spares + sizeof spares / sizeof spares[0])) {
        wr_free(d);
        return;
    }
    enter();
    d->retired.next = spares_back;
    spares_back = &d->retired;
    leave();
    wr_event_signal(&progress);
}

static void run_deferral(wr_retired *r)
{
    struct deferral d = *(struct deferral *)r;
    deferral_free((struct deferral *)r);
    d.run(d.pointer);
}

static void retire_deferral(struct deferral *d, bool user)
{
    if (user)
        wr_retire_user(&d->retired, run_deferral);
    else
        wr_retire_memory(&d->retired, run_deferral);
}

static int wait_for_sections(void);

/* Takes a spare record, or waits for a grace period to bring one back. */
static bool defer_without_memory(void (*run)(void *pointer), void *pointer, bool user)
{
    if (wr_thread_stack()->deferred_depth > 0) {
        if (wait_for_sections() != 0)
            return false;
        run(pointer);
        return true;
    }
    for (;;) {
        uint32_t seen = wr_event_value(&progress);
        enter();
        struct deferral *d = spare_take();
        bool hopeless = membarrier_broken;
        leave();
        if (d != NULL) {
            *d = (struct deferral){.run = run, .pointer = pointer};
            retire_deferral(d, user);
            return true;
        }
        if (hopeless || wr_reclaimer_start() != 0)
            return false;
        wr_event_wait(&progress, seen, RECLAIMER_TICK_NS);
    }
}

bool wr_defer(void (*run)(void *pointer), void *pointer, bool user)
{
    (void)wr_reclaimer_start(); /* if it cannot be, others that wait will do its work */
    struct deferral *d = wr_alloc(sizeof *d);
    if (wr_unlikely(d == NULL))
        return !wr_guard_is_inside() && defer_without_memory(run, pointer, user);
    d->run = run;
    d->pointer = pointer;
    retire_deferral(d, user);
    wr_retire_relax();
    return true;
}

/* ---- waiting ---------------------------------------------------------------------------------------- */

/* Sleeps a little, longer each time: readers that end do not wake anybody. */
static void pause_for_readers(unsigned *round)
{
    uint32_t seen = wr_event_value(&progress);
    if ((*round)++ < 8) {
        sched_yield();
        return;
    }
    unsigned doublings = *round - 9 < 5 ? *round - 9 : 5;
    wr_event_wait(&progress, seen, UINT64_C(30000) << doublings);
}

struct least_epoch {
    uint64_t least;
};

static void least_one(wr_thread *thread, void *ctx)
{
    struct least_epoch *e = ctx;
    uint64_t epoch = section_epoch(thread);
    if (epoch != 0 && epoch < e->least)
        e->least = epoch;
}

/* Until every section that runs now has ended. [out] *tag: what was retired before has this tag or a lesser one.
 * Takes: reclaim_lock (held on entry, and again on return). */
static bool sections_end(uint64_t *tag)
{
    *tag = epoch_now();
    bool works = collect_and_free(true, true);
    for (unsigned round = 0; works;) {
        struct least_epoch sections = {UINT64_MAX};
        wr_thread_for_each(true, least_one, &sections);
        if (sections.least > *tag)
            break;
        leave();
        pause_for_readers(&round);
        enter();
    }
    return works;
}

/* Runs nothing. 0, or -ENOTSUP. */
static int wait_for_sections(void)
{
    uint64_t tag;
    enter();
    bool works = sections_end(&tag);
    leave();
    return works ? 0 : -ENOTSUP;
}

int wr_synchronize(void)
{
    if (wr_guard_is_inside())
        return -EDEADLK;
    if (wr_thread_stack()->deferred_depth > 0)
        return wait_for_sections();
    uint64_t tag;
    enter();
    bool works = sections_end(&tag) && collect_and_free(true, false);
    /* What was retired before the call; others go on retiring, and this must end. */
    while (works && run_ready(tag))
        ;
    leave();
    return works ? 0 : -ENOTSUP;
}

/* Whether work of an origin up to @limit is left. Requires: reclaim_lock held. */
static bool is_left(uint64_t limit)
{
    for (struct batch *b = batches; b < batches + N_BATCHES; b++)
        if (b->state != FREE && b->origin <= limit)
            return true;
    for (struct runner *r = runners; r != NULL; r = r->next)
        if (r->origin <= limit)
            return true;
    return false;
}

int wr_barrier_until(uint64_t until_ns)
{
    if (wr_guard_is_inside() || wr_thread_stack()->deferred_depth > 0)
        return -EDEADLK;
    bool late = false;
    enter();
    uint64_t limit = epoch_now();
    bool works = collect_and_free(true, true);
    for (unsigned round = 0; works && is_left(limit);) {
        late = until_ns != WR_EVENT_FOREVER && wr_clock_ns() >= until_ns;
        if (late)
            break;
        if (run_ready(UINT64_MAX)) {
            round = 0;
        } else {
            leave();
            pause_for_readers(&round);
            enter();
        }
        works = collect_and_free(true, false);
    }
    leave();
    return late ? -ETIMEDOUT : works ? 0 : -ENOTSUP;
}

int wr_barrier(void)
{
    return wr_barrier_until(WR_EVENT_FOREVER);
}

/* ---- the reclaimer thread ------------------------------------------------------------------------- */

static void anything_fresh(wr_thread *thread, void *ctx)
{
    bool *any = ctx;
    /* Seq_cst [idle]: after the store of IDLE; a push before it in the one order of all is seen. Pairs with retire(). */
    if (wr_atomic_load_seq_cst(&thread->fresh.memory) != NULL || wr_atomic_load_seq_cst(&thread->fresh.user) != NULL)
        *any = true;
}

/* Requires: reclaim_lock held. */
static bool anything_batched(void)
{
    for (struct batch *b = batches; b < batches + N_BATCHES; b++)
        if (b->state != FREE)
            return true;
    return false;
}

/* Sleeps until something is retired. The last look is taken after IDLE is set, and under reclaim_lock, so that nothing can
 * slip from the stacks into a batch between two halves of it. */
static void reclaimer_sleep(void)
{
    uint32_t seen = wr_event_value(&reclaimer_wake);
    /* Seq_cst [idle]: before the last look at the stacks. Pairs with the load in reclaimer_wake_up(). */
    wr_atomic_store_seq_cst(&reclaimer_state, IDLE);
    enter();
    bool any = anything_batched();
    wr_thread_for_each(true, anything_fresh, &any);
    leave();
    if (any) {
        /* Relaxed: this thread is the only one that goes by it. */
        wr_atomic_store_relaxed(&reclaimer_state, ACTIVE);
        return;
    }
    /* Relaxed: only whether to sleep on. */
    while (wr_atomic_load_relaxed(&reclaimer_state) == IDLE) {
        wr_event_wait(&reclaimer_wake, seen, WR_EVENT_FOREVER);
        seen = wr_event_value(&reclaimer_wake);
    }
}

static void *reclaimer_main(void *unused)
{
    (void)unused;
    /* Relaxed: for a fork that this thread calls. */
    wr_atomic_store_relaxed(&reclaimer_ordinal, wr_thread_ordinal());
    for (;;) {
        /* Not at once: a membarrier interrupts all processors on which the program runs, and by then threads that retire
         * much have collected by themselves. */
        wr_event_wait(&reclaimer_wake, wr_event_value(&reclaimer_wake), RECLAIMER_TICK_NS);
        enter();
        bool works = collect_and_free(true, false);
        while (run_ready(UINT64_MAX))
            ;
        bool idle = works && !anything_batched();
        leave();
        if (idle)
            reclaimer_sleep();
    }
    return NULL;
}

static int start_thread(void)
{
    pthread_attr_t attr;
    int error = pthread_attr_init(&attr);
    if (error != 0)
        return -EAGAIN;
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigset_t before;
    wr_signals_hold(&before);
    pthread_t thread;
    error = pthread_create(&thread, &attr, reclaimer_main, NULL);
    wr_signals_restore(&before);
    pthread_attr_destroy(&attr);
    if (error != 0)
        return -EAGAIN;
    pthread_setname_np(thread, "wr-reclaimer");
    return 0;
}

static int reclaimer_start_cold(void)
{
    if (!wr_fork_may_start_threads())
        return 0; /* who waits for deferred work does it */
    enter();
    /* Relaxed: changed under reclaim_lock until it is ACTIVE. */
    uint32_t before = wr_atomic_load_relaxed(&reclaimer_state);
    bool mine = before == NOT_STARTED || before == LOST;
    if (mine) {
        /* Relaxed: as above. */
        wr_atomic_store_relaxed(&reclaimer_state, STARTING);
    }
    leave();
    if (!mine)
        return 0; /* by another thread */

    int result = start_thread();
    enter();
    /* Relaxed: as above, and who retired before this sees ACTIVE: the thread looks at all that there is before it sleeps. */
    uint32_t starting = STARTING;
    (void)wr_atomic_cas_relaxed(&reclaimer_state, &starting, result == 0 ? (uint32_t)ACTIVE : before);
    leave();
    if (result != 0)
        wr_warn(WR_WARN_NO_RECLAIMER, "the reclaimer thread cannot be started");
    return result;
}

int wr_reclaimer_start(void)
{
    /* Relaxed: once it is started it stays so. */
    return wr_likely(wr_atomic_load_relaxed(&reclaimer_state) >= STARTING) ? 0 : reclaimer_start_cold();
}

/* ---- start, thread end, figures ------------------------------------------------------------------- */

/* Requires: the threads lock held, so that no collector looks at either record meanwhile. */
static void hand_on(wr_thread *thread, wr_thread *heir)
{
    struct taken taken = {{NULL, NULL, 0}, {NULL, NULL, 0}};
    take_from(thread, &taken);
    for (wr_retired *r = taken.memory.first, *next; r != NULL; r = next) {
        next = r->next;
        push(&heir->fresh.memory, r);
    }
    for (wr_retired *r = taken.user.first, *next; r != NULL; r = next) {
        next = r->next;
        push(&heir->fresh.user, r);
    }
}

/* ---- fork ---------------------------------------------------------------------------------------- */

static void keep_own(struct list *list)
{
    struct list kept = {NULL, NULL, 0};
    for (wr_retired *r = list->first, *next; r != NULL; r = next) {
        next = r->next;
        if (is_own(r))
            list_add(&kept, r);
    }
    *list = kept;
}

/* In the child. Batches are whole, since they change under reclaim_lock. Of what is retired, memory goes on; of user work
 * what is this thread's own: the rest is the parent's, where it runs. What other threads had taken for running is
 * lost with them, their places in the list of runners also. */
static void guard_in_child(void)
{
    struct taken taken = {{NULL, NULL, 0}, {NULL, NULL, 0}};
    (void)wr_thread_for_each(true, take_from, &taken);
    keep_own(&taken.user);
    for (struct batch *b = batches; b < batches + N_BATCHES; b++) {
        keep_own(&b->user);
        if (b->user.first == NULL && b->memory.first == NULL)
            b->state = FREE;
    }
    batch_add(epoch_now(), taken.memory, taken.user);

    struct runner *own = NULL;
    for (struct runner *r = runners, *next; r != NULL; r = next) {
        next = r->next;
        if (r->thread != wr_thread_stack())
            continue;
        r->prev = NULL;
        r->next = own;
        if (own != NULL)
            own->prev = r;
        own = r;
    }
    runners = own;
    oldest_guard_ns = 0;
    oldest_guard_tid = 0;

    if (use_membarrier)
        (void)syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
    /* Relaxed, all: there is one thread. The reclaimer may be it. */
    if (wr_atomic_load_relaxed(&reclaimer_ordinal) == wr_thread_ordinal())
        wr_atomic_store_relaxed(&reclaimer_state, ACTIVE);
    else if (wr_atomic_load_relaxed(&reclaimer_state) != NOT_STARTED)
        wr_atomic_store_relaxed(&reclaimer_state, LOST);
    if (batch_find(NEW) != NULL || batch_find(WAITING) != NULL || batch_find(READY) != NULL)
        reclaimer_wake_up();
}

__attribute__((constructor(101))) static void guard_start(void)
{
    wr_fork_register(WR_FORK_GUARD, guard_in_child);
    const char *no = getenv("WR_NO_MEMBARRIER");
    bool refused = no != NULL && strcmp(no, "1") == 0;
    use_membarrier = !refused && syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
    struct wr_thread_hooks hooks = {
        .mode = use_membarrier ? WR_GUARD_ASYMMETRIC : WR_GUARD_COLD,
        .at_exit = hand_on,
    };
    wr_thread_set_hooks(&hooks);
}

void wr_guard_get_stats(struct wr_guard_stats *stats)
{
    *stats = (struct wr_guard_stats){.membarrier = use_membarrier};
    enter();
    struct taken taken = {{NULL, NULL, 0}, {NULL, NULL, 0}};
    wr_thread_for_each(true, take_from, &taken);
    stats->epoch = epoch_now() / WR_EPOCH_STEP;
    batch_add(epoch_now(), taken.memory, taken.user);
    for (struct batch *b = batches; b < batches + N_BATCHES; b++)
        if (b->state != FREE)
            stats->pending += b->memory.n + b->user.n;
    stats->oldest_guard_ns = oldest_guard_ns;
    stats->oldest_guard_tid = oldest_guard_tid;
    leave();
}
