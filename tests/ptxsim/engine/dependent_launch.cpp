#include "dependent_launch.h"

#include <algorithm>

#include "control.h"
#include "cta.h"
#include "race_words.h"

namespace ptxsim {

namespace {

// Has this thread waited, or one that it is ordered after?
bool past_wait(const Warp& w) {
    const Clock& waited = w.cta->past_prerequisites;
    if (waited[w.id]) return true;
    for (u32 warp = 0; warp < waited.size(); ++warp)
        if (waited[warp] && waited[warp] <= w.clocks.limit(warp)) return true;
    return false;
}

bool any_waited(const Cta& cta) {
    const Clock& waited = cta.past_prerequisites;
    return std::any_of(waited.begin(), waited.end(), [](u32 clock) { return clock != 0; });
}

// "causes the executing thread to wait until all prerequisite grids in flight have completed and all the memory
// operations from the prerequisite grids are performed and made visible to the current grid"
void op_wait(Warp& w, const Op&) {
    w.cta->past_prerequisites[w.id] = w.clocks.known()[w.id];
    w.clocks.advance();
}

// "signals that specific dependents the runtime system designated to react to this instruction can be scheduled"
void op_launch_dependents(Warp& w, const Op&) {
    if (w.cta->launch->prerequisites && !any_waited(*w.cta)) w.cta->launch->dependents->early = true;
}

void decode_dependency(Form& f) {
    f.require_target(90);
    if (f.take("wait")) f.decoder.emit(op_wait, OpClass::Other);
    else if (f.take("launch_dependents")) f.decoder.emit(op_launch_dependents, OpClass::Other);
    else f.unsupported();
}

}  // namespace

bool Prerequisites::contains(u32 epoch) const { return std::find(epochs.begin(), epochs.end(), epoch) != epochs.end(); }

void note_end(const Cta& cta) {
    if (cta.launch->prerequisites && !any_waited(cta)) cta.launch->dependents->early = true;
}

void check_prerequisites(Warp& w, int lane, const Allocation& a, u64 address, u32 bytes, GlobalAccess access) {
    if (past_wait(w)) return;
    const Prerequisites& before = *w.cta->launch->prerequisites;
    bool writes = access == GlobalAccess::Write || access == GlobalAccess::Atomic;
    for (u64 word = (address - a.base) / 4; word * 4 < address - a.base + bytes; ++word) {
        CtaEntry e = CtaEntry::unpack(a.shadow[word].load(std::memory_order_relaxed));
        if (!before.contains(e.epoch) || !(e.written || (writes && e.read))) continue;
        u64 at = a.base + word * 4;
        SimError error(ErrorKind::Race,
                       std::string("Race with a prerequisite grid: this ") + (writes ? "write" : "read") + " of " +
                           hex(address) + " (byte " + std::to_string(address - a.base) + " of tensor " + a.name +
                           ") touches what kernel " + before.name + " " + (e.written ? "writes" : "reads") +
                           ", which may still run: no griddepcontrol.wait comes before.");
        throw error.at_lane(lane).at_address(at).in_tensor(a.name);
    }
}

void add_dependency_families(FamilyTable& t) { t["griddepcontrol"] = decode_dependency; }

}  // namespace ptxsim
