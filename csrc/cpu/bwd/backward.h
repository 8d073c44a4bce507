// Backward over the whole problem. Where there are KV heads enough, each thread takes whole ones, and
// both halves of a block of query rows follow each other in its cache; else all threads share a wave of
// heads, in steps of two halves: some blocks of rows, then all blocks of keys, so that even one head
// uses every thread. Either way each sum has the same order.
#pragma once
#include "../fwd/forward.h"
#include "rows.h"

namespace diffattn::cpu {
namespace {

// How the work is cut. Blocks of rows of a unit (all groups of query heads of its KV head) are numbered 0 .. blocks,
// the longest first. `places` units are worked on at once, and a step takes `slots` blocks from each: one
// where a thread works alone.
template <class P>
struct BackwardPlan {
  using C = typename P::C;
  bool whole;  // each thread takes whole units
  int64_t group, units, rows, row_blocks, blocks, panels, signals, panel_keys, keys, grads, places,
      slots;

  BackwardPlan(const Units& of, const Groups& groups, double softcap, int threads) {
    constexpr int64_t kPackedBytes = 16 << 20, kPanelBytes = 3 << 20;
    const Shape& s = of.shape;
    group = groups.count(s) / s.nheads_k;
    units = of.count();
    rows = gradient_rows(s);
    row_blocks = ceil_div(s.seqlen_q, rows);
    blocks = group * row_blocks;
    panel_keys = most_keys(s, of.mask, of.heads.streaming, rows);
    keys = PackedHead<P>::size(of);
    grads = Gradients<C>::size(of);
    const int64_t packed_bytes = (keys + grads) * int64_t(sizeof(C));
    panels = first_slope(groups) + (softcap > 0 ? 2 : 0);
    const int64_t one_panel = product(rows, panel_keys, int64_t(sizeof(C)));
    // Waves keep panels of all signals of a group, so a group has more from being served by one thread.
    whole = threads == 1 ||
            (groups.signals > 1 ? keeps_busy(threads)
                                : whole_units(packed_bytes + panels * one_panel, threads));
    signals = whole ? 1 : groups.signals;
    const int64_t panel_bytes = product(panels + GradBlock<P>::panels_left(signals), one_panel);
    places = whole ? threads : wave_size(units, packed_bytes, kPackedBytes);
    slots = whole ? 1 : wave_size(blocks, places * panel_bytes, kPanelBytes);
    if (slots < ceil_div(threads, places)) slots = ceil_div(threads, places);
    if (slots > blocks) slots = blocks;
  }

  bool keeps_busy(int threads) const { return units % threads == 0 || units >= 4 * threads; }

