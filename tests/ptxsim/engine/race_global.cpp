#include "race_global.h"

#include <map>
#include <mutex>
#include <set>

#include "cta.h"

namespace ptxsim {

namespace {

// Entry: 12 bits of epoch, 22 + 4 of the writer, 22 + 4 of the reader; CTA numbers are stored + 1.
constexpr u32 kCtaBits = 22, kMany = (1u << kCtaBits) - 1;

struct Entry { u32 epoch, writer, written, reader, read; };

Entry unpack(u64 bits) {
    return {static_cast<u32>(bits >> 52), static_cast<u32>(bits >> 30) & kMany, static_cast<u32>(bits >> 26) & 15u,
            static_cast<u32>(bits >> 4) & kMany, static_cast<u32>(bits) & 15u};
}

u64 pack(const Entry& e) {
    return static_cast<u64>(e.epoch) << 52 | static_cast<u64>(e.writer) << 30 | static_cast<u64>(e.written) << 26 |
           static_cast<u64>(e.reader) << 4 | e.read;
}

bool ordered(const Warp& w, u32 stored_cta) {
    return stored_cta == w.cta->index + 1 || w.cta->synchronised.count(stored_cta - 1) != 0;
}

[[noreturn]] void report(Warp& w, int lane, Allocation& a, u64 address, const char* what, const char* other,
                         u32 stored_cta) {
    const u32* grid = w.cta->launch->grid;
    std::string who = "another CTA";
    if (stored_cta != kMany) {
        u32 c = stored_cta - 1;
        who = "CTA (" + std::to_string(c % grid[0]) + ", " + std::to_string(c / grid[0] % grid[1]) + ", " +
              std::to_string(c / (grid[0] * grid[1])) + ")";
    }
    SimError error(ErrorKind::Race, std::string("Race on global memory: this ") + what + " of " + hex(address) +
                                        " (byte " + std::to_string(address - a.base) + " of tensor " + a.name +
                                        ") conflicts with a " + other + " by " + who + " in the same launch.");
    error.at_lane(lane).at_address(address).in_tensor(a.name);
    throw error;
}

void update(Warp& w, int lane, Allocation& a, u64 word, u32 bytes_mask, GlobalAccess access) {
    std::atomic<u64>& cell = a.shadow[word];
    u32 mine = w.cta->index + 1, epoch = w.cta->launch->epoch;
    u64 old = cell.load(std::memory_order_relaxed);
    for (;;) {
        Entry e = unpack(old);
        if (e.epoch != epoch) {
            e = {epoch, 0, 0, 0, 0};
        }
        u32 fresh = bytes_mask & ~(e.written | e.read);
        u64 address = a.base + word * 4 + static_cast<u64>(__builtin_ctz(bytes_mask));
        bool writes = access == GlobalAccess::Write;
        if ((e.written & bytes_mask) && access != GlobalAccess::Atomic) {
            if (!ordered(w, e.writer)) report(w, lane, a, address, writes ? "write" : "read", "write", e.writer);
            if (access == GlobalAccess::ReadNonCoherent)
                report(w, lane, a, address, "ld.global.nc (which needs read-only data)", "write", e.writer);
        }
        if (writes && (e.read & bytes_mask) && (e.reader == kMany || !ordered(w, e.reader)))
            report(w, lane, a, address, "write", "read", e.reader);
        if (writes) {
            if (e.writer != mine) e.written = 0;  // another CTA's bytes of this word are forgotten, never blamed on us
            e.writer = mine;
            e.written |= bytes_mask;
            e.read &= ~bytes_mask;  // whoever is ordered after this write is ordered after those reads
            if (!e.read) e.reader = 0;
        } else if (access != GlobalAccess::Atomic) {
            bool alone = e.reader == 0 || e.reader == mine || (e.reader != kMany && ordered(w, e.reader));
            e.reader = alone ? mine : kMany;
            e.read |= bytes_mask;
        }
        u64 next = pack(e);
        if (next == old || cell.compare_exchange_weak(old, next, std::memory_order_relaxed)) {
            w.cta->counters->global_distinct_bytes += static_cast<u64>(popcount(fresh));
            return;
        }
    }
}

struct SyncWord { std::set<u32> released; };
std::mutex sync_mutex;
std::map<std::pair<u64, u64>, SyncWord> sync_words;  // (launch, address)

}  // namespace

namespace {

// Words that nobody wrote and whose four bytes we, or many CTAs, have read: another read changes nothing.
bool read_before(const Warp& w, const Allocation& a, u64 first, u64 last) {
    u64 unwritten = static_cast<u64>(w.cta->launch->epoch) << 52 | 15;
    u64 by_us = unwritten | static_cast<u64>(w.cta->index + 1) << 4, by_many = unwritten | static_cast<u64>(kMany) << 4;
    bool all = true;
    for (u64 word = first; word <= last; ++word) {
        u64 old = a.shadow[word].load(std::memory_order_relaxed);
        all &= (old == by_us) | (old == by_many);
    }
    return all;
}

}  // namespace

void check_global_race(Warp& w, int lane, Allocation& a, u64 address, u32 bytes, GlobalAccess access) {
    if (!w.cta->checks(kCheckRaceGlobal) || !a.shadow || w.cta->index + 2 >= kMany) return;
    u64 begin = address - a.base, end = begin + bytes;
    bool reads = access == GlobalAccess::Read || access == GlobalAccess::ReadNonCoherent;
    if (reads && read_before(w, a, begin / 4, (end - 1) / 4)) return;
    for (u64 word = begin / 4; word * 4 < end; ++word) {
        u32 mask = 15;
        if (word * 4 < begin) mask &= 15u << (begin - word * 4);
        if (word * 4 + 4 > end) mask &= 15u >> (word * 4 + 4 - end);
        update(w, lane, a, word, mask & 15u, access);
    }
}

void release_global(Warp& w, u64 address, bool releases) {
    if (!releases && !w.cta->fenced) return;
    std::lock_guard<std::mutex> lock(sync_mutex);
    SyncWord& word = sync_words[{w.cta->launch->id, address}];
    word.released.insert(w.cta->index);
    word.released.insert(w.cta->synchronised.begin(), w.cta->synchronised.end());
}

void acquire_global(Warp& w, u64 address) {
    std::lock_guard<std::mutex> lock(sync_mutex);
    auto found = sync_words.find({w.cta->launch->id, address});
    if (found != sync_words.end())
        w.cta->synchronised.insert(found->second.released.begin(), found->second.released.end());
}

void forget_releases(u64 launch) {
    std::lock_guard<std::mutex> lock(sync_mutex);
    sync_words.erase(sync_words.lower_bound({launch, 0}), sync_words.upper_bound({launch, ~0ull}));
}

}  // namespace ptxsim
