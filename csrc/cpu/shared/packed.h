// Keys and values of one KV head in the compute type, packed once for all rows that read them.
#pragma once
#include "rows.h"
#include "schedule.h"

namespace diffattn::cpu {
namespace {

// Which products read them: those that sum over a row's numbers read rows, [sk][leading(n / kPer)], those
// that sum over keys read steps, [sk / kPer][leading(n)]. Numbers of the compute type are both at once.
enum class Reader { forward, backward };

// Some keys of one KV head.
struct Keys {
  const Sequence& sequence;
  int64_t head;
  Range range;
};

template <class P>
struct PackedHead {
  using C = typename P::C;
  using T = typename P::T;
  T *k_rows[2], *k_steps[2], *v_rows,
      *v_steps;  // of K the steps, and of V one of both, may be absent

  PackedHead(const Shape& s, Reader reader, T* data) {
    const Sizes size(s);
    const auto take = [&](bool wanted, int64_t n) {
      T* const at = data;
      data += wanted ? n : 0;
      return wanted ? at : nullptr;
    };
    const bool back = reader == Reader::backward, pairs = P::kPer == 2;
    for (int c = 0; c < 2; ++c) {
      const bool own = c < s.k_components;
      k_rows[c] = own ? take(true, size.k_rows) : k_rows[0];
      k_steps[c] = !pairs ? k_rows[c] : own ? take(back, size.k_steps) : k_steps[0];
    }
    v_rows = take(back || !pairs, size.v_rows);
    v_steps = pairs ? take(!back, size.v_steps) : v_rows;
  }

  static int64_t size(const Shape& s, Reader reader) {
    const Sizes size(s);
    const bool back = reader == Reader::backward;
    const int64_t k = size.k_rows + (P::kPer == 2 && back ? size.k_steps : 0);
    return s.k_components * k + (P::kPer == 1 || back ? size.v_rows : size.v_steps);
  }

  template <class Params>
  void load(const Params& p, const Cache& cache, const Keys& keys) const {
    const auto rows = [&](const View& v) {
      return KeyRows{v, cache.paging, keys.sequence, keys.head};
    };
    for (int c = 0; c < p.shape.k_components; ++c)
      load_one(p.dtype, rows(p.maps[c].k), keys.range, p.shape.headdim, k_rows[c], k_steps[c]);
    load_one(p.dtype, rows(p.v), keys.range, p.shape.headdim_v, v_rows, v_steps);
  }

 private:
  struct Sizes {
    int64_t k_rows, k_steps, v_rows, v_steps;
    explicit Sizes(const Shape& s)
        : k_rows(product(s.seqlen_k, leading<C>(s.headdim / P::kPer))),
          k_steps(product(ceil_div(s.seqlen_k, P::kPer), leading<C>(s.headdim))),
          v_rows(product(s.seqlen_k, leading<C>(s.headdim_v / P::kPer))),
          v_steps(product(ceil_div(s.seqlen_k, P::kPer), leading<C>(s.headdim_v))) {}
  };

  static void load_one(DType t, const KeyRows& from, Range keys, int64_t n, T* rows, T* steps) {
    if constexpr (P::kPer == 1) {
      load_keys(t, from, keys, n, rows + keys.begin * leading<C>(n));
    } else {
      if (rows) load_pairs_of_numbers(from, keys, n, rows);
      if (steps) load_pairs_of_keys(from, keys, n, steps);
    }
  }
};

// KV heads first .. first + count of the problem, worked on together in places of their own.
struct Wave {
  int64_t first, count;
  int64_t place = 0;  // of the first
};

// How many of `units` equal parts fit a budget; at least one, also of none.
inline int64_t wave_size(int64_t units, int64_t bytes, int64_t budget) {
  const int64_t fit = bytes ? budget / bytes : units;
  const int64_t most = fit < units ? fit : units;
  return most < 1 ? 1 : most;
}

// Calls f(place, keys) for all keys of a wave in pieces, spread over all threads.
template <class Params, class F>
void for_each_key_range(const Params& p, const Cache& cache, const Parallel& parallel,
                        const Wave& wave, const F& f) {
  constexpr int64_t kPiece = 512;
  const int64_t pieces = ceil_div(p.shape.seqlen_k, kPiece), heads = p.shape.nheads_k;
  for_each(parallel, wave.count * pieces, [&](int64_t item, int) {
    const int64_t nth = item / pieces, j = item % pieces * kPiece, unit = wave.first + nth;
    const Sequence s = sequence(p.shape, p.varlen, cache, unit / heads);
    const Range keys = meet({j, j + kPiece}, {s.first_key, s.seqlen_k});
    f(wave.place + nth, Keys{s, unit % heads, keys});
  });
}

}  // namespace
}  // namespace diffattn::cpu
