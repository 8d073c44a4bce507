// The backward kernel: a CTA has a block of keys of one KV head and goes over the query rows that
// see them, of every query head of the group.
//
// Per step of 32 rows, eight warps form S1, S2 and dP, 16 keys each, with V in registers; leave
// A = P1 - lambda·P2, dS1 and dS2 in shared memory; and multiply: dV += Aᵀ·u, dK_c += dS_cᵀ·Q_c,
// where a warp has 64 columns of [dV, dK1, dK2], and dQ_c += dS_c·K_c, which leaves by atomics.
#pragma once
#include "bwd.h"
#include "writer.cuh"

namespace diffattn::cuda::sm80 {

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    bwd_kernel(const __grid_constant__ BwdParams params,
               const __grid_constant__ BwdWorkspace work) {
  extern __shared__ __align__(1024) char smem[];
  // The shuffle tells the compiler that a warp's number, and all that follows from it, is uniform.
  const int lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  // The ticket lies where nothing else comes before the first barrier.
  const KeyBlock<T> block(params, work.tickets, reinterpret_cast<unsigned*>(smem + T::kMaps));
  const Sequence sequence(params.shape, params.varlen, block.batch);
  const int first_key = block.first_key(), seqlen_k = sequence.seqlen_k;
  if (first_key >= seqlen_k) return;

  const LaneRows<T> at(smem, lane);
  VFragment<T> v;
  load_keys<T>(params, block, sequence, ScoreShare<T>::key_of(warp), lane, smem, v);
  const ScoreShare<T> scores(smem, warp, lane);
  const MapWriter<T> maps(smem + T::kMaps, scores.first_row_tile * 16, scores.first_key, lane,
                          float(params.softmax_scale) * float(M_LOG2E));
  const GradShare<T> grads(warp);
  GradFragment<T> grad = {};
  const DqShare<T> dq(warp, lane);
  const Turn turn(work.turns, params.deterministic);

  const SequenceMask mask(params.mask, sequence.seqlen_q, seqlen_k);
  const RowSteps steps(mask, first_key, T::kKeys, seqlen_k, T::kRows);
  const KeyParts<T> parts(mask, first_key, seqlen_k, warp);
  const StepLoader<T> loader(params, work, sequence, smem);
  RowWalk next(params, steps, block, sequence);
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
      maps.run(s, dp, constants, mask, parts.mine.is_full(step), step * T::kRows, first_key);
    }
    __syncthreads();  // the maps of all parts that the step sees are there
    if (sees) grads.accumulate(grad, at, stage);
    if (!T::kTwoStagesU) {
      __syncthreads();  // u has been read by all
      loader.start_next_u(next);
    }
    dq.accumulate(work.dq, at, rows, parts, step, turn, [&] {
      const int last_row = min((step + 1) * T::kRows, sequence.seqlen_q) - 1;
      return int(ceil_div(mask.end(last_row), T::kKeys)) - 1 - block.index;
    });
  }
  __syncthreads();  // K, the maps and the rows have been read by all; outputs take their place
  GradWriter<T>(params, sequence, block, grads, warp, lane, smem).run(grad);
}

template <class Element, int kHeadDim, int kHeadDimV>
void launch_bwd(const BwdParams& params, const BwdWorkspace& work, cudaStream_t stream) {
  using T = BwdTraits<Element, kHeadDim, kHeadDimV>;
  const Shape& shape = params.shape;
  const int64_t row_ctas = ceil_div(shape.seqlen_q, kRowBlock) * shape.nheads * shape.batch;
  const int64_t key_ctas = ceil_div(shape.seqlen_k, T::kKeys) * shape.nheads_k * shape.batch;
  check_size("backward: blocks of rows x heads x batch", row_ctas, kMaxCtas);
  check_size("backward: blocks of keys x heads x batch", key_ctas, kMaxCtas);
  if (row_ctas) prepare_kernel<T><<<unsigned(row_ctas), kPrepareThreads, 0, stream>>>(params, work);
  check(cudaGetLastError(), "backward: launch of the preparation");
  const auto kernel = bwd_kernel<T>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSmemBytes),
        "backward: shared memory");
  if (key_ctas) kernel<<<unsigned(key_ctas), T::kThreads, T::kSmemBytes, stream>>>(params, work);
  check(cudaGetLastError(), "backward: launch");
  if (row_ctas) round_dq_kernel<T><<<unsigned(row_ctas), kRoundThreads, 0, stream>>>(params, work);
  check(cudaGetLastError(), "backward: launch of the rounding of dq");
}

}  // namespace diffattn::cuda::sm80
