#include "race_release.h"

#include <algorithm>
#include <mutex>

#include "cta.h"
#include "grid_barrier.h"

namespace ptxsim {

namespace {

// What one CTA published through a word. Clocks of before a grid barrier mean nothing after it.
struct Published {
    u32 epoch = 0;
    Clock cta, grid;
};

struct SyncWord {
    u64 version = 0;
    std::map<u32, Published> by_cta;
    Published& of(u32 cta, u32 epoch) {
        Published& p = by_cta[cta];
        if (p.epoch != epoch) p = {epoch, {}, {}};
        return p;
    }
};

std::mutex sync_mutex;
std::map<std::pair<u64, u64>, SyncWord> sync_words;  // (launch, address)

// A release publishes all its thread knows; a strong write what was known at a fence.
void publish(Clock& into, const Clock& known, const Clock* fenced) {
    if (!fenced) return merge_clock(into, known);
    Clock both(std::min(known.size(), fenced->size()));
    for (size_t i = 0; i < both.size(); ++i) both[i] = std::min(known[i], (*fenced)[i]);
    merge_clock(into, both);
}

}  // namespace

void Releases::clear() {
    fenced_cta.clear();
    fenced_grid.clear();
    others.clear();
    shared_words.clear();
}

void fence_memory(Warp& w, Scope scope) {
    Releases& r = w.cta->releases;
    merge_clock(r.fenced_cta, w.clocks.known());
    if (scope == Scope::Grid) merge_clock(r.fenced_grid, w.clocks.known());
    w.clocks.advance();
}

void release_global(Warp& w, u64 address, Scope scope) {
    Cta& cta = *w.cta;
    Releases& r = cta.releases;
    if (is_grid_barrier(cta, address) || (scope == Scope::None && r.fenced_cta.empty())) return;
    std::lock_guard<std::mutex> lock(sync_mutex);
    SyncWord& word = sync_words[{cta.launch->id, address}];
    ++word.version;
    Published& mine = word.of(cta.index, cta.epoch);
    publish(mine.cta, w.clocks.known(), scope == Scope::None ? &r.fenced_cta : nullptr);
    if (scope == Scope::Grid || !r.fenced_grid.empty()) {
        publish(mine.grid, w.clocks.known(), scope == Scope::Grid ? nullptr : &r.fenced_grid);
        for (const auto& [other, clock] : r.others) merge_clock(word.of(other, cta.epoch).grid, clock);
    }
    if (scope != Scope::None) w.clocks.advance();
}

void acquire_global(Warp& w, u32 lanes, u64 address) {
    Cta& cta = *w.cta;
    if (is_grid_barrier(cta, address)) return poll_grid_barrier(cta);
    std::lock_guard<std::mutex> lock(sync_mutex);
    auto found = sync_words.find({cta.launch->id, address});
    if (found == sync_words.end()) return;
    const SyncWord& word = found->second;
    if (w.acquired_word == address && w.acquired_version == word.version && w.acquired_lanes == lanes) return;
    w.acquired_word = address;
    w.acquired_version = word.version;
    w.acquired_lanes = lanes;
    for (const auto& [other, published] : word.by_cta) {
        if (published.epoch != cta.epoch) continue;
        if (other != cta.index) {
            if (!published.grid.empty()) merge_clock(cta.releases.others[other], published.grid);
            continue;
        }
        w.clocks.join(published.cta, lanes);
        w.clocks.join(published.grid, lanes);
    }
}

void release_shared(Warp& w, u32 offset, Scope scope) {
    Releases& r = w.cta->releases;
    if (scope == Scope::None && r.fenced_cta.empty()) return;
    publish(r.shared_words[offset], w.clocks.known(), scope == Scope::None ? &r.fenced_cta : nullptr);
    if (scope != Scope::None) w.clocks.advance();
}

void acquire_shared(Warp& w, u32 lanes, u32 offset) {
    const auto& words = w.cta->releases.shared_words;
    auto found = words.find(offset);
    if (found != words.end()) w.clocks.join(found->second, lanes);
}

bool happened_before(const Cta& cta, u32 other, u32 warp, u32 clock) {
    auto found = cta.releases.others.find(other);
    return found != cta.releases.others.end() && warp < found->second.size() && clock <= found->second[warp];
}

bool knows_all_others(const Cta& cta) {
    const u32* grid = cta.launch->grid;
    return cta.releases.others.size() + 1 == static_cast<u64>(grid[0]) * grid[1] * grid[2];
}

void forget_releases(u64 launch) {
    std::lock_guard<std::mutex> lock(sync_mutex);
    sync_words.erase(sync_words.lower_bound({launch, 0}), sync_words.upper_bound({launch, ~0ull}));
}

}  // namespace ptxsim
