// Python objects of what stands around the parts of a layer: norms, and how what a part gives changes the state. Checked
// when they are made.
#pragma once

#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bindings/checks.h"

namespace smallthinker {

// A norm, checked once.
class BoundNorm {
 public:
  BoundNorm(int64_t size, float eps, const std::optional<py::array>& weight, const std::optional<py::array>& bias,
            const std::string& kind)
      : weight_(weight), bias_(bias) {
    check_dim("size", size);
    if (kind != "rms" && kind != "layer") fail("kind: expected rms or layer, found '", kind, "'");
    norm_ = {size, eps, kind == "layer", optional_floats(weight, "weight", size), optional_floats(bias, "bias", size)};
  }
  const Norm& norm() const { return norm_; }

  static const float* optional_floats(const std::optional<py::array>& a, const char* name, int64_t size) {
    return a ? input<float>(*a, name, {size}) : nullptr;
  }

 private:
  std::optional<py::array> weight_, bias_;  // whose memory norm_ points to
  Norm norm_;
};

// How a part of a layer changes the state, checked once.
class BoundResidual {
 public:
  BoundResidual(const std::optional<BoundNorm>& norm, float scale, float output_scale)
      : norm_(norm), residual_{norm ? norm->norm() : Norm{}, scale, output_scale} {}
  // For states [T, hidden].
  const Residual& residual(int64_t hidden) const {
    const int64_t size = residual_.norm.size;
    if (size > 0 && size != hidden) fail("residual: expected a norm of ", hidden, ", found ", size);
    return residual_;
  }

 private:
  std::optional<BoundNorm> norm_;  // whose memory residual_ points to
  Residual residual_;
};

}  // namespace smallthinker
