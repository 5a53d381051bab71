// What a lent call left as Python's error, as an exception of this module.
#pragma once

#include <pybind11/pybind11.h>

namespace smallthinker {

inline void throw_unless(bool went_well) {
  if (!went_well) throw pybind11::error_already_set();
}

inline void clear_error_unless(bool went_well) {
  if (!went_well) PyErr_Clear();
}

}  // namespace smallthinker
