/* Messages and figures, as wr-demo writes them. */
#include "text.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int complain(const char *format, ...)
{
    fflush(stdout); /* so that the two streams stay in order */
    va_list args;
    va_start(args, format);
    fputs("wr-demo: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return EXIT_CANNOT;
}

void *need(void *memory)
{
    if (memory == NULL)
        exit(complain("out of memory"));
    return memory;
}

void need_done(int status)
{
    if (status != 0)
        exit(complain("cannot go on: %s", strerror(-status)));
}

struct figure with_commas(uint64_t n)
{
    char digits[24];
    int n_digits = snprintf(digits, sizeof digits, "%" PRIu64, n);
    struct figure figure = {""};
    char *to = figure.text;
    for (int i = 0; i < n_digits; i++) {
        if (i > 0 && (n_digits - i) % 3 == 0)
            *to++ = ',';
        *to++ = digits[i];
    }
    *to = '\0';
    return figure;
}

struct figure as_bytes(uint64_t n)
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB"};
    struct figure figure;
    if (n < 1024) {
        snprintf(figure.text, sizeof figure.text, "%" PRIu64 " bytes", n);
        return figure;
    }
    double size = (double)n / 1024;
    size_t unit = 0;
    while (size >= 1024 && unit + 1 < sizeof units / sizeof *units) {
        size /= 1024;
        unit++;
    }
    snprintf(figure.text, sizeof figure.text, "%.1f %s", size, units[unit]);
    return figure;
}

struct figure as_seconds(double seconds)
{
    struct figure figure;
    snprintf(figure.text, sizeof figure.text, "%.4g s", seconds);
    return figure;
}

struct figure count_of(uint64_t n, const char *one)
{
    struct figure figure = with_commas(n);
    size_t used = strlen(figure.text);
    snprintf(figure.text + used, sizeof figure.text - used, " %s%s", one, n == 1 ? "" : "s");
    return figure;
}
