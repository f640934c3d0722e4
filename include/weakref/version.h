/* F1 version: the version of these headers. */
#ifndef WEAKREF_VERSION_H
#define WEAKREF_VERSION_H

#define WR_VERSION_MAJOR 0
#define WR_VERSION_MINOR 1
#define WR_VERSION_PATCH 0
#define WR_VERSION "0.1.0"

#endif
