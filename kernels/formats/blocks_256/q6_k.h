// q6_k: 256 numbers n of six bits, an f16 scale d, and of each 16 columns an int8 scale: d * scale * (n - 32). Of each 128
// columns, byte i of 64 is column i in its low nibble and column 64 + i in its high one; byte i of 32 has the upper two bits
// of columns i, 32 + i, 64 + i and 96 + i.
#pragma once

#include "formats/blocks.h"

namespace smallthinker {
namespace {
namespace format {

struct q6_k : Block {
  static constexpr Quant kQuant = Quant::q6_k;
  static constexpr int32_t kMost = 63;
  // a file has the nibbles, the upper bits, the scales, d; in tiles each 128 columns lie together
  static constexpr TileField kTile[] = {{208, 2, 2}, {192, 16, 1}, {0, 64, 4}, {128, 32, 4}, {64, 64, 4}, {160, 32, 4}};
  static constexpr int64_t kPartCols = 64, kScaleCols = 16;
  static constexpr int32_t kZero = 32;

  // Each group's scale, rounded to a multiple of the largest / 128, or to a neighbour with less squared error.
  static void quantize(const float* w, uint8_t* block) {
    using Scales = Search<16, -32, 31>;
    float scales[16], largest = 0.0f;
    for (int64_t g = 0; g < 16; ++g) {
      scales[g] = Scales::find_scale(w + 16 * g);
      if (std::fabs(scales[g]) > std::fabs(largest)) largest = scales[g];
    }
    store_f16(block + 208, all_finite(w, 256) ? largest / -128.0f : std::numeric_limits<float>::quiet_NaN());
    const float d = load_f16(block + 208);
    std::memset(block, 0, 192);
    for (int64_t g = 0; g < 16; ++g) {
      const int32_t near = d != 0.0f ? round_to_int(scales[g] / d, -128, 127) : 0;
      int32_t best = near;
      float least = Scales::error(w + 16 * g, {d * static_cast<float>(near), 0.0f});
      for (int32_t s = near > -128 ? near - 1 : near; s <= near + 1 && s < 128; ++s) {
        const float found = Scales::error(w + 16 * g, {d * static_cast<float>(s), 0.0f});
        if (!(found < least)) continue;
        least = found;
        best = s;
      }
      block[192 + g] = static_cast<uint8_t>(best);
      const float scale = d * static_cast<float>(best), inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
      for (int64_t i = 16 * g; i < 16 * g + 16; ++i) {
        const int64_t half = i / 128, at = i % 128;
        const int32_t n = round_to_int(w[i] * inverse, -32, 31) + kZero;
        uint8_t &low = block[half * 64 + at % 64], &high = block[128 + half * 32 + at % 32];
        low = static_cast<uint8_t>(low | (n & 15) << at / 64 * 4);
        high = static_cast<uint8_t>(high | n >> 4 << at / 32 * 2);
      }
    }
  }
  static void unpack(const uint8_t* block, float* w) {
    for (int64_t i = 0; i < 256; ++i) {
      const int64_t half = i / 128, at = i % 128;
      const int32_t low = block[half * 64 + at % 64] >> at / 64 * 4 & 15, high = block[128 + half * 32 + at % 32] >> at / 32 * 2 & 3;
      const float scale = load_f16(block + 208) * static_cast<float>(static_cast<int8_t>(block[192 + i / 16]));
      w[i] = scale * static_cast<float>((low | high << 4) - kZero);
    }
  }

#ifdef SIMD_INLINE
  struct TileScales {
    F32 scale;
    const uint8_t* of_groups;
  };
  SIMD_INLINE TileScales tile_scales(const uint8_t* tile) { return {load_halves(tile), tile + 32}; }
  SIMD_INLINE F32 scale_of(const TileScales& scales, int g) { return mul(scales.scale, load_signed(scales.of_groups + g * kTileRows)); }
  SIMD_INLINE void tile_step(const uint8_t* tile, int part, int step, B64* w) {
    const uint8_t* const bytes = tile + 288 + part / 2 * 1536 + 64 * step;
    const int shift = part % 2 * 4;
    const B64 high = load_bytes(bytes + 1024);
    for (int p = 0; p < 2; ++p) {
      w[p] = mix(bits_of(load_bytes(bytes + 512 * p), shift, 15), shift_left(bits_of(high, shift + 2 * p, 3), 4));
    }
  }
#endif
};

}  // namespace format
}  // namespace
}  // namespace smallthinker
