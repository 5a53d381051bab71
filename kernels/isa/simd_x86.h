// What AVX2 and AVX-512 share: four numbers in 128 bits, two in their lower half, and prefetches. Included by their headers.
#pragma once

namespace smallthinker {
namespace {

SIMD_INLINE __m128 load4(const float* p) { return _mm_loadu_ps(p); }
SIMD_INLINE __m128 load4(const uint16_t* f16) { return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(f16))); }
SIMD_INLINE __m128 load2(const float* p) { return _mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
SIMD_INLINE __m128 load2(const uint16_t* f16) {
  int32_t x;
  std::memcpy(&x, f16, 4);
  return _mm_cvtph_ps(_mm_cvtsi32_si128(x));
}
SIMD_INLINE __m128 mul4(__m128 a, __m128 b) { return _mm_mul_ps(a, b); }
SIMD_INLINE __m128 scale4(__m128 a, float b) { return _mm_mul_ps(a, _mm_set1_ps(b)); }

SIMD_INLINE void prefetch_l2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
SIMD_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace
}  // namespace smallthinker
