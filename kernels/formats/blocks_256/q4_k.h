// q4_k: 256 nibbles n with the scales of k_scales.h: d * scale * n - dmin * min. Byte i of the 32 of each 64 columns is column
// i in its low nibble and column 32 + i in its high one.
#pragma once

#include "formats/blocks_256/k_scales.h"

namespace smallthinker {
namespace {
namespace format {

struct q4_k : KScales {
  static constexpr Quant kQuant = Quant::q4_k;
  static constexpr int32_t kMost = 15;
  static constexpr TileField kTile[] = {{0, 2, 2}, {2, 2, 2}, {4, 12, 1}, {16, 128, 4}};

  static void quantize(const float* w, uint8_t* block) {
    int32_t n[256];
    KScales::quantize<15>(w, block, n);
    for (int64_t i = 0; i < 128; ++i) {
      const int32_t* const at = n + i / 32 * 64 + i % 32;
      block[16 + i] = static_cast<uint8_t>(at[0] | at[32] << 4);
    }
  }
  static void unpack(const uint8_t* block, float* w) {
    for (int64_t g = 0; g < 8; ++g) {
      const float scale = load_f16(block) * static_cast<float>(scale_bits(block + 4, 1, g));
      const float min = load_f16(block + 2) * static_cast<float>(min_bits(block + 4, 1, g));
      const uint8_t* const bytes = block + 16 + g / 2 * 32;
      for (int64_t i = 0; i < 32; ++i) *w++ = scale * static_cast<float>(bytes[i] >> g % 2 * 4 & 15) - min;
    }
  }

#ifdef SIMD_INLINE
  SIMD_INLINE void tile_step(const uint8_t* tile, int part, int step, B64* w) { nibbles(tile + 256 + 64 * (8 * part + step), w); }
#endif
};

}  // namespace format
}  // namespace
}  // namespace smallthinker
