// The CUDA runtime stand-in's state: what host code registered and launched.
#pragma once

#include <functional>
#include <memory>

#include "device.h"

namespace pybind11 {
class module_;
class dict;
class object;
}  // namespace pybind11

namespace ptxsim {

void bind_runtime(pybind11::module_& m, std::function<pybind11::dict(const LaunchReport&)> report, std::function<pybind11::object(const SimError&)> error);

}  // namespace ptxsim
