// The ops on CUDA tensors. Without this module, diffattn_cuda/_ops.py refuses CUDA tensors.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cuda.h"

namespace diffattn::bindings {
namespace {

// On q's device, whichever is current, and behind what torch has queued there.
void launch(const FwdParams& p, const Tensor& q) {
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(q.get_device_index(), &stream));
  cuda::fwd(p, stream);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(DIFFATTN_OPS, CUDA, m) {
  m.impl("fwd", TORCH_BOX(&fwd_from_schema<cuda_fwd<launch>>));
}

}  // namespace diffattn::bindings
