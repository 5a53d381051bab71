// 16-lane vectors in two ymm registers. The same names as in simd_avx512.h and simd_portable.h; micro/*.h is written
// over them. Included once by isa_avx2.cpp, and once by isa_avx2vnni.cpp with SMALLTHINKER_AVXVNNI, which changes the
// integer products alone.
#pragma once

namespace smallthinker {
namespace {

#define SIMD_INLINE static inline __attribute__((always_inline))

struct F32 { __m256 lo, hi; };
struct I32 { __m256i lo, hi; };
struct B64 { __m256i lo, hi; };  // 64 bytes

constexpr int kTileTokens = 4;
constexpr int kTileGroups = 2;
constexpr int kElementTokens = 2;
constexpr int kAccumulators = 4;
constexpr int kUpTokens = 2;
constexpr int kDownTokens = 1;
constexpr int kDownVectors = 4;

SIMD_INLINE F32 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
SIMD_INLINE F32 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
SIMD_INLINE F32 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
SIMD_INLINE F32 load(const uint16_t* f16) {
  const __m128i* p = reinterpret_cast<const __m128i*>(f16);
  return {_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128(p + 1))};
}
SIMD_INLINE __m256 widen(__m128i bf16) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bf16), 16)); }
SIMD_INLINE F32 load(const Bf16* bf16) {
  const __m128i* p = reinterpret_cast<const __m128i*>(bf16);
  return {widen(_mm_loadu_si128(p)), widen(_mm_loadu_si128(p + 1))};
}
SIMD_INLINE F32 load(const int8_t* p) {
  const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(a)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(a, 8)))};
}
SIMD_INLINE void store(float* p, F32 v) {
  _mm256_storeu_ps(p, v.lo);
  _mm256_storeu_ps(p + 8, v.hi);
}
SIMD_INLINE void store(uint16_t* f16, F32 v) {  // to nearest even
  __m128i* p = reinterpret_cast<__m128i*>(f16);
  _mm_storeu_si128(p, _mm256_cvtps_ph(v.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  _mm_storeu_si128(p + 1, _mm256_cvtps_ph(v.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

SIMD_INLINE F32 add(F32 a, F32 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
SIMD_INLINE F32 sub(F32 a, F32 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
SIMD_INLINE F32 mul(F32 a, F32 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
SIMD_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
SIMD_INLINE F32 div(F32 a, F32 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
SIMD_INLINE F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }  // b if NaN
SIMD_INLINE F32 abs(F32 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
SIMD_INLINE __m256 max_bits(__m256 a, __m256 b) {
  return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
SIMD_INLINE F32 max_magnitude(F32 a, F32 b) {
  const F32 x = abs(a), y = abs(b);
  return {max_bits(x.lo, y.lo), max_bits(x.hi, y.hi)};
}
SIMD_INLINE F32 zero_where_below(F32 v, F32 x, F32 bound) {
  return {_mm256_and_ps(_mm256_cmp_ps(x.lo, bound.lo, _CMP_NLT_UQ), v.lo),
          _mm256_and_ps(_mm256_cmp_ps(x.hi, bound.hi, _CMP_NLT_UQ), v.hi)};
}
SIMD_INLINE uint64_t live_lanes(F32 a) {
  const __m256 zeros = _mm256_setzero_ps();
  const int lo = _mm256_movemask_ps(_mm256_cmp_ps(a.lo, zeros, _CMP_NLE_UQ));
  const int hi = _mm256_movemask_ps(_mm256_cmp_ps(a.hi, zeros, _CMP_NLE_UQ));
  return static_cast<uint64_t>(lo | hi << 8);
}
SIMD_INLINE bool all_finite(F32 a) {
  const F32 magnitude = abs(a);
  const __m256 largest = _mm256_set1_ps(std::numeric_limits<float>::max());
  return _mm256_movemask_ps(_mm256_and_ps(_mm256_cmp_ps(magnitude.lo, largest, _CMP_LE_OQ),
                                          _mm256_cmp_ps(magnitude.hi, largest, _CMP_LE_OQ))) == 0xff;
}
SIMD_INLINE __m256 pow2_of_rounded(__m256 t) {
  return _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(t), 23), _mm256_set1_epi32(0x3f800000)));
}
SIMD_INLINE F32 pow2_of_rounded(F32 t) { return {pow2_of_rounded(t.lo), pow2_of_rounded(t.hi)}; }

SIMD_INLINE float sum_lanes(F32 a) {
  const __m256 s = _mm256_add_ps(a.lo, a.hi);
  __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_add_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}
SIMD_INLINE float max_lane(F32 a) {
  const __m256 s = _mm256_max_ps(a.lo, a.hi);
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));
}

SIMD_INLINE __m256 sum_lanes8(const F32* a) {
  __m256 s[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) s[i] = _mm256_add_ps(a[i].lo, a[i].hi);
  const __m256 u = _mm256_hadd_ps(_mm256_hadd_ps(s[0], s[1]), _mm256_hadd_ps(s[2], s[3]));
  const __m256 v = _mm256_hadd_ps(_mm256_hadd_ps(s[4], s[5]), _mm256_hadd_ps(s[6], s[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(u, v, 0x20), _mm256_permute2f128_ps(u, v, 0x31));
}
SIMD_INLINE F32 sum_lanes16(const F32* a) { return {sum_lanes8(a), sum_lanes8(a + 8)}; }

SIMD_INLINE void store_int8(int8_t* p, F32 v) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.lo), _mm256_cvtps_epi32(v.hi));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
}

SIMD_INLINE __m256i pack4_int8(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256i ab = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
  const __m256i cd = _mm256_packs_epi32(_mm256_cvtps_epi32(c), _mm256_cvtps_epi32(d));
  const __m128i order = _mm_set_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400);
  return _mm256_shuffle_epi8(_mm256_packs_epi16(ab, cd), _mm256_broadcastsi128_si256(order));
}
SIMD_INLINE I32 pack4_int8(F32 a, F32 b, F32 c, F32 d) {
  return {pack4_int8(a.lo, b.lo, c.lo, d.lo), pack4_int8(a.hi, b.hi, c.hi, d.hi)};
}

SIMD_INLINE I32 broadcast(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
SIMD_INLINE I32 load(const int32_t* p) {
  const __m256i* v = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
}
SIMD_INLINE void store(int32_t* p, I32 a) {
  __m256i* v = reinterpret_cast<__m256i*>(p);
  _mm256_storeu_si256(v, a.lo);
  _mm256_storeu_si256(v + 1, a.hi);
}
SIMD_INLINE I32 negate(I32 a) {
  const __m256i zero = _mm256_setzero_si256();
  return {_mm256_sub_epi32(zero, a.lo), _mm256_sub_epi32(zero, a.hi)};
}
SIMD_INLINE F32 to_f32(I32 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }

SIMD_INLINE B64 load_bytes(const void* p) {
  const __m256i* v = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
}
SIMD_INLINE B64 broadcast_dword(const int8_t* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
SIMD_INLINE void store_bytes(void* p, B64 a) {
  __m256i* v = static_cast<__m256i*>(p);
  _mm256_storeu_si256(v, a.lo);
  _mm256_storeu_si256(v + 1, a.hi);
}
SIMD_INLINE B64 broadcast_byte(int x) {
  const __m256i v = _mm256_set1_epi8(static_cast<char>(x));
  return {v, v};
}
SIMD_INLINE B64 as_bytes(I32 a) { return {a.lo, a.hi}; }
SIMD_INLINE I32 as_i32(B64 a) { return {a.lo, a.hi}; }
SIMD_INLINE B64 spread_dwords4(const int32_t* p) {
  const __m256i four = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_permutevar8x32_epi32(four, _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0)),
          _mm256_permutevar8x32_epi32(four, _mm256_set_epi32(3, 3, 3, 3, 2, 2, 2, 2))};
}
SIMD_INLINE B64 spread_dwords2(const int32_t* p) { return {_mm256_set1_epi32(p[0]), _mm256_set1_epi32(p[1])}; }
SIMD_INLINE void interleave4(__m256i a, __m256i b, __m256i c, __m256i d, __m256i* out) {
  const __m256i ab_low = _mm256_unpacklo_epi8(a, b), ab_high = _mm256_unpackhi_epi8(a, b);
  const __m256i cd_low = _mm256_unpacklo_epi8(c, d), cd_high = _mm256_unpackhi_epi8(c, d);
  out[0] = _mm256_unpacklo_epi16(ab_low, cd_low);
  out[1] = _mm256_unpackhi_epi16(ab_low, cd_low);
  out[2] = _mm256_unpacklo_epi16(ab_high, cd_high);
  out[3] = _mm256_unpackhi_epi16(ab_high, cd_high);
}
SIMD_INLINE void interleave4(B64 a, B64 b, B64 c, B64 d, B64* out) {
  __m256i low[4], high[4];
  interleave4(a.lo, b.lo, c.lo, d.lo, low);
  interleave4(a.hi, b.hi, c.hi, d.hi, high);
  for (int v = 0; v < 4; ++v) out[v] = {low[v], high[v]};
}
SIMD_INLINE B64 mix(B64 a, B64 b) { return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)}; }
SIMD_INLINE B64 low_nibbles(B64 a) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask)};
}
SIMD_INLINE B64 high_nibbles(B64 a) { return low_nibbles({_mm256_srli_epi16(a.lo, 4), _mm256_srli_epi16(a.hi, 4)}); }
SIMD_INLINE B64 bits_of(B64 a, int shift, int mask) {
  const __m256i kept = _mm256_set1_epi8(static_cast<char>(mask));
  return {_mm256_and_si256(_mm256_srli_epi16(a.lo, shift), kept), _mm256_and_si256(_mm256_srli_epi16(a.hi, shift), kept)};
}
SIMD_INLINE B64 shift_left(B64 a, int n) { return {_mm256_slli_epi16(a.lo, n), _mm256_slli_epi16(a.hi, n)}; }
SIMD_INLINE B64 look_up(const uint8_t* table, B64 places) {
  const __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(bytes, places.lo), _mm256_shuffle_epi8(bytes, places.hi)};
}
SIMD_INLINE __m256i bits_to_bytes(__m256i dwords, int first) {
  const __m256i four = _mm256_and_si256(_mm256_srli_epi32(dwords, first), _mm256_set1_epi32(15));
  return _mm256_and_si256(_mm256_mullo_epi32(four, _mm256_set1_epi32(0x00204081)), _mm256_set1_epi32(0x01010101));
}
SIMD_INLINE B64 bits_to_bytes(B64 dwords, int first) { return {bits_to_bytes(dwords.lo, first), bits_to_bytes(dwords.hi, first)}; }

