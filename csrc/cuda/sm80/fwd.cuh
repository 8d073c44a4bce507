// The forward kernel: O = O1 - lambda·O2 with one pass over the keys.
//
// Eight warps are four pairs. A pair has 16 or 32 query rows; its warp c computes the logits and
// the softmax of component c alone, hands P_c to its partner through shared memory, and then
// multiplies both P1 and P2 with its half of V's columns. So every fragment of V serves two
// products, and O1 and O2 of an element lie in one thread, where they are subtracted in fp32.
#pragma once
#include "epilogue.cuh"
#include "fwd.h"

namespace diffattn::cuda::sm80 {

template <class Element_, int kHeadDim_, int kHeadDimV_>
struct FwdTraits {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_, kHeadDimV = kHeadDimV_;
  static constexpr int kPairs = 4, kThreads = 64 * kPairs;
  static constexpr int kRowTiles = kHeadDim <= 64 ? 2 : 1;  // of 16 rows a pair
  static constexpr int kRows = kPairs * kRowTiles * 16;
  static constexpr int kKeys = 32;              // a step
  static constexpr int kHalfV = kHeadDimV / 2;  // columns a warp

  static constexpr int kPanelV = panel_of<kHalfV>();
  using QTile = Tile<kRows, kHeadDim, panel_of<kHeadDim>()>;  // one component
  using KTile = Tile<kKeys, kHeadDim, panel_of<kHeadDim>()>;  // one component
  using VTile = Tile<kKeys, kHeadDimV, kPanelV>;
  using OTile = Tile<kRowTiles * 16, kHalfV, kPanelV>;  // one warp's

