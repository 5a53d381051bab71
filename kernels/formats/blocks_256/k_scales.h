// The scales of q4_k and q5_k: f16 scales d and dmin, and of each 32 columns a scale and a min of six bits, in 12 bytes: the
// first four scales, the first four mins, the last four of both in nibbles; their upper two bits lie in the first eight.
#pragma once

#include "formats/blocks.h"

namespace smallthinker {
namespace {
namespace format {

struct KScales : Block {
  static constexpr int64_t kPartCols = 64;
  static constexpr bool kHasMins = true;
  static constexpr int32_t kZero = 0;

  // Of group g; bytes of a row lie `stride` apart: 1, in a tile 16.
  static int32_t scale_bits(const uint8_t* b, int64_t stride, int64_t g) {
    return g < 4 ? b[g * stride] & 63 : (b[(g + 4) * stride] & 15) | b[(g - 4) * stride] >> 6 << 4;
  }
  static int32_t min_bits(const uint8_t* b, int64_t stride, int64_t g) {
    return g < 4 ? b[(g + 4) * stride] & 63 : b[(g + 4) * stride] >> 4 | b[g * stride] >> 6 << 4;
  }

  // d, dmin and the 12 bytes of a block, and its 256 numbers from 0 to kMost: each group's line, rounded to multiples of
  // the largest scale / 63 and the largest min / 63, or to a neighbour with less squared error.
  template <int32_t kMost>
  static void quantize(const float* w, uint8_t* header, int32_t* n) {
    using Lines = Search<32, 0, kMost>;
    Line lines[8];
    float scale = 0.0f, min = 0.0f;
    for (int64_t g = 0; g < 8; ++g) {
      lines[g] = Lines::find_with_min(w + 32 * g);
      scale = std::fmax(scale, lines[g].scale);
      min = std::fmax(min, lines[g].min);
    }
    store_f16(header, all_finite(w, 256) ? scale / 63.0f : std::numeric_limits<float>::quiet_NaN());
    store_f16(header + 2, min / 63.0f);
    const float d = load_f16(header), dmin = load_f16(header + 2);
    uint8_t* const bytes = header + 4;
    std::memset(bytes, 0, 12);
    for (int64_t g = 0; g < 8; ++g, w += 32, n += 32) {
      const int32_t near_scale = d > 0.0f ? round_to_int(lines[g].scale / d, 0, 63) : 0;
      const int32_t near_min = dmin > 0.0f ? round_to_int(lines[g].min / dmin, 0, 63) : 0;
      int32_t best_scale = near_scale, best_min = near_min;
      float least = Lines::error(w, {d * static_cast<float>(best_scale), dmin * static_cast<float>(best_min)});
      for (int32_t s = near_scale > 0 ? near_scale - 1 : 0; s <= near_scale + 1 && s < 64; ++s) {
        for (int32_t m = near_min > 0 ? near_min - 1 : 0; m <= near_min + 1 && m < 64; ++m) {
          const float found = Lines::error(w, {d * static_cast<float>(s), dmin * static_cast<float>(m)});
          if (!(found < least)) continue;
          least = found;
          best_scale = s;
          best_min = m;
        }
      }
      const float of_group = d * static_cast<float>(best_scale), min_of_group = dmin * static_cast<float>(best_min);
      const float inverse = of_group > 0.0f ? 1.0f / of_group : 0.0f;
      for (int64_t i = 0; i < 32; ++i) n[i] = round_to_int((w[i] + min_of_group) * inverse, 0, kMost);
      if (g < 4) {
        bytes[g] = static_cast<uint8_t>(best_scale);
        bytes[g + 4] = static_cast<uint8_t>(best_min);
      } else {
        bytes[g + 4] = static_cast<uint8_t>((best_scale & 15) | (best_min & 15) << 4);
        bytes[g - 4] = static_cast<uint8_t>(bytes[g - 4] | best_scale >> 4 << 6);
        bytes[g] = static_cast<uint8_t>(bytes[g] | best_min >> 4 << 6);
      }
    }
  }

#ifdef SIMD_INLINE
  struct TileScales {
    F32 scale, min;
    int8_t scales[8 * kTileRows], mins[8 * kTileRows];
  };
  SIMD_INLINE TileScales tile_scales(const uint8_t* tile) {
    TileScales of;
    of.scale = load_halves(tile);
    of.min = sub(zero(), load_halves(tile + 32));
    const uint8_t* const bytes = tile + 64;
    constexpr int64_t kHalf = 4 * kTileRows;
    for (int64_t i = 0; i < kHalf; ++i) {
      of.scales[i] = static_cast<int8_t>(bytes[i] & 63);
      of.mins[i] = static_cast<int8_t>(bytes[kHalf + i] & 63);
      of.scales[kHalf + i] = static_cast<int8_t>((bytes[2 * kHalf + i] & 15) | bytes[i] >> 6 << 4);
      of.mins[kHalf + i] = static_cast<int8_t>(bytes[2 * kHalf + i] >> 4 | bytes[kHalf + i] >> 6 << 4);
    }
    return of;
  }
  SIMD_INLINE F32 scale_of(const TileScales& of, int g) { return mul(of.scale, load(of.scales + g * kTileRows)); }
  SIMD_INLINE F32 min_of(const TileScales& of, int g) { return mul(of.min, load(of.mins + g * kTileRows)); }
#endif
};

}  // namespace format
}  // namespace
}  // namespace smallthinker
