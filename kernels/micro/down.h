// `down` of an expert, stored transposed in the "rows" layout: the sum over neurons of a neuron's row times its `a`.
//
// Rows of elements are added up in f32. Block quantised rows are added up in integers, over the up to 64 neurons of a
// chunk: with w the weights' integers and d their scale, a * d * w is factor * w * scale, where the factor is a * d as
// an int8 and the scale belongs to the chunk's 32 columns. Four rows' bytes are interleaved to feed an instruction that
// adds four products; integers add up to the same in any order and any company, so one token takes only its live rows
// and many tokens share an unpacking of all rows.
//
// Sums lie in strips of 128 columns, in the order in which the interleaving leaves them; order_sums puts them right.
#pragma once

namespace smallthinker {
namespace {

constexpr int64_t kFour = 4;  // rows that are interleaved
constexpr int64_t kMaxFours = kChunkRows / kFour;
constexpr int64_t kVectors = kDownStrip / kLanes;  // of sums in a strip

// One token's chunk: the factors of four rows and a block of columns are one dword, [four][block].
struct Factors {
  int32_t* dwords = nullptr;
  float* scale = nullptr;    // [blocks]
  int32_t* start = nullptr;  // [blocks] where integer sums begin: undoes the unsigned weights' bias

  static int64_t ints(int64_t blocks) { return (kMaxFours + 2) * blocks; }
  Factors() = default;
  Factors(int32_t* at, int64_t blocks)
      : dwords(at), scale(reinterpret_cast<float*>(at + kMaxFours * blocks)), start(at + (kMaxFours + 1) * blocks) {}
};

int64_t padded_blocks(int64_t cols) { return round_up(cols / kBlock, kLanes); }

// A row's scales in f32, zeros up to the padded number of blocks.
template <class Format>
SIMD_INLINE void widen_scales(const uint8_t* row, int64_t cols, float* wide) {
  const int64_t blocks = cols / kBlock;
  const uint16_t* const scales = reinterpret_cast<const uint16_t*>(row + blocks * Format::kBytes);
  int64_t block = 0;
  for (; blocks - block >= kLanes; block += kLanes) store(wide + block, load(scales + block));
  if (block < blocks) {
    uint16_t lanes[kLanes] = {};
    std::memcpy(lanes, scales + block, static_cast<size_t>(blocks - block) * sizeof(uint16_t));
    store(wide + block, load(lanes));
  }
}

// Rows of a chunk: what each is multiplied by, and its scales in f32. Rows of four that a token doesn't use have zeros
// for both, so that a NaN among the scales of a dead neuron stays where it is.
struct Rows {
  int64_t n = 0;
  float a[kChunkRows];
  const float* scales[kChunkRows];

