// Formats whose nibbles are places in a table of 16 int8.
#pragma once

#include "formats/blocks.h"

namespace smallthinker {
namespace {
namespace format {

constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kMxfp4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};  // doubled

// `zero` is added to each value, so that it is unsigned.
struct Table {
  uint8_t bytes[16] = {};
  constexpr Table(const int8_t* values, int32_t zero) {
    for (int i = 0; i < 16; ++i) bytes[i] = static_cast<uint8_t>(values[i] + zero);
  }
};

inline void unpack_values(const int8_t* values, float scale, const uint8_t* bytes, float* w) {
  for (int64_t i = 0; i < 16; ++i) {
    w[i] = scale * static_cast<float>(values[bytes[i] & 15]);
    w[i + 16] = scale * static_cast<float>(values[bytes[i] >> 4]);
  }
}

#ifdef SIMD_INLINE
SIMD_INLINE void look_up_nibbles(const Table& table, const uint8_t* bytes, B64* w) {
  nibbles(bytes, w);
  for (int p = 0; p < 2; ++p) w[p] = look_up(table.bytes, w[p]);
}
#endif

}  // namespace format
}  // namespace
}  // namespace smallthinker
