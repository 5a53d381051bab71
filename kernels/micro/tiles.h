// Products with matrices in the "tiles" layout. The 16 rows of a group are the 16 lanes, so an output element is one
// lane's sum over the columns in order: the same operations for one token as for any tile of tokens.
//
// NT tokens of a tile, NG row groups at a time.
#pragma once

namespace smallthinker {
namespace {

// The lines of a block further on, first to the second-level cache, which keeps more of them under way, and from there
// to the first. Past the matrix's end a prefetch does nothing.
template <int64_t Bytes>
SIMD_INLINE void prefetch_block(const uint8_t* weights) {
  for (int64_t at = 0; at < Bytes; at += 64) {
    prefetch_l2(weights + kFarBytes + at);
    prefetch(weights + kNearBytes + at);
  }
}

// How the columns of a part of a block (formats/blocks.h) share sums of products. Planes that lie in one group of columns
// share a sum; of a plane of two groups the first half of the steps goes first.
template <class Format>
struct Part {
  static constexpr int64_t kPlaneCols = Format::kPartCols / Format::kPlanes;
  static constexpr int kRuns = kPlaneCols > Format::kScaleCols ? static_cast<int>(kPlaneCols / Format::kScaleCols) : 1;
  static constexpr int kSums = static_cast<int>(Format::kPartCols / Format::kScaleCols / kRuns);
  static constexpr int kPlanesOfSum = Format::kPlanes / kSums;
  static constexpr int kSteps = static_cast<int>(kPlaneCols / 4 / kRuns);  // of a run
  static constexpr int kParts = static_cast<int>(sizes_of(Format::kQuant).block / Format::kPartCols);
};

// Steps of a run between two releases.
template <class Format>
constexpr int held_steps() {
  using P = Part<Format>;
  constexpr int kFit = format::kHeldProducts<Format> / P::kPlanesOfSum;
  constexpr int kHeld = Format::kMost > 0 && kFit < P::kSteps ? kFit : P::kSteps;
  static_assert(kHeld > 0 && P::kSteps % kHeld == 0, "a run is so many steps");
  return kHeld;
}

// Where the integer sum of a group of columns begins, so that it is of integers less kZero.
template <class Format>
SIMD_INLINE int32_t start_of(const ActivationRow& a, int64_t col) {
  if constexpr (Format::kZero == 0) return 0;
  else if constexpr (Format::kScaleCols == 16) return a.offset32[col / 16] / (32 / Format::kZero);
  else if constexpr (Format::kZero == 128) return a.offset128[col / kBlock];
  else return a.offset8[col / kBlock] * (Format::kZero / 8);
}

// The sum of a group's activations.
template <class Format>
SIMD_INLINE float sum_of(const ActivationRow& a, int64_t col) {
  if constexpr (Format::kScaleCols == 16) return a.scale[col / kBlock] * (static_cast<float>(a.offset32[col / 16]) * -0.03125f);
  else return a.sum[col / kBlock];
}

// dot[t] plus the products of Steps steps from `first` on with the planes of sum S, one plane after the other of each step.
// q[t] are a token's activations from the part's first column on.
template <class Format, int S, int NT, int Steps>
SIMD_INLINE void add_steps(const uint8_t* tile, int part, int first, const int8_t* const* q, I32* dot) {
  using P = Part<Format>;
  constexpr int kPlane = S * P::kPlanesOfSum, kEnd = kPlane + P::kPlanesOfSum;
  constexpr bool kHolds = kHoldsSums && Format::kMost != 0;
  const auto activations = [&](int t, int p, int step) { return broadcast_dword(q[t] + p * P::kPlaneCols + 4 * step); };
  // What another sum's steps have loaded is loaded again: kept, it pushes sums out of registers (q4_k 16 % slower).
  if constexpr (P::kSums > 1) forget_loads();
  if constexpr (kHolds && NT > 2 && Steps * P::kPlanesOfSum <= 2) {  // so few weights stay in registers: a token at a time
    B64 w[Steps][Format::kPlanes];
    for (int step = 0; step < Steps; ++step) Format::tile_step(tile, part, first + step, w[step]);
    for (int t = 0; t < NT; ++t) {
      Held held = begin_held(dot[t]);
      for (int step = 0; step < Steps; ++step) {
        for (int p = kPlane; p < kEnd; ++p) held = hold(held, w[step][p], activations(t, p, first + step));
      }
      dot[t] = release(dot[t], held);
    }
  } else {
    Held held[NT];
    for (int t = 0; t < NT; ++t) held[t] = begin_held(dot[t]);
    const auto add_step = [&](int step) {
      B64 w[Format::kPlanes];
      Format::tile_step(tile, part, step, w);
      for (int p = kPlane; p < kEnd; ++p) {
        for (int t = 0; t < NT; ++t) {
          if constexpr (Format::kMost != 0) held[t] = hold(held[t], w[p], activations(t, p, step));
          else dot[t] = Format::tile_dot(dot[t], w[p], activations(t, p, step));
        }
      }
    };
    if constexpr (kHolds) {
#pragma GCC unroll 8
      for (int step = first; step < first + Steps; ++step) add_step(step);
    } else {
      for (int step = first; step < first + Steps; ++step) add_step(step);
    }
    if constexpr (Format::kMost != 0) {
      for (int t = 0; t < NT; ++t) dot[t] = release(dot[t], held[t]);
    }
  }
}

// The groups of columns of sum S of a part. One sum after the other, so that registers are for tokens.
template <class Format, int S, int NT>
SIMD_INLINE void add_sum(const uint8_t* tile, const typename Format::TileScales& scales, int part, const ActivationRow* a,
                         int64_t col, F32* sums) {
  using P = Part<Format>;
  const int8_t* q[NT];
  for (int t = 0; t < NT; ++t) q[t] = a[t].q + col;
  for (int run = 0; run < P::kRuns; ++run) {
    const int64_t column = col + (S * P::kRuns + run) * Format::kScaleCols;
    I32 dot[NT];
    for (int t = 0; t < NT; ++t) dot[t] = broadcast(start_of<Format>(a[t], column));
    for (int step = run * P::kSteps; step < (run + 1) * P::kSteps; step += held_steps<Format>()) {
      add_steps<Format, S, NT, held_steps<Format>()>(tile, part, step, q, dot);
    }
    const int group = part * (P::kSums * P::kRuns) + S * P::kRuns + run;
    const F32 scale = Format::scale_of(scales, group);
    for (int t = 0; t < NT; ++t) {
      sums[t] = fma(mul(scale, broadcast(a[t].scale[column / kBlock])), to_f32(dot[t]), sums[t]);
    }
    if constexpr (Format::kHasMins) {
      const F32 min = Format::min_of(scales, group);
      for (int t = 0; t < NT; ++t) sums[t] = fma(min, broadcast(sum_of<Format>(a[t], column)), sums[t]);
    }
  }
}

template <class Format, int NT>
SIMD_INLINE void add_blocks(const uint8_t* group, int64_t cols, const ActivationRow* activations, F32* sums) {
  constexpr int64_t kBytes = tile_block_bytes(Format::kQuant), kPartBytes = kBytes / Part<Format>::kParts;
  for (int64_t col = 0; col < cols; group += kBytes) {
    const typename Format::TileScales scales = Format::tile_scales(group);
    for (int part = 0; part < Part<Format>::kParts; ++part, col += Format::kPartCols) {
      prefetch_block<kPartBytes>(group + part * kPartBytes);
      add_sum<Format, 0, NT>(group, scales, part, activations, col, sums);
      if constexpr (Part<Format>::kSums > 1) add_sum<Format, 1, NT>(group, scales, part, activations, col, sums);
    }
  }
}

// A column's fma waits for the one before it, so several groups run side by side; sums is [NG, NT].
template <class Element, int NG, int NT>
SIMD_INLINE void add_elements(const uint8_t* group, int64_t cols, const ActivationRow* activations, F32* sums) {
  const Element* weights = reinterpret_cast<const Element*>(group);
  const int64_t stride = cols * kTileRows;
  for (int64_t col = 0; col < cols; ++col) {
    for (int g = 0; g < NG; ++g) {
      const F32 w = load(weights + g * stride + col * kTileRows);
      for (int t = 0; t < NT; ++t) sums[g * NT + t] = fma(w, broadcast(activations[t].x[col]), sums[g * NT + t]);
    }
  }
}

// The first `rows` of 16.
SIMD_INLINE void store_rows(float* to, F32 sums, int64_t rows) {
  if (rows >= kTileRows) return store(to, sums);
  float lanes[kTileRows];
  store(lanes, sums);
  std::memcpy(to, lanes, static_cast<size_t>(rows) * sizeof(float));
}

// Formats that few files have: code for fewer numbers of tokens.
template <class Format>
constexpr bool is_rare() {
  if constexpr (is_block_quantized(Format::kQuant)) return Format::kIsRare;
  else return false;
}

template <class Format, int NG, int NT>
void product(const uint8_t* group, int64_t rows, int64_t cols, const ActivationRow* activations, float* out,
             int64_t out_stride) {
  F32 sums[NG * NT];
  for (F32& sum : sums) sum = zero();
  if constexpr (is_block_quantized(Format::kQuant)) {
    static_assert(NG == 1, "a block's products are enough to hide their latency");
    add_blocks<Format, NT>(group, cols, activations, sums);
  } else {
    add_elements<typename Format::Element, NG, NT>(group, cols, activations, sums);
  }
  for (int g = 0; g < NG; ++g) {
    for (int t = 0; t < NT; ++t) {
      store_rows(out + t * out_stride + g * kTileRows, sums[g * NT + t], rows - g * kTileRows);
    }
  }
}

// Tokens from t on that go NT at a time.
template <class Format, int NG, int NT>
SIMD_INLINE void products(const uint8_t* group, int64_t rows, int64_t cols, const ActivationRow* activations,
                          int64_t tokens, float* out, int64_t out_stride, int64_t& t) {
  for (; tokens - t >= NT; t += NT) {
    product<Format, NG, NT>(group, rows, cols, activations + t, out + t * out_stride, out_stride);
  }
}

template <class Format, int NG>
void product_of_groups(const uint8_t* group, int64_t rows, int64_t cols, const ActivationRow* activations, int64_t tokens,
                       float* out, int64_t out_stride) {
  int64_t t = 0;
  const auto take = [&](auto n) {
    products<Format, NG, decltype(n)::value>(group, rows, cols, activations, tokens, out, out_stride, t);
  };
  if constexpr (is_rare<Format>()) {
    take(std::integral_constant<int, (kTileTokens > 4 ? 4 : kTileTokens)>());
  } else {
    constexpr int kTokens = is_block_quantized(Format::kQuant) ? kTileTokens : kElementTokens;
    take(std::integral_constant<int, kTokens>());
    if constexpr (kTokens / 2 > 2) {  // a few sequences' next tokens
      take(std::integral_constant<int, kTokens / 2>());
      take(std::integral_constant<int, 3>());
    }
    take(std::integral_constant<int, (kTokens > 2 ? 2 : 1)>());
  }
  take(std::integral_constant<int, 1>());
}

}  // namespace
}  // namespace smallthinker