// Sums of four neighbouring byte products, w unsigned and a signed, added to every int32 of `sum`.
#ifdef SMALLTHINKER_AVXVNNI
SIMD_INLINE __m256i dot_unsigned(__m256i sum, __m256i w, __m256i a) { return _mm256_dpbusd_avx_epi32(sum, w, a); }
constexpr int32_t kBiasQ8 = 128;
SIMD_INLINE __m256i dot_levels(__m256i sum, __m256i w, __m256i a) { return dot_unsigned(sum, w, a); }
SIMD_INLINE __m256i dot_biased(__m256i sum, __m256i w, __m256i a) { return dot_unsigned(sum, w, a); }
SIMD_INLINE __m256i dot_signed(__m256i sum, __m256i w, __m256i a) {
  return dot_unsigned(sum, _mm256_xor_si256(w, _mm256_set1_epi8(-128)), a);
}
#else
SIMD_INLINE __m256i dot_unsigned(__m256i sum, __m256i w, __m256i a) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)));
}
// The pairwise int16 sums of this instruction saturate with q + 128 as the unsigned side, not with |q| <= 128:
// 2 * 128 * 127 fits. So the sign moves to the activations and there is no bias to take back.
constexpr int32_t kBiasQ8 = 0;
SIMD_INLINE __m256i dot_signed(__m256i sum, __m256i w, __m256i a) {
  return dot_unsigned(sum, _mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
}
SIMD_INLINE __m256i dot_levels(__m256i sum, __m256i w, __m256i a) { return dot_signed(sum, w, a); }
SIMD_INLINE __m256i dot_biased(__m256i sum, __m256i w, __m256i a) {
  return dot_signed(sum, _mm256_xor_si256(w, _mm256_set1_epi8(-128)), a);
}
#endif
SIMD_INLINE I32 dot_nibbles(I32 sum, B64 w, B64 a) {
  return {dot_unsigned(sum.lo, w.lo, a.lo), dot_unsigned(sum.hi, w.hi, a.hi)};
}
SIMD_INLINE I32 dot_levels(I32 sum, B64 w, B64 a) {
  return {dot_levels(sum.lo, w.lo, a.lo), dot_levels(sum.hi, w.hi, a.hi)};
}
SIMD_INLINE I32 dot_signed(I32 sum, B64 w, B64 a) {
  return {dot_signed(sum.lo, w.lo, a.lo), dot_signed(sum.hi, w.hi, a.hi)};
}
SIMD_INLINE I32 dot_biased(I32 sum, B64 w, B64 a) {
  return {dot_biased(sum.lo, w.lo, a.lo), dot_biased(sum.hi, w.hi, a.hi)};
}

SIMD_INLINE F32 spread4(__m128 x) {
  const __m256 twice = _mm256_set_m128(x, x);
  return {_mm256_permutevar_ps(twice, _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0)),
          _mm256_permutevar_ps(twice, _mm256_set_epi32(3, 3, 3, 3, 2, 2, 2, 2))};
}
SIMD_INLINE F32 spread2(__m128 x) {
  return {_mm256_broadcastss_ps(x), _mm256_broadcastss_ps(_mm_movehdup_ps(x))};
}

