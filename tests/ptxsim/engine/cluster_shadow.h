// Races on a CTA's shared memory with threads of other CTAs of its cluster.
//
// The shadow of a CTA (race_shared.h) knows its own warps. What others read and write is kept here by granules of 4
// bytes, and both kinds of access look at each other's marks.
#pragma once

#include <string>
#include <vector>

#include "base.h"

namespace ptxsim {

struct Cta;
struct Warp;

enum class RemoteAccess : u8 { Read, Write, Atomic, Copy };

class ClusterShadow {
  public:
    void reset(Cta& cta);
    // An access by a warp of another CTA; false if it reads bytes that nobody has written.
    bool access(Warp& w, int lane, u32 offset, u32 bytes, RemoteAccess kind);
    // An access by a warp of the CTA itself has to come after the other CTAs' accesses it conflicts with.
    void check_own(Warp& w, int lane, u32 offset, u32 bytes, bool writes, bool atomic = false) const;
    // Something of another CTA's warp reaches this CTA, so that it may not have ended before.
    void note(const Warp& w);
    // The CTA ends: every access of others has to be known to have happened before.
    void check_exit() const;

  private:
    struct Mark {
        u8 rank = 0, warp = 0;
        bool atomic = false;
        u32 clock = 0, pc = 0;
    };
    struct Reader {
        u32 rank, warp;
        std::vector<u32> clocks;  // by granule: the last read
    };
    void check_marks(Warp& w, int lane, u32 granule, bool writes, bool atomic) const;
    void check_owner(Warp& w, int lane, u32 granule, bool writes, bool atomic) const;
    Reader& reader(const Warp& w);
    [[noreturn]] void report(const Warp& w, int lane, u32 granule, const std::string& other) const;

    Cta* cta_ = nullptr;
    std::vector<Mark> writes_;  // by granule, of other CTAs; empty until there is one
    std::vector<Reader> readers_;
    std::vector<Mark> last_;  // by rank and warp: the last thing it did here
};

}  // namespace ptxsim
