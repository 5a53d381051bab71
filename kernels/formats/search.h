// Scales and mins of few bits with little squared error, searched: rounding goes by one that is tried, and a line is fitted
// to what it gave. Plain arithmetic in one order, so that every CPU finds the same; in lanes, so that compilers make vectors.
#pragma once

#include <cmath>
#include <cstdint>

namespace smallthinker {
namespace {
namespace format {

// To the nearest whole number, halves to even, and from `least` to `most`; NaN is the least.
inline float round_within(float x, float least, float most) {
  const float above = x > least ? x : least, within = above < most ? above : most;
  return (within + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23
}
inline int32_t round_to_int(float x, int32_t least, int32_t most) {
  return static_cast<int32_t>(round_within(x, static_cast<float>(least), static_cast<float>(most)));
}

inline bool all_finite(const float* w, int64_t n) {
  float of_zeros = 0.0f;  // 0 * inf and 0 * NaN are NaN
  for (int64_t i = 0; i < n; ++i) of_zeros += w[i] * 0.0f;
  return of_zeros == 0.0f;
}

// What to multiply a block's plain scale with, by which its extreme weight is -8, for little squared error of levels from -8
// to 7: of 13 scales from 3/4 of it to 9/8, the line through the levels that one gives. With the extreme at 7 nothing is won.
// x: the weights by the plain scale, in 64ths; counts: how much the error of each counts, at most 127. In integers, twice as
// fast as floats, and sums have no order.
inline float multiple_of_scale(const int16_t* x, const int16_t* counts) {
  float best = 1.0f, most = 0.0f;
  for (int16_t tried = 24; tried <= 36; ++tried) {
    int32_t squares = 0, products = 0;
    for (int i = 0; i < 32; ++i) {
      const auto in_2048ths = static_cast<int16_t>(x[i] * tried + 1024);
      auto n = static_cast<int16_t>(in_2048ths >> 11);
      n = n < int16_t{-8} ? int16_t{-8} : n;
      n = n > int16_t{7} ? int16_t{7} : n;
      const auto counted = static_cast<int16_t>(n * counts[i]);
      squares += counted * n;
      products += counted * x[i];
    }
    const float slope = static_cast<float>(products) / static_cast<float>(squares), kept = static_cast<float>(products) * slope;
    if (!(kept > most)) continue;
    most = kept;
    best = slope / 64.0f;
  }
  return best;
}

constexpr int kSumLanes = 8;
struct Lanes {
  float of[kSumLanes] = {};
  float sum() const { return ((of[0] + of[4]) + (of[1] + of[5])) + ((of[2] + of[6]) + (of[3] + of[7])); }
};

// Of kCount weights that are scale * n - min, n from kLeast to kMost; a min is never below 0.
struct Line {
  float scale = 0.0f, min = 0.0f;
};

template <int kCount, int32_t kLeast, int32_t kMost>
struct Search {
  static float error(const float* w, const Line& line) {
    const float inverse = line.scale != 0.0f ? 1.0f / line.scale : 0.0f;
    Lanes errors;
    for (int i = 0; i < kCount; i += kSumLanes) {
      for (int lane = 0; lane < kSumLanes; ++lane) {
        const float x = w[i + lane], n = round_within((x + line.min) * inverse, kLeast, kMost);
        const float off = (line.scale * n - line.min) - x;
        errors.of[lane] += off * off;
      }
    }
    return errors.sum();
  }

  // The line with the least squared error among those that fit what rounding by `first`, and by scales up to a quarter
  // larger, gives.
  static Line find(const float* w, const Line& first, bool has_min) {
    constexpr int kTries = 12;
    Line best = first;
    if (first.scale == 0.0f) return best;
    float least = error(w, first);
    for (int i = 0; i < kTries; ++i) {
      const float inverse = (0.8f + 0.025f * static_cast<float>(i)) / first.scale;
      Lanes total, sum, squares, products;
      for (int j = 0; j < kCount; j += kSumLanes) {
        for (int lane = 0; lane < kSumLanes; ++lane) {
          const float x = w[j + lane], n = round_within((x + first.min) * inverse, kLeast, kMost);
          total.of[lane] += x;
          sum.of[lane] += n;
          squares.of[lane] += n * n;
          products.of[lane] += n * x;
        }
      }
      const float x = total.sum(), n = sum.sum(), nn = squares.sum(), nx = products.sum(), spread = kCount * nn - n * n;
      if (!(nn > 0.0f)) continue;
      Line line{nx / nn, 0.0f};
      if (has_min && spread > 0.0f && n * nx > nn * x) line = {(kCount * nx - x * n) / spread, (n * nx - nn * x) / spread};
      const float found = error(w, line);
      if (!(found < least)) continue;
      least = found;
      best = line;
    }
    return best;
  }

  static Line find_with_min(const float* w) {
    float low = 0.0f, high = w[0];
    for (int i = 0; i < kCount; ++i) {
      low = w[i] < low ? w[i] : low;
      high = w[i] > high ? w[i] : high;
    }
    return find(w, {high > low ? (high - low) / static_cast<float>(kMost) : 0.0f, -low}, true);
  }

  static float find_scale(const float* w) {
    float largest = 0.0f;
    for (int i = 0; i < kCount; ++i) largest = std::fabs(w[i]) > std::fabs(largest) ? w[i] : largest;
    return find(w, {largest / static_cast<float>(kLeast), 0.0f}, false).scale;
  }
};

}  // namespace format
}  // namespace
}  // namespace smallthinker
