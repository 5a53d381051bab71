// f16: IEEE half precision.
#pragma once

#include "formats/formats.h"
#include "formats/half.h"

namespace smallthinker {
namespace {
namespace format {

struct f16 {
  static constexpr Quant kQuant = Quant::f16;
  static constexpr TileField kTile[] = {{0, 2, 2}};
  using Element = uint16_t;
  static float widen(Element w) { return f16_to_f32(w); }
  static Element narrow(float w) { return f32_to_f16(w); }
};

}  // namespace format
}  // namespace
}  // namespace smallthinker
