// Products with matrices in the "rows" layout, for the neurons of an expert that the ReLU let through.
//
// live_rows  up: a row's dot product with the activations, lanes along the columns
// sum_rows   down, transposed: rows times a factor each, added up in registers, lanes along the columns
#pragma once

namespace smallthinker {
namespace {

constexpr int64_t kStripQ4 = 128;  // columns of one 64-byte vector of nibbles
constexpr int64_t kStripQ8 = 64;   // columns of one 64-byte vector of int8
constexpr int64_t kSumStrip = 128;

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

SIMD_INLINE F32 add_strip_q4(const uint8_t* weights, const uint16_t* scales, const ActivationRow& a, int64_t strip, F32 sum) {
  const B64 packed = load_bytes(weights);
  I32 dot = load(a.start + strip * kLanes);
  dot = dot_nibbles(dot, low_nibbles(packed), load_bytes(a.q + strip * kStripQ4));
  dot = dot_nibbles(dot, high_nibbles(packed), load_bytes(a.q + strip * kStripQ4 + 64));
  return fma(spread4(mul4(load4(scales), load4(a.scale + strip * 4))), to_f32(dot), sum);
}

SIMD_INLINE float dot_row_q4(const uint8_t* row, int64_t cols, const ActivationRow& a) {
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(row + cols / 2);
  const int64_t strips = cols / kStripQ4;
  F32 sum = zero();
  for (int64_t s = 0; s < strips; ++s) sum = add_strip_q4(row + s * 64, scales + s * 4, a, s, sum);
  if (const int64_t rest = cols % kStripQ4) {
    const Tail<64> tail(row + strips * 64, rest / 2, scales + strips * 4, rest / kBlock);
    sum = add_strip_q4(tail.weights, tail.scale, a, strips, sum);
  }
  return sum_lanes(sum);
}

SIMD_INLINE F32 add_strip_q8(const uint8_t* weights, const uint16_t* scales, const ActivationRow& a, int64_t strip, F32 sum) {
  const I32 dot = dot_signed(load(a.start + strip * kLanes), load_bytes(weights), load_bytes(a.q + strip * kStripQ8));
  return fma(spread2(mul4(load2(scales), load2(a.scale + strip * 2))), to_f32(dot), sum);
}

SIMD_INLINE float dot_row_q8(const uint8_t* row, int64_t cols, const ActivationRow& a) {
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(row + cols);
  const int64_t strips = cols / kStripQ8;
  F32 sum = zero();
  for (int64_t s = 0; s < strips; ++s) sum = add_strip_q8(row + s * 64, scales + s * 2, a, s, sum);
  if (const int64_t rest = cols % kStripQ8) {
    const Tail<64> tail(row + strips * 64, rest, scales + strips * 2, rest / kBlock);
    sum = add_strip_q8(tail.weights, tail.scale, a, strips, sum);
  }
  return sum_lanes(sum);
}

// The first n < 16 of 16 lanes, the others zero.
template <class T>
SIMD_INLINE F32 load_part(const T* p, int64_t n) {
  T lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(T));
  return load(lanes);
}

template <class Weight>
SIMD_INLINE float dot_row_float(const uint8_t* bytes, int64_t cols, const float* x) {
  const Weight* row = reinterpret_cast<const Weight*>(bytes);
  F32 sums[4] = {zero(), zero(), zero(), zero()};
  int64_t col = 0;
  for (; cols - col >= 4 * kLanes; col += 4 * kLanes) {
    for (int i = 0; i < 4; ++i) sums[i] = fma(load(row + col + i * kLanes), load(x + col + i * kLanes), sums[i]);
  }
  for (; cols - col >= kLanes; col += kLanes) sums[0] = fma(load(row + col), load(x + col), sums[0]);
  if (col < cols) sums[0] = fma(load_part(row + col, cols - col), load_part(x + col, cols - col), sums[0]);
  return sum_lanes(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

SIMD_INLINE float dot_row(Quant quant, const uint8_t* row, int64_t cols, const ActivationRow& a) {
  switch (quant) {
    case Quant::q4_0: return dot_row_q4(row, cols, a);
    case Quant::q8_0: return dot_row_q8(row, cols, a);
    case Quant::f16: return dot_row_float<uint16_t>(row, cols, a.x);
    default: return dot_row_float<float>(row, cols, a.x);
  }
}

int64_t live_rows(Quant quant, const uint8_t* rows, int64_t first, int64_t last, int64_t cols, const float* gate,
                  const ActivationRow& activations, LiveNeuron* live) {
  int64_t n = 0;
  for (int64_t row = first; row < last; ++row) {
    if (!(gate[row - first] <= 0.0f)) live[n++] = {static_cast<int32_t>(row), gate[row - first]};
  }
  const int64_t stride = row_bytes(quant, cols);
  for (int64_t i = 0; i < n; ++i) {
    // Rows between live ones are skipped, which the hardware's prefetcher can't guess.
    if (i + 2 < n) {
      const uint8_t* next = rows + live[i + 2].row * stride;
      for (int64_t at = 0; at < stride; at += 64) prefetch(next + at);
    }
    live[i].a *= dot_row(quant, rows + live[i].row * stride, cols, activations);
  }
  return n;
}

constexpr int64_t kPrefetchRows = 16;  // live rows ahead; each gives only a cache line or two to a strip

// Strips of 128 columns as eight vectors: vector N holds nibble N of every dword, so the unpacking needs no byte moves.
template <int Strips>
SIMD_INLINE void sum_strips_q4(const uint8_t* rows, int64_t cols, int64_t col, int64_t n_cols, const LiveNeuron* live,
                               int64_t n_live, float* out) {
  const int64_t stride = row_bytes(Quant::q4_0, cols);
  F32 sums[Strips * 8];
  for (F32& sum : sums) sum = zero();
  for (int64_t i = 0; i < n_live; ++i) {
    const uint8_t* row = rows + live[i].row * stride;
    const uint8_t* weights = row + col / 2;
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(row + cols / 2) + col / kBlock;
    if (i + kPrefetchRows < n_live) {
      const uint8_t* next = rows + live[i + kPrefetchRows].row * stride;
      for (int s = 0; s <= Strips; ++s) prefetch(next + col / 2 + s * 64);
      prefetch(next + cols / 2 + col / kBlock * 2);
    }
    const bool is_partial = Strips == 1 && n_cols < kStripQ4;
    const Tail<64> tail(weights, is_partial ? n_cols / 2 : 0, scales, is_partial ? n_cols / kBlock : 0);
    for (int s = 0; s < Strips; ++s) {
      const B64 packed = load_bytes(is_partial ? tail.weights : weights + s * 64);
      const F32 scale = spread4(scale4(load4(is_partial ? tail.scale : scales + s * 4), live[i].a));
      F32* sum = sums + s * 8;
      sum[0] = fma(scale, nibble_weights<0>(packed), sum[0]);
      sum[1] = fma(scale, nibble_weights<1>(packed), sum[1]);
      sum[2] = fma(scale, nibble_weights<2>(packed), sum[2]);
      sum[3] = fma(scale, nibble_weights<3>(packed), sum[3]);
      sum[4] = fma(scale, nibble_weights<4>(packed), sum[4]);
      sum[5] = fma(scale, nibble_weights<5>(packed), sum[5]);
      sum[6] = fma(scale, nibble_weights<6>(packed), sum[6]);
      sum[7] = fma(scale, nibble_weights<7>(packed), sum[7]);
    }
  }
  for (int s = 0; s < Strips; ++s) {
    float by_nibble[8][kLanes];
    for (int n = 0; n < 8; ++n) store(by_nibble[n], sums[s * 8 + n]);
    const int64_t end = n_cols - s * kStripQ4 < kStripQ4 ? n_cols - s * kStripQ4 : kStripQ4;
    for (int64_t c = 0; c < end; ++c) {
      const int64_t byte = c % 16;  // of the block; columns 16.. of a block are high nibbles
      out[s * kStripQ4 + c] = by_nibble[byte % 4 * 2 + c % kBlock / 16][c / kBlock * 4 + byte / 4];
    }
  }
}

// Vectors of 16 columns of the other formats: what one holds, and the factor that it is multiplied by.
struct RowsQ8 {
  const uint8_t* row;
  const uint16_t* scales;
  RowsQ8(const uint8_t* r, int64_t cols) : row(r), scales(reinterpret_cast<const uint16_t*>(r + cols)) {}
  const int8_t* at(int64_t col) const { return reinterpret_cast<const int8_t*>(row) + col; }
  F32 factor(int64_t col, float a) const {
    const uint16_t pair[2] = {scales[col / kBlock], scales[col / kBlock]};
    return spread2(scale4(load2(pair), a));
  }
};

template <class Weight>
struct RowsFloat {
  const Weight* row;
  RowsFloat(const uint8_t* r, int64_t) : row(reinterpret_cast<const Weight*>(r)) {}
  const Weight* at(int64_t col) const { return row + col; }
  F32 factor(int64_t, float a) const { return broadcast(a); }
};

template <class Rows, int Vectors>
SIMD_INLINE void sum_vectors(const uint8_t* rows, int64_t stride, int64_t cols, int64_t col, int64_t n_cols,
                             const LiveNeuron* live, int64_t n_live, float* out) {
  F32 sums[Vectors];
  for (F32& sum : sums) sum = zero();
  for (int64_t i = 0; i < n_live; ++i) {
    const Rows row(rows + live[i].row * stride, cols);
    if (i + kPrefetchRows < n_live) {
      const Rows next(rows + live[i + kPrefetchRows].row * stride, cols);
      const uint8_t* at = reinterpret_cast<const uint8_t*>(next.at(col));
      for (int64_t byte = 0; byte < stride / cols * Vectors * kLanes; byte += 64) prefetch(at + byte);
    }
    for (int v = 0; v < Vectors; ++v) {
      const int64_t at = col + v * kLanes;
      const F32 w = Vectors > 1 || n_cols >= kLanes ? load(row.at(at)) : load_part(row.at(at), n_cols);
      sums[v] = fma(row.factor(at, live[i].a), w, sums[v]);
    }
  }
  if (Vectors == 1 && n_cols < kLanes) {
    float lanes[kLanes];
    store(lanes, sums[0]);
    std::memcpy(out, lanes, static_cast<size_t>(n_cols) * sizeof(float));
  } else {
    for (int v = 0; v < Vectors; ++v) store(out + v * kLanes, sums[v]);
  }
}

template <class Rows>
void sum_row_vectors(Quant quant, const uint8_t* rows, int64_t cols, int64_t col, int64_t end, const LiveNeuron* live,
                     int64_t n_live, float* out) {
  const int64_t stride = row_bytes(quant, cols);
  for (; end - col >= kSumStrip; col += kSumStrip, out += kSumStrip) {
    sum_vectors<Rows, kSumStrip / kLanes>(rows, stride, cols, col, kSumStrip, live, n_live, out);
  }
  for (; col < end; col += kLanes, out += kLanes) {
    sum_vectors<Rows, 1>(rows, stride, cols, col, end - col, live, n_live, out);
  }
}

void sum_rows(Quant quant, const uint8_t* rows, int64_t cols, int64_t col, int64_t end, const LiveNeuron* live,
              int64_t n_live, float* out) {
  if (quant == Quant::q8_0) return sum_row_vectors<RowsQ8>(quant, rows, cols, col, end, live, n_live, out);
  if (quant == Quant::f16) return sum_row_vectors<RowsFloat<uint16_t>>(quant, rows, cols, col, end, live, n_live, out);
  if (quant == Quant::f32) return sum_row_vectors<RowsFloat<float>>(quant, rows, cols, col, end, live, n_live, out);
  if constexpr (kAccumulators >= 16) {
    for (; end - col >= 2 * kStripQ4; col += 2 * kStripQ4, out += 2 * kStripQ4) {
      sum_strips_q4<2>(rows, cols, col, 2 * kStripQ4, live, n_live, out);
    }
  }
  for (; col < end; col += kStripQ4, out += kStripQ4) {
    sum_strips_q4<1>(rows, cols, col, end - col, live, n_live, out);
  }
}

}  // namespace
}  // namespace smallthinker
