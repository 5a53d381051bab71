// mxfp4: blocks of 32 numbers of four bits (a sign, two of exponent, one of mantissa) and a common power of two, 2^(e - 127)
// (OCP Microscaling Formats 1.0). Nibbles lie as in q4_0; they are places in a table of doubled values. An e of 255 is
// nothing finite.
#pragma once

#include "formats/tables.h"

namespace smallthinker {
namespace {
namespace format {

struct mxfp4 : Block {
  static constexpr Quant kQuant = Quant::mxfp4;
  static constexpr int32_t kMost = 28;
  static constexpr TileField kTile[] = {{0, 1, 1}, {1, 16, 4}};
  static constexpr int32_t kZero = 16;

  // Half of it, as the values are doubled; that of 0 is denormal.
  static float scale_for(uint8_t e) {
    const uint32_t bits = static_cast<uint32_t>(e) << 23;
    return 0.5f * bit_cast<float>(bits < 0x400000u ? 0x400000u : bits);
  }
  static void unpack(const uint8_t* block, float* w) { unpack_values(kMxfp4Values, scale_for(block[0]), block + 1, w); }

#ifdef SIMD_INLINE
  using TileScales = F32;
  SIMD_INLINE TileScales tile_scales(const uint8_t* tile) {
    uint16_t bits[kTileRows];
    for (int64_t row = 0; row < kTileRows; ++row) bits[row] = static_cast<uint16_t>(tile[row] << 7);
    for (int64_t row = 0; row < kTileRows; ++row) bits[row] = bits[row] < 64 ? uint16_t{64} : bits[row];
    return mul(load(reinterpret_cast<const Bf16*>(bits)), broadcast(0.5f));
  }
  SIMD_INLINE F32 scale_of(const TileScales& scale, int) { return scale; }
  SIMD_INLINE void tile_step(const uint8_t* tile, int, int step, B64* w) {
    static constexpr Table table(kMxfp4Values, kZero);
    look_up_nibbles(table, tile + 16 + 64 * step, w);
  }
#endif
};

}  // namespace format
}  // namespace
}  // namespace smallthinker
