// What went wrong in a kernel: the kind (which becomes a Python class), and where.
#pragma once

#include <exception>
#include <string>

#include "base.h"

namespace ptxsim {

enum class ErrorKind {
    OutOfBounds,
    Misaligned,
    Undefined,
    Race,
    Divergence,
    Deadlock,
    LaunchLimit,
    Unsupported,
    Trap,
    BadProgram,
};

const char* error_name(ErrorKind kind);

struct SimError : std::exception {
    ErrorKind kind;
    std::string message;  // the rule that was broken, without the place
    std::string kernel, ptx_text, source, tensor;
    int ptx_line = 0;
    int cta[3] = {-1, -1, -1};
    int warp = -1, lane = -1;
    bool has_address = false;
    u64 address = 0;
    bool placed = false;  // the place was filled in
    std::string paragraph;

    SimError(ErrorKind kind, std::string message) : kind(kind), message(std::move(message)) {}
    SimError& at_lane(int l) {
        lane = l;
        return *this;
    }
    SimError& at_address(u64 a) {
        address = a;
        has_address = true;
        return *this;
    }
    SimError& in_tensor(std::string t) {
        tensor = std::move(t);
        return *this;
    }
    // One readable paragraph with everything that is known.
    void compose();
    const char* what() const noexcept override { return paragraph.empty() ? message.c_str() : paragraph.c_str(); }
};

// Every strictness check has a name and a bit.
enum Check : u32 {
    kCheckBounds = 1u << 0,
    kCheckAlign = 1u << 1,
    kCheckUndefined = 1u << 2,
    kCheckRace = 1u << 3,
    kCheckRaceGlobal = 1u << 4,
    kCheckDivergence = 1u << 5,
    kCheckDeadlock = 1u << 6,
    kCheckLimits = 1u << 7,
    kCheckAsync = 1u << 8,
    kCheckUndefinedBranch = 1u << 9,  // the part of kCheckUndefined that concerns predicates
    kCheckRaceWarp = 1u << 10,        // the part of both race checks that concerns lanes of one warp
    kCheckProxy = 1u << 11,           // fences between the generic and the async proxy
    kCheckProxyWar = 1u << 12,        // the part of it that concerns generic reads before an asynchronous write
    kCheckMbarrier = 1u << 13,        // the rules of mbarrier objects
    kCheckWgmma = 1u << 14,           // registers, groups and fences of wgmma
    // The reads of a wgmma end with each warp's own wait, not with any of the warpgroup.
    kCheckReleaseByWarp = 1u << 15,
    kCheckElect = 1u << 16,       // the seed chooses the leader of elect.sync; without it, the lowest lane leads
    kCheckDescriptor = 1u << 17,  // the pattern of a swizzle begins where a descriptor's base offset says
    kCheckInitFence = 1u << 18,  // the part of kCheckProxy that concerns mbarrier.init before a copy signals the object
    kAllChecks = (1u << 19) - 1,
};

// The bit of a check's name, or 0.
u32 check_bit(const std::string& name);

std::string hex(u64 value);

}  // namespace ptxsim
