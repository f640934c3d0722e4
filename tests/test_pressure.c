/* Pressure: dictionaries are trimmed on the queue when the kernel, or who stands in for it, says that memory is short.
 *
 * A FIFO stands in for pressure stall information, as the protocol allows; a plain file for memory.events, since what is
 * heard of there is its being written to. pressure_cgroup.c has the real ones. */
#include <criterion/criterion.h>

#include "deaths.h"
#include "expect.h"
#include "fail_alloc.h"
#include "keep.h"

#include <weakref/weakref.h>

#include <fcntl.h>
#include <sys/stat.h>

/* ---- helpers ---------------------------------------------------------------------------------------------- */

static char directory[] = "/tmp/test_pressure.XXXXXX", fifo[64], counts[64];
static int fifo_fd = -1;

static void write_counts(unsigned long long n)
{
    FILE *file = fopen(counts, "r+e");
    if (file == NULL)
        file = fopen(counts, "we");
    cr_assert_not_null(file);
    fprintf(file, "low 7\nhigh %llu\nmax %llu\noom 0\noom_kill 0\n", n, n);
    fclose(file);
}

static void setup(void)
{
    cr_assert_not_null(mkdtemp(directory));
    snprintf(fifo, sizeof fifo, "%s/memory.pressure", directory);
    snprintf(counts, sizeof counts, "%s/memory.events", directory);
    cr_assert_eq(mkfifo(fifo, 0600), 0);
    write_counts(1);
    fifo_fd = open(fifo, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    cr_assert_geq(fifo_fd, 0);
}

static void teardown(void)
{
    close(fifo_fd);
    unlink(fifo);
    unlink(counts);
    rmdir(directory);
}

TestSuite(pressure, .init = setup, .fini = teardown);

static void press(void)
{
    cr_assert_eq(write(fifo_fd, "!", 1), 1);
}

static struct wr_pressure_options options_of(unsigned percent)
{
    return (struct wr_pressure_options){
        .struct_size = sizeof(struct wr_pressure_options), .path = fifo, .percent = percent, .window_ms = 1};
}

static void start(wr_queue *queue, unsigned percent)
{
    struct wr_pressure_options options = options_of(percent);
    cr_assert_eq(wr_pressure_start_with(queue, &options), 0);
}

/* @n things that nobody but the dictionary holds. */
static wr_value_dict *filled(uint64_t n, const wr_type *type)
{
    struct wr_value_dict_options options = {.struct_size = sizeof options, .initial_size = 64, .keep_objects = 1000};
    wr_value_dict *d = wr_value_dict_new(&options);
    cr_assert_not_null(d);
    for (uint64_t key = 0; key < n; key++) {
        void *obj = wr_new(type);
        cr_assert_eq(wr_value_dict_set_u64(d, key, obj), 0);
        wr_release(obj);
    }
    return d;
}

static size_t kept(const wr_value_dict *d)
{
    return wr_value_dict_kept(d, NULL);
}

static struct wr_queue_stats stats_of(wr_queue *queue)
{
    struct wr_queue_stats stats;
    wr_queue_stats(queue, &stats);
    return stats;
}

/* ---- events ------------------------------------------------------------------------------------------------ */

Test(pressure, trims_on_the_queue)
{
    wr_queue *queue = wr_queue_new("trims");
    wr_value_dict *a = filled(100, &thing_type), *b = filled(40, &thing_type), *weak = wr_value_dict_new(NULL);
    start(queue, 0);
    press();
    await(stats_of(queue).pending == 1);
    cr_expect_eq(kept(a), 100, "nothing happens before the queue is drained");
    cr_expect_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_expect_eq(kept(a), 75);
    cr_expect_eq(kept(b), 30);
    cr_expect_eq(atomic_load(&things_destroyed), 35);

    wr_value_dict *late = filled(8, &thing_type);
    for (int i = 0; i < 50; i++) {
        size_t before = kept(a);
        press();
        await(wr_queue_drain(queue, SIZE_MAX) == 1);
        cr_expect(before == 0 || kept(a) < before);
    }
    cr_expect_eq(kept(a) + kept(b) + kept(late), 0);
    cr_expect(queue_is_balanced(queue));
    cr_expect_eq(stats_of(queue).delivered, 51);
    cr_expect_eq(wr_pressure_stop(), 0);
    cr_expect_eq(stats_of(queue).armed, 0);
    wr_queue_free(queue);
    wr_value_dict_free(a);
    wr_value_dict_free(b);
    wr_value_dict_free(late);
    wr_value_dict_free(weak);
}

Test(pressure, events_that_come_while_one_is_pending_are_one)
{
    wr_queue *queue = wr_queue_new("trims");
    wr_value_dict *d = filled(100, &thing_type);
    start(queue, 50);
    press();
    await(stats_of(queue).pending == 1);
    for (int i = 0; i < 10; i++) {
        char c;
        press();
        await(read(fifo_fd, &c, 1) < 0); /* the watcher, or this, has read it */
    }
    cr_expect_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_expect_eq(kept(d), 50);
    cr_expect_eq(wr_pressure_stop(), 0);
    wr_queue_free(queue);
    wr_value_dict_free(d);
}

/* On the watching thread itself; and what is written without a change of the counts is no event. */
Test(pressure, hears_of_the_limit)
{
    wr_value_dict *d = filled(1000, &thing_type);
    start(WR_QUEUE_INLINE, 1);
    for (int i = 1; i <= 20; i++) {
        write_counts(1);
        press();
        await(kept(d) < 1000);
        await(stats_of(WR_QUEUE_INLINE).delivered == (uint64_t)i);
    }
    cr_expect_eq(stats_of(WR_QUEUE_INLINE).watched, 20);
    unsigned long long n = 1;
    for (int i = 1; i <= 20; i++) {
        uint64_t before = stats_of(WR_QUEUE_INLINE).delivered;
        await((write_counts(++n), stats_of(WR_QUEUE_INLINE).delivered > before)); /* once in a window */
    }
    cr_expect_eq(wr_pressure_stop(), 0);
    wr_value_dict_free(d);
}

static struct gate gate;
static int stop_result;

static void destroy_at_gate(void *obj)
{
    (void)obj;
    stop_result = wr_pressure_stop();
    wait_at_gate(NULL, &gate);
}

static const wr_type gate_type = {.name = "gate", .size = 8, .destroy = destroy_at_gate};

/* The event that comes while a trimming runs is not lost; and from the trimming it cannot be stopped. */
Test(pressure, event_while_a_trim_runs)
{
    wr_queue *queue = wr_queue_new("trims");
    cr_assert_eq(wr_queue_start(queue, 1), 0);
    wr_value_dict *d = filled(1, &gate_type);
    start(queue, 100);
    press();
    gate_wait(&gate.reached);
    cr_expect_eq(stop_result, -EDEADLK);
    wr_value_dict *late = filled(10, &thing_type);
    press();
    char c;
    await(read(fifo_fd, &c, 1) < 0);
    atomic_store(&gate.open, true);
    if (kept(late) > 0)
        press(); /* if it was this who read it */
    await(kept(late) == 0);
    cr_expect_eq(wr_pressure_stop(), 0);
    wr_queue_free(queue);
    wr_value_dict_free(d);
    wr_value_dict_free(late);
}

static atomic_bool stopping;

static void *stop(void *unused)
{
    (void)unused;
    atomic_store(&stopping, true);
    cr_expect_eq(wr_pressure_stop(), 0);
    cr_expect(atomic_load(&gate.open), "it waits for the trim");
    return NULL;
}

Test(pressure, stop_waits_for_a_trim_that_runs)
{
    wr_queue *queue = wr_queue_new("trims");
    cr_assert_eq(wr_queue_start(queue, 1), 0);
    wr_value_dict *d = filled(1, &gate_type);
    start(queue, 100);
    press();
    gate_wait(&gate.reached);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, stop, NULL), 0);
    gate_wait(&stopping);
    for (int i = 0; i < 100; i++)
        sched_yield();
    atomic_store(&gate.open, true);
    pthread_join(thread, NULL);
    wr_queue_free(queue);
    wr_value_dict_free(d);
}

