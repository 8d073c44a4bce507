// Which rows a CTA goes over, and how they and its keys reach shared memory.
#pragma once
#include "panel.cuh"
#include "place.cuh"
#include "prepare.cuh"
#include "shares.cuh"

namespace diffattn::cuda::sm80 {

// Where a CTA is on its way through the query heads of a group and their blocks of rows. It carries offsets
// along, because to multiply them out in each step would slow down the loop.
struct RowWalk {
  int left;        // steps from this one on
  int step;        // of the sequence's blocks of rows
  unsigned block;  // [block, head] of the workspace
  int64_t q;       // bytes from Q's first row of the sequence and head 0

  template <class T>
  __device__ RowWalk(const BwdParams& params, const RowSteps& steps, const KeyPlace<T>& place)
      : begin_(steps.begin), end_(steps.end), nheads_(unsigned(params.shape.nheads)) {
    const Shape& shape = params.shape;
    const int group = int(unsigned(shape.nheads) / unsigned(shape.nheads_k));
    const int head = place.head_k * group;
    const int64_t first_block =
        BwdWorkspace::first_block(shape, params.varlen, place.batch, place.sequence.q_begin);
    left = (end_ - begin_) * group;
    step = begin_;
    block = unsigned((first_block + step) * shape.nheads + head);
    const View& view = params.maps[kSignal].q;
    q = (head * view.head + step * kRowBlock * view.row) * 2;
    q_step_ = kRowBlock * view.row * 2;
    q_head_ = view.head * 2;
    head_block_ = block;
    head_q_ = q;
  }

  __device__ void advance() {
    --left;
    ++step;
    block += nheads_;
    q += q_step_;
    if (__builtin_expect(step == end_, false)) {  // the next head
      step = begin_;
      block = ++head_block_;
      q = head_q_ += q_head_;
    }
  }

 private:
  int begin_, end_;
  unsigned nheads_, head_block_;  // head_..: of the head's first step
  int64_t q_step_, q_head_, head_q_;
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

  __device__ void start_first(const RowWalk& at) const {
    if (at.left <= 0) return;
    start_q(0, at);
    start_u(0, at);
    cute::cp_async_fence();
  }

  // What is copied for the next step while this one is computed. If there is one place for u, it is free only
  // later.
  __device__ void start_next(int stage, const RowWalk& at) const {
    if (at.left <= 0) return;
    start_q(stage, at);
    if (T::kTwoStagesU) start_u(stage, at);
    cute::cp_async_fence();
  }
  __device__ void start_next_u(const RowWalk& at) const {
    if (at.left <= 0) return;
    start_u(0, at);
    cute::cp_async_fence();
  }

  __device__ void start_u(int stage, const RowWalk& at) const {
    copy<kConstantsBytes, T::UTile::kBytes>(smem_ + T::kU + stage, at);
  }

 private:
  // Copies a part of what the preparation left for the rows. It lies there in the order that is needed here.
  template <int kFrom, int kBytes>
  __device__ void copy(char* to, const RowWalk& at) const {
    using Copy = cute::SM80_CP_ASYNC_CACHEGLOBAL<cute::uint128_t>;
    // If the bytes divide evenly, a warp's pieces are neighbours, and one address serves all of them.
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

// Loads K into shared memory, where it stays, and V through shared memory into registers.
template <class T>
__device__ void load_keys(VFragment<T>& v, const BwdParams& params, const KeyPlace<T>& place,
                          char* smem) {
  using Element = typename T::Element;
  const auto rows = [&](const View& view) {
    return static_cast<const Element*>(view.data) + place.sequence.k_offset(view) +
           place.head_k * view.head + place.first_key * view.row;
  };
#pragma unroll
  for (int comp = 0; comp < T::kComponentsK; ++comp)
    PanelFill<typename T::KTile, T::kThreads>(rows(params.maps[comp].k), params.maps[comp].k.row,
                                              int(params.shape.headdim), threadIdx.x)
        .start(smem + comp * T::KTile::kBytes, place.keys());
  PanelFill<typename T::VTile, T::kThreads>(rows(params.v), params.v.row,
                                            int(params.shape.headdim_v), threadIdx.x)
      .start(smem + T::kStages, place.keys());
  cute::cp_async_fence();
  cute::cp_async_wait<0>();
  __syncthreads();  // K and V, which all threads copied, are there
  const int first_key = ScoreShare<T>::key_of(place.warp);
  const char* const v_rows = smem + T::kStages + chunks_first<typename T::VTile>(place.lane);
#pragma unroll
  for (int depth = 0; depth < T::kHeadDimV / 16; ++depth)
    load_matrices(v[depth], v_rows + T::VTile::blocks(first_key / 16, depth));
  __syncthreads();  // V has been read; Q and u may take its place
}

}  // namespace diffattn::cuda::sm80
