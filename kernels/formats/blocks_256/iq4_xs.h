// iq4_xs: 256 nibbles, places in the table of iq4_nl, an f16 scale d, and of each 32 a scale s of six bits: d * (s - 32) *
// value. Of the eight s, low nibbles lie first, two in a byte; the upper two bits are those of one 16-bit number.
#pragma once

#include "formats/tables.h"

namespace smallthinker {
namespace {
namespace format {

struct iq4_xs : Block {
  static constexpr Quant kQuant = Quant::iq4_xs;
  static constexpr bool kIsRare = true;
  static constexpr TileField kTile[] = {{0, 2, 2}, {2, 2, 1}, {4, 4, 1}, {8, 128, 4}};

  // Of group g; rows of the bytes lie `stride` apart: 1, in a tile 16.
  static int32_t scale_bits(const uint8_t* high, const uint8_t* low, int64_t stride, int64_t g) {
    return (low[g / 2 * stride] >> g % 2 * 4 & 15) | (high[g / 4 * stride] >> g % 4 * 2 & 3) << 4;
  }
  static void unpack(const uint8_t* block, float* w) {
    for (int64_t g = 0; g < 8; ++g) {
      const float scale = load_f16(block) * static_cast<float>(scale_bits(block + 2, block + 4, 1, g) - 32);
      unpack_values(kIq4Values, scale, block + 8 + 16 * g, w + 32 * g);
    }
  }

#ifdef SIMD_INLINE
  static constexpr int32_t kZero = kBiasQ8;
  SIMD_INLINE I32 tile_dot(I32 sum, B64 w, B64 a) { return dot_levels(sum, w, a); }
  struct TileScales {
    F32 scale;
    int8_t of_groups[8 * kTileRows];
  };
  SIMD_INLINE TileScales tile_scales(const uint8_t* tile) {
    TileScales scales{load_halves(tile), {}};
    for (int64_t g = 0; g < 8; ++g) {
      for (int64_t row = 0; row < kTileRows; ++row) {
        scales.of_groups[g * kTileRows + row] = static_cast<int8_t>(scale_bits(tile + 32 + row, tile + 64 + row, kTileRows, g) - 32);
      }
    }
    return scales;
  }
  SIMD_INLINE F32 scale_of(const TileScales& scales, int g) { return mul(scales.scale, load(scales.of_groups + g * kTileRows)); }
  SIMD_INLINE void tile_step(const uint8_t* tile, int part, int step, B64* w) {
    static constexpr Table table(kIq4Values, kZero);
    look_up_nibbles(table, tile + 128 + 64 * (4 * part + step), w);
  }
#endif
};

}  // namespace format
}  // namespace
}  // namespace smallthinker
