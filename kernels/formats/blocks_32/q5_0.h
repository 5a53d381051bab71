// q5_0: blocks of 32 numbers n of five bits and one f16 scale: scale * (n - 16). Four bits lie as in q4_0; the fifth of
// column i is bit i of 32 before them.
#pragma once

#include "formats/blocks.h"

namespace smallthinker {
namespace {
namespace format {

inline int32_t fifth_bit(const uint8_t* bits, int64_t i) { return (bits[i / 8] >> i % 8 & 1) << 4; }

#ifdef SIMD_INLINE
// A step's nibbles with their fifth bits, of 16 dwords of bits.
SIMD_INLINE void nibbles_and_bits(const uint8_t* bytes, const uint8_t* bits, int step, B64* w) {
  nibbles(bytes + 64 * step, w);
  const B64 dwords = load_bytes(bits);
  for (int p = 0; p < 2; ++p) w[p] = mix(w[p], shift_left(bits_to_bytes(dwords, 16 * p + 4 * step), 4));
}
#endif

struct q5_0 : ScaledBlock {
  static constexpr Quant kQuant = Quant::q5_0;
  static constexpr int32_t kMost = 31;
  static constexpr bool kIsRare = true;
  static constexpr TileField kTile[] = {{0, 2, 2}, {2, 4, 4}, {6, 16, 4}};
  static constexpr int32_t kZero = 16;

  static void unpack(const uint8_t* block, float* w) {
    const float scale = load_f16(block);
    for (int64_t i = 0; i < 16; ++i) {
      w[i] = scale * static_cast<float>(((block[6 + i] & 15) | fifth_bit(block + 2, i)) - kZero);
      w[i + 16] = scale * static_cast<float>((block[6 + i] >> 4 | fifth_bit(block + 2, i + 16)) - kZero);
    }
  }

#ifdef SIMD_INLINE
  SIMD_INLINE void tile_step(const uint8_t* tile, int, int step, B64* w) {
    nibbles_and_bits(tile + 96, tile + 32, step, w);
  }
#endif
};

}  // namespace format
}  // namespace
}  // namespace smallthinker
