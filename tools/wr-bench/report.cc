/* wr-bench: medians, ratios, tables, targets, JSON. */
#include "report.h"

#include <algorithm>
#include <cstdarg>
#include <cstring>
#include <weakref/version.h>

namespace bench
{

static double median(std::vector<double> values)
{
    if (values.empty())
        return -1;
    std::sort(values.begin(), values.end());
    size_t n = values.size();
    return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

static std::string format(const char *pattern, ...) __attribute__((format(printf, 1, 2)));
static std::string format(const char *pattern, ...)
{
    char text[160];
    va_list args;
    va_start(args, pattern);
    vsnprintf(text, sizeof text, pattern, args);
    va_end(args);
    return text;
}

static bool same(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

double ratio(const Series &above, const Series &below, Regime regime)
{
    std::vector<double> paired, all_above, all_below;
    size_t n = std::min(above.rounds.size(), below.rounds.size());
    for (size_t r = 0; r < n; r++) {
        const Sample &a = above.rounds[r], &b = below.rounds[r];
        if (a.regime == regime && a.ns > 0)
            all_above.push_back(a.ns);
        if (b.regime == regime && b.ns > 0)
            all_below.push_back(b.ns);
        if (a.regime == regime && b.regime == regime && a.ns > 0 && b.ns > 0)
            paired.push_back(a.ns / b.ns);
    }
    if (!paired.empty())
        return median(paired);
    return all_above.empty() || all_below.empty() ? -1 : median(all_above) / median(all_below);
}

Regime regime_of_contest(const Results &results, const char *contest, unsigned n_threads)
{
    size_t counts[5] = {0};
    for (const Series &series : results.series)
        if (series.n_threads == n_threads && same(series.of->contest, contest))
            for (const Sample &sample : series.rounds)
                counts[unsigned(sample.regime)]++;
    Regime best = Regime::none;
    for (Regime regime : {Regime::near, Regime::middle, Regime::far})
        if (counts[unsigned(regime)] > counts[unsigned(best)])
            best = regime;
    return best;
}

static const Series *find(const Results &results, const char *contest, const char *subject, unsigned n_threads)
{
    for (const Series &series : results.series)
        if (series.n_threads == n_threads && same(series.of->contest, contest) &&
            (subject == nullptr ? series.of->role == Role::ours : same(series.of->subject, subject)))
            return &series;
    return nullptr;
}

std::vector<Row> rows_of(const Results &results)
{
    std::vector<Row> rows;
    for (const Series &series : results.series) {
        Regime regime = regime_of_contest(results, series.of->contest, series.n_threads);
        std::vector<double> ns;
        for (const Sample &sample : series.rounds)
            if (sample.regime == regime && sample.ns > 0)
                ns.push_back(sample.ns);
        const Series *ours = find(results, series.of->contest, nullptr, series.n_threads);
        rows.push_back({series.of, series.n_threads, regime, ns.size(), series.rounds.size(), median(ns),
                        ns.empty() ? -1 : *std::min_element(ns.begin(), ns.end()),
                        ours == nullptr ? -1 : ratio(series, *ours, regime)});
    }
    return rows;
}

/* ---- targets ---------------------------------------------------------------------------------------------- */

enum class Bound {
    at_most,  /* ours / other */
    at_least, /* other / ours */
    ns        /* ours, in nanoseconds: says little about another machine than that of the target */
};

struct Target {
    const char *what;
    const char *group;
    const char *contest;
    const char *ours;
    const char *other; /* NULL: the same with one thread */
    unsigned n_threads;
    Bound bound;
    double value;
};

static const char *const locked = "mutex + unordered_map<string, weak_ptr>";
static const char *const get = "get, 1k strings of 23 bytes";
static const char *const life = "insert, 3 gets, drop, purge";
static const char *const queued = "create, callback on a queue, release";
static const char *const deleters = "shared_ptr deleter, mutex + condvar deque";

static const Target targets[] = {
    {"upgrade + release / bare RMWs", "weak", "upgrade + release", "weakref", "bare fetch_add + fetch_sub", 1,
     Bound::at_most, 1.1},
    {"upgrade + release / bare RMWs", "weak", "upgrade + release", "weakref", "bare fetch_add + fetch_sub", 2,
     Bound::at_most, 1.1},
    {"std::weak_ptr / upgrade + release", "weak", "upgrade + release", "weakref", "std::weak_ptr::lock", 2,
     Bound::at_least, 1.7},
    {"guard + peek", "guard", "guard + peek", "weakref, weak handle", nullptr, 1, Bound::ns, 1.2},
    {"guard + slot peek", "guard", "guard + peek", "weakref, slot", nullptr, 1, Bound::ns, 1.2},
    {"guard + peek / loads, over one thread's", "guard", "guard + peek", "weakref, weak handle", nullptr, 2,
     Bound::at_most, 1.1},
    {"atomic<shared_ptr> / slot load", "slot", "slot load + release", "weakref", "std::atomic<shared_ptr>", 1,
     Bound::at_least, 1.8},
    {"atomic<shared_ptr> / slot load", "slot", "slot load + release", "weakref", "std::atomic<shared_ptr>", 2,
     Bound::at_least, 4},
    {"unordered_map / get, owned", "cache", get, "weakref, owned", locked, 1, Bound::at_least, 2},
    {"unordered_map / get, owned", "cache", get, "weakref, owned", locked, 2, Bound::at_least, 2},
    {"unordered_map / peek", "cache", get, "weakref, peek in a guard", locked, 1, Bound::at_least, 3},
    {"unordered_map / peek", "cache", get, "weakref, peek in a guard", locked, 2, Bound::at_least, 3},
    {"unordered_map / one cache life", "churn", life, "weakref", locked, 1, Bound::at_least, 1.5},
    {"unordered_map / one cache life", "churn", life, "weakref", locked, 2, Bound::at_least, 1},
    {"shared_ptr + deque / callbacks", "callbacks", queued, "weakref", deleters, 1, Bound::at_least, 1.5},
    {"shared_ptr + deque / callbacks", "callbacks", queued, "weakref", deleters, 2, Bound::at_least, 1.5},
    {"create + release / malloc + free", "create", "create + release, 64 bytes", "weakref", "malloc + free", 1,
     Bound::at_most, 1.25},
};

static Verdict judge(const Target &target, const Results &results)
{
    Verdict verdict = {target.what, "", "-", "-", -1, Regime::none};
    const char *compared = target.bound == Bound::at_least ? "at least" : "at most";
    const char *unit = target.bound == Bound::ns ? " ns" : "x";
    verdict.what += format(", %u thread%s", target.n_threads, target.n_threads == 1 ? "" : "s");
    verdict.needed = format("%s %g%s", compared, target.value, unit);

    const Series *ours = find(results, target.contest, target.ours, target.n_threads);
    const Series *other = target.other == nullptr ? find(results, target.contest, target.ours, 1)
                                                  : find(results, target.contest, target.other, target.n_threads);
    if (ours == nullptr || other == nullptr)
        return verdict;
    verdict.regime = regime_of_contest(results, target.contest, target.n_threads);
    switch (target.bound) {
    case Bound::at_least:
        verdict.value = ratio(*other, *ours, verdict.regime);
        break;
    case Bound::at_most:
        if (target.other != nullptr) {
            verdict.value = ratio(*ours, *other, verdict.regime);
            break;
        }
        /* Both beside a plain load, since one thread's clock is not that of two. */
        if (const Series *load = find(results, target.contest, "plain load", target.n_threads)) {
            const Series *load_alone = find(results, target.contest, "plain load", 1);
            double alone = ratio(*other, *load_alone, Regime::none);
            double together = ratio(*ours, *load, verdict.regime);
            verdict.value = alone > 0 && together > 0 ? together / alone : -1;
        }
        break;
    case Bound::ns:
        for (const Row &row : rows_of(results))
            if (row.of == ours->of && row.n_threads == target.n_threads)
                verdict.value = row.median;
        break;
    }
    if (verdict.value < 0)
        return verdict;
    verdict.measured = format("%.2f%s", verdict.value, unit);
    bool met = target.bound == Bound::at_least ? verdict.value >= target.value : verdict.value <= target.value;
    verdict.met = met ? "met" : "NOT MET";
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
        for (const Figure &figure : results.figures) {
            if (figure.role != Role::ours || strncmp(figure.contest, "entry", 5) != 0)
                continue;
            Verdict verdict = {figure.contest, "at most 112 bytes", "-", "-", figure.value, Regime::none};
            if (figure.value >= 0) {
                verdict.measured = format("%.0f bytes", figure.value);
                verdict.met = figure.value <= 112 ? "met" : "NOT MET";
            }
            verdicts.push_back(verdict);
        }
    }
    return verdicts;
}

/* ---- tables ------------------------------------------------------------------------------------------------ */

static std::string figure_text(double value, int digits)
{
    return value < 0 ? "-" : format("%.*f", digits, value);
}

void print_group(FILE *out, const Results &results)
{
    fprintf(out, "%s: %s\n", results.group->name, results.group->about);
    const char *contest = "";
    std::vector<Row> rows = rows_of(results);
    std::stable_sort(rows.begin(), rows.end(), [](const Row &a, const Row &b) {
        return same(a.of->contest, b.of->contest) ? a.n_threads < b.n_threads : a.of < b.of;
    });
    for (size_t i = 0; i < rows.size(); i++) {
        const Row &row = rows[i];
        if (!same(row.of->contest, contest)) {
            contest = row.of->contest;
            fprintf(out, "  %-43s thr   median      min   /ours  regime (rounds)\n", contest);
        }
        fprintf(out, "    %-41s %3u %8s %8s %7s  ", row.of->subject, row.n_threads,
                figure_text(row.median, row.median < 100 ? 2 : 1).c_str(),
                figure_text(row.min, row.min < 100 ? 2 : 1).c_str(), figure_text(row.of_ours, 2).c_str());
        if (row.regime == Regime::none && row.n_rounds > 0)
            fprintf(out, "-\n");
        else
            fprintf(out, "%s (%zu of %zu)\n", regime_name(row.regime), row.n_rounds, row.n_all);
    }
    contest = "";
    for (const Figure &figure : results.figures) {
        fprintf(out, "  %-29s %-33s %6s bytes\n", same(figure.contest, contest) ? "" : figure.contest, figure.subject,
                figure_text(figure.value, 1).c_str());
        contest = figure.contest;
    }
    fputc('\n', out);
}

void print_targets(FILE *out, const std::vector<Verdict> &verdicts)
{
    if (verdicts.empty())
        return;
    fprintf(out, "%-49s %-17s %10s  %-7s %s\n", "targets", "needed", "measured", "", "regime");
    for (const Verdict &v : verdicts)
        fprintf(out, "  %-47s %-17s %10s  %-7s %s\n", v.what.c_str(), v.needed.c_str(), v.measured.c_str(),
                v.met.c_str(), regime_name(v.regime));
    fputs("The map of the targets is the best in C++; the one here is the standard library's.\n", out);
}

void print_absent(FILE *out, const std::vector<Results> &all)
{
    bool any = false;
    for (const Results &results : all)
        for (const Case &c : results.group->cases)
            if (c.make == nullptr) {
                fprintf(out, "%s    %s, %s: %s\n", any ? "" : "absent peers\n", results.group->name, c.subject,
                        c.absent);
                any = true;
            }
    if (any)
        fputc('\n', out);
}

/* ---- JSON ------------------------------------------------------------------------------------------------- */

static std::string quoted(const std::string &text)
{
    std::string json = "\"";
    for (char c : text) {
        if (c == '"' || c == '\\')
            json += '\\';
        json += c;
    }
    return json + "\"";
}

static std::string quoted_role(Role role)
{
    return role == Role::ours ? "\"ours\"" : role == Role::peer ? "\"peer\"" : "\"limit\"";
}

static std::string number(double value)
{
    return value < 0 ? "null" : format("%.4g", value);
}

static void print_case(FILE *out, const Results &results, const Row &row, const Series &series)
{
    fprintf(out,
            "    {\"group\": %s, \"contest\": %s, \"subject\": %s, \"role\": %s, \"threads\": %u, \"unit\": \"ns\",\n"
            "     \"median\": %s, \"min\": %s, \"of_ours\": %s, \"regime\": %s,\n     \"rounds\": [",
            quoted(results.group->name).c_str(), quoted(row.of->contest).c_str(), quoted(row.of->subject).c_str(),
            quoted_role(row.of->role).c_str(), row.n_threads, number(row.median).c_str(), number(row.min).c_str(),
            number(row.of_ours).c_str(), quoted(regime_name(row.regime)).c_str());
    const char *comma = "";
    for (const Sample &sample : series.rounds) {
        fprintf(out, "%s{\"ns\": %s, \"probe\": [%.0f, %.0f], \"regime\": %s}", comma, number(sample.ns).c_str(),
                sample.probe_before, sample.probe_after, quoted(regime_name(sample.regime)).c_str());
        comma = ", ";
    }
    fputs("]}", out);
}

void print_json(FILE *out, const std::vector<Results> &all)
{
    fprintf(out, "{\n  \"version\": %s,\n  \"processors\": %u,\n  \"cases\": [", quoted(WR_VERSION).c_str(),
            n_processors());
    const char *comma = "\n";
    for (const Results &results : all) {
        std::vector<Row> rows = rows_of(results);
        for (size_t i = 0; i < rows.size(); i++) {
            fputs(comma, out);
            print_case(out, results, rows[i], results.series[i]);
            comma = ",\n";
        }
        for (const Figure &figure : results.figures) {
            fprintf(out,
                    "%s    {\"group\": %s, \"contest\": %s, \"subject\": %s, \"role\": %s, \"unit\": \"bytes\", "
                    "\"value\": %s}",
                    comma, quoted(results.group->name).c_str(), quoted(figure.contest).c_str(),
                    quoted(figure.subject).c_str(), quoted_role(figure.role).c_str(), number(figure.value).c_str());
            comma = ",\n";
        }
    }
    fputs("\n  ],\n  \"absent\": [", out);
    comma = "\n";
    for (const Results &results : all)
        for (const Case &c : results.group->cases)
            if (c.make == nullptr) {
                fprintf(out, "%s    {\"group\": %s, \"subject\": %s, \"why\": %s}", comma,
                        quoted(results.group->name).c_str(), quoted(c.subject).c_str(), quoted(c.absent).c_str());
                comma = ",\n";
            }
    fputs("\n  ],\n  \"targets\": [", out);
    comma = "\n";
    for (const Verdict &v : verdicts_of(all)) {
        fprintf(out, "%s    {\"what\": %s, \"needed\": %s, \"measured\": %s, \"met\": %s, \"regime\": %s}", comma,
                quoted(v.what).c_str(), quoted(v.needed).c_str(), number(v.value).c_str(),
                v.value < 0      ? "null"
                : v.met == "met" ? "true"
                                 : "false",
                quoted(regime_name(v.regime)).c_str());
        comma = ",\n";
    }
    fputs("\n  ]\n}\n", out);
}

} /* namespace bench */
