/* The files of a folder, found before the run: what the workers ask for. */
#ifndef WR_DEMO_FILES_H
#define WR_DEMO_FILES_H

#include <stddef.h>
#include <stdint.h>

#define FILES_MAX_COUNT 20000u
#define FILES_MAX_SIZE (UINT64_C(4) << 20) /* of one file, in bytes */

struct files {
    int root;     /* the open folder, to which paths are relative */
    char **paths; /* regular files that could be opened for reading, sorted by name */
    size_t n_paths;
    uint64_t bytes;   /* of all of them */
    size_t n_too_big; /* left out: larger than FILES_MAX_SIZE */
    size_t n_links;   /* left out: symbolic links, and what else is no regular file */
    int cut;          /* there are more than FILES_MAX_COUNT */
};

/* Walks @dir with all folders below; symbolic links in it are not followed. Returns 0, or EXIT_CANNOT after a message:
 * no such folder, no file in it, or something in it cannot be read. Either way files_free() what is there. */
int files_walk(struct files *files, const char *dir);
void files_free(struct files *files);

#endif
