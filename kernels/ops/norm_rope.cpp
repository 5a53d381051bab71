// Elementwise work of a layer: RMS norm, rotary positions, residual sums. Small beside the products, so one plain text
// for every instruction set; results are the same bits on all of them.
#include <cmath>

#include "kernels.h"

namespace smallthinker {

void rmsnorm(const float* x, const float* weight, float eps, int64_t tokens, int64_t dim, float* out) {
  constexpr int64_t kSums = 16;  // partial sums that compilers turn into vectors
  for (int64_t t = 0; t < tokens; ++t, x += dim, out += dim) {
    float sums[kSums] = {};
    int64_t d = 0;
    for (; dim - d >= kSums; d += kSums) {
      for (int64_t i = 0; i < kSums; ++i) sums[i] += x[d + i] * x[d + i];
    }
    for (; d < dim; ++d) sums[d % kSums] += x[d] * x[d];
    for (int64_t width = kSums / 2; width > 0; width /= 2) {
      for (int64_t i = 0; i < width; ++i) sums[i] += sums[i + width];
    }
    const float factor = 1.0f / std::sqrt(sums[0] / static_cast<float>(dim) + eps);
    for (d = 0; d < dim; ++d) out[d] = x[d] * factor * weight[d];
  }
}

void rope_angles(const int64_t* positions, int64_t tokens, int64_t head_dim, double theta, float* cos, float* sin) {
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const double frequency = std::pow(theta, -static_cast<double>(i) / static_cast<double>(half));
    for (int64_t t = 0; t < tokens; ++t) {
      const double angle = static_cast<double>(positions[t]) * frequency;
      cos[t * half + i] = static_cast<float>(std::cos(angle));
      sin[t * half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

void rope(float* x, const float* cos, const float* sin, int64_t tokens, int64_t heads, int64_t head_dim) {
  const int64_t half = head_dim / 2;
  for (int64_t t = 0; t < tokens; ++t, cos += half, sin += half) {
    for (int64_t head = 0; head < heads; ++head, x += head_dim) {
      for (int64_t i = 0; i < half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i] + a * sin[i];
      }
    }
  }
}

void add(float* x, const float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] += y[i];
}

}  // namespace smallthinker
