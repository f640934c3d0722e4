/* Feeds a fuzz target where there is no libFuzzer: with files, folders of files, or bytes at random.
 *
 *     fuzz-dict FILE|FOLDER...
 *     fuzz-dict --random N [SEED]
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { MOST = 1 << 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned long n_run;

static int run_file(const char *path)
{
    static uint8_t data[MOST];
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        return 2;
    }
    size_t size = fread(data, 1, sizeof data, file);
    fclose(file);
    uint8_t *copy = malloc(size + 1); /* so that a sanitizer sees its end */
    if (copy == NULL)
        return 2;
    memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
    n_run++;
    return 0;
}

static int run_path(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode))
        return run_file(path);
    DIR *folder = opendir(path);
    if (folder == NULL) {
        perror(path);
        return 2;
    }
    int status = 0;
    for (struct dirent *entry; status == 0 && (entry = readdir(folder)) != NULL;) {
        char name[4096];
        int length = snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (entry->d_name[0] != '.' && length > 0 && (size_t)length < sizeof name)
            status = run_file(name);
    }
    closedir(folder);
    return status;
}

static void run_random(unsigned long n, uint64_t seed)
{
    printf("fuzz-dict --random %lu %llu\n", n, (unsigned long long)seed);
    fflush(stdout);
    for (; n > 0; n--, n_run++) {
        uint8_t data[2048];
        size_t size = 0;
        do {
            uint64_t z = (seed += UINT64_C(0x9e3779b97f4a7c15));
            z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
            z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
            z ^= z >> 31;
            memcpy(data + size, &z, sizeof z);
            size += sizeof z;
        } while (size < sizeof data);
        LLVMFuzzerTestOneInput(data, size);
    }
}

int main(int argc, char **argv)
{
    int status = 0;
    if (argc > 2 && strcmp(argv[1], "--random") == 0)
        run_random(strtoul(argv[2], NULL, 0), argc > 3 ? strtoull(argv[3], NULL, 0) : (uint64_t)time(NULL));
    else
        for (int i = 1; status == 0 && i < argc; i++)
            status = run_path(argv[i]);
    printf("%lu inputs\n", n_run);
    return status != 0 ? status : n_run > 0 ? 0 : 2;
}
