/* usage: host PLUGIN ROUNDS          loads, uses, stops and unloads the plugin, again and again
 *        host PLUGIN wrong MISTAKE   once, with a mistake in it: child of the above
 *
 * Built twice: plugin_host knows nothing of the library, which comes with the plugin; plugin_host_linked (HOST_LINKED) uses it
 * itself, and lends the plugin objects, a queue, a signal and a dictionary that outlive it.
 *
 * Exits 0 if the plugin, and no more than it, was gone after each round, no round left memory or a
 * thread behind. (With GLIBC_TUNABLES=glibc.malloc.tcache_count=0, else the C library counts
 * what it keeps as in use.)
 */
#include "plugin.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef HOST_LINKED
#include <weakref/weakref.h>
#endif

#define LIBRARY "libweakref.so.0"

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                                      \
        }                                                                                 \
    } while (0)

/* ---- what there is ------------------------------------------------------------------------------------------ */

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
size_t __sanitizer_get_current_allocated_bytes(void);

static size_t bytes_allocated(void)
{
    return __sanitizer_get_current_allocated_bytes();
}
#else
#define SANITIZED 0

static size_t bytes_allocated(void)
{
    return mallinfo2().uordblks + mallinfo2().hblkhd;
}
#endif

static unsigned threads_running(void)
{
    unsigned n = 0;
    DIR *tasks = opendir("/proc/self/task");
    CHECK(tasks != NULL);
    for (struct dirent *task; (task = readdir(tasks)) != NULL;)
        n += task->d_name[0] != '.';
    closedir(tasks);
    return n;
}

static bool is_loaded(const char *name)
{
    void *library = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
    if (library != NULL)
        dlclose(library);
    return library != NULL;
}

/* ---- loading and unloading ---------------------------------------------------------------------------------- */

struct plugin {
    const char *path;
    void *handle;
    const struct plugin_api *api;
};

