// Keys and values of one KV head in the compute type, packed once for all rows that read them.
#pragma once
#include "mask.h"
#include "rows.h"
#include "schedule.h"

namespace diffattn::cpu {
namespace {

// Which products read them: those that sum over a row's numbers read rows, [keys][leading(n / kPer)], those
// that sum over keys read steps, [keys / kPer][leading(n)]. Numbers of the compute type are both at once.
enum class Reader { forward, backward };

// Some keys of one KV head, of one interval.
struct Keys {
  const Sequence& sequence;
  int64_t head;  // of K and V
  int interval;
  Range range;
};

// The KV heads of one kind in all sequences of a batch, numbered.
struct Units {
  const Shape& shape;
  const Varlen& varlen;
  const Cache& cache;
  const Mask& mask;
  const Heads heads;
  const Reader reader;

  int64_t count() const { return shape.batch * heads.count; }
  int64_t kv_head(int64_t unit) const { return heads[unit % heads.count]; }
  int64_t head_in_keys(int64_t unit) const { return heads.in_keys(unit % heads.count); }
  Sequence sequence(int64_t unit) const {
    return cpu::sequence(shape, varlen, cache, unit / heads.count);
  }

  // What is packed of a unit. Backward gives each key a gradient.
  Intervals keys(int64_t unit) const {
    const Sequence s = sequence(unit);
    const SequenceMask seen(mask, s, kv_head(unit));
    return reader == Reader::backward ? seen.all_keys() : seen.keys_of(Range{0, s.seqlen_q});
  }
  int64_t most_keys() const {
    const int64_t rows = reader == Reader::backward ? shape.seqlen_k : shape.seqlen_q;
    return cpu::most_keys(shape, mask, heads.streaming, rows);
  }
};

template <class P>
struct PackedHead {
  using C = typename P::C;
  using T = typename P::T;
  T *k_rows[2], *k_steps[2], *v_rows,
      *v_steps;  // of K the steps, and of V one of both, may be absent
  KeyBlocks blocks;

  PackedHead(const Units& units, int64_t unit, T* data) : blocks(units.keys(unit)) {
    const Sizes size(units);
    const Shape& s = units.shape;
    const auto take = [&](bool wanted, int64_t n) {
      T* const at = data;
      data += wanted ? n : 0;
      return wanted ? at : nullptr;
    };
    const bool back = units.reader == Reader::backward, pairs = P::kPer == 2;
    for (int c = 0; c < 2; ++c) {
      const bool own = c < s.k_components;
      k_rows[c] = own ? take(true, size.k_rows) : k_rows[0];
      k_steps[c] = !pairs ? k_rows[c] : own ? take(back, size.k_steps) : k_steps[0];
    }
    v_rows = take(back || !pairs, size.v_rows);
    v_steps = pairs ? take(!back, size.v_steps) : v_rows;
  }

  static int64_t size(const Units& units) {
    const Sizes size(units);
    const Shape& s = units.shape;
    const bool back = units.reader == Reader::backward;
    const int64_t k = size.k_rows + (P::kPer == 2 && back ? size.k_steps : 0);
    return s.k_components * k + (P::kPer == 1 || back ? size.v_rows : size.v_steps);
  }

  template <class Params>
  void load(const Params& p, const Cache& cache, const Keys& keys) const {
    const auto rows = [&](const View& v) { return KeyRows{v, cache, keys.sequence, keys.head}; };
    for (int c = 0; c < p.shape.k_components; ++c)
      load_one(p.dtype, rows(p.maps[c].k), keys, p.shape.headdim, k_rows[c], k_steps[c]);
    load_one(p.dtype, rows(p.v), keys, p.shape.headdim_v, v_rows, v_steps);
  }

  // Of the first key of a block.
  int64_t place(const KeyBlock& block) const {
    return blocks.place(block.interval, block.keys.begin);
  }

 private:
  struct Sizes {
    int64_t k_rows, k_steps, v_rows, v_steps;
    explicit Sizes(const Units& units) : Sizes(units.shape, units.most_keys()) {}
    Sizes(const Shape& s, int64_t keys)
        : k_rows(product(keys, leading<C>(s.headdim / P::kPer))),
          k_steps(product(keys / P::kPer, leading<C>(s.headdim))),
          v_rows(product(keys, leading<C>(s.headdim_v / P::kPer))),
          v_steps(product(keys / P::kPer, leading<C>(s.headdim_v))) {}
  };

  void load_one(DType t, const KeyRows& from, const Keys& keys, int64_t n, T* rows,
                T* steps) const {
    const int64_t at = blocks.place(keys.interval, keys.range.begin);
    T* const row = rows + at * leading<C>(n / P::kPer);
    if constexpr (P::kPer == 1) {
      load_keys(t, from, keys.range, n, row);
    } else {
      if (rows) load_pairs_of_numbers(from, keys.range, n, row);
      if (steps) load_pairs_of_keys(from, keys.range, n, steps + at / 2 * leading<C>(n));
    }
  }
};

// KV heads first .. first + count of the problem, worked on together in places of their own.
struct Wave {
  int64_t first, count;
  int64_t place = 0;  // of the first

  int64_t unit(int64_t of_place) const { return first + of_place - place; }
};

// How many of `units` equal parts fit a budget; at least one, also of none.
inline int64_t wave_size(int64_t units, int64_t bytes, int64_t budget) {
  const int64_t fit = bytes ? budget / bytes : units;
  const int64_t most = fit < units ? fit : units;
  return most < 1 ? 1 : most;
}

// Calls f(place, keys) for what is packed of a wave in pieces, spread over all threads.
template <class F>
void for_each_key_range(const Units& units, const Parallel& parallel, const Wave& wave,
                        const F& f) {
  constexpr int64_t kPiece = 512;
  const int64_t pieces = ceil_div(units.most_keys(), kPiece);
  for_each(parallel, wave.count * pieces, [&](int64_t item, int) {
    const int64_t nth = item / pieces, first = item % pieces * kPiece, unit = wave.first + nth;
    const Sequence s = units.sequence(unit);
    const Intervals keys = units.keys(unit);
    const KeyBlocks blocks(keys);
    for (int n = 0; n < kIntervals; ++n) {
      const int64_t begin = blocks.keys[n].begin + first - blocks.first_place(n);
      const Range piece = meet(keys.each[n], {begin, begin + kPiece});
      if (piece.size()) f(wave.place + nth, Keys{s, units.head_in_keys(unit), n, piece});
    }
  });
}

}  // namespace
}  // namespace diffattn::cpu
