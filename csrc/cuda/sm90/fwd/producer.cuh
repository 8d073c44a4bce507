// What the producer's one thread does: it copies the tiles of Q, K and V for both maps.
#pragma once
#include "key_tiles.cuh"

namespace diffattn::cuda::sm90 {

template <class T>
class Producer {
 public:
  __device__ Producer(const FwdParams& params, const TensorMaps& maps, char* smem)
      : p_(params),
        maps_(maps),
        place_(place_in<T>(smem)),
        smem_(smem),
        barriers_(barriers_in<T>(smem)) {}

  __device__ void run() {
    for (int map = kNoise; map >= kSignal; --map) {
      KeyTiles<T> tiles(p_, place_);
      if (tiles.has_one()) load_keys(map, tiles.first_key());
      load_queries(map);  // behind keys, because their place may not be free yet
      while (tiles.has_one()) {
        const int first_key = tiles.first_key();
        tiles.advance();
        if (tiles.has_one())
          load_keys(map, tiles.first_key());  // consumers want them before values
        load_values(first_key);
      }
    }
  }

 private:
  __device__ void load_queries(int map) {
    const QuerySlot<T> slot(map);
    if (T::kQTiles == 1)
      wait(barriers_.q_empty, slot.parity ^ 1);  // all warps have read the queries before
    load<typename T::QTile>(smem_ + T::kQ + slot.tile * T::QTile::kBytes, maps_.q[map],
                            p_.maps[map].q, place_.head, int(place_.sequence.q_begin) + place_.row,
                            barriers_.q_full[slot.tile]);
  }

  __device__ void load_keys(int map, int first_key) {
    wait(barriers_.k_empty[keys_.stage],
         keys_.parity ^ 1);  // all warps have read the tile before
    load<typename T::KTile>(smem_ + T::kK + keys_.stage * T::KTile::kBytes, maps_.k[map],
                            p_.maps[map].k, place_.head_k, int(place_.sequence.k_begin) + first_key,
                            barriers_.k_full[keys_.stage]);
    keys_.advance();
  }

  __device__ void load_values(int first_key) {
    wait(barriers_.v_empty[values_.stage],
         values_.parity ^ 1);  // all warps have read the tile before
    load<typename T::VTile>(smem_ + T::kV + values_.stage * T::VTile::kBytes, maps_.v, p_.v,
                            place_.head_k, int(place_.sequence.k_begin) + first_key,
                            barriers_.v_full[values_.stage]);
    values_.advance();
  }

  // A copy for each panel. A broadcast dimension has one element (make_map).
  template <class Tile>
  __device__ void load(char* tile, const CUtensorMap& map, const View& of, int head, int row,
                       uint64_t& full) const {
    arrive_for(full, Tile::kBytes);
#pragma unroll
    for (int panel = 0; panel < Tile::kPanels; ++panel)
      copy_box(tile + panel * Tile::kPanelBytes, map, panel * kPanelCols, row, of.head ? head : 0,
               of.batch ? int(place_.sequence.batch) : 0, full);
  }

  const FwdParams& p_;
  const TensorMaps& maps_;
  const Place<T>& place_;
  char* smem_;
  Barriers& barriers_;
  Turn keys_, values_;  // through both maps
};

}  // namespace diffattn::cuda::sm90
