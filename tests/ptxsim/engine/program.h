// A kernel decoded for execution: every PTX instruction becomes one or a few Ops with resolved register cells.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "op.h"
#include "ptx.h"
#include "wgmma_watch.h"

namespace ptxsim {

struct Place {
    const Function* function = nullptr;
    const Inst* inst = nullptr;
};

struct FunctionLayout {
    const Function* function = nullptr;
    u32 entry_pc = 0, exit_pc = 0;
    u32 narrow_cells = 0, wide_cells = 0;  // 32-bit and 64-bit registers
    u32 predicates = 0;
    u32 local_bytes = 0;  // .local and .param variables of one lane's frame
    u32 frame_cells() const { return narrow_cells * kLanes + wide_cells * 2 * kLanes; }
};

struct ParamSlot {
    std::string name;
    u32 offset = 0, size = 0;
};

struct Program {
    std::shared_ptr<Module> module;
    std::string name;
    const Function* function = nullptr;
    std::vector<Op> code;
    std::vector<Place> places;
    std::vector<FunctionLayout> functions;           // [0] is the entry
    std::vector<u32> constants;                      // broadcast immediates, 32 lanes each
    std::deque<std::vector<u32>> lists;              // storage behind Op::list and branch tables
    std::vector<std::string> messages;               // of ops that stop
    std::vector<std::shared_ptr<const void>> forms;  // storage behind Op::form
    std::vector<Watch> watches;                      // of ops that touch registers of wgmma
    std::vector<ParamSlot> params;
    u32 param_bytes = 0;
    u32 static_shared = 0;               // bytes, before the dynamic part
    u32 dynamic_begin = 0;               // address of the dynamic part
    int shared_granule_shift = 2;        // log2 of the bytes of the narrowest access to shared memory, at most 2
    int registers = 0, spill_bytes = 0;  // from ptxas; 0 if unknown
    u32 max_dynamic_shared = 0;          // cudaFuncSetAttribute; 0 = not set
    std::string text_at(u32 pc) const;
};

// Decodes entry `name` of the module; throws BadProgram for what cannot be laid out.
std::shared_ptr<Program> decode_kernel(std::shared_ptr<Module> module, const std::string& name);

}  // namespace ptxsim
