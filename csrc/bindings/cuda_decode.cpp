// Decoding on CUDA tensors.
#include "cuda_decode.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

namespace diffattn::bindings {
namespace {

// On q's device, whichever is current, and behind what torch has queued there.
void launch(const DecodeParams& p, const Tensor& q) {
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(q.get_device_index(), &stream));
  const Tensor workspace = new_workspace(p, q);
  cuda::decode(p, workspace.data_ptr(), stream);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(DIFFATTN_OPS, CUDA, m) {
  m.impl("decode", TORCH_BOX(&decode_from_schema<cuda_decode<launch>>));
}

}  // namespace diffattn::bindings
