#include "cta.h"

#include <algorithm>

namespace ptxsim {

void Cta::start(const Launch& l, u32 linear_index) {
    launch = &l;
    program = l.program;
    index = linear_index;
    ctaid[0] = linear_index % l.grid[0];
    ctaid[1] = linear_index / l.grid[0] % l.grid[1];
    ctaid[2] = linear_index / (l.grid[0] * l.grid[1]);
    thread_count = l.threads();
    warp_count = (thread_count + kLanes - 1) / kLanes;
    random.state = mix(l.seed ^ (static_cast<u64>(linear_index) * 0x9e3779b97f4a7c15ull));
    shared.assign(l.shared_bytes + 16, 0xff);
    shadow.reset(l.shared_bytes, program->shared_granule_shift, warp_count);
    for (Barrier& b : barriers) b = Barrier{};
    memory_barriers.clear();
    issued = polls = 0;
    fenced = false;
    synchronised.clear();
    last_allocation = nullptr;
    warps.resize(warp_count);
    for (u32 i = 0; i < warp_count; ++i) {
        u32 threads = std::min<u32>(kLanes, thread_count - i * kLanes);
        warps[i].start(*this, static_cast<int>(i), threads == kLanes ? kFull : (1u << threads) - 1, random.next());
        SharedShadow::update_limits(warps[i]);
    }
}

bool Cta::run(u64 budget) {
    u64 done = 0;
    polls = 0;
    while (done < budget && !waits()) {
        if (std::all_of(warps.begin(), warps.end(), [](const Warp& w) { return w.finished(); })) return true;
        if (!step(budget, done)) report_deadlock();
    }
    return std::all_of(warps.begin(), warps.end(), [](const Warp& w) { return w.finished(); });
}

// Gives one warp a turn; which and how long is the seed's choice. False if no warp can move.
bool Cta::step(u64 budget, u64& done) {
    u32 first = random.below(warp_count);
    for (u32 i = 0; i < warp_count; ++i) {
        Warp& warp = warps[(first + i) % warp_count];
        if (warp.finished()) continue;
        u32 quantum = static_cast<u32>(std::min<u64>(budget - done, 1 + random.below(2048)));
        u32 ran = 0;
        try {
            ran = warp.run(quantum);
        } catch (SimError& error) {
            locate(error, warp);
            throw;
        }
        done += ran;
        issued += ran;
        if (ran) {
            if (launch->instruction_limit && issued > launch->instruction_limit && checks(kCheckDeadlock))
                report_deadlock();
            return true;
        }
    }
    return false;
}

void Cta::report_deadlock() const {
    std::string waits;
    const Warp* stuck = nullptr;
    for (const Warp& warp : warps) {
        if (warp.finished()) continue;
        if (!stuck) stuck = &warp;
        std::string text = warp.describe_wait();
        if (text.empty())
            text = "warp " + std::to_string(warp.id) + " running at " + program->text_at(warp.current_pc());
        waits += (waits.empty() ? "" : "; ") + text;
    }
    bool limit = launch->instruction_limit && issued > launch->instruction_limit;
    SimError error(ErrorKind::Deadlock, (limit ? "No end after " + std::to_string(issued) + " warp instructions: "
                                               : std::string("Deadlock: no warp of the CTA can go on: ")) +
                                            waits + ".");
    if (stuck) locate(error, *stuck);
    throw error;
}

void Cta::locate(SimError& error, const Warp& warp) const {
    if (error.placed) return;
    error.placed = true;
    error.kernel = program->name;
    std::copy(ctaid, ctaid + 3, error.cta);
    error.warp = warp.id;
    if (!warp.fragments.empty()) {
        const Place& place = program->places[program->code[warp.current_pc()].inst];
        error.ptx_line = place.inst ? place.inst->line : 0;
        error.ptx_text = place.inst ? program->module->text_of(*place.inst) : "";
        error.source = place.inst ? program->module->full_source_of(*place.inst) : "";
    }
    error.compose();
}

// Threads that exit are no longer awaited at barriers.
void Cta::on_lanes_exit() {
    for (int i = 0; i < kBarriers; ++i)
        if (barriers[i].arrived) complete_if_full(i);
}

}  // namespace ptxsim
