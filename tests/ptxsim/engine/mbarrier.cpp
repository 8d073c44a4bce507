// The objects and their rules are in mbarrier_object.cpp; this file decodes and runs the instructions.
#include "access.h"
#include "async_copy.h"
#include "cluster.h"
#include "cluster_shadow.h"
#include "control.h"
#include "cta.h"
#include "lanes.h"

namespace ptxsim {

namespace {

enum Order : u8 { kOrders, kRelaxed };  // Op::mode: does it release, or acquire
constexpr int kStateShift = 20;         // of the phase in an opaque state; the pending count is below

SharedPlace object_place(Warp& w, const Op& op, int lane, const LaneAddresses& addresses) {
    u64 address = addresses.at[lane];
    if (op.space == Space::None && resolve_generic(address) != Space::Shared)
        w.fail(ErrorKind::OutOfBounds, "An mbarrier outside shared memory.", lane);
    check_alignment(w, lane, address, 8, "mbarrier");
    return reach_shared(w, op, lane, address, 8);
}

MemoryBarrier& find(Warp& w, const Op& op, int lane, const LaneAddresses& addresses) {
    SharedPlace place = object_place(w, op, lane, addresses);
    if (place.cta != w.cta)
        w.fail(ErrorKind::OutOfBounds, "This instruction takes only an mbarrier of its own CTA.", lane);
    return find_barrier(w, *w.cta, place.offset, lane);
}

u32 own_offset(Warp& w, const Op& op, int lane, const LaneAddresses& addresses) {
    SharedPlace place = object_place(w, op, lane, addresses);
    if (place.cta != w.cta) w.fail(ErrorKind::OutOfBounds, "mbarrier.init in another CTA's shared memory.", lane);
    return place.offset;
}

// An mbarrier that another CTA of the cluster may own: to arrive at it and to change its transactions.
struct Target {
    Cta& cta;
    MemoryBarrier& barrier;
    Clock known(const Warp& w) const {
        return &cta == w.cta ? w.clocks.known() : seen_from(cta, *w.cta, w.clocks.known());
    }
};

Target find_target(Warp& w, const Op& op, int lane, const LaneAddresses& addresses) {
    SharedPlace place = object_place(w, op, lane, addresses);
    MemoryBarrier& b = find_barrier(w, *place.cta, place.offset, lane);
    if (place.cta == w.cta) return {*place.cta, b};
    place.cta->remote->note(w);
    if (w.cta->checks(kCheckRace) && !knows_remote(w, *place.cta, b.init_warp, b.init_clock))
        w.fail(ErrorKind::Race,
               "Race on the mbarrier at " + hex(b.offset) + " of CTA " + std::to_string(place.cta->rank) +
                   " of the cluster: its mbarrier.init is not ordered before this.",
               lane);
    return {*place.cta, b};
}

u32 count_of(Warp& w, const Op& op, int lane) { return op.arrival.has_count ? w.cells<u32>(op.b)[lane] : 1; }

void op_init(Warp& w, const Op& op) {
    LaneAddresses addresses;
    gather_addresses(w, op, addresses);
    w.require_defined(w.defined(op.b), "the count of an mbarrier");
    for_lanes(w.active, [&](int i) { init_barrier(w, i, own_offset(w, op, i, addresses), w.cells<u32>(op.b)[i]); });
}

void op_invalidate(Warp& w, const Op& op) {
    LaneAddresses addresses;
    gather_addresses(w, op, addresses);
    for_lanes(w.active, [&](int i) { invalidate_barrier(w, i, find(w, op, i, addresses)); });
}

void op_arrive(Warp& w, const Op& op) {
    LaneAddresses addresses;
    gather_addresses(w, op, addresses);
    if (op.arrival.has_count) w.require_defined(w.defined(op.b), "the count of an mbarrier");
    if (op.arrival.expects) w.require_defined(w.defined(op.c), "the transaction count of an mbarrier");
    for_lanes(w.active, [&](int i) {
        Target t = find_target(w, op, i, addresses);
        MemoryBarrier& b = t.barrier;
        u64 state = b.phase << kStateShift | b.pending;
        if (op.arrival.expects) expect_transactions(t.cta, b, w.cells<u32>(op.c)[i]);
        if (op.arrival.drops) b.expected -= count_of(w, op, i);
        Clock known = op.mode == kRelaxed ? Clock() : t.known(w);
        if (op.arrival.arrives) arrive_at_barrier(t.cta, b, count_of(w, op, i), known);
        if (op.has_result) w.cells<u64>(op.dst)[i] = state;
    });
    if (op.has_result) w.define(op.dst, kFull);
    w.clocks.advance();  // what the warp does next is after the arrival
}

// mbarrier.complete_tx: "simulates" the completion of a copy by hand.
void op_complete_transactions(Warp& w, const Op& op) {
    LaneAddresses addresses;
    gather_addresses(w, op, addresses);
    w.require_defined(w.defined(op.c), "the transaction count of an mbarrier");
    for_lanes(w.active, [&](int i) {
        Target t = find_target(w, op, i, addresses);
        complete_transactions(t.cta, t.barrier, w.cells<u32>(op.c)[i]);
    });
}

void op_pending_count(Warp& w, const Op& op) {
    map1<u32, u64>(w, op.dst, op.a, [](u64 state) { return static_cast<u32>(state & kMostArrivals); });
}

// Lanes that found the phase of their mbarrier complete learn what its arrivals published.
void learn_phases(Warp& w, const Op& op, const LaneAddresses& addresses, u32 lanes) {
    while (lanes) {
        u64 address = addresses.at[__builtin_ctz(lanes)];
        u32 same = 0;
        for_lanes(lanes, [&](int i) { same |= addresses.at[i] == address ? 1u << i : 0; });
        MemoryBarrier& b = find(w, op, __builtin_ctz(lanes), addresses);
        b.observed = true;
        if (op.mode != kRelaxed) w.clocks.join(b.completed, same);
        lanes &= ~same;
    }
    share_cluster_knowledge(w);
}

// "waits for the completion of the phase indicated by phaseParity": the current one or the one before it.
bool phase_done(Warp& w, const Op& op, MemoryBarrier& b, int lane) {
    if (!op.wait.by_parity) return b.phase > w.cells<u64>(op.b)[lane] >> kStateShift;
    u32 parity = w.cells<u32>(op.b)[lane];
    if (parity > 1) w.fail(ErrorKind::Undefined, "The phase parity of an mbarrier is neither 0 nor 1.", lane);
    check_parity(w, lane, b, parity);
    return (b.phase & 1) != parity;
}

// A wait that fails may suspend the thread until the phase completes, or come back at once: the seed chooses.
void op_test(Warp& w, const Op& op) {
    LaneAddresses addresses;
    gather_addresses(w, op, addresses);
    w.require_defined(w.defined(op.b), "the phase of an mbarrier");
    u32 result = 0, offset = 0;
    bool same = true;
    if (w.random.below(4) == 0) w.cta->proxy.progress(false);
    for_lanes(w.active, [&](int i) {
        MemoryBarrier& b = find(w, op, i, addresses);
        if (phase_done(w, op, b, i)) {
            result |= 1u << i;
            return;
        }
        same &= offset == 0 || offset == b.offset;
        offset = b.offset;
    });
    Fragment& f = w.fragment();
    bool gave_up = f.released;
    f.released = false;
    if (result != w.active && same && !gave_up && w.random.below(2)) {
        f.mbarrier = offset;
        f.mbarrier_phase = w.cta->memory_barriers.at(offset).phase;
        w.cta->profile[f.pc].issues -= 1;  // it is counted when it comes back
        w.cta->profile[f.pc].lanes -= static_cast<u64>(popcount(w.active));
        w.next = f.pc;
        return w.block(FragmentState::AtMbarrier);
    }
    learn_phases(w, op, addresses, result);
    w.set_predicate(op.to_p, result, kFull);
    ++(result == w.active ? w.cta->counters->mbarrier_waits : w.cta->counters->mbarrier_retries);
    if (result == w.active) return;
    f.pc = w.next;
    w.stop = true;
}

// cp.async.mbarrier.arrive: an arrival once the thread's prior copies have landed; here they land now.
void op_async_arrive(Warp& w, const Op& op) {
    LaneAddresses addresses;
    gather_addresses(w, op, addresses);
    complete_copies(w);
    for_lanes(w.active, [&](int i) {
        MemoryBarrier& b = find(w, op, i, addresses);
        if (!op.arrival.uncounted)
            ++b.pending;  // without .noinc "the pending count is incremented prior to the arrive-on"
        arrive_at_barrier(*w.cta, b, 1, w.clocks.known());
    });
    w.clocks.advance();
}

void set_object(Op& op, const Address& address) {
    set_address(op, address);
    op.addressing |= kClusterWindow;
}

// "The optional qualifier .relaxed": it orders nothing.
Order take_order(Form& f) {
    bool relaxed = f.take("relaxed");
    f.take_any({"release", "acquire"});
    return relaxed ? kRelaxed : kOrders;
}

Space take_space(Form& f) {
    f.take_any({"cta", "cluster"});
    return f.take_any({"shared", "shared::cta", "shared::cluster"}).empty() ? Space::None : Space::Shared;
}

void decode_arrive(Form& f, bool drop, bool expect_only) {
    Decoder& d = f.decoder;
    bool expect = expect_only || f.take("expect_tx");
    f.take("noComplete");
    Order order = take_order(f);
    Space space = take_space(f);
    f.take_type();
    bool state = f.at(0).kind != Operand::kAddress;
    size_t at = state ? 1 : 0;
    bool has_operand = f.size() > at + 1;
    Ref operand = has_operand ? d.source(f.at(at + 1), 4) : 0;
    Address address = d.address(f.at(at), space);
    Op& op = d.emit(op_arrive, OpClass::Barrier);
    set_object(op, address);
    op.b = operand;
    op.c = operand;
    op.mode = order;
    op.arrival = {has_operand && !expect, drop, expect, !expect_only, false};
    op.has_result = state && f.at(0).kind == Operand::kReg;
    if (op.has_result) op.dst = d.dest(f.at(0), 8);
}

void decode_wait(Form& f) {
    Decoder& d = f.decoder;
    bool parity = f.take("parity");
    Order order = take_order(f);
    Space space = take_space(f);
    f.take_type();
    Ref state = d.source(f.at(2), parity ? 4 : 8);
    Address address = d.address(f.at(1), space);
    Op& op = d.emit(op_test, OpClass::Barrier);
    set_object(op, address);
    op.b = state;
    op.mode = order;
    op.wait = {parity, false};
    op.to_p = d.predicate_dest(f.at(0));
}

void decode_complete(Form& f) {
    take_order(f);
    Space space = take_space(f);
    f.take_type();
    Ref bytes = f.decoder.source(f.at(1), 4);
    Address address = f.decoder.address(f.at(0), space);
    Op& op = f.decoder.emit(op_complete_transactions, OpClass::Barrier);
    set_object(op, address);
    op.c = bytes;
}

void decode_pending_count(Form& f) {
    f.take_type();
    Ref state = f.decoder.source(f.at(1), 8);
    Op& op = f.decoder.emit(op_pending_count, OpClass::Barrier);
    op.a = state;
    op.dst = f.decoder.dest(f.at(0), 4);
}

void decode_mbarrier(Form& f) {
    Decoder& d = f.decoder;
    if (f.take("complete_tx")) return decode_complete(f);
    if (f.take("pending_count")) return decode_pending_count(f);
    if (f.take("arrive")) return decode_arrive(f, false, false);
    if (f.take("arrive_drop")) return decode_arrive(f, true, false);
    if (f.take("expect_tx")) return decode_arrive(f, false, true);
    if (f.take("test_wait") || f.take("try_wait")) return decode_wait(f);
    bool init = f.take("init");
    if (!init && !f.take("inval")) f.unsupported();
    Space space = take_space(f);
    f.take_type();
    Ref count = init ? d.source(f.at(1), 4) : 0;
    Address address = d.address(f.at(0), space);
    Op& op = d.emit(init ? op_init : op_invalidate, OpClass::Barrier);
    set_object(op, address);
    op.b = count;
}

}  // namespace

void decode_async_arrive(Form& f) {
    f.take("mbarrier");
    f.take("arrive");
    bool noinc = f.take("noinc");
    Space space = take_space(f);
    f.take_type();
    Address address = f.decoder.address(f.at(0), space);
    Op& op = f.decoder.emit(op_async_arrive, OpClass::AsyncCopy);
    set_object(op, address);
    op.arrival = {false, false, false, true, noinc};
}

void add_mbarrier_families(FamilyTable& t) { t["mbarrier"] = decode_mbarrier; }

}  // namespace ptxsim
