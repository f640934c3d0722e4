/* wr-bench: a reader of JSON (RFC 8259), for what print_json() writes. */
#ifndef WR_BENCH_JSON_H
#define WR_BENCH_JSON_H

#include <string>
#include <utility>
#include <vector>

namespace bench
{

struct Json {
    enum class Kind { null, boolean, number, string, array, object } kind = Kind::null;
    bool boolean = false;
    double number = 0;
    std::string string;
    std::vector<Json> items;
    std::vector<std::pair<std::string, Json>> members;

    /* The member of an object, if it has one of this name and kind; else NULL. */
    const Json *get(const char *name, Kind wanted) const;
};

/* The whole text must be one value. False: it is not, and @why says where and what. */
bool parse_json(const std::string &text, Json *value, std::string *why);

} /* namespace bench */

#endif
