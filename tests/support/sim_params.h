// Params as Python sees them: what tests read or alter of them, the tensors that csrc/operands.h lists, and the
// launch.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../../csrc/bindings/views.h"

namespace py = pybind11;

namespace diffattn::bindings {

// Each tensor of a launch: name, role, address, bytes of an element; and of each dimension its name, size and
// stride.
template <class Params>
py::list operands_of(const Params& p) {
  py::list found;
  const Extents e = extents(p);
  const auto itemsize_of = [](const Operand& o) { return o.holds == Holds::elements ? 2 : 4; };
  const auto add = [&](const Operand& o, const void* data, const auto& stride_of) {
    std::vector<const char*> names;
    std::vector<int64_t> strides;
    for_each_dim(o, e.packed, [&](int64_t, Dim dim) {
      names.push_back(name_of(dim, e.packed));
      strides.push_back(stride_of(dim));
    });
    found.append(py::make_tuple(o.name, int(o.role), reinterpret_cast<uintptr_t>(data),
                                itemsize_of(o), names, sizes_of(o, e), strides));
  };
  for_each_view(p, [&](const Operand& o, const View& signal, const auto&... noise) {
    int64_t map = 0;  // from the signal's numbers to the noise's
    ((map = static_cast<char*>(noise.data) - static_cast<char*>(signal.data)), ...);
    add(o, signal.data, [&](Dim dim) {
      const auto along = stride_along(dim);
      return along ? signal.*along : is_of_maps(dim) ? map / itemsize_of(o) : 1;
    });
  });
  for_each_pointer(p, [&](const Operand& o, const void* data, int64_t row) {
    add(o, data, [&](Dim dim) { return dim == o.dims[o.rank - 1] ? int64_t(1) : row; });
  });
  return found;
}

template <class Params>
std::vector<View*> views_of(Params& p, const std::string& name) {
  std::vector<View*> views;
  for_each_view(p, [&](const Operand& o, View& signal, auto&... noise) {
    if (name == o.name) views = {&signal, &noise...};
  });
  return views;
}

// lend(bytes) makes the workspace. The simulator asks Python for the kernels' registers, so the lock is free.
template <class Params>
void launch_on_simulator(const Params& p, const py::object& lend, uintptr_t stream) {
  const auto chosen = cuda::choose(p);
  const auto workspace = lend(chosen.workspace(p)).template cast<uintptr_t>();
  const py::gil_scoped_release unlocked;
  chosen.launch(p, reinterpret_cast<void*>(workspace), reinterpret_cast<CUstream_st*>(stream));
}

template <class Params>
void bind_params_of(py::module_& m, const char* name) {
  py::class_<Params>(m, name)
      .def(py::init<>())
      .def_readwrite("shape", &Params::shape)
      .def_readwrite("softmax_scale", &Params::softmax_scale)
      .def("views", &views_of<Params>, py::return_value_policy::reference)
      .def("operands", &operands_of<Params>)
      .def("workspace", [](const Params& p) { return cuda::choose(p).workspace(p); })
      .def("launch", &launch_on_simulator<Params>, py::arg("lend"), py::arg("stream") = 0);
}

inline void bind_params(py::module_& m) {
  py::class_<View>(m, "View")
      .def_property(
          "data", [](const View& v) { return reinterpret_cast<uintptr_t>(v.data); },
          [](View& v, uintptr_t at) { v.data = reinterpret_cast<void*>(at); })
      .def_readwrite("batch", &View::batch)
      .def_readwrite("row", &View::row)
      .def_readwrite("head", &View::head);
  py::class_<Shape>(m, "Shape")
      .def_readwrite("batch", &Shape::batch)
      .def_readwrite("seqlen_q", &Shape::seqlen_q)
      .def_readwrite("seqlen_k", &Shape::seqlen_k)
      .def_readwrite("nheads", &Shape::nheads)
      .def_readwrite("headdim", &Shape::headdim);
  bind_params_of<FwdParams>(m, "FwdParams");
  bind_params_of<BwdParams>(m, "BwdParams");
  bind_params_of<DecodeParams>(m, "DecodeParams");
}

}  // namespace diffattn::bindings
