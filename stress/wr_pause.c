/* wr-pause: how long single calls take while a value dictionary grows to millions of entries beside its readers, and what memory
 * is left when all have died.
 *
 * The writer times each insert twice: on the wall, and in time of its own processor. An insert that is long on the wall and
 * short on the processor was not held up by the library but taken off its processor, or waited for a lock whose holder was; the
 * longest ones are shown with the thread's context switches and page faults. For figures of the library's own:
 *
 *     chrt -r 50 wr-pause
 */
#include <getopt.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <weakref/weakref.h>

#include "histogram.h"

static const char usage[] = "usage: wr-pause [--entries N] [--readers R] [--limit-us U]\n"
                            "\n"
                            "  --entries N   how many are inserted (default 10000000)\n"
                            "  --readers R   threads that look up meanwhile (default 2)\n"
                            "  --limit-us U  inserts that take longer are shown one by one (default 1000)\n"
                            "\n"
                            "Exits 0 whatever the figures, 1 if a look-up missed a key, 2 for bad options.\n";

enum { SHOWN_MOST = 40 };

static struct {
    size_t n_entries;
    unsigned n_readers;
    uint64_t limit_ns;
} options = {10000000, 2, 1000000};

static const wr_type type = {.name = "entry", .size = sizeof(uint64_t)};

static wr_value_dict *dict;
static _Atomic size_t n_there; /* keys below are in the dictionary */
static atomic_bool over;
static _Atomic uint64_t n_looks, n_missed;

struct times {
    wr_histogram wall, cpu;
};
static struct times inserts, deaths;

/* A long one. */
static struct pause {
    size_t at;
    uint64_t wall, cpu;
    long switches, faults;
} shown[SHOWN_MOST];
static size_t n_long;

static uint64_t clock_of(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- readers ---------------------------------------------------------------------------------------------------- */

static void *read_on(void *arg)
{
    uint64_t random = (uint64_t)(uintptr_t)arg, looks = 0, missed = 0;
    while (!atomic_load_explicit(&over, memory_order_relaxed)) {
        size_t n = atomic_load_explicit(&n_there, memory_order_acquire);
        if (n == 0)
            continue;
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        uint64_t key = (random >> 16) % n;
        uint64_t *obj = wr_value_dict_get_u64(dict, key);
        looks++;
        missed += obj == NULL || *obj != key;
        wr_release(obj);
    }
    atomic_fetch_add(&n_looks, looks);
    atomic_fetch_add(&n_missed, missed);
    return NULL;
}

/* ---- figures ------------------------------------------------------------------------------------------------------ */

static double mib(double bytes)
{
    return bytes / (1024 * 1024);
}

static void show_memory(const char *when)
{
    long pages = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file != NULL) {
        if (fscanf(file, "%ld %ld", &pages, &resident) != 2)
            resident = 0;
        fclose(file);
    }
    printf("%-34s resident %8.1f MiB", when, mib((double)resident * (double)sysconf(_SC_PAGESIZE)));
#ifdef __GLIBC__
    struct mallinfo2 info = mallinfo2();
    printf(", malloc: in use %8.1f MiB, free %8.1f MiB", mib((double)info.uordblks + (double)info.hblkhd),
           mib((double)info.fordblks));
#endif
    printf(", entries %zu\n", wr_value_dict_len(dict));
    fflush(stdout);
}

static void show_spread(const char *what, const wr_histogram *h)
{
    printf("%-22s median %6llu  p99 %6llu  p99.9 %7llu  p99.99 %8llu  p99.999 %8llu  max %10llu ns\n", what,
           (unsigned long long)wr_histogram_quantile(h, 0.5), (unsigned long long)wr_histogram_quantile(h, 0.99),
           (unsigned long long)wr_histogram_quantile(h, 0.999), (unsigned long long)wr_histogram_quantile(h, 0.9999),
           (unsigned long long)wr_histogram_quantile(h, 0.99999), (unsigned long long)wr_histogram_max(h));
}

/* By powers of two. */
static void show_histogram(const struct times *t)
{
    printf("%14s %12s %12s\n", "up to, ns", "wall", "processor");
    for (unsigned power = 5; power < 40; power++) {
        uint64_t wall = 0, cpu = 0;
        for (unsigned cell = 0; cell < 4; cell++) {
            wall += wr_atomic_load_relaxed(&t->wall.cells[(power - 1) * 4 + cell]); /* relaxed: nobody adds */
            cpu += wr_atomic_load_relaxed(&t->cpu.cells[(power - 1) * 4 + cell]);   /* relaxed: as above */
        }
        if (wall + cpu > 0)
            printf("%14llu %12llu %12llu\n", (UINT64_C(2) << power) - 1ull, (unsigned long long)wall,
                   (unsigned long long)cpu);
    }
}

/* ---- the writer ------------------------------------------------------------------------------------------------------ */

static void note_long(size_t at, uint64_t wall, uint64_t cpu, struct rusage *before)
{
    struct rusage now;
    getrusage(RUSAGE_THREAD, &now);
    if (n_long++ < SHOWN_MOST)
        shown[n_long - 1] =
            (struct pause){at, wall, cpu, now.ru_nivcsw + now.ru_nvcsw - before->ru_nivcsw - before->ru_nvcsw,
                           now.ru_minflt - before->ru_minflt};
}

