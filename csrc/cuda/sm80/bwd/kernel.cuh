// The backward kernel: a CTA has a block of keys of one KV head and goes over the query rows that
// see them, of every query head of the group.
//
// Per step of 32 rows, eight warps form S1, S2 and dP, 16 keys each, with V in registers; leave
// A = P1 - lambda·P2, dS1 and dS2 in shared memory; and multiply: dV += Aᵀ·u, dK_c += dS_cᵀ·Q_c,
// where a warp has 64 columns of [dV, dK1, dK2], and dQ_c += dS_c·K_c, which leaves by atomics.
#pragma once
#include "bwd.h"
#include "loads.cuh"
#include "writer.cuh"

namespace diffattn::cuda::sm80 {

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    bwd_kernel(const __grid_constant__ BwdParams params,
               const __grid_constant__ BwdWorkspace work) {
  extern __shared__ __align__(1024) char smem[];
  const KeyPlace<T> place(params, work.tickets, smem);
  if (place.keys() <= 0) return;

  const LaneRows<T> at(smem, place.lane);
  VFragment<T> v;
  load_keys<T>(v, params, place, smem);
  const ScoreShare<T> scores(smem, place);
  const MapWriter<T> maps(smem + T::kMaps, scores.first_row_tile * 16, scores.first_key, place.lane,
                          params);
  const GradShare<T> grads(place);
  GradFragment<T> grad = {};
  const DqShare<T> dq(place);
  const Turn turn(work.turns, params.deterministic);

  const RowSteps steps(place.mask, place.first_key, T::kKeys, T::kRows);
  const KeyParts<T> parts(place.mask, place.first_key, place.warp);
  const StepLoader<T> loader(params, work, place.sequence, smem);
  RowWalk next(params, steps, place);
  loader.start_first(next);

  for (int stage = 0; next.left > 0; stage = T::kStageBytes - stage) {
    const int step = next.step, other_stage = T::kStageBytes - stage;
    const unsigned rows = next.block;
    next.advance();
    cute::cp_async_wait<0>();
    // All threads' copies of this step are there. The maps and the other stage have been read.
    __syncthreads();
    loader.start_next(other_stage, next);

    const bool sees = parts.mine_is_seen(step);
    if (sees) {
      const LaneConstants constants(scores.constants + stage);
      ScoreFragment<T> s[2] = {}, dp;
      multiply_scores<T>(s, scores.q(at, stage), scores.k(at));
      multiply_dp<T>(dp, scores.u(at, stage), v, constants);
      maps.run(s, dp, constants, place.mask, parts.mine.is_full(step), step * T::kRows,
               place.first_key);
    }
    __syncthreads();  // the maps of all parts that the step sees are there
    if (sees) grads.accumulate(grad, at, stage);
    if (!T::kTwoStagesU) {
      __syncthreads();  // u has been read by all
      loader.start_next_u(next);
    }
    DqFragment<T> product = {};
    dq.multiply(product, at, parts, step);
    float* const dq_sum = dq.sum_of(rows, work.dq);
    turn.wait(rows, [&] { return place.blocks_behind(params.mask, step); });
    add_dq<T>(dq_sum, product);
    turn.pass_on(rows);
  }
  __syncthreads();  // K, the maps and the rows have been read by all; outputs take their place
  if (!T::kJointK && params.shape.k_components == 1) add_maps<T>(grad, place, smem);
  store_gradients<T>(grad, grads, place, params, smem);
}

template <class Element, int kHeadDim, int kHeadDimV>
void launch_bwd(const BwdParams& params, const BwdWorkspace& work, cudaStream_t stream) {
  using T = BwdTraits<Element, kHeadDim, kHeadDimV>;
  const Shape& shape = params.shape;
  const int64_t row_ctas = ceil_div(shape.seqlen_q, kRowBlock) * shape.nheads * shape.batch;
  const int64_t full = params.mask.full_heads();
  const int64_t key_ctas =
      (full * BlocksOfHead(shape, 0, T::kKeys).all +
       (shape.nheads_k - full) * BlocksOfHead(shape, params.mask.sink, T::kKeys).all) *
      shape.batch;
  check_size("backward: blocks of rows x heads x batch", row_ctas, kMaxCtas);
  check_size("backward: blocks of keys x heads x batch", key_ctas, kMaxCtas);
  if (row_ctas) prepare_kernel<T><<<unsigned(row_ctas), kPrepareThreads, 0, stream>>>(params, work);
  check(cudaGetLastError(), "backward: launch of the preparation");
  const auto kernel = params.softcap > 0 ? bwd_kernel<Capped<T>> : bwd_kernel<T>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSmemBytes),
        "backward: shared memory");
  if (key_ctas) kernel<<<unsigned(key_ctas), T::kThreads, T::kSmemBytes, stream>>>(params, work);
  check(cudaGetLastError(), "backward: launch");
  const auto round = params.partial ? round_dq_kernel<T, true> : round_dq_kernel<T, false>;
  if (row_ctas) round<<<unsigned(row_ctas), kRoundThreads, 0, stream>>>(params, work);
  check(cudaGetLastError(), "backward: launch of the rounding of dq");
}

}  // namespace diffattn::cuda::sm80
