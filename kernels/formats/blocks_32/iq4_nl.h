// iq4_nl: blocks of 32 nibbles, places in a table of int8, and one f16 scale. Nibbles lie as in q4_0.
#pragma once

#include "formats/tables.h"

namespace smallthinker {
namespace {
namespace format {

struct iq4_nl : ScaledBlock {
  static constexpr Quant kQuant = Quant::iq4_nl;
  static constexpr bool kIsRare = true;
  static constexpr TileField kTile[] = {{0, 2, 2}, {2, 16, 4}};

  static void unpack(const uint8_t* block, float* w) { unpack_values(kIq4Values, load_f16(block), block + 2, w); }

#ifdef SIMD_INLINE
  static constexpr int32_t kZero = kBiasQ8;
  SIMD_INLINE I32 tile_dot(I32 sum, B64 w, B64 a) { return dot_levels(sum, w, a); }
  SIMD_INLINE void tile_step(const uint8_t* tile, int, int step, B64* w) {
    static constexpr Table table(kIq4Values, kZero);
    look_up_nibbles(table, tile + 32 + 64 * step, w);
  }
#endif
};

}  // namespace format
}  // namespace
}  // namespace smallthinker
