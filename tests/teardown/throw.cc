// A create that throws ends its flight: who waited for it is told so, and the key can be created again at once, by anybody. And the
// scopes WR_GUARD and WR_WITH end where an exception leaves them.
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <pthread.h>
#include <sched.h>
#include <stdexcept>
#include <unistd.h>
#include <weakref/weakref.h>

#define CHECK(condition)                                                                       \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            std::fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
            std::abort();                                                                      \
        }                                                                                      \
    } while (0)

static const wr_type type = WR_TYPE_INIT(.name = "thing", .size = 8);

static wr_value_dict *dict;
static std::atomic<int> creating, waiting, waited_in_vain, found;

static int create(const void *, size_t, void *, void **obj)
{
    return (*obj = wr_new(&type)) != nullptr ? 0 : -ENOMEM;
}

// Runs until somebody waits for it, as far as that can be seen.
static int create_throws(const void *, size_t, void *waiters, void **)
{
    creating = 1;
    while (waiting < *static_cast<int *>(waiters))
        sched_yield();
    for (int i = 0; i < 1000; i++)
        sched_yield();
    throw std::runtime_error("no such thing");
}

// Comes while the create of another thread runs; or, now and then, after it.
static void *wait_main(void *)
{
    while (creating == 0)
        sched_yield();
    waiting++;
    void *obj = nullptr;
    int error = wr_value_dict_get_or_create_str(dict, "key", create, nullptr, &obj);
    if (error == -EDEADLK) {
        waited_in_vain++;
        error = wr_value_dict_get_or_create_str(dict, "key", create, nullptr, &obj);
    }
    CHECK(error == 0 && obj != nullptr);
    found++;
    return obj;
}

static void play_round(int n_waiters)
{
    pthread_t threads[2];
    creating = 0;
    waiting = 0;
    for (int i = 0; i < n_waiters; i++)
        CHECK(pthread_create(&threads[i], nullptr, wait_main, nullptr) == 0);
    bool caught = false;
    void *obj = nullptr;
    try {
        (void)wr_value_dict_get_or_create_str(dict, "key", create_throws, &n_waiters, &obj);
    } catch (const std::runtime_error &) {
        caught = true;
    }
    CHECK(caught && obj == nullptr);
    if (n_waiters == 0) {
        CHECK(wr_value_dict_len(dict) == 0);
        CHECK(wr_value_dict_get_or_create_str(dict, "key", create, nullptr, &obj) == 0);
    }
    void *objs[2] = {};
    for (int i = 0; i < n_waiters; i++)
        CHECK(pthread_join(threads[i], &objs[i]) == 0);
    CHECK(n_waiters < 2 || objs[0] == objs[1]);
    wr_release(objs[0]);
    wr_release(objs[1]);
    wr_release(obj);
    CHECK(wr_value_dict_len(dict) == 0);
}

static void leave_scopes(wr_weak *weak)
{
    bool caught = false;
    try {
        WR_GUARD {
            WR_WITH (void, obj, weak) {
                throw std::runtime_error("from within");
            }
        }
    } catch (const std::runtime_error &) {
        caught = true;
    }
    CHECK(caught);
    CHECK(wr_synchronize() == 0); // not within a guard any more
}

static void destroy_throws(void *)
{
    throw std::runtime_error("not allowed");
}

static void *forbidden_main(void *)
{
    static const wr_type throwing = WR_TYPE_INIT(.name = "thing", .size = 8, .destroy = destroy_throws);
    WR_GUARD {
        // the library knows the thread
    }
    try {
        wr_release(wr_new(&throwing));
    } catch (const std::runtime_error &) {
    }
    return nullptr;
}

// usage: teardown_throw [forbidden]     with it: a destroy throws, and nothing catches that but the end of its thread, by a panic
int main(int argc, char **)
{
    if (argc > 1) {
        std::signal(SIGABRT, [](int) { _exit(1); }); // the message counts
        pthread_t thread;
        CHECK(pthread_create(&thread, nullptr, forbidden_main, nullptr) == 0 && pthread_join(thread, nullptr) == 0);
        return 0;
    }
    dict = wr_value_dict_new(nullptr);
    CHECK(dict != nullptr);
    for (int i = 0; i < 300 || (waited_in_vain == 0 && i < 10000); i++)
        play_round(i % 3);
    std::printf("%d found it, %d of them had waited for a create that threw\n", found.load(), waited_in_vain.load());
    CHECK(waited_in_vain > 0);

    void *obj = wr_new(&type);
    wr_weak *weak = wr_downgrade(obj);
    leave_scopes(weak);
    CHECK(wr_strong_count(obj) == 1);
    wr_weak_release(weak);
    wr_release(obj);
    wr_value_dict_free(dict);
    CHECK(wr_barrier() == 0);
    return 0;
}
