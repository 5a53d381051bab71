// q5_k: 256 numbers n of five bits with the scales of k_scales.h: d * scale * n - dmin * min. Four bits lie as in q4_k; the
// fifth of column i of group g of 32 is bit g of byte i of 32 before them.
#pragma once

#include "formats/blocks_256/k_scales.h"

namespace smallthinker {
namespace {
namespace format {

struct q5_k : KScales {
  static constexpr Quant kQuant = Quant::q5_k;
  static constexpr int32_t kMost = 31;
  static constexpr TileField kTile[] = {{0, 2, 2}, {2, 2, 2}, {4, 12, 1}, {16, 32, 4}, {48, 128, 4}};

  static void unpack(const uint8_t* block, float* w) {
    for (int64_t g = 0; g < 8; ++g) {
      const float scale = load_f16(block) * static_cast<float>(scale_bits(block + 4, 1, g));
      const float min = load_f16(block + 2) * static_cast<float>(min_bits(block + 4, 1, g));
      const uint8_t *const bytes = block + 48 + g / 2 * 32, *const bits = block + 16;
      for (int64_t i = 0; i < 32; ++i) {
        *w++ = scale * static_cast<float>((bytes[i] >> g % 2 * 4 & 15) | (bits[i] >> g & 1) << 4) - min;
      }
    }
  }

#ifdef SIMD_INLINE
  SIMD_INLINE void tile_step(const uint8_t* tile, int part, int step, B64* w) {
    nibbles(tile + 768 + 64 * (8 * part + step), w);
    const B64 bits = load_bytes(tile + 256 + 64 * step);
    for (int p = 0; p < 2; ++p) w[p] = mix(w[p], shift_left(bits_of(bits, 2 * part + p, 1), 4));
  }
#endif
};

}  // namespace format
}  // namespace
}  // namespace smallthinker
