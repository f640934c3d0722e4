/* Messages and figures, as wr-demo writes them. */
#ifndef WR_DEMO_TEXT_H
#define WR_DEMO_TEXT_H

#include <stddef.h>
#include <stdint.h>

enum { EXIT_VERDICT = 1, EXIT_CANNOT = 2 }; /* the run went wrong; it could not be made */

/* "wr-demo: ..." and a newline on standard error. Returns EXIT_CANNOT. */
int complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Memory or nothing: ends the program with EXIT_CANNOT if @memory is NULL. */
void *need(void *memory);

/* The same if @status is no 0 but a negative errno. */
void need_done(int status);

struct figure {
    char text[32];
};
struct figure with_commas(uint64_t n);    /* 1,234,567 */
struct figure as_bytes(uint64_t n);       /* 512 bytes, 3.4 MiB */
struct figure as_seconds(double seconds); /* 3 s, 0.25 s */

/* "1 file", "2,000 files": the figure with @one, and an s unless it is 1. */
struct figure count_of(uint64_t n, const char *one);

#endif
