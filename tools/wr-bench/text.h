/* wr-bench: small helpers of the files that print. */
#ifndef WR_BENCH_TEXT_H
#define WR_BENCH_TEXT_H

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>

namespace bench
{

inline bool same(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

/* As printf, up to 159 characters. */
std::string format(const char *pattern, ...) __attribute__((format(printf, 1, 2)));
inline std::string format(const char *pattern, ...)
{
    char text[160];
    va_list args;
    va_start(args, pattern);
    vsnprintf(text, sizeof text, pattern, args);
    va_end(args);
    return text;
}

/* Below 0, which says that there is none: "-". */
inline std::string figure_text(double value, int digits)
{
    return value < 0 ? "-" : format("%.*f", digits, value);
}

} /* namespace bench */

#endif
