// q3_k: 256 numbers n of three bits, an f16 scale d, and of each 16 columns a scale of six bits: d * (scale - 32) * (n - 4).
// Two bits lie as in q2_k; the third of column 32 g + i is bit g of byte i of 32. Of the 16 scales, in 12 bytes, low nibbles
// lie first, that of g + 8 in the byte of g; byte 8 + g % 4 has the upper two bits of g.
#pragma once

#include "formats/blocks.h"

namespace smallthinker {
namespace {
namespace format {

struct q3_k : Block {
  static constexpr Quant kQuant = Quant::q3_k;
  static constexpr int32_t kMost = 7;
  static constexpr bool kIsRare = true;
  static constexpr TileField kTile[] = {{108, 2, 2}, {96, 12, 1}, {0, 32, 4}, {32, 64, 4}};
  static constexpr int64_t kPartCols = 64, kScaleCols = 16;
  static constexpr int32_t kZero = 4;

  // Of group g; bytes of a row lie `stride` apart: 1, in a tile 16.
  static int32_t scale_bits(const uint8_t* b, int64_t stride, int64_t g) {
    return (b[g % 8 * stride] >> g / 8 * 4 & 15) | (b[(8 + g % 4) * stride] >> g / 4 * 2 & 3) << 4;
  }
  static void unpack(const uint8_t* block, float* w) {
    for (int64_t i = 0; i < 256; ++i) {
      const float scale = load_f16(block + 108) * static_cast<float>(scale_bits(block + 96, 1, i / 16) - 32);
      const int32_t low = block[32 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3, high = block[i % 32] >> i / 32 & 1;
      w[i] = scale * static_cast<float>((low | high << 2) - kZero);
    }
  }

#ifdef SIMD_INLINE
  struct TileScales {
    F32 scale;
    int8_t of_groups[16 * kTileRows];
  };
  SIMD_INLINE TileScales tile_scales(const uint8_t* tile) {
    TileScales scales{load_halves(tile), {}};
    for (int64_t g = 0; g < 16; ++g) {
      for (int64_t row = 0; row < kTileRows; ++row) {
        scales.of_groups[g * kTileRows + row] = static_cast<int8_t>(scale_bits(tile + 32 + row, kTileRows, g) - 32);
      }
    }
    return scales;
  }
  SIMD_INLINE F32 scale_of(const TileScales& scales, int g) { return mul(scales.scale, load(scales.of_groups + g * kTileRows)); }
  SIMD_INLINE void tile_step(const uint8_t* tile, int part, int step, B64* w) {
    const B64 packed = load_bytes(tile + 736 + part / 2 * 512 + 64 * step), bits = load_bytes(tile + 224 + 64 * step);
    for (int p = 0; p < 2; ++p) {
      w[p] = mix(bits_of(packed, part % 2 * 4 + 2 * p, 3), shift_left(bits_of(bits, 2 * part + p, 1), 2));
    }
  }
#endif
};

}  // namespace format
}  // namespace
}  // namespace smallthinker