Test(pressure, stop_cancels_what_is_pending)
{
    wr_queue *queue = wr_queue_new("trims");
    wr_value_dict *d = filled(10, &thing_type);
    for (int i = 1; i <= 3; i++) {
        start(queue, 0);
        press();
        await(stats_of(queue).pending == 1);
        cr_expect_eq(wr_pressure_stop(), 0);
        cr_expect_eq(stats_of(queue).cancelled, (uint64_t)i);
        cr_expect_eq(stats_of(queue).pending, 0);
    }
    cr_expect_eq(wr_queue_drain(queue, SIZE_MAX), 0);
    cr_expect_eq(kept(d), 10);
    wr_queue_free(queue);
    wr_value_dict_free(d);
}

Test(pressure, a_queue_that_cancels_all_or_is_freed)
{
    wr_queue *queue = wr_queue_new("trims");
    wr_value_dict *d = filled(10, &thing_type);
    start(queue, 0);
    press();
    await(stats_of(queue).pending == 1);
    cr_expect_eq(wr_queue_cancel_all(queue), 0);
    press();
    await(stats_of(queue).pending == 1);
    cr_expect_eq(kept(d), 10);
    wr_queue_free(queue); /* delivers it */
    cr_expect_eq(kept(d), 7);
    press();
    char c;
    await(read(fifo_fd, &c, 1) < 0);
    cr_expect_eq(wr_pressure_stop(), 0);
    cr_expect_eq(kept(d), 7);
    wr_value_dict_free(d);
}

