/* value_dict.h: a cache in which two threads never make the same thing twice at a time. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* barriers of threads */
#endif
#include "check.h"

#include <weakref/object.h>
#include <weakref/value_dict.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

static const wr_type image_type = {.name = "image", .size = 64};

static atomic_int n_loads;
static pthread_barrier_t all_have_it;

/* Runs with no lock held, in one of the threads that ask; the others wait for it. */
static int load_image(const void *key, size_t size, void *ctx, void **obj)
{
    (void)key, (void)size, (void)ctx;
    void *image = wr_new(&image_type);
    if (image == NULL)
        return -errno;
    atomic_fetch_add(&n_loads, 1);
    *obj = image;
    return 0;
}

static int no_such_image(const void *key, size_t size, void *ctx, void **obj)
{
    (void)key, (void)size, (void)ctx, (void)obj;
    return -ENOENT;
}

static void *ask(void *ctx)
{
    void *image;
    CHECK(wr_value_dict_get_or_create_str(ctx, "logo", load_image, NULL, &image) == 0);
    pthread_barrier_wait(&all_have_it); /* all hold it at once */
    wr_release(image);
    return image;
}

int main(void)
{
    enum { N = 4 };
    wr_value_dict *images = wr_value_dict_new(NULL);
    CHECK(images != NULL && pthread_barrier_init(&all_have_it, NULL, N) == 0);

    pthread_t threads[N];
    void *answers[N];
    for (int i = 0; i < N; i++)
        CHECK(pthread_create(&threads[i], NULL, ask, images) == 0);
    for (int i = 0; i < N; i++)
        CHECK(pthread_join(threads[i], &answers[i]) == 0);
    for (int i = 1; i < N; i++)
        CHECK(answers[i] == answers[0]); /* one object for all */
    CHECK(n_loads == 1);
    CHECK(wr_value_dict_len(images) == 0); /* nobody holds it any more */

    /* An error goes to all who wait, and is not remembered. */
    void *image;
    CHECK(wr_value_dict_get_or_create_str(images, "nil", no_such_image, NULL, &image) == -ENOENT);
    CHECK(wr_value_dict_get_or_create_str(images, "nil", load_image, NULL, &image) == 0);
    CHECK(n_loads == 2);
    wr_release(image);

    pthread_barrier_destroy(&all_have_it);
    wr_value_dict_free(images);
    return 0;
}
