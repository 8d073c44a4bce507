// The Python module _cpu. Importing it is what loads the library; limited API, so one file serves every
// Python.
#include <Python.h>

#include "build_info.h"

extern "C" PyMODINIT_FUNC PyInit__cpu() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT,
                               "_cpu",
                               nullptr,
                               -1,
                               diffattn::bindings::cpu_build_info,
                               nullptr,
                               nullptr,
                               nullptr,
                               nullptr};
  return PyModule_Create(&module);
}
