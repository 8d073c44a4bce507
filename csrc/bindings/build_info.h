// What was compiled in, and what of it runs here: functions of the Python modules themselves, in the
// limited API, because no tensor takes part.
#pragma once
#include <Python.h>

namespace diffattn::bindings {

// _cpu: isa() and instruction_sets().
extern PyMethodDef cpu_build_info[];

}  // namespace diffattn::bindings
