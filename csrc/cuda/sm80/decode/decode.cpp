// How a step of decoding is cut into CTAs, and which kernels serve it.
#include "decode.h"

#include "../../common/limits.h"
#include "../shared/headdims.h"

namespace diffattn::cuda::sm80 {
namespace {

constexpr int64_t kBlock = 16, kLeastKeys = 512;  // keys of a block, and of a split chosen here
constexpr int64_t kMostSplits = 256;
constexpr int64_t kFewNewKeys = 64;  // up to this many are appended by the CTAs that decode

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The bytes that a row's results take in the workspace, per split.
int64_t partial_bytes(const Shape& s) { return 2 * (s.headdim_v + 2) * int64_t(sizeof(float)); }

// The fewest splits that come within a tenth of the best at two things together: few processors idle
// in the last wave of CTAs, and few bytes of workspace compared with those of the cache.
int64_t choose_splits(const Shape& s, int64_t rows, int64_t units, int64_t most) {
  int device = 0, processors = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "device");
  const double cache = 2. * double(s.k_components * s.headdim + s.headdim_v) * double(s.seqlen_k);
  const double workspace = double(rows * partial_bytes(s)) / cache;  // of one split
  const auto worth = [&](int64_t splits) {
    const int64_t ctas = units * splits;
    const double used = double(ctas) / double(ceil_div(ctas, processors) * processors);
    return splits == 1 ? used : used / (1 + double(splits) * workspace);
  };
  double best = 0;
  for (int64_t n = 1; n <= most; ++n) best = worth(n) > best ? worth(n) : best;
  int64_t n = 1;
  while (worth(n) < 0.9 * best) ++n;
  return n;
}

// A plan is also made where there are no rows or keys, or too many of them; it is not used then.
Divisor divisor(int64_t n) { return int(n < 1 ? 1 : n > kMaxSeqlen ? kMaxSeqlen : n); }

DecodePlan plan_of(const DecodeParams& p) {
  const Shape& s = p.shape;
  DecodePlan plan{};
  plan.seqlen_q = divisor(s.seqlen_q);
  plan.nheads = divisor(s.nheads);
  plan.nheads_k = divisor(s.nheads_k);
  plan.group = divisor(s.nheads / s.nheads_k);
  plan.page = divisor(p.cache.paging.block_table ? p.cache.paging.page_size : kMaxSeqlen);
  const int64_t rows = s.nheads / s.nheads_k * s.seqlen_q;
  plan.rows = rows <= kFewRows ? kFewRows : kManyRows;
  plan.row_blocks = divisor(ceil_div(rows, plan.rows));
  plan.append_first = p.cache.seqlen_new > kFewNewKeys || rows == 0;
  plan.least_blocks = 1;
  if (p.num_splits > 0) {
    const int64_t blocks = ceil_div(s.seqlen_k, kBlock);
    plan.splits = divisor(p.num_splits < blocks ? p.num_splits : blocks);
    return plan;
  }
  const int64_t most = ceil_div(s.seqlen_k, kLeastKeys);
  const int64_t units = s.batch * s.nheads_k * ceil_div(rows, plan.rows);
  plan.splits = divisor(choose_splits(s, rows, units, most < kMostSplits ? most : kMostSplits));
  if (plan.splits.divisor > 1) plan.least_blocks = int(kLeastKeys / kBlock);
  return plan;
}

int64_t rows_of(const Shape& s) { return s.batch * s.nheads * s.seqlen_q; }

DecodePlan plan_with_workspace(const DecodeParams& p, void* workspace) {
  DecodePlan plan = plan_of(p);
  const int64_t parts = rows_of(p.shape) * plan.splits.divisor * 2;  // of rows, splits, components
  plan.out = static_cast<float*>(workspace);
  plan.lse = plan.out + parts * p.shape.headdim_v;
  plan.rest = plan.lse + parts;
  plan.counts = reinterpret_cast<int*>(plan.rest + parts);
  return plan;
}

using Launch = void (*)(const DecodeParams&, const DecodePlan&, cudaStream_t);

// [V is twice as wide as Q][bf16]
template <int kHeadDim, int kRows>
constexpr Launch kOfRows[2][2] = {{launch_decode<__half, kHeadDim, kHeadDim, kRows>,
                                   launch_decode<__nv_bfloat16, kHeadDim, kHeadDim, kRows>},
                                  {launch_decode<__half, kHeadDim, 2 * kHeadDim, kRows>,
                                   launch_decode<__nv_bfloat16, kHeadDim, 2 * kHeadDim, kRows>}};

using OfRows = const Launch (*)[2];

// [many rows][V is twice as wide as Q][bf16]
template <int kHeadDim>
constexpr OfRows kLaunches[2] = {kOfRows<kHeadDim, kFewRows>, kOfRows<kHeadDim, kManyRows>};

}  // namespace

int64_t decode_workspace(const DecodeParams& p) {
  const int64_t splits = plan_of(p).splits.divisor;
  if (splits == 1) return 0;
  return rows_of(p.shape) * (splits * partial_bytes(p.shape) + int64_t(sizeof(int)));
}

void decode(const DecodeParams& p, void* workspace, cudaStream_t stream) {
  const Shape& s = p.shape;
  check_size("cache: sequences or pages", p.cache.blocks, kMaxSeqlen);
  check_size("page_size", p.cache.paging.page_size, kMaxSeqlen);
  check_size("seqlen_new", p.cache.seqlen_new, kMaxSeqlen);
  check_size("query rows of a KV head", s.nheads / s.nheads_k * s.seqlen_q, kMaxSeqlen);
  const DecodePlan plan = plan_with_workspace(p, workspace);
  if (plan.append_first && p.cache.seqlen_new > 0) launch_append(p, plan, stream);
  if (rows_of(s) == 0) return;
  const int64_t d = s.headdim;
  const auto& launches =
      for_headdim(d, kLaunches<32>, kLaunches<64>, kLaunches<96>, kLaunches<128>);
  launches[plan.rows == kManyRows][s.headdim_v != d][p.dtype == DType::bf16](p, plan, stream);
  if (plan.splits.divisor > 1) launch_combine(p, plan, stream);
}

}  // namespace diffattn::cuda::sm80
