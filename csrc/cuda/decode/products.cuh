// Q·Kᵀ and P·V of a block of keys, and how Q reaches the registers.
#pragma once
#include "../common/mma.cuh"
#include "../common/softcap.cuh"
#include "append.cuh"
#include "place.cuh"
#include "splits.cuh"
#include "traits.cuh"

namespace diffattn::cuda::decoding {

// Copies the Q of all row warps to shared memory, rotated. The sign of a negative scale goes into Q, so
// that the largest product stays the largest logit.
template <class T>
__device__ void copy_queries(char* tiles, const DecodeParams& p, const SplitPlace& place,
                             const CachedSequence& s, const PackedRows& rows) {
  using Element = typename T::Element;
  constexpr int kChunks = T::kHeadDim / kChunk;
  const Rotator<Element> rotator(p.cache.rotary);
  const bool ordered = p.mask.left >= 0 || p.mask.right >= 0;
  const uint32_t sign = p.softmax_scale < 0 ? 0x80008000u : 0;
  for (int i = threadIdx.x; i < T::kRowWarps * 16 * kChunks; i += T::kThreads) {
    const int tile = i / (16 * kChunks), row = i / kChunks % 16, chunk = i % kChunks;
    const int m = rows.begin + tile * 8 + row % 8;
    uint4 x{};
    if (m < rows.end && chunk * kChunk < p.shape.headdim) {
      const int q_row = rows.row_of(m), head = rows.head_of(m, place.head_k);
      const View& view = p.maps[row / 8].q;
      const auto* from =
          row_of<const Element>(view, s.batch * view.batch + q_row * view.row + head * view.head);
      x = rotator.load(from, chunk * kChunk, s.uncounted + s.cached + (ordered ? q_row : 0));
    }
    char* const to = tiles + tile * T::QTile::kBytes + T::QTile::offset(row, chunk * kChunk);
    *reinterpret_cast<uint4*>(to) = {x.x ^ sign, x.y ^ sign, x.z ^ sign, x.w ^ sign};
  }
}

// Loads the Q of one warp into its registers.
template <class T>
__device__ void load_queries(typename T::Queries& q, const char* tiles, const Role& role) {
  const char* const tile = tiles + role.row_warp * T::QTile::kBytes;
#pragma unroll
  for (int depth = 0; depth < T::kHeadDim / 16; ++depth)
    load_matrices(q[depth], tile + rows_first<typename T::QTile>(role.lane) + depth * 32);
}

// Where a lane begins to read the fragments of a slot: 16 rows of keys, or of values.
template <class T>
__device__ int lane_of_keys(const Shape& shape, int lane) {
  return (lane % 8 + lane / 16 * 8) * T::k_pitch(shape) + lane / 8 % 2 * 16;
}
template <class T>
__device__ int lane_of_values(int lane) {
  return rows_first<typename T::VTile>(lane);
}

// S = Q·Kᵀ of one component's keys, for the Q of both components.
template <class T>
__device__ void multiply_qk_once(typename T::Logits& s, const typename T::Queries& q,
                                 const char* k) {
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) s[0][n][i] = 0;
#pragma unroll
  for (int depth = 0; depth < T::kHeadDim / 16; ++depth) {
    uint32_t b[4];  // [key tile, half of the depth]
    load_matrices(b, k + depth * 32);
    mma<typename T::Element>(s[0][0], q[depth], b[0], b[1]);
    mma<typename T::Element>(s[0][1], q[depth], b[2], b[3]);
  }
}

// S = Q·Kᵀ, each component with its own keys. The product with K1 also has the logits of q2, and that
// with K2 those of q1: they are dropped.
template <class T>
__device__ void multiply_qk(typename T::Logits& s, const typename T::Queries& q, const char* k,
                            bool shared_k) {
  multiply_qk_once<T>(s, q, k);
  if (shared_k) return;
  typename T::Logits s2;
  multiply_qk_once<T>(s2, q, k + T::kHeadDim * 2);
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 2; i < 4; ++i) s[0][n][i] = s2[0][n][i];
}

// The same, capped if T says so. Q has the sign of the scale.
template <class T>
__device__ void multiply_scores(typename T::Logits& s, const typename T::Queries& q, const char* k,
                                const DecodeParams& p) {
  multiply_qk<T>(s, q, k, p.shape.k_components == 1);
  if (T::kCapped) cap_scores(s, fabsf(cap_factor(p.softmax_scale, p.softcap)));
}

// O += P·V, both components.
template <class T>
__device__ void multiply_pv(typename T::O& o, const typename T::P& p, const char* v) {
#pragma unroll
  for (int col = 0; col < T::kHeadDimV / 16; ++col) {
    uint32_t b[4];  // [column tile, half of the keys]
    load_matrices_transposed(b, v + col * 32);
    mma<typename T::Element>(o[0][2 * col], p[0][0], b[0], b[1]);
    mma<typename T::Element>(o[0][2 * col + 1], p[0][0], b[2], b[3]);
  }
}

}  // namespace diffattn::cuda::decoding
