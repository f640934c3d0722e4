/* wr-bench, group memory: bytes of each of many objects, weak handles, watches and dictionary entries.
 *
 * Counted twice: what malloc says is in use (malloc_usable_size() and 8 bytes for each block), and the pages that the
 * process has got. Each figure is that of a process of its own, in which nothing was allocated and freed before.
 */
#include "maps.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <list>
#include <malloc.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
#include <weakref/weakref.h>

namespace bench
{

static const wr_type type = WR_TYPE_INIT(.name = "kept", .size = sizeof(Payload));

/* What stands alone takes the same whatever its number; a table does not. */
static const struct {
    const char *kind, *name;
    size_t n;
} counts[] = {{kind::object, "object", 10000},
              {kind::handle, "weak handle", 10000},
              {kind::watch, "watch", 10000},
              {kind::entry, "entry, 10k", 10000},
              {kind::entry, "entry, 1M", 1000000}};

/* ---- the meter ----------------------------------------------------------------------------------------- */

/* A sanitizer's allocator has other sizes, and tells malloc's statistics nothing. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
static const bool sanitized = true;
#else
static const bool sanitized = false;
#endif

static double in_use()
{
    struct mallinfo2 info = mallinfo2();
    return double(info.uordblks) + double(info.hblkhd);
}

static double pages()
{
    unsigned long all = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (file != nullptr) {
        if (fscanf(file, "%lu %lu", &all, &resident) != 2)
            resident = 0;
        fclose(file);
    }
    return double(resident) * double(sysconf(_SC_PAGESIZE));
}

void Meter::begin()
{
    (void)pages(); /* what the reading takes is there */
    malloc_trim(0);
    pages_begin = pages();
    in_use_begin = in_use();
}

void Meter::end()
{
    in_use_end = in_use();
    pages_end = pages();
}

/* ---- ours, and the C++ library's ------------------------------------------------------------------------ */

static std::vector<void *> make_objects(size_t n)
{
    std::vector<void *> objects(n);
    for (void *&obj : objects)
        obj = wr_new(&type);
    return objects;
}

static void our_objects(size_t n, Meter &meter)
{
    std::vector<void *> objects(n);
    meter.begin();
    for (void *&obj : objects)
        obj = wr_new(&type);
    meter.end();
}

static void our_handles(size_t n, Meter &meter)
{
    std::vector<void *> objects = make_objects(n);
    meter.begin();
    std::vector<wr_weak *> handles(n);
    for (size_t i = 0; i < n; i++)
        handles[i] = wr_downgrade(objects[i]);
    meter.end();
}

static void nothing(wr_weak *, void *) {}

static void our_watches(size_t n, Meter &meter)
{
    std::vector<void *> objects = make_objects(n);
    meter.begin();
    std::vector<wr_watch *> watches(n);
    for (size_t i = 0; i < n; i++)
        watches[i] = wr_watch_new(objects[i], WR_QUEUE_INLINE, nothing, nullptr);
    meter.end();
}

static void our_callbacks(size_t n, Meter &meter)
{
    std::vector<void *> objects = make_objects(n);
    meter.begin();
    for (void *obj : objects)
        (void)wr_on_death(obj, WR_QUEUE_INLINE, nothing, nullptr);
    meter.end();
}

static void our_entries(size_t n, Meter &meter)
{
    Keys keys(n);
    std::vector<void *> objects = make_objects(n);
    wr_value_dict *dict = wr_value_dict_new(nullptr);
    meter.begin();
    for (size_t i = 0; i < n; i++)
        (void)wr_value_dict_set(dict, keys.keys[i].data(), keys.keys[i].size(), objects[i]);
    (void)wr_barrier(); /* arrays that were outgrown */
    meter.end();
}

static void std_objects(size_t n, Meter &meter)
{
    std::vector<std::shared_ptr<Payload>> objects(n);
    meter.begin();
    for (std::shared_ptr<Payload> &obj : objects)
        obj = make_std();
    meter.end();
}

static void std_handles(size_t n, Meter &meter)
{
    std::vector<std::shared_ptr<Payload>> objects(n);
    for (std::shared_ptr<Payload> &obj : objects)
        obj = make_std();
    meter.begin();
    std::vector<std::weak_ptr<Payload>> handles(objects.begin(), objects.end());
    meter.end();
}

