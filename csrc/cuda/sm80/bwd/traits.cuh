// How the backward's work is cut: tiles, warps, and the map of shared memory.
#pragma once
#include "../../common/mma.cuh"
#include "panel.cuh"
#include "workspace.h"

namespace diffattn::cuda::sm80 {

template <class Element_, int kHeadDim_, int kHeadDimV_>
struct BwdTraits {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_, kHeadDimV = kHeadDimV_;
  static constexpr bool kCapped = false;  // see Capped
  static constexpr int kWarps = 8, kThreads = 32 * kWarps;
  static constexpr int kRows = kRowBlock;  // per step
  // Both components share K, so dK is one sum (DIFF V2).
  static constexpr bool kJointK = kHeadDim == kHeadDimV;
  static constexpr int kComponentsK = kJointK ? 1 : 2;
  static constexpr int kKeys = kJointK || kHeadDim <= 64 ? 128 : 64;
  // A step leaves out the parts of the keys that none of its rows sees: half of a mask's diagonal.
  static constexpr int kPartKeys = 64, kParts = kKeys / kPartKeys;

  // S1, S2 and dP: a warp has 16 keys and kRowTiles·16 rows.
  static constexpr int kRowGroups = kWarps / (kKeys / 16);
  static constexpr int kRowTiles = kRows / 16 / kRowGroups;

  // dV, dK1, dK2: a warp has kGradKeys keys, and kGradCols columns of one of the three, which lie side by side; if
  // K is shared, of both dV and dK.
  static constexpr int kGradKeys = kJointK ? 32 : 64;
  static constexpr int kGradColGroups = kWarps / (kKeys / kGradKeys);
  static constexpr int kGradCols = (kJointK ? kHeadDim : 4 * kHeadDim) / kGradColGroups;
  static constexpr int kQuarter = kJointK ? 1 : kGradColGroups / 4;  // groups of one of dK1, dK2
  static constexpr int kGradKeyTiles = kGradKeys / 16, kGradColTiles = kGradCols / 8;

  // A warp's keys, both for the scores and for the gradients, belong to one part.
  static constexpr int kPartWarps = kWarps / kParts;
  static_assert(kRowGroups * (kPartKeys / 16) == kPartWarps);
  static_assert(kGradColGroups * (kPartKeys / kGradKeys) == kPartWarps);

  // dQ1, dQ2, laid side by side: a warp has kDqRowTiles·16 rows and kDqCols columns.
  static constexpr int kDqColGroups = kHeadDim % 64 == 0 ? 8 : 4;
  static constexpr int kDqRowTiles = kRows / 16 * kDqColGroups / kWarps;
  static constexpr int kDqCols = 2 * kHeadDim / kDqColGroups;

  // Before the main kernel: lanes that share a row of u, each with a chunk of columns.
  static constexpr int kRowLanes = kHeadDimV > 128  ? 32
                                   : kHeadDimV > 64 ? 16
                                   : kHeadDimV > 32 ? 8
                                                    : 4;

  // All tiles of a step's rows have the same panels.
  using QTile = PanelTile<kRows, kHeadDim>;  // one component
  using UTile = PanelTile<kRows, kHeadDimV>;
  using KTile = PanelTile<kKeys, kHeadDim>;    // one component
  using VTile = PanelTile<kKeys, kHeadDimV>;   // only until V is in registers
  using MapTile = PanelTile<kRows, kKeys>;     // A, dS1 or dS2
  using OutTile = Tile<kGradKeys, kGradCols>;  // one warp's

  // What the preparation leaves for a block of rows. In shared memory it lies in the same order.
  static constexpr int kRowsBytes = kConstantsBytes + UTile::kBytes;

  // K, two stages of (row constants, Q1, Q2, u), the maps. If that does not fit, there is one u, between the
  // stages and the maps.
  static constexpr int kMostBytes = 99 << 10;  // what every device from 8.0 on has
  static constexpr int kBytesBesidesU = kComponentsK * KTile::kBytes + 3 * MapTile::kBytes +
                                        2 * (kConstantsBytes + 2 * QTile::kBytes);
  static constexpr bool kTwoStagesU = kBytesBesidesU + 2 * UTile::kBytes <= kMostBytes;
  static constexpr int kStages = kComponentsK * KTile::kBytes;
  static constexpr int kQ = kStages + kConstantsBytes;
  static constexpr int kStageBytes =
      kConstantsBytes + 2 * QTile::kBytes + (kTwoStagesU ? UTile::kBytes : 0);
  static constexpr int kU = kTwoStagesU ? kQ + 2 * QTile::kBytes : kStages + 2 * kStageBytes;
  static constexpr int kMaps = kStages + 2 * kStageBytes + (kTwoStagesU ? 0 : UTile::kBytes);
  static constexpr int kSmemBytes = kMaps + 3 * MapTile::kBytes;
  static_assert(kSmemBytes <= kMostBytes);
  // V arrives in the place of the stages. The outputs leave through the whole of shared memory.
  static_assert(kStages + VTile::kBytes <= kMaps);
  static_assert(kWarps * OutTile::kBytes <= kSmemBytes);
  static_assert(kWarps / 4 * kGradKeys * kGradCols * 4 <= kSmemBytes);
};

}  // namespace diffattn::cuda::sm80
