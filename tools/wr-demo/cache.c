/* A weak cache at work: threads ask one weak dictionary for files, hold them a moment, let go. */
#include "cache.h"

#include "file_object.h"
#include "text.h"

#include <weakref/weakref.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { RING_FILES = 32 };             /* how many files a worker holds ... */
#define RING_BYTES ((size_t)16 << 20) /* ... while they are no larger than this together */

struct run {
    wr_value_dict *dict; /* path -> struct file, held weakly */
    wr_queue *queue;     /* where the deaths are counted */
    struct tally tally;
    int root;
    const char **paths; /* the most wanted first */
    size_t n_paths;
    unsigned n_bits;      /* n_paths <= 1 << n_bits */
    atomic_bool keep_one; /* somebody is still to keep a file for ever */
    struct file *kept;    /* by the worker that took keep_one */
    atomic_bool stop;

    pthread_mutex_t lock; /* guards the following */
    const char *failed;   /* the first file that could not be loaded, or NULL */
    int error;            /* why: a positive errno */
};

/* One per thread, on cache lines of its own. Only its thread writes; the counts are also read for the progress line. */
struct worker {
    alignas(128) struct run *run;
    pthread_t thread;
    uint64_t random;
    atomic_ullong lookups, hits, failed;
    struct file *ring[RING_FILES]; /* strong: the files that were asked for last */
    size_t ring_at, ring_from, ring_bytes;
};

/* ---- workers ------------------------------------------------------------------------------------------- */

static void bump(atomic_ullong *count)
{
    /* Relaxed, and no read-modify-write: one writer. */
    atomic_store_explicit(count, tally_get(count) + 1, memory_order_relaxed);
}

/* splitmix64: any seed will do, 0 too. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* The first file is asked for about as often as the next two together, or the next four ... */
static size_t skewed_index(const struct run *run, uint64_t *random)
{
    for (;;) {
        uint64_t r = next_random(random);
        unsigned bits = (unsigned)((r >> 32) % (run->n_bits + 1));
        size_t index = (size_t)(r & ((UINT64_C(1) << bits) - 1));
        if (index < run->n_paths)
            return index;
    }
}

struct ask {
    struct run *run;
    const char *path;
    bool loaded; /* by this very call */
};

static int create(const void *key, size_t size, void *ctx, void **obj)
{
    (void)key, (void)size;
    struct ask *ask = ctx;
    struct file *file;
    int status = file_load(ask->run->root, ask->path, &ask->run->tally, ask->run->queue, &file);
    if (status != 0)
        return status;
    ask->loaded = true;
    *obj = file;
    return 0;
}

static void note_failure(struct run *run, const char *path, int error)
{
    pthread_mutex_lock(&run->lock);
    if (run->failed == NULL) {
        run->failed = path;
        run->error = error;
    }
    pthread_mutex_unlock(&run->lock);
}

static void ring_drop_oldest(struct worker *worker)
{
    struct file *file = worker->ring[worker->ring_from++ % RING_FILES];
    worker->ring_bytes -= file->size;
    wr_release(file);
}

static void ring_hold(struct worker *worker, struct file *file)
{
    if (worker->ring_at - worker->ring_from == RING_FILES)
        ring_drop_oldest(worker);
    worker->ring[worker->ring_at++ % RING_FILES] = file;
    worker->ring_bytes += file->size;
    while (worker->ring_bytes > RING_BYTES)
        ring_drop_oldest(worker);
}

static void look_up(struct worker *worker)
{
    struct run *run = worker->run;
    struct ask ask = {run, run->paths[skewed_index(run, &worker->random)], false};
    void *obj;
    int status = wr_value_dict_get_or_create_str(run->dict, ask.path, create, &ask, &obj);
    bump(&worker->lookups);
    if (status != 0) {
        if (!ask.loaded) /* else it was loaded, and no entry could be made */
            bump(&worker->failed);
        note_failure(run, ask.path, -status);
        return;
    }
    struct file *file = obj;
    if (!ask.loaded)
        bump(&worker->hits);
    file_verify(file);
    /* Relaxed: who takes the flag alone writes `kept`, read after the join. */
    if (atomic_load_explicit(&run->keep_one, memory_order_relaxed) &&
        atomic_exchange_explicit(&run->keep_one, false, memory_order_relaxed))
        run->kept = wr_retain(file);
    ring_hold(worker, file);
}

static void *work(void *ctx)
{
    struct worker *worker = ctx;
    /* Once at least, however short the run is: one that was interrupted at once has loaded something too.
     * Relaxed: a flag that hands nothing over. */
    do {
        look_up(worker);
    } while (!atomic_load_explicit(&worker->run->stop, memory_order_relaxed));
    while (worker->ring_from != worker->ring_at)
        ring_drop_oldest(worker);
    return NULL;
}

