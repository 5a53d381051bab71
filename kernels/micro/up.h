// `up` of an expert, in the "rows" layout: dot products of the rows whose neurons the ReLU let through, lanes along the
// columns. NT tokens share one unpacking of a row; each has the operations that it would have alone.
#pragma once

namespace smallthinker {
namespace {

// The last strip of a row, copied so that nothing past the row is read; the rest of it is zeros, whose products with
// the zeros in the activations' last strip change nothing.
struct Tail {
  uint8_t weights[64] = {};
  uint16_t scale[4] = {};

  Tail(const uint8_t* from, int64_t bytes, const uint16_t* scales, int64_t n_scales) {
    std::memcpy(weights, from, static_cast<size_t>(bytes));
    std::memcpy(scale, scales, static_cast<size_t>(n_scales) * 2);
  }
};

template <class Format, int NT>
SIMD_INLINE void add_strip(const uint8_t* weights, const uint16_t* scales, const ActivationRow* const* a, int64_t strip,
                           F32* sums) {
  const auto w = Format::load_strip(weights);
  const auto scale = Format::load_scales(scales);
  for (int t = 0; t < NT; ++t) {
    I32 dot = broadcast(0);
    if constexpr (Format::kStartOf8 != 0) dot = load(a[t]->start + strip * kLanes);
    dot = Format::dot_strip(dot, w, a[t]->ordered + strip * Format::kStripCols);
    const auto scales_of_both = mul4(scale, Format::load_scales(a[t]->scale + strip * kStripBlocks<Format>));
    sums[t] = fma(Format::spread_scales(scales_of_both), to_f32(dot), sums[t]);
  }
}

template <class Format, int NT>
SIMD_INLINE void dot_blocks(const uint8_t* row, int64_t cols, const ActivationRow* const* a, F32* sums) {
  constexpr int64_t kBlocks = kStripBlocks<Format>;
  const uint16_t* const scales = reinterpret_cast<const uint16_t*>(row + cols / kBlock * Format::kBytes);
  const int64_t strips = cols / Format::kStripCols;
  for (int64_t s = 0; s < strips; ++s) add_strip<Format, NT>(row + s * 64, scales + s * kBlocks, a, s, sums);
  if (const int64_t rest = cols % Format::kStripCols / kBlock) {
    const Tail tail(row + strips * 64, rest * Format::kBytes, scales + strips * kBlocks, rest);
    add_strip<Format, NT>(tail.weights, tail.scale, a, strips, sums);
  }
}

template <class Element>
SIMD_INLINE float dot_elements(const uint8_t* bytes, int64_t cols, const float* x) {
  const Element* row = reinterpret_cast<const Element*>(bytes);
  F32 sums[4] = {zero(), zero(), zero(), zero()};
  int64_t col = 0;
  for (; cols - col >= 4 * kLanes; col += 4 * kLanes) {
    for (int i = 0; i < 4; ++i) sums[i] = fma(load(row + col + i * kLanes), load(x + col + i * kLanes), sums[i]);
  }
  for (; col < cols; col += kLanes) sums[0] = fma(load(row + col), load(x + col), sums[0]);
  return sum_lanes(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

// out[t] = row . activations of token t.
template <class Format, int NT>
SIMD_INLINE void dot_row(const uint8_t* row, int64_t cols, const ActivationRow* const* a, float* out) {
  if constexpr (is_block_quantized(Format::kQuant)) {
    F32 sums[NT];
    for (F32& sum : sums) sum = zero();
    dot_blocks<Format, NT>(row, cols, a, sums);
    for (int t = 0; t < NT; ++t) out[t] = sum_lanes(sums[t]);
  } else {
    for (int t = 0; t < NT; ++t) out[t] = dot_elements<typename Format::Element>(row, cols, a[t]->x);
  }
}

// To the second-level cache: of the first level there are too few lines under way, and half the speed.
SIMD_INLINE void prefetch_row(const uint8_t* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) prefetch_l2(row + at);
}

void prefetch_rows(Upcoming& upcoming, int64_t n) {
  for (; n > 0 && upcoming.prefetched < upcoming.n; --n) {
    const UpcomingRow& row = upcoming.rows[upcoming.prefetched++];
    prefetch_row(row.data, row.bytes);
  }
}

// One token: only its live rows are read.
template <class Format>
SIMD_INLINE void gated_up_token(const uint8_t* up, int64_t cols, uint64_t live, const ActivationRow& activations, float* a,
                                Upcoming& upcoming) {
  const ActivationRow* const token = &activations;
  for (; live != 0; live &= live - 1) {
    const int64_t row = lowest_bit(live);
    prefetch_rows(upcoming, 1);
    float dot;
    dot_row<Format, 1>(up + row * row_bytes(Format::kQuant, cols), cols, &token, &dot);
    a[row] *= dot;
  }
}

// A batch of tokens: every row meets the tokens that want it. So many tokens' activations stay in the first-level cache
// while the rows pass; over all 32 of a block it took twice the time.
constexpr int64_t kUpBlock = 8;

template <class Format, int NT>
SIMD_INLINE void dot_live(const uint8_t* row, int64_t cols, const ActivationRow* const* token, float* const* a) {
  float dots[NT];
  dot_row<Format, NT>(row, cols, token, dots);
  for (int t = 0; t < NT; ++t) *a[t] *= dots[t];
}

template <class Format>
SIMD_INLINE void gated_up_batch(const uint8_t* up, int64_t cols, int64_t rows, const uint64_t* live,
                                const ActivationRow* activations, int64_t tokens, float* a, Upcoming& upcoming) {
  const int64_t stride = row_bytes(Format::kQuant, cols);
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
    prefetch_rows(upcoming, 1);
    int64_t i = 0;
    for (; n - i >= kUpTokens; i += kUpTokens) dot_live<Format, kUpTokens>(weights, cols, token + i, place + i);
    if (kUpTokens > 2 && n - i == 3) dot_live<Format, 3>(weights, cols, token + i, place + i);
    else if (kUpTokens > 1 && n - i == 2) dot_live<Format, 2>(weights, cols, token + i, place + i);
    else if (n - i == 1) dot_live<Format, 1>(weights, cols, token + i, place + i);
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

template <class Format>
void gated_up(const uint8_t* up, int64_t cols, int64_t rows, const ActivationRow* activations, int64_t tokens,
              const uint64_t* live, float* a, Upcoming& upcoming) {
  if (tokens == 1) return gated_up_token<Format>(up, cols, *live, *activations, a, upcoming);
  for (int64_t t = 0; t < tokens; t += kUpBlock) {
    const int64_t n = tokens - t < kUpBlock ? tokens - t : kUpBlock;
    gated_up_batch<Format>(up, cols, rows, live + t, activations + t, n, a + t * kChunkRows, upcoming);
  }
}

}  // namespace
}  // namespace smallthinker
