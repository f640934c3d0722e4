/* A file in memory as a counted object: its bytes and their checksum. */
#ifndef WR_DEMO_FILE_OBJECT_H
#define WR_DEMO_FILE_OBJECT_H

#include <weakref/queue.h>

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* What happened to all files of a run. Counts alone: they order nothing, so every access is relaxed; they are exact once
 * the threads that count are joined and the queue is past a barrier. */
struct tally {
    atomic_ullong loads;
    atomic_ullong bytes;
    atomic_ullong deaths;     /* by destroy */
    atomic_ullong callbacks;  /* by wr_on_death() */
    atomic_ullong mismatches; /* checksums that no longer were those of the bytes */
};

static inline uint64_t tally_get(const atomic_ullong *count)
{
    return atomic_load_explicit(count, memory_order_relaxed);
}

static inline void tally_add(atomic_ullong *count, uint64_t n)
{
    atomic_fetch_add_explicit(count, n, memory_order_relaxed);
}

struct file {
    unsigned char *bytes;
    size_t size;
    uint64_t checksum;
    struct tally *tally; /* NULL until the file is complete */
};

/* Reads the file @path of the folder @root. Returns 0 with *@file [owned], or a negative errno. Its death will be
 * counted in @tally twice: by destroy, and by a callback on @queue. */
int file_load(int root, const char *path, struct tally *tally, wr_queue *queue, struct file **file);

/* Whether the bytes still have the checksum that they were read with; counts it if not. */
bool file_verify(const struct file *file);

#endif
