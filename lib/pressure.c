/* F7 pressure: one thread that waits for the kernel, and one task that trims.
 *
 * The task is in the watcher, and is handed over again and again:
 *
 *     IDLE --event--> CLAIMED --> PENDING --> RUNNING --> IDLE
 *                     CLAIMED --the queue was freed--> IDLE      PENDING --> CANCELLED --> IDLE
 *                     RUNNING --event--> AGAIN --end--> CLAIMED
 *
 * The watcher has two kinds of references: that of its being the current one, and the task's while that is not IDLE. It holds
 * its queue as long. In a forked child it is not the current one any more, and never freed.
 */
#include <weakref/pressure.h>

#include "alloc.h"
#include "dict.h"
#include "event.h"
#include "fork.h"
#include "keep.h"
#include "pool.h"
#include "queue.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <malloc.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { AGE_MS = 1000, PERCENT = 25, STALL_MS = 200, WINDOW_MS = 2000 };

enum { TASK_IDLE, TASK_CLAIMED, TASK_PENDING, TASK_RUNNING, TASK_AGAIN, TASK_CANCELLED };

/* What poll() is to wait for, in this order. fd -1: there is none. */
enum { SOURCE_PRESSURE, SOURCE_EVENTS, SOURCE_STOP, N_SOURCES };

typedef struct watcher {
    wr_task task;
    wr_atomic_u32 task_state;
    wr_atomic_u32 stopping;
    wr_event task_moved; /* signalled when the task has become PENDING or IDLE */
    WR_ATOMIC(unsigned) refs;
    wr_queue *queue;
    double fraction;
    pthread_t thread;
    struct pollfd sources[N_SOURCES];  /* the thread's own while it runs, but for the descriptors */
    int counts_fd;                     /* memory.events, or -1 */
    uint64_t counts;                   /* what stood there last */
    uint64_t window_ns, deaf_until_ns; /* such an event counts once in a window */
} watcher;

enum { PHASE_OFF, PHASE_STARTING, PHASE_ON, PHASE_STOPPING };

static wr_atomic_u32 phase;
static watcher *current; /* in PHASE_ON; else of who starts or stops */

static bool phase_move(uint32_t from, uint32_t to)
{
    /* Acquire-release [pressure-phase]: whoever moves it next sees what the one before did. Pairs with itself in other threads. */
    return wr_atomic_cas_acq_rel(&phase, &from, to);
}

/* ---- sources ------------------------------------------------------------------------------------------------ */

static bool is_kernels(int fd)
{
    struct statfs fs;
    return fstatfs(fd, &fs) == 0 && (fs.f_type == PROC_SUPER_MAGIC || fs.f_type == CGROUP2_SUPER_MAGIC);
}

/* Opens what @path is: pressure stall information, to which @trigger is written, or a FIFO. 0, or -ENOTSUP, -EMFILE, -ENFILE. */
static int open_pressure(const char *path, const void *trigger, size_t size, struct pollfd *source)
{
    struct stat st;
    /* Of a FIFO both ends: so there is never nobody to write. */
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return errno == EMFILE || errno == ENFILE ? -errno : -ENOTSUP;
    if (fstat(fd, &st) == 0 && S_ISFIFO(st.st_mode)) {
        *source = (struct pollfd){.fd = fd, .events = POLLIN};
        return 0;
    }
    /* No other file is written to. */
    if (is_kernels(fd) && write(fd, trigger, size) == (ssize_t)size) {
        *source = (struct pollfd){.fd = fd, .events = POLLPRI};
        return 0;
    }
    close(fd);
    return -ENOTSUP;
}