#ifndef SMALLTHINKER_AVXVNNI
// Products of small integers, w unsigned, whose pairs are summed in int16 until they might pass kHeldMost: one
// instruction in three less than dot_nibbles. A sum begins as zero and is added to the int32 that it began with.
constexpr bool kHoldsSums = true;
struct Held { __m256i lo, hi; };
constexpr int32_t kHeldMost = 32767;
SIMD_INLINE Held begin_held(I32) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
SIMD_INLINE Held hold(Held held, B64 w, B64 a) {
  held.lo = _mm256_add_epi16(held.lo, _mm256_maddubs_epi16(w.lo, a.lo));
  held.hi = _mm256_add_epi16(held.hi, _mm256_maddubs_epi16(w.hi, a.hi));
  asm("" : "+x"(held.lo), "+x"(held.hi));  // in this order: as a tree, sums of sums leave no register free
  return held;
}
SIMD_INLINE I32 release(I32 sum, Held held) {
  const __m256i ones = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(sum.lo, _mm256_madd_epi16(held.lo, ones)), _mm256_add_epi32(sum.hi, _mm256_madd_epi16(held.hi, ones))};
}
// Nothing loaded before is kept in a register.
SIMD_INLINE void forget_loads() { asm volatile("" ::: "memory"); }
#endif

}  // namespace
}  // namespace smallthinker

#ifdef SMALLTHINKER_AVXVNNI
#include "isa/simd_held.h"
#endif
#include "isa/simd_x86.h"
