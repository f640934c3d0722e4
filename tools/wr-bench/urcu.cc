/* wr-bench: liburcu: its read sections, and its hash table in them. */
#include "maps.h"

#ifdef WR_BENCH_NO_URCU
#define CASE(...) nullptr, WR_BENCH_NO_URCU
#define LOOKS(map, subject) absent_look_peers(subject, WR_BENCH_NO_URCU)
#else
#define CASE(...) make<__VA_ARGS__>, nullptr
#define LOOKS(map, subject) look_peers<map>(subject)
#define _LGPL_SOURCE /* the sections inline */
#include <urcu/urcu-memb.h>
#include <urcu/urcu-qsbr.h>

#include <urcu/rculfhash.h>

extern "C" const struct rcu_flavor_struct urcu_qsbr_flavor; /* the headers declare that of the first one alone */
#endif

#include <atomic>
#include <cstdlib>
#include <list>

namespace bench
{

#ifndef WR_BENCH_NO_URCU

namespace
{

struct Memb {
    static void begin_thread()
    {
        urcu_memb_register_thread();
    }
    static void end_thread()
    {
        urcu_memb_unregister_thread();
    }
    static void enter()
    {
        urcu_memb_read_lock();
    }
    static void exit()
    {
        urcu_memb_read_unlock();
    }
    static const rcu_flavor_struct *flavor()
    {
        return &urcu_memb_flavor;
    }
};

/* Its readers must say now and then that they hold nothing. Here they do so when the round ends, by leaving. */
struct Qsbr {
    static void begin_thread()
    {
        urcu_qsbr_register_thread();
    }
    static void end_thread()
    {
        urcu_qsbr_unregister_thread();
    }
    static void enter()
    {
        urcu_qsbr_read_lock();
    }
    static void exit()
    {
        urcu_qsbr_read_unlock();
    }
    static const rcu_flavor_struct *flavor()
    {
        return &urcu_qsbr_flavor;
    }
};

template <class Flavor> struct Thread {
    Thread()
    {
        Flavor::begin_thread();
    }
    Thread(const Thread &) = delete;
    ~Thread()
    {
        Flavor::end_thread();
    }
};

template <class Flavor> struct Section : State {
    Payload payload = {};
    std::atomic<Payload *> word{&payload};
    explicit Section(unsigned) {}
    struct Local {
        std::atomic<Payload *> &word;
        Thread<Flavor> thread;
    };
    Local local(unsigned)
    {
        return {word, {}};
    }
    static void op(Local &local, uint64_t)
    {
        Flavor::enter();
        keep(local.word.load(std::memory_order_acquire));
        Flavor::exit();
    }
};

/* As large as it must be from the start, so that no thread resizes it meanwhile. */
template <class K, class Flavor> class Table
{
  public:
    class Reader
    {
      public:
        explicit Reader(const Table &) {}

      private:
        Thread<Flavor> thread;
    };

    explicit Table(size_t n)
    {
        unsigned long size = 1;
        while (size < n)
            size *= 2;
        table = cds_lfht_new_flavor(size, 1, 0, 0, Flavor::flavor(), nullptr);
        if (table == nullptr)
            abort();
    }
    ~Table()
    {
        Thread<Flavor> registered;
        for (Node &node : nodes) {
            Flavor::enter();
            cds_lfht_del(table, &node.node);
            Flavor::exit();
        }
        (void)cds_lfht_destroy(table, nullptr);
    }
    void set(const K &key, Payload *payload)
    {
        Thread<Flavor> registered;
        nodes.push_back({{}, key, payload});
        cds_lfht_node_init(&nodes.back().node);
        Flavor::enter();
        cds_lfht_add(table, std::hash<K>()(key), &nodes.back().node);
        Flavor::exit();
    }
    Payload *get(Reader &, const K &key)
    {
        cds_lfht_iter found;
        Flavor::enter();
        cds_lfht_lookup(table, std::hash<K>()(key), same, &key, &found);
        cds_lfht_node *node = cds_lfht_iter_get_node(&found);
        Payload *payload = node == nullptr ? nullptr : caa_container_of(node, Node, node)->payload;
        Flavor::exit();
        return payload;
    }

  private:
    struct Node {
        cds_lfht_node node;
        K key;
        Payload *payload;
    };
    static int same(cds_lfht_node *node, const void *key)
    {
        return caa_container_of(node, Node, node)->key == *static_cast<const K *>(key);
    }
    cds_lfht *table;
    std::list<Node> nodes;
};

template <class K> using MembTable = Table<K, Memb>;
template <class K> using QsbrTable = Table<K, Qsbr>;

} /* namespace */

#endif

Peers urcu_peers()
{
    Peers peers = {
        {
            {"guard", {contest::guard, "liburcu memb, a load inside", Role::peer, CASE(Section<Memb>)}},
            {"guard", {contest::guard, "liburcu qsbr, a load inside", Role::peer, CASE(Section<Qsbr>)}},
        },
        {},
    };
    for (const PeerCase &look : LOOKS(MembTable, "liburcu lfht, memb"))
        peers.cases.push_back(look);
    for (const PeerCase &look : LOOKS(QsbrTable, "liburcu lfht, qsbr"))
        peers.cases.push_back(look);
    return peers;
}

} /* namespace bench */