  // Whether that keeps all threads busy, and its memory is modest.
  bool whole_units(int64_t unit_bytes, int threads) const {
    constexpr int64_t kMostBytes = 28 << 20;
    return keeps_busy(threads) && threads * unit_bytes <= kMostBytes;
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
  // dweights [batch][head_k][blocks][dv]: parts of the norm weight's gradient, or null.
  Backward(const BwdParams& p, const Units& units, const Parallel& parallel,
           const BackwardPlan<P>& plan, C* dweights)
      : p_(p),
        units_(units),
        parallel_(parallel),
        plan_(plan),
        dweights_(dweights),
        keys_(product(plan_.places, plan_.keys)),
        grads_(product(plan_.places, plan_.grads)),
        scratch_(parallel.threads, p.shape, plan_.rows),
        blocks_(int(plan_.places * plan_.slots), p.shape, plan_.panels, plan_.signals, plan_.rows,
                plan_.panel_keys) {}

  // A unit for a thread that works alone, in the place of its own.
  void whole_unit(int64_t unit, int worker) {
    const Parallel alone{1, parallel_.run};
    const Wave wave{unit, 1, worker};
    load(wave, alone);
    const Gradients<C> grads = grads_of(unit, worker);
    for (int64_t block = 0; block < plan_.blocks; ++block)
      row_half({unit, worker, block, 0}, worker, &grads);
    store(wave, alone);
  }

  // All units, shared by all threads.
  void waves() {
    for (int64_t first = 0; first < plan_.units; first += plan_.places) {
      const Wave wave{first, min(plan_.units - first, plan_.places), 0};
      load(wave, parallel_);
      for (int64_t block = 0; block < plan_.blocks; block += plan_.slots) {
        for_each(parallel_, wave.count * plan_.slots, [&](int64_t item, int worker) {
          const int64_t place = item % wave.count, slot = item / wave.count;
          row_half({first + place, place, block + slot, slot}, worker, nullptr);
        });
        key_half(wave);
      }
      store(wave, parallel_);
    }
  }

 private:
  // One unit's place among those worked on, and one of its blocks of rows in a slot of that place.
  struct Step {
    int64_t unit, place, block, slot;
  };

  const Shape& shape() const { return p_.shape; }
  PackedHead<P> keys_of(int64_t unit, int64_t place) const {
    return {units_, unit, keys_ + place * plan_.keys};
  }
  Gradients<C> grads_of(int64_t unit, int64_t place) const {
    return {units_, unit, grads_ + place * plan_.grads};
  }
  GradBlock<P>& block_in(int64_t place, int64_t slot) {
    return blocks_[int(place * plan_.slots + slot)];
  }

  void load(const Wave& wave, const Parallel& parallel) {
    for_each_key_range(units_, parallel, wave, [&](int64_t place, const Keys& keys) {
      keys_of(wave.unit(place), place).load(p_, units_.cache, keys);
      clear_keys(shape(), keys, grads_of(wave.unit(place), place));
    });
  }

  void store(const Wave& wave, const Parallel& parallel) {
    for_each_key_range(units_, parallel, wave, [&](int64_t place, const Keys& keys) {
      store_keys(p_, keys, grads_of(wave.unit(place), place));
    });
  }

  // With grads, the key half follows at once.
  void row_half(const Step& step, int worker, const Gradients<C>* grads) {
    GradBlock<P>& mine = block_in(step.place, step.slot);
    mine.blocks = {};
    if (step.block >= plan_.blocks) return;
    const int64_t row = (plan_.row_blocks - 1 - step.block % plan_.row_blocks) * plan_.rows;
    const int64_t kv_head = units_.kv_head(step.unit);
    const int64_t q_group = kv_head * plan_.group + step.block / plan_.row_blocks;
    RowBlock rows{units_.sequence(step.unit), q_group, kv_head, {}};
    rows.rows = meet({row, row + plan_.rows}, {0, rows.sequence.seqlen_q});
    C* dweight = dweight_of(step);
    if (dweight) __builtin_memset(dweight, 0, shape().headdim_v * sizeof(C));
    if (rows.rows.size() == 0) return;
    BackwardRows<P>(p_, rows, keys_of(step.unit, step.place), mine, scratch_[worker], dweight)
        .run(grads);
  }

  void key_half(const Wave& wave) {
    const int64_t key_blocks = ceil_div(shape().seqlen_k, kKeys);
    for_each(parallel_, wave.count * key_blocks, [&](int64_t item, int) {
      const int64_t place = item % wave.count, j = item / wave.count * kKeys;
      const int64_t unit = wave.first + place;
      const Sequence s = units_.sequence(unit);
      const SequenceMask mask(p_.mask, s, units_.kv_head(unit));
      const Gradients<C> grads = grads_of(unit, place);
      for (int64_t slot = 0; slot < plan_.slots; ++slot) {
        const GradBlock<P>& block = block_in(place, slot);
        for (int n = 0; n < kIntervals; ++n) {
          const KeyBlock keys{n, meet({j, j + kKeys}, block.blocks.keys[n]), 0};
          if (keys.keys.size()) accumulate_left(mask, block, keys, grads);
        }
      }
    });
  }

  void accumulate_left(const SequenceMask& mask, const GradBlock<P>& block, const KeyBlock& keys,
                       const Gradients<C>& grads) {
    const int64_t first = keys.keys.begin, signals = block.signals;
    if (signals == 1)
      return accumulate_keys(p_, mask, block, in_place<P>(block.panels(keys.interval, first)), keys,
                             grads);
    for (int64_t i = 0; i < signals; ++i)
      accumulate_keys<P, Part::signal>(p_, mask, block, block.left_by(i, keys.interval, first),
                                       keys, grads, i);
    accumulate_keys<P, Part::noise>(p_, mask, block, block.left_by(signals, keys.interval, first),
                                    keys, grads);
  }

  C* dweight_of(const Step& step) const {
    if (!dweights_) return nullptr;
    const int64_t b = step.unit / units_.heads.count, head = units_.kv_head(step.unit);
    return dweights_ +
           ((b * shape().nheads_k + head) * plan_.blocks + step.block) * shape().headdim_v;
  }

  const BwdParams& p_;
  const Units& units_;
  const Parallel parallel_;
  const BackwardPlan<P>& plan_;
  C* const dweights_;
  Buffer<T> keys_;
  Buffer<C> grads_;
  Workers<BackwardScratch<P>> scratch_;
  Workers<GradBlock<P>> blocks_;
};

template <class C>
void sum_dweights(int64_t parts, int64_t dv, const C* dweights, C* sum) {
  for (int64_t n = 0; n < dv; ++n) sum[n] = 0;
  for (int64_t i = 0; i < parts; ++i)
    for (int64_t n = 0; n < dv; ++n) sum[n] += dweights[i * dv + n];
}

template <class P>
void backward(const BwdParams& p, const Parallel& all) {
  using C = typename P::C;
  const Shape& s = p.shape;
  const Parallel parallel = threads_for(all, s);
  const int64_t blocks = ceil_div(s.seqlen_q, BackwardPlan<P>::gradient_rows(s));
  const int64_t parts = s.batch * p.groups.count(s) * blocks, dv = s.headdim_v;
  const Buffer<C> dweights(p.dnorm_weight ? product(parts, dv) : 0);
  for_each_kind(p.mask, s.nheads_k, [&](const Heads& heads) {
    const Cache none;
    const Units units{s, p.varlen, none, p.mask, heads, Reader::backward};
    const BackwardPlan<P> plan(units, p.groups, p.softcap, parallel.threads);
    Backward<P> work(p, units, parallel, plan, p.dnorm_weight ? dweights.get() : nullptr);
    if (plan.whole)
      for_each(parallel, plan.units,
               [&](int64_t unit, int worker) { work.whole_unit(unit, worker); });
    else
      work.waves();
  });
  if (p.dnorm_weight) sum_dweights(parts, dv, dweights.get(), static_cast<C*>(p.dnorm_weight));
}

}  // namespace
}  // namespace diffattn::cpu
