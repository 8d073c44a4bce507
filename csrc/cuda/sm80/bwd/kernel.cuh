// The backward kernel: a CTA has a block of keys of one KV head and goes over the query rows that
// see them, of every query head of the group.
//
// Per step of 32 rows, eight warps form S1, S2 and dP, 16 keys each, with V in registers; leave
// A = P1 - lambda·P2, dS1 and dS2 in shared memory; and multiply: dV += Aᵀ·u, dK_c += dS_cᵀ·Q_c,
// where a warp has 64 columns of [dV, dK1, dK2], and dQ_c += dS_c·K_c, which leaves by atomics.
#pragma once
#include "../shared/accumulators.cuh"
#include "bwd.h"
#include "dq.cuh"
#include "prepare.cuh"
#include "step.cuh"

namespace diffattn::cuda::sm80 {

// Where a CTA is on its way through the query heads of a group and their blocks of rows. Offsets
// are carried along, for to multiply them out costs the loop dearly.
struct RowWalk {
  int left;        // steps from this one on
  int step;        // of the sequence's blocks of rows
  unsigned block;  // [block, head] of the workspace
  int64_t q;       // bytes from Q's first row of the sequence and head 0

  __device__ RowWalk(const BwdParams& params, const RowSteps& steps, int64_t first_block,
                     int head_k)
      : begin_(steps.begin), end_(steps.end), nheads_(unsigned(params.shape.nheads)) {
    const Shape& shape = params.shape;
    const int group = int(unsigned(shape.nheads) / unsigned(shape.nheads_k));
    const int head = head_k * group;
    left = (end_ - begin_) * group;
    step = begin_;
    block = unsigned((first_block + step) * shape.nheads + head);
    const View& view = params.maps[kSignal].q;
    q = (head * view.head + step * kRowBlock * view.row) * 2;
    q_step_ = kRowBlock * view.row * 2;
    q_head_ = view.head * 2;
  }

  __device__ void advance() {
    --left;
    ++step;
    block += nheads_;
    q += q_step_;
    if (__builtin_expect(step == end_, false)) {  // the next head
      step = begin_;
      block += 1 - (end_ - begin_) * nheads_;
      q += q_head_ - (end_ - begin_) * q_step_;
    }
  }

 private:
  int begin_, end_;
  unsigned nheads_;
  int64_t q_step_, q_head_;
};

// Starts the copies of a step's rows.
template <class T>
class StepLoader {
  using Element = typename T::Element;

 public:
  __device__ StepLoader(const BwdParams& params, const BwdWorkspace& work, const Sequence& sequence,
                        char* smem)
      : smem_(smem),
        seqlen_q_(sequence.seqlen_q),
        fill_q_(static_cast<const Element*>(params.maps[kSignal].q.data) +
                    sequence.q_offset(params.maps[kSignal].q),
                params.maps[kSignal].q.row, int(params.shape.headdim), threadIdx.x),
        rows_(work.rows),
        noise_bytes_(bytes_to_noise(params.maps[kSignal].q, params.maps[kNoise].q)) {}

  __device__ void start_q(int stage, const RowWalk& at) const {
    char* const to = smem_ + T::kQ + stage;
    const int rows_left = seqlen_q_ - at.step * T::kRows;
    fill_q_.start(to, rows_left, at.q);
    fill_q_.start(to + T::QTile::kBytes, rows_left, at.q + noise_bytes_);
    copy<0, kConstantsBytes>(smem_ + T::kStages + stage, at);
  }

  __device__ void start_u(int stage, const RowWalk& at) const {
    copy<kConstantsBytes, T::UTile::kBytes>(smem_ + T::kU + stage, at);
  }

 private:
  // Some of what the preparation left of the rows: it is laid out as it is wanted here.
  template <int kFrom, int kBytes>
  __device__ void copy(char* to, const RowWalk& at) const {
    using Copy = cute::SM80_CP_ASYNC_CACHEGLOBAL<cute::uint128_t>;
    // A warp's pieces are neighbours if that comes out even: then one address serves them all.
    constexpr int kShare = kBytes / T::kWarps;
    constexpr bool kEven = kShare % 512 == 0;
    constexpr int kStep = kEven ? 512 : T::kThreads * 16, kEnd = kEven ? kShare : kBytes;
    const unsigned mine =
        kEven ? threadIdx.x / 32 * kShare + threadIdx.x % 32 * 16 : threadIdx.x * 16;
    const char* const from = rows_ + (uint64_t(at.block) * T::kRowsBytes + mine);
#pragma unroll
    for (int i = 0; i < kEnd; i += kStep)
      if (i + kStep <= kEnd || i + mine < kBytes)
        Copy::copy(*reinterpret_cast<const cute::uint128_t*>(from + (kFrom + i)),
                   *reinterpret_cast<cute::uint128_t*>(to + mine + i));
  }

