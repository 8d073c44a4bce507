// How an instruction reaches memory: addresses per lane, checks, and pointers to the bytes.
#pragma once

#include "cta.h"
#include "lanes.h"
#include "race_global.h"
#include "warp.h"

namespace ptxsim {

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

// Lanes of a generic access may point into different windows.
template <class F>
inline void by_window(Warp& w, LaneAddresses& addresses, F f) {
    u32 masks[8] = {};
    for_lanes(w.active, [&](int i) { masks[static_cast<int>(resolve_generic(addresses.at[i]))] |= 1u << i; });
    for (int s = 0; s < 8; ++s)
        if (masks[s]) f(static_cast<Space>(s), masks[s]);
}

// The bytes of a tensor map mean nothing to a program (tensor_map.h).
inline void check_opaque(Warp& w, int lane, u64 address, u32 bytes, u32 map) {
    if (address + bytes > map && address < map + 128u && w.cta->checks(kCheckBounds))
        w.fail(ErrorKind::OutOfBounds, "Read of the bytes of a tensor map: they are opaque.", lane);
}

}  // namespace ptxsim
