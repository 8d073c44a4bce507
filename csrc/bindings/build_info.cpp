#include "build_info.h"

#include <exception>

#include "../diffattn.h"

namespace diffattn::bindings {
namespace {

PyObject* isa(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(cpu::isa());
  } catch (const std::exception& error) {  // DIFFATTN_CPU_ISA names a set that is not there
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyObject* instruction_sets(PyObject*, PyObject*) {
  PyObject* sets = PyDict_New();
  for (int i = 0; sets; ++i) {
    const cpu::InstructionSet set = cpu::instruction_set(i);
    if (!set.name) break;
    if (PyDict_SetItemString(sets, set.name, set.runs_here ? Py_True : Py_False)) Py_CLEAR(sets);
  }
  return sets;
}

}  // namespace

PyMethodDef cpu_build_info[] = {
    {"isa", isa, METH_NOARGS, nullptr},
    {"instruction_sets", instruction_sets, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace diffattn::bindings
