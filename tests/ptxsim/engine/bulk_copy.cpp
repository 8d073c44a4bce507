#include "bulk_copy.h"

#include <algorithm>

#include "access.h"
#include "atomic.h"
#include "cluster_shadow.h"
#include "lanes.h"

namespace ptxsim {

namespace {

constexpr u32 kRow = 16;  // bytes that move together; swizzles permute them

// Bounds, gaps and races of global memory, row by row.
void check_global_rows(Warp& w, int lane, const Box& box, GlobalAccess access) {
    bool writes = access == GlobalAccess::Write || access == GlobalAccess::Atomic;
    for (const BoxRow& row : box.rows) {
        if (row.begin == row.end) continue;
        Allocation* a;
        u32 bytes = row.end - row.begin;
        global_pointer(w, lane, row.global, bytes, writes, a);
        if (a) check_global_race(w, lane, *a, row.global, bytes, access);
    }
}

// Which of the bytes from `address` on have been written; all, if nobody keeps account.
const u8* defined_bytes(const Launch& launch, u64 address, u32 bytes) {
    Allocation* a = find_allocation(*launch.memory, address);
    return a && a->contains(address, bytes) && a->defined ? a->defined + (address - a->base) : nullptr;
}

}  // namespace

void signal_landing(SharedPlace barrier, u32 bytes) {
    auto found = barrier.cta->memory_barriers.find(barrier.offset);
    if (found == barrier.cta->memory_barriers.end())
        throw SimError(ErrorKind::Undefined, "A bulk copy signals the mbarrier at " + hex(barrier.offset) +
                                                 ", which was invalidated in the meantime.");
    barrier.cta->proxy.end_copy(found->second);
    complete_transactions(*barrier.cta, found->second, bytes);
}

namespace {

struct Load : AsyncTransfer {
    const Launch* launch;
    Box box;
    SharedPlace to, barrier;
    std::string text;

    // A row as it lies in shared memory, without the swizzle.
    void fetch(const BoxRow& row, u8* data, u8* defined) const {
        fill_row(box, data);
        std::memset(defined, 1, box.row_bytes);
        if (row.begin == row.end) return;
        u32 bytes = row.end - row.begin;
        std::memcpy(data + row.begin, reinterpret_cast<const u8*>(row.global), bytes);
        round_elements(box.type, data + row.begin, bytes);
        if (const u8* known = defined_bytes(*launch, row.global, bytes)) std::memcpy(defined + row.begin, known, bytes);
    }

    void land() override {
        std::vector<u8> data(box.row_bytes), defined(box.row_bytes);
        u32 at = to.offset;
        for (const BoxRow& row : box.rows) {
            fetch(row, data.data(), defined.data());
            for (u32 b = 0; b < box.row_bytes; b += kRow, at += kRow) {
                u32 place = swizzled(at, box.swizzle);
                std::memcpy(to.cta->shared.data() + place, data.data() + b, kRow);
                bool all = std::all_of(defined.begin() + b, defined.begin() + b + kRow, [](u8 d) { return d != 0; });
                to.cta->proxy.end_write(place, kRow, all);
            }
        }
        signal_landing(barrier, box.bytes());
    }
    std::string describe() const override { return text; }
};

struct SharedCopy : AsyncTransfer {
    Cta* source;
    Warp* issuer;
    u32 from, bytes, number;
    SharedPlace to, barrier;
    bool defined = true;
    std::string text;

