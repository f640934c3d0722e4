/* The files of a folder, found before the run: what the workers ask for. */
#include "files.h"

#include "text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A growing array of paths; each is malloc()ed. */
struct paths {
    char **items;
    size_t n, room;
};

static void paths_push(struct paths *paths, char *path)
{
    if (paths->n == paths->room) {
        paths->room = paths->room == 0 ? 64 : paths->room * 2;
        paths->items = need(realloc(paths->items, paths->room * sizeof *paths->items));
    }
    paths->items[paths->n++] = path;
}

static void paths_free(struct paths *paths)
{
    while (paths->n > 0)
        free(paths->items[--paths->n]);
    free(paths->items);
}

/* "name" in the root ("."), else "folder/name". */
static char *join(const char *folder, const char *name)
{
    if (strcmp(folder, ".") == 0)
        return need(strdup(name));
    size_t size = strlen(folder) + 1 + strlen(name) + 1;
    char *path = need(malloc(size));
    snprintf(path, size, "%s/%s", folder, name);
    return path;
}

static int unreadable(const char *dir, const char *path, int error)
{
    return complain("cannot read '%s/%s': %s\n"
                    "         make it readable, or name a folder that you can read: wr-demo DIR",
                    dir, path, strerror(error));
}

/* Whether an entry that was there is no more, or is something else now: nobody's fault. */
static bool went_away(int error)
{
    return error == ENOENT || error == ENOTDIR || error == ELOOP || error == ESRCH;
}

/* Sees to one directory entry; takes @path over. Returns 0 or EXIT_CANNOT. */
static int visit(struct files *files, struct paths *found, struct paths *folders, const char *dir, char *path)
{
    int status = 0;
    struct stat info;
    if (fstatat(files->root, path, &info, AT_SYMLINK_NOFOLLOW) != 0) {
        if (!went_away(errno))
            status = unreadable(dir, path, errno);
    } else if (S_ISDIR(info.st_mode)) {
        paths_push(folders, path);
        return 0;
    } else if (!S_ISREG(info.st_mode)) {
        files->n_links++;
    } else if ((uint64_t)info.st_size > FILES_MAX_SIZE) {
        files->n_too_big++;
    } else {
        int fd = openat(files->root, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (fd >= 0) {
            close(fd);
            files->bytes += (uint64_t)info.st_size;
            paths_push(found, path);
            return 0;
        }
        if (!went_away(errno))
            status = unreadable(dir, path, errno);
    }
    free(path);
    return status;
}

/* Sees to all entries of one folder. Returns 0 or EXIT_CANNOT. */
static int visit_folder(struct files *files, struct paths *found, struct paths *folders, const char *dir,
                        const char *folder)
{
    int fd = openat(files->root, folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *stream = fd < 0 ? NULL : fdopendir(fd);
    if (stream == NULL) {
        int error = errno;
        if (fd >= 0)
            close(fd);
        return went_away(error) ? 0 : unreadable(dir, folder, error);
    }
    int status = 0;
    while (status == 0 && !files->cut) {
        errno = 0;
        struct dirent *entry = readdir(stream);
        if (entry == NULL) {
            if (errno != 0)
                status = unreadable(dir, folder, errno);
            break;
        }
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (found->n == FILES_MAX_COUNT)
            files->cut = 1;
        else
            status = visit(files, found, folders, dir, join(folder, entry->d_name));
    }
    closedir(stream);
    return status;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int files_walk(struct files *files, const char *dir)
{
    *files = (struct files){.root = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (files->root < 0) {
        int error = errno;
        if (error == ENOENT)
            return complain("there is no folder '%s'; name one that exists: wr-demo DIR", dir);
        if (error == ENOTDIR)
            return complain("'%s' is not a folder; name the folder it is in: wr-demo DIR", dir);
        return complain("cannot open the folder '%s': %s; name one that you can read: wr-demo DIR", dir,
                        strerror(error));
    }

    struct paths found = {0}, folders = {0};
    paths_push(&folders, need(strdup(".")));
    int status = 0;
    while (status == 0 && !files->cut && folders.n > 0) {
        char *folder = folders.items[--folders.n];
        status = visit_folder(files, &found, &folders, dir, folder);
        free(folder);
    }
    paths_free(&folders);

    files->paths = found.items;
    files->n_paths = found.n;
    if (found.n > 1)
        qsort(found.items, found.n, sizeof *found.items, by_name);
    if (status == 0 && found.n == 0)
        return complain("no file of up to %s in '%s'; name a folder with files: wr-demo DIR",
                        as_bytes(FILES_MAX_SIZE).text, dir);
    return status;
}

void files_free(struct files *files)
{
    struct paths paths = {files->paths, files->n_paths, 0};
    paths_free(&paths);
    if (files->root >= 0)
        close(files->root);
}
