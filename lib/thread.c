/* F3 thread: registration, teardown, and the fallback record. */
#include "thread.h"

#include <sys/syscall.h>
#include <unistd.h>

__thread struct wr_guard_record WR_LAYOUT(wr_self) __attribute__((tls_model("initial-exec")));
__thread wr_thread wr_thread_record __attribute__((tls_model("initial-exec")));

static wr_mutex threads_lock = WR_MUTEX_INIT;
static wr_thread *threads; /* Guarded by threads_lock */

/* Serves every thread that cannot have, or no longer has, a record in the list. */
static struct wr_guard_record fallback_guards[2];
static wr_thread fallbacks[2] = {{.guard = &fallback_guards[0]}, {.guard = &fallback_guards[1]}};
static wr_thread *const fallback = &fallbacks[0]; /* takes what is retired */
static unsigned fallback_readers[2];              /* Guarded by threads_lock */
static unsigned char fallback_current;            /* the younger section. Guarded by threads_lock */

static wr_atomic_u64 last_ordinal;

static struct wr_thread_hooks hooks; /* written by a constructor, before threads */

static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static bool key_made;

void wr_thread_set_hooks(const struct wr_thread_hooks *given)
{
    hooks = *given;
}

bool wr_thread_is_asymmetric(void)
{
    return hooks.mode == WR_GUARD_ASYMMETRIC;
}

uint64_t wr_thread_ordinal(void)
{
    wr_thread *self = &wr_thread_record;
    if (wr_unlikely(self->ordinal == 0)) {
        /* Relaxed: it tells threads apart. */
        self->ordinal = wr_atomic_fetch_add_relaxed(&last_ordinal, 1) + 1;
    }
    return self->ordinal;
}

/* The key's destructor: hands on what the thread retired and takes its record out of the list, in one step for
 * collectors, which hold the same lock. */
static void tear_down(void *record)
{
    wr_thread *self = record;
    if (wr_unlikely(self->deferred_depth > 0 || self->deaths.active || self->frames != NULL || self->n_calls > 0))
        wr_panic("thread exit", "thread", NULL, self,
                 "it ended inside a destroy or callback, or left one without returning: its other work would be lost");
    wr_mutex_lock(&threads_lock, WR_RANK_THREADS);
    if (hooks.at_exit != NULL)
        hooks.at_exit(self, fallback);
    if (self->next != NULL)
        self->next->prev = self->prev;
    if (self->prev != NULL)
        self->prev->next = self->next;
    else
        threads = self->next;
    /* Before the lock is left: a forking thread, which looks at the list under it, finds those who go in later elsewhere. */
    wr_gate_list(false, false);
    wr_mutex_unlock(&threads_lock, WR_RANK_THREADS);
    self->registered = false;
    self->torn_down = true;
    self->guard->nested = 0; /* a thread that ends inside a guard leaves it */
    /* Relaxed: no collector looks at this record any more. */
    wr_atomic_store_relaxed(&self->guard->section, WR_GUARD_COLD);
    struct wr_thread_cache *cache = self->cache;
    self->cache = NULL;
    if (cache != NULL)
        cache->at_exit(cache);
}

static void make_key(void)
{
    key_made = pthread_key_create(&key, tear_down) == 0;
}

wr_thread *wr_thread_register(void)
{
    wr_thread *self = &wr_thread_record;
    if (self->torn_down)
        return fallback;
    pthread_once(&key_once, make_key);
    self->guard = &WR_LAYOUT(wr_self);
    self->gate = &wr_gate_self;
    (void)wr_thread_ordinal();
    if (!key_made || pthread_setspecific(key, self) != 0) {
        self->torn_down = true; /* for good: a guard must end on the record on which it began */
        return fallback;
    }
    self->tid = (int)syscall(SYS_gettid);
    wr_mutex_lock(&threads_lock, WR_RANK_THREADS);
    self->prev = NULL;
    self->next = threads;
    if (threads != NULL)
        threads->prev = self;
    threads = self;
    wr_mutex_unlock(&threads_lock, WR_RANK_THREADS);
    /* Relaxed: to collectors it says what it said before. */
    wr_atomic_store_relaxed(&self->guard->section, hooks.mode);
    self->registered = true;
    wr_gate_list(true, hooks.mode == WR_GUARD_ASYMMETRIC);
    return self;
}

