// How an instruction reaches memory: addresses per lane, checks, and pointers to the bytes.
#pragma once

#include "race_global.h"
#include "warp.h"

namespace ptxsim {

// Op::flags2 of memory instructions.
enum AddressFlag : u16 { kNarrowBase = 1, kFramedBase = 2, kWideData = 4, kKernelParam = 8, kCollective = 16 };

struct LaneAddresses {
    u64 at[kLanes];
};

// base + offset of every active lane; an undefined base is an error.
void gather_addresses(Warp& w, const Op& op, LaneAddresses& out);

// The state space of a generic address, and the address within it.
Space resolve_generic(u64& address);

// Checks bounds, alignment and ownership of one lane's access and returns the host address.
u8* global_pointer(Warp& w, int lane, u64 address, u32 bytes, bool write, Allocation*& allocation);
u8* shared_pointer(Warp& w, int lane, u64 address, u32 bytes);
u8* local_pointer(Warp& w, int lane, u64 address, u32 bytes, u8*& defined);
void check_alignment(Warp& w, int lane, u64 address, u32 bytes, const char* what);

}  // namespace ptxsim
