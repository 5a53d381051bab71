// Elementwise work of a layer: norms, rotary positions, residual sums. Small beside the products, so one plain text
// for every instruction set; results are the same bits on all of them.
#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace smallthinker {

namespace {

template <class Term>
float sum(int64_t n, const Term& term) {
  constexpr int64_t kSums = 16;  // partial sums that compilers turn into vectors
  float sums[kSums] = {};
  int64_t i = 0;
  for (; n - i >= kSums; i += kSums) {
    for (int64_t j = 0; j < kSums; ++j) sums[j] += term(i + j);
  }
  for (; i < n; ++i) sums[i % kSums] += term(i);
  for (int64_t width = kSums / 2; width > 0; width /= 2) {
    for (int64_t j = 0; j < width; ++j) sums[j] += sums[j + width];
  }
  return sums[0];
}

}  // namespace

void norm(const Norm& how, const float* x, int64_t rows, float* out) {
  const int64_t n = how.size;
  const float *weight = how.weight, *bias = how.bias;
  for (int64_t row = 0; row < rows; ++row, x += n, out += n) {
    const float mean = how.centred ? sum(n, [x](int64_t i) { return x[i]; }) / static_cast<float>(n) : 0.0f;
    const float squares = sum(n, [x, mean](int64_t i) { return (x[i] - mean) * (x[i] - mean); });
    const float factor = 1.0f / std::sqrt(squares / static_cast<float>(n) + how.eps);
    if (weight == nullptr) {
      for (int64_t i = 0; i < n; ++i) out[i] = (x[i] - mean) * factor;
    } else {
      for (int64_t i = 0; i < n; ++i) out[i] = (x[i] - mean) * factor * weight[i];
    }
    if (bias != nullptr) add(out, bias, n);
  }
}

void norm_or_copy(const Norm& how, const float* x, int64_t rows, int64_t dim, float* out) {
  if (how.size > 0) norm(how, x, rows, out);
  else std::copy_n(x, rows * dim, out);
}

void rope_angles(const int64_t* positions, int64_t tokens, const double* frequencies, const double* factors, int64_t pairs,
                 float* cos, float* sin) {
  for (int64_t i = 0; i < pairs; ++i) {
    for (int64_t t = 0; t < tokens; ++t) {
      const double angle = static_cast<double>(positions[t]) * frequencies[i];
      cos[t * pairs + i] = static_cast<float>(std::cos(angle) * factors[i]);
      sin[t * pairs + i] = static_cast<float>(std::sin(angle) * factors[i]);
    }
  }
}

void rope(float* x, const Angles& angles, int64_t at, const Rotation& how, int64_t tokens, int64_t heads, int64_t head_dim) {
  const int64_t pairs = how.pairs;
  for (int64_t t = 0; t < tokens; ++t) {
    const float* const cos = angles.cos + (at + t) * angles.pairs + how.first;
    const float* const sin = angles.sin + (at + t) * angles.pairs + how.first;
    for (int64_t head = 0; head < heads; ++head, x += head_dim) {
      if (how.interleaved) {
        for (int64_t i = 0; i < pairs; ++i) {
          const float a = x[2 * i], b = x[2 * i + 1];
          x[2 * i] = a * cos[i] - b * sin[i];
          x[2 * i + 1] = b * cos[i] + a * sin[i];
        }
      } else {
        for (int64_t i = 0; i < pairs; ++i) {
          const float a = x[i], b = x[i + pairs];
          x[i] = a * cos[i] - b * sin[i];
          x[i + pairs] = b * cos[i] + a * sin[i];
        }
      }
    }
  }
}

void add(float* x, const float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] += y[i];
}

void clamp(float* x, int64_t n, float limit) {
  for (int64_t i = 0; i < n; ++i) x[i] = std::min(std::max(x[i], -limit), limit);  // in this order a NaN stays
}

void add_residual(const Residual& how, float* y, int64_t rows, int64_t dim, float* x) {
  if (how.norm.size > 0) norm(how.norm, y, rows, y);
  for (int64_t i = 0; i < rows * dim; ++i) x[i] += how.scale * y[i];
  if (how.output_scale == 1.0f) return;
  for (int64_t i = 0; i < rows * dim; ++i) x[i] *= how.output_scale;
}

}  // namespace smallthinker
