/* wr-bench: rounds.
 *
 * The cases of a group take turns: a round of the first, of the second, ..., of the first again. Threads are pinned, start
 * together and end by the clock. A thread that only sleeps exists all the time, so that libstdc++ uses its atomics.
 *
 * One thread that waits for nobody is measured in time of its processor, which leaves out what other programs take; two
 * threads, and all who wait, by the clock on the wall.
 *
 * Two processors of a virtual machine do not stay where they are: what it costs to pass a cache line between them changes
 * within seconds, and contended figures go with it. So the round trip of a cache line is probed right before and right
 * after each round of two threads or more. It names the round's *regime*, and only rounds of one regime are compared.
 */
#ifndef WR_BENCH_RUN_H
#define WR_BENCH_RUN_H

#include "bench.h"

namespace bench
{

enum class Regime {
    none, /* one thread, or one processor: nothing is passed */
    near, /* round trip up to 220 ns */
    middle,
    far,  /* from 800 ns */
    mixed /* it changed within the round: never compared */
};
const char *regime_name(Regime regime);

struct Sample {
    double ns; /* per operation and thread; more threads than processors: per operation and processor */
    double probe_before, probe_after;
    Regime regime;
};

/* All rounds of one case with one number of threads. */
struct Series {
    const Case *of;
    unsigned n_threads;
    std::vector<Sample> rounds; /* round r of one case stands beside round r of another */
};

struct Results {
    const Group *group;
    std::vector<Series> series; /* by numbers of threads, then in the order of the cases */
    std::vector<Figure> figures;
    std::vector<Spread> spreads;
};

struct Plan {
    std::vector<unsigned> n_threads;
    double seconds; /* for each group; 0: as long as the usual rounds take */
    bool progress;  /* on standard error */
};

class Workers;

class Runner
{
  public:
    explicit Runner(const Plan &plan);
    ~Runner();
    Results run(const Group &group);

  private:
    void progress(const char *format, ...) __attribute__((format(printf, 2, 3)));

    const Plan &plan;
    std::unique_ptr<Workers> workers;
    size_t progress_width = 0;
};

/* The processors this program may use, and pinning the calling thread to one of them: number i modulo how many. */
unsigned n_processors();
void pin(unsigned i);

} /* namespace bench */

#endif
