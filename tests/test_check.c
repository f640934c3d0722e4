/* Tests of panics, warnings and their counters. */
#include "check.h"
#include "expect.h"

#include <weakref/debug.h>

/* ---- panics ----------------------------------------------------------------------------------------------- */

static void panic_with_address(void *address)
{
    wr_panic("wr_call", "object", "conn", address, "what is wrong");
}

static void panic_without_address(void *unused)
{
    (void)unused;
    wr_panic("wr_call", "queue", NULL, NULL, "what is wrong");
}

Test(check, panic_says_call_kind_name_address_and_what)
{
    expect_panic(panic_with_address, (void *)(uintptr_t)0x1230,
                 "^weakref: wr_call: object conn at 0x1230: what is wrong\n$");
    expect_panic(panic_without_address, NULL, "^weakref: wr_call: queue: what is wrong\n$");
}

Test(check, panic_aborts, .signal = SIGABRT)
{
    panic_without_address(NULL);
}

static void panic_with_long_name(void *unused)
{
    (void)unused;
    char name[2000];
    memset(name, 'x', sizeof name);
    name[sizeof name - 1] = '\0';
    wr_panic("wr_call", "object", name, (void *)(uintptr_t)0x1230, "what is wrong");
}

Test(check, panic_with_a_long_name_still_says_what_and_ends_its_line)
{
    expect_panic(panic_with_long_name, NULL, "^weakref: wr_call: object x+.* at 0x1230: what is wrong\n$");
}

static void panic_without_stderr(void *unused)
{
    (void)unused;
    close(STDERR_FILENO);
    wr_panic("wr_call", "object", "conn", NULL, "what is wrong");
}

Test(check, panic_aborts_where_there_is_nowhere_to_write)
{
    expect_panic(panic_without_stderr, NULL, "^$");
}

#if WR_DEBUG
static void assert_false(void *unused)
{
    (void)unused;
    int one = 1;
    WR_ASSERT(one == 2);
}

Test(check, assertion_panics_in_debug_builds)
{
    expect_panic(assert_false, NULL, "^weakref: assert_false: assertion one == 2: does not hold\n$");
    WR_ASSERT(1 == 1);
}
#else
static unsigned evaluated;

Test(check, assertion_is_not_evaluated_in_release_builds)
{
    WR_ASSERT(++evaluated == 5);
    WR_AUDIT(++evaluated == 5);
    cr_assert_eq(evaluated, 0);
}
#endif

/* ---- warnings --------------------------------------------------------------------------------------------- */

static int warn_twice(void *unused)
{
    (void)unused;
    wr_warn(WR_WARN_SATURATED, "first");
    wr_warn(WR_WARN_SATURATED, "second");
    wr_warn(WR_WARN_LEAKED, "another kind");
    return wr_warning_count(WR_WARN_SATURATED) == 2 && wr_warning_count(WR_WARN_LEAKED) == 1 ? 0 : 1;
}

Test(check, warning_goes_to_standard_error_once_a_kind)
{
    char text[512];
    int status = expect_child(warn_twice, NULL, text, sizeof text);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    cr_assert_str_eq(text, "weakref: warning: first\nweakref: warning: another kind\n");
}

static char got[64];
static unsigned n_got;

static void warn_hook(const char *message, void *ctx)
{
    cr_assert_eq(ctx, got);
    snprintf(got, sizeof got, "%s", message);
    n_got++;
}

static int hooked(void *unused)
{
    (void)unused;
    wr_set_warn(warn_hook, got);
    wr_warn(WR_WARN_SATURATED, "first");
    wr_warn(WR_WARN_SATURATED, "second");
    if (n_got != 1 || strcmp(got, "first") != 0)
        return 1;
    wr_set_warn(NULL, NULL);
    wr_warn(WR_WARN_LEAKED, "to standard error");
    return n_got == 1 ? 0 : 2;
}

Test(check, hook_gets_the_message_instead)
{
    char text[512];
    int status = expect_child(hooked, NULL, text, sizeof text);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %#x", (unsigned)status);
    cr_assert_str_eq(text, "weakref: warning: to standard error\n");
}

static void *warn_main(void *unused)
{
    for (unsigned i = 0; i < 1000; i++)
        wr_warn(WR_WARN_SATURATED, "many");
    return unused;
}

static atomic_uint n_counted;

static void counting_hook(const char *message, void *ctx)
{
    (void)message, (void)ctx;
    atomic_fetch_add(&n_counted, 1);
}

Test(check, warnings_of_many_threads_are_all_counted_and_reported_once)
{
    wr_set_warn(counting_hook, NULL);
    pthread_t threads[4];
    for (unsigned i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, warn_main, NULL), 0);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    cr_assert_eq(wr_warning_count(WR_WARN_SATURATED), 4000);
    cr_assert_eq(atomic_load(&n_counted), 1);
}