static void load(struct plugin *p)
{
    p->handle = dlopen(p->path, RTLD_NOW | RTLD_LOCAL);
    if (p->handle == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    p->api = dlsym(p->handle, "plugin_api");
    CHECK(p->api != NULL);
}

static void unload(struct plugin *p)
{
    Dl_info info;
    const void *inside = (const void *)p->api;
    CHECK(dladdr(inside, &info) != 0);
    CHECK(dlclose(p->handle) == 0);
    CHECK(!is_loaded(p->path) && dladdr(inside, &info) == 0);
    CHECK(is_loaded(LIBRARY));
}

/* A thread that was there before the library, and one of each round. */
static struct plugin plugin;
static pthread_barrier_t begin, end;
static unsigned long round_number;
static bool over;

static void use(unsigned seed)
{
    int line = plugin.api->use(seed);
    if (line != 0) {
        fprintf(stderr, "round %lu: plugin.c:%d does not hold\n", round_number, line);
        exit(1);
    }
}

static void *old_main(void *unused)
{
    for (;;) {
        pthread_barrier_wait(&begin);
        if (over)
            return unused;
        use(1);
        pthread_barrier_wait(&end);
    }
}

static void *new_main(void *unused)
{
    use(2);
    return unused;
}

static void play_round(struct plugin_host *host)
{
    pthread_t thread;
    if (host != NULL)
        host->round = round_number;
    load(&plugin);
    int line = plugin.api->start(host);
    CHECK(line == 0);
    pthread_barrier_wait(&begin);
    CHECK(pthread_create(&thread, NULL, new_main, NULL) == 0);
    use(0);
    CHECK(pthread_join(thread, NULL) == 0);
    pthread_barrier_wait(&end);
    line = plugin.api->stop();
    if (line != 0) {
        fprintf(stderr, "round %lu: plugin.c:%d does not hold\n", round_number, line);
        exit(1);
    }
    unload(&plugin);
}

/* ---- what the host lends ------------------------------------------------------------------------------------ */

#ifdef HOST_LINKED
static const wr_type host_type = {.name = "host", .size = 8};

/* A handle that outlives the plugin, of an object whose type is made for that. */
static void keep_weak(void)
{
    void *type;
    load(&plugin);
    wr_weak *weak = plugin.api->weak_that_stays(&type);
    unload(&plugin);
    char text[80];
    CHECK(wr_weak_is_dead(weak) && wr_upgrade(weak) == NULL);
    CHECK(wr_weak_describe(weak, text, sizeof text) > 0 && strstr(text, "dead") != NULL);
    wr_weak_release(weak);
    free(type);
}

static struct plugin_host *lend(void)
{
    static struct plugin_host host;
    host.obj = wr_new(&host_type);
    host.signal = wr_signal_new("host");
    host.queue = wr_queue_new("host");
    host.dict = wr_value_dict_new(NULL);
    CHECK(host.obj != NULL && host.signal != NULL && host.queue != NULL && host.dict != NULL);
    CHECK(wr_queue_start(host.queue, 1) == 0);
    keep_weak();
    return &host;
}

/* The plugin is long gone: nothing of it is to be called. */
static void take_back(const struct plugin_host *host)
{
    CHECK(wr_value_dict_len(host->dict) == 0 && wr_signal_len(host->signal) == 0);
    CHECK(wr_signal_emit(host->signal, NULL) == 0);
    wr_release(host->obj);
    wr_queue_free(host->queue);
    wr_signal_free(host->signal);
    wr_value_dict_free(host->dict);
    CHECK(wr_barrier() == 0);
}
#else
static struct plugin_host *lend(void)
{
    CHECK(!is_loaded(LIBRARY));
    return NULL;
}

static void take_back(const struct plugin_host *host)
{
    (void)host;
}
#endif

/* ---- mistakes ----------------------------------------------------------------------------------------------- */

static int make_mistake(const char *mistake)
{
    static const struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    load(&plugin);
    if (strcmp(mistake, "alive") == 0) {
        plugin.api->keep();
        unload(&plugin);
    }
#ifdef HOST_LINKED
    if (strcmp(mistake, "weak") == 0) {
        wr_weak *weak = plugin.api->weak();
        unload(&plugin);
        wr_weak_release(weak);
    }
    if (strcmp(mistake, "watch") == 0) {
        void *obj = wr_new(&host_type);
        plugin.api->watch(obj);
        unload(&plugin);
        wr_release(obj);
        wr_queue_barrier(wr_queue_default());
    }
#endif
    return 0;
}

/* The child must not survive it. @says: what is on its standard error, where it is not a crash. */
static void expect_end(const char *program, const char *mistake, const char *says)
{
    char text[16384];
    size_t length = 0;
    int ends[2], status;
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        execl("/proc/self/exe", program, plugin.path, "wrong", mistake, (char *)NULL);
        _exit(0);
    }
    close(ends[1]);
    for (ssize_t n; length < sizeof text - 1 && (n = read(ends[0], text + length, sizeof text - 1 - length)) > 0;)
        length += (size_t)n;
    text[length] = '\0';
    close(ends[0]);
    CHECK(waitpid(child, &status, 0) == child);
    bool right = says != NULL ? WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && strcmp(text, says) == 0
                              : (WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV) ||
                                    (SANITIZED && status != 0 && strstr(text, "SEGV") != NULL);
    printf("mistake '%s': status %#x%s%s", mistake, (unsigned)status, says != NULL ? ": " : "\n",
           says != NULL ? text : "");
    if (!right) {
        fprintf(stderr, "mistake '%s': not as expected: %s\n", mistake, text);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    plugin.path = argv[1];
    if (argc == 4)
        return make_mistake(argv[3]);

    unsigned long rounds = strtoul(argv[2], NULL, 10), first = rounds / 5;
    pthread_t old;
    CHECK(pthread_barrier_init(&begin, NULL, 2) == 0 && pthread_barrier_init(&end, NULL, 2) == 0);
    CHECK(pthread_create(&old, NULL, old_main, NULL) == 0);
    struct plugin_host *host = lend();
    size_t bytes = 0, now = 0;
    unsigned threads = 0;
    for (round_number = 1; round_number <= rounds; round_number++) {
        play_round(host);
        now = bytes_allocated();
        if (round_number <= first && now > bytes)
            bytes = now;
        if (round_number == 1)
            threads = threads_running();
    }
    over = true;
    pthread_barrier_wait(&begin);
    CHECK(pthread_join(old, NULL) == 0);
    take_back(host);

    /* The kernel may count a thread for a moment after it was joined; those that were here after round 1 include the old one. */
    unsigned still = threads_running();
    for (int i = 0; i < 10000 && still >= threads; i++, still = threads_running())
        usleep(1000);
    printf("%lu rounds: %zu bytes after the first %lu, %zu in the end; threads %u, %u\n", rounds, bytes, first, now,
           threads, still);
    CHECK(still < threads);
    CHECK(now <= bytes + 8 * (rounds - first)); /* the smallest block is 24: no block is left per round */

    expect_end(argv[0], "alive", "plugin: unloaded with 1 objects alive\n");
#ifdef HOST_LINKED
    expect_end(argv[0], "weak", NULL);
    expect_end(argv[0], "watch", NULL);
#endif
    return 0;
}
