// How a step of decoding is cut into CTAs, and which kernels serve it.
#include "decode.h"

#include <algorithm>
#include <cmath>

#include "../common/headdims.h"
#include "../common/limits.h"

namespace diffattn::cuda::decoding {
namespace {

constexpr int64_t kBlock = 16, kLeastKeys = 512;  // keys of a block, and of a split chosen here
constexpr int64_t kMostSplits = 256;
constexpr int64_t kFewNewKeys = 64;  // up to this many are appended by the CTAs that decode

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The bytes that a row's results take in the workspace, per split.
int64_t partial_bytes(const Shape& s) { return 2 * (s.headdim_v + 2) * int64_t(sizeof(float)); }

// What is read of a cache: keys of a sequence, and how many of its KV heads read so many. A head that streams
// counts for the share of them that it sees.
struct Reading {
  int64_t keys;
  double heads;
};

// The fewest splits that come within a tenth of the best at two things together: few processors idle
// in the last wave of CTAs, and few bytes of workspace compared with those of the cache.
int64_t choose_splits(const Shape& s, int64_t rows, int64_t row_blocks, const Reading& reading) {
  int device = 0, processors = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "device");
  const double cache = 2. * double(s.k_components * s.headdim + s.headdim_v) * double(reading.keys);
  const double workspace = double(rows * partial_bytes(s)) / cache;  // of one split
  const double units = double(s.batch * row_blocks) * reading.heads;
  const auto worth = [&](int64_t splits) {
    const double ctas = units * double(splits);
    const double used = ctas / (std::ceil(ctas / processors) * processors);
    return splits == 1 ? used : used / (1 + double(splits) * workspace);
  };
  const int64_t most = std::min(ceil_div(reading.keys, kLeastKeys), kMostSplits);
  double best = 0;
  for (int64_t n = 1; n <= most; ++n) best = std::max(best, worth(n));
  int64_t n = 1;
  while (worth(n) < 0.9 * best) ++n;
  return n;
}

// Parts of the keys of a head that sees every key, and of one that streams.
struct SplitCounts {
  int64_t full, streaming;
};

SplitCounts splits_of(const DecodeParams& p, int64_t full_heads, int64_t rows, int64_t row_blocks) {
  const Shape& s = p.shape;
  const Mask& m = p.mask;
  const int64_t all = s.seqlen_k, streaming_heads = s.nheads_k - full_heads;
  const int64_t seen = m.left < 0 ? all : std::min(m.sink + m.left + s.seqlen_q, all);
  if (p.num_splits > 0) {
    const int64_t blocks = ceil_div(all, kBlock);
    const int64_t seen_blocks =
        ceil_div(seen, kBlock) + 2;  // sinks and window may begin within one
    return {std::min(p.num_splits, blocks), std::min({p.num_splits, blocks, seen_blocks})};
  }
  if (full_heads == 0) {
    const int64_t n = choose_splits(s, rows, row_blocks, {seen, double(streaming_heads)});
    return {n, n};
  }
  const double share = double(seen) / double(all);
  const int64_t n = choose_splits(s, rows, row_blocks,
                                  {all, double(full_heads) + double(streaming_heads) * share});
  return {n, int64_t(std::ceil(double(n) * share))};
}

// A plan is also made where there are no rows or keys, or too many of them; it is not used then.
Divisor divisor(int64_t n) { return int(n < 1 ? 1 : n > kMaxSeqlen ? kMaxSeqlen : n); }

DecodePlan plan_of(const DecodeParams& p) {
  const Shape& s = p.shape;
  DecodePlan plan{};
  plan.seqlen_q = divisor(s.seqlen_q);
  plan.nheads = divisor(s.nheads);
  plan.group = divisor(s.nheads / s.nheads_k);
  plan.page = divisor(p.cache.paging.block_table ? p.cache.paging.page_size : kMaxSeqlen);
  const int64_t rows = s.nheads / s.nheads_k * s.seqlen_q;
  // A capped kernel comes in one size, because each size costs the wheel 2 MB.
  plan.rows = rows <= kFewRows && p.softcap == 0 ? kFewRows : kManyRows;
  const int64_t row_blocks = ceil_div(rows, plan.rows);
  plan.row_blocks = divisor(row_blocks);
  plan.append_first = p.cache.seqlen_new > kFewNewKeys || rows == 0;
  plan.ring = divisor(p.cache.ring.slots);
  plan.append_to_ring_last = plan.append_first || p.cache.ring.slots < p.mask.left + s.seqlen_q;

  const int64_t full_heads = p.mask.full_heads();
  const int64_t streaming_heads = s.nheads_k - full_heads;
  const SplitCounts splits = splits_of(p, full_heads, rows, row_blocks);
  plan.full = {divisor(full_heads), divisor(splits.full)};
  plan.streaming = {divisor(streaming_heads), divisor(splits.streaming)};
  plan.full_units = s.batch * full_heads * plan.full.splits.divisor;
  plan.units = plan.full_units + s.batch * streaming_heads * plan.streaming.splits.divisor;
  plan.most_splits = std::max(plan.full.splits.divisor, plan.streaming.splits.divisor);
  plan.least_blocks = p.num_splits == 0 && plan.most_splits > 1 ? int(kLeastKeys / kBlock) : 1;
  return plan;
}

int64_t rows_of(const Shape& s) { return s.batch * s.nheads * s.seqlen_q; }

DecodePlan plan_with_workspace(const DecodeParams& p, void* workspace) {
  DecodePlan plan = plan_of(p);
  const int64_t parts = rows_of(p.shape) * plan.most_splits * 2;  // of rows, splits, components
  plan.out = static_cast<float*>(workspace);
  plan.lse = plan.out + parts * p.shape.headdim_v;
  plan.rest = plan.lse + parts;
  plan.counts = reinterpret_cast<int*>(plan.rest + parts);
  return plan;
}

using Launcher = void (*)(const DecodeParams&, const DecodePlan&, const Launch&);

// [V is twice as wide as Q][bf16]
template <int kHeadDim, int kRows>
constexpr Launcher kOfRows[2][2] = {{launch_decode<__half, kHeadDim, kHeadDim, kRows>,
                                     launch_decode<__nv_bfloat16, kHeadDim, kHeadDim, kRows>},
                                    {launch_decode<__half, kHeadDim, 2 * kHeadDim, kRows>,
                                     launch_decode<__nv_bfloat16, kHeadDim, 2 * kHeadDim, kRows>}};

using OfRows = const Launcher (*)[2];

// [many rows][V is twice as wide as Q][bf16]
template <int kHeadDim>
constexpr OfRows kLaunches[2] = {kOfRows<kHeadDim, kFewRows>, kOfRows<kHeadDim, kManyRows>};

void read_cache(const DecodeParams& p, const DecodePlan& plan, const Launch& launch,
                const Launch& next) {
  const Shape& s = p.shape;
  const int64_t d = s.headdim;
  const auto& launches =
      for_headdim(d, kLaunches<32>, kLaunches<64>, kLaunches<96>, kLaunches<128>);
  launches[plan.rows == kManyRows][s.headdim_v != d][p.dtype == DType::bf16](p, plan, launch);
  if (plan.most_splits > 1) launch_combine(p, plan, next);
}

// The first kernel waits for all that came before it in the stream.
void run(const DecodeParams& p, void* workspace, const Launch& first, const Launch& next) {
  const Shape& s = p.shape;
  check_size("cache: sequences or pages", p.cache.blocks, kMaxSeqlen);
  check_size("page_size", p.cache.paging.page_size, kMaxSeqlen);
  check_size("seqlen_new", p.cache.seqlen_new, kMaxSeqlen);
  check_size("query rows of a KV head", s.nheads / s.nheads_k * s.seqlen_q, kMaxSeqlen);
  const DecodePlan plan = plan_with_workspace(p, workspace);
  const bool appends = p.cache.seqlen_new > 0, reads = rows_of(s) > 0;
  const bool appends_first = plan.append_first && appends && launch_append(p, plan, false, first);
  if (reads) read_cache(p, plan, appends_first ? next : first, next);
  if (p.cache.ring.slots && plan.append_to_ring_last && appends)
    launch_append(p, plan, true, appends_first || reads ? next : first);
}

}  // namespace

int64_t decode_workspace(const DecodeParams& p) {
  const int64_t splits = plan_of(p).most_splits;
  if (splits == 1) return 0;
  return rows_of(p.shape) * (splits * partial_bytes(p.shape) + int64_t(sizeof(int)));
}

void decode(const DecodeParams& p, void* workspace, cudaStream_t stream) {
  run(p, workspace, {stream}, {stream});
}

void decode_dependently(const DecodeParams& p, void* workspace, cudaStream_t stream) {
  run(p, workspace, {stream}, {stream, true});
}

}  // namespace diffattn::cuda::decoding
