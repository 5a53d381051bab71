// What headers of formats of blocks share: f16 in bytes, how ggml rounds, and the integers of tiles.
//
// A format of blocks says in plain C++ what a block of ggml's bytes means (`unpack`), and in vectors how its tile is
// multiplied (micro/tiles.h). A block's columns are parts of kPartCols; step j of a part gives kPlanes vectors of integers,
// plane p those of the four columns from p * kPartCols / kPlanes + 4 j on. A weight is scale_of(its group of kScaleCols
// columns) * (integer - kZero), plus min_of(the group) where kHasMins.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "formats/formats.h"
#include "formats/half.h"
#include "formats/search.h"

namespace smallthinker {
namespace {
namespace format {

inline float load_f16(const uint8_t* p) {
  uint16_t x;
  std::memcpy(&x, p, 2);
  return f16_to_f32(x);
}
inline void store_f16(uint8_t* p, float x) {
  const uint16_t half = f32_to_f16(x);
  std::memcpy(p, &half, 2);
}

// A block of 32 as the format's integers, whose scale it returns. A block with a NaN or an infinity gets the scale NaN:
// nothing in it can be trusted, and the result shows it.
template <class Format>
float quantize_levels(const float* w, int32_t* q) {
  float largest = 0.0f;
  for (int64_t i = 0; i < kBlock; ++i) {
    q[i] = Format::kLevelOfZero;
    if (std::fabs(w[i]) > std::fabs(largest)) largest = w[i];
  }
  if (!all_finite(w, kBlock)) return std::numeric_limits<float>::quiet_NaN();
  const float scale = Format::scale_for(largest), inverse = 1.0f / scale;
  if (!std::isfinite(inverse)) return 0.0f;  // no scale, or one far below the smallest f16
  for (int64_t i = 0; i < kBlock; ++i) q[i] = Format::round(w[i] * inverse);
  return scale;
}

// Formats of other groups of columns, with mins or with signed integers say so themselves.
struct Block {
  static constexpr int64_t kPartCols = 32, kScaleCols = 32;
  static constexpr int kPlanes = 2;
  static constexpr bool kHasMins = false, kIsRare = false;
  static constexpr uint8_t kTileFlip = 0;  // what bytes of fields of four are xored with in tiles
  static constexpr int32_t kMost = 0;  // integers are from 0 to it; 0: of more, with a tile_dot of their own
};

#ifdef SIMD_INLINE
// Products with an int8 of a format's small integers that a held sum takes (isa/simd_held.h), in pairs.
template <class Format>
constexpr int kHeldProducts = kHeldMost / (2 * 127 * (Format::kMost > 0 ? Format::kMost : 1));

SIMD_INLINE F32 load_halves(const uint8_t* p) { return load(reinterpret_cast<const uint16_t*>(p)); }
SIMD_INLINE F32 load_signed(const uint8_t* p) { return load(reinterpret_cast<const int8_t*>(p)); }
#endif

// A tile that begins with 16 scales.
struct ScaledBlock : Block {
#ifdef SIMD_INLINE
  using TileScales = F32;
  SIMD_INLINE TileScales tile_scales(const uint8_t* tile) { return load_halves(tile); }
  SIMD_INLINE F32 scale_of(const TileScales& scale, int) { return scale; }
#endif
};

// A tile that begins with 16 scales and 16 mins, one of each a row.
struct ScaledBlockWithMin : Block {
  static constexpr bool kHasMins = true;
#ifdef SIMD_INLINE
  struct TileScales {
    F32 scale, min;
  };
  SIMD_INLINE TileScales tile_scales(const uint8_t* tile) { return {load_halves(tile), load_halves(tile + 32)}; }
  SIMD_INLINE F32 scale_of(const TileScales& scales, int) { return scales.scale; }
  SIMD_INLINE F32 min_of(const TileScales& scales, int) { return scales.min; }
#endif
};

#ifdef SIMD_INLINE
SIMD_INLINE void nibbles(const uint8_t* bytes, B64* w) {
  const B64 packed = load_bytes(bytes);
  w[0] = low_nibbles(packed);
  w[1] = high_nibbles(packed);
}
#endif

}  // namespace format
}  // namespace
}  // namespace smallthinker