  char* smem_;
  int seqlen_q_;
  PanelFill<typename T::QTile, T::kThreads> fill_q_;
  const char* rows_;
  int64_t noise_bytes_;
};

// Brings K to shared memory for good, and V through it into registers.
template <class T>
__device__ void load_keys(const BwdParams& params, const Sequence& sequence, int head_k,
                          int first_key, int warp_key, int lane, char* smem, VFragment<T>& v) {
  using Element = typename T::Element;
  const auto rows = [&](const View& view) {
    return static_cast<const Element*>(view.data) + sequence.k_offset(view) + head_k * view.head +
           first_key * view.row;
  };
  const int keys_left = sequence.seqlen_k - first_key;
#pragma unroll
  for (int comp = 0; comp < T::kComponentsK; ++comp)
    PanelFill<typename T::KTile, T::kThreads>(rows(params.maps[comp].k), params.maps[comp].k.row,
                                              int(params.shape.headdim), threadIdx.x)
        .start(smem + comp * T::KTile::kBytes, keys_left);
  PanelFill<typename T::VTile, T::kThreads>(rows(params.v), params.v.row,
                                            int(params.shape.headdim_v), threadIdx.x)
      .start(smem + T::kStages, keys_left);
  cute::cp_async_fence();
  cute::cp_async_wait<0>();
  __syncthreads();  // K and V, which all threads copied, are there
  const char* const v_rows = smem + T::kStages + chunks_first<typename T::VTile>(lane);
#pragma unroll
  for (int depth = 0; depth < T::kHeadDimV / 16; ++depth)
    load_matrices(v[depth], v_rows + T::VTile::blocks(warp_key / 16, depth));
  __syncthreads();  // V has been read; Q and u may take its place
}

// Which block of keys a CTA has. In a fixed order of additions to dQ a CTA waits for those of the
// blocks behind its own, so these must have been taken before it: a ticket orders them.
struct KeyBlock {
  int batch, head_k, index;

  // ticket: a place in shared memory.
  __device__ KeyBlock(const BwdParams& params, unsigned* tickets, unsigned key_blocks,
                      unsigned* ticket) {
    unsigned n = blockIdx.x;
    if (params.deterministic) {
      if (threadIdx.x == 0) *ticket = atomicAdd(tickets, 1u);
      __syncthreads();  // the ticket has been drawn
      n = *ticket;
    }
    const auto nheads_k = unsigned(params.shape.nheads_k);
    index = int(n % key_blocks);
    if (params.deterministic) index = int(key_blocks) - 1 - index;
    head_k = int(n / key_blocks % nheads_k);
    batch = int(n / key_blocks / nheads_k);
  }
};

// Rounds and writes a warp's part of dV and dK.
template <class T>
class GradWriter {
  using Element = typename T::Element;
  static constexpr int kFragments = T::kGradKeyTiles * T::kGradColTiles * 4;
  using Acc = float[T::kGradKeyTiles][T::kGradColTiles][4];

 public:
  __device__ GradWriter(const BwdParams& params, const Sequence& sequence, int head_k,
                        int first_key, const GradPart<T>& part, int warp, int lane, char* smem)
      : p_(params),
        sequence_(sequence),
        head_k_(head_k),
        first_key_(first_key + part.first_key),
        part_(part),
        warp_(warp),
        lane_(lane),
        smem_(smem) {}

  __device__ void run(GradFragment<T>& grad) const {
    if (T::kJointK) {
      store(grad[0], p_.dv, int(p_.shape.headdim_v));
      scale(grad[T::kJointK]);
      store(grad[T::kJointK], p_.map_grads[kSignal].dk, int(p_.shape.headdim));
      return;
    }
    if (p_.shape.k_components == 1) add_components(grad[0]);
    if (part_.which == 0) {
      store(grad[0], p_.dv, int(p_.shape.headdim_v));
    } else if (part_.which <= p_.shape.k_components) {
      scale(grad[0]);
      store(grad[0], p_.map_grads[part_.which - 1].dk, int(p_.shape.headdim));
    }
  }

