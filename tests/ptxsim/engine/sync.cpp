// Barriers and fences (PTX ISA 9.7.13): bar / barrier sync, arrive, red; bar.warp.sync; membar, fence.
#include <algorithm>

#include "cluster_sync.h"
#include "control.h"
#include "cta.h"
#include "lanes.h"
#include "race_release.h"
#include "warp_sync.h"

namespace ptxsim {

namespace {

enum BarrierKind : u8 { kSync, kArrive, kRedPopc, kRedAnd, kRedOr };

u32 uniform(Warp& w, Ref ref, const char* what) {
    w.require_defined(w.defined(ref), what);
    u32 value = w.cells<u32>(ref)[__builtin_ctz(w.active)];
    for_lanes(w.active, [&](int i) {
        if (w.cells<u32>(ref)[i] != value)
            w.fail(ErrorKind::Divergence, std::string("Lanes of a warp give different values for ") + what + ".", i);
    });
    return value;
}

// Lanes of a warp that will never come, once all others have come one by one: a warp counts as whole.
u32 absent_lanes(const Warp& w, int id) {
    u32 waiting = 0;
    for (const Fragment& f : w.fragments)
        if (f.state == FragmentState::AtBarrier && f.barrier == id && !w.program->code[f.pc].barrier.aligned)
            waiting |= f.mask;
    return waiting && waiting == w.alive ? static_cast<u32>(kLanes - popcount(waiting)) : 0;
}

// "the barrier's expected arrival count": that of the instruction, or every thread of the CTA that has not exited.
u32 live_threads(const Cta& cta) {
    u32 threads = 0;
    for (const Warp& w : cta.warps) threads += w.finished() ? 0 : kLanes;
    return threads;
}

void check_count(Warp& w, Barrier& b, int id, bool counted, u32 expected) {
    if (counted && (expected == 0 || expected % kLanes))
        w.fail(ErrorKind::Divergence,
               "The thread count " + std::to_string(expected) + " of a barrier is not a multiple of the warp size.");
    if (counted && expected > w.cta->warp_count * kLanes) {
        w.fail(ErrorKind::Deadlock, "Barrier " + std::to_string(id) + " waits for " + std::to_string(expected) +
                                        " threads, the CTA has " + std::to_string(w.cta->thread_count) + ".");
    }
    if (b.arrived == 0) {
        b.counted = counted;
        b.expected = expected;
    } else if (b.counted != counted || (counted && b.expected != expected)) {
        w.fail(ErrorKind::Divergence, "Warps give barrier " + std::to_string(id) + " different thread counts: " +
                                          std::to_string(b.expected) + " and " + std::to_string(expected) + ".");
    }
}

void take_result(Warp& w, const Op& op, const Barrier& b) {
    if (op.barrier.kind == kRedPopc) {
        for_lanes(w.active, [&](int i) { w.cells<u32>(op.dst)[i] = b.last_population; });
        w.define(op.dst, kFull);
    } else if (op.barrier.kind == kRedAnd || op.barrier.kind == kRedOr) {
        bool value = op.barrier.kind == kRedAnd ? b.last_all : b.last_any;
        w.set_predicate(op.to_p, value ? kFull : 0, kFull);
    }
}

void contribute(Warp& w, const Op& op, Barrier& b) {
    if (op.barrier.kind < kRedPopc) return;
    w.require_defined(w.predicates_defined[op.p], "the predicate of a barrier reduction");
    u32 p = w.predicates[op.p] & w.active;
    b.population += static_cast<u32>(popcount(p));
    b.all &= p == w.active;
    b.any |= p != 0;
}

// .aligned: "all threads in the warp must execute the same barrier instruction".
void op_barrier(Warp& w, const Op& op) {
    int id = static_cast<int>(uniform(w, op.a, "the barrier's number"));
    if (id >= kBarriers) w.fail(ErrorKind::Divergence, "Barrier number " + std::to_string(id) + " is above 15.");
    Barrier& b = w.cta->barriers[id];
    Fragment& f = w.fragment();
    if (f.released) {
        f.released = false;
        w.cta->profile[f.pc].issues -= 1;  // the instruction was counted when it arrived
        w.cta->profile[f.pc].lanes -= static_cast<u64>(popcount(w.active));
        ++w.cta->counters->barrier_waits;
        return take_result(w, op, b);
    }
    if (op.barrier.aligned && !w.converge(kFull)) return;
    bool waits = op.barrier.kind != kArrive;
    u32 rest = f.mask & ~w.active;
    if (waits && !op.barrier.aligned && rest) return w.diverge({{f.pc, w.active}, {w.next, rest}}, w.next);
    bool counted = op.barrier.counted;
    check_count(w, b, id, counted, counted ? uniform(w, op.b, "the barrier's thread count") : 0);
    contribute(w, op, b);
    bool whole = op.barrier.aligned || (!waits && w.active == w.alive);
    b.arrived += whole ? kLanes : static_cast<u32>(popcount(w.active));
    merge_clock(b.clock, w.clocks.known());
    w.clocks.advance();
    if (waits) {
        Fragment& here = w.fragment();
        here.barrier = id;
        w.next = here.pc;
        w.block(FragmentState::AtBarrier);
    }
    w.cta->complete_if_full(id);
}

// 9.7.13.2 bar.warp.sync: "also guarantees memory ordering among threads participating in barrier".
void op_warp_barrier(Warp& w, const Op& op) {
    for_mask_groups(w, op.a, [&] { order_active_lanes(w); });
}

// 9.7.13.4 membar, fence: what the warp did and knew before may be published by a strong write after it.
template <Scope kScope>
void op_fence(Warp& w, const Op&) {
    fence_memory(w, kScope);
}

// 9.7.13.4 fence.proxy.async, fence.mbarrier_init: what the lanes wrote may be seen by the async proxy (async_proxy.h).
void op_proxy_fence(Warp& w, const Op&) { w.cta->proxy.fence(w); }
void op_init_fence(Warp& w, const Op&) { w.cta->proxy.fence_init(w); }

void decode_fence(Form& f) {
    if (f.inst.has("async") && !f.inst.has("global")) {  // shared memory is among what it covers
        f.left.clear();
        f.decoder.emit(op_proxy_fence, OpClass::Other);
        return;
    }
    if (f.inst.has("mbarrier_init")) {
        f.left.clear();
        f.decoder.emit(op_init_fence, OpClass::Other);
        return;
    }
    bool wide = f.inst.has("gl") || f.inst.has("sys") || f.inst.has("gpu") || f.inst.has("cluster");
    bool inert = f.inst.has("proxy");
    f.left.clear();
    if (!inert) f.decoder.emit(wide ? op_fence<Scope::Grid> : op_fence<Scope::Cta>, OpClass::Other);
}

u8 barrier_kind(Form& f) {
    if (f.take("arrive")) return kArrive;
    if (!f.take("red")) {
        if (!f.take("sync")) f.unsupported();
        return kSync;
    }
    std::string operation = f.take_any({"popc", "and", "or"});
    if (operation.empty()) f.unsupported();
    f.take_type();
    return operation == "popc" ? kRedPopc : operation == "and" ? kRedAnd : kRedOr;
}

void decode_barrier(Form& f) {
    Decoder& d = f.decoder;
    if (f.take("warp")) {
        if (!f.take("sync")) f.unsupported();
        Ref mask = d.source(f.at(0), 4);
        d.emit(op_warp_barrier, OpClass::WarpSync).a = mask;
        return;
    }
    if (f.inst.has("cluster")) return decode_cluster_barrier(f);
    f.take("cta");
    bool aligned = f.take("aligned") || f.inst.opcode == "bar";
    u8 kind = barrier_kind(f);
    size_t at = kind >= kRedPopc ? 1 : 0;
    Ref id = d.source(f.at(at), 4);
    bool counted = f.size() > at + (kind >= kRedPopc ? 2u : 1u);
    Ref count = counted ? d.source(f.at(at + 1), 4) : 0;
    int p = kind >= kRedPopc ? d.predicate(f.at(f.size() - 1)) : -1;
    Op& op = d.emit(op_barrier, OpClass::Barrier);
    op.a = id;
    op.b = count;
    op.barrier = {kind, counted, aligned};
    op.p = p;
    if (kind == kRedPopc) op.dst = d.dest(f.at(0), 4);
    if (kind == kRedAnd || kind == kRedOr) op.to_p = d.predicate_dest(f.at(0));
}

}  // namespace

// All warps that have not ended wait here, so that everything before is ordered ahead of everything after.
void Cta::note_whole_barrier(const Clock& clock) {
    ++whole_barriers;
    merge_clock(at_whole_barrier, clock);
}

void Cta::complete_if_full(int id) {
    Barrier& b = barriers[id];
    u32 expected = b.counted ? b.expected : live_threads(*this);
    u32 arrived = b.arrived;
    for (const Warp& warp : warps) arrived += absent_lanes(warp, id);
    if (arrived < expected || b.arrived == 0) return;
    if (!b.counted) note_whole_barrier(b.clock);
    for (Warp& warp : warps) {
        u32 waited = 0;
        for (Fragment& f : warp.fragments) {
            if (f.state != FragmentState::AtBarrier || f.barrier != id) continue;
            f.state = FragmentState::Runnable;
            f.released = true;
            waited |= f.mask;
        }
        // With lanes that have exited "it is as if all the threads in the warp have executed the bar instruction".
        if (waited) warp.clocks.join(b.clock, waited == warp.alive ? warp.clocks.all_lanes() : waited);
    }
    ++events;
    u32 population = b.population;
    bool all = b.all, any = b.any;
    b = Barrier{};
    b.last_population = population;
    b.last_all = all;
    b.last_any = any;
}

void add_sync_families(FamilyTable& t) {
    t["bar"] = decode_barrier;
    t["barrier"] = decode_barrier;
    t["membar"] = decode_fence;
    t["fence"] = decode_fence;
}

}  // namespace ptxsim
