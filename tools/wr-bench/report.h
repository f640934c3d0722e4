/* wr-bench: medians, ratios, tables, targets, JSON. */
#ifndef WR_BENCH_REPORT_H
#define WR_BENCH_REPORT_H

#include "run.h"

#include <cstdio>

namespace bench
{

/* One case with one number of threads, over the rounds of the contest's regime alone. */
struct Row {
    const Case *of;
    unsigned n_threads;
    Regime regime;
    size_t n_rounds, n_all; /* rounds in that regime, and of all regimes */
    double median, min;     /* ns per operation and thread */
    double of_ours;         /* median over rounds of this beside the contest's first own case; below 0: none */
};

/* The ratio of two series: the median over the rounds that both spent in @regime. Below 0: there is none. */
double ratio(const Series &above, const Series &below, Regime regime);

/* The regime in which most rounds of a contest with so many threads were: the one that is compared. */
Regime regime_of_contest(const Results &results, const char *contest, unsigned n_threads);

std::vector<Row> rows_of(const Results &results);

/* A row of design.md, section 8. */
struct Verdict {
    std::string what;
    std::string needed;
    std::string measured;
    std::string met; /* "met", "NOT MET", "-": not measured */
    double value;    /* below 0: not measured */
    Regime regime;
};
std::vector<Verdict> verdicts_of(const std::vector<Results> &all);

void print_group(FILE *out, const Results &results);
void print_targets(FILE *out, const std::vector<Verdict> &verdicts);
void print_absent(FILE *out, const std::vector<Results> &all);
void print_json(FILE *out, const std::vector<Results> &all);

} /* namespace bench */

#endif
