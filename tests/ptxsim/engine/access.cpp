#include "access.h"

#include <algorithm>

#include "cta.h"
#include "lanes.h"

namespace ptxsim {

void gather_from(Warp& w, Ref base, u64 offset, bool narrow, LaneAddresses& out) {
    w.require_defined(w.defined(base), "an address");
    if (narrow) {  // 32-bit address arithmetic wraps: compilers move constants across it
        const u32* from = w.cells<u32>(base);
        for (int i = 0; i < kLanes; ++i) out.at[i] = static_cast<u32>(from[i] + static_cast<u32>(offset));
    } else {
        const u64* from = w.cells<u64>(base);
        for (int i = 0; i < kLanes; ++i) out.at[i] = from[i] + offset;
    }
}

void gather_addresses(Warp& w, const Op& op, LaneAddresses& out) {
    u64 offset = static_cast<u64>(op.offset);
    if (op.addressing & kFramedBase) offset += w.fragment().frames.back().local;
    gather_from(w, op.a, offset, op.addressing & kNarrowBase, out);
}

// 5.1: "If a memory instruction does not have a state space, the operation is performed using generic addressing".
Space resolve_generic(u64& address) {
    u64 window = address & kWindowMask;
    Space space = window == kSharedWindow  ? Space::Shared
                  : window == kLocalWindow ? Space::Local
                  : window == kParamWindow ? Space::Param
                                           : Space::Global;
    if (space != Space::Global) address &= ~kWindowMask;
    return space;
}

void fail_alignment(int lane, u64 address, u32 bytes, const char* what) {
    SimError error(ErrorKind::Misaligned, std::string("Misaligned ") + what + ": address " + hex(address) +
                                              " is not a multiple of " + std::to_string(bytes) + ".");
    throw error.at_lane(lane).at_address(address);
}

namespace {

std::string distance(const Allocation& a, u64 address) {
    if (address < a.base) return std::to_string(a.base - address) + " bytes before";
    if (address >= a.base + a.size) return std::to_string(address - (a.base + a.size)) + " bytes past the end of";
    return "at byte " + std::to_string(address - a.base) + " of";
}

// The tensor the kernel probably meant: the nearer of the neighbours.
const Allocation* nearest(const AllocationTable& table, const Allocation* below, u64 address) {
    for (const AllocationPtr& above : table) {
        if (above->base <= address) continue;
        bool nearer = !below || above->base - address < address - std::min(address, below->base + below->size);
        return nearer ? above.get() : below;
    }
    return below;
}

[[noreturn]] void report_bounds(Warp& w, int lane, const Allocation* below, u64 address, u32 bytes, bool write) {
    const Allocation* near = nearest(*w.cta->launch->memory, below, address);
    std::string text = std::string(write ? "Write" : "Read") + " of " + std::to_string(bytes) + " bytes at " +
                       hex(address) + " is outside every registered tensor";
    SimError error(ErrorKind::OutOfBounds, "");
    if (near) {
        text += ": it starts " + distance(*near, address) + " tensor " + near->name + " [" + hex(near->base) + ", " +
                hex(near->base + near->size) + "), " + std::to_string(near->size) + " bytes";
        error.in_tensor(near->name);
    }
    error.message = text + ".";
    throw error.at_lane(lane).at_address(address);
}

void check_gaps(int lane, const Allocation& a, u64 address, u32 bytes, bool write) {
    const u8* allowed = a.allowed + (address - a.base);
    for (u32 b = 0; b < bytes; ++b) {
        if (allowed[b]) continue;
        SimError error(ErrorKind::OutOfBounds, std::string(write ? "Write" : "Read") + " of " + std::to_string(bytes) +
                                                   " bytes at " + hex(address) + " touches byte " +
                                                   std::to_string(address + b - a.base) + " of tensor " + a.name +
                                                   ", which lies in no view of it: a gap between rows.");
        throw error.at_lane(lane).at_address(address + b).in_tensor(a.name);
    }
}

}  // namespace

u8* global_pointer(Warp& w, int lane, u64 address, u32 bytes, bool write, Allocation*& allocation) {
    Cta& cta = *w.cta;
    allocation = cta.last_allocation;
    if (!allocation || !allocation->contains(address, bytes)) {
        allocation = find_allocation(*cta.launch->memory, address);
        if (!allocation || !allocation->contains(address, bytes)) {
            if (cta.checks(kCheckBounds) || !allocation) report_bounds(w, lane, allocation, address, bytes, write);
            allocation = nullptr;  // the experiment may read what it likes
            return reinterpret_cast<u8*>(address);
        }
        cta.last_allocation = allocation;
    }
    if (write && !allocation->writable && cta.checks(kCheckBounds)) {
        SimError error(ErrorKind::OutOfBounds, "Write of " + std::to_string(bytes) + " bytes at " + hex(address) +
                                                   " to tensor " + allocation->name + ", which is read-only.");
        throw error.at_lane(lane).at_address(address).in_tensor(allocation->name);
    }
    if (__builtin_expect(allocation->allowed != nullptr, 0) && cta.checks(kCheckBounds))
        check_gaps(lane, *allocation, address, bytes, write);
    return reinterpret_cast<u8*>(address);
}

void fail_shared_bounds(Warp& w, int lane, u64 address, u32 bytes) {
    u32 limit = w.cta->launch->shared_bytes;
    SimError error(ErrorKind::OutOfBounds, "Access of " + std::to_string(bytes) + " bytes at shared address " +
                                               hex(address) + " is outside the CTA's shared memory [" +
                                               hex(kSharedBase) + ", " + hex(limit) + ") of " +
                                               std::to_string(limit - kSharedBase) + " bytes.");
    throw error.at_lane(lane).at_address(address).in_tensor("shared memory");
}

u8* local_pointer(Warp& w, int lane, u64 address, u32 bytes, u8*& defined) {
    if (address + bytes > w.local_stride || address > w.local_stride) {
        SimError error(ErrorKind::OutOfBounds, "Access of " + std::to_string(bytes) + " bytes at local address " +
                                                   hex(address) + " is outside the thread's " +
                                                   std::to_string(w.local_stride) + " bytes of local memory.");
        throw error.at_lane(lane).at_address(address).in_tensor("local memory");
    }
    size_t at = static_cast<size_t>(lane) * w.local_stride + address;
    defined = w.local_defined.data() + at;
    return w.local.data() + at;
}

}  // namespace ptxsim
