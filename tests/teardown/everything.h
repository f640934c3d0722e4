/* Every group of public calls, used once, with what has to come of it: for places where a thread or the process is about to end. */
#ifndef TESTS_EVERYTHING_H
#define TESTS_EVERYTHING_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Returns 0, or the line of everything.c that does not hold. */
int use_everything(void);

/* Waits until all that was put off by all calls so far has happened, and says whether it has: what died is destroyed, callbacks of
 * the default queue have run. Not beside use_everything(). */
bool everything_is_over(void);

#ifdef __cplusplus
}
#endif

#endif
