/* wr-bench: this run beside an earlier one, whose results are in a file that print_json() wrote.
 *
 * The file's rounds become Results, as if they had been measured now; so both runs go through the same functions. Each
 * case is set beside a *reference* of its own run, the contest's limit or else its first peer, that both runs have; and
 * over rounds of one regime alone, that both runs have. What is compared is that ratio.
 */
#include "json.h"
#include "report.h"
#include "text.h"

#include <algorithm>
#include <cerrno>
#include <deque>

namespace bench
{

/* Results point to groups and cases, and those to names: all stay where they are. */
struct Saved {
    std::deque<std::string> names;
    std::deque<Group> groups;
    std::deque<Case> cases;
    std::vector<Results> results;
};

void free_saved(Saved *saved)
{
    delete saved;
}

/* ---- reading ---------------------------------------------------------------------------------------------- */

namespace
{

using Kind = Json::Kind;

class Reader
{
  public:
    explicit Reader(Saved *into) : saved(into) {}

    bool read(const Json &file)
    {
        const Json *program = file.get("program", Kind::string);
        const Json *cases = file.get("cases", Kind::array), *figures = file.get("figures", Kind::array);
        if (program == nullptr || program->string != "wr-bench" || cases == nullptr || figures == nullptr)
            return false;
        for (const Json &json : cases->items)
            if (!add_case(json))
                return false;
        for (const Json &json : figures->items)
            if (!add_figure(json))
                return false;
        return true;
    }

  private:
    const char *keep(const std::string &name)
    {
        saved->names.push_back(name);
        return saved->names.back().c_str();
    }

    Results *results_of(const std::string &name)
    {
        for (Results &results : saved->results)
            if (name == results.group->name)
                return &results;
        saved->groups.push_back({keep(name), "", {}, {}});
        saved->results.push_back({&saved->groups.back(), {}, {}, {}});
        return &saved->results.back();
    }

    bool names_of(const Json &json, Results **results, Case *names)
    {
        const Json *group = json.get("group", Kind::string), *contest = json.get("contest", Kind::string);
        const Json *subject = json.get("subject", Kind::string), *role = json.get("role", Kind::string);
        if (group == nullptr || contest == nullptr || subject == nullptr || role == nullptr)
            return false;
        *results = results_of(group->string);
        *names = {keep(contest->string), keep(subject->string),
                  role->string == "ours"    ? Role::ours
                  : role->string == "limit" ? Role::limit
                                            : Role::peer,
                  nullptr, nullptr};
        return true;
    }

    bool add_case(const Json &json)
    {
        Results *results;
        Case names;
        const Json *threads = json.get("threads", Kind::number), *rounds = json.get("rounds", Kind::array);
        if (!names_of(json, &results, &names) || threads == nullptr || threads->number < 1 || threads->number > 1e6 ||
            rounds == nullptr)
            return false;
        saved->cases.push_back(names);
        Series series = {&saved->cases.back(), unsigned(threads->number), {}};
        for (const Json &round : rounds->items) {
            const Json *ns = round.get("ns", Kind::number), *regime = round.get("regime", Kind::string);
            if (ns == nullptr || regime == nullptr)
                return false;
            series.rounds.push_back({ns->number, 0, 0, regime_named(regime->string)});
        }
        results->series.push_back(series);
        return true;
    }

    bool add_figure(const Json &json)
    {
        Results *results;
        Case names;
        if (!names_of(json, &results, &names))
            return false;
        const Json *value = json.get("value", Kind::number); /* null: could not be told */
        results->figures.push_back({names.contest, names.subject, names.role, value == nullptr ? -1 : value->number});
        return true;
    }

    static Regime regime_named(const std::string &name)
    {
        for (Regime regime : {Regime::none, Regime::near, Regime::middle, Regime::far})
            if (name == regime_name(regime))
                return regime;
        return Regime::mixed;
    }