    void land() override {
        std::memmove(to.cta->shared.data() + to.offset, source->shared.data() + from, bytes);
        to.cta->proxy.end_write(to.offset, bytes, defined);
        source->proxy.end_read(*issuer, AsyncReader::BulkStore, number);
        signal_landing(barrier, bytes);
    }
    std::string describe() const override { return text; }
};

// The destination belongs to the async proxy until the phase of the mbarrier completes.
void take_destination(Warp& w, int lane, SharedPlace to, u32 bytes, SharedPlace barrier) {
    MemoryBarrier& b = barrier_of_copy(w, lane, to, barrier);
    to.cta->proxy.check_signal(w, lane, b);
    if (to.cta != w.cta) to.cta->remote->access(w, lane, to.offset, bytes, RemoteAccess::Copy);
    else if (to.cta->remote) to.cta->remote->check_own(w, lane, to.offset, bytes, true);
    to.cta->proxy.begin_write(w, lane, to.offset, bytes, b);
    to.cta->copied_phases[b.offset] = b.phase;
}

}  // namespace

MemoryBarrier& barrier_of_copy(Warp& w, int lane, SharedPlace to, SharedPlace barrier) {
    if (to.cta != barrier.cta)
        w.fail(ErrorKind::BadProgram, "The mbarrier of a bulk copy is not in the shared memory of its destination.",
               lane);
    MemoryBarrier& b = find_barrier(w, *barrier.cta, barrier.offset, lane);
    if (to.cta != w.cta && w.cta->checks(kCheckRace) && !knows_remote(w, *to.cta, b.init_warp, b.init_clock))
        w.fail(ErrorKind::Race,
               "Race on the mbarrier of a bulk copy, in CTA " + std::to_string(to.cta->rank) +
                   " of the cluster: its mbarrier.init is not ordered before the copy.",
               lane);
    return b;
}

void start_load(Warp& w, int lane, Box box, SharedPlace to, SharedPlace barrier) {
    u32 bytes = box.bytes();
    check_global_rows(w, lane, box, GlobalAccess::Read);
    take_destination(w, lane, to, bytes, barrier);
    w.cta->counters->bulk_shared_bytes += bytes;
    auto load = std::make_unique<Load>();
    load->launch = w.cta->launch;
    load->box = std::move(box);
    load->to = to;
    load->barrier = barrier;
    load->text = w.program->text_at(w.current_pc());
    to.cta->proxy.start(std::move(load));
}

void start_shared_copy(Warp& w, int lane, u32 from, u32 bytes, SharedPlace to, SharedPlace barrier) {
    AsyncProxy& proxy = w.cta->proxy;
    auto copy = std::make_unique<SharedCopy>();
    copy->source = w.cta;
    copy->issuer = &w;
    copy->from = from;
    copy->bytes = bytes;
    copy->number = proxy.begin_read(w, AsyncReader::BulkStore);
    copy->defined = proxy.read_rows(w, lane, AsyncReader::BulkStore, copy->number, from, bytes);
    copy->to = to;
    copy->barrier = barrier;
    copy->text = w.program->text_at(w.current_pc());
    take_destination(w, lane, to, bytes, barrier);
    w.cta->counters->bulk_shared_bytes += bytes;
    to.cta->proxy.start(std::move(copy));
}

// The memory of a CTA that has ended is another one's: whether a copy has landed by then is a matter of luck.
void check_copies_at_end(const Cta& cta) {
    if (!cta.checks(kCheckAsync)) return;
    for (const auto& [offset, phase] : cta.copied_phases) {
        auto found = cta.memory_barriers.find(offset);
        if (found == cta.memory_barriers.end()) continue;
        const MemoryBarrier& b = found->second;
        if (b.phase > phase + 1 || (b.phase == phase + 1 && b.observed)) continue;
        throw SimError(ErrorKind::Race,
                       "The CTA ends, and none of its threads has waited for the bulk copies of the last phase of " +
                           b.describe() + ".");
    }
}

// ---- stores ----

namespace {

// Reads the rows out of shared memory.
void read_store(Warp& w, BulkStore& store) {
    const Box& box = store.box;
    store.data.resize(box.bytes());
    for (u32 at = 0; at < box.bytes(); at += kRow)
        std::memcpy(store.data.data() + at, w.cta->shared.data() + swizzled(store.from + at, box.swizzle), kRow);
    store.has_read = true;
}

void write_store(Warp& w, BulkStore& store) {
    const u8* data = store.data.data();
    for (const BoxRow& row : store.box.rows) {
        u32 bytes = row.end - row.begin;
        u8* to = reinterpret_cast<u8*>(row.global);
        if (bytes && store.reduction.on) {
            for (u32 b = 0; b < bytes; b += store.reduction.bytes)
                reduce_global(store.reduction.operation, store.reduction.type, row.global + b, data + row.begin + b,
                              store.reduction.bytes);
        } else if (bytes) {
            std::memcpy(to, data + row.begin, bytes);
            Allocation* a = find_allocation(*w.cta->launch->memory, row.global);
            if (a && a->defined && a->contains(row.global, bytes))
                std::memset(a->defined + (row.global - a->base), 1, bytes);
        }
        data += store.box.row_bytes;
    }
    store.has_written = true;
}

// A reduction reads what is there.
void require_defined_sum(Warp& w, int lane, const Box& box) {
    if (!w.cta->checks(kCheckUndefined)) return;
    for (const BoxRow& row : box.rows) {
        u32 bytes = row.end - row.begin;
        const u8* known = bytes ? defined_bytes(*w.cta->launch, row.global, bytes) : nullptr;
        if (known && std::find(known, known + bytes, 0) != known + bytes)
            w.fail(ErrorKind::Undefined, "A bulk reduction to global memory that nobody has written.", lane);
    }
}

}  // namespace

void start_store(Warp& w, int lane, Box box, u32 from, const Reduction& reduction, bool again) {
    bool repeats = again && !reduction.on;
    if (!repeats) check_global_rows(w, lane, box, reduction.on ? GlobalAccess::Atomic : GlobalAccess::Write);
    if (reduction.on) require_defined_sum(w, lane, box);
    BulkStore store;
    store.number = w.cta->proxy.begin_read(w, AsyncReader::BulkStore);
    bool defined = w.cta->proxy.read_rows(w, lane, AsyncReader::BulkStore, store.number, from, box.bytes());
    if (!defined && w.cta->checks(kCheckUndefined))
        w.fail(ErrorKind::Undefined, "A bulk copy stores shared memory that nobody has written.", lane);
    if (w.cta->remote) w.cta->remote->check_own(w, lane, from, box.bytes(), false);
    u64& moved = reduction.on ? w.cta->counters->bulk_reduced_bytes : w.cta->counters->bulk_stored_bytes;
    if (!repeats) moved += box.global_bytes();
    store.lane = lane;
    store.group = w.bulk_commits[lane];
    store.from = from;
    store.box = std::move(box);
    store.reduction = reduction;
    if (w.random.below(2)) read_store(w, store);
    if (store.has_read && w.random.below(2)) write_store(w, store);
    w.bulk_stores.push_back(std::move(store));
}

void commit_bulk_group(Warp& w) {
    for_lanes(w.active, [&](int i) { ++w.bulk_commits[i]; });
}

// "only N or fewer of the most recent bulk async-groups are pending"
void wait_bulk_groups(Warp& w, u32 pending, bool only_reads) {
    bool ended = false;
    ++w.cta->counters->bulk_waits;
    for (BulkStore& store : w.bulk_stores) {
        u32 commits = w.bulk_commits[store.lane];
        if (!lane_in(w.active, store.lane) || store.group + pending >= commits) continue;
        if (!store.has_read) read_store(w, store);
        if (!store.waited) w.cta->proxy.end_read(w, AsyncReader::BulkStore, store.number);
        ended |= !store.waited;
        store.waited = true;
        if ((!only_reads || w.random.below(2)) && !store.has_written) write_store(w, store);
    }
    if (ended) w.clocks.advance();
    auto done = [](const BulkStore& s) { return s.waited && s.has_written; };
    w.bulk_stores.erase(std::remove_if(w.bulk_stores.begin(), w.bulk_stores.end(), done), w.bulk_stores.end());
}

void finish_bulk_stores(Warp& w, u32 lanes) {
    for (BulkStore& store : w.bulk_stores) {
        if (!lane_in(lanes, store.lane)) continue;
        if (!store.waited && w.cta->checks(kCheckAsync))
            w.fail(ErrorKind::Race,
                   "A thread exits while a bulk store of its own may still read shared memory: no "
                   "cp.async.bulk.wait_group covers it" +
                       std::string(store.group == w.bulk_commits[store.lane] ? ", and it was never committed." : "."),
                   store.lane);
        if (!store.has_read) read_store(w, store);
        if (!store.has_written) write_store(w, store);
    }
    auto done = [&](const BulkStore& s) { return lane_in(lanes, s.lane); };
    w.bulk_stores.erase(std::remove_if(w.bulk_stores.begin(), w.bulk_stores.end(), done), w.bulk_stores.end());
}

}  // namespace ptxsim
