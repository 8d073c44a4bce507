// How an instruction reaches memory: addresses per lane, checks, and pointers to the bytes.
#pragma once

#include "cta.h"
#include "race_global.h"
#include "warp.h"

namespace ptxsim {

// Op::flags2 of memory instructions.
enum AddressFlag : u16 {
    kNarrowBase = 1,
    kFramedBase = 2,
    kWideData = 4,
    kKernelParam = 8,
    kCollective = 16,
    kReleases = 32,
    kCtaReleases = 64
};

struct LaneAddresses { u64 at[kLanes]; };

// base + offset of every active lane; an undefined base is an error.
void gather_addresses(Warp& w, const Op& op, LaneAddresses& out);
void gather_from(Warp& w, Ref base, u64 offset, bool narrow, LaneAddresses& out);

// The state space of a generic address, and the address within it.
Space resolve_generic(u64& address);

// Checks bounds, alignment and ownership of one lane's access and returns the host address.
u8* global_pointer(Warp& w, int lane, u64 address, u32 bytes, bool write, Allocation*& allocation);
[[noreturn]] void fail_shared_bounds(Warp& w, int lane, u64 address, u32 bytes);
[[noreturn]] void fail_alignment(int lane, u64 address, u32 bytes, const char* what);
inline u8* shared_pointer(Warp& w, int lane, u64 address, u32 bytes) {
    u32 limit = w.cta->launch->shared_bytes;
    if (__builtin_expect(address < kSharedBase || address > limit || address + bytes > limit, 0))
        fail_shared_bounds(w, lane, address, bytes);
    return w.cta->shared.data() + address;
}
u8* local_pointer(Warp& w, int lane, u64 address, u32 bytes, u8*& defined);
inline void check_alignment(Warp& w, int lane, u64 address, u32 bytes, const char* what) {
    if (__builtin_expect((address & (bytes - 1)) != 0, 0) && w.cta->checks(kCheckAlign))
        fail_alignment(lane, address, bytes, what);
}

}  // namespace ptxsim
