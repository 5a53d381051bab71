// `up` of an expert, in the "rows" layout: dot products of the rows whose neurons the ReLU let through, lanes along the
// columns. NT tokens share one unpacking of a row; each has the operations that it would have alone.
#pragma once

namespace smallthinker {
namespace {

constexpr int64_t kStripQ4 = 128;  // columns of one 64-byte vector of nibbles
constexpr int64_t kStripQ8 = 64;   // columns of one 64-byte vector of int8

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

// To the second-level cache: of the first level there are too few lines under way, and half the speed.
SIMD_INLINE void prefetch_row(const uint8_t* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) prefetch_l2(row + at);
}

void ask(Upcoming& upcoming, int64_t n) {
  for (; n > 0 && upcoming.asked < upcoming.n; --n) prefetch_row(upcoming.rows[upcoming.asked++], upcoming.row_bytes);
}

// One token: only its live rows are read.
SIMD_INLINE void gated_up_alone(Quant quant, const uint8_t* up, int64_t cols, uint64_t live,
                                const ActivationRow& activations, float* a, Upcoming& upcoming) {
  const ActivationRow* const token = &activations;
  for (; live != 0; live &= live - 1) {
    const int64_t row = lowest_bit(live);
    ask(upcoming, 1);
    float dot;
    dot_row<1>(quant, up + row * row_bytes(quant, cols), cols, &token, &dot);
    a[row] *= dot;
  }
}

// Several tokens: every row meets the tokens that want it. So many tokens' activations stay in the first-level cache
// while the rows pass; over all 32 of a block it took twice the time.
constexpr int64_t kUpBlock = 8;

template <int NT>
SIMD_INLINE void dot_live(Quant quant, const uint8_t* row, int64_t cols, const ActivationRow* const* token,
                          float* const* a) {
  float dots[NT];
  dot_row<NT>(quant, row, cols, token, dots);
  for (int t = 0; t < NT; ++t) *a[t] *= dots[t];
}

SIMD_INLINE void gated_up_together(Quant quant, const uint8_t* up, int64_t cols, int64_t rows, const uint64_t* live,
                                   const ActivationRow* activations, int64_t tokens, float* a, Upcoming& upcoming) {
  const int64_t stride = row_bytes(quant, cols);
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* const weights = up + row * stride;
    const ActivationRow* token[kUpBlock + 1];
    float* place[kUpBlock + 1];
    int64_t n = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      token[n] = activations + t;
      place[n] = a + t * kChunkRows + row;
      n += live[t] >> row & 1;
    }
    if (n == 0) continue;
    ask(upcoming, 1);
    int64_t i = 0;
    for (; n - i >= kUpTokens; i += kUpTokens) dot_live<kUpTokens>(quant, weights, cols, token + i, place + i);
    if (kUpTokens > 2 && n - i == 3) dot_live<3>(quant, weights, cols, token + i, place + i);
    else if (kUpTokens > 1 && n - i == 2) dot_live<2>(quant, weights, cols, token + i, place + i);
    else if (n - i == 1) dot_live<1>(quant, weights, cols, token + i, place + i);
  }
}

// The gates of `rows` neurons, 16 at a time: what lies behind the last is neither live nor anybody's.
void find_live(float* gates, int64_t rows, int64_t tokens, uint64_t* live) {
  for (int64_t t = 0; t < tokens; ++t, gates += kChunkRows) {
    live[t] = 0;
    for (int64_t row = 0; row < rows; row += kLanes) {
      const F32 gate = load(gates + row);
      store(gates + row, max(zero(), gate));  // a NaN stays
      live[t] |= live_lanes(gate) << row;
    }
  }
}

void gated_up(Quant quant, const uint8_t* up, int64_t cols, int64_t rows, const ActivationRow* activations,
              int64_t tokens, const uint64_t* live, float* a, Upcoming& upcoming) {
  if (tokens == 1) return gated_up_alone(quant, up, cols, *live, *activations, a, upcoming);
  for (int64_t t = 0; t < tokens; t += kUpBlock) {
    const int64_t n = tokens - t < kUpBlock ? tokens - t : kUpBlock;
    gated_up_together(quant, up, cols, rows, live + t, activations + t, n, a + t * kChunkRows, upcoming);
  }
}

}  // namespace
}  // namespace smallthinker
