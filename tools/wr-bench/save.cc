/* wr-bench: JSON, which has every round and every bucket, and CSV, a line for each row of the tables. */
#include "report.h"
#include "text.h"

#include <cstdlib>
#include <ctime>
#include <fstream>
#include <sys/utsname.h>
#include <weakref/version.h>

namespace bench
{

static const char *role_name(Role role)
{
    return role == Role::ours ? "ours" : role == Role::peer ? "peer" : "limit";
}

/* ---- the machine ------------------------------------------------------------------------------------------ */

static std::string processor_name()
{
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        size_t colon = line.find(": ");
        if (line.compare(0, 10, "model name") == 0 && colon != std::string::npos)
            return line.substr(colon + 2);
    }
    struct utsname system;
    return uname(&system) == 0 ? system.machine : "unknown";
}

static std::string compiler_name()
{
#ifdef __clang__
    return __VERSION__; /* says "Clang" itself */
#else
    return "gcc " __VERSION__;
#endif
}

static std::string kernel_name()
{
    struct utsname system;
    return uname(&system) == 0 ? std::string(system.sysname) + " " + system.release : "unknown";
}

static std::string date()
{
    char text[32];
    time_t now = time(nullptr);
    struct tm utc;
    return gmtime_r(&now, &utc) != nullptr && strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", &utc) > 0 ? text : "";
}

/* ---- JSON ------------------------------------------------------------------------------------------------- */

static std::string quoted(const std::string &text)
{
    std::string json = "\"";
    for (char c : text) {
        if (c == '"' || c == '\\')
            json += '\\';
        if ((unsigned char)c < ' ')
            json += format("\\u%04x", unsigned(c));
        else
            json += c;
    }
    return json + "\"";
}

static std::string number(double value)
{
    return value < 0 ? "null" : format("%.4g", value);
}

/* What each case, figure and spread begins with. */
static void print_names(FILE *out, const char *group, const char *contest, const char *subject, Role role)
{
    fprintf(out, "    {\"group\": %s, \"contest\": %s, \"subject\": %s, \"role\": \"%s\", ", quoted(group).c_str(),
            quoted(contest).c_str(), quoted(subject).c_str(), role_name(role));
}

static void print_case(FILE *out, const Row &row, const Series &series)
{
    fprintf(out,
            "\"threads\": %u, \"unit\": \"ns\",\n"
            "     \"median\": %s, \"min\": %s, \"of_ours\": %s, \"regime\": %s,\n     \"rounds\": [",
            row.n_threads, number(row.median).c_str(), number(row.min).c_str(), number(row.of_ours).c_str(),
            quoted(regime_name(row.regime)).c_str());
    const char *comma = "";
    for (const Sample &sample : series.rounds) {
        fprintf(out, "%s{\"ns\": %s, \"probe\": [%.0f, %.0f], \"regime\": %s}", comma, number(sample.ns).c_str(),
                sample.probe_before, sample.probe_after, quoted(regime_name(sample.regime)).c_str());
        comma = ", ";
    }
    fputs("]}", out);
}

static void print_spread(FILE *out, const Histogram &times)
{
    auto ns = [](uint64_t value) { return (unsigned long long)value; };
    fprintf(out,
            "\"unit\": \"ns\", \"count\": %llu,\n     \"min\": %llu, \"median\": %llu, \"p90\": %llu, \"p99\": %llu, "
            "\"p999\": %llu, \"max\": %llu,\n     \"buckets\": [",
            ns(times.count()), ns(times.min()), ns(times.quantile(0.5)), ns(times.quantile(0.9)),
            ns(times.quantile(0.99)), ns(times.quantile(0.999)), ns(times.max()));
    const char *comma = "";
    for (size_t cell = 0; cell < Histogram::n_cells; cell++)
        if (times.in_cell(cell) > 0) {
            fprintf(out, "%s[%llu, %llu]", comma, ns(Histogram::up_to(cell)), ns(times.in_cell(cell)));
            comma = ", ";
        }
    fputs("]}", out);
}

static void print_verdict(FILE *out, const Verdict &v)
{
    fprintf(out, "    {\"what\": %s, \"needed\": %s, \"goal\": %s, \"measured\": %s, \"text\": %s, \"met\": %s,\n",
            quoted(v.what).c_str(), quoted(v.needed).c_str(), quoted(v.goal).c_str(), number(v.value).c_str(),
            quoted(v.measured).c_str(),
            v.value < 0      ? "null"
            : v.met == "met" ? "true"
                             : "false");
    fprintf(out, "     \"beside\": %s, \"regime\": %s, \"absent\": [", quoted(v.beside).c_str(),
            quoted(regime_name(v.regime)).c_str());
    for (const std::string &name : v.absent)
        fprintf(out, "%s%s", &name == &v.absent.front() ? "" : ", ", quoted(name).c_str());
    fputs("]}", out);
}

