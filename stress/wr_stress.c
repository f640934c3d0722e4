/* wr-stress: options, rounds, progress, and what ends a run. See wr_stress.h for how it works. */
#include "wr_stress.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "../tests/support/fork_heap.h"

#if defined(WR_SCHED_POINTS) && WR_SCHED_POINTS
#include "sched_points.h"
#endif

enum { MOST_THREADS = 512, OPS_MOST = 1000000, HANG_SECONDS = 60 };

static const char usage[] =
    "usage: wr-stress [--seconds S] [--threads N] [--seed X] [--rounds R] [--mode MODE] [--ops N]\n"
    "\n"
    "Threads create, share, upgrade, watch, cancel, look up and drop objects at random; after each round the laws of\n"
    "the library are checked. Ends with what it counted. Ctrl-C ends it after the round.\n"
    "\n"
    "  --seconds S  for so long; 0: no limit (default 10; no limit with --rounds)\n"
    "  --threads N  workers, 1 to 512 (default 4)\n"
    "  --seed X     what the operations are drawn from (default: the time; it is printed)\n"
    "  --rounds R   end after so many rounds; 0: no limit\n"
    "  --mode MODE  all, or a list of: count (counts, slots, guards), watch (watches, queues), dict, queue (queues that\n"
    "               come and go, all kinds of consumers), cancel (cancels, finalizers, methods), signal; and, not among all,\n"
    "               fork (default all)\n"
    "  --ops N      operations of each worker in a round (default 4000, 1000 under a sanitizer)\n"
    "  --help       this text\n"
    "\n"
    "Exit status: 0: all laws held, 1: one did not (the line that replays it is printed), 2: bad options.\n";

struct options options = {
    .n_threads = 4,
    .mode = MODE_ALL,
    .n_ops = SANITIZED ? 1000 : 4000,
};

_Atomic uint64_t round_now;
atomic_bool interrupted;
struct worker *workers; /* one more than n_threads: the last is for the library's own threads */

static const char *mode_text = "all";
static pthread_barrier_t meeting;
static atomic_bool over, finished;
static _Atomic(const char *) checking; /* what the checking thread does */
static _Atomic uint64_t kicks;
static char replay[160]; /* the line that does it again, without the rounds */

/* ---- randomness ---------------------------------------------------------------------------------------------- */

uint64_t mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

void random_start(struct random *r, uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t x = mix(mix(mix(a) ^ b) ^ c);
    for (unsigned i = 0; i < 4; i++)
        r->s[i] = mix(x + i * UINT64_C(0x9e3779b97f4a7c15));
}

uint64_t random_next(struct random *r)
{
    uint64_t *s = r->s, five = s[1] * 5, result = (five << 7 | five >> 57) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = s[3] << 45 | s[3] >> 19;
    return result;
}

unsigned random_below(struct random *r, unsigned n)
{
    return (unsigned)((random_next(r) >> 32) * n >> 32);
}

bool random_one_in(struct random *r, unsigned n)
{
    return random_below(r, n) == 0;
}

/* ---- workers and counts ---------------------------------------------------------------------------------------- */

static _Thread_local struct worker *self;

struct worker *worker_self(void)
{
    return self != NULL ? self : &workers[options.n_threads];
}

void worker_become(struct worker *w)
{
    self = w;
}

void count_many(enum count what, uint64_t n)
{
    atomic_fetch_add_explicit(&worker_self()->counts[what], n, memory_order_relaxed);
}

void count(enum count what)
{
    count_many(what, 1);
}

uint64_t count_sum(enum count what)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i <= options.n_threads; i++)
        sum += atomic_load_explicit(&workers[i].counts[what], memory_order_relaxed);
    return sum;
}

/* ---- the library's memory: counted in blocks, so that a leak shows under every tool ------------------------------ */

static void *take_block(size_t size, size_t align, void *ctx)
{
    void *memory = NULL;
    if (options.mode & MODE_FORK)
        memory = fork_heap_alloc(size, align, ctx);
    else if (posix_memalign(&memory, align < sizeof(void *) ? sizeof(void *) : align, size) != 0)
        memory = NULL;
    if (memory != NULL)
        count(COUNT_blocks_taken);
    return memory;
}

static void free_block(void *memory, void *ctx)
{
    count(COUNT_blocks_freed);
    if (options.mode & MODE_FORK)
        fork_heap_free(memory, ctx);
    else
        free(memory);
}

