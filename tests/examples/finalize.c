/* finalize.h: a temporary folder that is removed with the job that uses it, by hand, or at exit. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* mkdtemp, strdup */
#endif
#include "check.h"

#include <weakref/debug.h>
#include <weakref/finalize.h>

#include <errno.h>
#include <string.h>
#include <unistd.h>

static const wr_type job_type = {.name = "job", .size = 8};

static void remove_dir(void *ctx)
{
    char *path = ctx;
    CHECK(rmdir(path) == 0);
    free(path);
}

static char *make_dir(void)
{
    char path[] = "/tmp/weakref-example-XXXXXX";
    CHECK(mkdtemp(path) != NULL);
    return strdup(path);
}

int main(void)
{
    char name[64];
    void *job = wr_new(&job_type);
    char *path = make_dir();
    CHECK(job != NULL && path != NULL);
    strcpy(name, path);

    wr_finalizer *f = wr_finalize(job, NULL, remove_dir, path, WR_FINALIZE_ATEXIT);
    CHECK(f != NULL && wr_finalizer_alive(f));

    /* By hand, while the job lives: once. */
    CHECK(wr_finalizer_call(f) == 0 && access(name, F_OK) != 0);
    CHECK(wr_finalizer_call(f) == -ESTALE && !wr_finalizer_alive(f));
    wr_finalizer_release(f);

    /* Called off: what it would have used is ours again. */
    f = wr_finalize(job, NULL, remove_dir, make_dir(), 0);
    void *ctx;
    CHECK(f != NULL && wr_finalizer_peek(f, NULL, NULL, &ctx));
    CHECK(wr_finalizer_detach(f) == 0);
    remove_dir(ctx);
    wr_finalizer_release(f);

    /* Left alone it runs when the job is gone; the handle is not needed for that. */
    path = make_dir();
    strcpy(name, path);
    wr_finalizer_release(wr_finalize(job, NULL, remove_dir, path, 0));
    wr_release(job);
    CHECK(wr_shutdown(10000) == 0); /* waits for the default queue */
    CHECK(access(name, F_OK) != 0);

    /* And this one, whose job is never released, at exit. */
    static void *never_released;
    never_released = wr_new(&job_type);
    CHECK(never_released != NULL);
    wr_finalizer_release(wr_finalize(never_released, NULL, remove_dir, make_dir(), WR_FINALIZE_ATEXIT));
    return 0;
}