static bool fill(void **all)
{
    struct rusage before = {0};
    for (size_t i = 0; i < options.n_entries; i++) {
        uint64_t key = i, *obj = wr_new(&type);
        if (obj == NULL)
            return false;
        *obj = key;
        all[i] = obj;
        if (i % 64 == 0)
            getrusage(RUSAGE_THREAD, &before);
        uint64_t cpu = clock_of(CLOCK_THREAD_CPUTIME_ID), wall = clock_of(CLOCK_MONOTONIC);
        int err = wr_value_dict_set_u64(dict, key, obj);
        wall = clock_of(CLOCK_MONOTONIC) - wall;
        cpu = clock_of(CLOCK_THREAD_CPUTIME_ID) - cpu;
        if (err != 0)
            return false;
        wr_histogram_add(&inserts.wall, wall);
        wr_histogram_add(&inserts.cpu, cpu);
        if (wall > options.limit_ns)
            note_long(i, wall, cpu, &before);
        atomic_store_explicit(&n_there, i + 1, memory_order_release);
    }
    return true;
}

static void let_die(void **all)
{
    for (size_t i = 0; i < options.n_entries; i++) {
        uint64_t cpu = clock_of(CLOCK_THREAD_CPUTIME_ID), wall = clock_of(CLOCK_MONOTONIC);
        wr_release(all[i]);
        wr_histogram_add(&deaths.wall, clock_of(CLOCK_MONOTONIC) - wall);
        wr_histogram_add(&deaths.cpu, clock_of(CLOCK_THREAD_CPUTIME_ID) - cpu);
    }
}

static void show_long(void)
{
    printf("%zu inserts longer than %llu us on the wall\n", n_long, (unsigned long long)options.limit_ns / 1000);
    for (size_t i = 0; i < n_long && i < SHOWN_MOST; i++)
        printf(
            "  entry %9zu: wall %9.1f us, processor %9.1f us; since at most 64 inserts before: %ld context switches, %ld page faults\n",
            shown[i].at, (double)shown[i].wall / 1e3, (double)shown[i].cpu / 1e3, shown[i].switches, shown[i].faults);
}

static unsigned long parse(const char *option, const char *text, unsigned long most)
{
    char *end;
    unsigned long n = strtoul(text, &end, 0);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || n > most) {
        fprintf(stderr, "wr-pause: --%s wants a number up to %lu, not '%s'\n", option, most, text);
        exit(2);
    }
    return n;
}

int main(int argc, char **argv)
{
    static const struct option longs[] = {{"entries", required_argument, NULL, 'e'},
                                          {"readers", required_argument, NULL, 'r'},
                                          {"limit-us", required_argument, NULL, 'l'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    for (int c; (c = getopt_long(argc, argv, "h", longs, NULL)) != -1;) {
        if (c == 'e')
            options.n_entries = parse("entries", optarg, 1000000000);
        else if (c == 'r')
            options.n_readers = (unsigned)parse("readers", optarg, 4096);
        else if (c == 'l')
            options.limit_ns = parse("limit-us", optarg, 1000000000) * 1000;
        else
            return fputs(usage, c == 'h' ? stdout : stderr), c == 'h' ? 0 : 2;
    }
    if (optind < argc) {
        fprintf(stderr, "wr-pause: what is '%s'?\n%s", argv[optind], usage);
        return 2;
    }
    void **all = calloc(options.n_entries + 1, sizeof *all);
    pthread_t *readers = calloc(options.n_readers + 1, sizeof *readers);
    dict = wr_value_dict_new(NULL);
    if (all == NULL || readers == NULL || dict == NULL) {
        perror("wr-pause");
        return 2;
    }
    memset(all, 1, (options.n_entries + 1) * sizeof *all); /* its pages are not the dictionary's matter */
    show_memory("at the beginning");
    for (uintptr_t i = 0; i < options.n_readers; i++)
        if (pthread_create(&readers[i], NULL, read_on, (void *)(i + 1)) != 0) {
            perror("wr-pause: pthread_create");
            return 2;
        }
    uint64_t began = clock_of(CLOCK_MONOTONIC);
    if (!fill(all)) {
        perror("wr-pause: an insert failed");
        return 2;
    }
    printf("%zu inserts in %.1f s, beside %u readers\n", options.n_entries,
           (double)(clock_of(CLOCK_MONOTONIC) - began) / 1e9, options.n_readers);
    atomic_store(&over, true);
    for (unsigned i = 0; i < options.n_readers; i++)
        pthread_join(readers[i], NULL);
    show_spread("insert, wall", &inserts.wall);
    show_spread("insert, processor", &inserts.cpu);
    show_histogram(&inserts);
    show_long();
    printf("%llu look-ups, %llu missed\n", (unsigned long long)atomic_load(&n_looks),
           (unsigned long long)atomic_load(&n_missed));
    show_memory("with all entries");
    let_die(all);
    show_spread("death, wall", &deaths.wall);
    show_spread("death, processor", &deaths.cpu);
    show_memory("all dead");
    (void)wr_barrier();
    show_memory("after wr_barrier()");
#ifdef __GLIBC__
    malloc_trim(0);
    show_memory("after malloc_trim()");
#endif
    wr_value_dict_free(dict);
    free(all);
    free(readers);
    return atomic_load(&n_missed) == 0 ? 0 : 1;
}
