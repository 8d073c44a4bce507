// One step of a decoded kernel: where its operands are, and what else its instruction says.
#pragma once

#include "ptx.h"

namespace ptxsim {

struct Warp;
struct Op;
using Handler = void (*)(Warp&, const Op&);
enum class Rounding : u8;
enum class Scope : u8;

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
    Wgmma,
    LoadGlobal,
    StoreGlobal,
    LoadShared,
    StoreShared,
    LdMatrix,
    LocalMemory,
    ParamMemory,
    Atomic,
    AsyncCopy,
    BulkCopy,
    Barrier,
    WarpSync,
    Branch,
    Other,
    kCount,
};
const char* class_name(OpClass cls);

constexpr u32 kNoPc = 0xffffffffu;

// How the address of a memory operand is found: Op::addressing.
enum AddressFlag : u8 {
    kNarrowBase = 1,    // the base is a 32-bit register
    kFramedBase = 2,    // relative to the frame's local memory
    kClusterWindow = 4  // .shared::cluster
};

// Op::access.flags
enum MemoryFlag : u8 {
    kNonCoherent = 1,
    kStrong = 2,
    kSigned = 4,
    kAcquire = 8,
    kRelease = 16,
    kVolatile = 32,
    kCtaRelease = 64
};

// What a family's instructions say besides their operands. Each has one of these; in an op they overlie each other.
namespace says {

struct Branch {
    u32 target, reconverge;  // pcs: where it leads, and where its lanes meet again (kNoPc if nowhere)
    const u32* targets;      // of brx.idx
    u32 target_count;
};
struct Call { u32 callee; };   // index into Program::functions
struct Stop { u32 message; };  // index into Program::messages
struct Arithmetic {
    Rounding rounding;
    u8 flags;  // each file's own
};
struct Convert {
    Rounding rounding;
    u8 flags;
    bool wide_source, wide_result, narrow_result;  // registers of 64 bits, and of 16 or fewer
};
struct Compare {
    u8 accept, boolean;  // relations, and how the result meets predicate p
    bool ftz;
    u64 truth;  // what set writes where it is true: of the low half, and of the high one
};
struct Logic {
    u8 table;          // of lop3
    bool conjunction;  // its predicate and p, or p or
};
struct Pack { u8 whole; };  // bytes of the register that the elements make up
struct Access {
    u8 flags;         // MemoryFlag
    u8 wide, narrow;  // by element: its register has 64 bits, 16 bits
};
struct Atomic {
    u8 operation, type;
    Scope release;
};
struct Matrix { bool transposed, has_stride; };
struct Copy {  // cp.async
    s64 source_offset;
    bool wide_source, has_size, ignores;  // ignores: the lanes of p copy nothing
};
struct Bulk {
    u8 addresses, rank;  // in Op::list; coordinates follow the addresses
    bool multicast, reduces;
    u8 operation, type, element_bytes;  // of a reduction
};
struct Barrier {
    u8 kind;
    bool counted, aligned;
};
struct ClusterBarrier { bool aligned, orders; };
struct Arrival {
    bool has_count, drops, expects, arrives;  // expects: bytes; arrives: not expect_tx alone
    bool uncounted;                           // .noinc
};
struct Wait { bool by_parity, only_reads; };
struct Registers { bool increases; };

}  // namespace says

struct Op {
    Handler fn = nullptr;
    Ref dst = 0, a = 0, b = 0, c = 0, d = 0;  // cells of the result and of up to four sources
    int guard = -1;                           // predicate index
    bool guard_negated = false;
    OpClass cls = OpClass::Other;
    bool has_result = false;     // dst is written: of an instruction that has a form without it
    u8 mode = 0;                 // of a family that is one enumeration: which of its values
    int p = -1, q = -1;          // predicates that are read
    int to_p = -1, to_q = -1;    // predicates that are written
    const Ref* list = nullptr;   // vector operands
    const void* form = nullptr;  // of a matrix instruction: its shape and types
    s64 imm = 0;                 // an immediate operand
    s64 offset = 0;              // the memory operand is [a + offset]
    Space space = Space::None;   // where that is
    u8 addressing = 0;           // AddressFlag
    u8 bytes = 0;                // of one element
    u8 count = 0;                // elements of a vector, or entries of the list
    u32 watch = 0;               // index into Program::watches
    u32 inst = 0;                // index into Program::places
    union {
        u64 nothing[3] = {};
        says::Branch branch;
        says::Call call;
        says::Stop stop;
        says::Arithmetic arithmetic;
        says::Convert convert;
        says::Compare compare;
        says::Logic logic;
        says::Pack pack;
        says::Access access;
        says::Atomic atomic;
        says::Matrix matrix;
        says::Copy copy;
        says::Bulk bulk;
        says::Barrier barrier;
        says::ClusterBarrier cluster_barrier;
        says::Arrival arrival;
        says::Wait wait;
        says::Registers registers;
    };
};

}  // namespace ptxsim
