// For what this module lends to another: an exception doesn't cross, which would take one C++ runtime for both; Python's
// error does.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>
#include <new>

#include "../../kernels/forks_bindings.h"

namespace smallthinker {

// Whether the work ended without an exception; if not, it is Python's error now.
template <class Work>
bool without_exception(Work&& work) noexcept {
  try {
    work();
    return true;
  } catch (pybind11::error_already_set& error) {
    error.restore();
  } catch (const pybind11::builtin_exception& error) {
    error.set_error();
  } catch (const Forked&) {
    set_forked_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return false;
}

}  // namespace smallthinker
