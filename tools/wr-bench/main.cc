/* wr-bench: the hot paths beside their peers and beside the least that the hardware takes, in one process. */
#include "peers.h"
#include "report.h"

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <getopt.h>
#include <unistd.h>
#include <weakref/version.h>

using namespace bench;

static const unsigned MAX_THREADS = 256;
static const double MAX_SECONDS = 3600;

/* clang-format off */
static const char usage[] =
    "usage: wr-bench [--group NAMES] [--threads COUNTS] [--seconds S] [--json FILE] [--csv FILE]\n"
    "                [--compare OLD.json]\n"
    "\n"
    "Measures the library's hot paths beside other libraries' and beside bare atomic\n"
    "operations. Cases of one contest take turns, round by round, in one process; compare\n"
    "ratios of one run, never nanoseconds of two.\n"
    "\n"
    "  -g, --group NAMES     some groups, with commas: counts, weak, guard, slot, create,\n"
    "                        map, cache, churn, callbacks, memory, latency (default: all)\n"
    "  -t, --threads COUNTS  how many threads, with commas, each 1 to 256 (default: 1,2)\n"
    "  -s, --seconds S       for each group, 0.01 to 3600 (default: as long as 7 rounds of\n"
    "                        30 ms take for each case)\n"
    "  -j, --json FILE       all rounds, as JSON, too; - is standard output, without tables\n"
    "  -c, --csv FILE        medians, minima and ratios, as CSV, too; - as above\n"
    "  -o, --compare OLD     a table of the ratios beside those in OLD, which --json wrote earlier: each to\n"
    "                        the limit or the first peer of its own run; above 0 %: slower than it was\n"
    "  -h, --help            this text\n"
    "  -V, --version         the version\n"
    "\n"
    "Exits 0 whatever the figures; 2: wrong usage, OLD cannot be used, or FILE cannot be written.\n";
/* clang-format on */

namespace
{

struct Options {
    std::vector<Group> groups;
    Plan plan = {{1, 2}, 0, false};
    const char *json = nullptr, *csv = nullptr, *compare = nullptr;
};

} /* namespace */

static int complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
static int complain(const char *format, ...)
{
    fputs("wr-bench: ", stderr);
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    return 2;
}

static std::vector<std::string> split(const char *text)
{
    std::vector<std::string> parts(1);
    for (; *text != '\0'; text++)
        if (*text == ',')
            parts.emplace_back();
        else
            parts.back() += *text;
    return parts;
}

static int parse_groups(const char *text, const std::vector<Group> &known, std::vector<Group> *groups)
{
    groups->clear();
    for (const std::string &name : split(text)) {
        auto same_name = [&](const Group &group) { return name == group.name; };
        auto found = std::find_if(known.begin(), known.end(), same_name);
        if (found == known.end())
            return complain("there is no group '%s'; see wr-bench --help", name.c_str());
        if (std::none_of(groups->begin(), groups->end(), same_name))
            groups->push_back(*found);
    }
    return 0;
}

static int parse_threads(const char *text, std::vector<unsigned> *n_threads)
{
    n_threads->clear();
    for (const std::string &part : split(text)) {
        char *end;
        errno = 0;
        long n = strtol(part.c_str(), &end, 10);
        if (errno != 0 || part.empty() || *end != '\0' || n < 1 || n > long(MAX_THREADS))
            return complain("--threads takes whole numbers from 1 to %u with commas, not '%s'", MAX_THREADS, text);
        n_threads->push_back(unsigned(n));
    }
    std::sort(n_threads->begin(), n_threads->end());
    n_threads->erase(std::unique(n_threads->begin(), n_threads->end()), n_threads->end());
    return 0;
}

static int parse_seconds(const char *text, double *seconds)
{
    char *end;
    double s = strtod(text, &end);
    if (end == text || *end != '\0' || !(s >= 0.01 && s <= MAX_SECONDS))
        return complain("--seconds takes a number from 0.01 to %.0f, not '%s'", MAX_SECONDS, text);
    *seconds = s;
    return 0;
}

static bool is_stdout(const char *path)
{
    return path != nullptr && strcmp(path, "-") == 0;
}