 private:
  __device__ void scale(Acc& grad) const {
    const float factor = float(p_.softmax_scale);
#pragma unroll
    for (int m = 0; m < T::kGradKeyTiles; ++m)
#pragma unroll
      for (int n = 0; n < T::kGradColTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) grad[m][n][i] *= factor;
  }

  // Where V is twice as wide as a K that both components share, dK is the sum of two warps' parts.
  __device__ void add_components(Acc& grad) const {
    const int part = warp_ / T::kGradColGroups * T::kQuarter + warp_ % T::kQuarter;
    float* const sums = reinterpret_cast<float*>(smem_) + part * kFragments * 32 + lane_;
    float* const mine = &grad[0][0][0];
    if (part_.which == 2)
#pragma unroll
      for (int i = 0; i < kFragments; ++i) sums[i * 32] = mine[i];
    __syncthreads();  // the second component's part is there
    if (part_.which == 1)
#pragma unroll
      for (int i = 0; i < kFragments; ++i) mine[i] += sums[i * 32];
    __syncthreads();  // it has been read, and its place can be used again
  }

  __device__ void store(const Acc& grad, const View& to, int end_col) const {
    const int64_t offset = sequence_.k_offset(to) + head_k_ * to.head;
    store_rows<Element, typename T::OutTile>(grad, smem_ + warp_ * T::OutTile::kBytes, to, offset,
                                             first_key_, sequence_.seqlen_k, part_.first_col,
                                             end_col, lane_);
  }