/* The path of @name in the process's own cgroup. False: it has none of version 2 that can be seen. */
static bool cgroup_path(const char *name, char *path, size_t size)
{
    char line[PATH_MAX * 2], own[PATH_MAX] = "", root[PATH_MAX], mount[PATH_MAX];
    bool found = false;
    FILE *file = fopen("/proc/self/cgroup", "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        size_t length = strcspn(line, "\n");
        line[length] = '\0';
        if (strncmp(line, "0::/", 4) == 0 && length - 3 < sizeof own)
            memcpy(own, line + 3, length - 2);
    }
    if (file != NULL)
        fclose(file);
    if (own[0] == '\0' || strstr(own, "/..") != NULL)
        return false;

    file = fopen("/proc/self/mountinfo", "re");
    while (!found && file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (strstr(line, " - cgroup2 ") == NULL || sscanf(line, "%*s %*s %*s %4095s %4095s", root, mount) != 2)
            continue;
        size_t length = strcmp(root, "/") != 0 ? strlen(root) : 0;
        if (strncmp(own, root, length) != 0 || (own[length] != '/' && own[length] != '\0'))
            continue;
        const char *rest = strcmp(own + length, "/") != 0 ? own + length : "";
        int n = snprintf(path, size, "%s%s/%s", mount, rest, name);
        found = n > 0 && (size_t)n < size;
    }
    if (file != NULL)
        fclose(file);
    return found;
}

/* @to has room for 3/4 of the text. Returns the bytes; 0: it is no base64. */
static size_t decode_base64(const char *text, unsigned char *to)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t n = 0;
    uint32_t bits = 0;
    unsigned n_bits = 0;
    for (; *text != '\0' && *text != '='; text++) {
        const char *digit = strchr(digits, *text);
        if (digit == NULL)
            return 0;
        bits = bits << 6 | (uint32_t)(digit - digits);
        n_bits += 6;
        if (n_bits >= 8) {
            n_bits -= 8;
            to[n++] = (unsigned char)(bits >> n_bits);
        }
    }
    return n;
}

/* As the environment says. 0, -ENOENT: it says nothing; or as open_pressure(). */
static int open_as_told(const void *trigger, size_t size, char *path, size_t path_size, struct pollfd *source)
{
    const char *watch = secure_getenv("MEMORY_PRESSURE_WATCH");
    const char *text = secure_getenv("MEMORY_PRESSURE_WRITE");
    unsigned char told[256];
    if (watch == NULL || watch[0] == '\0')
        return -ENOENT;
    if (strcmp(watch, "/dev/null") == 0 || strlen(watch) >= path_size)
        return -ENOTSUP;
    strcpy(path, watch);
    if (text == NULL)
        return open_pressure(path, trigger, size, source);
    size = strlen(text) < sizeof told ? decode_base64(text, told) : 0;
    return size > 0 ? open_pressure(path, told, size, source) : -ENOTSUP;
}

/* @path: of what was opened. 0, or as open_pressure(). */
static int find_pressure(const struct wr_pressure_options *options, char path[PATH_MAX], struct pollfd *source)
{
    char trigger[64];
    uint64_t stall_us = UINT64_C(1000) * (options->stall_ms != 0 ? options->stall_ms : STALL_MS);
    uint64_t window_us = UINT64_C(1000) * (options->window_ms != 0 ? options->window_ms : WINDOW_MS);
    size_t size = (size_t)snprintf(trigger, sizeof trigger, "some %llu %llu", (unsigned long long)stall_us,
                                   (unsigned long long)window_us) +
                  1;
    if (options->path != NULL) {
        if (strlen(options->path) >= PATH_MAX)
            return -ENOTSUP;
        strcpy(path, options->path);
        return open_pressure(path, trigger, size, source);
    }
    int err = open_as_told(trigger, size, path, PATH_MAX, source);
    if (err != -ENOENT)
        return err;
    err = cgroup_path("memory.pressure", path, PATH_MAX) ? open_pressure(path, trigger, size, source) : -ENOTSUP;
    if (err == -ENOTSUP) {
        strcpy(path, "/proc/pressure/memory");
        err = open_pressure(path, trigger, size, source);
    }
    return err;
}

/* Of what stands in memory.events: how often memory was at a limit. */
static uint64_t read_counts(int fd)
{
    static const char *const names[] = {"high ", "max ", "oom "};
    char text[1024];
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    uint64_t sum = 0;
    for (const char *line = text; line != NULL && *line != '\0';) {
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            if (strncmp(line, names[i], strlen(names[i])) == 0)
                sum += strtoull(line + strlen(names[i]), NULL, 10);
        line = strchr(line, '\n');
        line += line != NULL;
    }
    return sum;
}