/* ---- what ends a run ---------------------------------------------------------------------------------------------- */

static void print_replay(void)
{
    char line[sizeof replay + 64];
    int n = snprintf(line, sizeof line, "replay: %s --rounds %llu\n", replay,
                     (unsigned long long)atomic_load_explicit(&round_now, memory_order_relaxed));
    if (n > 0 && write(STDERR_FILENO, line, (size_t)n) < 0)
        return;
}

void violation(const char *format, ...)
{
    static atomic_flag first = ATOMIC_FLAG_INIT;
    while (atomic_flag_test_and_set(&first))
        pause(); /* another thread is at it */
    va_list args;
    va_start(args, format);
    fflush(stdout);
    fputs("\nwr-stress: VIOLATION: ", stderr);
    vfprintf(stderr, format, args);
    fprintf(stderr, "\nin round %llu, thread %u (%s)\n",
            (unsigned long long)atomic_load_explicit(&round_now, memory_order_relaxed), worker_self()->index,
            atomic_load_explicit(&worker_self()->doing, memory_order_relaxed));
    va_end(args);
    print_replay();
    if (getenv("WR_STRESS_ABORT") != NULL) { /* for a debugger */
        signal(SIGABRT, SIG_DFL);
        abort();
    }
    _exit(1);
}

/* A panic of the library, or a sanitizer's report that aborts. */
static void on_abort(int number)
{
    (void)number;
    static const char text[] = "\nwr-stress: VIOLATION: the program was aborted\n";
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0)
        _exit(1);
    print_replay();
    if (getenv("WR_STRESS_ABORT") == NULL)
        _exit(1);
    signal(SIGABRT, SIG_DFL);
}

static void on_interrupt(int number)
{
    (void)number;
    atomic_store_explicit(&interrupted, true, memory_order_relaxed);
}

/* Sanitizers call this before they end the program. */
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static void handle_signals(void)
{
    struct sigaction interrupt = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    struct sigaction aborted = {.sa_handler = on_abort};
    sigaction(SIGINT, &interrupt, NULL);
    sigaction(SIGTERM, &interrupt, NULL);
    sigaction(SIGABRT, &aborted, NULL);
    if (__sanitizer_set_death_callback != NULL)
        __sanitizer_set_death_callback(print_replay);
}

void watchdog_kick(const char *what)
{
    atomic_store_explicit(&checking, what, memory_order_relaxed);
    atomic_fetch_add_explicit(&kicks, 1, memory_order_relaxed);
}

static _Noreturn void hang(void)
{
    fflush(stdout);
    fprintf(stderr, "\nwr-stress: VIOLATION: nothing moved for %d s; round %llu; checks: %s\n", HANG_SECONDS,
            (unsigned long long)atomic_load(&round_now), atomic_load(&checking));
    for (unsigned i = 0; i < options.n_threads; i++)
        fprintf(stderr, "  thread %u: %s, %llu operations\n", i, atomic_load(&workers[i].doing),
                (unsigned long long)atomic_load(&workers[i].counts[COUNT_operations]));
    print_replay();
    if (getenv("WR_STRESS_ABORT") != NULL) {
        signal(SIGABRT, SIG_DFL);
        abort();
    }
    _exit(1);
}

/* ---- the run ------------------------------------------------------------------------------------------------------ */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double started;

static void next_round(void)
{
    uint64_t done = atomic_load(&round_now);
    if (atomic_load(&interrupted) || (options.rounds != 0 && done >= options.rounds) ||
        (options.seconds > 0 && now() - started >= options.seconds)) {
        atomic_store(&over, true);
        return;
    }
    watches_reset();
    objects_reset();
    atomic_store(&round_now, done + 1);
}

static void *work(void *arg)
{
    struct worker *w = arg;
    worker_become(w);
    for (;;) {
        if (w->index == 0)
            next_round();
        pthread_barrier_wait(&meeting);
        if (atomic_load(&over))
            break;
        random_start(&w->random, options.seed, atomic_load(&round_now), w->index);
        work_round(w);
        pthread_barrier_wait(&meeting);
        if (w->index == 0)
            check_round();
    }
    if (w->index == 0)
        atomic_store(&finished, true);
    return NULL;
}

