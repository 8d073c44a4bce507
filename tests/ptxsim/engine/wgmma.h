// wgmma (PTX ISA 9.7.15): what one instruction is, and what a warp has in flight.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "mma_types.h"
#include "wgmma_descriptor.h"

namespace ptxsim {

struct Cta;
struct Op;
struct Warp;

enum class Accumulator : u8 { F32, F16, S32 };

struct WgmmaForm {
    u32 n = 0, k = 0;
    Input a_type = kF16, b_type = kF16;
    Accumulator accumulator = Accumulator::F32;
    bool a_in_registers = false, a_transposed = false, b_transposed = false, saturate = false;
    bool negative = false;  // the product of imm-scale-a and imm-scale-b
    u32 d_registers() const { return accumulator == Accumulator::F16 ? n / 4 : n / 2; }
    u32 a_registers() const { return a_in_registers ? 4 : 0; }
    u64 warp_flop() const { return 2ull * 16 * n * k; }
    std::string shape() const { return "m64n" + std::to_string(n) + "k" + std::to_string(k); }
    bool same_shape(const WgmmaForm& other) const {
        return n == other.n && k == other.k && accumulator == other.accumulator;
    }
};

// One wgmma.mma_async of a warp that no wait has covered.
struct PendingWgmma {
    const Op* op = nullptr;
    u32 number = 0;  // of its asynchronous read; they count up
    u32 group = 0;   // the commit that it belongs to, counted from 1
    u32 cells = 0;   // where its frame's registers begin
    u32 pc = 0;
    MatrixDescriptor a, b;
    bool accumulates = false, computed = false;
    u32 bad_rows = 0;         // of A: read from memory that is undefined
    u32 bad_columns[8] = {};  // of B
};

// What is known of a register that wgmma may use: by slot, 32 lanes together.
struct WatchedRegister {
    u32 accumulator_of = 0, input_of = 0;  // the last wgmma that has it as D, as A
    bool named = false;                    // by that wgmma itself; otherwise a mov copied what it holds
    u32 touched = 0;                       // the number of wgmma.fence before the last ordinary access, plus 1
    const WgmmaForm* form = nullptr;       // of the last wgmma that had it as D
    u32 form_fence = 0;
};

struct WgmmaState {
    std::deque<PendingWgmma> pending;
    u32 retired = 0;    // the last number that a wait has covered
    u32 committed = 0;  // groups
    u32 fences = 0;
    std::vector<WatchedRegister> registers;
    bool in_flight(u32 number) const { return number > retired; }
};

WgmmaState& wgmma_state(Warp& w);
// The numbers: adds to, or sets, the accumulators (wgmma_multiply.cpp).
void multiply_wgmma(Warp& w, PendingWgmma& p);
// Everything in flight of this warp is computed now, in order of issue.
void compute_pending(Warp& w, WgmmaState& s);
// Lanes exit: nothing may be in flight, and the warpgroup's other warps have executed no more than this one.
void check_wgmma_at_exit(Warp& w);

}  // namespace ptxsim
