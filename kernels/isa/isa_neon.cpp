// NEON with the dot products of Armv8.2: phones and single-board computers since 2018, every Apple M.
#include "isa/isa.h"

#if SMALLTHINKER_NEON

#include <arm_neon.h>

#include <cmath>
#include <cstring>
#include <limits>

// From here on everything is compiled for this instruction set. Standard headers stay above: an inline function of
// theirs compiled for it could be the copy that the linker keeps for every other file.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#include "isa/simd_neon.h"

#include "micro/micro.h"

namespace smallthinker {

const Isa& isa_neon() {
  static constexpr Isa isa = isa_named("neon");
  return isa;
}

}  // namespace smallthinker

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // SMALLTHINKER_NEON
