/* wr-demo: what weak references are for, first step by step, then at work on real files. */
#include "cache.h"
#include "files.h"
#include "text.h"
#include "tutorial.h"

#include <weakref/version.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS 256
#define MAX_SECONDS 86400.0

struct options {
    struct cache_options cache;
    const char *dir;
    bool tutorial, files;
};

/* clang-format off */
static const char usage[] =
    "usage: wr-demo [--threads N] [--seconds S] [--seed X] [--tutorial | --files] [DIR]\n"
    "\n"
    "First the three programs of a weak reference tutorial; then a weak cache at work:\n"
    "threads ask for the files of DIR (default: the current folder) through one weak\n"
    "dictionary, hold each a moment and let go. At the end as many files must have died,\n"
    "and as many death callbacks have run, as files were loaded, and none be alive.\n"
    "\n"
    "  -t, --threads N   1 to 256 worker threads (default: one per processor)\n"
    "  -s, --seconds S   how long they ask, 0.01 to 86400 (default: 3)\n"
    "  -x, --seed X      of the random order, decimal or 0x... (default: a new one, printed)\n"
    "      --tutorial    the tutorial alone\n"
    "      --files       the cache alone\n"
    "      --keep-one    never let go of one file: shows how the verdict fails\n"
    "  -h, --help        this text\n"
    "  -V, --version     the version\n"
    "\n"
    "Folders below DIR are included, symbolic links and files above 4 MiB left out, and\n"
    "the walk ends at 20,000 files. Ctrl-C ends the run early, with table and verdict.\n"
    "Exits 0: the verdict holds, 1: it does not, 2: wrong usage, or DIR cannot be used.\n";
/* clang-format on */

/* Returns 0 or EXIT_CANNOT after a message, as the following. */
static int parse_threads(const char *text, unsigned *n_threads)
{
    char *end;
    errno = 0;
    long n = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || n < 1 || n > MAX_THREADS)
        return complain("--threads takes a whole number from 1 to %d, not '%s'", MAX_THREADS, text);
    *n_threads = (unsigned)n;
    return 0;
}

static int parse_seconds(const char *text, double *seconds)
{
    char *end;
    double s = strtod(text, &end);
    if (end == text || *end != '\0' || !(s >= 0.01 && s <= MAX_SECONDS))
        return complain("--seconds takes a number from 0.01 to %.0f, not '%s'", MAX_SECONDS, text);
    *seconds = s;
    return 0;
}

static int parse_seed(const char *text, uint64_t *seed)
{
    char *end;
    errno = 0;
    *seed = strtoull(text, &end, 0);
    if (errno != 0 || end == text || *end != '\0' || strchr(text, '-') != NULL)
        return complain("--seed takes a whole number below 2^64, not '%s'", text);
    return 0;
}

static struct options default_options(void)
{
    long n_cores = sysconf(_SC_NPROCESSORS_ONLN);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (struct options){
        .cache =
            {
                .n_threads = n_cores < 1             ? 1
                             : n_cores > MAX_THREADS ? MAX_THREADS
                                                     : (unsigned)n_cores,
                .seconds = 3,
                .seed = ((uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000) & 0xffffffff,
            },
        .dir = ".",
        .tutorial = true,
        .files = true,
    };
}

/* Returns -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct options *options)
{
    enum { TUTORIAL = 256, FILES, KEEP_ONE };
    static const struct option long_options[] = {
        {"threads", required_argument, NULL, 't'},
        {"seconds", required_argument, NULL, 's'},
        {"seed", required_argument, NULL, 'x'},
        {"tutorial", no_argument, NULL, TUTORIAL},
        {"files", no_argument, NULL, FILES},
        {"keep-one", no_argument, NULL, KEEP_ONE},
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},
        {NULL, 0, NULL, 0},
    };

    opterr = 0;
    int status = 0;
    while (status == 0) {
        int option = getopt_long(argc, argv, ":t:s:x:hV", long_options, NULL);
        if (option == -1)
            break;
        switch (option) {
        case 't':
            status = parse_threads(optarg, &options->cache.n_threads);
            break;
        case 's':
            status = parse_seconds(optarg, &options->cache.seconds);
            break;
        case 'x':
            status = parse_seed(optarg, &options->cache.seed);
            break;
        case TUTORIAL:
            options->files = false;
            break;
        case FILES:
            options->tutorial = false;
            break;
        case KEEP_ONE:
            options->cache.keep_one = true;
            break;
        case 'h':
            fputs(usage, stdout);
            return 0;
        case 'V':
            puts("wr-demo " WR_VERSION);
            return 0;
        case ':':
            return complain("%s wants a value; see wr-demo --help", argv[optind - 1]);
        default:
            return complain("there is no option %s; see wr-demo --help", argv[optind - 1]);
        }
    }
    if (status != 0)
        return status;
    if (!options->tutorial && !options->files)
        return complain("--tutorial and --files exclude each other; leave both out for both parts");
    if (argc - optind > 1)
        return complain("only one folder, please: '%s' is the second; see wr-demo --help", argv[optind + 1]);
    if (argc > optind && !options->files)
        return complain("--tutorial reads no files: leave '%s' out", argv[optind]);
    if (argc > optind)
        options->dir = argv[optind];
    return -1;
}

static int run(const struct options *options)
{
    /* The folder comes first: what is wrong with it should not be said after a page of tutorial. */
    struct files files = {.root = -1};
    int status = options->files ? files_walk(&files, options->dir) : 0;
    if (status == 0 && options->tutorial) {
        tutorial_run();
        if (options->files)
            putchar('\n');
    }
    if (status == 0 && options->files)
        status = cache_run(&files, options->dir, &options->cache);
    files_free(&files);
    return status;
}

int main(int argc, char **argv)
{
    struct options options = default_options();
    int status = parse(argc, argv, &options);
    if (status == -1)
        status = run(&options);
    if ((fflush(stdout) != 0 || ferror(stdout)) && status == 0)
        status = complain("cannot write to standard output: %s", strerror(errno));
    return status;
}
