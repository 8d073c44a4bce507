// A kernel decoded for execution: every PTX instruction becomes one or a few Ops with resolved register cells.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "ptx.h"
#include "wgmma_watch.h"

namespace ptxsim {

struct Warp;
struct Op;
using Handler = void (*)(Warp&, const Op&);

// A Ref names 32 lanes of cells: 2 bits choose the file, the rest is an offset in 32-bit units.
using Ref = u32;
constexpr u32 kFileShift = 30;
constexpr u32 kOffsetMask = (1u << kFileShift) - 1;
enum File : u32 { kRegisters = 0, kConstants = 1, kSpecials = 2 };

enum class OpClass : u8 {
    Integer,
    Float,
    Half,
    Double,
    Convert,
    Move,
    Compare,
    Special,  // ex2, rcp, ... (the MUFU unit)
    Mma,
    LoadGlobal,
    StoreGlobal,
    LoadShared,
    StoreShared,
    LdMatrix,
    LocalMemory,
    ParamMemory,
    Atomic,
    AsyncCopy,
    Barrier,
    WarpSync,
    Branch,
    Other,
    kCount,
};
const char* class_name(OpClass cls);

struct Op {
    Handler fn = nullptr;
    Ref dst = 0, a = 0, b = 0, c = 0;
    Ref d = 0;       // fourth source, or second destination
    int guard = -1;  // predicate index
    bool guard_negated = false;
    OpClass cls = OpClass::Other;
    Space space = Space::None;
    u8 bytes = 0;  // of one element of a memory access
    u8 count = 0;  // elements of a vector access
    u8 flags = 0;
    u16 flags2 = 0;
    bool has_result = false;  // dst is written
    bool parity = false;      // of an mbarrier's wait: by parity, not by state
    int p = -1, q = -1;       // predicate indices of sources or destinations
    u32 target = 0;           // pc of a branch
    u32 reconverge = 0;       // pc where a divergent branch's lanes meet again; kNoPc if nowhere
    s64 imm = 0;
    const void* form = nullptr;  // of a matrix instruction: its shape and types
    u32 watch = 0;               // index into Program::watches
    const Ref* list = nullptr;   // vector operands
    const u32* targets = nullptr;
    u32 inst = 0;  // index into Program::places
};

constexpr u32 kNoPc = 0xffffffffu;

// Flags of Op::flags, meaning by family.
enum MemoryFlag : u8 {
    kNonCoherent = 1,
    kStrong = 2,
    kSigned = 4,
    kAcquire = 8,
    kRelease = 16,
    kVolatile = 32,
    kCtaRelease = 64
};

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
    std::deque<std::vector<u32>> lists;              // storage behind Op::list and Op::targets
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