    Saved *saved;
};

bool read_file(const char *path, std::string *text)
{
    FILE *file = fopen(path, "r");
    if (file == nullptr)
        return false;
    char part[65536];
    for (size_t n; (n = fread(part, 1, sizeof part, file)) > 0;)
        text->append(part, n);
    int error = ferror(file) != 0 ? errno : 0;
    fclose(file);
    errno = error;
    return error == 0;
}

} /* namespace */

Saved *read_saved(const char *path, std::string *why)
{
    std::string text, problem;
    Json file;
    if (!read_file(path, &text)) {
        *why = format("cannot read '%.80s': %s", path, strerror(errno));
        return nullptr;
    }
    if (!parse_json(text, &file, &problem)) {
        *why = format("'%.80s' is not JSON: %s", path, problem.c_str());
        return nullptr;
    }
    auto saved = std::make_unique<Saved>();
    if (!Reader(saved.get()).read(file)) {
        *why = format("'%.80s' is not what wr-bench --json writes", path);
        return nullptr;
    }
    return saved.release();
}

/* ---- comparing -------------------------------------------------------------------------------------------- */

namespace
{

/* A line of the table: ratios beside the reference, below 0: there is none. */
struct Line {
    std::string contest, subject, reference;
    std::string threads;
    double before, now;
};

/* The regime of which both runs have most rounds of a contest. Regime::mixed: they have none in common. */
Regime common_regime(const Results &before, const Results &now, const char *contest, unsigned n_threads)
{
    auto count = [&](const Results &results, Regime regime) {
        size_t n = 0;
        for (const Series &series : results.series)
            if (series.n_threads == n_threads && same(series.of->contest, contest))
                for (const Sample &sample : series.rounds)
                    n += sample.regime == regime;
        return n;
    };
    Regime best = Regime::mixed;
    size_t most = 0;
    for (Regime regime : {Regime::none, Regime::near, Regime::middle, Regime::far}) {
        size_t n = std::min(count(before, regime), count(now, regime));
        if (n > most) {
            most = n;
            best = regime;
        }
    }
    return best;
}

const Figure *find_figure(const Results &results, const Figure &like)
{
    for (const Figure &figure : results.figures)
        if (same(figure.contest, like.contest) && same(figure.subject, like.subject))
            return &figure;
    return nullptr;
}

/* The first limit, or else the first peer, of those that both runs have. NULL: there is none. */
const Series *reference_of(const Results &before, const Results &now, const Series &series)
{
    for (Role role : {Role::limit, Role::peer})
        for (const Series &other : now.series)
            if (other.of->role == role && other.n_threads == series.n_threads &&
                same(other.of->contest, series.of->contest) &&
                find_series(before, other.of->contest, other.of->subject, other.n_threads) != nullptr)
                return &other;
    return nullptr;
}

const Figure *reference_of(const Results &before, const Results &now, const Figure &figure)
{
    for (const Figure &other : now.figures)
        if (other.role == Role::peer && other.value > 0 && same(other.contest, figure.contest)) {
            const Figure *old = find_figure(before, other);
            if (old != nullptr && old->value > 0)
                return &other;
        }
    return nullptr;
}

void compare_group(const Results &before, const Results &now, std::vector<Line> *lines)
{
    for (const Series &series : now.series) {
        const Case &of = *series.of;
        const Series *old = find_series(before, of.contest, of.subject, series.n_threads);
        const Series *beside = reference_of(before, now, series);
        if (old == nullptr || beside == nullptr || beside == &series)
            continue;
        const Series *old_beside = find_series(before, of.contest, beside->of->subject, series.n_threads);
        Regime regime = common_regime(before, now, of.contest, series.n_threads);
        lines->push_back({of.contest, of.subject, beside->of->subject, format("%u", series.n_threads),
                          ratio(*old, *old_beside, regime), ratio(series, *beside, regime)});
    }
    for (const Figure &figure : now.figures) {
        const Figure *old = find_figure(before, figure), *beside = reference_of(before, now, figure);
        if (old == nullptr || beside == nullptr || beside == &figure || figure.value < 0 || old->value < 0)
            continue;
        lines->push_back({figure.contest, figure.subject, beside->subject, "",
                          old->value / find_figure(before, *beside)->value, figure.value / beside->value});
    }
}

void print_only(FILE *out, const char *where, const Results &here, const Results &there)
{
    auto print = [&](const char *contest, const char *subject, const std::string &threads) {
        fprintf(out, "  only in the %s run: %s, %s%s\n", where, contest, subject, threads.c_str());
    };
    for (const Series &series : here.series)
        if (find_series(there, series.of->contest, series.of->subject, series.n_threads) == nullptr)
            print(series.of->contest, series.of->subject,
                  format(", %u thread%s", series.n_threads, series.n_threads == 1 ? "" : "s"));
    for (const Figure &figure : here.figures)
        if (find_figure(there, figure) == nullptr)
            print(figure.contest, figure.subject, "");
}

const Results *group_named(const std::vector<Results> &all, const char *name)
{
    for (const Results &results : all)
        if (same(results.group->name, name))
            return &results;
    return nullptr;
}

} /* namespace */

void print_compared(FILE *out, const Saved &before, const std::vector<Results> &now)
{
    fputs("\ncompared: ratios beside the limit or the first peer, each of its own run\n", out);
    for (const Results &results : now) {
        Results none = {results.group, {}, {}, {}};
        const Results *old = group_named(before.results, results.group->name);
        std::vector<Line> lines;
        compare_group(old == nullptr ? none : *old, results, &lines);
        std::stable_sort(lines.begin(), lines.end(),
                         [](const Line &a, const Line &b) { return a.contest < b.contest; });
        std::string contest, reference;
        for (const Line &line : lines) {
            if (line.contest != contest || line.reference != reference) {
                fprintf(out, "  %s: %s\n    %-47s thr      old      new   change\n", results.group->name,
                        line.contest.c_str(), ("beside " + line.reference).c_str());
                contest = line.contest;
                reference = line.reference;
            }
            bool both = line.before > 0 && line.now >= 0;
            fprintf(out, "      %-45s %3s %8s %8s %8s\n", line.subject.c_str(), line.threads.c_str(),
                    figure_text(line.before, 2).c_str(), figure_text(line.now, 2).c_str(),
                    both ? format("%+.1f %%", (line.now / line.before - 1) * 100).c_str() : "-");
        }
        print_only(out, "old", old == nullptr ? none : *old, results);
        print_only(out, "new", results, old == nullptr ? none : *old);
    }
    for (const Results &old : before.results)
        if (group_named(now, old.group->name) == nullptr)
            fprintf(out, "  only in the old run: all of group %s\n", old.group->name);
}

} /* namespace bench */
