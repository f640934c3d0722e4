/* A file in memory as a counted object: its bytes and their checksum. */
#include "file_object.h"

#include "files.h"

#include <weakref/weakref.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Eight bytes a step, so that it can be verified at each look-up. Any changed byte changes it. */
static uint64_t checksum(const unsigned char *bytes, size_t size)
{
    uint64_t sum = size ^ UINT64_C(0x9e3779b97f4a7c15);
    while (size > 0) {
        uint64_t word = 0;
        size_t step = size < sizeof word ? size : sizeof word;
        memcpy(&word, bytes, step);
        sum = (sum ^ word) * UINT64_C(0xff51afd7ed558ccd);
        sum ^= sum >> 32;
        bytes += step;
        size -= step;
    }
    return sum;
}

static void file_destroy(void *obj)
{
    struct file *file = obj;
    if (file->tally != NULL) {
        file_verify(file);
        tally_add(&file->tally->deaths, 1);
        /* So that a use after death cannot find what it expects. */
        memset(file->bytes, 0xdd, file->size);
    }
    free(file->bytes);
}

static const wr_type file_type = {
    .name = "file",
    .size = sizeof(struct file),
    .destroy = file_destroy,
};

static void count_death(wr_weak *dead, void *ctx)
{
    struct tally *tally = ctx;
    if (wr_weak_is_dead(dead))
        tally_add(&tally->callbacks, 1);
}

/* As many bytes as the file had when it was opened, or fewer if it shrinks meanwhile. Returns 0 or a negative errno. */
static int read_all(int fd, struct file *file)
{
    struct stat info;
    if (fstat(fd, &info) != 0)
        return -errno;
    if (!S_ISREG(info.st_mode))
        return -EINVAL;
    if ((uint64_t)info.st_size > FILES_MAX_SIZE)
        return -EFBIG;
    size_t size = (size_t)info.st_size;
    file->bytes = malloc(size > 0 ? size : 1);
    if (file->bytes == NULL)
        return -ENOMEM;
    while (file->size < size) {
        ssize_t got = read(fd, file->bytes + file->size, size - file->size);
        if (got == 0)
            break;
        if (got > 0)
            file->size += (size_t)got;
        else if (errno != EINTR)
            return -errno;
    }
    return 0;
}

static int file_fill(struct file *file, int root, const char *path)
{
    int fd = openat(root, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int status = read_all(fd, file);
    close(fd);
    file->checksum = checksum(file->bytes, file->size);
    return status;
}

int file_load(int root, const char *path, struct tally *tally, wr_queue *queue, struct file **out)
{
    struct file *file = wr_new(&file_type);
    if (file == NULL)
        return -errno;
    int status = file_fill(file, root, path);
    if (status == 0)
        status = wr_on_death(file, queue, count_death, tally);
    if (status != 0) {
        wr_release(file);
        return status;
    }
    file->tally = tally;
    tally_add(&tally->loads, 1);
    tally_add(&tally->bytes, file->size);
    *out = file;
    return 0;
}

bool file_verify(const struct file *file)
{
    bool same = checksum(file->bytes, file->size) == file->checksum;
    if (!same)
        tally_add(&file->tally->mismatches, 1);
    return same;
}