/* Returns -1 to go on, else the exit status. */
static int parse(int argc, char **argv, const std::vector<Group> &known, Options *options)
{
    static const struct option long_options[] = {
        {"group", required_argument, nullptr, 'g'},
        {"threads", required_argument, nullptr, 't'},
        {"seconds", required_argument, nullptr, 's'},
        {"json", required_argument, nullptr, 'j'},
        {"csv", required_argument, nullptr, 'c'},
        {"compare", required_argument, nullptr, 'o'},
        {"help", no_argument, nullptr, 'h'},
        {"version", no_argument, nullptr, 'V'},
        {nullptr, 0, nullptr, 0},
    };
    opterr = 0;
    int status = 0;
    while (status == 0) {
        int option = getopt_long(argc, argv, ":g:t:s:j:c:o:hV", long_options, nullptr);
        if (option == -1)
            break;
        switch (option) {
        case 'g':
            status = parse_groups(optarg, known, &options->groups);
            break;
        case 't':
            status = parse_threads(optarg, &options->plan.n_threads);
            break;
        case 's':
            status = parse_seconds(optarg, &options->plan.seconds);
            break;
        case 'j':
            options->json = optarg;
            break;
        case 'c':
            options->csv = optarg;
            break;
        case 'o':
            options->compare = optarg;
            break;
        case 'h':
            fputs(usage, stdout);
            return 0;
        case 'V':
            puts("wr-bench " WR_VERSION);
            return 0;
        case ':':
            return complain("%s wants a value; see wr-bench --help", argv[optind - 1]);
        default:
            return complain("there is no option %s; see wr-bench --help", argv[optind - 1]);
        }
    }
    if (status != 0)
        return status;
    if (argc > optind)
        return complain("'%s' is one word too many; see wr-bench --help", argv[optind]);
    if (is_stdout(options->json) && is_stdout(options->csv))
        return complain("only one of --json and --csv can be standard output");
    if (options->compare != nullptr && (is_stdout(options->json) || is_stdout(options->csv)))
        return complain("--compare prints a table: --json and --csv cannot be standard output then");
    return -1;
}

/* A file that is written in the end, and opened before anything is measured. */
class Output
{
  public:
    explicit Output(const char *name) : path(name)
    {
        if (is_stdout(path))
            file = stdout;
        else if (path != nullptr)
            file = fopen(path, "w");
    }
    Output(const Output &) = delete;
    Output &operator=(const Output &) = delete;
    ~Output()
    {
        if (file != nullptr && file != stdout)
            fclose(file);
    }

    bool is_bad() const
    {
        return path != nullptr && file == nullptr;
    }

    /* Returns the exit status. */
    int write(void (*print)(FILE *out, const std::vector<Results> &all), const std::vector<Results> &all)
    {
        if (file == nullptr)
            return 0;
        print(file, all);
        bool failed = ferror(file) != 0;
        if (file != stdout)
            failed |= fclose(file) != 0;
        file = nullptr;
        return failed ? complain() : 0;
    }

    int complain() const
    {
        return ::complain("cannot write '%s': %s", path, strerror(errno));
    }

  private:
    const char *path;
    FILE *file = nullptr;
};

static int run(const Options &options)
{
    std::unique_ptr<Saved, void (*)(Saved *)> old(nullptr, free_saved);
    if (options.compare != nullptr) { /* first of all: it may be the file that is written */
        std::string why;
        old.reset(read_saved(options.compare, &why));
        if (old == nullptr)
            return complain("%s", why.c_str());
    }
    Output json(options.json), csv(options.csv);
    if (json.is_bad() || csv.is_bad())
        return json.is_bad() ? json.complain() : csv.complain();

    bool tables = !is_stdout(options.json) && !is_stdout(options.csv);
    std::vector<Results> all;
    {
        Runner runner(options.plan);
        for (const Group &group : options.groups) {
            all.push_back(runner.run(group));
            if (tables) {
                print_group(stdout, all.back());
                fflush(stdout);
            }
        }
    }
    if (tables) {
        print_absent(stdout, all);
        print_targets(stdout, verdicts_of(all));
    }
    if (old != nullptr)
        print_compared(stdout, *old, all);
    int json_status = json.write(print_json, all), csv_status = csv.write(print_csv, all);
    return std::max(json_status, csv_status);
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "--size-of") == 0) /* the group memory calls this program */
        measure_size(argv[2], argv[3]);
    const std::vector<Group> known = {counts_group(),    weak_group(),   guard_group(),  slot_group(),
                                      create_group(),    map_group(),    cache_group(),  churn_group(),
                                      callbacks_group(), memory_group(), latency_group()};
    Options options;
    options.groups = known;
    options.plan.progress = isatty(STDERR_FILENO) == 1;
    int status = parse(argc, argv, known, &options);
    if (status == -1)
        status = run(options);
    if ((fflush(stdout) != 0 || ferror(stdout)) && status == 0)
        status = complain("cannot write to standard output: %s", strerror(errno));
    return status;
}
