#include "special_registers.h"

#include <map>

#include "cta.h"
#include "grid_barrier.h"

namespace ptxsim {

namespace {
enum Index : u32 {
    kTidX,
    kTidY,
    kTidZ,
    kNtidX,
    kNtidY,
    kNtidZ,
    kCtaidX,
    kCtaidY,
    kCtaidZ,
    kNctaidX,
    kNctaidY,
    kNctaidZ,
    kLaneid,
    kWarpid,
    kNwarpid,
    kSmid,
    kNsmid,
    kZero,
    kMaskEq,
    kMaskLe,
    kMaskLt,
    kMaskGe,
    kMaskGt,
    kTotalShared,
    kDynamicShared,
    kSharedReserved,
    kTrue,
    kEnvreg1,
    kEnvreg2,
    kClusteridX,
    kClusteridY,
    kClusteridZ,
    kNclusteridX,
    kNclusteridY,
    kNclusteridZ,
    kClusterCtaidX,
    kClusterCtaidY,
    kClusterCtaidZ,
    kClusterNctaidX,
    kClusterNctaidY,
    kClusterNctaidZ,
    kClusterCtarank,
    kClusterNctarank,
    kGridid /* 64 bits: two cells */,
    kCount = kGridid + 2,
};

const std::map<std::string, u32>& names() {
    // clang-format off
    static const std::map<std::string, u32> table{
        {"%tid.x", kTidX}, {"%tid.y", kTidY}, {"%tid.z", kTidZ}, {"%ntid.x", kNtidX}, {"%ntid.y", kNtidY},
        {"%ntid.z", kNtidZ}, {"%ctaid.x", kCtaidX}, {"%ctaid.y", kCtaidY}, {"%ctaid.z", kCtaidZ},
        {"%nctaid.x", kNctaidX}, {"%nctaid.y", kNctaidY}, {"%nctaid.z", kNctaidZ}, {"%laneid", kLaneid},
        {"%warpid", kWarpid}, {"%nwarpid", kNwarpid}, {"%smid", kSmid}, {"%nsmid", kNsmid},
        {"%lanemask_eq", kMaskEq}, {"%lanemask_le", kMaskLe}, {"%lanemask_lt", kMaskLt}, {"%lanemask_ge", kMaskGe},
        {"%lanemask_gt", kMaskGt}, {"%total_smem_size", kTotalShared}, {"%aggr_smem_size", kTotalShared},
        {"%dynamic_smem_size", kDynamicShared}, {"%reserved_smem_offset_begin", kZero},
        {"%reserved_smem_offset_end", kSharedReserved}, {"%reserved_smem_offset_0", kZero}, {"%gridid", kGridid},
        {"%envreg1", kEnvreg1}, {"%envreg2", kEnvreg2},  // "driver-defined": the grid's workspace
        {"%clusterid.x", kClusteridX}, {"%clusterid.y", kClusteridY}, {"%clusterid.z", kClusteridZ},
        {"%nclusterid.x", kNclusteridX}, {"%nclusterid.y", kNclusteridY}, {"%nclusterid.z", kNclusteridZ},
        {"%cluster_ctaid.x", kClusterCtaidX}, {"%cluster_ctaid.y", kClusterCtaidY},
        {"%cluster_ctaid.z", kClusterCtaidZ}, {"%cluster_nctaid.x", kClusterNctaidX},
        {"%cluster_nctaid.y", kClusterNctaidY}, {"%cluster_nctaid.z", kClusterNctaidZ},
        {"%cluster_ctarank", kClusterCtarank}, {"%cluster_nctarank", kClusterNctarank}, {"WARP_SZ", kTrue}};
    // clang-format on
    return table;
}

u64 workspace(const Launch& launch) { return launch.grid_barrier ? launch.grid_barrier->workspace() : 0; }

u32 per_lane(u32 index, const Warp& w, u32 lane) {
    const Cta& cta = *w.cta;
    const Launch& launch = *cta.launch;
    u32 thread = static_cast<u32>(w.id) * kLanes + lane, bx = launch.block[0], by = launch.block[1];
    switch (index) {
        case kTidX: return thread % bx;
        case kTidY: return thread / bx % by;
        case kTidZ: return thread / (bx * by);
        case kNtidX: return bx;
        case kNtidY: return by;
        case kNtidZ: return launch.block[2];
        case kCtaidX: return cta.ctaid[0];
        case kCtaidY: return cta.ctaid[1];
        case kCtaidZ: return cta.ctaid[2];
        case kNctaidX: return launch.grid[0];
        case kNctaidY: return launch.grid[1];
        case kNctaidZ: return launch.grid[2];
        case kLaneid: return lane;
        case kWarpid: return static_cast<u32>(w.id);
        case kNwarpid: return cta.warp_count;
        case kSmid: return cta.index % launch.sm_count;
        case kNsmid: return launch.sm_count;
        case kMaskEq: return 1u << lane;
        case kMaskLe: return (2u << lane) - 1;
        case kMaskLt: return (1u << lane) - 1;
        case kMaskGe: return ~((1u << lane) - 1);
        case kMaskGt: return ~((2u << lane) - 1);
        case kTotalShared: return launch.shared_bytes - kSharedBase;
        case kDynamicShared: return launch.dynamic_shared;
        case kSharedReserved: return kSharedBase;
        case kTrue: return kLanes;
        case kEnvreg1: return static_cast<u32>(workspace(launch) >> 32);
        case kEnvreg2: return static_cast<u32>(workspace(launch));
        case kClusteridX:
        case kClusteridY:
        case kClusteridZ: return cta.ctaid[index - kClusteridX] / launch.cluster[index - kClusteridX];
        case kNclusteridX:
        case kNclusteridY:
        case kNclusteridZ: return launch.grid[index - kNclusteridX] / launch.cluster[index - kNclusteridX];
        case kClusterCtaidX:
        case kClusterCtaidY:
        case kClusterCtaidZ: return cta.ctaid[index - kClusterCtaidX] % launch.cluster[index - kClusterCtaidX];
        case kClusterNctaidX:
        case kClusterNctaidY:
        case kClusterNctaidZ: return launch.cluster[index - kClusterNctaidX];
        case kClusterCtarank: return cta.rank;
        case kClusterNctarank: return launch.cluster_size();
    }
    return 0;
}
}  // namespace

bool special_register(const std::string& name, Ref& ref, int& bytes) {
    auto it = names().find(name);
    if (it == names().end()) return false;
    bytes = it->second == kGridid ? 8 : 4;
    ref = kSpecials << kFileShift | it->second * kLanes;
    return true;
}

void fill_special_registers(Warp& w) {
    w.specials.resize(kCount * kLanes);
    for (u32 index = 0; index < kGridid; ++index)
        for (u32 lane = 0; lane < kLanes; ++lane) w.specials[index * kLanes + lane] = per_lane(index, w, lane);
    u64* grid = reinterpret_cast<u64*>(w.specials.data() + kGridid * kLanes);
    for (int lane = 0; lane < kLanes; ++lane) grid[lane] = w.cta->launch->id;
}

}  // namespace ptxsim
