// Backward over the whole problem. Where there are KV heads enough, each thread takes whole ones, and
// both halves of a block of query rows follow each other in its cache; else all threads share a wave of
// heads, in steps of two halves: some blocks of rows, then all blocks of keys, so that even one head
// uses every thread. Either way each sum has the same order.
#pragma once
#include "../fwd/forward.h"
#include "rows.h"

namespace diffattn::cpu {
namespace {

// How the work is cut. Blocks of rows of a unit (all query heads of its KV head) are numbered
// 0 .. blocks, the longest first; a step takes `slots` of them from each unit, one where a thread works
// alone.
template <class P>
struct BackwardPlan {
  using C = typename P::C;
  int64_t group, units, rows, row_blocks, blocks, keys, grads, wave, slots, bytes;

  BackwardPlan(const BwdParams& p, int threads) {
    constexpr int64_t kPackedBytes = 16 << 20, kPanelBytes = 3 << 20;
    const Shape& s = p.shape;
    group = s.nheads / s.nheads_k;
    units = s.batch * s.nheads_k;
    rows = gradient_rows(s);
    row_blocks = ceil_div(s.seqlen_q, rows);
    blocks = group * row_blocks;
    keys = PackedHead<P>::size(s, Reader::backward);
    grads = Gradients<C>::size(s, Reader::backward);
    const int64_t packed_bytes = (keys + grads) * int64_t(sizeof(C));
    wave = threads == 1 ? 1 : wave_size(units, packed_bytes, kPackedBytes);
    const int64_t panels = 3 * panel_size(s.seqlen_k, rows) * int64_t(sizeof(C));
    slots = threads == 1 ? 1 : wave_size(blocks, wave * panels, kPanelBytes);
    if (slots < ceil_div(threads, wave)) slots = ceil_div(threads, wave);
    if (slots > blocks) slots = blocks;
    bytes = wave * (packed_bytes + slots * panels);
  }

  // Long sequences are served better by more rows, among which the reading of all keys and the adding to
  // all their gradients is shared, while panels stay small.
  static int64_t gradient_rows(const Shape& s) {
    constexpr int64_t kLong = 1024, kPanelBytes = 4 << 20;
    if (s.seqlen_q >= kLong)
      for (const int64_t rows : {kMostRows, int64_t(64)})
        if (3 * rows * s.seqlen_k * int64_t(sizeof(C)) <= kPanelBytes) return rows;
    return block_rows<C>(s.seqlen_q, s.seqlen_k, 3);
  }
};

template <class P>
class Backward {
  using C = typename P::C;
  using T = typename P::T;

 public:
  // dweights [units][blocks][dv]: parts of the norm weight's gradient, or null.
  Backward(const BwdParams& p, const Parallel& parallel, const BackwardPlan<P>& plan, C* dweights)
      : p_(p),
        parallel_(parallel),
        plan_(plan),
        dweights_(dweights),
        keys_(plan_.wave * plan_.keys),
        grads_(plan_.wave * plan_.grads),
        scratch_(parallel.threads, p.shape, plan_.rows),
        blocks_(int(plan_.wave * plan_.slots), p.shape, plan_.rows) {}

  void run(Range units) {
    for (int64_t first = units.begin; first < units.end; first += plan_.wave) {
      wave_ = {first, units.end - first < plan_.wave ? units.end - first : plan_.wave};
      load();
      for (int64_t block = 0; block < plan_.blocks; block += plan_.slots) {
        row_half(block);
        if (!alone()) key_half();
      }
      store();
    }
  }

 private:
  bool alone() const { return parallel_.threads == 1; }
  const Shape& shape() const { return p_.shape; }
  PackedHead<P> keys_of(int64_t unit) const {
    return {shape(), Reader::backward, keys_ + unit * plan_.keys};
  }
  Gradients<C> grads_of(int64_t unit) const {
    return {shape(), Reader::backward, grads_ + unit * plan_.grads};
  }
  Sequence sequence_of(int64_t unit) const {
    return sequence(shape(), p_.varlen, Cache{}, (wave_.first + unit) / shape().nheads_k);
  }
  GradBlock<P>& slot(int64_t unit, int64_t i) { return blocks_[int(unit * plan_.slots + i)]; }

  void load() {
    for_each_key_range(p_, Cache{}, parallel_, wave_,
                       [&](int64_t unit, const Sequence& s, int64_t head, Range keys) {
                         keys_of(unit).load(p_, Cache{}, s, head, keys);
                         clear_keys(shape(), keys, grads_of(unit));
                       });
  }

