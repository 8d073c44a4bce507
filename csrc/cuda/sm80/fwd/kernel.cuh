// The forward kernel: O = O1 - lambda·O2 with one pass over the keys.
//
// Eight warps are four pairs. A pair has 16 or 32 query rows; its warp c computes the logits and
// the softmax of component c alone, hands P_c to its partner through shared memory, and then
// multiplies both P1 and P2 with its half of V's columns. So every fragment of V serves two
// products, and O1 and O2 of an element lie in one thread, where they are subtracted in fp32.
#pragma once
#include "epilogue.cuh"
#include "fwd.h"
#include "products.cuh"
#include "tiles.cuh"

namespace diffattn::cuda::sm80 {

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    fwd_kernel(const __grid_constant__ FwdParams params) {
  using Element = typename T::Element;
  constexpr int kRowTiles = T::kRowTiles, kColTiles = T::kHalfV / 8, kKeyTiles = T::kPartKeys / 8;
  extern __shared__ __align__(1024) char smem[];
  const int lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0),
            pair = warp / 2, comp = warp % 2;

  // The rows of one head that this CTA has; those that see most come first.
  const Shape& shape = params.shape;
  const int row_blocks = int((shape.seqlen_q + T::kRows - 1) / T::kRows);
  const int head = blockIdx.x / row_blocks % int(shape.nheads);
  const Sequence sequence(shape, params.varlen, blockIdx.x / row_blocks / int(shape.nheads));
  const int cta_row = (row_blocks - 1 - blockIdx.x % row_blocks) * T::kRows;
  if (cta_row >= sequence.seqlen_q) return;
  const int first_row = cta_row + pair * kRowTiles * 16;

  const float sign = params.softmax_scale < 0 ? -1.f : 1.f;
  const SequenceMask mask(params.mask, sequence.seqlen_q, sequence.seqlen_k);
  const KeyRange cta_keys(mask, cta_row, min(cta_row + T::kRows, sequence.seqlen_q));
  KeyRange keys(mask, first_row, min(first_row + kRowTiles * 16, sequence.seqlen_q));  // the pair's
  if (sign < 0) keys.full_end = 0;  // hide() is what gives the sign

  // Global to shared memory.
  int step_key = cta_keys.begin / T::kKeys * T::kKeys;
  KeyValueFill<T> fill(params, sequence, head, step_key);
  fill_queries<T>(params, sequence, head, cta_row, smem + T::kStageBytes);
  if (step_key < cta_keys.end)
    fill.start(smem, step_key);
  else
    cute::cp_async_fence();
  cute::cp_async_wait<1>();
  __syncthreads();  // all threads' copies of Q are there

  uint32_t q[kRowTiles][T::kHeadDim / 16][4];  // of this warp's component
  load_queries<T>(
      q, smem + T::kStageBytes + T::QTile::offset(pair * kRowTiles * 16, comp * T::kHeadDim), lane);

  Softmax<kRowTiles> softmax(params.softmax_scale);
  float o_own[kRowTiles][kColTiles][4] = {};    // P·V of this warp's component, half of V's columns
  float o_other[kRowTiles][kColTiles][4] = {};  // P·V of its partner's, the same columns
  const Handover<T> handover(smem, warp, lane);
  // Where this lane reads the step's tiles; from one step to the next they change places.
  const char* k_tile = smem + chunks_first<typename T::KTile>(lane) +
                       (T::shares_k(bytes_to_noise(params.maps[kSignal].k, params.maps[kNoise].k))
                            ? 0
                            : T::KTile::offset(0, comp * T::kHeadDim));
  const char* v_tile = smem + T::KTile::kBytes + rows_first<typename T::VTile>(lane) +
                       T::VTile::offset(0, comp * T::kHalfV);
  int flip = T::kStageBytes;
  char* next_stage = smem + T::kStageBytes;

  for (; step_key < cta_keys.end; step_key += T::kKeys) {
    cute::cp_async_wait<0>();
    // All threads' copies of this step are there. All have read the other stage, what their partner
    // handed over and, before the first step, Q: each may be overwritten.
    __syncthreads();
    if (step_key + T::kKeys < cta_keys.end) fill.start(next_stage, step_key + T::kKeys);

#pragma unroll
    for (int part = 0; part < T::kKeys / T::kPartKeys; ++part) {
      const int first_key = step_key + part * T::kPartKeys;
      const bool full = keys.fully_has(first_key, T::kPartKeys);
      if (T::kSkips && !full && !keys.meets(first_key, T::kPartKeys)) continue;
      float s[kRowTiles][kKeyTiles][4];
      multiply_qk<T>(s, q, k_tile + T::KTile::offset(part * T::kPartKeys, 0));
      if (!full) hide(s, mask, first_row, first_key, sign, lane);

      uint32_t p_own[kRowTiles][kKeyTiles / 2][4], p_other[kRowTiles][kKeyTiles / 2][4];
      float exact[kRowTiles][2];
      if (part > 0) handover.wait();  // both have read what the part before handed over
      softmax.template exponentiate<Element>(s, p_own, exact);
      const bool grew = softmax.outgrown(exact);
      if (grew) {
        float factor[kRowTiles][2];
        const SharedOrigins<T> origins(smem);
        softmax.template raise<Element>(s, exact, factor, origins);
        softmax.template exponentiate_raised<Element>(s, p_own, exact, origins);
        scale_rows(o_own, factor);
        handover.rows.put(factor);
      }
      handover.put(p_own);
      softmax.template add<Element>(exact, p_own, lane, [&](int row_tile, int key_block) {
        return T::tensor_core_sums(row_tile, part * T::kPartKeys / 16 + key_block);
      });
      const bool grew_theirs = handover.wait_for_growth(grew);  // both have written P and factors
      handover.get(p_other);
      if (grew_theirs) {
        float factor[kRowTiles][2];
        handover.rows.get(factor);
        scale_rows(o_other, factor);
      }
      multiply_pv<T>(o_own, o_other, p_own, p_other,
                     v_tile + T::VTile::offset(part * T::kPartKeys, 0));
    }
    k_tile += flip, v_tile += flip, next_stage -= flip;
    flip = -flip;
  }
  __syncthreads();  // the last tiles have been read by all: outputs may be staged in their place

  Epilogue<T>(params, sequence, head, first_row, lane, comp, handover.rows,
              smem + warp * T::OTile::kBytes)
      .run(softmax, SharedOrigins<T>(smem), o_own, o_other, [&] { handover.wait(); });
}

template <class Element, int kHeadDim, int kHeadDimV>
void launch_fwd(const FwdParams& params, cudaStream_t stream) {
  using T = FwdTraits<Element, kHeadDim, kHeadDimV>;
  const int64_t row_blocks = (params.shape.seqlen_q + T::kRows - 1) / T::kRows;
  const int64_t ctas = row_blocks * params.shape.nheads * params.shape.batch;
  check_size("forward: blocks of rows x heads x batch", ctas, kMaxCtas);
  const auto kernel = fwd_kernel<T>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSmemBytes),
        "forward: shared memory");
  kernel<<<unsigned(ctas), T::kThreads, T::kSmemBytes, stream>>>(params);
  check(cudaGetLastError(), "forward: launch");
}

}  // namespace diffattn::cuda::sm80
