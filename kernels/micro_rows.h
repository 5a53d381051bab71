// `up` of an expert, in the "rows" layout: dot products of the rows whose neurons the ReLU let through, lanes along the
// columns. NT tokens share one unpacking of a row; each has the operations that it would have alone.
#pragma once

namespace smallthinker {
namespace {

constexpr int64_t kStripQ4 = 128;  // columns of one 64-byte vector of nibbles
constexpr int64_t kStripQ8 = 64;   // columns of one 64-byte vector of int8
constexpr int64_t kPrefetchRows = 2;  // live rows ahead

// The last strip of a row, copied so that nothing past the row is read; the rest of it is zeros, whose products with
// the zeros in the activations' last strip change nothing.
template <int Bytes>
struct Tail {
  uint8_t weights[Bytes] = {};
  uint16_t scale[4] = {};

  Tail(const uint8_t* from, int64_t bytes, const uint16_t* scales, int64_t n_scales) {
    std::memcpy(weights, from, static_cast<size_t>(bytes));
    std::memcpy(scale, scales, static_cast<size_t>(n_scales) * 2);
  }
};

template <int NT>
SIMD_INLINE void add_strip_q4(const uint8_t* weights, const uint16_t* scales, const ActivationRow* const* a,
                              int64_t strip, F32* sums) {
  const B64 packed = load_bytes(weights);
  const B64 low = low_nibbles(packed), high = high_nibbles(packed);
  const auto scale = load4(scales);
  for (int t = 0; t < NT; ++t) {
    I32 dot = load(a[t]->start + strip * kLanes);
    dot = dot_nibbles(dot, low, load_bytes(a[t]->q + strip * kStripQ4));
    dot = dot_nibbles(dot, high, load_bytes(a[t]->q + strip * kStripQ4 + 64));
    sums[t] = fma(spread4(mul4(scale, load4(a[t]->scale + strip * 4))), to_f32(dot), sums[t]);
  }
}

template <int NT>
SIMD_INLINE void dot_row_q4(const uint8_t* row, int64_t cols, const ActivationRow* const* a, F32* sums) {
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(row + cols / 2);
  const int64_t strips = cols / kStripQ4;
  for (int64_t s = 0; s < strips; ++s) add_strip_q4<NT>(row + s * 64, scales + s * 4, a, s, sums);
  if (const int64_t rest = cols % kStripQ4) {
    const Tail<64> tail(row + strips * 64, rest / 2, scales + strips * 4, rest / kBlock);
    add_strip_q4<NT>(tail.weights, tail.scale, a, strips, sums);
  }
}

template <int NT>
SIMD_INLINE void add_strip_q8(const uint8_t* weights, const uint16_t* scales, const ActivationRow* const* a,
                              int64_t strip, F32* sums) {
  const B64 w = load_bytes(weights);
  const auto scale = load2(scales);
  for (int t = 0; t < NT; ++t) {
    const I32 dot = dot_signed(load(a[t]->start + strip * kLanes), w, load_bytes(a[t]->q + strip * kStripQ8));
    sums[t] = fma(spread2(mul4(scale, load2(a[t]->scale + strip * 2))), to_f32(dot), sums[t]);
  }
}

template <int NT>
SIMD_INLINE void dot_row_q8(const uint8_t* row, int64_t cols, const ActivationRow* const* a, F32* sums) {
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(row + cols);
  const int64_t strips = cols / kStripQ8;
  for (int64_t s = 0; s < strips; ++s) add_strip_q8<NT>(row + s * 64, scales + s * 2, a, s, sums);
  if (const int64_t rest = cols % kStripQ8) {
    const Tail<64> tail(row + strips * 64, rest, scales + strips * 2, rest / kBlock);
    add_strip_q8<NT>(tail.weights, tail.scale, a, strips, sums);
  }
}

template <class Weight>
SIMD_INLINE float dot_row_float(const uint8_t* bytes, int64_t cols, const float* x) {
  const Weight* row = reinterpret_cast<const Weight*>(bytes);
  F32 sums[4] = {zero(), zero(), zero(), zero()};
  int64_t col = 0;
  for (; cols - col >= 4 * kLanes; col += 4 * kLanes) {
    for (int i = 0; i < 4; ++i) sums[i] = fma(load(row + col + i * kLanes), load(x + col + i * kLanes), sums[i]);
  }
  for (; col < cols; col += kLanes) sums[0] = fma(load(row + col), load(x + col), sums[0]);
  return sum_lanes(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

// out[t] = row . activations of token t.
template <int NT>
SIMD_INLINE void dot_row(Quant quant, const uint8_t* row, int64_t cols, const ActivationRow* const* a, float* out) {
  if (!is_block_quantized(quant)) {
    for (int t = 0; t < NT; ++t) {
      out[t] = quant == Quant::f16 ? dot_row_float<uint16_t>(row, cols, a[t]->x) : dot_row_float<float>(row, cols, a[t]->x);
    }
    return;
  }
  F32 sums[NT];
  for (F32& sum : sums) sum = zero();
  if (quant == Quant::q4_0) dot_row_q4<NT>(row, cols, a, sums);
  else dot_row_q8<NT>(row, cols, a, sums);
  for (int t = 0; t < NT; ++t) out[t] = sum_lanes(sums[t]);
}

SIMD_INLINE void prefetch_row(const uint8_t* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) prefetch(row + at);
}

// One token: only its live rows are read. The hardware can't guess which; and the same rows of down come next.
SIMD_INLINE void gated_up_alone(Quant quant, const uint8_t* up, const uint8_t* down, int64_t cols, uint64_t live,
                                const ActivationRow& activations, float* a) {
  const int64_t stride = row_bytes(quant, cols);
  const ActivationRow* const token = &activations;
  int64_t ahead[kPrefetchRows];  // the live rows that come next
  uint64_t unseen = live;
  int64_t known = 0;
  const auto see_next = [&] {
    const int64_t row = lowest_bit(unseen);
    unseen &= unseen - 1;
    prefetch_row(up + row * stride, stride);
    ahead[known++ % kPrefetchRows] = row;
  };
  while (unseen != 0 && known < kPrefetchRows) see_next();
  for (int64_t i = 0; i < known; ++i) {
    const int64_t row = ahead[i % kPrefetchRows];
    for (int64_t at = 0; at < stride; at += 64) prefetch_l2(down + row * stride + at);
    float dot;
    dot_row<1>(quant, up + row * stride, cols, &token, &dot);
    a[row] *= dot;
    if (unseen != 0) see_next();
  }
}

// Several tokens: every row meets the tokens that want it, a few at a time.
SIMD_INLINE void gated_up_together(Quant quant, const uint8_t* up, int64_t cols, int64_t rows, const uint64_t* live,
                                   const ActivationRow* activations, int64_t tokens, float* a) {
  const int64_t stride = row_bytes(quant, cols);
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* const weights = up + row * stride;
    prefetch_row(weights + kPrefetchRows * stride, stride);
    const ActivationRow* token[kTokenBlock];
    float* place[kTokenBlock];
    float dots[kUpTokens];
    int64_t n = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      token[n] = activations + t;
      place[n] = a + t * kChunkRows + row;
      n += live[t] >> row & 1;
    }
    int64_t i = 0;
    for (; n - i >= kUpTokens; i += kUpTokens) {
      dot_row<kUpTokens>(quant, weights, cols, token + i, dots);
      for (int64_t j = 0; j < kUpTokens; ++j) *place[i + j] *= dots[j];
    }
    for (; i < n; ++i) {
      dot_row<1>(quant, weights, cols, token + i, dots);
      *place[i] *= dots[0];
    }
  }
}

void gated_up(Quant quant, const uint8_t* up, const uint8_t* down, int64_t cols, int64_t rows,
              const ActivationRow* activations, int64_t tokens, float* a, uint64_t* live) {
  for (int64_t t = 0; t < tokens; ++t) {
    live[t] = 0;
    for (int64_t row = 0; row < rows; ++row) {
      float& gate = a[t * kChunkRows + row];
      const bool is_live = !(gate <= 0.0f);
      live[t] |= static_cast<uint64_t>(is_live) << row;
      gate = is_live ? gate : 0.0f;
    }
  }
  if (tokens == 1) gated_up_alone(quant, up, down, cols, *live, *activations, a);
  else gated_up_together(quant, up, cols, rows, live, activations, tokens, a);
}

}  // namespace
}  // namespace smallthinker
