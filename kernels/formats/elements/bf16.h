// bf16: the upper half of an f32.
#pragma once

#include "formats/formats.h"
#include "formats/half.h"

namespace smallthinker {
namespace {
namespace format {

struct bf16 {
  static constexpr Quant kQuant = Quant::bf16;
  static constexpr TileField kTile[] = {{0, 2, 2}};
  using Element = Bf16;
  static float widen(Element w) { return bf16_to_f32(w); }
  static Element narrow(float w) { return f32_to_bf16(w); }
};

}  // namespace format
}  // namespace
}  // namespace smallthinker
