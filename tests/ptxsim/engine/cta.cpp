#include "cta.h"

#include <algorithm>

#include "bulk_copy.h"
#include "cluster.h"
#include "cluster_shadow.h"
#include "dependent_launch.h"
#include "grid_barrier.h"

namespace ptxsim {

namespace {
constexpr u32 kStalls = 64;       // times that waits at mbarriers give up before it is a deadlock
constexpr u64 kSearch = 100'000;  // warp instructions in which a race may still explain an undefined value
}  // namespace

Cta::Cta() = default;
Cta::~Cta() = default;

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
    copied_phases.clear();
    proxy.reset(*this);
    warpgroups.assign((warp_count + kWarpgroup - 1) / kWarpgroup, Warpgroup{});
    register_pool = RegisterPool{};
    remote = cluster->size() > 1 ? std::make_unique<ClusterShadow>() : nullptr;
    shadow.watch_cluster(remote.get());
    if (remote) remote->reset(*this);
    issued = events = stalled_at_ = 0;
    polls = stalls_ = 0;
    releases.clear();
    whole_barriers = 0;
    at_whole_barrier.assign(warp_count, 0);
    epoch = l.epoch;
    grid_phase = 0;
    at_grid_barrier = stuck = false;
    past_prerequisites.assign(warp_count, 0);
    last_allocation = nullptr;
    undefined_.reset();
    warps.resize(warp_count);
    for (u32 i = 0; i < warp_count; ++i) {
        u32 threads = std::min<u32>(kLanes, thread_count - i * kLanes);
        warps[i].start(*this, static_cast<int>(i), threads == kLanes ? kFull : (1u << threads) - 1, random.next());
    }
}

bool Cta::run(u64 budget) {
    u64 done = 0;
    polls = 0;
    stuck = false;
    while (!finished() && done < budget && !waits()) {
        bool moved = step(budget, done) || release_stalled();
        if (undefined_ && (!moved || issued - undefined_at_ > kSearch)) throw SimError(*undefined_);
        if (moved) continue;
        if (!remote) report_deadlock();
        stuck = true;
        return false;
    }
    if (!finished()) return false;
    finish();
    return true;
}

void Cta::finish() {
    try {
        if (remote) remote->check_exit();
        check_copies_at_end(*this);
    } catch (SimError& error) {
        locate(error, warps.front());
        throw;
    }
    note_end(*this);
    leave_grid(*this);
}

bool Cta::finished() const {
    return std::all_of(warps.begin(), warps.end(), [](const Warp& w) { return w.finished(); });
}

// An undefined value may be one that another thread would have written, had it come first. So the others go on for a
// while without the lanes that used it: if one of them writes what was read, the error is the race. Whatever else
// happens to them is the fault of the lanes they miss.
void Cta::set_aside(Warp& warp, SimError& error) {
    if (error.kind == ErrorKind::Race) throw SimError(error);
    if (undefined_) throw SimError(*undefined_);
    if (error.kind != ErrorKind::Undefined) throw SimError(error);
    undefined_ = std::make_unique<SimError>(error);
    undefined_at_ = issued;
    warp.fragment().state = FragmentState::Halted;
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
            set_aside(warp, error);
            return true;
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

// No warp can move: copies in flight land, or else those that wait at mbarriers have waited long enough and look again.
// That changes nothing if no event comes of it.
bool Cta::release_stalled() {
    while (!proxy.idle())
        if (proxy.progress(false)) return true;
    if (events != stalled_at_) stalls_ = 0;
    stalled_at_ = events;
    if (++stalls_ > kStalls) return false;
    bool any = false;
    for (Warp& warp : warps) any |= warp.wake_at_mbarriers(true);
    return any;
}

std::string Cta::describe_barriers() const {
    std::string text;
    for (const auto& [offset, b] : memory_barriers) text += "; " + b.describe();
    if (!proxy.idle()) text += "; in flight: " + proxy.describe_transfers();
    return text;
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
                                            waits + describe_barriers() + ".");
    if (stuck) locate(error, *stuck);
    throw error;
}

void Cta::locate(SimError& error, const Warp& warp) const {
    if (error.placed) return;
    error.placed = true;
    error.kernel = program->name;
    std::copy(ctaid, ctaid + 3, error.cta);
    error.warp = warp.id;
    // Of a warp that has ended the place is the kernel's last instruction.
    u32 pc = warp.fragments.empty() ? program->functions[0].exit_pc : warp.current_pc();
    const Place& place = program->places[program->code[pc].inst];
    error.ptx_line = place.inst ? place.inst->line : 0;
    error.ptx_text = place.inst ? program->module->text_of(*place.inst) : "";
    error.source = place.inst ? program->module->full_source_of(*place.inst) : "";
    error.compose();
}

// Threads that exit are no longer awaited at barriers.
void Cta::on_lanes_exit() {
    for (int i = 0; i < kBarriers; ++i)
        if (barriers[i].arrived) complete_if_full(i);
    cluster->complete_if_full();
}

}  // namespace ptxsim
