// The registers that wgmma uses: none may be touched while a wgmma that has it is pending, and between an ordinary
// access and the next wgmma stands a wgmma.fence (PTX ISA 9.7.15.7).
//
// A mov is not such an access: compilers copy accumulators where paths join, and ptxas takes the copies away. What a
// mov copies carries the marks of its source.
#pragma once

#include <vector>

#include "ptx.h"

namespace ptxsim {

struct Op;
struct PendingWgmma;
struct Warp;
struct WgmmaForm;
struct WgmmaState;

// An op that touches such registers: what it did before, and the slots of its registers in its frame.
struct Watch {
    void (*run)(Warp&, const Op&) = nullptr;
    std::vector<u32> reads, writes;
    bool copies = false;  // a mov
};

// By register id: is it an operand of a wgmma of this function, or tied to one by movs? Empty if there is no wgmma.
std::vector<bool> watched_registers(const Function& function);
bool copies_register(const Inst& inst);

void op_watched(Warp& w, const Op& op);
// The wgmma that is being issued takes its registers: checks them and marks them.
void claim_registers(Warp& w, WgmmaState& s, const PendingWgmma& p, const WgmmaForm& f);

}  // namespace ptxsim
