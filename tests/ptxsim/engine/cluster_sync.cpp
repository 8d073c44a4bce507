// barrier.cluster, mapa, getctarank (PTX ISA 9.7.13.3, 9.7.9.23-24).
#include "cluster_sync.h"
#include "access.h"
#include "cluster.h"
#include "control.h"
#include "lanes.h"

namespace ptxsim {

namespace {

// Without .aligned the active lanes arrive, or wait, for themselves; what is left of the fragment goes on alone.
bool gather(Warp& w, const Op& op) {
    if (op.cluster_barrier.aligned) return w.converge(kFull);
    Fragment& f = w.fragment();
    u32 rest = f.mask & ~w.active;
    if (rest) w.diverge({{f.pc, w.active}, {w.next, rest}}, w.next);
    return !rest;
}

// "marks the warps' arrival at the barrier"
void op_cluster_arrive(Warp& w, const Op& op) {
    if (op.cluster_barrier.aligned && !w.converge(kFull)) return;
    w.cta->cluster->arrive(w, w.active, op.cluster_barrier.orders);
}

// "causes the executing thread to wait for all non-exited threads of the cluster to perform barrier.cluster.arrive"
void op_cluster_wait(Warp& w, const Op& op) {
    if (!gather(w, op)) return;
    Cluster& cluster = *w.cta->cluster;
    if (cluster.passed(w, w.active)) {
        ++w.cta->counters->cluster_waits;
        return cluster.leave(w, w.active, op.cluster_barrier.orders);
    }
    Fragment& f = w.fragment();
    w.cta->profile[f.pc].issues -= 1;  // it is counted when it comes back
    w.cta->profile[f.pc].lanes -= static_cast<u64>(popcount(w.active));
    f.barrier = kClusterBarrier;
    w.next = f.pc;
    w.block(FragmentState::AtBarrier);
}

// 9.7.9.23 mapa: "the address in the shared memory window of the target CTA that corresponds to the given address".
template <class T>
void op_map_address(Warp& w, const Op& op) {
    w.require_defined(w.defined(op.a), "an address");
    w.require_defined(w.defined(op.b), "the rank of a CTA in its cluster");
    u32 size = w.cta->cluster->size();
    for_lanes(w.active, [&](int i) {
        u64 address = w.cells<T>(op.a)[i], window = 0;
        u32 rank = w.cells<u32>(op.b)[i];
        if (op.space == Space::None) {
            window = address & kWindowMask;
            if (resolve_generic(address) != Space::Shared)
                w.fail(ErrorKind::OutOfBounds, "mapa of an address outside shared memory.", i);
        }
        if (rank >= size)
            w.fail(ErrorKind::OutOfBounds,
                   "mapa to rank " + std::to_string(rank) + " of a cluster of " + std::to_string(size) + " CTAs.", i);
        address &= (1u << kClusterShift) - 1;
        w.cells<T>(op.dst)[i] = static_cast<T>(window | static_cast<u64>(rank + 1) << kClusterShift | address);
    });
    w.define(op.dst, kFull);
}

template <class T>
void op_rank_of(Warp& w, const Op& op) {
    w.require_defined(w.defined(op.a), "an address");
    for_lanes(w.active, [&](int i) {
        u64 named = (static_cast<u64>(w.cells<T>(op.a)[i]) & ~kWindowMask) >> kClusterShift;
        w.cells<u32>(op.dst)[i] = named ? static_cast<u32>(named) - 1 : w.cta->rank;
    });
    w.define(op.dst, kFull);
}

// The address operand of both is a register, or a variable in shared memory, not in brackets.
Ref address_source(Form& f, size_t at, int bytes) { return f.decoder.source(f.at(at), bytes); }

void decode_mapa(Form& f) {
    f.require_target(90);
    Decoder& d = f.decoder;
    bool shared = f.take("shared::cluster");
    int bytes = f.take_type() == "u64" ? 8 : 4;
    Ref a = address_source(f, 1, bytes), rank = d.source(f.at(2), 4);
    Op& op = d.emit(bytes == 8 ? op_map_address<u64> : op_map_address<u32>, OpClass::Integer);
    op.a = a;
    op.b = rank;
    op.space = shared ? Space::Shared : Space::None;
    op.dst = d.dest(f.at(0), bytes);
}

void decode_rank(Form& f) {
    f.require_target(90);
    Decoder& d = f.decoder;
    f.take("shared::cluster");
    int bytes = f.take_type() == "u64" ? 8 : 4;
    int width = d.operand_bytes(f.at(1));
    Ref a = address_source(f, 1, width ? width : bytes);
    Op& op = d.emit((width ? width : bytes) == 8 ? op_rank_of<u64> : op_rank_of<u32>, OpClass::Integer);
    op.a = a;
    op.dst = d.dest(f.at(0), 4);
}

}  // namespace

void decode_cluster_barrier(Form& f) {
    f.require_target(90);
    f.take("cluster");
    bool arrives = f.take("arrive");
    if (!arrives && !f.take("wait")) f.unsupported();
    bool relaxed = f.take("relaxed");
    f.take_any({"release", "acquire"});
    bool aligned = f.take("aligned");
    Op& op = f.decoder.emit(arrives ? op_cluster_arrive : op_cluster_wait, OpClass::Barrier);
    op.cluster_barrier = {aligned, !relaxed};
}

void add_cluster_families(FamilyTable& t) {
    t["mapa"] = decode_mapa;
    t["getctarank"] = decode_rank;
}

}  // namespace ptxsim
