// The products of a warpgroup: 64 rows, operand B and perhaps A from shared memory, as TMA has swizzled it.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cute/arch/mma_sm90.hpp>
#include <cute/arch/mma_sm90_desc.hpp>
#include <utility>

#include "mbarrier.cuh"

namespace diffattn::cuda::sm90 {

constexpr int kPanelCols = 64;  // of 16 bits: the 128 bytes that a swizzle spans
constexpr int kPanelRowBytes = 128;

// kRows x kCols in panels of 64 columns. TMA exchanges the 16-byte chunks of each 8 rows; wgmma undoes it.
template <int kRows_, int kCols_>
struct SwizzledTile {
  static constexpr int kRows = kRows_, kCols = kCols_;
  static constexpr int kPanels = kCols / kPanelCols, kPanelBytes = kRows * kPanelRowBytes;
  static constexpr int kBytes = kPanels * kPanelBytes;
  static_assert(kRows % 8 == 0 && kCols % kPanelCols == 0);
};

template <class Element>
struct InCute;
template <>
struct InCute<__half> {
  using Type = cute::half_t;
};
template <>
struct InCute<__nv_bfloat16> {
  using Type = cute::bfloat16_t;
};

// The lower half of a matrix's descriptor: where it lies, in units of 16 bytes. Offsets are added to it. The upper
// half is the same for all tiles.
// Adding the address, and not filling in its 14 bits, saves instructions in each step: shared memory has no more.
template <class Tile>
__device__ uint32_t descriptor_of(const char* tile) {
  constexpr uint32_t kUnit = 16;
  cute::GmmaDescriptor lower(0);
  lower.bitfield.leading_byte_offset_ =
      Tile::kPanelBytes / kUnit;  // to the next panel, if columns are N
  return lower.reg32_[0] + shared_address(tile) / kUnit;
}

__device__ inline uint64_t descriptor(uint32_t lower) {
  cute::GmmaDescriptor whole(0);
  whole.bitfield.stride_byte_offset_ = 8 * kPanelRowBytes / 16;  // to the next 8 rows
  whole.bitfield.layout_type_ = uint8_t(cute::SM90::GMMA::LayoutType::B128);
  whole.reg32_[0] = lower;
  return whole;
}

// To the operand's next 16 columns, or 16 rows, where products go along them.
template <class Tile>
__device__ constexpr uint32_t columns_on(int blocks) {
  return blocks / 4 * (Tile::kPanelBytes / 16) + blocks % 4 * 2;
}
__device__ constexpr uint32_t rows_on(int blocks) { return blocks * kPanelRowBytes; }

// Calls CuTe's atom with an accumulator's registers one by one, as it wants them.
template <class Atom, int kColTiles, int... i, class... Operands>
__device__ void multiply_into(float (&c)[1][kColTiles][4], std::integer_sequence<int, i...>,
                              cute::SM90::GMMA::ScaleOut scale, const Operands&... operands) {
  Atom::fma(operands..., c[0][i / 4][i % 4]..., scale);
}

// c += a·bᵀ, both along their columns; c = a·bᵀ if it is not to be added.
template <class Element, int kColTiles>
__device__ void multiply_shared(float (&c)[1][kColTiles][4], uint32_t a, uint32_t b, bool add) {
  using namespace cute;
  using E = typename InCute<Element>::Type;
  using Atom = decltype(SM90::GMMA::ss_op_selector<E, E, float,
                                                   cute::Shape<_64, Int<kColTiles * 8>, _16>>());
  multiply_into<Atom>(c, std::make_integer_sequence<int, kColTiles * 4>(),
                      add ? SM90::GMMA::ScaleOut::One : SM90::GMMA::ScaleOut::Zero, descriptor(a),
                      descriptor(b));
}

// c += a·b, a in registers and b along its rows.
template <class Element, int kColTiles>
__device__ void multiply_registers(float (&c)[1][kColTiles][4], const uint32_t (&a)[4],
                                   uint32_t b) {
  using namespace cute;
  using E = typename InCute<Element>::Type;
  using Atom =
      decltype(SM90::GMMA::rs_op_selector<E, E, float, cute::Shape<_64, Int<kColTiles * 8>, _16>,
                                          SM90::GMMA::Major::K, SM90::GMMA::Major::MN>());
  multiply_into<Atom>(c, std::make_integer_sequence<int, kColTiles * 4>(),
                      SM90::GMMA::ScaleOut::One, a[0], a[1], a[2], a[3], descriptor(b));
}

// What the compiler knows of these registers ends here: a product changes them, or has changed them.
template <class Register, int kTiles>
__device__ void hand_over(Register (&x)[1][kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) cute::warpgroup_fence_operand(x[0][n][i]);
}

}  // namespace diffattn::cuda::sm90