static void show_progress(bool terminal, bool last)
{
    printf("%s%6.1f s  round %llu  %llu operations  %llu objects  %llu/%llu upgrades won/lost  %llu callbacks  "
           "%llu cancelled%s",
           terminal ? "\r" : "", now() - started, (unsigned long long)atomic_load(&round_now),
           (unsigned long long)count_sum(COUNT_operations), (unsigned long long)count_sum(COUNT_objects),
           (unsigned long long)count_sum(COUNT_upgrades_won), (unsigned long long)count_sum(COUNT_upgrades_lost),
           (unsigned long long)count_sum(COUNT_delivered), (unsigned long long)count_sum(COUNT_cancelled),
           terminal ? "\033[K" : "");
    if (!terminal || last)
        putchar('\n');
    fflush(stdout);
}

/* The main thread's part until the workers have finished. */
static void supervise(void)
{
    bool terminal = isatty(STDOUT_FILENO);
    double shown = now(), moved = now();
    uint64_t before = 0;
    while (!atomic_load(&finished)) {
        nanosleep(&(struct timespec){.tv_nsec = 50 * 1000 * 1000}, NULL);
        double t = now();
        if (t - shown >= (terminal ? 0.2 : 5)) {
            show_progress(terminal, false);
            shown = t;
        }
        uint64_t progress = count_sum(COUNT_operations) + atomic_load(&kicks);
        if (progress != before) {
            before = progress;
            moved = t;
        } else if (t - moved > HANG_SECONDS) {
            hang();
        }
    }
    if (terminal)
        show_progress(terminal, true);
}

const char *count_text(enum count what)
{
    static const char *const texts[] = {
#define X(name, text) text,
        COUNTS(X)
#undef X
    };
    return texts[what];
}

void races_verify(const enum count *races, unsigned n, bool many)
{
    for (unsigned i = 0; i < n; i++) {
        if (count_sum(races[i]) != 0)
            continue;
        if (many)
            violation("a race was never won: '%s' stands at 0", count_text(races[i]));
        printf("never so far: %s\n", count_text(races[i]));
    }
}

static void show_counts(void)
{
    for (unsigned i = 0; i < N_COUNTS; i++)
        if (count_sum((enum count)i) != 0)
            printf("  %-45s %12llu\n", count_text((enum count)i), (unsigned long long)count_sum((enum count)i));
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    printf("%s: %llu rounds, %llu operations in %.1f s, at most %ld MiB: all laws held\n", replay,
           (unsigned long long)atomic_load(&round_now), (unsigned long long)count_sum(COUNT_operations),
           now() - started, used.ru_maxrss / 1024);
}

/* ---- options ------------------------------------------------------------------------------------------------------ */

static _Noreturn void bad_option(const char *what, const char *value)
{
    fprintf(stderr, "wr-stress: %s: %s (--help shows the options)\n", what, value);
    exit(2);
}

static uint64_t parse_number(const char *name, const char *value, uint64_t least, uint64_t most)
{
    char *end;
    errno = 0;
    unsigned long long n = strtoull(value, &end, 0);
    if (errno != 0 || end == value || *end != '\0' || strchr(value, '-') != NULL || n < least || n > most)
        bad_option(name, value);
    return n;
}

static double parse_seconds(const char *value)
{
    char *end;
    errno = 0;
    double s = strtod(value, &end);
    if (errno != 0 || end == value || *end != '\0' || !isfinite(s) || s < 0)
        bad_option("bad number of seconds", value);
    return s;
}

static unsigned parse_mode(const char *value)
{
    static const struct {
        const char *name;
        unsigned mode;
    } modes[] = {
        {"all", MODE_ALL},     {"count", MODE_COUNT},   {"watch", MODE_WATCH},   {"dict", MODE_DICT},
        {"queue", MODE_QUEUE}, {"cancel", MODE_CANCEL}, {"signal", MODE_SIGNAL}, {"fork", MODE_FORK},
    };
    unsigned mode = 0;
    const char *at = value;
    for (;;) {
        size_t length = strcspn(at, ","), i = 0;
        while (i < sizeof modes / sizeof *modes &&
               (strlen(modes[i].name) != length || strncmp(modes[i].name, at, length) != 0))
            i++;
        if (i == sizeof modes / sizeof *modes)
            bad_option("unknown mode", value);
        mode |= modes[i].mode;
        if (at[length] == '\0')
            return mode;
        at += length + 1;
    }
}

