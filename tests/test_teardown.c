/* Tests of ends: of threads, inside user code and in key destructors, and of the process, in exit handlers. */
#include "deaths.h"
#include "expect.h"

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

#define LOST ": it ended inside a destroy or callback, or left one by longjmp(): its other work would be lost\n"

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