  const BwdParams& p_;
  const Sequence& sequence_;
  int head_k_, first_key_;
  const GradPart<T>& part_;
  int warp_, lane_;
  char* smem_;
};

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    bwd_kernel(const __grid_constant__ BwdParams params,
               const __grid_constant__ BwdWorkspace work) {
  extern __shared__ __align__(1024) char smem[];
  const Shape& shape = params.shape;
  // The shuffle tells the compiler that a warp's number, and all that follows from it, is uniform.
  const int lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  // The ticket lies where nothing else comes before the first barrier.
  const KeyBlock tile(params, work.tickets, unsigned(shape.seqlen_k + T::kKeys - 1) / T::kKeys,
                      reinterpret_cast<unsigned*>(smem + T::kMaps));
  const Sequence sequence(shape, params.varlen, tile.batch);
  const int first_key = tile.index * T::kKeys;
  if (first_key >= sequence.seqlen_k) return;

  // Where a lane's row of the first block of an operand lies, if that block is a tile's first.
  const char* const rows_at = smem + keep(rows_first<typename T::MapTile>(lane));
  const char* const chunks_at = smem + keep(chunks_first<typename T::MapTile>(lane));

  // S1, S2, dP: this warp's rows of a step and its keys.
  const int first_row_tile = warp % T::kRowGroups * T::kRowTiles;
  const int warp_key = warp / T::kRowGroups * 16;
  uint32_t v[T::kHeadDimV / 16][4];  // [depth][key tile, half of the depth]
  load_keys<T>(params, sequence, tile.head_k, first_key, warp_key, lane, smem, v);
  const int score_rows = keep_uniform(T::UTile::blocks(first_row_tile, 0));
  const int score_keys = keep_uniform(T::KTile::blocks(warp_key / 16, 0));
  const char* const constants_at =
      smem + T::kStages + keep(LaneConstants::offset(first_row_tile, lane));
  const MapWriter<T> maps(smem + T::kMaps, first_row_tile * 16, warp_key, lane,
                          float(params.softmax_scale) * float(M_LOG2E));

  // dV, dK: its keys and columns.
  const GradPart<T> part(warp);
  const int grad_map = keep_uniform(T::kMaps + part.which * T::MapTile::kBytes +
                                    T::MapTile::blocks(0, part.first_key / 16));
  const int grad_rows_of = part.which == 0 ? T::kU : T::kQ + (part.which - 1) * T::QTile::kBytes;
  const int grad_rows =
      keep_uniform((T::kJointK ? 0 : grad_rows_of) + T::UTile::blocks(0, part.first_col / 16));
  const bool grad_rows_are_staged = T::kTwoStagesU || part.which != 0;
  GradFragment<T> grad = {};

  // dQ: its rows and columns.
  const int dq_group = warp % T::kDqColGroups, dq_comp = dq_group / (T::kDqColGroups / 2);
  const int dq_row_tile = warp / T::kDqColGroups * T::kDqRowTiles;
  const int dq_block = dq_group % (T::kDqColGroups / 2) * T::kDqCols / 16;
  const int dq_map = keep_uniform(T::kMaps + (1 + dq_comp) * T::MapTile::kBytes +
                                  T::MapTile::blocks(dq_row_tile, 0));
  const int dq_keys =
      keep_uniform(dq_comp % T::kComponentsK * T::KTile::kBytes + T::KTile::blocks(0, dq_block));
  const unsigned dq_to =
      4 * keep(lane + DqLayout<T::kHeadDim>::tile(dq_row_tile, dq_group * T::kDqCols / 8));
  const Turn turn(work.turns, params.deterministic);

  const SequenceMask mask(params.mask, sequence.seqlen_q, sequence.seqlen_k);
  const RowSteps steps(mask, first_key, T::kKeys, sequence.seqlen_k, T::kRows);
  const KeyParts<T> parts(mask, first_key, sequence.seqlen_k, warp);
  const StepLoader<T> loader(params, work, sequence, smem);
  RowWalk next(params, steps,
               BwdWorkspace::first_block(shape, params.varlen, tile.batch, sequence.q_begin),
               tile.head_k);
  if (next.left > 0) {
    loader.start_q(0, next);
    loader.start_u(0, next);
    cute::cp_async_fence();
  }

  for (int stage = 0; next.left > 0; stage = T::kStageBytes - stage) {
    const int step = next.step, other_stage = T::kStageBytes - stage;
    const unsigned block = next.block;
    next.advance();
    cute::cp_async_wait<0>();
    // All threads' copies of this step are there. The maps and the other stage have been read.
    __syncthreads();
    if (next.left > 0) {
      loader.start_q(other_stage, next);
      if (T::kTwoStagesU) loader.start_u(other_stage, next);
      cute::cp_async_fence();
    }

    const bool sees = parts.mine_is_seen(step);
    if (sees) {
      const LaneConstants constants(constants_at + stage);
      ScoreFragment<T> s[2] = {}, dp;
      multiply_scores<T>(s, rows_at + score_rows + T::kQ + stage, chunks_at + score_keys);
      multiply_dp<T>(dp, rows_at + score_rows + T::kU + (T::kTwoStagesU ? stage : 0), v, constants);
      if (parts.mine.is_full(step))
        maps.template run<false>(s, dp, constants, mask, step * T::kRows, first_key);
      else
        maps.template run<true>(s, dp, constants, mask, step * T::kRows, first_key);
    }
    __syncthreads();  // the maps of all parts that the step sees are there

    if (sees) {
      const char *const rows = rows_at + grad_rows, *const map = chunks_at + grad_map;
      if constexpr (T::kJointK) {
        accumulate_keys<T>(grad[0], map, rows + T::kU + (T::kTwoStagesU ? stage : 0));
        accumulate_keys<T>(grad[1], map + T::MapTile::kBytes, rows + T::kQ + stage);
        accumulate_keys<T>(grad[1], map + 2 * T::MapTile::kBytes,
                           rows + T::kQ + T::QTile::kBytes + stage);
      } else {
        accumulate_keys<T>(grad[0], map, rows + (grad_rows_are_staged ? stage : 0));
      }
    }
    if (!T::kTwoStagesU) {
      __syncthreads();  // u has been read by all
      if (next.left > 0) {
        loader.start_u(0, next);
        cute::cp_async_fence();
      }
    }
    const int last_row = min((step + 1) * T::kRows, sequence.seqlen_q) - 1;
    char* const dq = reinterpret_cast<char*>(work.dq) +
                     (uint64_t(block) * (DqLayout<T::kHeadDim>::kFloats * 4) + dq_to);
    accumulate_dq<T>(rows_at + dq_map, rows_at + dq_keys, reinterpret_cast<float*>(dq),
                     parts.first_is_seen(step), parts.last_is_seen(step), turn, block,
                     int(ceil_div(mask.end(last_row), T::kKeys)) - 1 - tile.index);
  }
  __syncthreads();  // K, the maps and the rows have been read by all; outputs take their place
  GradWriter<T>(params, sequence, tile.head_k, first_key, part, warp, lane, smem).run(grad);
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
