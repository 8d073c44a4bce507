// What a consumer warpgroup does: attention of its 64 rows for one map.
//
// While the tensor core multiplies P of a tile with V, the warps compute P of the next one from S, which was
// multiplied before.
#pragma once
#include "../../common/accumulators.cuh"
#include "../../common/barrier.cuh"
#include "key_tiles.cuh"
#include "softmax.cuh"
#include "stash.cuh"

namespace diffattn::cuda::sm90 {

template <class T>
class Consumer {
  using Element = typename T::Element;
  using S = float[1][T::kKeys / 8][4];
  using P = uint32_t[1][T::kKeys / 16][4];

 public:
  __device__ Consumer(const FwdParams& params, char* smem)
      : p_(params),
        place_(place_in<T>(smem)),
        seat_(place_),
        smem_(smem),
        barriers_(barriers_in<T>(smem)),
        q_(descriptor_of<typename T::QTile>(smem + T::kQ +
                                            (warpgroup<T>() - 1) * 64 * kPanelRowBytes)),
        k_(descriptor_of<typename T::KTile>(smem + T::kK)),
        v_(descriptor_of<typename T::VTile>(smem + T::kV)),
        sign_(params.softmax_scale < 0 ? -1.f : 1.f) {}

  // o is the sum of P·V, not normalised.
  template <class Origins>
  __device__ void run(int map, Softmax<Element>& softmax, const Origins& origins, OFragment<T>& o) {
    KeyTiles<T> tiles(p_, place_);
    const QuerySlot<T> slot(map);
    wait(barriers_.q_full[slot.tile], slot.parity);  // the copy has landed
    if (!tiles.has_one()) return release_queries();
    const uint32_t q = q_ + slot.tile * (T::QTile::kBytes / 16);
    S s;
    P p;
    Rows exact, factor;
    // The first tile has no product with V to run during its softmax, and the last product with V no softmax.
    clear_behind_the_end(tiles.first_key());
    multiply_qk(q, s);
    finish_products<0>(s);
    release(barriers_.k_empty[keys_.stage]);
    exponentiate(tiles, softmax, origins, s, exact, factor);
    round(softmax, s, exact, p);
    for (tiles.advance(); tiles.has_one(); tiles.advance()) {
      keys_.advance();
      clear_behind_the_end(tiles.first_key());
      multiply_qk(q, s);
      multiply_pv(p, o);
      finish_products<1>(s);
      release(barriers_.k_empty[keys_.stage]);
      const bool grew = exponentiate(tiles, softmax, origins, s, exact, factor);
      finish_products<0>(o);
      hand_over(p);
      release_values();
      if (grew) scale_rows(o, factor);
      round(softmax, s, exact, p);
    }
    release_queries();
    multiply_pv(p, o);
    finish_products<0>(o);
    release_values();
    keys_.advance();
  }

 private:
  // S = Q·Kᵀ, begun.
  __device__ void multiply_qk(uint32_t q, S& s) {
    wait(barriers_.k_full[keys_.stage], keys_.parity);  // the copy has landed
    const uint32_t k = k_ + keys_.stage * (T::KTile::kBytes / 16);
    hand_over(s);
    cute::warpgroup_arrive();
#pragma unroll
    for (int depth = 0; depth < T::kHeadDim / 16; ++depth)
      multiply_shared<Element>(s, q + columns_on<typename T::QTile>(depth),
                               k + columns_on<typename T::KTile>(depth), depth > 0);
    cute::warpgroup_commit_batch();
  }

  // O += P·V, begun.
  __device__ void multiply_pv(P& p, OFragment<T>& o) {
    wait(barriers_.v_full[values_.stage], values_.parity);  // the copy has landed
    const uint32_t v = v_ + values_.stage * (T::VTile::kBytes / 16);
    hand_over(o);
    hand_over(p);
    cute::warpgroup_arrive();
#pragma unroll
    for (int block = 0; block < T::kKeys / 16; ++block)
      multiply_registers<Element>(o, p[0][block], v + rows_on(block));
    cute::warpgroup_commit_batch();
  }

  // Waits until only kYoungest of the products begun are not finished.
  template <int kYoungest, int kTiles>
  __device__ static void finish_products(float (&x)[1][kTiles][4]) {
    cute::warpgroup_wait<kYoungest>();
    hand_over(x);
  }

  // This warp has read the tile. One lane says so for all, because a wait for products is one of the warp.
  __device__ void release(uint64_t& empty) const {
    if (seat_.lane == 0) arrive(empty);
  }

  __device__ void release_values() {
    release(barriers_.v_empty[values_.stage]);
    values_.advance();
  }

  __device__ void release_queries() const {
    if (T::kQTiles == 1) release(barriers_.q_empty);
  }

  // P in the place of S. Returns whether references were raised; then O has to be scaled.
  template <class Origins>
  __device__ bool exponentiate(const KeyTiles<T>& tiles, Softmax<Element>& softmax,
                               const Origins& origins, S& s, Rows& exact, Rows& factor) const {
    // Only hide() gives logits the sign.
    if (sign_ < 0 || !tiles.is_full(seat_.first_row))
      hide(s, tiles.interval(), seat_.first_row, tiles.first_key(), sign_, seat_.lane);
    Rows grown;
    const bool grew = softmax.outgrown(s, grown);
    if (grew) {
      softmax.template raise<Element>(s, grown, factor, origins);
      softmax.take_off_origins(s, origins);
    }
    softmax.exponentiate(s, exact);
    return grew;
  }

  __device__ void round(Softmax<Element>& softmax, const S& s, const Rows& exact, P& p) const {
    softmax.round(s, p);
    softmax.template add<Element>(exact, p, seat_.lane, [](int, int) { return false; });
  }

  // In a packed batch the rows of V behind a sequence's last are the next sequence's. P is zero there, but zero
  // times NaN is NaN.
  __device__ void clear_behind_the_end(int first_key) const {
    if (!p_.varlen.cu_seqlens_k) return;
    const int rows = place_.sequence.seqlen_k - first_key;
    if (rows >= T::kKeys) return;
    wait(barriers_.v_full[keys_.stage], keys_.parity);  // the copy has landed
    constexpr int kChunks = kPanelRowBytes / 16;
    for (int i = seat_.thread(); i < (T::kKeys - rows) * T::VTile::kPanels * kChunks;
         i += T::kConsumerThreads) {
      const int row = rows + i / kChunks / T::VTile::kPanels;
      const int panel = i / kChunks % T::VTile::kPanels;
      *reinterpret_cast<uint4*>(smem_ + T::kV + keys_.stage * T::VTile::kBytes +
                                panel * T::VTile::kPanelBytes + row * kPanelRowBytes +
                                i % kChunks * 16) = {0, 0, 0, 0};
    }
    publish_to_async_proxy();
    named_barrier(1, T::kConsumerThreads);  // both warpgroups' zeros are there
  }

  const FwdParams& p_;
  const Place<T>& place_;
  Seat<T> seat_;
  char* smem_;
  Barriers& barriers_;
  uint32_t q_, k_, v_;  // lower halves of descriptors, of the first of each kind
  float sign_;
  Turn keys_, values_;  // through both maps
};

}  // namespace diffattn::cuda::sm90
