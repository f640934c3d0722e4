/* The real thing: a cache in a cgroup with little memory, and a file that is read again and again and does not fit beside it.
 *
 * A child goes into a cgroup of its own, with pressure stall information, and under a limit of memory: the same cgroup's, or, where
 * memory belongs to version 1, one there. What it reads pushes the kernel to the limit; the kernel says that tasks stall,
 * and the cache is trimmed, until file and cache fit. Exits 77 where the machine does not allow any of that. */
#include <weakref/weakref.h>

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    MIB = 1 << 20,
    LIMIT = 96 * MIB,
    BLOCK = MIB / 4,
    BLOCKS = 256, /* 64 MiB, of which most have to go */
    FILE_SIZE = 80 * MIB,
    SECONDS = 60,
    SKIPPED = 77
};

static char psi[256], limit[256]; /* the two cgroups; "" or the same */
static char file_path[] = "/var/tmp/weakref_pressure.XXXXXX";

static void skip(const char *why)
{
    printf("skipped: %s: %s\n", why, strerror(errno));
    fflush(stdout);
}

static bool write_text(const char *folder, const char *name, const char *text)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool good = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0)
        close(fd);
    return good;
}

static bool exists(const char *folder, const char *name)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return access(path, F_OK) == 0;
}

static bool make(char *path, size_t size, const char *folder)
{
    snprintf(path, size, "%s/weakref-test-%ld", folder, (long)getpid());
    if (mkdir(path, 0755) == 0)
        return true;
    path[0] = '\0';
    return false;
}

/* Both cgroups, with the limit. */
static bool make_cgroups(void)
{
    static const char *const v2[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};
    char bytes[32];
    snprintf(bytes, sizeof bytes, "%d", LIMIT);
    for (size_t i = 0; i < 2 && psi[0] == '\0'; i++)
        if (exists(v2[i], "cgroup.controllers"))
            (void)make(psi, sizeof psi, v2[i]);
    if (psi[0] == '\0' || !exists(psi, "memory.pressure"))
        return false;
    if (write_text(psi, "memory.max", bytes)) {
        (void)write_text(psi, "memory.swap.max", "0");
        return true;
    }
    return make(limit, sizeof limit, "/sys/fs/cgroup/memory") && write_text(limit, "memory.limit_in_bytes", bytes);
}

static bool make_file(void)
{
    static char block[MIB];
    int fd = mkstemp(file_path);
    if (fd < 0)
        return false;
    struct statfs fs;
    bool good = fstatfs(fd, &fs) == 0 && fs.f_type != 0x01021994; /* tmpfs: would be the memory itself */
    for (int i = 0; good && i < FILE_SIZE / MIB; i++) {
        memset(block, i + 1, sizeof block);
        good = write(fd, block, sizeof block) == (ssize_t)sizeof block;
    }
    good = good && fsync(fd) == 0;
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
    return good;
}

static atomic_ulong n_destroyed;

static void block_destroy(void *ptr)
{
    munmap(ptr, BLOCK);
    atomic_fetch_add(&n_destroyed, 1);
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* In the cgroups. */
static int child(void)
{
    if (!write_text(psi, "cgroup.procs", "0") || (limit[0] != '\0' && !write_text(limit, "cgroup.procs", "0"))) {
        skip("cannot move into the cgroup");
        return SKIPPED;
    }
    /* By itself, or where it does not see that cgroup, as somebody tells it. */
    char path[300];
    snprintf(path, sizeof path, "%s/memory.pressure", psi);
    struct wr_pressure_options options = {
        .struct_size = sizeof options, .path = getenv("PRESSURE_BY_PATH") != NULL ? path : NULL, .stall_ms = 20};
    unsetenv("MEMORY_PRESSURE_WATCH");
    int err = wr_pressure_start_with(NULL, &options);
    if (err != 0) {
        errno = -err;
        skip("no pressure stall information");
        return SKIPPED;
    }
    struct wr_value_dict_options keep = {.struct_size = sizeof keep, .keep_objects = BLOCKS};
    wr_value_dict *cache = wr_value_dict_new(&keep);
    for (uint64_t i = 0; i < BLOCKS; i++) {
        void *memory = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            return 1;
        memset(memory, 1, BLOCK);
        wr_box *box = wr_box_new(memory, block_destroy);
        if (box == NULL || wr_value_dict_set_u64(cache, i, box) != 0)
            return 1;
        wr_release(box);
    }

    int fd = open(file_path, O_RDONLY | O_CLOEXEC);
    const unsigned char *file = mmap(NULL, FILE_SIZE, PROT_READ, MAP_SHARED, fd, 0);
    if (fd < 0 || file == MAP_FAILED)
        return 1;
    double begin = seconds(), first = 0;
    unsigned long sum = 0, passes = 0;
    while (wr_value_dict_kept(cache, NULL) > BLOCKS / 2) {
        for (size_t at = 0; at < FILE_SIZE; at += 4096)
            sum += file[at];
        passes++;
        if (first == 0 && atomic_load(&n_destroyed) > 0)
            first = seconds() - begin;
        if (seconds() - begin > SECONDS)
            break;
    }
    printf("%zu of %d blocks kept, %lu destroyed; %lu passes over the file (%lu), first trim after %.1f s of %.1f s\n",
           wr_value_dict_kept(cache, NULL), BLOCKS, atomic_load(&n_destroyed), passes, sum, first, seconds() - begin);
    bool good = atomic_load(&n_destroyed) > 0;
    wr_value_dict_free(cache);
    if (wr_pressure_stop() != 0 || wr_shutdown(60000) != 0 || atomic_load(&n_destroyed) != BLOCKS)
        good = false;
    return good ? 0 : 1;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1 /* they take more memory than there is */
#else
#define SANITIZED 0
#endif

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    int result = SKIPPED;
    if (SANITIZED) {
        skip("a sanitizer's build");
    } else if (!make_cgroups()) {
        skip("no cgroup with pressure and a limit");
    } else if (!make_file()) {
        skip("no file on a disk");
    } else {
        pid_t pid = fork();
        if (pid == 0)
            _exit(child());
        int status = 0;
        while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
        result = pid > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : 1;
        if (pid > 0 && WIFSIGNALED(status))
            printf("the child was ended by signal %d\n", WTERMSIG(status));
    }
    (void)unlink(file_path);
    if (limit[0] != '\0')
        (void)rmdir(limit);
    if (psi[0] != '\0')
        (void)rmdir(psi);
    return result;
}
