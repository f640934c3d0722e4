/* wr-bench: peers that are libraries of their own, put into the groups. */
#include "peers.h"

#include <algorithm>
#include <cstring>

namespace bench
{

const std::vector<Peers> &all_peers()
{
    static const std::vector<Peers> all = {boost_peers(), glib_peers(), tbb_peers(),
                                           ck_peers(),    urcu_peers(), rust_peers()};
    return all;
}

Group with_peers(Group group)
{
    for (const Peers &peers : all_peers())
        for (const PeerCase &peer : peers.cases)
            if (strcmp(peer.group, group.name) == 0) {
                auto last = std::find_if(group.cases.rbegin(), group.cases.rend(),
                                         [&](const Case &c) { return strcmp(c.contest, peer.of.contest) == 0; });
                group.cases.insert(last.base(), peer.of);
            }
    return group;
}

} /* namespace bench */