  // Q is in registers before the first P is handed over, and the last P has been read before an
  // output is staged, so the three share one place.
  static constexpr int kStageBytes = 2 * KTile::kBytes + VTile::kBytes;
  static constexpr int kPBytes = kRowTiles * (kKeys / 16) * 32 * 16;  // one warp's
  static constexpr int kSharedBytes = 2 * QTile::kBytes;
  static constexpr int kStatisticsBytes = 2 * kPairs * kRowTiles * 16 * 4;
  static constexpr int kGrownBytes = 2 * kPairs * 4;
  static constexpr int kSmemBytes = 2 * kStageBytes + kSharedBytes + kStatisticsBytes + kGrownBytes;
  static_assert(2 * kPairs * kPBytes <= kSharedBytes);
  static_assert(2 * kPairs * OTile::kBytes <= kSharedBytes);
};

// S = Q·Kᵀ of one component, 32 keys.
template <class T>
__device__ void multiply_qk(float (&s)[T::kRowTiles][T::kKeys / 8][4],
                            const uint32_t (&q)[T::kRowTiles][T::kHeadDim / 16][4], const char* k,
                            const LaneOffset<typename T::KTile>& lane_k) {
#pragma unroll
  for (int m = 0; m < T::kRowTiles; ++m)
#pragma unroll
    for (int n = 0; n < T::kKeys / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[m][n][i] = 0;
#pragma unroll
  for (int depth = 0; depth < T::kHeadDim / 16; ++depth)
#pragma unroll
    for (int block = 0; block < T::kKeys / 16; ++block) {
      uint32_t b[4];  // [key tile, half of the depth]
      load_matrices(b, k + lane_k(block, depth));
#pragma unroll
      for (int m = 0; m < T::kRowTiles; ++m) {
        mma<typename T::Element>(s[m][2 * block], q[m][depth], b[0], b[1]);
        mma<typename T::Element>(s[m][2 * block + 1], q[m][depth], b[2], b[3]);
      }
    }
}

template <int kRowTiles, int kKeyBlocks>
using PFragment = uint32_t[kRowTiles][kKeyBlocks][4];

// O_own += P_own·V and O_other += P_other·V, this warp's half of V's columns.
template <class T, class O, class P>
__device__ void multiply_pv(O& o_own, O& o_other, const P& p_own, const P& p_other, const char* v,
                            const LaneOffset<typename T::VTile>& lane_v) {
#pragma unroll
  for (int block = 0; block < T::kKeys / 16; ++block)
#pragma unroll
    for (int col = 0; col < T::kHalfV / 16; ++col) {
      uint32_t b[4];  // [column tile, half of the keys]
      load_matrices_transposed(b, v + lane_v(block, col));
#pragma unroll
      for (int m = 0; m < T::kRowTiles; ++m) {
        mma<typename T::Element>(o_own[m][2 * col], p_own[m][block], b[0], b[1]);
        mma<typename T::Element>(o_own[m][2 * col + 1], p_own[m][block], b[2], b[3]);
        mma<typename T::Element>(o_other[m][2 * col], p_other[m][block], b[0], b[1]);
        mma<typename T::Element>(o_other[m][2 * col + 1], p_other[m][block], b[2], b[3]);
      }
    }
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    fwd_kernel(const __grid_constant__ FwdParams params) {
  using Element = typename T::Element;
  constexpr int kRowTiles = T::kRowTiles, kColTiles = T::kHalfV / 8;
  constexpr int kDepth = T::kHeadDim / 16, kKeyTiles = T::kKeys / 8;
  extern __shared__ __align__(1024) char smem[];

  const Shape& shape = params.shape;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, pair = warp / 2, comp = warp % 2;

  // The rows of one head that this CTA has; those that see most come first.
  const int row_blocks = int((shape.seqlen_q + T::kRows - 1) / T::kRows);
  const int head = blockIdx.x / row_blocks % int(shape.nheads);
  const Sequence sequence(shape, params.varlen, blockIdx.x / row_blocks / int(shape.nheads));
  const int cta_row = (row_blocks - 1 - blockIdx.x % row_blocks) * T::kRows;
  if (cta_row >= sequence.seqlen_q) return;
  const int first_row = cta_row + pair * kRowTiles * 16;
  const int head_k = head / int(shape.nheads / shape.nheads_k);

  const Sight sight(params.window, sequence.seqlen_q, sequence.seqlen_k);
  const Steps steps(sight, cta_row, min(cta_row + T::kRows, sequence.seqlen_q), T::kKeys);
  const bool negative = params.softmax_scale < 0;

  // Global to shared memory.
  char* const shared = smem + 2 * T::kStageBytes;
  const int headdim = int(shape.headdim);
  const auto at = [](const View& v, int64_t offset) {
    return static_cast<const Element*>(v.data) + offset;
  };
  using QFill = TileFill<typename T::QTile, T::kThreads>;
  using KFill = TileFill<typename T::KTile, T::kThreads>;
  using VFill = TileFill<typename T::VTile, T::kThreads>;
  const int64_t q_offset =
      sequence.q_offset(params.q) + head * params.q.head + cta_row * params.q.row;
  const int64_t first_key = int64_t(steps.begin) * T::kKeys;
  const int64_t k_offset =
      sequence.k_offset(params.k) + head_k * params.k.head + first_key * params.k.row;
  const int64_t v_offset =
      sequence.k_offset(params.v) + head_k * params.v.head + first_key * params.v.row;
  KFill fill_k1(at(params.k, k_offset), params.k.row, headdim, threadIdx.x);
  KFill fill_k2(at(params.k, k_offset + params.k.comp), params.k.row, headdim, threadIdx.x);
  VFill fill_v(at(params.v, v_offset), params.v.row, int(shape.headdim_v), threadIdx.x);
  const auto load_step = [&](int step) {
    char* const stage = smem + step % 2 * T::kStageBytes;
    const int keys_left = sequence.seqlen_k - step * T::kKeys;
    fill_k1.start(stage, keys_left);
    if (shape.k_components == 2) fill_k2.start(stage + T::KTile::kBytes, keys_left);
    fill_v.start(stage + 2 * T::KTile::kBytes, keys_left);
    fill_k1.advance(T::kKeys);
    fill_k2.advance(T::kKeys);
    fill_v.advance(T::kKeys);
    cute::cp_async_fence();
  };
  QFill(at(params.q, q_offset), params.q.row, headdim, threadIdx.x)
      .start(shared, sequence.seqlen_q - cta_row);
  QFill(at(params.q, q_offset + params.q.comp), params.q.row, headdim, threadIdx.x)
      .start(shared + T::QTile::kBytes, sequence.seqlen_q - cta_row);
  cute::cp_async_fence();
  if (steps.begin < steps.end) load_step(steps.begin);

  // Q of this warp's component, for the whole pass.
  cute::cp_async_wait<1>();
  __syncthreads();  // Q, which all threads copied, is there
  uint32_t q[kRowTiles][kDepth][4];
  const auto lane_q = LaneOffset<typename T::QTile>::rows_first(lane);
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int depth = 0; depth < kDepth; ++depth)
      load_matrices(q[m][depth],
                    shared + comp * T::QTile::kBytes + lane_q(pair * kRowTiles + m, depth));

  const float log2_scale = fmaxf(fabsf(float(params.softmax_scale)) * float(M_LOG2E), 1e-30f);
  Softmax<kRowTiles> softmax(log2_scale);
  float o_own[kRowTiles][kColTiles][4] = {};    // O of this warp's component, half of its columns
  float o_other[kRowTiles][kColTiles][4] = {};  // O of its partner's, the same columns

  // What the two warps of a pair hand over: P, and by how much a row's maximum grew.
  uint4* const p_out = reinterpret_cast<uint4*>(shared + warp * T::kPBytes) + lane;
  const uint4* const p_in = reinterpret_cast<const uint4*>(shared + (warp ^ 1) * T::kPBytes) + lane;
  float* const statistics = reinterpret_cast<float*>(shared + T::kSharedBytes);
  const RowExchange<kRowTiles> exchange{statistics + warp * kRowTiles * 16,
                                        statistics + (warp ^ 1) * kRowTiles * 16};
  int* const grown = reinterpret_cast<int*>(shared + T::kSharedBytes + T::kStatisticsBytes);
  const auto wait_for_partner = [&] { __barrier_sync_count(1 + pair, 64); };

  const auto lane_k = LaneOffset<typename T::KTile>::chunks_first(lane);
  const auto lane_v = LaneOffset<typename T::VTile>::rows_first(lane);
  for (int step = steps.begin; step < steps.end; ++step) {
    const char* const stage = smem + step % 2 * T::kStageBytes;
    cute::cp_async_wait<0>();
    // All threads' copies of this step are there. The other stage, what the partner handed over
    // and, before the first step, Q have been read by all.
    __syncthreads();
    if (step + 1 < steps.end) load_step(step + 1);

    float s[kRowTiles][kKeyTiles][4];
    multiply_qk<T>(s, q, stage + (shape.k_components == 2 ? comp : 0) * T::KTile::kBytes, lane_k);
    if (!steps.is_full(step) || negative)
      mask(s, sight, first_row, step * T::kKeys, negative ? -1.f : 1.f, lane);

    float greatest[kRowTiles][2];
    softmax.lane_max(s, greatest);
    const bool outgrown = softmax.outgrown(greatest);
    if (outgrown) {
      float factor[kRowTiles][2];
      softmax.raise(greatest, factor);
      scale_rows(o_own, factor);
      exchange.put(factor, lane);
    }
    if (lane == 0) grown[warp] = outgrown;

    uint32_t p_own[kRowTiles][kKeyTiles / 2][4];
    softmax.template exponentiate<Element>(s, p_own);
    uint32_t p_other[kRowTiles][kKeyTiles / 2][4];
#pragma unroll
    for (int i = 0; i < kRowTiles * kKeyTiles / 2; ++i)
      p_out[i * 32] = reinterpret_cast<const uint4*>(p_own)[i];
    wait_for_partner();  // both have written P and the factors
#pragma unroll
    for (int i = 0; i < kRowTiles * kKeyTiles / 2; ++i)
      reinterpret_cast<uint4*>(p_other)[i] = p_in[i * 32];
    if (grown[warp ^ 1]) {
      float factor[kRowTiles][2];
      exchange.get(factor, lane);
      scale_rows(o_other, factor);
    }
    multiply_pv<T>(o_own, o_other, p_own, p_other,
                   stage + 2 * T::KTile::kBytes + comp * (T::VTile::kBytes / 2), lane_v);
  }
  cute::cp_async_wait<0>();
  __syncthreads();  // P and the factors have been read by all; their place can be used again

  Epilogue<T>(params, sequence, head, first_row, lane, comp, exchange,
              shared + warp * T::OTile::kBytes)
      .run(softmax, o_own, o_other, wait_for_partner);
}

template <class T>
void launch_tiles(const FwdParams& params, cudaStream_t stream) {
  const int64_t row_blocks = (params.shape.seqlen_q + T::kRows - 1) / T::kRows;
  const int64_t ctas = row_blocks * params.shape.nheads * params.shape.batch;
  check_size("forward: blocks of rows x heads x batch", ctas, kMaxCtas);
  const auto kernel = fwd_kernel<T>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSmemBytes),
        "forward: shared memory");
  kernel<<<unsigned(ctas), T::kThreads, T::kSmemBytes, stream>>>(params);
  check(cudaGetLastError(), "forward: launch");
}

// Head dims up to kHeadDim; V as wide as Q, or twice.
template <int kHeadDim>
void launch_fwd(const FwdParams& params, cudaStream_t stream) {
  const bool wide = params.shape.headdim_v != params.shape.headdim;
  const auto launch = [&](auto element) {
    using Element = decltype(element);
    wide ? launch_tiles<FwdTraits<Element, kHeadDim, 2 * kHeadDim>>(params, stream)
         : launch_tiles<FwdTraits<Element, kHeadDim, kHeadDim>>(params, stream);
  };
  params.dtype == DType::bf16 ? launch(__nv_bfloat16()) : launch(__half());
}

}  // namespace diffattn::cuda::sm80
