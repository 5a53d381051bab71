// AVX2, FMA and F16C: PCs since 2013.
#include "isa/isa.h"

#if SMALLTHINKER_X86

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>

// From here on everything is compiled for this instruction set. Standard headers stay above: an inline function of
// theirs compiled for it could be the copy that the linker keeps for every other file.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include "isa/simd_avx2.h"

#include "micro/micro.h"

namespace smallthinker {

const Isa& isa_avx2() {
  static constexpr Isa isa = isa_named("avx2");
  return isa;
}

}  // namespace smallthinker

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // SMALLTHINKER_X86
