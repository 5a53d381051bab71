// q2_k: 256 numbers n of two bits, f16 scales d and dmin, and of each 16 columns a byte with a scale in its low nibble and a
// min in its high one: d * scale * n - dmin * min. Of each 128 columns, byte i of 32 has columns i, 32 + i, 64 + i, 96 + i.
#pragma once

#include "formats/blocks.h"

namespace smallthinker {
namespace {
namespace format {

struct q2_k : Block {
  static constexpr Quant kQuant = Quant::q2_k;
  static constexpr int32_t kMost = 3;
  static constexpr bool kIsRare = true;
  static constexpr TileField kTile[] = {{80, 2, 2}, {82, 2, 2}, {0, 16, 1}, {16, 64, 4}};
  static constexpr int64_t kPartCols = 64, kScaleCols = 16;
  static constexpr bool kHasMins = true;
  static constexpr int32_t kZero = 0;

  static void unpack(const uint8_t* block, float* w) {
    for (int64_t i = 0; i < 256; ++i) {
      const float scale = load_f16(block + 80) * static_cast<float>(block[i / 16] & 15);
      const float min = load_f16(block + 82) * static_cast<float>(block[i / 16] >> 4);
      w[i] = scale * static_cast<float>(block[16 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3) - min;
    }
  }

#ifdef SIMD_INLINE
  struct TileScales {
    F32 scale, min;
    int8_t scales[16 * kTileRows], mins[16 * kTileRows];
  };
  SIMD_INLINE TileScales tile_scales(const uint8_t* tile) {
    TileScales of;
    of.scale = load_halves(tile);
    of.min = sub(zero(), load_halves(tile + 32));
    for (int64_t i = 0; i < 16 * kTileRows; ++i) {
      of.scales[i] = static_cast<int8_t>(tile[64 + i] & 15);
      of.mins[i] = static_cast<int8_t>(tile[64 + i] >> 4);
    }
    return of;
  }
  SIMD_INLINE F32 scale_of(const TileScales& of, int g) { return mul(of.scale, load(of.scales + g * kTileRows)); }
  SIMD_INLINE F32 min_of(const TileScales& of, int g) { return mul(of.min, load(of.mins + g * kTileRows)); }
  SIMD_INLINE void tile_step(const uint8_t* tile, int part, int step, B64* w) {
    const B64 packed = load_bytes(tile + 320 + part / 2 * 512 + 64 * step);
    for (int p = 0; p < 2; ++p) w[p] = bits_of(packed, part % 2 * 4 + 2 * p, 3);
  }
#endif
};

}  // namespace format
}  // namespace
}  // namespace smallthinker
