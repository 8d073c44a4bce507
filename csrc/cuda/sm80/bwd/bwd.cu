// The memory that the backward's kernels share, and which of them serves a call.
#include "bwd.h"

#include "../../common/headdims.h"

namespace diffattn::cuda::sm80 {
namespace {

// Hands out parts of the workspace, or, with base 0, only adds up their sizes.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}

  template <class Part>
  Part* take(int64_t count) {
    char* const part = base_ + used_;
    used_ += ceil_div(count * int64_t(sizeof(Part)), kAlignment) * kAlignment;
    return reinterpret_cast<Part*>(part);
  }
  int64_t used() const { return used_; }

 private:
  static constexpr int64_t kAlignment = 128;
  char* base_;
  int64_t used_ = 0;
};

// The first `zeros` bytes have to be zero at the start.
BwdWorkspace carve(const BwdParams& params, Carver& carver, int64_t& zeros) {
  const Shape& s = params.shape;
  const int64_t most_blocks = params.varlen.cu_seqlens_q
                                  ? params.varlen.total_q / kRowBlock + s.batch
                                  : ceil_div(s.seqlen_q, kRowBlock) * s.batch;
  const int64_t blocks = most_blocks * s.nheads;
  BwdWorkspace work{};
  work.blocks = most_blocks;
  work.tickets = carver.take<unsigned>(1);
  work.turns = carver.take<int>(params.deterministic ? blocks : 0);
  work.weight_parts = carver.take<float>(params.dnorm_weight ? blocks * s.headdim_v : 0);
  zeros = carver.used();
  const int64_t headdim = ceil_div(s.headdim, 32) * 32,
                headdim_v = is_narrow(s) ? headdim : 2 * headdim;
  const int64_t u_bytes = kRowBlock * headdim_v * 2;
  work.rows = carver.take<char>(blocks * (kConstantsBytes + u_bytes));
  work.dq = carver.take<float>(blocks * kRowBlock * 2 * headdim);
  return work;
}

// A CTA sums 32 columns, always in the same order: thread (x, y) every 32nd part of column x, and then thread
// (x, 0) the sums of these threads.
__global__ void sum_weight_parts(const float* parts, int64_t count, int columns, float* sum) {
  __shared__ float sums[32][32];
  const int col = blockIdx.x * 32 + threadIdx.x;
  float mine = 0;
  if (col < columns)
    for (int64_t i = threadIdx.y; i < count; i += 32) mine += parts[i * columns + col];
  sums[threadIdx.y][threadIdx.x] = mine;
  __syncthreads();  // all threads' sums are there
  if (threadIdx.y != 0 || col >= columns) return;
  float total = 0;
#pragma unroll
  for (int y = 0; y < 32; ++y) total += sums[y][threadIdx.x];
  sum[col] = total;
}

using Launch = void (*)(const BwdParams&, const BwdWorkspace&, cudaStream_t);

// [wide kernels][bf16]
template <int kHeadDim>
constexpr Launch kLaunches[2][2] = {
    {launch_bwd<__half, kHeadDim, kHeadDim>, launch_bwd<__nv_bfloat16, kHeadDim, kHeadDim>},
    {launch_bwd<__half, kHeadDim, 2 * kHeadDim>,
     launch_bwd<__nv_bfloat16, kHeadDim, 2 * kHeadDim>}};

}  // namespace

int64_t bwd_workspace(const BwdParams& params) {
  Carver carver(nullptr);
  int64_t zeros = 0;
  carve(params, carver, zeros);
  return carver.used();
}

void bwd(const BwdParams& params, void* workspace, cudaStream_t stream) {
  Carver carver(workspace);
  int64_t zeros = 0;
  const BwdWorkspace work = carve(params, carver, zeros);
  check(cudaMemsetAsync(workspace, 0, zeros, stream), "backward: clearing the workspace");

  const int64_t d = params.shape.headdim;
  const auto& launches =
      for_headdim(d, kLaunches<32>, kLaunches<64>, kLaunches<96>, kLaunches<128>);
  launches[!is_narrow(params.shape)][params.dtype == DType::bf16](params, work, stream);

  if (!params.dnorm_weight) return;
  const int columns = int(params.shape.headdim_v);
  sum_weight_parts<<<unsigned(ceil_div(columns, 32)), dim3(32, 32), 0, stream>>>(
      work.weight_parts, work.blocks * params.shape.nheads, columns,
      static_cast<float*>(params.dnorm_weight));
  check(cudaGetLastError(), "backward: launch of the norm weight's sum");
}

}  // namespace diffattn::cuda::sm80
