// The ops on CUDA tensors. Those without kernels are refused in diffattn_cuda/ops.py.
#include <Python.h>
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

STABLE_TORCH_LIBRARY_IMPL(diffattn, CUDA, m) {
  m.impl("fwd", TORCH_BOX(&fwd_from_schema<cuda_fwd<launch>>));
}

}  // namespace diffattn::bindings

// Importing this module is what loads the kernels; see schemas.cpp. Its one name says for which
// compute capabilities the build compiled them.
extern "C" PyMODINIT_FUNC PyInit__cuda() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* created = PyModule_Create(&module);
  if (created && PyModule_AddStringConstant(created, "architectures", DIFFATTN_ARCHITECTURES))
    Py_CLEAR(created);
  return created;
}
