#pragma once

#include <pybind11/pybind11.h>

#include "runtime.h"

namespace ptxsim {

pybind11::dict to_python(const LaunchReport& report);
pybind11::object to_python(const SimError& error);
void bind_runtime(pybind11::module_& m);

}  // namespace ptxsim