Test(pressure, on_the_default_queue)
{
    wr_value_dict *d = filled(10, &thing_type);
    start(NULL, 100);
    press();
    await(kept(d) == 0);
    cr_expect_eq(wr_pressure_stop(), 0);
    cr_expect_eq(wr_shutdown(60000), 0);
    wr_value_dict_free(d);
}

/* ---- where it listens ---------------------------------------------------------------------------------------- */

Test(pressure, as_the_environment_says)
{
    wr_value_dict *d = filled(10, &thing_type);
    setenv("MEMORY_PRESSURE_WATCH", "/dev/null", 1);
    cr_expect_eq(wr_pressure_start(NULL), -ENOTSUP);
    setenv("MEMORY_PRESSURE_WATCH", fifo, 1);
    setenv("MEMORY_PRESSURE_WRITE", "c29tZSAyMDAwMDAgMjAwMDAwMAA=", 1);
    cr_expect_eq(wr_pressure_start(WR_QUEUE_INLINE), 0);
    press();
    await(kept(d) == 7);
    cr_expect_eq(wr_pressure_stop(), 0);
    setenv("MEMORY_PRESSURE_WRITE", "?", 1);
    cr_expect_eq(wr_pressure_start(WR_QUEUE_INLINE), -ENOTSUP);

    /* To the kernel's own file, if there is one that takes it: "some 200000 2000000" and a NUL. */
    setenv("MEMORY_PRESSURE_WATCH", "/proc/pressure/memory", 1);
    setenv("MEMORY_PRESSURE_WRITE", "c29tZSAyMDAwMDAgMjAwMDAwMAA=", 1);
    int told = wr_pressure_start(WR_QUEUE_INLINE);
    cr_expect(told == 0 || told == -ENOTSUP);
    cr_expect_eq(wr_pressure_stop(), 0);
    setenv("MEMORY_PRESSURE_WRITE", "c29tZSBub25zZW5zZQA=", 1); /* "some nonsense" */
    cr_expect_eq(wr_pressure_start(WR_QUEUE_INLINE), -ENOTSUP);
    wr_value_dict_free(d);
}

Test(pressure, of_the_machine_itself)
{
    unsetenv("MEMORY_PRESSURE_WATCH");
    int err = wr_pressure_start(NULL);
    printf("pressure stall information: %s\n", err == 0 ? "there" : strerror(-err));
    cr_expect(err == 0 || err == -ENOTSUP);
    if (err == 0)
        cr_expect_eq(wr_pressure_start(NULL), -EBUSY);
    cr_expect_eq(wr_pressure_stop(), 0);
    cr_expect_eq(wr_pressure_stop(), 0);
}

