/* Tests of ends: of threads, inside user code and in key destructors, and of the process, in exit handlers. */
#include "deaths.h"
#include "everything.h"
#include "expect.h"

#include <limits.h>
#include <setjmp.h>
#include <weakref/debug.h>
#include <weakref/weakref.h>

/* A panic of this very process, whatever thread it comes from: under ThreadSanitizer a forked child cannot have threads. The
 * process ends with status PANICKED if the text is the one that was announced. */
enum { PANICKED = 7, PANICKED_OTHERWISE };
static const char *announced;
static int panic_text[2];

static void on_abort(int signo)
{
    char text[512]; /* in a handler: nothing that allocates */
    (void)signo;
    ssize_t n = read(panic_text[0], text, sizeof text - 1);
    text[n > 0 ? n : 0] = '\0';
    _exit(strncmp(text, "weakref: ", 9) == 0 && strstr(text, announced) != NULL ? PANICKED : PANICKED_OTHERWISE);
}

static void announce_panic(const char *what)
{
    announced = what;
    cr_assert_eq(pipe(panic_text), 0);
    dup2(panic_text[1], STDERR_FILENO);
    signal(SIGABRT, on_abort);
}

#define LOST ": it ended inside a destroy or callback, or left one without returning: its other work would be lost\n"

static void run_thread(void *(*fn)(void *), void *arg)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, fn, arg) != 0 || pthread_join(thread, NULL) != 0)
        abort();
}

/* ---- leaving user code in ways that skip its caller ------------------------------------------------------- */

static jmp_buf out;

static void end_thread(void *ctx)
{
    (void)ctx;
    pthread_exit(NULL);
}

static void jump_out(void *ctx)
{
    (void)ctx;
    longjmp(out, 1);
}

static int end_in_handler(void *obj, void *arg)
{
    (void)obj;
    end_thread(arg);
    return 0;
}

static int jump_from_handler(void *obj, void *arg)
{
    (void)obj;
    jump_out(arg);
    return 0;
}

static void *emit_main(void *handler)
{
    wr_signal *signal = wr_signal_new("bell");
    void *obj = thing_new(1);
    wr_signal_connect(signal, obj, *(wr_method_fn **)handler, NULL);
    if (setjmp(out) == 0)
        wr_signal_emit(signal, NULL);
    return NULL;
}

static void *finalize_main(void *fn)
{
    wr_finalizer *f = wr_finalize(thing_new(1), WR_QUEUE_INLINE, *(void (**)(void *))fn, NULL, 0);
    if (setjmp(out) == 0)
        wr_finalizer_call(f);
    return NULL;
}

Test(teardown, a_thread_that_ends_in_a_handler_panics, .exit_code = PANICKED)
{
    announce_panic(LOST);
    run_thread(emit_main, &(wr_method_fn *){end_in_handler});
}

Test(teardown, a_thread_that_has_left_a_handler_by_longjmp_panics_at_its_end, .exit_code = PANICKED)
{
    announce_panic(LOST);
    run_thread(emit_main, &(wr_method_fn *){jump_from_handler});
}

Test(teardown, a_thread_that_ends_in_a_called_finalizer_panics, .exit_code = PANICKED)
{
    announce_panic(LOST);
    run_thread(finalize_main, &(void (*)(void *)){end_thread});
}

Test(teardown, a_thread_that_has_left_a_called_finalizer_by_longjmp_panics_at_its_end, .exit_code = PANICKED)
{
    announce_panic(LOST);
    run_thread(finalize_main, &(void (*)(void *)){jump_out});
}

/* ---- key destructors -------------------------------------------------------------------------------------- */

/* Two keys, made before and after the library's: in each round of destructors one of theirs runs before the library's and
 * one after it. */
enum { BEFORE, AFTER, N_KEYS };
#if defined(__SANITIZE_THREAD__)
enum { N_ROUNDS = PTHREAD_DESTRUCTOR_ITERATIONS - 1 }; /* in the last one it takes leave of the thread itself */
#else
enum { N_ROUNDS = PTHREAD_DESTRUCTOR_ITERATIONS };
#endif

static pthread_key_t keys[N_KEYS];
static atomic_int uses, bad_line;

/* Where a thread uses everything. */
struct plan {
    bool in_main;
    int rounds[N_KEYS]; /* bit r: in round r, from 0 */
};