  void append(float factor, const float* scale) {
    a[n] = factor;
    scales[n++] = scale;
  }
};

// `used` are the rows that count, `fours` the same with others among them, a multiple of four. Where anything isn't
// finite the scale is NaN.
SIMD_INLINE void find_factors(int32_t bias, const Rows& used, const Rows& fours, int64_t blocks, const Factors& factors) {
  const B64 biases = broadcast_byte(bias);
  for (int64_t block = 0; block < blocks; block += kLanes) {
    F32 largest = zero();
    for (int64_t i = 0; i < used.n; ++i) {
      largest = max_magnitude(largest, mul(broadcast(used.a[i]), load(used.scales[i] + block)));
    }
    const bool is_finite = all_finite(largest);
    const F32 smallest = broadcast(kSmallestActivation);
    const F32 inverse = zero_where_below(div(broadcast(127.0f), largest), largest, smallest);
    const F32 scale = zero_where_below(div(largest, broadcast(127.0f)), largest, smallest);
    store(factors.scale + block, is_finite ? scale : broadcast(std::numeric_limits<float>::quiet_NaN()));
    I32 total = broadcast(0);
    for (int64_t i = 0; i < fours.n; i += kFour) {
      F32 f[kFour];
      for (int64_t j = 0; j < kFour; ++j) f[j] = mul(mul(broadcast(fours.a[i + j]), load(fours.scales[i + j] + block)), inverse);
      const I32 dwords = is_finite ? pack4_int8(f[0], f[1], f[2], f[3]) : broadcast(0);
      store(factors.dwords + i / kFour * blocks + block, dwords);
      total = dot_nibbles(total, biases, as_bytes(dwords));
    }
    store(factors.start + block, negate(total));
  }
}

// A strip of four rows, interleaved: eight vectors. The last strip of a row may be short: then it is copied, so that
// nothing past the row is read.
template <class Format>
SIMD_INLINE void interleave_strip(const uint8_t* const* rows, int64_t strip, int64_t row_end, B64* out) {
  const int64_t at = strip * Format::kDownBytes;
  B64 plane[kFour][2];
  for (int j = 0; j < kFour; ++j) {
    if (row_end - at >= Format::kDownBytes) {
      Format::planes(rows[j] + at, plane[j]);
    } else {
      uint8_t tail[Format::kDownBytes] = {};
      std::memcpy(tail, rows[j] + at, static_cast<size_t>(row_end - at));
      Format::planes(tail, plane[j]);
    }
  }
  for (int p = 0; p < 2; ++p) interleave4(plane[0][p], plane[1][p], plane[2][p], plane[3][p], out + 4 * p);
}

// sums += the integers of a plane times their columns' scales
template <class Format>
SIMD_INLINE void add_scaled(const Factors& factors, int64_t strip, int plane, const I32* integers, float* sums) {
  const F32 scale = Format::spread(factors.scale + strip * 4, plane);
  float* to = sums + strip * kDownStrip + plane * (kVectors / 2) * kLanes;
  for (int v = 0; v < kVectors / 2; ++v, to += kLanes) store(to, fma(to_f32(integers[v]), scale, load(to)));
}

template <class Format>
void add_down_token(const uint8_t* down, int64_t cols, const float* a, uint64_t live, uint8_t* scratch, float* sums,
                    Upcoming& upcoming) {
  const int64_t stride = row_bytes(Format::kQuant, cols), blocks = padded_blocks(cols);
  const int64_t strips = round_up(cols, kDownStrip) / kDownStrip;
  int32_t* const integers = reinterpret_cast<int32_t*>(scratch);
  float* const widened = reinterpret_cast<float*>(integers + strips * kDownStrip);
  const Factors factors(reinterpret_cast<int32_t*>(widened + kChunkRows * blocks), blocks);

  const uint8_t* rows[kChunkRows];
  Rows used;
  for (uint64_t left = live; left != 0; left &= left - 1) {
    const int64_t row = lowest_bit(left);
    rows[used.n] = down + row * stride;
    float* const wide = widened + used.n * blocks;
    widen_scales<Format>(rows[used.n], cols, wide);
    used.append(a[row], wide);
  }
  if (used.n == 0) return;
  Rows fours = used;
  while (fours.n % kFour != 0) {  // beside a factor of zero any row will do
    rows[fours.n] = rows[used.n - 1];
    fours.append(0.0f, used.scales[used.n - 1]);
  }
  find_factors(Format::kBias, used, fours, blocks, factors);

  for (int64_t s = 0; s < strips; ++s) {
    for (int v = 0; v < kVectors; ++v) {
      store(integers + s * kDownStrip + v * kLanes, as_i32(Format::spread(factors.start + s * 4, v / 4)));
    }
  }
  const int64_t row_end = stride - cols / kBlock * 2;
  for (int64_t four = 0; four * kFour < fours.n; ++four) {
    prefetch_rows(upcoming, kFour);
    for (int64_t s = 0; s < strips; ++s) {
      B64 w[kVectors];
      interleave_strip<Format>(rows + four * kFour, s, row_end, w);
      const int32_t* const dwords = factors.dwords + four * blocks + s * 4;
      const B64 f[2] = {Format::spread(dwords, 0), Format::spread(dwords, 1)};  // before a store might have changed them
      for (int v = 0; v < kVectors; ++v) {
        int32_t* const to = integers + s * kDownStrip + v * kLanes;
        store(to, Format::dot(load(to), w[v], f[v / 4]));
      }
    }
  }
  for (int64_t s = 0; s < strips; ++s) {
    I32 strip[kVectors];
    for (int v = 0; v < kVectors; ++v) strip[v] = load(integers + s * kDownStrip + v * kLanes);
    for (int p = 0; p < 2; ++p) add_scaled<Format>(factors, s, p, strip + p * (kVectors / 2), sums);
  }
}

// NT tokens against planes [First, First + Planes) of an unpacked strip of all rows, [four][vector].
template <class Format, int NT, int First, int Planes>
SIMD_INLINE void add_down_planes(const uint8_t* tile, int64_t fours, int64_t strip, int64_t blocks, const Factors* factors,
                                 float* sums, int64_t sums_stride) {
  constexpr int kOfPlane = kVectors / 2, kOfPlanes = kOfPlane * Planes;
  I32 integers[NT][kOfPlanes];
  for (int t = 0; t < NT; ++t) {
    for (int v = 0; v < kOfPlanes; ++v) {
      integers[t][v] = as_i32(Format::spread(factors[t].start + strip * 4, First + v / kOfPlane));
    }
  }
  const auto products_of = [&](int64_t four, const auto& add) {
    B64 f[NT][Planes];
    for (int t = 0; t < NT; ++t) {
      for (int p = 0; p < Planes; ++p) f[t][p] = Format::spread(factors[t].dwords + four * blocks + strip * 4, First + p);
    }
    for (int v = 0; v < kOfPlanes; ++v) {
      const B64 w = load_bytes(tile + (four * kVectors + First * kOfPlane + v) * 64);
      for (int t = 0; t < NT; ++t) add(t, v, w, f[t][v / kOfPlane]);
    }
  };
  if constexpr (Format::kMost == 0) {
    for (int64_t four = 0; four < fours; ++four) {
      products_of(four, [&](int t, int v, B64 w, B64 f) { integers[t][v] = Format::dot(integers[t][v], w, f); });
    }
  } else {
    constexpr int64_t kHeld = std::min<int64_t>(format::kHeldProducts<Format>, kMaxFours);
    const auto add_run = [&](int64_t first, auto n) {
      constexpr int64_t kRun = decltype(n)::value;
      Held held[NT][kOfPlanes];
      for (int t = 0; t < NT; ++t) {
        for (int v = 0; v < kOfPlanes; ++v) held[t][v] = begin_held(integers[t][v]);
      }
#pragma GCC unroll 8
      for (int64_t i = 0; i < kRun; ++i) {
        products_of(first + i, [&](int t, int v, B64 w, B64 f) { held[t][v] = hold(held[t][v], w, f); });
      }
      for (int t = 0; t < NT; ++t) {
        for (int v = 0; v < kOfPlanes; ++v) integers[t][v] = release(integers[t][v], held[t][v]);
      }
    };
    int64_t four = 0;
    for (; fours - four >= kHeld; four += kHeld) add_run(four, std::integral_constant<int64_t, kHeld>());
    for (; four < fours; ++four) add_run(four, std::integral_constant<int64_t, 1>());
  }
  for (int t = 0; t < NT; ++t) {
    for (int p = 0; p < Planes; ++p) {
      add_scaled<Format>(factors[t], strip, First + p, integers[t] + p * kOfPlane, sums + t * sums_stride);
    }
  }
}

// Where sums are held, a plane at a time, so that they stay in registers.
template <class Format, int NT>
SIMD_INLINE void add_down_strip(const uint8_t* tile, int64_t fours, int64_t strip, int64_t blocks, const Factors* factors,
                                float* sums, int64_t sums_stride) {
  constexpr int kAtOnce = kHoldsSums ? 1 : 2;
  add_down_planes<Format, NT, 0, kAtOnce>(tile, fours, strip, blocks, factors, sums, sums_stride);
  if constexpr (kAtOnce == 1) add_down_planes<Format, NT, 1, 1>(tile, fours, strip, blocks, factors, sums, sums_stride);
}

template <class Format>
void add_down_batch(const uint8_t* down, int64_t cols, int64_t rows, const float* a, const uint64_t* live, int64_t tokens,
                    uint8_t* scratch, float* sums, int64_t sums_stride) {
  const int64_t stride = row_bytes(Format::kQuant, cols), blocks = padded_blocks(cols);
  const int64_t strips = round_up(cols, kDownStrip) / kDownStrip, fours = rows / kFour;
  uint8_t* const tile = scratch;
  float* const widened = reinterpret_cast<float*>(tile + kMaxFours * kVectors * 64);
  float* const zeros = widened + kChunkRows * blocks;
  int32_t* const ints = reinterpret_cast<int32_t*>(zeros + blocks);
  Factors factors[kTokenBlock];

  std::memset(zeros, 0, static_cast<size_t>(blocks) * sizeof(float));
  for (int64_t row = 0; row < rows; ++row) widen_scales<Format>(down + row * stride, cols, widened + row * blocks);
  for (int64_t t = 0; t < tokens; ++t) {
    Rows used, fours;
    for (uint64_t left = live[t]; left != 0; left &= left - 1) {
      const int64_t row = lowest_bit(left);
      used.append(a[t * kChunkRows + row], widened + row * blocks);
    }
    for (int64_t row = 0; row < rows; ++row) {
      fours.append(a[t * kChunkRows + row], (live[t] >> row & 1) != 0 ? widened + row * blocks : zeros);
    }
    factors[t] = Factors(ints + t * Factors::ints(blocks), blocks);
    find_factors(Format::kBias, used, fours, blocks, factors[t]);
  }

  const int64_t row_end = stride - cols / kBlock * 2;
  for (int64_t s = 0; s < strips; ++s) {
    for (int64_t four = 0; four < fours; ++four) {
      const uint8_t* four_rows[kFour];
      for (int j = 0; j < kFour; ++j) four_rows[j] = down + (four * kFour + j) * stride;
      B64 w[kVectors];
      interleave_strip<Format>(four_rows, s, row_end, w);
      for (int v = 0; v < kVectors; ++v) store_bytes(tile + (four * kVectors + v) * 64, w[v]);
    }
    int64_t t = 0;
    for (; tokens - t >= kDownTokens; t += kDownTokens) {
      add_down_strip<Format, kDownTokens>(tile, fours, s, blocks, factors + t, sums + t * sums_stride, sums_stride);
    }
    for (; t < tokens; ++t) add_down_strip<Format, 1>(tile, fours, s, blocks, factors + t, sums + t * sums_stride, sums_stride);
  }
}

// Strips of 128 columns in registers, row after row; columns in their natural order.
template <class Element>
void add_down_elements(const uint8_t* down, int64_t cols, const float* a, uint64_t live, float* sums) {
  const Element* const weights = reinterpret_cast<const Element*>(down);
  for (int64_t col = 0; col < cols; col += kDownVectors * kLanes) {
    const int64_t left_over = (cols - col) / kLanes;
    const int64_t n = left_over < kDownVectors ? left_over : kDownVectors;
    F32 strip[kDownVectors];
    for (int64_t v = 0; v < n; ++v) strip[v] = load(sums + col + v * kLanes);
    for (uint64_t left = live; left != 0; left &= left - 1) {
      const int64_t row = lowest_bit(left);
      const F32 factor = broadcast(a[row]);
      for (int64_t v = 0; v < n; ++v) strip[v] = fma(factor, load(weights + row * cols + col + v * kLanes), strip[v]);
    }
    for (int64_t v = 0; v < n; ++v) store(sums + col + v * kLanes, strip[v]);
  }
}

template <class Format>
void add_down(const uint8_t* down, int64_t cols, int64_t rows, const float* a, const uint64_t* live, int64_t tokens,
              uint8_t* scratch, float* sums, int64_t sums_stride, Upcoming& upcoming) {
  if constexpr (!is_block_quantized(Format::kQuant)) {
    for (int64_t t = 0; t < tokens; ++t) {
      add_down_elements<typename Format::Element>(down, cols, a + t * kChunkRows, live[t], sums + t * sums_stride);
    }
  } else if (tokens == 1) {
    add_down_token<Format>(down, cols, a, *live, scratch, sums, upcoming);
  } else {
    add_down_batch<Format>(down, cols, rows, a, live, tokens, scratch, sums, sums_stride);
  }
}

template <class Format>
void copy_in_order(int64_t cols, const float* sums, float* out) {
  for (int64_t strip = 0; strip < cols; strip += kDownStrip, sums += kDownStrip, out += kDownStrip) {
    for (int v = 0; v < kVectors; ++v) {
      for (int quarter = 0; quarter < 4; ++quarter) {
        const int64_t column = Format::column(v / 4, v % 4, quarter);
        if (strip + column < cols) std::memcpy(out + column, sums + v * kLanes + quarter * 4, 4 * sizeof(float));
      }
    }
  }
}

template <class Format>
void order_sums(int64_t cols, const float* sums, float* out) {
  if constexpr (is_block_quantized(Format::kQuant)) copy_in_order<Format>(cols, sums, out);
  else std::memcpy(out, sums, static_cast<size_t>(cols) * sizeof(float));
}

void add_sums(float* to, const float* from, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) store(to + i, add(load(to + i), load(from + i)));
}

}  // namespace
}  // namespace smallthinker
