// How the backward's work is cut: tiles, warps, and the map of shared memory.
#pragma once
#include "../bwd_workspace.h"
#include "mma.cuh"

namespace diffattn::cuda::sm80 {

template <class Element_, int kHeadDim_, int kHeadDimV_>
struct BwdTraits {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_, kHeadDimV = kHeadDimV_;
  static constexpr int kWarps = 8, kThreads = 32 * kWarps;
  static constexpr int kRows = kRowBlock;  // a step
  // Both components share K, so dK is one sum (DIFF V2).
  static constexpr bool kJointK = kHeadDim == kHeadDimV;
  static constexpr int kComponentsK = kJointK ? 1 : 2;
  static constexpr int kKeys = kJointK || kHeadDim <= 64 ? 128 : 64;

  // S1, S2 and dP: a warp has 16 keys and kRowTiles·16 rows.
  static constexpr int kRowGroups = kWarps / (kKeys / 16);
  static constexpr int kRowTiles = kRows / 16 / kRowGroups;

  // dV, dK1, dK2: a warp has kGradKeys keys and kGradCols columns, either of one of the three, laid
  // side by side, or, if K is shared, of dV and of dK.
  static constexpr int kGradKeys = kJointK ? 32 : 64;
  static constexpr int kGradColGroups = kWarps / (kKeys / kGradKeys);
  static constexpr int kGradCols = (kJointK ? kHeadDim : 4 * kHeadDim) / kGradColGroups;
  static constexpr int kQuarter = kJointK ? 1 : kGradColGroups / 4;  // groups of one of dK1, dK2
  static constexpr int kGradKeyTiles = kGradKeys / 16, kGradColTiles = kGradCols / 8;

  // dQ1, dQ2, laid side by side: a warp has kDqRowTiles·16 rows and kDqCols columns.
  static constexpr int kDqColGroups = kHeadDim % 64 == 0 ? 8 : 4;
  static constexpr int kDqRowTiles = kRows / 16 * kDqColGroups / kWarps;
  static constexpr int kDqCols = 2 * kHeadDim / kDqColGroups;

  // Before the main kernel: lanes that share a row of u, a chunk of columns each.
  static constexpr int kRowLanes =
      kHeadDimV > 128 ? 32 : kHeadDimV > 64 ? 16 : kHeadDimV > 32 ? 8 : 4;

  static constexpr int kPanelK = kDqCols == 48 ? 16 : panel_of<kHeadDim>();
  using QTile = Tile<kRows, kHeadDim, panel_of<kGradCols>()>;   // one component
  using UTile = Tile<kRows, kHeadDimV, panel_of<kGradCols>()>;
  using KTile = Tile<kKeys, kHeadDim, kPanelK>;                 // one component
  using VTile = Tile<kKeys, kHeadDimV, panel_of<kHeadDimV>()>;  // only until V is in registers
  using MapTile = Tile<kRows, kKeys, 64>;                       // A, dS1 or dS2
  using OutTile = Tile<kGradKeys, kGradCols, panel_of<kGradCols>()>;  // one warp's

  // K, two stages of Q1 and Q2, one or two of u, the maps, two stages of the row constants.
  static constexpr int kQBytes = 2 * QTile::kBytes;
  static constexpr int kBytesBesidesU =
      kComponentsK * KTile::kBytes + 2 * kQBytes + 3 * MapTile::kBytes + 2 * sizeof(RowConstants);
  static constexpr int kMostBytes = 99 << 10;  // what every device from 8.0 on has
  static constexpr int kStagesU = kBytesBesidesU + 2 * UTile::kBytes <= kMostBytes ? 2 : 1;
  static constexpr int kQ = kComponentsK * KTile::kBytes;
  static constexpr int kU = kQ + 2 * kQBytes;
  static constexpr int kMaps = kU + kStagesU * UTile::kBytes;
  static constexpr int kConstants = kMaps + 3 * MapTile::kBytes;
  static constexpr int kSmemBytes = kConstants + 2 * sizeof(RowConstants);
  static_assert(kSmemBytes <= kMostBytes);
  // V comes through the place of Q, u and the maps, the outputs leave through all.
  static_assert(VTile::kBytes <= kConstants - kQ);
  static_assert(kWarps * OutTile::kBytes <= kSmemBytes);
  static_assert(kWarps / 4 * kGradKeys * kGradCols * 4 <= kSmemBytes);
};

}  // namespace diffattn::cuda::sm80
