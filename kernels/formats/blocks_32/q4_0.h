// q4_0: blocks of 32 nibbles and one f16 scale. A nibble n means scale * (n - 8). Byte i of a block's 16 is column i in
// its low nibble and column 16 + i in its high one, in tiles as in rows.
#pragma once

#include <algorithm>

#include "formats/blocks.h"

namespace smallthinker {
namespace {
namespace format {

struct q4_0 : ScaledBlock {
  static constexpr Quant kQuant = Quant::q4_0;
  static constexpr int32_t kMost = 15;
  static constexpr TileField kTile[] = {{0, 2, 2}, {2, 16, 4}};
  static constexpr int64_t kBytes = 16;  // of a block beside its scale
  static constexpr int32_t kZero = 8, kLevelOfZero = kZero;

  // As ggml, the largest magnitude is -8; or with the scale and the levels that err less, if some do. An error counts as the
  // root of the weight's square and the block's mean square: large weights matter more. So blocks that are q4_0 already
  // stay as they are.
  static float scale_for(float largest) { return largest / -8.0f; }
  static int32_t round(float x) { return std::clamp(static_cast<int32_t>(x + 8.5f), 0, 15); }
  static void quantize(const float* w, uint8_t* block) {
    int32_t plain[kBlock], searched[kBlock];
    const float scale = quantize_levels<q4_0>(w, plain);
    store_f16(block, scale);
    const int32_t* const q = search(w, scale, load_f16(block), plain, searched, block) ? searched : plain;
    for (int64_t i = 0; i < kBytes; ++i) block[2 + i] = static_cast<uint8_t>(q[i] | q[i + kBytes] << 4);
  }
  // Leaves the scale in `block`, and says whether it is better than `kept` with the levels `plain`.
  static bool search(const float* w, float scale, float kept, const int32_t* plain, int32_t* levels, uint8_t* block) {
    if (kept == 0.0f || !std::isfinite(kept)) return false;
    int16_t x[kBlock], counts[kBlock];
    const float units = 64.0f / scale;
    int32_t squares = 0;
    for (int64_t i = 0; i < kBlock; ++i) {
      x[i] = static_cast<int16_t>(static_cast<int32_t>(w[i] * units + 512.5f) - 512);
      squares += x[i] * x[i];
    }
    const int32_t mean = squares / static_cast<int32_t>(kBlock);
    for (int64_t i = 0; i < kBlock; ++i) {
      counts[i] = static_cast<int16_t>(std::sqrt(static_cast<float>(mean + x[i] * x[i])) * 0.125f);
    }
    uint8_t half[2];
    store_f16(half, fitted(w, counts, scale * multiple_of_scale(x, counts)));
    const float found = load_f16(half), inverse = 1.0f / found;
    for (int64_t i = 0; i < kBlock; ++i) levels[i] = round_to_int(w[i] * inverse, -8, 7) + kZero;
    if (!(error(w, counts, found, levels) < error(w, counts, kept, plain))) return false;
    std::memcpy(block, half, 2);
    return true;
  }
  // The best scale for the levels that `near` gives.
  static float fitted(const float* w, const int16_t* counts, float near) {
    const float inverse = 1.0f / near;
    Lanes squares, products;
    for (int64_t i = 0; i < kBlock; i += kSumLanes) {
      for (int64_t lane = 0; lane < kSumLanes; ++lane) {
        const float n = round_within(w[i + lane] * inverse, -8, 7);
        const float counted = n * static_cast<float>(counts[i + lane]);
        squares.of[lane] += counted * n;
        products.of[lane] += counted * w[i + lane];
      }
    }
    return products.sum() / squares.sum();
  }
  static float error(const float* w, const int16_t* counts, float scale, const int32_t* levels) {
    Lanes errors;
    for (int64_t i = 0; i < kBlock; i += kSumLanes) {
      for (int64_t lane = 0; lane < kSumLanes; ++lane) {
        const float off = scale * static_cast<float>(levels[i + lane] - kZero) - w[i + lane];
        errors.of[lane] += off * off * static_cast<float>(counts[i + lane]);
      }
    }
    return errors.sum();
  }
  static void unpack(const uint8_t* block, float* w) {
    const float scale = load_f16(block);
    for (int64_t i = 0; i < kBytes; ++i) {
      w[i] = scale * static_cast<float>((block[2 + i] & 15) - kZero);
      w[i + kBytes] = scale * static_cast<float>((block[2 + i] >> 4) - kZero);
    }
  }

#ifdef SIMD_INLINE
  SIMD_INLINE void tile_step(const uint8_t* tile, int, int step, B64* w) { nibbles(tile + 32 + 64 * step, w); }

  // Rows. A strip is what 64 bytes hold. Against it lie the first halves of four blocks of activations, then their
  // second halves.
  static constexpr int64_t kStripCols = 128;
  static constexpr bool kOwnOrder = true;
  static constexpr int32_t kStartOf8 = 1;  // where sums of a strip begin, in units of ActivationRow::offset8
  static constexpr int kBlockLanes = 4;
  SIMD_INLINE void order(const int8_t* q, int8_t* ordered) {
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) std::memcpy(ordered + half * 64 + i * 16, q + i * kBlock + half * 16, 16);
    }
  }
  struct Strip {
    B64 low, high;
  };
  SIMD_INLINE Strip load_strip(const uint8_t* bytes) {
    const B64 packed = load_bytes(bytes);
    return {low_nibbles(packed), high_nibbles(packed)};
  }
  SIMD_INLINE I32 dot_strip(I32 sum, const Strip& w, const int8_t* ordered) {
    return release(sum, hold(hold(begin_held(sum), w.low, load_bytes(ordered)), w.high, load_bytes(ordered + 64)));
  }
  template <class T>
  SIMD_INLINE auto load_scales(const T* scales) { return load4(scales); }
  template <class Scales>
  SIMD_INLINE F32 spread_scales(const Scales& scales) { return spread4(scales); }

  // Down. 128 columns of a row are two planes of 64 bytes; `spread` fills a plane's quarters.
  static constexpr int32_t kBias = 8;
  static constexpr int64_t kDownBytes = 64;
  SIMD_INLINE void planes(const uint8_t* bytes, B64* plane) {
    const B64 packed = load_bytes(bytes);
    plane[0] = low_nibbles(packed);
    plane[1] = high_nibbles(packed);
  }
  SIMD_INLINE B64 spread(const int32_t* dwords, int) { return spread_dwords4(dwords); }
  SIMD_INLINE F32 spread(const float* scales, int) { return spread4(load4(scales)); }
  SIMD_INLINE I32 dot(I32 sum, B64 w, B64 f) { return dot_nibbles(sum, w, f); }
  // the first of four columns that quarter `quarter` of vector `vector` of a plane holds
  static int64_t column(int plane, int vector, int quarter) { return 32 * quarter + 16 * plane + 4 * vector; }
#endif
};

}  // namespace format
}  // namespace
}  // namespace smallthinker