Test(pressure, other_files_are_left_alone)
{
    char path[80], text[64] = {0};
    snprintf(path, sizeof path, "%s/plain", directory);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    cr_assert_eq(write(fd, "mine", 4), 4);
    struct wr_pressure_options options = options_of(0);
    options.path = path;
    cr_expect_eq(wr_pressure_start_with(NULL, &options), -ENOTSUP);
    cr_expect_eq(pread(fd, text, sizeof text, 0), 4);
    cr_expect_str_eq(text, "mine");
    close(fd);
    unlink(path);
    cr_expect_eq(wr_pressure_start_with(NULL, &options), -ENOTSUP);
    options.path = directory;
    cr_expect_eq(wr_pressure_start_with(NULL, &options), -ENOTSUP);
}

/* ---- errors ------------------------------------------------------------------------------------------------ */

Test(pressure, bad_arguments)
{
    struct wr_pressure_options options = options_of(101);
    cr_expect_eq(wr_pressure_start_with(NULL, &options), -EINVAL);
    options = options_of(0);
    options.struct_size = 4;
    cr_expect_eq(wr_pressure_start_with(NULL, &options), -EINVAL);
    errno = 0;
    start(WR_QUEUE_INLINE, 0);
    options = options_of(0);
    cr_expect_eq(wr_pressure_start_with(NULL, &options), -EBUSY);
    cr_expect_eq(wr_pressure_stop(), 0);
    cr_expect_eq(errno, 0);
}

Test(pressure, a_start_without_memory_changes_nothing)
{
    fail_alloc_install();
    wr_queue *queue = wr_queue_new("trims");
    struct wr_pressure_options options = options_of(0);
    for (long n = 1;; n++) {
        fail_alloc_at(n);
        int err = wr_pressure_start_with(queue, &options);
        if (!fail_alloc_hit())
            break;
        if (err == 0) /* a thread's cache, perhaps */
            cr_expect_eq(wr_pressure_stop(), 0);
        else
            cr_expect_eq(err, -ENOMEM);
    }
    cr_expect_eq(wr_pressure_stop(), 0);
    cr_expect_eq(stats_of(queue).watched, 0);
    wr_queue_free(queue);
}

/* ---- the fork ---------------------------------------------------------------------------------------------- */

static wr_value_dict *inherited;

static int start_again(void *ctx)
{
    wr_queue *queue = ctx;
    struct wr_pressure_options options = options_of(0);
    if (wr_pressure_stop() != 0 || kept(inherited) != 100)
        return 1;
#if !defined(__SANITIZE_THREAD__) /* which allows no threads here */
    if (wr_pressure_start_with(WR_QUEUE_INLINE, &options) != 0)
        return 2;
    write_counts(50); /* not the FIFO: of two who read it, one gets it */
    while (kept(inherited) == 100)
        sched_yield();
    if (wr_pressure_stop() != 0 || kept(inherited) >= 100)
        return 3;
#endif
    (void)options;
    wr_queue_drain(queue, SIZE_MAX);
    return stats_of(queue).pending == 0 ? 0 : 4;
}

Test(pressure, a_child_starts_by_itself)
{
    char text[4096];
    wr_queue *queue = wr_queue_new("trims");
    inherited = filled(100, &thing_type);
    start(queue, 0);
    press();
    await(stats_of(queue).pending == 1);
    int status = expect_child(start_again, queue, text, sizeof text);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%#x %s", (unsigned)status, text);
    cr_expect_eq(wr_queue_drain(queue, SIZE_MAX), 1);
    cr_expect_eq(kept(inherited), 75);
    press();
    await(wr_queue_drain(queue, SIZE_MAX) == 1);
    cr_expect_eq(wr_pressure_stop(), 0);
    wr_queue_free(queue);
    wr_value_dict_free(inherited);
}
