// Checks of numpy arguments: type, shape, order and alignment, before any pointer is used. ValueError says what was
// expected and what was found.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <limits>
#include <string>

#include "formats/formats.h"

namespace smallthinker {

namespace py = pybind11;

constexpr int64_t kLargestDim = int64_t{1} << 30;  // products of two with a few bytes stay within int64

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::string text;
  const auto append = [&text](const auto& part) {
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(part)>>) text += std::to_string(part);
    else text += part;
  };
  (append(parts), ...);
  throw py::value_error(text);
}

inline std::string shape_text(std::initializer_list<int64_t> shape) {
  std::string text = "[";
  for (int64_t n : shape) text += (text.size() > 1 ? ", " : "") + (n < 0 ? std::string("any") : std::to_string(n));
  return text + "]";
}

inline std::string describe(const py::array& a) {
  std::string text = py::cast<std::string>(py::str(a.dtype())) + " [";
  for (py::ssize_t i = 0; i < a.ndim(); ++i) text += (i ? ", " : "") + std::to_string(a.shape(i));
  return text + "]";
}

// A checked array: dimension -1 of the expected shape is any length.
template <class T>
const T* input(const py::array& a, const char* name, std::initializer_list<int64_t> shape) {
  bool fits = py::isinstance<py::array_t<T>>(a) && a.ndim() == static_cast<py::ssize_t>(shape.size());
  if (fits) {
    py::ssize_t i = 0;
    for (int64_t n : shape) {
      const int64_t found = a.shape(i++);
      fits = fits && (n < 0 || found == n) && found <= std::numeric_limits<int32_t>::max() * (shape.size() == 1 ? 1024LL : 1);
    }
  }
  if (!fits) {
    fail(name, ": expected ", py::cast<std::string>(py::str(py::dtype::of<T>())), " ", shape_text(shape), ", found ",
         describe(a));
  }
  if ((a.flags() & py::array::c_style) == 0) fail(name, ": expected a C-contiguous array");
  if (reinterpret_cast<uintptr_t>(a.data()) % alignof(T) != 0) fail(name, ": expected data aligned to ", alignof(T), " bytes");
  return static_cast<const T*>(a.data());
}

template <class T>
T* output(py::array& a, const char* name, std::initializer_list<int64_t> shape) {
  input<T>(a, name, shape);
  if (!a.writeable()) fail(name, ": expected a writeable array");
  return static_cast<T*>(a.mutable_data());
}

// Packed weights. Kernels read f16 and f32 out of the bytes, so they must start at a multiple of four.
inline const uint8_t* packed(const py::array& a, const char* name, int64_t bytes) {
  const uint8_t* data = input<uint8_t>(a, name, {bytes});
  if (reinterpret_cast<uintptr_t>(data) % 4 != 0) fail(name, ": expected data aligned to 4 bytes");
  return data;
}

inline void check_disjoint(const py::array& out, const py::array& in, const char* name) {
  const auto* a = static_cast<const char*>(out.data());
  const auto* b = static_cast<const char*>(in.data());
  if (a < b + in.nbytes() && b < a + out.nbytes()) fail("out: expected memory apart from that of ", name);
}

inline void check_dim(const char* name, int64_t n) {
  if (n < 1 || n > kLargestDim) fail(name, ": expected 1 to ", kLargestDim, ", found ", n);
}

inline Quant parse_quant(const std::string& name) {
  const int found = find_format(name);
  if (found >= 0) return static_cast<Quant>(found);
  std::string names;
  for (const FormatSizes& format : kFormats) names += (names.empty() ? "" : ", ") + std::string(format.name);
  fail("quant: expected one of ", names, ", found '", name, "'");
}

inline Layout parse_layout(const std::string& name) {
  if (name == "tiles") return Layout::tiles;
  if (name == "rows") return Layout::rows;
  fail("layout: expected tiles or rows, found '", name, "'");
}

inline void check_layout(Quant quant, Layout layout) {
  if (layout == Layout::rows && !sizes_of(quant).has_rows) fail("layout: expected tiles, the only one of ", sizes_of(quant).name, ", found rows");
}

inline void check_matrix(Quant quant, int64_t rows, int64_t cols) {
  check_dim("rows", rows);
  check_dim("cols", cols);
  const FormatSizes& sizes = sizes_of(quant);
  if (cols % sizes.block != 0) fail("cols: expected a multiple of ", sizes.block, " for ", sizes.name, ", found ", cols);
}

}  // namespace smallthinker
