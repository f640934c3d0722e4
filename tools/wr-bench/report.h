/* wr-bench: medians and ratios, and what is made of them: tables, targets, JSON, CSV. */
#ifndef WR_BENCH_REPORT_H
#define WR_BENCH_REPORT_H

#include "run.h"

#include <cstdio>

namespace bench
{

/* ---- report.cc: figures, tables --------------------------------------------------------------------------- */

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

/* NULL: it is not among the results. Without @subject: the contest's first own case. */
const Series *find_series(const Results &results, const char *contest, const char *subject, unsigned n_threads);

std::vector<Row> rows_of(const Results &results);

void print_group(FILE *out, const Results &results);
void print_absent(FILE *out, const std::vector<Results> &all);

/* ---- targets.cc: what is to be reached -------------------------------------------------------------------- */

struct Verdict {
    std::string what;
    std::string needed;
    std::string goal; /* beyond what is needed; may be empty */
    std::string measured;
    std::string met;    /* "met", "NOT MET", "-": not measured */
    std::string beside; /* the subject it was compared with; empty: none */
    double value;       /* below 0: not measured */
    Regime regime;
    std::vector<std::string> absent; /* those it should have been compared with, too */
};

/* Those of the groups that were measured. */
std::vector<Verdict> verdicts_of(const std::vector<Results> &all);
void print_targets(FILE *out, const std::vector<Verdict> &verdicts);

/* ---- save.cc: for other programs -------------------------------------------------------------------------- */

void print_json(FILE *out, const std::vector<Results> &all);

/* A line of names, then a line for each case, figure and spread; fields that do not apply are empty. RFC 4180. */
void print_csv(FILE *out, const std::vector<Results> &all);

/* ---- compare.cc: the results of an earlier run ------------------------------------------------------------ */

/* What print_json() wrote once, as if it had been measured now. */
struct Saved;
void free_saved(Saved *saved);

/* NULL: it cannot be used, and @why says why. */
Saved *read_saved(const char *path, std::string *why);

/* Nanoseconds of two runs say nothing about each other. Compared are ratios, each beside a case of its own run. */
void print_compared(FILE *out, const Saved &before, const std::vector<Results> &now);

} /* namespace bench */

#endif
