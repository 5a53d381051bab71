// Forked as a Python exception.
#pragma once

#include <pybind11/pybind11.h>

#include "forks.h"

namespace smallthinker {

inline void set_forked_error() {
  const pybind11::object kind = pybind11::module_::import("smallthinker.errors").attr("ForkedError");
  PyErr_SetNone(kind.ptr());
}

inline void translate_forked() {
  pybind11::register_local_exception_translator([](std::exception_ptr error) {
    try {
      std::rethrow_exception(error);
    } catch (const Forked&) {
      set_forked_error();
    }
  });
}

}  // namespace smallthinker