/* Whether tasks stalled for a hundredth of the last ten seconds. A cgroup whose page cache fills it is at its limit all the time, and
 * no worse for that. Where it is not said: yes. */
static bool is_stalling(int fd)
{
    char text[256];
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    unsigned percent;
    return sscanf(text, "some avg10=%u.", &percent) != 1 || percent >= 1;
}

/* Beside @path. If there is none, or it cannot be watched, so be it. */
static void find_events(const char *path, watcher *w)
{
    char events[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int length = slash != NULL ? (int)(slash - path) + 1 : 0;
    int n = snprintf(events, sizeof events, "%.*smemory.events", length, path);
    if (n < 0 || (size_t)n >= sizeof events)
        return;
    w->counts_fd = open(events, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (w->counts_fd < 0)
        return;
    int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (fd >= 0 && inotify_add_watch(fd, events, IN_MODIFY) < 0) {
        close(fd);
        fd = -1;
    }
    w->sources[SOURCE_EVENTS] = (struct pollfd){.fd = fd, .events = POLLIN};
    w->counts = read_counts(w->counts_fd);
}

static void close_sources(watcher *w)
{
    for (unsigned i = 0; i < N_SOURCES; i++)
        if (w->sources[i].fd >= 0)
            close(w->sources[i].fd);
    if (w->counts_fd >= 0)
        close(w->counts_fd);
}

static int open_sources(watcher *w, const struct wr_pressure_options *options)
{
    char path[PATH_MAX];
    for (unsigned i = 0; i < N_SOURCES; i++)
        w->sources[i].fd = -1;
    w->counts_fd = -1;
    int err = find_pressure(options, path, &w->sources[SOURCE_PRESSURE]);
    if (err != 0)
        return err;
    find_events(path, w);
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        err = -errno;
    w->sources[SOURCE_STOP] = (struct pollfd){.fd = fd, .events = POLLIN};
    if (err != 0)
        close_sources(w);
    return err;
}

/* Reads until nothing is left. */
static void drain(int fd)
{
    char scrap[4096];
    while (read(fd, scrap, sizeof scrap) > 0)
        ;
}

/* ---- the task ------------------------------------------------------------------------------------------------ */

static watcher *of_task(wr_task *task)
{
    return (watcher *)(void *)((char *)task - offsetof(watcher, task));
}

static void watcher_release(watcher *w)
{
    /* Acquire-release [pressure-ref]: the last one frees after all others' last use. Pairs with itself in other threads. */
    if (wr_atomic_fetch_sub_acq_rel(&w->refs, 1) == 1) {
        wr_queue_drop(w->queue);
        wr_free(w);
    }
}

static bool task_move(watcher *w, uint32_t from, uint32_t to)
{
    /* Acquire-release [pressure-task]: of several one wins; each sees what the one before did to the task. Pairs with itself in
     * other threads. */
    return wr_atomic_cas_acq_rel(&w->task_state, &from, to);
}

/* To IDLE, and the task's reference goes; unless it is not in the state @from. */
static bool task_end(watcher *w, uint32_t from)
{
    if (!task_move(w, from, TASK_IDLE))
        return false;
    wr_event_signal(&w->task_moved);
    watcher_release(w);
    return true;
}

static const wr_task_class trim_class;

/* Requires: CLAIMED by the caller, with the task's reference; no wr lock held (inline: runs user code). */
static void task_hand_over(watcher *w)
{
    wr_handover h;
    w->task.seq = 0;
    w->task.klass = &trim_class;
    wr_queue_admit(w->queue, false);
    if (wr_queue_is_inline(w->queue)) {
        (void)task_move(w, TASK_CLAIMED, TASK_RUNNING);
        wr_queue_run_inline(w->queue, &w->task);
    } else if (wr_handover_begin(&h, w->queue, 1)) {
        (void)task_move(w, TASK_CLAIMED, TASK_PENDING);
        wr_event_signal(&w->task_moved); /* before the push, after which @w may go: who stops it can cancel it now */
        wr_handover_add(&h, &w->task);
        wr_handover_end(&h);
    } else {
        wr_queue_count_cancelled(w->queue, 1);
        (void)task_end(w, TASK_CLAIMED);
    }
}

static bool trim_begin(wr_task *task)
{
    return task_move(of_task(task), TASK_PENDING, TASK_RUNNING);
}

static void trim_run(wr_task *task)
{
    const watcher *w = of_task(task);
    (void)wr_keep_trim_all(w->fraction);
    wr_pool_trim();
    /* What was freed is to reach the kernel. */
#ifdef __GLIBC__
    if (!wr_alloc_is_hooked())
        (void)malloc_trim(0);
#endif
}

static void trim_finish(wr_task *task)
{
    watcher *w = of_task(task);
    if (task_end(w, TASK_RUNNING))
        return;
    (void)task_move(w, TASK_AGAIN, TASK_CLAIMED);
    /* Relaxed: who stops waits for IDLE in any case. */
    if (wr_atomic_load_relaxed(&w->stopping) != 0)
        (void)task_end(w, TASK_CLAIMED);
    else
        task_hand_over(w);
}

static bool trim_cancel(wr_task *task)
{
    return task_move(of_task(task), TASK_PENDING, TASK_CANCELLED);
}

static void trim_discard(wr_task *task)
{
    (void)task_end(of_task(task), TASK_CANCELLED);
}

static const wr_task_class trim_class = {
    .begin = trim_begin,
    .run = trim_run,
    .finish = trim_finish,
    .cancel = trim_cancel,
    .discard = trim_discard,
};

/* Memory is short. One that is pending, or about to be, serves. */
static void event(watcher *w)
{
    for (;;) {
        if (task_move(w, TASK_IDLE, TASK_CLAIMED)) {
            /* Relaxed: the caller's reference stands. */
            wr_atomic_fetch_add_relaxed(&w->refs, 1);
            task_hand_over(w);
            return;
        }
        /* Relaxed: to choose what to try. */
        uint32_t state = wr_atomic_load_relaxed(&w->task_state);
        if (state != TASK_IDLE && (state != TASK_RUNNING || task_move(w, TASK_RUNNING, TASK_AGAIN)))
            return;
    }
}

/* ---- the thread ---------------------------------------------------------------------------------------------- */

static void *watcher_main(void *w_)
{
    watcher *w = w_;
    struct pollfd *s = w->sources;
    /* Relaxed: the descriptor wakes us, and is looked at again. */
    while (wr_atomic_load_relaxed(&w->stopping) == 0) {
        int n = poll(s, N_SOURCES, AGE_MS);
        if (n == 0)
            wr_keep_age();
        if (n <= 0)
            continue;
        bool is_short = (s[SOURCE_PRESSURE].revents & s[SOURCE_PRESSURE].events) != 0;
        if (is_short && s[SOURCE_PRESSURE].events == POLLIN)
            drain(s[SOURCE_PRESSURE].fd);
        if (s[SOURCE_PRESSURE].revents & (POLLERR | POLLHUP | POLLNVAL)) {
            /* The cgroup is gone. */
            close(s[SOURCE_PRESSURE].fd);
            s[SOURCE_PRESSURE].fd = -1;
            is_short = false;
        }
        if (s[SOURCE_EVENTS].revents != 0) {
            drain(s[SOURCE_EVENTS].fd);
            uint64_t counts = read_counts(w->counts_fd), now = wr_clock_ns();
            if (counts > w->counts && now >= w->deaf_until_ns && is_stalling(s[SOURCE_PRESSURE].fd)) {
                is_short = true;
                w->deaf_until_ns = now + w->window_ns;
            }
            w->counts = counts;
        }
        if (is_short)
            event(w);
    }
    return NULL;
}

static int start_thread(watcher *w)
{
    sigset_t before;
    wr_signals_hold(&before);
    int error = pthread_create(&w->thread, NULL, watcher_main, w);
    wr_signals_restore(&before);
    if (error != 0)
        return -EAGAIN;
    pthread_setname_np(w->thread, "wr-pressure");
    return 0;
}

/* ---- start and stop ------------------------------------------------------------------------------------------- */

static int watcher_new(wr_queue *queue, const struct wr_pressure_options *options, watcher **out)
{
    watcher *w = wr_alloc_zero(sizeof *w);
    if (w == NULL)
        return -ENOMEM;
    wr_event_init(&w->task_moved);
    wr_atomic_init(&w->refs, 1);
    w->window_ns = UINT64_C(1000000) * (options->window_ms != 0 ? options->window_ms : WINDOW_MS);
    w->fraction = (options->percent != 0 ? options->percent : PERCENT) / 100.0;
    int err = open_sources(w, options);
    if (err == 0) {
        err = wr_queue_resolve(queue, &w->queue);
        if (err != 0)
            close_sources(w);
    }
    if (err != 0) {
        wr_free(w);
        return err;
    }
    wr_queue_admit(w->queue, true); /* for the hold; armed is only what is about to be handed over */
    wr_queue_refuse(w->queue, false);
    *out = w;
    return 0;
}

int wr_pressure_start_with(wr_queue *queue, const struct wr_pressure_options *given)
{
    struct wr_pressure_options options;
    int err = wr_dict_options(given, &options, sizeof options, offsetof(struct wr_pressure_options, path));
    if (err != 0 || options.percent > 100)
        return -EINVAL;
    if (!phase_move(PHASE_OFF, PHASE_STARTING))
        return -EBUSY;
    int saved = errno;
    watcher *w;
    err = watcher_new(queue, &options, &w);
    if (err == 0) {
        err = start_thread(w);
        if (err != 0) {
            close_sources(w);
            watcher_release(w);
        }
    }
    current = err == 0 ? w : NULL;
    (void)phase_move(PHASE_STARTING, err == 0 ? PHASE_ON : PHASE_OFF);
    errno = saved;
    return err;
}

int wr_pressure_start(wr_queue *queue)
{
    return wr_pressure_start_with(queue, NULL);
}

/* Until the task is IDLE: then nobody hands it over any more, since the thread has ended. */
static void task_wait(watcher *w)
{
    for (;;) {
        uint32_t value = wr_event_value(&w->task_moved);
        if (task_move(w, TASK_PENDING, TASK_CANCELLED))
            wr_queue_task_cancelled(w->queue, &w->task);
        /* Acquire [pressure-task]: sees what was trimmed. */
        if (wr_atomic_load_acquire(&w->task_state) == TASK_IDLE)
            return;
        (void)wr_event_wait(&w->task_moved, value, WR_EVENT_FOREVER);
    }
}

int wr_pressure_stop(void)
{
    if (!phase_move(PHASE_ON, PHASE_STOPPING)) {
        /* Relaxed: an answer as of some instant. */
        return wr_atomic_load_relaxed(&phase) == PHASE_OFF ? 0 : -EBUSY;
    }
    watcher *w = current;
    if (wr_task_is_below(&w->task)) {
        (void)phase_move(PHASE_STOPPING, PHASE_ON);
        return -EDEADLK;
    }
    int saved = errno;
    /* Relaxed: the descriptor, and the join, order it. */
    wr_atomic_store_relaxed(&w->stopping, 1);
    (void)eventfd_write(w->sources[SOURCE_STOP].fd, 1);
    (void)pthread_join(w->thread, NULL);
    task_wait(w);
    close_sources(w);
    watcher_release(w);
    current = NULL;
    (void)phase_move(PHASE_STOPPING, PHASE_OFF);
    errno = saved;
    return 0;
}

/* Of a parent's: never freed, since its task may be on a queue, cancelled. */
static WR_ATOMIC(watcher *) left_behind;

/* In the child: the thread is gone (or is this one, and comes to its end), and the descriptors are the parent's. */
static void pressure_in_child(void)
{
    /* Relaxed, all: there is only this thread. */
    if (wr_atomic_load_relaxed(&phase) == PHASE_ON) {
        wr_atomic_store_relaxed(&current->stopping, 1);
        close_sources(current);
        wr_atomic_store_relaxed(&left_behind, current);
    }
    current = NULL;
    wr_atomic_store_relaxed(&phase, PHASE_OFF);
}

__attribute__((constructor(101))) static void pressure_start(void)
{
    wr_fork_register(WR_FORK_PRESSURE, pressure_in_child);
}
