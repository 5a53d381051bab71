// f32: plain.
#pragma once

#include "formats/formats.h"

namespace smallthinker {
namespace {
namespace format {

struct f32 {
  static constexpr Quant kQuant = Quant::f32;
  static constexpr TileField kTile[] = {{0, 4, 4}};
  using Element = float;
  static float widen(Element w) { return w; }
  static Element narrow(float w) { return w; }
};

}  // namespace format
}  // namespace
}  // namespace smallthinker