static void parse_options(int argc, char **argv)
{
    static const struct option longs[] = {
        {"seconds", required_argument, NULL, 's'}, {"threads", required_argument, NULL, 't'},
        {"seed", required_argument, NULL, 'x'},    {"rounds", required_argument, NULL, 'r'},
        {"mode", required_argument, NULL, 'm'},    {"ops", required_argument, NULL, 'o'},
        {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0},
    };
    bool seconds = false;
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    options.seed = mix((uint64_t)t.tv_sec * 1000000007u ^ (uint64_t)t.tv_nsec ^ (uint64_t)getpid() << 32) >> 32;
    for (int c; (c = getopt_long(argc, argv, "h", longs, NULL)) != -1;) {
        switch (c) {
        case 's':
            options.seconds = parse_seconds(optarg);
            seconds = true;
            break;
        case 't':
            options.n_threads = (unsigned)parse_number("bad number of threads", optarg, 1, MOST_THREADS);
            break;
        case 'x':
            options.seed = parse_number("bad seed", optarg, 0, UINT64_MAX);
            break;
        case 'r':
            options.rounds = parse_number("bad number of rounds", optarg, 0, UINT64_MAX);
            break;
        case 'm':
            options.mode = parse_mode(optarg);
            mode_text = optarg;
            break;
        case 'o':
            options.n_ops = (unsigned)parse_number("bad number of operations", optarg, 1, OPS_MOST);
            break;
        case 'h':
            fputs(usage, stdout);
            exit(0);
        default:
            fputs(usage, stderr);
            exit(2);
        }
    }
    if (optind < argc)
        bad_option("unexpected argument", argv[optind]);
    if (!seconds)
        options.seconds = options.rounds != 0 ? 0 : 10;
    int n = snprintf(replay, sizeof replay, "wr-stress --seed %llu --threads %u", (unsigned long long)options.seed,
                     options.n_threads);
    if (strcmp(mode_text, "all") != 0)
        n += snprintf(replay + n, sizeof replay - (size_t)n, " --mode %.40s", mode_text);
    if (options.n_ops != (SANITIZED ? 1000 : 4000))
        snprintf(replay + n, sizeof replay - (size_t)n, " --ops %u", options.n_ops);
}

int main(int argc, char **argv)
{
    parse_options(argc, argv);
    handle_signals();
#if defined(WR_SCHED_POINTS) && WR_SCHED_POINTS
    wr_sched_seed(options.seed != 0 ? options.seed : 1);
#endif
    workers = calloc(options.n_threads + 1, sizeof *workers);
    pthread_t *threads = calloc(options.n_threads, sizeof *threads);
    if (workers == NULL || threads == NULL) {
        perror("wr-stress");
        return 2;
    }
    for (unsigned i = 0; i <= options.n_threads; i++) {
        workers[i].index = i < options.n_threads ? i : MOST_THREADS; /* the last leaves no trace in objects */
        atomic_store(&workers[i].doing, "starting");
    }
    atomic_store(&checking, "starting");
    /* Where the library keeps no blocks of its own for reuse anyway; elsewhere that is to be under stress, too. */
    if (SANITIZED) {
        CHECK(wr_set_allocator(&(struct wr_allocator){take_block, free_block, NULL}) == 0);
        if (options.mode & MODE_FORK)
            fork_heap_start();
    }
    printf("%s\n", replay);
    fflush(stdout);
    objects_start();
    check_start();
    watches_start();
    shared_start();
    for (unsigned i = 0; i < N_PARTS; i++)
        if (part_used(i))
            parts[i]->start();
    work_prepare();
    pthread_barrier_init(&meeting, NULL, options.n_threads);
    started = now();
    for (unsigned i = 0; i < options.n_threads; i++) {
        int error = pthread_create(&threads[i], NULL, work, &workers[i]);
        if (error != 0) {
            fprintf(stderr, "wr-stress: cannot start thread %u: %s\n", i, strerror(error));
            _exit(2);
        }
    }
    supervise();
    for (unsigned i = 0; i < options.n_threads; i++)
        pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < N_PARTS; i++)
        if (part_used(i))
            parts[i]->stop();
    shared_stop();
    watches_stop();
    check_stop();
    CHECK(wr_barrier() == 0);
    show_counts();
    objects_stop();
    pthread_barrier_destroy(&meeting);
    free(threads);
    return 0;
}
