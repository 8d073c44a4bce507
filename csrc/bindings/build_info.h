// What was compiled in, and which parts of it run here: functions of the Python modules themselves, in the
// limited API, because they take no tensor.
#pragma once
#include <Python.h>

namespace diffattn::bindings {

// _cpu: isa() and instruction_sets().
extern PyMethodDef cpu_build_info[];

}  // namespace diffattn::bindings
