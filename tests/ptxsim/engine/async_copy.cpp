// cp.async and its groups (PTX ISA 9.7.9.25). A copy's destination is undefined from issue until its own thread has
// waited; the bytes themselves arrive at a time the seed picks: at once, or only at the wait.
#include "async_copy.h"

#include "access.h"
#include "bulk_copy.h"
#include "control.h"
#include "counters.h"
#include "cta.h"
#include "lanes.h"

namespace ptxsim {

namespace {

void deliver(Warp& w, const AsyncCopy& copy, int lane) {
    u8* to = w.cta->shared.data() + copy.destination[lane];
    u32 size = copy.size[lane];
    if (size == 16) {
        std::memcpy(to, copy.source[lane], 16);
        return;
    }
    if (size) std::memcpy(to, copy.source[lane], size);
    std::memset(to + size, 0, copy.bytes - size);
}

void poison(u8* to, u32 bytes) { bytes == 16 ? std::memset(to, 0xff, 16) : std::memset(to, 0xff, bytes); }

// "src-size: bytes to copy; the remaining bytes of the destination are filled with zeros"; ignore-src copies none.
u32 source_bytes(Warp& w, const Op& op, int lane) {
    if (op.copy.ignores) return lane_in(w.predicates[op.p], lane) ? 0 : op.bytes;
    if (!op.copy.has_size) return op.bytes;
    u32 size = w.cells<u32>(op.c)[lane];
    if (size > op.bytes)
        w.fail(
            ErrorKind::OutOfBounds,
            "cp.async with src-size " + std::to_string(size) + " above its cp-size " + std::to_string(op.bytes) + ".",
            lane);
    return size;
}

void read_source(Warp& w, AsyncCopy& copy, int lane, u64 address) {
    u32 size = copy.size[lane];
    copy.source[lane] = nullptr;
    copy.defined[lane] = 0xffff;
    if (size == 0) return;  // the address is not used
    Allocation* a;
    check_alignment(w, lane, address, copy.bytes, "cp.async source");
    copy.source[lane] = global_pointer(w, lane, address, size, false, a);
    if (!a) return;
    check_global_race(w, lane, *a, address, size, GlobalAccess::Read);
    if (!a->defined) return;
    const u8* known = a->defined + (address - a->base);
    for (u32 b = 0; b < size; ++b)
        if (!known[b]) copy.defined[lane] &= ~(1u << b);
}

void op_copy(Warp& w, const Op& op) {
    LaneAddresses destinations, sources;
    gather_addresses(w, op, destinations);
    if (op.copy.has_size) w.require_defined(w.defined(op.c), "the src-size of cp.async");
    if (op.copy.ignores) w.require_defined(w.predicates_defined[op.p], "the ignore-src of cp.async");

    AsyncCopy copy;
    copy.bytes = op.bytes;
    copy.arrived = w.random.below(2) == 0;
    u32 offsets[kLanes], active = w.active, reading = 0;
    for_lanes(active, [&](int i) {
        copy.size[i] = source_bytes(w, op, i);
        if (copy.size[i]) reading |= 1u << i;
    });
    w.active = reading;  // the address of a copy of nothing is not used
    gather_from(w, op.b, static_cast<u64>(op.copy.source_offset), !op.copy.wide_source, sources);
    w.active = active;
    for_lanes(active, [&](int i) {
        u64 to = destinations.at[i];
        if (op.space == Space::None) resolve_generic(to);
        check_alignment(w, i, to, op.bytes, "cp.async destination");
        shared_pointer(w, i, to, op.bytes);
        copy.destination[i] = offsets[i] = static_cast<u32>(to);
        read_source(w, copy, i, sources.at[i]);
        w.cta->shadow.begin_async(w, i, offsets[i], op.bytes);
        w.cta->counters->async_bytes += copy.size[i];
        copy.arrived ? deliver(w, copy, i) : poison(w.cta->shared.data() + offsets[i], op.bytes);
    });
    count_wavefronts(w.cta->profile[w.current_pc()], offsets, active, op.bytes);
    count_sectors(w.cta->profile[w.current_pc()], sources.at, reading, op.bytes);
    for (u32 left = w.active; left;) {  // lanes that committed differently belong to different groups
        u32 group = w.commits[__builtin_ctz(left)], same = 0;
        for_lanes(left, [&](int i) { same |= w.commits[i] == group ? 1u << i : 0; });
        copy.mask = same;
        copy.group = group + 1;
        w.copies.push_back(copy);
        left &= ~same;
    }
}

// "makes ... prior cp.async operations part of a cp.async-group"
void op_commit(Warp& w, const Op&) {
    for_lanes(w.active, [&](int i) { ++w.commits[i]; });
}

void finish_lanes(Warp& w, AsyncCopy& copy, u32 lanes) {
    for_lanes(lanes, [&](int i) {
        if (!copy.arrived) deliver(w, copy, i);
        w.cta->shadow.complete_async(w, i, copy.destination[i], copy.bytes, copy.defined[i]);
    });
    copy.mask &= ~lanes;
}

void drop_finished(Warp& w) {
    size_t kept = 0;
    for (size_t i = 0; i < w.copies.size(); ++i) {
        if (w.copies[i].mask == 0) continue;
        if (kept != i) w.copies[kept] = w.copies[i];
        ++kept;
    }
    w.copies.resize(kept);
}

// cp.async.wait_group N: "only N or fewer of the most recent groups are pending".
void op_wait(Warp& w, const Op& op) {
    u32 pending = static_cast<u32>(op.imm);
    for (AsyncCopy& copy : w.copies) {
        alignas(32) u32 done[kLanes];
        for (int i = 0; i < kLanes; ++i) done[i] = w.commits[i] >= pending && copy.group <= w.commits[i] - pending;
        u32 lanes = pack_mask(done) & copy.mask & w.active;
        if (lanes) finish_lanes(w, copy, lanes);
    }
    drop_finished(w);
}

void op_wait_all(Warp& w, const Op&) { complete_copies(w); }

void decode_copy(Form& f) {
    Decoder& d = f.decoder;
    f.take_any({"ca", "cg"});
    bool shared = !f.take_any({"shared", "shared::cta"}).empty();
    if (!f.take("global")) f.unsupported();
    f.take_cache_hints();
    if (f.at(2).kind != Operand::kImm) f.unsupported("cp-size must be an immediate");
    u32 bytes = static_cast<u32>(f.at(2).bits);
    if (bytes != 4 && bytes != 8 && bytes != 16) f.unsupported("cp-size");
    bool has_third = f.size() > 3, policy = f.inst.has("L2::cache_hint");
    bool extra = has_third && !(policy && f.size() == 4);
    bool ignore = extra && d.is_predicate(f.at(3));
    Ref size = extra && !ignore ? d.source(f.at(3), 4) : 0;
    int predicate = ignore ? d.predicate(f.at(3)) : -1;
    Address to = d.address(f.at(0), shared ? Space::Shared : Space::None), from = d.address(f.at(1), Space::Global);
    Op& op = d.emit(op_copy, OpClass::AsyncCopy);
    set_address(op, to);
    op.b = from.base;
    op.c = size;
    op.p = predicate;
    op.bytes = static_cast<u8>(bytes);
    op.copy = {from.offset, from.base_bytes == 8, extra && !ignore, ignore};
}

void decode_cp(Form& f) {
    Decoder& d = f.decoder;
    if (f.inst.has("bulk")) return decode_bulk(f);
    if (!f.take("async")) f.unsupported();
    if (f.take("commit_group")) {
        d.emit(op_commit, OpClass::AsyncCopy);
    } else if (f.take("wait_group")) {
        if (f.at(0).kind != Operand::kImm) f.unsupported();
        s64 n = static_cast<s64>(f.at(0).bits);
        d.emit(op_wait, OpClass::AsyncCopy).imm = n;
    } else if (f.take("wait_all")) {
        d.emit(op_wait_all, OpClass::AsyncCopy);
    } else if (f.inst.has("mbarrier")) {
        decode_async_arrive(f);
    } else {
        decode_copy(f);
    }
}

}  // namespace

void complete_copies(Warp& w) {
    for (AsyncCopy& copy : w.copies) finish_lanes(w, copy, copy.mask & w.active);
    drop_finished(w);
}

void add_async_families(FamilyTable& t) { t["cp"] = decode_cp; }

}  // namespace ptxsim