static __thread const struct plan *plan;
static __thread int round_of[N_KEYS];

static void use(void)
{
    int line = use_everything();
    if (line != 0)
        atomic_store(&bad_line, line);
    atomic_fetch_add(&uses, 1);
}

static void destructor_of(int which)
{
    int r = round_of[which]++;
    if (plan->rounds[which] & 1 << r)
        use();
    if (r + 1 < N_ROUNDS)
        pthread_setspecific(keys[which], plan);
}

static void before_destructor(void *value)
{
    (void)value;
    destructor_of(BEFORE);
}

static void after_destructor(void *value)
{
    (void)value;
    destructor_of(AFTER);
}

static void *planned_main(void *plan_)
{
    plan = plan_;
    if (plan->in_main)
        use();
    for (int which = 0; which < N_KEYS; which++)
        pthread_setspecific(keys[which], plan);
    return NULL;
}

static void make_keys(void)
{
    cr_assert_eq(pthread_key_create(&keys[BEFORE], before_destructor), 0);
    void *obj = thing_new(0); /* with a guard it makes the library's key */
    WR_GUARD {}
    wr_release(obj);
    cr_assert_eq(pthread_key_create(&keys[AFTER], after_destructor), 0);
    cr_assert_lt(keys[BEFORE], keys[AFTER]);
}

static void expect_uses(int expected)
{
    cr_expect_eq(atomic_load(&bad_line), 0, "everything.c:%d does not hold", atomic_load(&bad_line));
    cr_expect_eq(atomic_load(&uses), expected);
    cr_expect(everything_is_over());
    struct wr_stats stats;
    wr_stats(&stats);
    cr_expect_eq(stats.at_exit, 0);
}

Test(teardown, everything_works_in_each_round_of_key_destructors)
{
    enum { ALL = (1 << N_ROUNDS) - 1, N = 4 };
    make_keys();
    for (int i = 0; i < N; i++)
        run_thread(planned_main, &(struct plan){.in_main = true, .rounds = {ALL, ALL}});
    expect_uses(N * (1 + 2 * N_ROUNDS));
}

Test(teardown, everything_works_where_threads_end_together)
{
    enum { ALL = (1 << N_ROUNDS) - 1, N = 8 };
    static struct plan plans[2] = {{.in_main = true, .rounds = {ALL, ALL}}, {.rounds = {ALL, ALL}}};
    make_keys();
    pthread_t threads[N];
    for (int i = 0; i < N; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, planned_main, &plans[i % 2]), 0);
    for (int i = 0; i < N; i++)
        cr_assert_eq(pthread_join(threads[i], NULL), 0);
    expect_uses(N * 2 * N_ROUNDS + N / 2);
}

/* But for the very last place, of which thread.h says why. */
Test(teardown, the_first_use_may_come_in_any_round_of_key_destructors)
{
    make_keys();
    int n = 0;
    for (int which = 0; which < N_KEYS; which++)
        for (int r = 0; r < N_ROUNDS - which; r++, n++) {
            struct plan p = {.in_main = false};
            p.rounds[which] = 1 << r;
            run_thread(planned_main, &p);
            cr_expect(everything_is_over()); /* looks at every record there is: none may be of a thread that is gone */
        }
    cr_expect_eq(n, 2 * N_ROUNDS - 1);
    expect_uses(n);
}

/* ---- exit ------------------------------------------------------------------------------------------------- */

static void say_run(void *ctx)
{
    (void)ctx;
    (void)!write(STDERR_FILENO, "run", 3);
}

static void leave_at_once(void)
{
    _exit(0); /* before leaks are looked for */
}

static int exit_after_queue(void *ctx)
{
    (void)ctx;
    atexit(leave_at_once);
    wr_queue *queue = wr_queue_new("gone");
    void *obj = thing_new(1);
    wr_finalizer_release(wr_finalize(obj, queue, say_run, NULL, WR_FINALIZE_ATEXIT));
    wr_finalizer_release(wr_finalize(obj, queue, say_run, NULL, 0));
    wr_queue_free(queue);
    exit(1);
}

Test(teardown, a_finalizer_runs_at_exit_though_its_queue_is_freed)
{
    char text[64];
    int status = expect_child(exit_after_queue, NULL, text, sizeof text);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    cr_expect_str_eq(text, "run");
}
