/* wr-bench: medians, ratios, tables. */
#include "report.h"
#include "text.h"

#include <algorithm>

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

const Series *find_series(const Results &results, const char *contest, const char *subject, unsigned n_threads)
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
        const Series *ours = find_series(results, series.of->contest, nullptr, series.n_threads);
        rows.push_back({series.of, series.n_threads, regime, ns.size(), series.rounds.size(), median(ns),
                        ns.empty() ? -1 : *std::min_element(ns.begin(), ns.end()),
                        ours == nullptr ? -1 : ratio(series, *ours, regime)});
    }
    return rows;
}

/* ---- tables ------------------------------------------------------------------------------------------------ */

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
    contest = "";
    for (const Spread &spread : results.spreads) {
        if (!same(spread.contest, contest))
            fprintf(out, "  %-43s   median       p99     p99.9        max\n", spread.contest);
        contest = spread.contest;
        fprintf(out, "    %-41s %8.0f %9.0f %9.0f %10.0f\n", spread.subject, double(spread.times.quantile(0.5)),
                double(spread.times.quantile(0.99)), double(spread.times.quantile(0.999)), double(spread.times.max()));
    }
    fputc('\n', out);
}

void print_absent(FILE *out, const std::vector<Results> &all)
{
    std::vector<std::string> lines; /* a peer of many contests is told of once for each group */
    for (const Results &results : all)
        for (const Case &c : results.group->cases) {
            std::string line = std::string(results.group->name) + ", " + c.subject + ": " + (c.absent ? c.absent : "");
            if (c.make == nullptr && std::find(lines.begin(), lines.end(), line) == lines.end())
                lines.push_back(line);
        }
    if (lines.empty())
        return;
    fputs("absent peers\n", out);
    for (const std::string &line : lines)
        fprintf(out, "    %s\n", line.c_str());
    fputc('\n', out);
}

} /* namespace bench */
