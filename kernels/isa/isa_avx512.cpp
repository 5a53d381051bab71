// AVX-512 with VNNI: servers since 2019, Zen 4.
#include "isa/isa.h"

#if SMALLTHINKER_X86

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>

// From here on everything is compiled for this instruction set. Standard headers stay above: an inline function of
// theirs compiled for it could be the copy that the linker keeps for every other file.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif

#include "isa/simd_avx512.h"

#include "micro/micro.h"

namespace smallthinker {

const Isa& isa_avx512() {
  static constexpr Isa isa = isa_named("avx512");
  return isa;
}

}  // namespace smallthinker

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // SMALLTHINKER_X86
