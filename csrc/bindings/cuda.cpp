// The ops on CUDA tensors. Those without kernels are refused in diffattn_cuda/ops.py.
#include <Python.h>
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

STABLE_TORCH_LIBRARY_IMPL(diffattn, CUDA, m) {
  m.impl("fwd", TORCH_BOX(&fwd_from_schema<cuda_fwd<launch<FwdParams>>>));
  m.impl("bwd", TORCH_BOX(&bwd_from_schema<cuda_bwd<launch<BwdParams>>>));
  m.impl("decode", TORCH_BOX(&decode_from_schema<cuda_decode<launch<DecodeParams>>>));
  m.impl("components", TORCH_BOX(&components_from_schema<cuda_components<launch<FwdParams>>>));
  m.impl("bwd_partial", TORCH_BOX(&bwd_partial_from_schema<cuda_bwd_partial<launch<BwdParams>>>));
  m.impl("decode_components",
         TORCH_BOX(&decode_components_from_schema<cuda_decode_components<launch<DecodeParams>>>));
}

}  // namespace diffattn::bindings

// Importing this module loads the kernels; see schemas.cpp. Its only name says for which compute capabilities
// the build compiled them.
extern "C" PyMODINIT_FUNC PyInit__cuda() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* created = PyModule_Create(&module);
  if (created && PyModule_AddStringConstant(created, "architectures", DIFFATTN_ARCHITECTURES))
    Py_CLEAR(created);
  return created;
}
