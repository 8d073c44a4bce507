// The ops on CUDA tensors. Without this module, diffattn_cuda/_ops.py refuses CUDA tensors.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cuda_bwd.h"
#include "cuda_decode.h"

namespace diffattn::bindings {
namespace {

// On q's device, whichever device is current, and after everything that torch has queued there.
template <class Params>
void launch(const Params& p, const Tensor& q) {
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(q.get_device_index(), &stream));
  const auto chosen = cuda::choose(p);
  OptionalTensor workspace;
  if (const int64_t bytes = chosen.workspace(p))
    workspace = torch::stable::new_empty(q, {bytes}, ScalarType::Byte);
  chosen.launch(p, workspace ? workspace->data_ptr() : nullptr, static_cast<CUstream_st*>(stream));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(DIFFATTN_OPS, CUDA, m) {
  m.impl("fwd", TORCH_BOX(&fwd_from_schema<cuda_fwd<launch<FwdParams>>>));
  m.impl("bwd", TORCH_BOX(&bwd_from_schema<cuda_bwd<launch<BwdParams>>>));
  m.impl("decode", TORCH_BOX(&decode_from_schema<cuda_decode<launch<DecodeParams>>>));
  m.impl("components", TORCH_BOX(&components_from_schema<cuda_components<launch<FwdParams>>>));
  m.impl("bwd_partial", TORCH_BOX(&bwd_partial_from_schema<cuda_bwd_partial<launch<BwdParams>>>));
  m.impl("decode_components",
         TORCH_BOX(&decode_components_from_schema<cuda_decode_components<launch<DecodeParams>>>));
}

}  // namespace diffattn::bindings