  void store() {
    for_each_key_range(p_, Cache{}, parallel_, wave_,
                       [&](int64_t unit, const Sequence& s, int64_t head, Range keys) {
                         store_keys(p_, s, head, keys, grads_of(unit));
                       });
  }

  void row_half(int64_t first_block) {
    for_each(parallel_, wave_.count * plan_.slots, [&](int64_t item, int worker) {
      const int64_t unit = item % wave_.count, i = item / wave_.count, block = first_block + i;
      GradBlock<P>& mine = slot(unit, i);
      mine.keys = {0, 0};
      if (block >= plan_.blocks) return;
      const Sequence s = sequence_of(unit);
      const int64_t row = (plan_.row_blocks - 1 - block % plan_.row_blocks) * plan_.rows;
      const Range rows = meet({row, row + plan_.rows}, {0, s.sq});
      C* dweight = dweight_of(unit, block);
      if (dweight) __builtin_memset(dweight, 0, shape().headdim_v * sizeof(C));
      if (rows.size() == 0) return;
      const int64_t kv_head = (wave_.first + unit) % shape().nheads_k;
      const int64_t q_head = kv_head * plan_.group + block / plan_.row_blocks;
      const PackedHead<P> kv = keys_of(unit);
      const Gradients<C> grads = grads_of(unit);
      GradRows<P>(p_, s, q_head, rows, kv, mine, scratch_[worker], dweight)
          .run(alone() ? &grads : nullptr);
    });
  }

  void key_half() {
    const int64_t key_blocks = ceil_div(shape().seqlen_k, kKeys);
    for_each(parallel_, wave_.count * key_blocks, [&](int64_t item, int) {
      const int64_t unit = item % wave_.count, j = item / wave_.count * kKeys;
      const Sequence s = sequence_of(unit);
      const Gradients<C> grads = grads_of(unit);
      for (int64_t i = 0; i < plan_.slots; ++i) {
        const GradBlock<P>& block = slot(unit, i);
        const Range keys = meet({j, j + kKeys}, block.keys);
        if (keys.size())
          accumulate_keys(p_, s, block, in_place<P>(block.panels(keys.begin)), keys, grads);
      }
    });
  }

  C* dweight_of(int64_t unit, int64_t block) const {
    if (!dweights_) return nullptr;
    return dweights_ + ((wave_.first + unit) * plan_.blocks + block) * shape().headdim_v;
  }

  const BwdParams& p_;
  const Parallel parallel_;
  const BackwardPlan<P>& plan_;
  C* const dweights_;
  Wave wave_;
  Buffer<T> keys_;
  Buffer<C> grads_;
  Workers<BackwardScratch<P>> scratch_;
  Workers<GradBlock<P>> blocks_;
};

// Whether each thread takes whole KV heads: if that keeps all busy and their memory is modest.
template <class P>
bool whole_heads(const BackwardPlan<P>& alone, int threads) {
  constexpr int64_t kMostBytes = 28 << 20;
  const bool even = alone.units % threads == 0 || alone.units >= 4 * threads;
  return threads > 1 && even && threads * alone.bytes <= kMostBytes;
}

template <class C>
void sum_dweights(int64_t parts, int64_t dv, const C* dweights, C* sum) {
  for (int64_t n = 0; n < dv; ++n) sum[n] = 0;
  for (int64_t i = 0; i < parts; ++i)
    for (int64_t n = 0; n < dv; ++n) sum[n] += dweights[i * dv + n];
}

template <class P>
void backward(const BwdParams& p, const Parallel& all) {
  using C = typename P::C;
  const Parallel parallel = threads_for(all, p.shape);
  const BackwardPlan<P> alone(p, 1);
  const bool whole = whole_heads(alone, parallel.threads);
  const BackwardPlan<P> plan = whole ? alone : BackwardPlan<P>(p, parallel.threads);
  const int64_t parts = plan.units * plan.blocks, dv = p.shape.headdim_v;
  const Buffer<C> dweights(p.dnorm_weight ? parts * dv : 0);
  C* const parts_of_weight = p.dnorm_weight ? dweights.get() : nullptr;
  if (whole) {
    const Parallel one{1, parallel.run};
    Workers<Backward<P>> workers(parallel.threads, p, one, plan, parts_of_weight);
    for_each(parallel, plan.units,
             [&](int64_t unit, int worker) { workers[worker].run({unit, unit + 1}); });
  } else {
    Backward<P>(p, parallel, plan, parts_of_weight).run({0, plan.units});
  }
  if (p.dnorm_weight) sum_dweights(parts, dv, dweights.get(), static_cast<C*>(p.dnorm_weight));
}

}  // namespace
}  // namespace diffattn::cpu