void print_json(FILE *out, const std::vector<Results> &all)
{
    fprintf(out, "{\n  \"program\": \"wr-bench\",\n  \"version\": %s,\n  \"date\": %s,\n  \"processor\": %s,\n",
            quoted(WR_VERSION).c_str(), quoted(date()).c_str(), quoted(processor_name()).c_str());
    fprintf(out, "  \"processors\": %u,\n  \"compiler\": %s,\n  \"kernel\": %s,\n  \"groups\": [", n_processors(),
            quoted(compiler_name()).c_str(), quoted(kernel_name()).c_str());
    const char *comma = "\n";
    auto next = [&] {
        fputs(comma, out);
        comma = ",\n";
    };
    auto begin = [&](const char *name) {
        fprintf(out, "\n  ],\n  \"%s\": [", name);
        comma = "\n";
    };
    for (const Results &results : all) {
        next();
        fprintf(out, "    {\"name\": %s, \"about\": %s}", quoted(results.group->name).c_str(),
                quoted(results.group->about).c_str());
    }
    begin("cases");
    for (const Results &results : all) {
        std::vector<Row> rows = rows_of(results);
        for (size_t i = 0; i < rows.size(); i++) {
            const Case &of = *rows[i].of;
            next();
            print_names(out, results.group->name, of.contest, of.subject, of.role);
            print_case(out, rows[i], results.series[i]);
        }
    }
    begin("figures");
    for (const Results &results : all)
        for (const Figure &figure : results.figures) {
            next();
            print_names(out, results.group->name, figure.contest, figure.subject, figure.role);
            fprintf(out, "\"unit\": \"bytes\", \"value\": %s}", number(figure.value).c_str());
        }
    begin("spreads");
    for (const Results &results : all)
        for (const Spread &spread : results.spreads) {
            next();
            print_names(out, results.group->name, spread.contest, spread.subject, spread.role);
            print_spread(out, spread.times);
        }
    begin("absent");
    for (const Results &results : all)
        for (const Case &c : results.group->cases)
            if (c.make == nullptr) {
                next();
                fprintf(out, "    {\"group\": %s, \"subject\": %s, \"why\": %s}", quoted(results.group->name).c_str(),
                        quoted(c.subject).c_str(), quoted(c.absent).c_str());
            }
    begin("targets");
    for (const Verdict &v : verdicts_of(all)) {
        next();
        print_verdict(out, v);
    }
    fputs("\n  ]\n}\n", out);
}

/* ---- CSV -------------------------------------------------------------------------------------------------- */

/* In quotes only if it has to be. */
static std::string field(const char *text)
{
    if (strpbrk(text, ",\"\r\n") == nullptr)
        return text;
    std::string csv = "\"";
    for (; *text != '\0'; text++) {
        if (*text == '"')
            csv += '"';
        csv += *text;
    }
    return csv + "\"";
}

static std::string cell(double value)
{
    return value < 0 ? "" : format("%.4g", value);
}

static void print_line(FILE *out, const char *group, const char *contest, const char *subject, Role role)
{
    fprintf(out, "%s,%s,%s,%s,", field(group).c_str(), field(contest).c_str(), field(subject).c_str(), role_name(role));
}

void print_csv(FILE *out, const std::vector<Results> &all)
{
    fputs("group,contest,subject,role,threads,regime,rounds,median_ns,min_ns,of_ours,p99_ns,p999_ns,max_ns,bytes\r\n",
          out);
    for (const Results &results : all) {
        const char *group = results.group->name;
        for (const Row &row : rows_of(results)) {
            print_line(out, group, row.of->contest, row.of->subject, row.of->role);
            fprintf(out, "%u,%s,%zu,%s,%s,%s,,,,\r\n", row.n_threads, regime_name(row.regime), row.n_rounds,
                    cell(row.median).c_str(), cell(row.min).c_str(), cell(row.of_ours).c_str());
        }
        for (const Figure &figure : results.figures) {
            print_line(out, group, figure.contest, figure.subject, figure.role);
            fprintf(out, ",,,,,,,,,%s\r\n", cell(figure.value).c_str());
        }
        for (const Spread &spread : results.spreads) {
            const Histogram &times = spread.times;
            print_line(out, group, spread.contest, spread.subject, spread.role);
            fprintf(out, ",,,%llu,%llu,,%llu,%llu,%llu,\r\n", (unsigned long long)times.quantile(0.5),
                    (unsigned long long)times.min(), (unsigned long long)times.quantile(0.99),
                    (unsigned long long)times.quantile(0.999), (unsigned long long)times.max());
        }
    }
}

} /* namespace bench */
