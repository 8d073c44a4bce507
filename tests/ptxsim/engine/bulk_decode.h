// Operands of bulk copies: up to three addresses in one op.
#pragma once

#include <vector>

#include "access.h"
#include "bulk_copy.h"

namespace ptxsim {

constexpr int kPackedAddress = 4;  // words of Op::list per address
void pack_address(std::vector<u32>& list, const Address& address);
void gather_packed(Warp& w, const Op& op, int index, LaneAddresses& out);

// Shared memory of this CTA or another one of the cluster.
SharedPlace bulk_place(Warp& w, int lane, u64 address, u32 bytes, u32 align, const char* what);

// Calls go(destination, mbarrier) for the one destination, or with .multicast for each CTA of the mask op.d: "the same
// CTA-relative offset as dstMem", and the mbarrier likewise.
template <class F>
void each_destination(Warp& w, const Op& op, int lane, u64 to, u64 barrier, u32 bytes, u32 align, F go) {
    SharedPlace place = bulk_place(w, lane, to, bytes, align, "destination of a bulk copy");
    SharedPlace signal = bulk_place(w, lane, barrier, 8, 8, "mbarrier");
    if (!op.bulk.multicast) return go(place, signal);
    w.require_defined(w.defined(op.d), "the CTA mask of a multicast");
    Cluster& cluster = *w.cta->cluster;
    u32 mask = w.cells<u32>(op.d)[lane];
    if (mask == 0 || mask >> cluster.size())
        w.fail(ErrorKind::OutOfBounds,
               "The mask " + hex(mask) + " of a multicast names no CTA, or one that the cluster of " +
                   std::to_string(cluster.size()) + " does not have.",
               lane);
    for (u32 rank = 0; rank < cluster.size(); ++rank)
        if (mask >> rank & 1)
            go(SharedPlace{&cluster.cta(rank), place.offset}, SharedPlace{&cluster.cta(rank), signal.offset});
}

}  // namespace ptxsim
