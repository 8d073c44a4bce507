// The twin of csrc/bindings/cuda.cpp for CPU tensors: the same functions and the kernels that ship, linked
// with the simulator's CUDA runtime. Params are handed to Python, which tells the simulator what memory
// their operands describe and then launches.
#include <pybind11/pybind11.h>

#include "../../csrc/bindings/cuda_ops.h"
#include "sim_params.h"

namespace diffattn::bindings {
namespace {

py::object* launcher = nullptr;  // never freed: the interpreter may go first

struct SimulatedDevice {
  template <class Params>
  static void launch(const Params& p, const Tensor& /*q*/) {
    const py::gil_scoped_acquire lock;
    try {
      (*launcher)(py::cast(&p, py::return_value_policy::reference));
    } catch (const py::error_already_set& error) {  // torch knows another pybind11
      throw std::runtime_error(error.what());
    }
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffattn_sim, CPU, m) { implement_cuda_ops<SimulatedDevice>(m); }

PYBIND11_MODULE(sim_binding, m) {
  bind_params(m);
  m.def("set_launcher", [](py::object f) { launcher = new py::object(std::move(f)); });
}

}  // namespace diffattn::bindings
