/* F1 check: panics and warnings, written without allocating. */
#include "check.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void write_line(const char *text)
{
    size_t length = strlen(text);
    while (length > 0) {
        ssize_t n = write(STDERR_FILENO, text, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return; /* nowhere to say it */
        text += n;
        length -= (size_t)n;
    }
}

void wr_panic(const char *call, const char *kind, const char *name, const void *address, const char *what)
{
    const char *space = name != NULL && name[0] != '\0' ? " " : ""; /* no name: the kind alone */
    name = space[0] != '\0' ? name : "";
    char line[512];
    if (address != NULL)
        snprintf(line, sizeof line, "weakref: %s: %s%s%.200s at %p: %s\n", call, kind, space, name, address, what);
    else
        snprintf(line, sizeof line, "weakref: %s: %s%s%.200s: %s\n", call, kind, space, name, what);
    write_line(line);
    abort();
}

/* Set before other threads use the library (wr_set_warn()'s contract), then only read. */
static void (*warn_hook)(const char *message, void *ctx);
static void *warn_ctx;

static wr_atomic_u64 warnings[WR_N_WARNINGS];

void wr_check_set_warn(void (*warn)(const char *message, void *ctx), void *ctx)
{
    warn_hook = warn;
    warn_ctx = ctx;
}

void wr_warn(enum wr_warning warning, const char *message)
{
    /* Relaxed: a count; the one that saw 0 reports. */
    if (wr_atomic_fetch_add_relaxed(&warnings[warning], 1) != 0)
        return;
    int cancel; /* write() is a cancellation point, and its callers are in the middle of things */
    (void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
    if (warn_hook != NULL) {
        warn_hook(message, warn_ctx);
    } else {
        char line[512];
        snprintf(line, sizeof line, "weakref: warning: %s\n", message);
        write_line(line);
    }
    (void)pthread_setcancelstate(cancel, NULL);
}

uint64_t wr_warning_count(enum wr_warning warning)
{
    /* Relaxed: a figure. */
    return wr_atomic_load_relaxed(&warnings[warning]);
}