static void std_entries(size_t n, Meter &meter)
{
    Keys keys(n);
    std::vector<std::shared_ptr<Payload>> objects(n);
    for (std::shared_ptr<Payload> &obj : objects)
        obj = make_std();
    WeakMap map;
    meter.begin();
    for (size_t i = 0; i < n; i++)
        map[keys.keys[i]] = objects[i];
    meter.end();
}

static std::vector<Sizer> make_sizers()
{
    std::vector<Sizer> all = {
        {kind::object, "weakref", Role::ours, our_objects},
        {kind::object, "std::make_shared", Role::peer, std_objects},
        {kind::handle, "weakref", Role::ours, our_handles},
        {kind::handle, "std::weak_ptr", Role::peer, std_handles},
        {kind::watch, "weakref, wr_on_death()", Role::ours, our_callbacks},
        {kind::watch, "weakref, wr_watch_new()", Role::ours, our_watches},
        {kind::entry, "weakref", Role::ours, our_entries},
        {kind::entry, "unordered_map<string, weak_ptr>", Role::peer, std_entries},
    };
    for (const Peers &peers : all_peers())
        all.insert(all.end(), peers.sizers.begin(), peers.sizers.end());
    return all;
}

static const std::vector<Sizer> &sizers()
{
    static const std::vector<Sizer> all = make_sizers();
    return all;
}

/* ---- a process for each ----------------------------------------------------------------------------------- */

void measure_size(const char *which, const char *count)
{
    const Sizer &sizer = sizers().at(strtoul(which, nullptr, 10));
    Meter meter;
    sizer.run(strtoul(count, nullptr, 10), meter);
    printf("%.0f %.0f\n", meter.allocated(), meter.resident());
    fflush(stdout);
    _exit(0); /* nothing is taken down */
}

/* Returns what the program writes, or nothing if it cannot be run. */
static std::string output_of(char *const *argv)
{
    int ends[2];
    std::string text;
    if (pipe2(ends, O_CLOEXEC) != 0)
        return text;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    pid_t child;
    int failed = posix_spawn(&child, "/proc/self/exe", &actions, nullptr, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    if (failed == 0) {
        char part[256];
        for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;)
            text.append(part, size_t(n));
        int status;
        if (waitpid(child, &status, 0) != child || status != 0)
            text.clear();
    }
    close(ends[0]);
    return text;
}

struct Bytes {
    double allocated, resident; /* of one; below 0: cannot be told here */
};

static Bytes size_of(size_t which, size_t n)
{
    std::string index = std::to_string(which), count = std::to_string(n);
    char program[] = "wr-bench", option[] = "--size-of";
    char *const argv[] = {program, option, index.data(), count.data(), nullptr};
    Bytes bytes = {-1, -1};
    if (sanitized || sscanf(output_of(argv).c_str(), "%lf %lf", &bytes.allocated, &bytes.resident) != 2)
        return {-1, -1};
    double own = strcmp(sizers()[which].kind, kind::object) == 0 ? double(sizeof(Payload)) : 0;
    bytes.allocated = bytes.allocated < 0 || sizers()[which].hidden ? -1 : bytes.allocated / double(n) - own;
    bytes.resident = bytes.resident < 0 ? -1 : bytes.resident / double(n) - own;
    return bytes;
}

static std::vector<Figure> measure(double seconds)
{
    bool hurried = seconds > 0 && seconds < 0.1; /* a million takes seconds */
    static std::list<std::string> names;         /* to which the figures point */
    std::vector<Figure> figures;
    for (const auto &count : counts) {
        names.push_back(std::string(count.name) + ", pages");
        std::vector<Figure> resident;
        for (size_t i = 0; i < sizers().size(); i++) {
            const Sizer &sizer = sizers()[i];
            if (!sizer.run || strcmp(sizer.kind, count.kind) != 0)
                continue;
            Bytes bytes = hurried && count.n > 10000 ? Bytes{-1, -1} : size_of(i, count.n);
            figures.push_back({count.name, sizer.subject, sizer.role, bytes.allocated});
            resident.push_back({names.back().c_str(), sizer.subject, sizer.role, bytes.resident});
        }
        figures.insert(figures.end(), resident.begin(), resident.end());
    }
    return figures;
}

Group memory_group()
{
    Group group = {"memory",
                   "bytes of each of 10,000 (or a million): objects beside their 64, entries with keys of 23",
                   {},
                   measure};
    for (const Sizer &sizer : sizers())
        if (!sizer.run)
            group.cases.push_back({sizer.kind, sizer.subject, sizer.role, nullptr, sizer.absent});
    return group;
}

} /* namespace bench */
