// mbarrier objects in shared memory (PTX ISA 9.7.13.15), as far as sm_80 has them, and transaction counts.
#include "access.h"
#include "async_copy.h"
#include "control.h"
#include "cta.h"
#include "lanes.h"

namespace ptxsim {

namespace {

u32 object_offset(Warp& w, const Op& op, int lane, const LaneAddresses& addresses) {
    u64 address = addresses.at[lane];
    if (op.space == Space::None && resolve_generic(address) != Space::Shared)
        w.fail(ErrorKind::OutOfBounds, "An mbarrier outside shared memory.", lane);
    check_alignment(w, lane, address, 8, "mbarrier");
    shared_pointer(w, lane, address, 8);
    return static_cast<u32>(address);
}

MemoryBarrier& find(Warp& w, const Op& op, int lane, const LaneAddresses& addresses) {
    u32 offset = object_offset(w, op, lane, addresses);
    auto found = w.cta->memory_barriers.find(offset);
    if (found == w.cta->memory_barriers.end())
        w.fail(ErrorKind::Undefined, "The mbarrier at " + hex(offset) + " was not initialised.", lane);
    return found->second;
}

u32 count_of(Warp& w, const Op& op, int lane) { return op.flags & 1 ? w.cells<u32>(op.b)[lane] : 1; }

// A phase completes when nobody is pending and no bytes are outstanding.
void complete_phase(MemoryBarrier& b) {
    if (b.pending != 0 || b.transactions != 0) return;
    ++b.phase;
    b.pending = b.expected;
    b.completed = b.gathered;
    b.gathered.clear();
}

void arrive(Warp& w, MemoryBarrier& b, int lane, u32 count) {
    if (count > b.pending) w.fail(ErrorKind::Deadlock, "More arrivals at an mbarrier than its phase expects.", lane);
    merge_clock(b.gathered, w.clocks.known());
    b.pending -= count;
    complete_phase(b);
}

void op_init(Warp& w, const Op& op) {
    LaneAddresses addresses;
    gather_addresses(w, op, addresses);
    w.require_defined(w.defined(op.b), "the count of an mbarrier");
    for_lanes(w.active, [&](int i) {
        u32 offset = object_offset(w, op, i, addresses);
        w.cta->shadow.write(w, i, offset, 8, true, nullptr);
        MemoryBarrier b;
        b.expected = b.pending = w.cells<u32>(op.b)[i];
        w.cta->memory_barriers[offset] = b;
    });
}

void op_invalidate(Warp& w, const Op& op) {
    LaneAddresses addresses;
    gather_addresses(w, op, addresses);
    for_lanes(w.active, [&](int i) { w.cta->memory_barriers.erase(object_offset(w, op, i, addresses)); });
}

// flags: 1 has a count, 2 drops, 4 expects transactions (op.c), 8 does not arrive.
void op_arrive(Warp& w, const Op& op) {
    LaneAddresses addresses;
    gather_addresses(w, op, addresses);
    if (op.flags & 1) w.require_defined(w.defined(op.b), "the count of an mbarrier");
    if (op.flags & 4) w.require_defined(w.defined(op.c), "the transaction count of an mbarrier");
    for_lanes(w.active, [&](int i) {
        MemoryBarrier& b = find(w, op, i, addresses);
        w.cta->shadow.read(w, i, object_offset(w, op, i, addresses), 8);
        u64 phase = b.phase;
        if (op.flags & 4) b.transactions += w.cells<u32>(op.c)[i];
        if (op.flags & 2) b.expected -= count_of(w, op, i);
        if (!(op.flags & 8)) arrive(w, b, i, count_of(w, op, i));
        if (op.p >= 0) w.cells<u64>(op.dst)[i] = phase;
    });
    if (op.p >= 0) w.define(op.dst, kFull);
    w.clocks.advance();  // what the warp does next is after the arrival
}

// Lanes that found the phase of their mbarrier complete learn what its arrivals published.
void learn_phases(Warp& w, const Op& op, const LaneAddresses& addresses, u32 lanes) {
    while (lanes) {
        u64 address = addresses.at[__builtin_ctz(lanes)];
        u32 same = 0;
        for_lanes(lanes, [&](int i) { same |= addresses.at[i] == address ? 1u << i : 0; });
        w.clocks.join(find(w, op, __builtin_ctz(lanes), addresses).completed, same);
        lanes &= ~same;
    }
}

// A wait that fails is a hint to try again: the warp gives its turn away.
void op_test(Warp& w, const Op& op) {
    LaneAddresses addresses;
    gather_addresses(w, op, addresses);
    w.require_defined(w.defined(op.b), "the phase of an mbarrier");
    u32 result = 0;
    for_lanes(w.active, [&](int i) {
        MemoryBarrier& b = find(w, op, i, addresses);
        w.cta->shadow.read(w, i, object_offset(w, op, i, addresses), 8);
        bool done = op.flags ? (b.phase & 1) != (w.cells<u32>(op.b)[i] & 1) : b.phase > w.cells<u64>(op.b)[i];
        result |= static_cast<u32>(done) << i;
    });
    learn_phases(w, op, addresses, result);
    w.set_predicate(op.p, result, kFull);
    if (result == w.active) return;
    w.fragment().pc = w.next;
    w.stop = true;
}

// cp.async.mbarrier.arrive: an arrival once the thread's prior copies have landed; here they land now.
void op_async_arrive(Warp& w, const Op& op) {
    LaneAddresses addresses;
    gather_addresses(w, op, addresses);
    complete_copies(w);
    for_lanes(w.active, [&](int i) {
        MemoryBarrier& b = find(w, op, i, addresses);
        if (!op.flags) ++b.pending;  // without .noinc "the pending count is incremented prior to the arrive-on"
        arrive(w, b, i, 1);
    });
    w.clocks.advance();
}

void set_address(Op& op, const Address& address) {
    op.a = address.base;
    op.imm = address.offset;
    op.space = address.space;
    op.flags2 = address.base_bytes == 8 ? 0 : kNarrowBase;
}

Space take_space(Form& f) {
    f.take_any({"release", "acquire", "relaxed"});
    f.take_any({"cta", "cluster"});
    return f.take_any({"shared", "shared::cta"}).empty() ? Space::None : Space::Shared;
}

void decode_arrive(Form& f, bool drop, bool expect_only) {
    Decoder& d = f.decoder;
    bool expect = expect_only || f.take("expect_tx");
    f.take("noComplete");
    Space space = take_space(f);
    f.take_type();
    bool state = f.at(0).kind != Operand::kAddress;
    size_t at = state ? 1 : 0;
    bool has_operand = f.size() > at + 1;
    Ref operand = has_operand ? d.source(f.at(at + 1), 4) : 0;
    Address address = d.address(f.at(at), space);
    Op& op = d.emit(op_arrive, OpClass::Barrier);
    set_address(op, address);
    op.b = operand;
    op.c = operand;
    op.flags =
        static_cast<u8>((has_operand && !expect ? 1 : 0) | (drop ? 2 : 0) | (expect ? 4 : 0) | (expect_only ? 8 : 0));
    op.p = state && f.at(0).kind == Operand::kReg ? 0 : -1;
    if (op.p >= 0) op.dst = d.dest(f.at(0), 8);
}

void decode_wait(Form& f) {
    Decoder& d = f.decoder;
    bool parity = f.take("parity");
    Space space = take_space(f);
    f.take_type();
    Ref state = d.source(f.at(2), parity ? 4 : 8);
    Address address = d.address(f.at(1), space);
    Op& op = d.emit(op_test, OpClass::Barrier);
    set_address(op, address);
    op.b = state;
    op.flags = parity;
    op.p = d.predicate_dest(f.at(0));
}

void decode_mbarrier(Form& f) {
    Decoder& d = f.decoder;
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
    set_address(op, address);
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
    set_address(op, address);
    op.flags = noinc;
}

void add_mbarrier_families(FamilyTable& t) { t["mbarrier"] = decode_mbarrier; }

}  // namespace ptxsim
