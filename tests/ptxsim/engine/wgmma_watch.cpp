#include "wgmma_watch.h"

#include <algorithm>

#include "cta.h"
#include "flow.h"
#include "wgmma.h"

namespace ptxsim {

namespace {

bool is_mma_async(const Inst& inst) { return inst.opcode == "wgmma" && inst.has("mma_async"); }

void add_registers(const Operand& operand, std::vector<bool>& set) {
    for (const Operand& item : operand.items)
        if (item.kind == Operand::kReg) set[static_cast<size_t>(item.id)] = true;
}

std::string pending_text(const Warp& w, const WgmmaState& s, u32 number) {
    for (const PendingWgmma& p : s.pending)
        if (p.number == number)
            return w.program->text_at(p.pc) + (p.group > s.committed
                                                   ? ", which no wgmma.commit_group has put in a group"
                                                   : ", whose group no wgmma.wait_group has waited for");
    return "a wgmma";
}

WatchedRegister& at(WgmmaState& s, const Warp& w, size_t slot) {
    if (s.registers.size() <= slot) s.registers.resize(w.registers.size() / kLanes + 1);
    return s.registers[slot];
}

void check_free(Warp& w, WgmmaState& s, const WatchedRegister& r, const char* what) {
    bool accumulator = s.in_flight(r.accumulator_of);
    if (!accumulator && !s.in_flight(r.input_of)) return;
    w.fail(ErrorKind::Race, std::string(what) + (accumulator ? " an accumulator" : " a register of A") + " of " +
                                pending_text(w, s, accumulator ? r.accumulator_of : r.input_of) + ".");
}

// A mov: what is computed so far is what it copies, with its marks.
void copy_register(Warp& w, WgmmaState& s, const Watch& watch, u32 base) {
    WatchedRegister from;
    if (!watch.reads.empty()) from = at(s, w, base + watch.reads[0]);
    if (s.in_flight(from.accumulator_of)) compute_pending(w, s);
    for (u32 slot : watch.writes) {
        WatchedRegister& to = at(s, w, base + slot);
        bool pending = s.in_flight(from.accumulator_of) || s.in_flight(from.input_of);
        if (!pending && to.named) check_free(w, s, to, "This writes");
        if (watch.reads.empty()) from.touched = to.touched;
        to = from;
        to.named = false;
    }
}

}  // namespace

bool copies_register(const Inst& inst) {
    if (inst.opcode != "mov" || inst.operands.size() != 2 || inst.operands[0].kind != Operand::kReg) return false;
    return inst.operands[1].kind == Operand::kReg || inst.operands[1].kind == Operand::kImm;
}

std::vector<bool> watched_registers(const Function& function) {
    std::vector<bool> set;
    for (const Inst& inst : function.body) {
        if (!is_mma_async(inst)) continue;
        set.resize(function.regs.size(), false);
        add_registers(inst.operands.at(0), set);
        add_registers(inst.operands.at(1), set);
    }
    for (bool grows = !set.empty(); grows;) {
        grows = false;
        for (const Inst& inst : function.body) {
            if (!copies_register(inst) || inst.operands[1].kind != Operand::kReg) continue;
            size_t to = static_cast<size_t>(inst.operands[0].id), from = static_cast<size_t>(inst.operands[1].id);
            if (set[to] == set[from]) continue;
            set[to] = set[from] = grows = true;
        }
    }
    return set;
}

void op_watched(Warp& w, const Op& op) {
    const Watch& watch = w.program->watches[op.watch];
    if (w.wgmma && w.cta->checks(kCheckWgmma)) {
        WgmmaState& s = *w.wgmma;
        u32 base = w.fragment().frames.back().cells / kLanes;
        if (watch.copies) {
            copy_register(w, s, watch, base);
        } else {
            for (u32 slot : watch.reads) {
                WatchedRegister& r = at(s, w, base + slot);
                check_free(w, s, r, "This reads");
                r.touched = s.fences + 1;
            }
            for (u32 slot : watch.writes) {
                WatchedRegister& r = at(s, w, base + slot);
                check_free(w, s, r, "This writes");
                r.touched = s.fences + 1;
            }
        }
    }
    watch.run(w, op);
}

void claim_registers(Warp& w, WgmmaState& s, const PendingWgmma& p, const WgmmaForm& f) {
    bool strict = w.cta->checks(kCheckWgmma);
    if (strict && s.fences == 0)
        w.fail(ErrorKind::Race, "No wgmma.fence stands before the first wgmma.mma_async of this warpgroup.");
    auto fenced = [&](const WatchedRegister& r, const char* what) {
        if (strict && r.touched == s.fences + 1)
            w.fail(ErrorKind::Race, std::string(what) +
                                        " of this wgmma was accessed by an ordinary instruction, and no wgmma.fence "
                                        "stands between.");
    };
    u32 base = p.cells / kLanes;
    for (u32 i = 0; i < f.a_registers(); ++i) {
        WatchedRegister& r = at(s, w, base + (p.op->list[f.d_registers() + i] & kOffsetMask) / kLanes);
        if (strict && s.in_flight(r.accumulator_of)) check_free(w, s, r, "This wgmma takes for A");
        fenced(r, "A register of A");
        r.input_of = p.number;
        r.named = true;
    }
    for (u32 i = 0; i < f.d_registers(); ++i) {
        WatchedRegister& r = at(s, w, base + (p.op->list[i] & kOffsetMask) / kLanes);
        bool pending = s.in_flight(r.accumulator_of);
        if (strict && s.in_flight(r.input_of) && !pending) check_free(w, s, r, "This wgmma accumulates in");
        if (strict && pending && !r.form->same_shape(f)) check_free(w, s, r, "This wgmma, of another shape, takes");
        fenced(r, "An accumulator");
        r.accumulator_of = p.number;
        r.named = true;
        r.form = &f;
    }
}

}  // namespace ptxsim
