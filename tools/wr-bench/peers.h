/* wr-bench: peers that are libraries of their own, each of which may be absent.
 *
 * One file is one library, with its cases for all groups. Where CMake does not find the library it defines
 * WR_BENCH_NO_<LIBRARY>, a text that says why; then the same cases are there without a way to make them.
 */
#ifndef WR_BENCH_PEERS_H
#define WR_BENCH_PEERS_H

#include "bench.h"

namespace bench
{

/* The contests in which they take part. */
namespace contest
{
inline constexpr char counts[] = "retain + release";
inline constexpr char weak[] = "upgrade + release";
inline constexpr char weak_dead[] = "upgrade of a dead one";
inline constexpr char guard[] = "guard + peek";
inline constexpr char slot[] = "slot load + release";
inline constexpr char create[] = "create + release, 64 bytes";
inline constexpr char create_weak[] = "the same, with a weak handle";
inline constexpr char cache[] = "get, 1k strings of 23 bytes";
inline constexpr char churn[] = "insert, 3 gets, drop, purge";
inline constexpr char queued[] = "create, callback on a queue, release";
inline constexpr char at_once[] = "create, callback at once, release";
} /* namespace contest */

struct PeerCase {
    const char *group;
    Case of;
};

/* What lies between the two calls is counted. */
class Meter
{
  public:
    void begin();
    void end();
    double allocated() const /* below 0: the allocator is another one */
    {
        return in_use_end == 0 ? -1 : in_use_end - in_use_begin;
    }
    double resident() const
    {
        return pages_end - pages_begin;
    }

  private:
    double in_use_begin = 0, in_use_end = 0;
    double pages_begin = 0, pages_end = 0;
};

/* Something whose bytes the group memory counts; each in a process of its own, which ends right after. */
struct Sizer {
    const char *kind;
    const char *subject;
    Role role;
    std::function<void(size_t n, Meter &meter)> run; /* NULL: absent */
    const char *absent = nullptr;
    bool hidden = false; /* its memory is not malloc's: only pages can be counted */
};

namespace kind
{
inline constexpr char object[] = "object"; /* beside its own 64 bytes */
inline constexpr char handle[] = "weak handle";
inline constexpr char watch[] = "watch";
inline constexpr char entry[] = "entry"; /* of a dictionary, with a key of 23 bytes */
} /* namespace kind */

struct Peers {
    std::vector<PeerCase> cases;
    std::vector<Sizer> sizers;
};

Peers boost_peers();
Peers ck_peers();
Peers glib_peers();
Peers rust_peers();
Peers tbb_peers();
Peers urcu_peers();

const std::vector<Peers> &all_peers();

/* wr-bench --size-of WHICH COUNT: runs that sizer and writes its bytes. Does not return. */
[[noreturn]] void measure_size(const char *which, const char *count);

/* Puts the cases of all of them into their group, each behind those of its contest. */
Group with_peers(Group group);

} /* namespace bench */

#endif
