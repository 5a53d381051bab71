// q8_0: blocks of 32 int8 and one f16 scale. In rows byte i is column i; in tiles it is stored as q + 128, because the
// dot product instruction wants one unsigned side.
#pragma once

#include <algorithm>
#include <cmath>

#include "formats/blocks.h"

namespace smallthinker {
namespace {
namespace format {

struct q8_0 : ScaledBlock {
  static constexpr Quant kQuant = Quant::q8_0;
  static constexpr TileField kTile[] = {{0, 2, 2}, {2, 32, 4}};
  static constexpr int64_t kBytes = 32;  // of a block beside its scale
  static constexpr uint8_t kTileFlip = 0x80;
  static constexpr int32_t kLevelOfZero = 0;

  // As ggml: the largest magnitude becomes 127 or -127.
  static float scale_for(float largest) { return std::fabs(largest) / 127.0f; }
  static int32_t round(float x) { return std::clamp(static_cast<int32_t>(x + std::copysign(0.5f, x)), -127, 127); }
  static void quantize(const float* w, uint8_t* block) {
    int32_t q[kBlock];
    store_f16(block, quantize_levels<q8_0>(w, q));
    for (int64_t i = 0; i < kBytes; ++i) block[2 + i] = static_cast<uint8_t>(q[i]);
  }
  static void unpack(const uint8_t* block, float* w) {
    const float scale = load_f16(block);
    for (int64_t i = 0; i < kBytes; ++i) w[i] = scale * static_cast<float>(static_cast<int8_t>(block[2 + i]));
  }

#ifdef SIMD_INLINE
  static constexpr int kPlanes = 1;
  static constexpr int32_t kZero = kBiasQ8;
  SIMD_INLINE I32 tile_dot(I32 sum, B64 w, B64 a) { return dot_biased(sum, w, a); }
  SIMD_INLINE void tile_step(const uint8_t* tile, int, int step, B64* w) { *w = load_bytes(tile + 32 + 64 * step); }

  static constexpr int64_t kStripCols = 64;
  static constexpr bool kOwnOrder = false;  // activations as they are
  static constexpr int32_t kStartOf8 = kBiasQ8 / 8;
  static constexpr int kBlockLanes = 8;
  SIMD_INLINE void order(const int8_t*, int8_t*) {}
  using Strip = B64;
  SIMD_INLINE Strip load_strip(const uint8_t* bytes) { return load_bytes(bytes); }
  SIMD_INLINE I32 dot_strip(I32 sum, const Strip& w, const int8_t* q) { return dot_signed(sum, w, load_bytes(q)); }
  template <class T>
  SIMD_INLINE auto load_scales(const T* scales) { return load2(scales); }
  template <class Scales>
  SIMD_INLINE F32 spread_scales(const Scales& scales) { return spread2(scales); }

  static constexpr int32_t kBias = kBiasQ8;
  static constexpr int64_t kDownBytes = 128;
  SIMD_INLINE void planes(const uint8_t* bytes, B64* plane) {
    plane[0] = load_bytes(bytes);
    plane[1] = load_bytes(bytes + 64);
  }
  SIMD_INLINE B64 spread(const int32_t* dwords, int plane) { return spread_dwords2(dwords + 2 * plane); }
  SIMD_INLINE F32 spread(const float* scales, int plane) { return spread2(load2(scales + 2 * plane)); }
  SIMD_INLINE I32 dot(I32 sum, B64 w, B64 f) { return dot_signed(sum, w, f); }
  static int64_t column(int plane, int vector, int quarter) { return 64 * plane + 16 * quarter + 4 * vector; }
#endif
};

}  // namespace format
}  // namespace
}  // namespace smallthinker
