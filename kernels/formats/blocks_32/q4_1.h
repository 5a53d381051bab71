// q4_1: blocks of 32 nibbles n with an f16 scale and an f16 min: scale * n + min. Nibbles lie as in q4_0.
#pragma once

#include "formats/blocks.h"

namespace smallthinker {
namespace {
namespace format {

struct q4_1 : ScaledBlockWithMin {
  static constexpr Quant kQuant = Quant::q4_1;
  static constexpr int32_t kMost = 15;
  static constexpr bool kIsRare = true;
  static constexpr TileField kTile[] = {{0, 2, 2}, {2, 2, 2}, {4, 16, 4}};
  static constexpr int32_t kZero = 0;

  static void unpack(const uint8_t* block, float* w) {
    const float scale = load_f16(block), min = load_f16(block + 2);
    for (int64_t i = 0; i < 16; ++i) {
      w[i] = scale * static_cast<float>(block[4 + i] & 15) + min;
      w[i + 16] = scale * static_cast<float>(block[4 + i] >> 4) + min;
    }
  }

#ifdef SIMD_INLINE
  SIMD_INLINE void tile_step(const uint8_t* tile, int, int step, B64* w) { nibbles(tile + 64 + 64 * step, w); }
#endif
};

}  // namespace format
}  // namespace
}  // namespace smallthinker
