/* What tests of misuse and of threads share: a panic that is looked at from outside, and waiting for a condition.
 *
 * expect_panic(fn, ctx, pattern): fn(ctx) must end a child by SIGABRT, and what it wrote to standard error must match
 * the extended regular expression, from its first character on. await(condition): polls until it holds; a test fails
 * after AWAIT_SECONDS.
 */
#ifndef TESTS_EXPECT_H
#define TESTS_EXPECT_H

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <regex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define AWAIT_SECONDS 60

#if defined(__SANITIZE_THREAD__)
/* Children of these tests start threads. (Criterion's own threads are why they may not, as it comes.) */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
    return "die_after_fork=0";
}
#endif

static inline uint64_t expect_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#define await_for(seconds, condition)                                                        \
    do {                                                                                     \
        uint64_t await_until_ = expect_now_ns() + (uint64_t)(seconds)*1000000000u;           \
        while (!(condition)) {                                                               \
            cr_assert(expect_now_ns() < await_until_, "did not come about: %s", #condition); \
            nanosleep(&(const struct timespec){.tv_nsec = 200000}, NULL);                    \
        }                                                                                    \
    } while (0)
#define await(condition) await_for(AWAIT_SECONDS, condition)

/* Runs fn(ctx) in a child. Returns its wait status; what it wrote to standard error is in @text. The child exits with
 * fn's result. Call it before the test has threads. */
static inline int expect_child(int (*fn)(void *ctx), void *ctx, char *text, size_t size)
{
    int ends[2];
    cr_assert_eq(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    cr_assert_geq(child, 0);
    if (child == 0) {
        static const struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        signal(SIGABRT, SIG_DFL);
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        _exit(fn(ctx));
    }
    close(ends[1]);
    size_t length = 0;
    char rest[256];
    for (;;) {
        bool room = length + 1 < size;
        ssize_t n = read(ends[0], room ? text + length : rest, room ? size - 1 - length : sizeof rest);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        if (room)
            length += (size_t)n;
    }
    text[length] = '\0';
    close(ends[0]);
    int status;
    while (waitpid(child, &status, 0) < 0)
        cr_assert_eq(errno, EINTR);
    return status;
}

static inline bool expect_match(const char *text, const char *pattern)
{
    regex_t regex;
    cr_assert_eq(regcomp(&regex, pattern, REG_EXTENDED | REG_NOSUB), 0, "bad pattern %s", pattern);
    bool matches = regexec(&regex, text, 0, NULL, 0) == 0;
    regfree(&regex);
    return matches;
}

struct expect_call_ {
    void (*fn)(void *ctx);
    void *ctx;
};

static inline int expect_call_(void *ctx)
{
    struct expect_call_ *call = (struct expect_call_ *)ctx;
    call->fn(call->ctx);
    return 0;
}

static inline void expect_panic_at_(const char *where, void (*fn)(void *ctx), void *ctx, const char *pattern)
{
    char text[4096];
    struct expect_call_ call = {fn, ctx};
    int status = expect_child(expect_call_, &call, text, sizeof text);
    cr_expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "%s: no abort (status %#x): %s", where,
              (unsigned)status, text);
    cr_expect(expect_match(text, pattern), "%s: wrote \"%s\", not \"%s\"", where, text, pattern);
}

#define expect_panic(fn, ctx, pattern) expect_panic_at_(#fn, fn, ctx, pattern)

/* "weakref: CALL: object NAME at 0x...: WHAT" and nothing else. */
#define PANIC(call, name, what) "^weakref: " call ": object " name " at 0x[0-9a-f]+: " what "\n$"

#endif