void wr_signals_hold(sigset_t *before)
{
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT};
    sigset_t held;
    sigfillset(&held);
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
        sigdelset(&held, own[i]);
    (void)pthread_sigmask(SIG_SETMASK, &held, before);
}

void wr_signals_restore(const sigset_t *before)
{
    (void)pthread_sigmask(SIG_SETMASK, before, NULL);
}

bool wr_thread_for_each(bool wait, void (*visit)(wr_thread *thread, void *ctx), void *ctx)
{
    if (wait)
        wr_mutex_lock(&threads_lock, WR_RANK_THREADS);
    else if (!wr_mutex_trylock(&threads_lock, WR_RANK_THREADS))
        return false;
    for (wr_thread *thread = threads; thread != NULL; thread = thread->next)
        visit(thread, ctx);
    visit(&fallbacks[0], ctx);
    visit(&fallbacks[1], ctx);
    wr_mutex_unlock(&threads_lock, WR_RANK_THREADS);
    return true;
}

/* ---- fork ------------------------------------------------------------------------------------------ */

bool wr_thread_others_inside(void)
{
    bool any = wr_gate_sees_unlisted();
    wr_mutex_lock(&threads_lock, WR_RANK_THREADS);
    for (wr_thread *thread = threads; thread != NULL && !any; thread = thread->next)
        any = thread != &wr_thread_record && wr_gate_sees(thread->gate);
    wr_mutex_unlock(&threads_lock, WR_RANK_THREADS);
    return any;
}

bool wr_thread_others(void)
{
    return threads != NULL && (threads != &wr_thread_record || threads->next != NULL);
}

uint64_t wr_thread_next_ordinal(void)
{
    /* Relaxed: nobody else is there. */
    return wr_atomic_load_relaxed(&last_ordinal) + 1;
}

void wr_thread_cut_others(void)
{
    wr_thread *self = &wr_thread_record;
    threads = NULL;
    if (self->registered) {
        threads = self;
        self->next = self->prev = NULL;
        self->tid = (int)syscall(SYS_gettid);
    }
    bool in_fallback = !self->registered && wr_section_is_open();
    for (unsigned char i = 0; i < 2; i++) {
        fallback_readers[i] = in_fallback && self->fallback_section == i;
        if (fallback_readers[i] == 0) {
            /* Relaxed: nobody else is there. */
            wr_atomic_store_relaxed(&fallback_guards[i].section, 0);
        }
    }
}

/* ---- the fallback's read sections --------------------------------------------------------------- */

void wr_thread_fallback_enter(void)
{
    wr_mutex_lock(&threads_lock, WR_RANK_THREADS);
    /* Acquire [epoch]: as in wr_guard_enter(). */
    uint64_t now = wr_atomic_load_acquire(&WR_LAYOUT(wr_epoch).now);
    unsigned char i = fallback_current;
    /* Relaxed: written under this lock. */
    if (fallback_readers[i] > 0 && wr_atomic_load_relaxed(&fallback_guards[i].section) != now &&
        fallback_readers[1 - i] == 0)
        i = fallback_current = 1 - i;
    if (fallback_readers[i]++ == 0) {
        /* Relaxed: the fence below, or the collector's membarrier, orders it before the section's loads. */
        wr_atomic_store_relaxed(&fallback_guards[i].section, now);
    }
    wr_mutex_unlock(&threads_lock, WR_RANK_THREADS);
    wr_thread_record.fallback_section = i;
    wr_atomic_fence_seq_cst(); /* [section-fence] */
}

void wr_thread_fallback_exit(void)
{
    unsigned char i = wr_thread_record.fallback_section;
    wr_mutex_lock(&threads_lock, WR_RANK_THREADS);
    if (--fallback_readers[i] == 0) {
        /* Release [section]: as in wr_guard_exit(). */
        wr_atomic_store_release(&fallback_guards[i].section, 0);
    }
    wr_mutex_unlock(&threads_lock, WR_RANK_THREADS);
}
