/* wr-bench: ConcurrencyKit: ck_epoch, ck_ht and ck_hs. The loops are in C. */
#include "ck_loops.h"
#include "maps.h"

#include <string_view>

#ifdef WR_BENCH_NO_CK
#define LOOPED(...) nullptr, WR_BENCH_NO_CK
#define LOOKS(kind, subject) absent_look_peers(subject, WR_BENCH_NO_CK)
#else
#define LOOPED(...) make_looped<__VA_ARGS__>, nullptr
#define LOOKS(kind, subject) looks_of<kind>(subject)
#endif

namespace bench
{

#ifndef WR_BENCH_NO_CK

extern "C" size_t ck_loops_hash(const void *data, size_t size)
{
    return std::hash<std::string_view>()(std::string_view(static_cast<const char *>(data), size));
}

namespace
{

class Reader
{
  public:
    Reader() = default;
    Reader(const Reader &) = delete;
    ~Reader()
    {
        ck_loops_reader_free(reader);
    }
    operator ck_loops_reader *() const
    {
        return reader;
    }

  private:
    ck_loops_reader *reader = ck_loops_reader_new();
};

struct Section : State {
    Payload payload = {};
    void *word = &payload;
    explicit Section(unsigned) {}
    struct Local {
        void *const *word;
        Reader reader;
    };
    Local local(unsigned)
    {
        return {&word, {}};
    }
    static void ops(Local &local, uint64_t, unsigned n)
    {
        ck_loops_sections(local.reader, local.word, n);
    }
};

/* The keys as C sees them: as far from their bytes as the strings of C++. */
ck_loops_key view(const std::string &key)
{
    return {key.data(), key.size(), 0};
}

ck_loops_key view(const uint64_t &key)
{
    return {nullptr, 0, key};
}

template <class K> std::vector<ck_loops_key> views(const std::vector<K> &keys)
{
    std::vector<ck_loops_key> all;
    for (const K &key : keys)
        all.push_back(view(key));
    return all;
}

template <ck_loops_kind kind, class K, size_t n> struct CkLook : State {
    static constexpr unsigned batch = 1024;
    static const std::vector<ck_loops_key> &order()
    {
        static const std::vector<ck_loops_key> all = views(shared_ring<K, n>().order);
        return all;
    }
    std::vector<Payload> payloads = std::vector<Payload>(n);
    ck_loops_map *map = ck_loops_map_new(kind, std::is_same_v<K, uint64_t>, n);
    explicit CkLook(unsigned)
    {
        for (size_t i = 0; i < n; i++) {
            ck_loops_key key = view(shared_ring<K, n>().keys[i]);
            ck_loops_map_set(map, &key, &payloads[i]);
        }
    }
    ~CkLook()
    {
        ck_loops_map_free(map);
    }
    struct Local {
        ck_loops_map *map;
        uint64_t offset;
        Reader reader;
    };
    Local local(unsigned thread)
    {
        return {map, offset_of(thread), {}};
    }
    static void ops(Local &local, uint64_t i, unsigned count)
    {
        ck_loops_look(local.map, local.reader, order().data(), order().size() - 1, local.offset + i, count);
    }
};

template <ck_loops_kind kind> std::vector<PeerCase> looks_of(const char *subject)
{
    return look_peers(subject,
                      {make_looped<CkLook<kind, std::string, 1000>>, make_looped<CkLook<kind, std::string, 100000>>,
                       make_looped<CkLook<kind, uint64_t, 1000>>, make_looped<CkLook<kind, uint64_t, 100000>>});
}

} /* namespace */

#endif

Peers ck_peers()
{
    Peers peers = {{{"guard", {contest::guard, "ck_epoch, a load inside", Role::peer, LOOPED(Section)}}}, {}};
    for (const PeerCase &look : LOOKS(CK_LOOPS_HS, "ck_hs, in ck_epoch"))
        peers.cases.push_back(look);
    for (const PeerCase &look : LOOKS(CK_LOOPS_HT, "ck_ht, in ck_epoch"))
        peers.cases.push_back(look);
    for (const PeerCase &look : LOOKS(CK_LOOPS_HT_LOCKED, "ck_spinlock + ck_ht"))
        peers.cases.push_back(look);
    return peers;
}

} /* namespace bench */
