// Where dot products add to int32 as fast as to anything else: nothing is held, and registers are enough. simd_avx2.h holds
// sums in int16.
#pragma once

namespace smallthinker {
namespace {

constexpr bool kHoldsSums = false;
using Held = I32;
constexpr int32_t kHeldMost = std::numeric_limits<int32_t>::max();
SIMD_INLINE Held begin_held(I32 sum) { return sum; }
SIMD_INLINE Held hold(Held held, B64 w, B64 a) { return dot_nibbles(held, w, a); }
SIMD_INLINE I32 release(I32, Held held) { return held; }
SIMD_INLINE void forget_loads() {}

}  // namespace
}  // namespace smallthinker
