// Release and acquire (PTX ISA 8.7-8.9): what fences, atomics and strong accesses put in order.
//
// "The release pattern makes prior operations from the current thread visible to some operations from other threads": a
// release, or a fence and then a strong write. What it publishes are vector clocks, kept with the word that was
// written; whoever reads that word with a strong access learns them.
#pragma once

#include <map>

#include "race_clock.h"

namespace ptxsim {

struct Cta;
struct Warp;

enum class Scope : u8 { None, Cta, Grid };

// One CTA's part.
struct Releases {
    Clock fenced_cta, fenced_grid;      // what a strong write without .release publishes, in this CTA and beyond it
    std::map<u32, Clock> others;        // by CTA: what it did that happened before
    std::map<u32, Clock> shared_words;  // by offset in shared memory
    void clear();
};

void fence_memory(Warp& w, Scope scope);

// A strong write; `scope` is that of its .release. Strong reads learn what was published for all of `lanes`.
void release_global(Warp& w, u64 address, Scope scope);
void acquire_global(Warp& w, u32 lanes, u64 address);
void release_shared(Warp& w, u32 offset, Scope scope);
void acquire_shared(Warp& w, u32 lanes, u32 offset);

// Did an access of another CTA's warp at that clock happen before what this CTA does next?
bool happened_before(const Cta& cta, u32 other, u32 warp, u32 clock);
// Has every other CTA published something that this one knows?
bool knows_all_others(const Cta& cta);

// Sync words of a launch are forgotten when it ends.
void forget_releases(u64 launch);

}  // namespace ptxsim
