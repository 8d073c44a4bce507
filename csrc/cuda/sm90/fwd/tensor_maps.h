// The tensors as TMA reads them: boxes of 64 columns and some rows of one head.
#pragma once
#include <cuda.h>

#include "../../../diffattn.h"

namespace diffattn::cuda::sm90 {

// By map of the head.
struct TensorMaps {
  CUtensorMap q[2], k[2], v;
};

// Of a box.
struct TileRows {
  int queries, keys;
};

// Whether the driver can make maps, and maps can describe these tensors.
bool has_tensor_maps(const FwdParams&);

// False if the driver refuses one.
bool make_tensor_maps(const FwdParams&, TileRows, TensorMaps&);

}  // namespace diffattn::cuda::sm90
