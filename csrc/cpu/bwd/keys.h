// Backward, second half: a block of keys against the blocks of rows of one step.
//   dK_c += s·dS_cᵀ·Q_c     dV += (P1 - λ·P2)ᵀ·dO
#pragma once
#include "../shared/packed.h"

namespace diffattn::cpu {
namespace {

// Panels from some key on: P1, P2, dP, or what becomes of them, dS1, dS2, A. The latter may be in pairs of lanes,
// which take the first half of each row. Of groups a fourth, the sum of -λ·dP over signals.
// With a soft cap two more follow, the slopes of S1 and S2.
template <class T>
struct KeyPanels {
  T* first;
  int64_t distance, lanes;
  Panel<T> operator[](int which) const { return {first + which * distance, lanes}; }
};

// Which panel has the slopes of S1.
inline int first_slope(const Groups& groups) { return groups.signals == 1 ? 3 : 4; }

// The maps whose gradients are computed: those of a pair, its signal alone, or those of a group's signals and then
// of its noise. V's comes with the signals.
enum class Part { pair, alone, signal, noise };
template <Part part>
constexpr int kFirstMap = part == Part::noise ? kNoise : kSignal;
template <Part part>
constexpr int kLastMap = part == Part::alone || part == Part::signal ? kSignal : kNoise;

// dK and dV of one KV head in the compute type.
template <class C>
using Gradients = PackedHead<Numbers<C>>;

// A block of rows as the second half reads it.
template <class P>
struct GradBlock {
  using C = typename P::C;
  using T = typename P::T;
  int64_t lanes, panel_size;
  // How many are left for the second half together: all of a group's where it comes later, else 1.
  int64_t signals;
  Buffer<C> panel;    // [3 to 6][keys][lanes]
  Buffer<T> left;     // what becomes of the panels of several signals: [panels_left][keys][lanes]
  Buffer<T> q, dout;  // [signals, noise][lanes / kPer][leading(d)], [signals][..][leading(dv)]
  Range rows;
  int maps = 2;      // 1 where the noise's gives nothing
  KeyBlocks blocks;  // none where there is nothing to add

  // keys: the most that its blocks have, in whole blocks
  GradBlock(const Shape& s, int64_t panels, int64_t signals, int64_t lanes, int64_t keys)
      : lanes(lanes),
        panel_size(product(keys, lanes)),
        signals(signals),
        panel(panels * panel_size),
        left(panels_left(signals) * panel_size),
        q((signals + 1) * lanes / P::kPer * leading<C>(s.headdim)),
        dout(signals * lanes / P::kPer * leading<C>(s.headdim_v)) {}

  // dS1 and A of each signal, and dS2. A is two panels behind dS1, so two signals share four panels.
  static int64_t panels_left(int64_t signals) {
    return signals == 1 ? 0 : 4 * ceil_div(signals, 2) + 1;
  }
  // Of a signal, or for the number behind the last signal of the noise.
  KeyPanels<T> left_by(int64_t map, int interval, int64_t key) const {
    const int64_t first = map < signals ? map / 2 * 4 + map % 2 : panels_left(signals) - 1 - kNoise;
    return {left + first * panel_size + blocks.place(interval, key) * lanes, panel_size, lanes};
  }

  // The first row of q, or of dout, that belongs to a map.
  int64_t rows_of(int map, int64_t signal) const {
    return (map == kNoise ? signals : signal) * lanes / P::kPer;
  }

  // From a key of one of its intervals on.
  KeyPanels<C> panels(int interval, int64_t key) const {
    return {panel + blocks.place(interval, key) * lanes, panel_size, lanes};
  }
};

// Where P1, P2 and dP are, for what becomes of them.
template <class P>
KeyPanels<typename P::T> in_place(const KeyPanels<typename P::C>& panels) {
  static_assert(sizeof(typename P::T) == sizeof(typename P::C));
  return {reinterpret_cast<typename P::T*>(panels.first), panels.distance, panels.lanes};
}

// Adds what a block of rows, or one of the signals that it leaves, gives to a block of keys; panels holds dS1, dS2
// and A from its first key on.
template <class P, Part part = Part::pair>
void accumulate_keys(const BwdParams& p, const SequenceMask& mask, const GradBlock<P>& block,
                     const KeyPanels<typename P::T>& panels, const KeyBlock& to,
                     const Gradients<typename P::C>& grads, int64_t signal = 0) {
  using C = typename P::C;
  const int64_t d = p.shape.headdim, dv = p.shape.headdim_v;
  const int64_t ldk = leading<C>(d), ldv = leading<C>(dv);
  const Range keys = to.keys;
  const int64_t place = grads.place(to);
  Range seen[kKeys];
  for (int64_t m = 0; m < keys.size(); ++m) {
    const int64_t key = keys.begin + m;
    const bool mine = mask.interval_of(key) == to.interval;
    seen[m] = mine ? meet(mask.rows_of({key, key + 1}), block.rows) : Range{0, 0};
  }
  const int maps = part == Part::pair ? block.maps : kLastMap<part> + 1;
  for (int c = kFirstMap<part>; c < maps; ++c)
    product_over_ranges<P>(keys.size(), d, seen, block.rows.begin, {panels[c].data, block.lanes, 1},
                           {block.q + block.rows_of(c, signal) * ldk, 0, ldk},
                           {grads.k_rows[c] + place * ldk, ldk});
  if constexpr (part == Part::noise) return;
  product_over_ranges<P>(keys.size(), dv, seen, block.rows.begin, {panels[2].data, block.lanes, 1},
                         {block.dout + block.rows_of(kSignal, signal) * ldv, 0, ldv},
                         {grads.v_rows + place * ldv, ldv});
}

template <class C>
DType gradient_type(const BwdParams& p) {
  return p.partial ? kComputeType<C> : p.dtype;
}

template <class C>
void clear_keys(const Shape& s, const Keys& keys, const Gradients<C>& grads) {
  const int64_t ldk = leading<C>(s.headdim), ldv = leading<C>(s.headdim_v);
  const int64_t place = grads.blocks.place(keys.interval, keys.range.begin);
  const int64_t count = keys.range.size();
  for (int c = 0; c < 2; ++c)
    __builtin_memset(grads.k_rows[c] + place * ldk, 0, count * ldk * sizeof(C));
  __builtin_memset(grads.v_rows + place * ldv, 0, count * ldv * sizeof(C));
}

template <class C>
void store_keys(const BwdParams& p, const Keys& keys, const Gradients<C>& grads) {
  const int64_t d = p.shape.headdim, dv = p.shape.headdim_v;
  const Cache none;
  for (int64_t j = keys.range.begin; j < keys.range.end; ++j) {
    const int64_t place = grads.blocks.place(keys.interval, j);
    for (int c = 0; c < p.shape.k_components; ++c)
      store_row(gradient_type<C>(p), grads.k_rows[c] + place * leading<C>(d), d,
                p.map_grads[c].dk.data,
                KeyRows{p.map_grads[c].dk, none, keys.sequence, keys.head}.offset(j));
    const int64_t to = KeyRows{p.dv, none, keys.sequence, keys.head}.offset(j);
    for_pieces(p.dv, dv, [&](int64_t col, int64_t at, int64_t count) {
      store_row(gradient_type<C>(p), grads.v_rows + place * leading<C>(dv) + col, count, p.dv.data,
                to + at);
    });
  }
}

}  // namespace
}  // namespace diffattn::cpu
