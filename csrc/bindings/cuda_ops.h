// The ops whose kernels are CUDA's, whichever device launches them.
#pragma once
#include <torch/csrc/stable/library.h>

#include "cuda_bwd.h"
#include "cuda_decode.h"

namespace diffattn::bindings {

template <class Device, class Library>
void implement_cuda_ops(Library& m) {
  m.impl("fwd", TORCH_BOX(&fwd_from_schema<cuda_fwd<Device>>));
  m.impl("bwd", TORCH_BOX(&bwd_from_schema<cuda_bwd<Device>>));
  m.impl("decode", TORCH_BOX(&decode_from_schema<cuda_decode<Device>>));
  m.impl("components", TORCH_BOX(&components_from_schema<cuda_components<Device>>));
  m.impl("bwd_partial", TORCH_BOX(&bwd_partial_from_schema<cuda_bwd_partial<Device>>));
  m.impl("decode_components",
         TORCH_BOX(&decode_components_from_schema<cuda_decode_components<Device>>));
}

}  // namespace diffattn::bindings
