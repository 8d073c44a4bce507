// The Python module _cuda. Importing it is what loads the kernels; see cpu_module.cpp. Its one name says for which
// compute capabilities the build compiled them.
#include <Python.h>

extern "C" PyMODINIT_FUNC PyInit__cuda() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* created = PyModule_Create(&module);
  if (created && PyModule_AddStringConstant(created, "architectures", DIFFATTN_ARCHITECTURES))
    Py_CLEAR(created);
  return created;
}
