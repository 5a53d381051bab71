// AVX2 with the VEX encoded dot products of AVX-VNNI: PCs since 2021 that lack AVX-512.
#include "isa/isa.h"

#if SMALLTHINKER_COMPILES_AVXVNNI

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>

// From here on everything is compiled for this instruction set. Standard headers stay above: an inline function of
// theirs compiled for it could be the copy that the linker keeps for every other file.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif

#define SMALLTHINKER_AVXVNNI
#include "isa/simd_avx2.h"

#include "micro/micro.h"

namespace smallthinker {

const Isa& isa_avx2vnni() {
  static constexpr Isa isa = isa_named("avx2vnni");
  return isa;
}

}  // namespace smallthinker

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // SMALLTHINKER_COMPILES_AVXVNNI
