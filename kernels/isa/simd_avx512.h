// 16-lane vectors in one zmm register. The same names as in simd_avx2.h and simd_portable.h; micro/*.h is written
// over them. Included once, by isa_avx512.cpp.
#pragma once

namespace smallthinker {
namespace {

#define SIMD_INLINE static inline __attribute__((always_inline))

using F32 = __m512;
using I32 = __m512i;
using B64 = __m512i;  // 64 bytes

constexpr int kTileTokens = 8;        // tokens that share one unpacking of a weight vector
constexpr int kTileGroups = 4;        // row groups that hide the latency of f32 and f16 products
constexpr int kElementTokens = 8;     // tokens that share a vector of elements
constexpr int kAccumulators = 16;     // vectors that stay in registers beside their operands
constexpr int kUpTokens = 4;          // tokens that share one unpacking of a row of up
constexpr int kDownTokens = 2;        // tokens whose sums of a strip of down stay in registers
constexpr int kDownVectors = 8;       // vectors of f32 sums of down

SIMD_INLINE F32 zero() { return _mm512_setzero_ps(); }
SIMD_INLINE F32 broadcast(float x) { return _mm512_set1_ps(x); }
SIMD_INLINE F32 load(const float* p) { return _mm512_loadu_ps(p); }
SIMD_INLINE F32 load(const uint16_t* f16) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(f16))); }
SIMD_INLINE F32 load(const Bf16* bf16) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bf16)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}
SIMD_INLINE F32 load(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
SIMD_INLINE void store(float* p, F32 v) { _mm512_storeu_ps(p, v); }
SIMD_INLINE void store(uint16_t* f16, F32 v) {  // to nearest even
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(f16), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

SIMD_INLINE F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
SIMD_INLINE F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
SIMD_INLINE F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
SIMD_INLINE F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
SIMD_INLINE F32 div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
SIMD_INLINE F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }  // b if either is NaN
// The larger of |a| and |b|; NaN is above everything. As integers the magnitudes have just this order.
SIMD_INLINE F32 max_magnitude(F32 a, F32 b) {
  return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(_mm512_abs_ps(a)), _mm512_castps_si512(_mm512_abs_ps(b))));
}
SIMD_INLINE F32 abs(F32 a) { return _mm512_abs_ps(a); }
SIMD_INLINE F32 zero_where_below(F32 v, F32 x, F32 bound) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, bound, _CMP_NLT_UQ), v);
}
// A bit for each lane that is above zero, or NaN.
SIMD_INLINE uint64_t live_lanes(F32 a) { return _mm512_cmp_ps_mask(a, zero(), _CMP_NLE_UQ); }
SIMD_INLINE bool all_finite(F32 a) {
  return _mm512_cmp_ps_mask(abs(a), broadcast(std::numeric_limits<float>::max()), _CMP_LE_OQ) == 0xffff;
}
// 2^n where `t` is n + 1.5 * 2^23, n in [-126, 127].
SIMD_INLINE F32 pow2_of_rounded(F32 t) {
  return _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_slli_epi32(_mm512_castps_si512(t), 23), _mm512_set1_epi32(0x3f800000)));
}

SIMD_INLINE float sum_lanes(F32 a) { return _mm512_reduce_add_ps(a); }
SIMD_INLINE float max_lane(F32 a) { return _mm512_reduce_max_ps(a); }

// Lane i is the sum of the lanes of a[i].
SIMD_INLINE F32 sum_lanes16(const F32* a) {
  F32 t[8], u[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[i] = add(_mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]), _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    u[i] = add(_mm512_shuffle_ps(t[2 * i], t[2 * i + 1], 0x44), _mm512_shuffle_ps(t[2 * i], t[2 * i + 1], 0xee));
  }
  const F32 v = add(_mm512_shuffle_f32x4(u[0], u[1], 0x44), _mm512_shuffle_f32x4(u[0], u[1], 0xee));
  const F32 w = add(_mm512_shuffle_f32x4(u[2], u[3], 0x44), _mm512_shuffle_f32x4(u[2], u[3], 0xee));
  return add(_mm512_shuffle_f32x4(v, w, 0x88), _mm512_shuffle_f32x4(v, w, 0xdd));
}

// Rounds to nearest even; lanes must be within int8.
SIMD_INLINE void store_int8(int8_t* p, F32 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}

// Dword i is the int8 of lane i of a, b, c, d, rounded to nearest even; lanes must be within int8.
SIMD_INLINE I32 pack4_int8(F32 a, F32 b, F32 c, F32 d) {
  const __m512i ab = _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
  const __m512i cd = _mm512_packs_epi32(_mm512_cvtps_epi32(c), _mm512_cvtps_epi32(d));
  const __m512i by_vector = _mm512_packs_epi16(ab, cd);
  return _mm512_shuffle_epi8(by_vector, _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400));
}

