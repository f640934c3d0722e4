/* A weak cache at work: threads ask one weak dictionary for files, hold them a moment, let go. */
#ifndef WR_DEMO_CACHE_H
#define WR_DEMO_CACHE_H

#include "files.h"

#include <stdbool.h>
#include <stdint.h>

struct cache_options {
    unsigned n_threads;
    double seconds;
    uint64_t seed;
    bool keep_one; /* one worker keeps its first file to the end: the verdict must fail */
};

/* Prints a progress line on a terminal, then a table and the verdict. Returns 0: it holds, EXIT_VERDICT: it does not,
 * EXIT_CANNOT after a message: the run could not be made. @dir: as the user named it, for messages. */
int cache_run(const struct files *files, const char *dir, const struct cache_options *options);

#endif
