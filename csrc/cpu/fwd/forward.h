// Forward over the whole problem: KV heads in waves whose packed keys and values fit a budget, and
// within a wave all blocks of rows, the longest first.
#pragma once
#include "rows.h"

namespace diffattn::cpu {
namespace {

// Threads cost some microseconds to start: not worth it below this much work.
inline Parallel threads_for(const Parallel& parallel, const Shape& s) {
  constexpr double kSmall = 1 << 21;
  const double flop = 8. * s.batch * s.nheads * s.seqlen_q * s.seqlen_k * s.headdim;
  return flop < kSmall ? Parallel{1, parallel.run} : parallel;
}

// cache: where keys are, if they come from one.
template <class P>
void forward_from(const FwdParams& p, const Cache& cache, const Parallel& all) {
  using C = typename P::C;
  using T = typename P::T;
  constexpr int64_t kPackedBytes = 8 << 20;
  const Shape& s = p.shape;
  const Parallel parallel = threads_for(all, s);
  const int64_t group = s.nheads / s.nheads_k, units = s.batch * s.nheads_k;
  const int64_t rows = block_rows<C>(s.seqlen_q, s.seqlen_k, 2);
  const int64_t blocks = ceil_div(s.seqlen_q, rows);
  const int64_t packed = PackedHead<P>::size(s, Reader::forward);
  const int64_t count = wave_size(units, packed * int64_t(sizeof(T)), kPackedBytes);
  Buffer<T> packs(count * packed);
  Workers<ForwardScratch<P>> scratch(parallel.threads, s, rows);
  const auto head = [&](int64_t unit) {
    return PackedHead<P>(s, Reader::forward, packs + unit * packed);
  };

  for (int64_t first = 0; first < units; first += count) {
    const Wave wave{first, units - first < count ? units - first : count};
    for_each_key_range(p, cache, parallel, wave,
                       [&](int64_t unit, const Keys& keys) { head(unit).load(p, cache, keys); });
    for_each(parallel, blocks * group * wave.count, [&](int64_t item, int worker) {
      const int64_t unit = item % wave.count, kv_head = (first + unit) % s.nheads_k;
      const int64_t q_head = kv_head * group + item / wave.count % group;
      const int64_t block = blocks - 1 - item / (wave.count * group);
      RowBlock mine{sequence(s, p.varlen, cache, (first + unit) / s.nheads_k), q_head, {}};
      mine.rows = meet({block * rows, block * rows + rows}, {0, mine.sequence.seqlen_q});
      if (mine.rows.size()) ForwardRows<P>(p, cache, mine, head(unit), scratch[worker]).run();
    });
  }
}

template <class P>
void forward(const FwdParams& p, const Parallel& parallel) {
  forward_from<P>(p, Cache{}, parallel);
}

}  // namespace
}  // namespace diffattn::cpu
