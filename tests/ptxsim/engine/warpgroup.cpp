#include "warpgroup.h"

#include <algorithm>

#include "control.h"
#include "cta.h"
#include "device.h"
#include "matrix_warp.h"

namespace ptxsim {

void Warpgroup::execute(Warp& w, u64 first, u64 second) {
    u32 member = static_cast<u32>(w.id) % kWarpgroup;
    if (!w.cta->checks(kCheckDivergence)) {
        ++done_[member];
        return;
    }
    if (w.cta->warp_count < w.id / kWarpgroup * kWarpgroup + kWarpgroup)
        w.fail(ErrorKind::Divergence, "The CTA ends before this warpgroup has four warps.");
    size_t at = static_cast<size_t>(done_[member]++ - dropped_);
    if (at == steps_.size()) {
        if (exited_)
            w.fail(ErrorKind::Divergence, "Warp " + std::to_string(w.id / 4 * 4 + __builtin_ctz(exited_)) +
                                              " of this warpgroup has exited without executing this instruction.");
        steps_.push_back({w.current_pc(), first, second, 0});
    }
    Step& step = steps_[at];
    if (step.pc != w.current_pc())
        w.fail(ErrorKind::Divergence, "The warps of a warpgroup execute different instructions: warp " +
                                          std::to_string(w.id / 4 * 4 + __builtin_ctz(step.warps)) + " came to " +
                                          w.program->text_at(step.pc) + " instead.");
    if (step.first != first || step.second != second)
        w.fail(ErrorKind::Divergence, "The warps of a warpgroup give this instruction different operands: warp " +
                                          std::to_string(w.id / 4 * 4 + __builtin_ctz(step.warps)) + " gave " +
                                          hex(step.first) + " and " + hex(step.second) + ", this one " + hex(first) +
                                          " and " + hex(second) + ".");
    step.warps |= 1u << member;
    for (; !steps_.empty() && steps_.front().warps == 15; ++dropped_) steps_.pop_front();
}

bool Warpgroup::whole(const Warp& w) const {
    u64 before = done_[static_cast<u32>(w.id) % kWarpgroup] - 1;
    return std::all_of(done_, done_ + kWarpgroup, [=](u64 done) { return done >= before; });
}

void Warpgroup::exit(Warp& w) {
    u32 member = static_cast<u32>(w.id) % kWarpgroup;
    exited_ |= 1u << member;
    if (done_[member] - dropped_ < steps_.size() && w.cta->checks(kCheckDivergence)) {
        const Step& step = steps_[static_cast<size_t>(done_[member] - dropped_)];
        w.fail(ErrorKind::Divergence, "This warp exits, and another of its warpgroup executed " +
                                          w.program->text_at(step.pc) + ", which all four have to.");
    }
}

// The registers a thread has at its start: ptxas' figure, or what the kernel's bound on its threads leaves.
void RegisterPool::start(const Cta& cta) {
    const Program& program = *cta.program;
    u32 entry = static_cast<u32>(program.registers);
    u32 threads = static_cast<u32>(program.function->max_threads);
    if (!entry && threads) entry = std::min<u32>(255, cta.launch->device->profile->registers_per_block / threads);
    free = 0;
    of_warp.assign(cta.warp_count, entry / 8 * 8 + (entry % 8 && program.registers ? 8 : 0));
    moves.assign(cta.warp_count, {});
}

void RegisterPool::check_synchronised(const Warp& w) const {
    size_t before = moves[static_cast<size_t>(w.id)].size();
    if (!before || !w.cta->checks(kCheckRace)) return;
    for (u32 i = 0, first = static_cast<u32>(w.id) / kWarpgroup * kWarpgroup; i < kWarpgroup; ++i) {
        const std::vector<u32>& other = moves[first + i];
        if (first + i == static_cast<u32>(w.id)) continue;
        if (other.size() < before || other[before - 1] > w.clocks.limit(first + i))
            w.fail(ErrorKind::Race, "A second setmaxnreg, and this warp has not synchronised with warp " +
                                        std::to_string(first + i) + " of its warpgroup since the first.");
    }
}

namespace {

// setmaxnreg.dec "releases" registers, setmaxnreg.inc "blocks execution until sufficient registers are available".
void op_setmaxnreg(Warp& w, const Op& op) {
    if (!enter_whole_warp(w)) return;
    RegisterPool& pool = w.cta->register_pool;
    if (pool.of_warp.empty()) pool.start(*w.cta);
    Fragment& f = w.fragment();
    if (!f.released) pool.check_synchronised(w);
    if (!f.released) w.cta->warpgroups[static_cast<u32>(w.id) / kWarpgroup].execute(w);
    f.released = false;
    u32 want = static_cast<u32>(op.imm), &have = pool.of_warp[static_cast<size_t>(w.id)];
    bool increases = op.registers.increases;
    if (!have && w.cta->checks(kCheckLimits))
        w.fail(ErrorKind::Unsupported,
               "setmaxnreg in a kernel without a bound on its registers (.maxntid or .maxnreg): it has no effect.");
    if ((increases ? want < have : want > have) && w.cta->checks(kCheckLimits))
        w.fail(ErrorKind::LaunchLimit, "setmaxnreg." + std::string(increases ? "inc" : "dec") + " to " +
                                           std::to_string(want) + ", and the warp has " + std::to_string(have) +
                                           " registers a thread.");
    if (increases && want - have > pool.free && w.cta->checks(kCheckLimits)) {
        w.next = f.pc;
        w.cta->profile[f.pc].issues -= 1;
        w.cta->profile[f.pc].lanes -= kLanes;
        f.registers = want - have;
        return w.block(FragmentState::AtRegisters);
    }
    pool.free += have - want;
    have = want;
    pool.moves[static_cast<size_t>(w.id)].push_back(w.clocks.known()[w.id]);
    w.clocks.advance();
    ++w.cta->events;
}

void decode_setmaxnreg(Form& f) {
    f.require_exact_target("sm_90a");
    bool increases = f.take("inc");
    if (!increases && !f.take("dec")) f.unsupported();
    if (!f.take("sync") || !f.take("aligned")) f.unsupported();
    f.take_type();
    u64 count = f.at(0).bits;
    if (f.at(0).kind != Operand::kImm || count < 24 || count > 256 || count % 8)
        f.unsupported("the count has to be a multiple of 8 in 24..256");
    Op& op = f.decoder.emit(op_setmaxnreg, OpClass::Other);
    op.imm = static_cast<s64>(count);
    op.registers = {increases};
}

}  // namespace

void add_warpgroup_families(FamilyTable& t) { t["setmaxnreg"] = decode_setmaxnreg; }

}  // namespace ptxsim
