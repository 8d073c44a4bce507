// The ops on CUDA tensors. Without this module, diffattn_cuda/_ops.py refuses CUDA tensors.
#include <torch/csrc/stable/accelerator.h>

#include "cuda_ops.h"

namespace diffattn::bindings {
namespace {

struct QueryDevice {
  // On q's device, whichever device is current, and after everything that torch has queued there.
  template <class Params>
  static void launch(const Params& p, const Tensor& q) {
    const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(q.get_device_index(), &stream));
    const auto chosen = cuda::choose(p);
    OptionalTensor workspace;
    if (const int64_t bytes = chosen.workspace(p))
      workspace = torch::stable::new_empty(q, {bytes}, ScalarType::Byte);
    chosen.launch(p, workspace ? workspace->data_ptr() : nullptr,
                  static_cast<CUstream_st*>(stream));
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(DIFFATTN_OPS, CUDA, m) { implement_cuda_ops<QueryDevice>(m); }

}  // namespace diffattn::bindings
