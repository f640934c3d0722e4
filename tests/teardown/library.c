/* A library beside libweakref, which it uses when the process is past its exit handlers. */
#include "everything.h"

#include <stdio.h>
#include <unistd.h>

extern int stages; /* how far exit.cc has come */
int stages;

/* The last that happens: what the exit status is to be, is known here. */
__attribute__((destructor)) static void library_end(void)
{
    int line = use_everything();
    bool over = everything_is_over();
    fprintf(stderr, "library: %d stages before it; line %d; %s\n", stages, line, over ? "over" : "not over");
    _exit(line == 0 && over && stages == 6 ? 0 : 1);
}
