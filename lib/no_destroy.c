/* F3 no_destroy: the panic of a region where nothing may be destroyed. */
#include "no_destroy.h"

#include <execinfo.h>
#include <stdio.h>
#include <unistd.h>

#define FRAMES_MAX 32

__thread struct wr_no_destroy_region *WR_LAYOUT(wr_no_destroy) __attribute__((tls_model("initial-exec")));

void wr_no_destroy_panic(const char *kind, const char *name, const void *address)
{
    const struct wr_no_destroy_region *region = WR_LAYOUT(wr_no_destroy);
    void *frames[FRAMES_MAX];
    backtrace_symbols_fd(frames, backtrace(frames, FRAMES_MAX), STDERR_FILENO);
    char what[256];
    snprintf(what, sizeof what, "destroyed, or run, inside the region at %.180s:%d, by the calls listed above",
             region->file, region->line);
    wr_panic("WR_NO_DESTROY", kind, name, address, what);
}
