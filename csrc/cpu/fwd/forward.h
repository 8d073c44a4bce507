// Forward over the whole problem: KV heads of one kind in waves whose packed keys and values fit a budget,
// and within a wave all blocks of rows, the longest first.
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

template <class P>
void forward_heads(const FwdParams& p, const Units& units, const Parallel& parallel) {
  using C = typename P::C;
  using T = typename P::T;
  constexpr int64_t kPackedBytes = 8 << 20;
  const Shape& s = p.shape;
  const int64_t group = p.groups.count(s) / s.nheads_k;
  const int64_t rows = block_rows<C>(s.seqlen_q, s.seqlen_k, 2);
  const int64_t blocks = ceil_div(s.seqlen_q, rows);
  const int64_t packed = PackedHead<P>::size(units);
  const int64_t count = wave_size(units.count(), packed * int64_t(sizeof(T)), kPackedBytes);
  Buffer<T> packs(product(count, packed));
  Workers<ForwardScratch<P>> scratch(parallel.threads, s, rows,
                                     most_keys(s, p.mask, units.heads.streaming, rows));
  const auto head = [&](const Wave& wave, int64_t place) {
    return PackedHead<P>(units, wave.unit(place), packs + place * packed);
  };

  for (int64_t first = 0; first < units.count(); first += count) {
    const Wave wave{first, min(units.count() - first, count)};
    for_each_key_range(units, parallel, wave, [&](int64_t place, const Keys& keys) {
      head(wave, place).load(p, units.cache, keys);
    });
    for_each(parallel, blocks * group * wave.count, [&](int64_t item, int worker) {
      const int64_t place = item % wave.count, kv_head = units.kv_head(first + place);
      const int64_t q_group = kv_head * group + item / wave.count % group;
      const int64_t block = blocks - 1 - item / (wave.count * group);
      RowBlock mine{units.sequence(first + place), q_group, kv_head, {}};
      mine.rows = meet({block * rows, block * rows + rows}, {0, mine.sequence.seqlen_q});
      if (mine.rows.size() == 0) return;
      ForwardRows<P>(p, units.cache, mine, head(wave, place), scratch[worker]).run();
    });
  }
}

template <class P>
void forward(const FwdParams& p, const Parallel& all) {
  const Parallel parallel = threads_for(all, p.shape);
  const Cache none;
  for_each_kind(p.mask, p.shape.nheads_k, [&](const Heads& heads) {
    forward_heads<P>(p, {p.shape, p.varlen, none, p.mask, heads, Reader::forward}, parallel);
  });
}

}  // namespace
}  // namespace diffattn::cpu
