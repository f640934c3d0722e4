/* wr-bench: the ratios to reach, as a table, and whether they were. */
#include "report.h"
#include "text.h"

#include <algorithm>
#include <weakref/weakref.h>

namespace bench
{

enum class Bound {
    at_most,  /* ours / other */
    at_least, /* other / ours */
    flat,     /* ours / a load, over the same with one thread: one thread's clock is not that of two */
    ns        /* ours, in nanoseconds: says little about another machine than that of the target */
};

struct Target {
    const char *what;
    const char *group;
    const char *contest;
    const char *ours;
    std::vector<const char *> others; /* the fastest of them counts */
    unsigned n_threads;
    Bound bound;
    double value;
    double goal; /* 0: none beyond that */
};

static const char *const rmws = "bare fetch_add + fetch_sub";
static const char *const load = "plain load";
static const char *const get = "get, 1k strings of 23 bytes";
static const char *const life = "insert, 3 gets, drop, purge";
static const char *const queued = "create, callback on a queue, release";
static const char *const deleters = "shared_ptr deleter, mutex + condvar deque";
static const std::vector<const char *> maps = {
    "mutex + unordered_map<string, weak_ptr>", "the same in 64 shards, shared_mutex",
    "mutex + boost::unordered_flat_map", "boost::concurrent_flat_map", "TBB concurrent_hash_map"};

/* clang-format off */
static const Target targets[] = {
    {"upgrade + release / bare RMWs", "weak", "upgrade + release", "weakref", {rmws}, 1, Bound::at_most, 1.1, 0},
    {"upgrade + release / bare RMWs", "weak", "upgrade + release", "weakref", {rmws}, 2, Bound::at_most, 1.1, 0},
    {"std::weak_ptr / upgrade + release", "weak", "upgrade + release", "weakref", {"std::weak_ptr::lock"}, 2, Bound::at_least, 1.7, 0},
    {"Rust Weak / upgrade + release", "weak", "upgrade + release", "weakref", {"Rust Weak"}, 2, Bound::at_least, 1.7, 0},
    {"guard + peek", "guard", "guard + peek", "weakref, weak handle", {}, 1, Bound::ns, 1.2, 0},
    {"guard + slot peek", "guard", "guard + peek", "weakref, slot", {}, 1, Bound::ns, 1.2, 0},
    {"guard + peek / one thread's", "guard", "guard + peek", "weakref, weak handle", {load}, 2, Bound::flat, 1.1, 0},
    {"CDRC snapshot / guard + peek", "guard", "guard + peek", "weakref, weak handle", {"CDRC snapshot"}, 1, Bound::at_least, 4, 0},
    {"atomic<shared_ptr> / slot load", "slot", "slot load + release", "weakref", {"std::atomic<shared_ptr>"}, 1, Bound::at_least, 1.8, 0},
    {"atomic<shared_ptr> / slot load", "slot", "slot load + release", "weakref", {"std::atomic<shared_ptr>"}, 2, Bound::at_least, 4, 0},
    {"best C++ map / get, owned", "cache", get, "weakref, owned", maps, 1, Bound::at_least, 2, 0},
    {"best C++ map / get, owned", "cache", get, "weakref, owned", maps, 2, Bound::at_least, 2, 0},
    {"best C++ map / peek", "cache", get, "weakref, peek in a guard", maps, 1, Bound::at_least, 3, 0},
    {"best C++ map / peek", "cache", get, "weakref, peek in a guard", maps, 2, Bound::at_least, 3, 0},
    {"best C++ map / one cache life", "churn", life, "weakref", maps, 1, Bound::at_least, 1.5, 0},
    {"best C++ map / one cache life", "churn", life, "weakref", maps, 2, Bound::at_least, 1, 0},
    {"shared_ptr + deque / callbacks", "callbacks", queued, "weakref", {deleters}, 1, Bound::at_least, 1.5, 1.8},
    {"shared_ptr + deque / callbacks", "callbacks", queued, "weakref", {deleters}, 2, Bound::at_least, 1.5, 1.8},
    {"create + release / malloc + free", "create", "create + release, 64 bytes", "weakref", {"malloc + free"}, 1, Bound::at_most, 1.25, 1.1},
};

/* What is counted in bytes, of ours: each contest that begins with that name. What malloc gave is compared, not pages. */
static const struct Bytes {
    const char *contest;
    double value;
    double goal;
} bytes[] = {
    {"header", 16, 0},
    {"weak handle", 8, 0},
    {"entry", 112, 96},
};
/* clang-format on */

/* Nothing of 0. */
static std::string with_unit(const char *pattern, double value, const char *unit)
{
    return value <= 0 ? "" : format(pattern, value, unit);
}

static void decide(Verdict *verdict, double value, bool met, const char *measured, const char *unit)
{
    verdict->value = value;
    if (value < 0)
        return;
    verdict->measured = format(measured, value, unit);
    verdict->met = met ? "met" : "NOT MET";
}

static Verdict judge(const Target &target, const Results &results)
{
    Verdict verdict = {target.what, "", "", "-", "-", "", -1, Regime::none, {}};
    const char *unit = target.bound == Bound::ns ? " ns" : "x";
    verdict.what += format(", %u thread%s", target.n_threads, target.n_threads == 1 ? "" : "s");
    verdict.needed = (target.bound == Bound::at_least ? "at least " : "at most ") + format("%g%s", target.value, unit);
    verdict.goal = with_unit("%g%s", target.goal, unit);

    Regime regime = regime_of_contest(results, target.contest, target.n_threads);
    const Series *ours = find_series(results, target.contest, target.ours, target.n_threads);
    if (ours == nullptr)
        return verdict;
    const Series *other = nullptr;
    double other_of_ours = -1;
    for (const char *name : target.others) {
        const Series *series = find_series(results, target.contest, name, target.n_threads);
        double of_ours = series == nullptr ? -1 : ratio(*series, *ours, regime);
        if (series == nullptr)
            verdict.absent.push_back(name);
        else if (of_ours > 0 && (other == nullptr || of_ours < other_of_ours)) {
            other = series;
            other_of_ours = of_ours;
        }
    }
    if (other != nullptr)
        verdict.beside = other->of->subject;
    else if (target.bound != Bound::ns)
        return verdict;

    verdict.regime = regime;
    double value = -1;
    switch (target.bound) {
    case Bound::at_least:
        value = other_of_ours;
        break;
    case Bound::at_most:
        value = ratio(*ours, *other, regime);
        break;
    case Bound::flat: {
        const Series *ours_alone = find_series(results, target.contest, target.ours, 1);
        const Series *other_alone = find_series(results, target.contest, other->of->subject, 1);
        if (ours_alone == nullptr || other_alone == nullptr)
            break;
        double alone = ratio(*ours_alone, *other_alone, Regime::none), together = ratio(*ours, *other, regime);
        value = alone > 0 && together > 0 ? together / alone : -1;
        break;
    }
    case Bound::ns:
        for (const Row &row : rows_of(results))
            if (row.of == ours->of && row.n_threads == target.n_threads)
                value = row.median;
        break;
    }
    decide(&verdict, value, target.bound == Bound::at_least ? value >= target.value : value <= target.value, "%.2f%s",
           unit);
    return verdict;
}

static bool is_about(const Figure &figure, const Bytes &target)
{
    return figure.role == Role::ours && strncmp(figure.contest, target.contest, strlen(target.contest)) == 0 &&
           strstr(figure.contest, "pages") == nullptr;
}

static Verdict judge(const Bytes &target, const Figure &figure)
{
    Verdict verdict = {figure.contest, "", "", "-", "-", "", -1, Regime::none, {}};
    verdict.needed = format("at most %g bytes", target.value);
    verdict.goal = with_unit("%g%s", target.goal, " bytes");
    /* Of thousands, in one array: its own header is no byte of theirs. */
    decide(&verdict, figure.value, figure.value < target.value + 0.5, "%.0f%s", " bytes");
    return verdict;
}

std::vector<Verdict> verdicts_of(const std::vector<Results> &all)
{
    std::vector<Verdict> verdicts;
    for (const Target &target : targets)
        for (const Results &results : all)
            if (same(results.group->name, target.group))
                verdicts.push_back(judge(target, results));
    for (const Results &results : all) {
        std::vector<Figure> figures = results.figures;
        if (same(results.group->name, "memory"))
            figures.push_back({"header", "weakref", Role::ours, double(sizeof(wr_header))});
        for (const Bytes &target : bytes)
            for (const Figure &figure : figures)
                if (is_about(figure, target))
                    verdicts.push_back(judge(target, figure));
    }
    return verdicts;
}

void print_targets(FILE *out, const std::vector<Verdict> &verdicts)
{
    if (verdicts.empty())
        return;
    fprintf(out, "%-49s %-17s %10s  %-7s %s\n", "targets", "needed", "measured", "", "regime");
    std::vector<std::string> absent;
    for (const Verdict &v : verdicts) {
        fprintf(out, "  %-47s %-17s %10s  %-7s %s\n", v.what.c_str(), v.needed.c_str(), v.measured.c_str(),
                v.met.c_str(), regime_name(v.regime));
        if (v.value >= 0)
            for (const std::string &name : v.absent)
                if (std::find(absent.begin(), absent.end(), name) == absent.end())
                    absent.push_back(name);
    }
    for (const std::string &name : absent)
        fprintf(out, "  without %s\n", name.c_str());
}

} /* namespace bench */
