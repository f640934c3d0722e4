// Everything, from each place that a process comes by at its end: handlers given to atexit() before and after the library's first
// use, destructors of static and of thread-local objects, and, last, the destructor of another library (library.c).
#include "everything.h"

#include <cstdio>
#include <cstdlib>
#include <pthread.h>
#include <unistd.h>
#include <weakref/weakref.h>

extern "C" {
extern int stages;
}

static void stage(const char *name)
{
    int line = use_everything();
    if (line != 0) {
        std::fprintf(stderr, "%s: everything.c:%d does not hold\n", name, line);
        _exit(1);
    }
    std::fprintf(stderr, "%s\n", name);
    stages++;
}

struct use_at_end {
    const char *name;
    ~use_at_end()
    {
        stage(name);
    }
};

static use_at_end at_exit = {"static object"};
static thread_local use_at_end at_thread_end;

static void *worker(void *uses)
{
    at_thread_end.name = uses != nullptr ? "thread-local" : "thread-local, the thread's first use";
    if (uses != nullptr && use_everything() != 0)
        _exit(1);
    return nullptr;
}

static void last_handler()
{
    stage("handler from before the first use");
}

static void first_handler()
{
    stage("handler from after it");
}

// Goes on while the process ends.
static void *bystander(void *unused)
{
    for (;;)
        wr_release(wr_upgrade(static_cast<wr_weak *>(unused)));
}

static void run(bool uses)
{
    pthread_t thread;
    if (pthread_create(&thread, nullptr, worker, uses ? &thread : nullptr) != 0 || pthread_join(thread, nullptr) != 0)
        _exit(1);
}

int main()
{
    static const wr_type type = WR_TYPE_INIT(.name = "thing", .size = 8);
    std::atexit(last_handler);
    at_thread_end.name = "thread-local of the main thread";
    run(false);
    run(true);
    std::atexit(first_handler);
    void *obj = wr_new(&type);
    pthread_t thread;
    if (pthread_create(&thread, nullptr, bystander, wr_downgrade(obj)) != 0 || pthread_detach(thread) != 0)
        _exit(1);
    return 3; // library_end() makes another of it
}
