// Bulk copies (PTX ISA 9.7.9.25.4-5, 9.7.9.27): what cp.async.bulk with and without a tensor map have in common.
#pragma once

#include "bulk_store.h"
#include "cluster.h"
#include "decoder.h"
#include "tensor_map.h"

namespace ptxsim {

// Global to shared memory: every row of the box lands at `to`, which belongs to the async proxy until then; the
// mbarrier at `barrier`, of the same CTA, gets all bytes.
void start_load(Warp& w, int lane, Box box, SharedPlace to, SharedPlace barrier);
// Shared memory of this CTA to shared memory of another one, or to its own.
void start_shared_copy(Warp& w, int lane, u32 from, u32 bytes, SharedPlace to, SharedPlace barrier);
// Shared to global memory, as part of the lane's next bulk group. `again`: a lane before this one makes the same copy
// by the same instruction, as CUTLASS's epilogues do. Whichever comes last, the bytes are the same.
void start_store(Warp& w, int lane, Box box, u32 from, const Reduction& reduction, bool again);
// Is there an active lane before this one that `same` finds to ask for the same?
template <class F>
bool asked_before(const Warp& w, int lane, F same) {
    for (int other = 0; other < lane; ++other)
        if (lane_in(w.active, other) && same(other)) return true;
    return false;
}

// "cp.async.bulk.commit_group", ".wait_group N" and ".wait_group.read N" of the active lanes.
void commit_bulk_group(Warp& w);
void wait_bulk_groups(Warp& w, u32 pending, bool only_reads);
// A thread that exits has waited until its stores have read shared memory.
void finish_bulk_stores(Warp& w, u32 lanes);

// The mbarrier that a copy to `to` signals: of the same CTA, and initialised before.
MemoryBarrier& barrier_of_copy(Warp& w, int lane, SharedPlace to, SharedPlace barrier);
// The bytes of one copy have landed.
void signal_landing(SharedPlace barrier, u32 bytes);

// Bulk loads for whose phase no thread of the CTA has waited when it ends.
void check_copies_at_end(const Cta& cta);

// Decoding: bulk_decode.cpp for lines, tensor_copy.cpp for tensors.
void decode_bulk(Form& f);
void decode_tensor_copy(Form& f, bool reduces, bool prefetches);
Reduction take_reduction(Form& f, bool typed);
Reduction reduction_of_map(Warp& w, int lane, const Reduction& named, TensorType type);

}  // namespace ptxsim
