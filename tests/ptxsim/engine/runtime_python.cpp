// The stand-in's Python face: the current device, the pending error, what host code launched.
#include "runtime_python.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

namespace py = pybind11;

namespace ptxsim {

namespace {
// Called from launch code, which may run without the interpreter's lock.
auto locked_probe(py::function f) {
    auto* held = new py::function(std::move(f));  // never freed: static destruction comes after the interpreter's end
    return [held](const std::string& text, const std::string& kernel, const std::string& arch) {
        py::gil_scoped_acquire lock;
        return (*held)(text, kernel, arch).cast<std::pair<int, int>>();
    };
}

auto locked_on_ptx(py::function f) {
    auto* held = new py::function(std::move(f));
    return [held](const std::string& text) {
        py::gil_scoped_acquire lock;
        return (*held)(text).cast<std::string>();
    };
}
}  // namespace

void bind_runtime(py::module_& m) {
    m.def("set_current_device",
          [](std::shared_ptr<Device> device) { Runtime::instance().set_device(std::move(device)); });
    m.def("set_probe", [](py::function f) { Runtime::instance().probe = locked_probe(std::move(f)); });
    m.def("set_on_ptx", [](py::function f) { Runtime::instance().on_ptx = locked_on_ptx(std::move(f)); });
    m.def("take_error", []() -> py::object {
        Runtime& r = Runtime::instance();
        if (!r.pending) return py::none();
        SimError error = *r.pending;
        r.pending.reset();
        r.take_last_error();
        if (error.paragraph.empty()) error.compose();
        return to_python(error);
    });
    m.def("take_reports", [] {
        py::list out;
        for (const auto& [name, report] : Runtime::instance().reports)
            out.append(py::make_tuple(name, to_python(report)));
        Runtime::instance().reports.clear();
        return out;
    });
}

}  // namespace ptxsim
