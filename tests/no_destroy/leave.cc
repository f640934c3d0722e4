// WR_NO_DESTROY in C++: every way out of the region ends it, an exception too; inside, the last release panics.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <weakref/weakref.h>

#define CHECK(condition)                                                                       \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            std::fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
            std::abort();                                                                      \
        }                                                                                      \
    } while (0)

static int destroyed;

static void destroy(void *)
{
    destroyed++;
}

static const wr_type type = WR_TYPE_INIT(.name = "thing", .size = 8, .destroy = destroy);

static int leave_by(int how)
{
    for (int i = 0; i < 3; i++) {
        WR_NO_DESTROY {
            if (how == 0)
                return 10;
            if (how == 1)
                break;
            if (how == 2)
                continue;
            if (how == 3)
                goto out;
            if (how == 4)
                throw std::runtime_error("out");
            WR_NO_DESTROY {
                if (how == 5)
                    return 20;
                if (how == 6)
                    throw std::runtime_error("out of both");
            }
            try {
                WR_NO_DESTROY {
                    throw std::runtime_error("out of the inner one");
                }
            } catch (const std::exception &) {
                CHECK(how == 7 || how == 8);
                if (how == 8)
                    wr_release(wr_new(&type)); // the outer one goes on
            }
        }
    }
    return 30;
out:
    return 40;
}

static int leave(int how)
{
    try {
        return leave_by(how);
    } catch (const std::exception &) {
        return 50;
    }
}

static void release_inside()
{
    void *obj = wr_new(&type);
    WR_NO_DESTROY {
        wr_release(obj);
    }
}

static const int release_line = __LINE__ - 5;

static void release_in_outer()
{
    (void)leave(8);
}

// Whether it panics, and what it says.
static bool panics(void (*fn)(), char *text, size_t size)
{
    int ends[2];
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        const struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        std::signal(SIGABRT, SIG_DFL);
        dup2(ends[1], STDERR_FILENO);
        fn();
        _exit(0);
    }
    close(ends[1]);
    size_t length = 0;
    for (ssize_t n; length + 1 < size && (n = read(ends[0], text + length, size - 1 - length)) > 0;)
        length += static_cast<size_t>(n);
    text[length] = '\0';
    close(ends[0]);
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

int main()
{
    char text[8192], place[64];
    CHECK(panics(release_inside, text, sizeof text));
    std::snprintf(place, sizeof place, "leave.cc:%d, by", release_line);
    CHECK(std::strstr(text, "WR_NO_DESTROY: object thing at 0x") != nullptr);
    CHECK(std::strstr(text, place) != nullptr);
    CHECK(panics(release_in_outer, text, sizeof text));

    static const int answers[] = {10, 30, 30, 40, 50, 20, 50, 30};
    for (int how = 0; how < 8; how++) {
        CHECK(leave(how) == answers[how]);
        int before = destroyed;
        wr_release(wr_new(&type));
        CHECK(destroyed == before + 1);
    }
    return 0;
}
