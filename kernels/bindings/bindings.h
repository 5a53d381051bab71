// What the files of the Python module register. Each checks its arguments, releases the GIL and calls a kernel; shapes and
// meanings are in _kernels.pyi.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace smallthinker {

namespace py = pybind11;

void register_formats(py::module_& m);
void register_ops(py::module_& m);
void register_model(py::module_& m);

}  // namespace smallthinker
