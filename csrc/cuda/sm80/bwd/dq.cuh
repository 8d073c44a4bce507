// dQ: summed in fp32 over the key blocks in the workspace, then rounded once.
#pragma once
#include "rows.cuh"
#include "traits.cuh"

namespace diffattn::cuda::sm80 {

// dQ of a block of rows lies in the workspace as the accumulators of its 16 x 8 tiles, so that the
// lanes of a warp add to neighbouring words.
template <int kHeadDim>
struct DqLayout {
  static constexpr int kColTiles = 2 * kHeadDim / 8;  // of both components
  static constexpr int kFloats = kRowBlock * 2 * kHeadDim;

  __host__ __device__ static constexpr int tile(int row_tile, int col_tile) {
    return (row_tile * kColTiles + col_tile) * 128;
  }
};

// Key blocks add to dQ in a fixed order: the last that a block of rows sees is the first to add. This is the
// order in which the diagonal of a causal mask reaches the row blocks, so no CTA waits there.
class Turn {
 public:
  __device__ Turn(int* turns, bool ordered) : turns_(turns), ordered_(ordered) {}

  // Until before() key blocks have added to a block of rows.
  template <class Before>
  __device__ void wait(unsigned block, const Before& before) const {
    if (!ordered_) return;
    const int turn = before();
    if (threadIdx.x == 0)
      while (__nv_atomic_load_n(turns_ + block, __NV_ATOMIC_ACQUIRE, __NV_THREAD_SCOPE_DEVICE) !=
             turn) {}
    __syncthreads();  // the key blocks before this one have added their part
  }

  __device__ void pass_on(unsigned block) const {
    if (!ordered_) return;
    __syncthreads();  // all threads have added their part, so that the release covers all of it
    if (threadIdx.x == 0)
      __nv_atomic_fetch_add(turns_ + block, 1, __NV_ATOMIC_RELEASE, __NV_THREAD_SCOPE_DEVICE);
  }

 private:
  int* turns_;
  bool ordered_;
};

// This warp's rows and columns of dQ.
template <class T>
using DqFragment = float[T::kDqRowTiles][T::kDqCols / 8][4];  // rows g, g + 8 x columns 2t, 2t + 1

// dq += dS·K over a part of the keys. ds and k: this lane's row of its first block.
template <class T>
__device__ void multiply_dq(DqFragment<T>& dq, const char* ds, const char* k) {
#pragma unroll
  for (int depth = 0; depth < T::kPartKeys / 16; ++depth) {
    uint32_t a[T::kDqRowTiles][4];  // 16 rows x 16 keys
#pragma unroll
    for (int m = 0; m < T::kDqRowTiles; ++m) load_matrices(a[m], ds + T::MapTile::blocks(m, depth));
#pragma unroll
    for (int col = 0; col < T::kDqCols / 16; ++col) {
      uint32_t b[4];  // [column tile, half of the keys]
      load_matrices_transposed(b, k + T::KTile::blocks(depth, col));
#pragma unroll
      for (int m = 0; m < T::kDqRowTiles; ++m) {
        mma<typename T::Element>(dq[m][2 * col], a[m], b[0], b[1]);
        mma<typename T::Element>(dq[m][2 * col + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// Adds this lane's part of a product to the sum over all key blocks.
template <class T>
__device__ void add_dq(float* sum, const DqFragment<T>& product) {
#pragma unroll
  for (int m = 0; m < T::kDqRowTiles; ++m)
#pragma unroll
    for (int n = 0; n < T::kDqCols / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        atomicAdd(sum + DqLayout<T::kHeadDim>::tile(m, n) + i * 32, product[m][n][i]);
}

constexpr int kRoundThreads = 128;

// A CTA rounds a block of rows of one head.
template <class T>
__global__ void __launch_bounds__(kRoundThreads)
    round_dq_kernel(const __grid_constant__ BwdParams params,
                    const __grid_constant__ BwdWorkspace work) {
  using Element = typename T::Element;
  using Layout = DqLayout<T::kHeadDim>;
  const Shape& shape = params.shape;
  const RowBlock tile(params);
  const int rows = tile.sequence.seqlen_q - tile.first_row;
  const float* dq = work.dq + tile.block * Layout::kFloats;

  const View& to = params.map_grads[kSignal].dq;
  const int64_t noise = bytes_to_noise(to, params.map_grads[kNoise].dq);
  auto* const target = static_cast<Element*>(to.data) + tile.sequence.q_offset(to) +
                       tile.head * to.head + tile.first_row * to.row;
  const float scale = float(params.softmax_scale);
  constexpr unsigned kChunks = T::kHeadDim / kChunk;  // in a row of one component
#pragma unroll
  for (unsigned first = 0; first < kRowBlock * 2 * kChunks; first += kRoundThreads) {
    const unsigned i = first + threadIdx.x;
    const int row = i / (2 * kChunks), comp = i / kChunks % 2, chunk = i % kChunks;
    if (row >= rows || chunk * kChunk >= shape.headdim) continue;
    // Columns 2t lie in one accumulator register of the quad's lanes, columns 2t + 1 in the next.
    const float* fragment =
        dq + Layout::tile(row / 16, comp * kChunks + chunk) + row % 16 / 8 * 64 + row % 8 * 4;
    const float4 even = *reinterpret_cast<const float4*>(fragment);
    const float4 odd = *reinterpret_cast<const float4*>(fragment + 32);
    const uint4 rounded{Half<Element>::pack(even.x * scale, odd.x * scale),
                        Half<Element>::pack(even.y * scale, odd.y * scale),
                        Half<Element>::pack(even.z * scale, odd.z * scale),
                        Half<Element>::pack(even.w * scale, odd.w * scale)};
    char* const row_of_map =
        reinterpret_cast<char*>(target + row * to.row + chunk * kChunk) + comp * noise;
    *reinterpret_cast<uint4*>(row_of_map) = rounded;
  }
}

}  // namespace diffattn::cuda::sm80
