/*
 * Criterion runs each test in a process of its own and hands it an arena at an address that it
 * draws from rand_r(). Most of those lie inside ThreadSanitizer's shadow, where nothing can be
 * mapped, and no test would start ("Could not initialize inheritable arena"). This one draws
 * from a range that ThreadSanitizer leaves to programs.
 */
#include <stdlib.h>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WITH_TSAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define WITH_TSAN 1
#endif

#if defined(WITH_TSAN) && defined(__x86_64__)
int rand_r(unsigned *seed)
{
    *seed = *seed * 1103515245u + 12345u;
    return (int)(0x366000u + ((*seed >> 16) % 0x1e00u));
}
#endif
