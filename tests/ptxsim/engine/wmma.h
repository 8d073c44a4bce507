// Fragments of wmma (PTX ISA 9.7.14.4): what they are of, and where their elements lie.
#pragma once

#include "decoder.h"
#include "mma_layout.h"
#include "mma_types.h"
#include "warp.h"

namespace ptxsim {

enum class MatrixUse : u8 { A, B, Accumulator };

// The matrix of a fragment, and what decides its layout: "a fragment can be used as an operand of another wmma
// operation if the shape, layout and element type of the underlying matrix matches". Accumulators have no layout of
// their own.
struct WmmaMatrix {
    MatrixUse use;
    u8 m, n, k;  // of the product
    Input type;
    bool column_major;
    u8 registers;  // a lane

    int rows() const { return use == MatrixUse::B ? k : m; }
    int cols() const { return use == MatrixUse::A ? k : n; }
    int size() const { return rows() * cols(); }
    int per_register() const { return ptxsim::per_register(type); }
    int fragment_bytes() const { return registers * (type == kF64 ? 8 : 4); }
};

// "The identity of individual matrix elements in the fragment is unspecified", so the seed chooses it: elements are
// dealt out to the lanes in turn, after the numbers of lanes and elements were scrambled. Some f16 fragments have room
// for two or four copies of each element.
class WmmaLayout {
  public:
    WmmaLayout(const WmmaMatrix& matrix, u64 seed)
        : cols_(static_cast<u32>(matrix.cols())), size_(static_cast<u32>(matrix.size())) {
        u64 kind = static_cast<u64>(matrix.use) | static_cast<u64>(matrix.type) << 8 |
                   static_cast<u64>(matrix.column_major) << 16;
        u64 shape = static_cast<u64>(matrix.m) | static_cast<u64>(matrix.n) << 8 | static_cast<u64>(matrix.k) << 16;
        u64 key = mix(seed ^ mix(kind << 32 | shape));
        lane_key_ = key & (kLanes - 1);
        u32 elements = static_cast<u32>(matrix.registers * matrix.per_register());  // a power of two
        element_key_ = static_cast<u32>(key >> 32) & (elements - 1);
    }
    Position at(int lane, int element) const {
        u32 index = (static_cast<u32>(element) ^ element_key_) * kLanes + (static_cast<u32>(lane) ^ lane_key_);
        index %= size_;
        return {static_cast<int>(index / cols_), static_cast<int>(index % cols_)};
    }

  private:
    u32 cols_, size_, lane_key_, element_key_;
};

// Calls f(register, lane, element of the register, position).
template <class F>
void for_wmma_elements(const WmmaMatrix& matrix, u64 seed, F f) {
    WmmaLayout layout(matrix, seed);
    int per = matrix.per_register();
    for (int reg = 0; reg < matrix.registers; ++reg)
        for (int within = 0; within < per; ++within)
            for (int lane = 0; lane < kLanes; ++lane) f(reg, lane, within, layout.at(lane, reg * per + within));
}

// Consumes the shape; then fills in what the use and the type decide. Unsupported if the operand has another number of
// registers.
WmmaMatrix take_wmma_shape(Form& f);
WmmaMatrix wmma_matrix(Form& f, WmmaMatrix shape, MatrixUse use, const std::string& type, bool column_major,
                       size_t registers);
// Consumes the first of .row and .col; true for .col.
bool take_wmma_layout(Form& f);

// A struct that travels with an Op.
template <class S>
const void* wmma_payload(Decoder& d, const S& s) {
    return d.keep(std::make_shared<S>(s));
}

template <class S>
const S& wmma_payload(const Op& op) {
    return *static_cast<const S*>(op.form);
}

void decode_wmma_load(Form& f);
void decode_wmma_store(Form& f);

}  // namespace ptxsim
