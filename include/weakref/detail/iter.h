/* F6 dict: what is inside an iterator of a dictionary or set: 128 bytes, wherever the program has them.
 *
 * All fields are the library's.
 */
#ifndef WEAKREF_DETAIL_ITER_H
#define WEAKREF_DETAIL_ITER_H

#include <weakref/types.h>

#include <pthread.h>

struct wr_dict;

struct wr_dict_stand {
    struct wr_dict *dict;              /* kept until the end; NULL: it has ended */
    const void *entry;                 /* what it stands on; NULL: nothing */
    struct wr_dict_stand *next, *prev; /* others that stand on entries of the same stripe. Guarded by its lock */
    pthread_t thread;                  /* that stands there */
    bool owes;                         /* the entry's memory is its to retire. Guarded by the stripe's lock */
    unsigned shard;                    /* where it is ... */
    uint64_t from;                     /* ... and from which tag on it looks */
};

struct wr_dict_iter {
    struct wr_dict_stand stand;
    unsigned char reserved[128 - sizeof(struct wr_dict_stand)];
};

#endif
