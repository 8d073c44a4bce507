// The forward kernel: O = O1 - lambda·O2 with one pass over the keys.
//
// Eight warps are four pairs. A pair has 16 or 32 query rows; its warp c computes the logits and
// the softmax of component c alone, hands P_c to its partner through shared memory, and then
// multiplies both P1 and P2 with its half of V's columns. So every fragment of V serves two
// products, and O1 and O2 of an element lie in one thread, where they are subtracted in fp32.
#pragma once
#include "epilogue.cuh"
#include "fwd.h"
#include "keys.cuh"
#include "products.cuh"
#include "step.cuh"
#include "tiles.cuh"

namespace diffattn::cuda::sm80 {

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    fwd_kernel(const __grid_constant__ FwdParams params) {
  extern __shared__ __align__(1024) char smem[];
  const Place<T> place(params);
  if (!place.has_rows()) return;
  const HeadMask head_mask(params.mask, place.head_k, place.sequence);
  const float sign = !T::kCapped && params.softmax_scale < 0 ? -1.f : 1.f;  // tanh has it
  IntervalKeys<T> keys(head_mask.first(place.cta_end_row() - 1), place, sign);

  int step_key = keys.begin;
  KeyValueFill<T> fill(params, place.sequence, place.head_k, step_key);
  fill_queries<T>(params, place.sequence, place.head, place.cta_row, smem + T::kStageBytes);
  if (step_key < keys.end)
    fill.start(smem, step_key);
  else
    cute::cp_async_fence();
  cute::cp_async_wait<1>();
  __syncthreads();  // all threads' copies of Q are there

  QFragment<T> q;  // of this warp's map
  load_queries<T>(q, smem + T::kStageBytes, place);
  OFragment<T> o_own = {};    // P·V of this warp's map, half of V's columns
  OFragment<T> o_other = {};  // P·V of its partner's, the same columns
  Softmax<T::kRowTiles> softmax(T::kCapped ? params.softcap : params.softmax_scale);
  const Handover<T> handover(smem, place.warp, place.lane);
  StepTiles<T> tiles(smem, params, place);

  while (true) {
    for (; step_key < keys.end; step_key += T::kKeys) {
      cute::cp_async_wait<0>();
      // All threads' copies of this step are there. All have read the other stage, what their partner
      // handed over and, before the first step, Q: each may be overwritten.
      __syncthreads();
      if (step_key + T::kKeys < keys.end) fill.start(tiles.next_stage(), step_key + T::kKeys);

#pragma unroll
      for (int part = 0; part < T::kKeys / T::kPartKeys; ++part) {
        const int first_key = step_key + part * T::kPartKeys;
        const bool full = keys.seen.are_full(first_key);
        if (T::kSkips && !full && !keys.seen.meets(first_key)) continue;
        SFragment<T> s;
        multiply_scores<T>(s, q, tiles.keys(part), params);
        if (!full) hide(s, keys.mask, place.first_row, first_key, sign, place.lane);
        PFragment<T> p_own, p_other;
        if (part > 0) handover.wait();  // both have read what the part before handed over
        const bool grew = exponentiate<T>(softmax, s, p_own, o_own, handover, smem, part);
        take_over<T>(handover, grew, p_other, o_other);
        multiply_pv<T>(o_own, o_other, p_own, p_other, tiles.values(part));
      }
      tiles.advance();
    }
    if (keys.mask.end_key() == place.sequence.seqlen_k) break;
    keys = {window_of(head_mask, params, place), place, sign};
    fill.skip(keys.begin - step_key);
    step_key = keys.begin;
    fill.start(tiles.stage(), step_key);  // all have read what lay there before the last step
  }
  __syncthreads();  // the last tiles have been read by all: outputs may be staged in their place
  Epilogue<T>(params, place, handover, smem + place.warp * T::OTile::kBytes)
      .run(softmax, SharedOrigins<T>(smem), o_own, o_other);
}

template <class T>
void launch_fwd_kernel(const FwdParams& params, cudaStream_t stream) {
  const int64_t row_blocks = (params.shape.seqlen_q + T::kRows - 1) / T::kRows;
  const int64_t ctas = row_blocks * params.shape.nheads * params.shape.batch;
  check_size("forward: blocks of rows x heads x batch", ctas, kMaxCtas);
  const auto kernel = fwd_kernel<T>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSmemBytes),
        "forward: shared memory");
  kernel<<<unsigned(ctas), T::kThreads, T::kSmemBytes, stream>>>(params);
  check(cudaGetLastError(), "forward: launch");
}

template <class Element, int kHeadDim, int kHeadDimV>
void launch_fwd(const FwdParams& params, cudaStream_t stream) {
  const bool capped = params.softcap > 0;
  using Whole = FwdTraits<Element, kHeadDim, kHeadDimV, false>;
  using Separate = FwdTraits<Element, kHeadDim, kHeadDimV, true>;
  if (params.maps[kSignal].o.data)
    (capped ? launch_fwd_kernel<CappedSeparate<Separate>> : launch_fwd_kernel<Separate>)(params,
                                                                                         stream);
  else
    (capped ? launch_fwd_kernel<Capped<Whole>> : launch_fwd_kernel<Whole>)(params, stream);
}

}  // namespace diffattn::cuda::sm80