/* ---- the run ------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted;

static void interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

/* A second Ctrl-C ends the program as usual. */
static void catch_interrupts(void)
{
    struct sigaction action = {.sa_handler = interrupt, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

struct totals {
    uint64_t lookups, hits, failed, loads, bytes, deaths, callbacks, alive, mismatches;
};

static struct totals add_up(struct run *run, struct worker *workers, unsigned n_workers)
{
    struct totals totals = {0};
    for (unsigned i = 0; i < n_workers; i++) {
        totals.lookups += tally_get(&workers[i].lookups);
        totals.hits += tally_get(&workers[i].hits);
        totals.failed += tally_get(&workers[i].failed);
    }
    totals.deaths = tally_get(&run->tally.deaths); /* before the loads: while all runs, never above them */
    totals.loads = tally_get(&run->tally.loads);
    totals.bytes = tally_get(&run->tally.bytes);
    totals.callbacks = tally_get(&run->tally.callbacks);
    totals.mismatches = tally_get(&run->tally.mismatches);
    totals.alive = totals.loads - totals.deaths;
    return totals;
}

static double percent(uint64_t part, uint64_t whole)
{
    return whole == 0 ? 0 : 100 * (double)part / (double)whole;
}

static void show_progress(double elapsed, const struct cache_options *options, const struct totals *totals)
{
    printf("\r%5.1f of %s   %s look-ups   %.1f %% hits   %s alive   ", elapsed, as_seconds(options->seconds).text,
           with_commas(totals->lookups).text, percent(totals->hits, totals->lookups), with_commas(totals->alive).text);
    fflush(stdout);
}

/* Returns how long it was, in seconds. */
static double wait_for_the_end(struct run *run, struct worker *workers, const struct cache_options *options)
{
    const double tick = 0.1;
    bool terminal = isatty(STDOUT_FILENO);
    double start = now();
    for (;;) {
        double left = options->seconds - (now() - start);
        if (left <= 0 || interrupted)
            break;
        double pause = left < tick ? left : tick;
        nanosleep(&(struct timespec){.tv_nsec = (long)(pause * 1e9)}, NULL);
        if (terminal) {
            struct totals totals = add_up(run, workers, options->n_threads);
            show_progress(now() - start, options, &totals);
        }
    }
    if (terminal)
        printf("\r%79s\r", "");
    return now() - start;
}

/* Starts the workers, lets them work, joins them. Returns 0 or EXIT_CANNOT. */
static int run_workers(struct run *run, struct worker *workers, const struct cache_options *options, double *elapsed)
{
    unsigned started = 0;
    int error = 0;
    while (started < options->n_threads && error == 0) {
        struct worker *worker = &workers[started];
        worker->run = run;
        worker->random = options->seed + started * UINT64_C(0xd1342543de82ef95);
        error = pthread_create(&worker->thread, NULL, work, worker);
        if (error == 0)
            started++;
    }
    if (error == 0)
        *elapsed = wait_for_the_end(run, workers, options);
    /* Relaxed: a flag that hands nothing over; the join does. */
    atomic_store_explicit(&run->stop, true, memory_order_relaxed);
    for (unsigned i = 0; i < started; i++)
        pthread_join(workers[i].thread, NULL);
    if (error != 0)
        return complain("cannot start thread %u of %u: %s; try fewer with --threads N", started + 1, options->n_threads,
                        strerror(error));
    return 0;
}

/* The seed decides which files are wanted most. */
static void shuffle(struct run *run, const struct files *files, uint64_t seed)
{
    for (size_t i = 0; i < files->n_paths; i++)
        run->paths[i] = files->paths[i];
    for (size_t i = files->n_paths; i > 1; i--) {
        size_t j = (size_t)(next_random(&seed) % i);
        const char *path = run->paths[i - 1];
        run->paths[i - 1] = run->paths[j];
        run->paths[j] = path;
    }
}

/* ---- what it came to ----------------------------------------------------------------------------------- */

static void print_header(const struct files *files, const char *dir, const struct cache_options *options)
{
    printf("A weak cache of the files in '%s'\n\n", dir);
    printf("  %s%s, %s", files->cut ? "the first " : "", count_of(files->n_paths, "file").text,
           as_bytes(files->bytes).text);
    if (files->n_too_big + files->n_links > 0)
        printf("\n  left out: %s above 4 MiB, %s links or special files", with_commas(files->n_too_big).text,
               with_commas(files->n_links).text);
    printf("\n  %s for %s, --seed %" PRIu64 "\n\n", count_of(options->n_threads, "thread").text,
           as_seconds(options->seconds).text, options->seed);
    fflush(stdout);
}

static void print_row(const char *name, uint64_t n, const char *remark)
{
    printf("  %-18s %14s%s%s\n", name, with_commas(n).text, *remark == '\0' ? "" : "   ", remark);
}

static void print_table(const struct totals *totals, double elapsed)
{
    char remark[80];
    snprintf(remark, sizeof remark, "%s a second", with_commas((uint64_t)((double)totals->lookups / elapsed)).text);
    print_row("look-ups", totals->lookups, remark);
    snprintf(remark, sizeof remark, "%.1f %%: somebody held the file", percent(totals->hits, totals->lookups));
    print_row("hits", totals->hits, remark);
    snprintf(remark, sizeof remark, "nobody did: %s read", as_bytes(totals->bytes).text);
    print_row("loads", totals->loads, remark);
    if (totals->failed > 0)
        print_row("failed look-ups", totals->failed, "the file could not be read");
    print_row("deaths", totals->deaths, "destroyed by whoever let go last");
    print_row("callbacks", totals->callbacks, "run on the queue's own thread");
    print_row("still alive", totals->alive, "");
    print_row("wrong checksums", totals->mismatches, "");
}

/* Says what does not hold; nothing if all does. Returns whether it does. */
static bool print_verdict(const struct totals *totals, size_t entries, const struct wr_queue_stats *queue)
{
    bool holds = totals->loads == totals->deaths && totals->deaths == totals->callbacks;
    bool sums = totals->lookups == totals->hits + totals->loads + totals->failed;
    bool conserved = queue->watched == queue->delivered && queue->watched == totals->loads;
    bool all = holds && sums && conserved && entries == 0 && totals->mismatches == 0;

    printf("\nloads == deaths == callbacks, 0 alive: %s\n", all ? "holds" : "DOES NOT HOLD");
    if (!holds)
        printf("  %s loads, %s deaths, %s callbacks\n", with_commas(totals->loads).text,
               with_commas(totals->deaths).text, with_commas(totals->callbacks).text);
    if (entries != 0)
        printf("  %s left in the dictionary\n", count_of(entries, "dead file").text);
    if (!sums)
        printf("  look-ups are not hits + loads + failed\n");
    if (!conserved)
        printf("  the queue counts %s watched, %s delivered\n", with_commas(queue->watched).text,
               with_commas(queue->delivered).text);
    if (totals->mismatches != 0)
        printf("  bytes of a file changed while it was held\n");
    return all;
}

/* Returns 0, EXIT_VERDICT or EXIT_CANNOT. */
static int sum_up(struct run *run, struct worker *workers, const struct cache_options *options, double elapsed)
{
    /* What the workers deferred, then the callbacks that came of it. */
    wr_barrier();
    wr_queue_barrier(run->queue);

    struct totals totals = add_up(run, workers, options->n_threads);
    struct wr_queue_stats queue;
    wr_queue_stats(run->queue, &queue);
    if (interrupted)
        printf("  interrupted after %s\n\n", as_seconds(elapsed).text);
    print_table(&totals, elapsed);
    bool holds = print_verdict(&totals, wr_value_dict_len(run->dict), &queue);
    if (run->failed != NULL)
        printf("  first failed look-up: '%s': %s\n", run->failed, strerror(run->error));
    if (totals.loads == 0)
        return complain("nothing could be loaded; name a folder whose files stay: wr-demo DIR");
    return holds ? 0 : EXIT_VERDICT;
}

static unsigned bits_for(size_t n)
{
    unsigned bits = 0;
    while (((size_t)1 << bits) < n)
        bits++;
    return bits;
}

int cache_run(const struct files *files, const char *dir, const struct cache_options *options)
{
    struct run run = {
        .dict = need(wr_value_dict_new(NULL)),
        .queue = need(wr_queue_new("wr-demo")),
        .root = files->root,
        .paths = need(calloc(files->n_paths, sizeof *run.paths)),
        .n_paths = files->n_paths,
        .n_bits = bits_for(files->n_paths),
        .keep_one = options->keep_one,
        .lock = PTHREAD_MUTEX_INITIALIZER,
    };
    size_t workers_size = options->n_threads * sizeof(struct worker);
    struct worker *workers = need(aligned_alloc(alignof(struct worker), workers_size));
    memset(workers, 0, workers_size);
    shuffle(&run, files, options->seed);

    int status;
    int error = wr_queue_start(run.queue, 1);
    if (error != 0) {
        status = complain("cannot start a thread for the callbacks: %s", strerror(-error));
    } else {
        double elapsed = 0;
        catch_interrupts();
        print_header(files, dir, options);
        status = run_workers(&run, workers, options, &elapsed);
        if (status == 0)
            status = sum_up(&run, workers, options, elapsed);
    }

    wr_release(run.kept);
    wr_queue_free(run.queue); /* delivers what is pending */
    wr_value_dict_free(run.dict);
    free(workers);
    free(run.paths);
    return status;
}
