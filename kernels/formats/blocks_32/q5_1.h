// q5_1: blocks of 32 numbers n of five bits with an f16 scale and an f16 min: scale * n + min. Bits lie as in q5_0.
#pragma once

#include "formats/blocks_32/q5_0.h"

namespace smallthinker {
namespace {
namespace format {

struct q5_1 : ScaledBlockWithMin {
  static constexpr Quant kQuant = Quant::q5_1;
  static constexpr int32_t kMost = 31;
  static constexpr bool kIsRare = true;
  static constexpr TileField kTile[] = {{0, 2, 2}, {2, 2, 2}, {4, 4, 4}, {8, 16, 4}};
  static constexpr int32_t kZero = 0;

  static void unpack(const uint8_t* block, float* w) {
    const float scale = load_f16(block), min = load_f16(block + 2);
    for (int64_t i = 0; i < 16; ++i) {
      w[i] = scale * static_cast<float>((block[8 + i] & 15) | fifth_bit(block + 4, i)) + min;
      w[i + 16] = scale * static_cast<float>(block[8 + i] >> 4 | fifth_bit(block + 4, i + 16)) + min;
    }
  }

#ifdef SIMD_INLINE
  SIMD_INLINE void tile_step(const uint8_t* tile, int, int step, B64* w) {
    nibbles_and_bits(tile + 128, tile + 64, step, w);
  }
#endif
};

}  // namespace format
}  // namespace
}  // namespace smallthinker