SIMD_INLINE I32 broadcast(int32_t x) { return _mm512_set1_epi32(x); }
SIMD_INLINE I32 load(const int32_t* p) { return _mm512_loadu_si512(p); }
SIMD_INLINE void store(int32_t* p, I32 v) { _mm512_storeu_si512(p, v); }
SIMD_INLINE I32 negate(I32 a) { return _mm512_sub_epi32(_mm512_setzero_si512(), a); }
SIMD_INLINE F32 to_f32(I32 a) { return _mm512_cvtepi32_ps(a); }

SIMD_INLINE B64 load_bytes(const void* p) { return _mm512_loadu_si512(p); }
SIMD_INLINE B64 broadcast_dword(const int8_t* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return _mm512_set1_epi32(x);
}
SIMD_INLINE void store_bytes(void* p, B64 v) { _mm512_storeu_si512(p, v); }
SIMD_INLINE B64 broadcast_byte(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
SIMD_INLINE B64 as_bytes(I32 a) { return a; }
SIMD_INLINE I32 as_i32(B64 a) { return a; }
// Every quarter is one dword: of four, or of two that serve two quarters each.
SIMD_INLINE B64 spread_dwords4(const int32_t* p) {
  const __m512i four = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm512_permutexvar_epi32(_mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0), four);
}
SIMD_INLINE B64 spread_dwords2(const int32_t* p) {
  const __m512i two = _mm512_castsi128_si512(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return _mm512_permutexvar_epi32(_mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0), two);
}
// Four rows of bytes to dwords of four rows: quarter k of out[v] has bytes 4v..4v+3 of the rows' quarters k, byte j of a
// dword from row j.
SIMD_INLINE void interleave4(B64 a, B64 b, B64 c, B64 d, B64* out) {
  const B64 ab_low = _mm512_unpacklo_epi8(a, b), ab_high = _mm512_unpackhi_epi8(a, b);
  const B64 cd_low = _mm512_unpacklo_epi8(c, d), cd_high = _mm512_unpackhi_epi8(c, d);
  out[0] = _mm512_unpacklo_epi16(ab_low, cd_low);
  out[1] = _mm512_unpackhi_epi16(ab_low, cd_low);
  out[2] = _mm512_unpacklo_epi16(ab_high, cd_high);
  out[3] = _mm512_unpackhi_epi16(ab_high, cd_high);
}
SIMD_INLINE B64 mix(B64 a, B64 b) { return _mm512_xor_si512(a, b); }
SIMD_INLINE B64 low_nibbles(B64 a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
SIMD_INLINE B64 high_nibbles(B64 a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
// Of each byte `mask` of its bits from `shift` on, bits that it has.
SIMD_INLINE B64 bits_of(B64 a, int shift, int mask) {
  return _mm512_and_si512(_mm512_srli_epi16(a, static_cast<unsigned>(shift)), _mm512_set1_epi8(static_cast<char>(mask)));
}
SIMD_INLINE B64 shift_left(B64 a, int n) { return _mm512_slli_epi16(a, static_cast<unsigned>(n)); }  // bits stay in their bytes
// Bytes of a table of 16.
SIMD_INLINE B64 look_up(const uint8_t* table, B64 places) {
  const __m512i bytes = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return _mm512_shuffle_epi8(bytes, places);
}
// Byte j of each dword becomes bit `first` + j of it.
SIMD_INLINE B64 bits_to_bytes(B64 dwords, int first) {
  const __m512i four = _mm512_and_si512(_mm512_srli_epi32(dwords, static_cast<unsigned>(first)), _mm512_set1_epi32(15));
  return _mm512_and_si512(_mm512_mullo_epi32(four, _mm512_set1_epi32(0x00204081)), _mm512_set1_epi32(0x01010101));
}

// Sums of four neighbouring byte products are added to every lane. The instruction wants one unsigned side, so q8_0
// weights count 128 too much; `start` of the activations takes it back.
constexpr int32_t kBiasQ8 = 128;
SIMD_INLINE I32 dot_nibbles(I32 sum, B64 w, B64 a) { return _mm512_dpbusd_epi32(sum, w, a); }
// Of signed numbers plus kBiasQ8.
SIMD_INLINE I32 dot_levels(I32 sum, B64 w, B64 a) { return _mm512_dpbusd_epi32(sum, w, a); }
SIMD_INLINE I32 dot_biased(I32 sum, B64 w, B64 a) { return _mm512_dpbusd_epi32(sum, w, a); }
SIMD_INLINE I32 dot_signed(I32 sum, B64 w, B64 a) {
  return _mm512_dpbusd_epi32(sum, _mm512_xor_si512(w, _mm512_set1_epi8(-128)), a);
}

// Lane l is element l / 4 of four, or element l / 8 of two.
SIMD_INLINE F32 spread4(__m128 x) {
  return _mm512_permutexvar_ps(_mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0), _mm512_castps128_ps512(x));
}
SIMD_INLINE F32 spread2(__m128 x) {
  return _mm512_permutexvar_ps(_mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0), _mm512_castps128_ps512(x));
}

}  // namespace
}  // namespace smallthinker

#include "isa/simd_held.h"
#include "isa/simd_x86.h"
