// 16-lane vectors in four q registers. The same names as in simd_avx512.h, simd_avx2.h and simd_portable.h; micro/*.h
// is written over them. Included once, by isa_neon.cpp.
#pragma once

namespace smallthinker {
namespace {

#define SIMD_INLINE static inline __attribute__((always_inline))

struct F32 { float32x4_t q[4]; };
struct I32 { int32x4_t q[4]; };
struct B64 { uint8x16_t q[4]; };  // 64 bytes

constexpr int kTileTokens = 4;
constexpr int kTileGroups = 1;
constexpr int kElementTokens = 4;
constexpr int kAccumulators = 4;
constexpr int kUpTokens = 2;
constexpr int kDownTokens = 1;
constexpr int kDownVectors = 4;

// The vector whose quarter i is quarter(i); without a loop, which would keep the array in memory.
template <class Vector, class Quarter>
SIMD_INLINE Vector quarters(Quarter quarter) { return {{quarter(0), quarter(1), quarter(2), quarter(3)}}; }

SIMD_INLINE F32 broadcast(float x) { return quarters<F32>([=](int) { return vdupq_n_f32(x); }); }
SIMD_INLINE F32 zero() { return broadcast(0.0f); }
SIMD_INLINE F32 load(const float* p) { return quarters<F32>([=](int i) { return vld1q_f32(p + 4 * i); }); }
SIMD_INLINE float32x4_t widen(uint16x4_t f16) { return vcvt_f32_f16(vreinterpret_f16_u16(f16)); }
SIMD_INLINE F32 load(const uint16_t* f16) { return quarters<F32>([=](int i) { return widen(vld1_u16(f16 + 4 * i)); }); }
SIMD_INLINE F32 load(const Bf16* p) {
  const uint16_t* bf16 = reinterpret_cast<const uint16_t*>(p);
  return quarters<F32>([=](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(bf16 + 4 * i), 16)); });
}
SIMD_INLINE F32 load(const int8_t* p) {
  const int8x16_t bytes = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}
SIMD_INLINE void store(float* p, F32 v) {
  vst1q_f32(p, v.q[0]);
  vst1q_f32(p + 4, v.q[1]);
  vst1q_f32(p + 8, v.q[2]);
  vst1q_f32(p + 12, v.q[3]);
}
SIMD_INLINE void store(uint16_t* f16, F32 v) {  // to nearest even
  for (int i = 0; i < 4; ++i) vst1_u16(f16 + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(v.q[i])));
}

SIMD_INLINE F32 add(F32 a, F32 b) { return quarters<F32>([&](int i) { return vaddq_f32(a.q[i], b.q[i]); }); }
SIMD_INLINE F32 sub(F32 a, F32 b) { return quarters<F32>([&](int i) { return vsubq_f32(a.q[i], b.q[i]); }); }
SIMD_INLINE F32 mul(F32 a, F32 b) { return quarters<F32>([&](int i) { return vmulq_f32(a.q[i], b.q[i]); }); }
SIMD_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return quarters<F32>([&](int i) { return vfmaq_f32(c.q[i], a.q[i], b.q[i]); });
}
SIMD_INLINE F32 div(F32 a, F32 b) { return quarters<F32>([&](int i) { return vdivq_f32(a.q[i], b.q[i]); }); }
// Not vmaxq, which gives NaN where one of the two is NaN; b is what the other instruction sets give.
SIMD_INLINE float32x4_t max(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
SIMD_INLINE F32 max(F32 a, F32 b) { return quarters<F32>([&](int i) { return max(a.q[i], b.q[i]); }); }
SIMD_INLINE F32 abs(F32 a) { return quarters<F32>([&](int i) { return vabsq_f32(a.q[i]); }); }
SIMD_INLINE F32 max_magnitude(F32 a, F32 b) {
  return quarters<F32>([&](int i) {
    const int32x4_t x = vreinterpretq_s32_f32(vabsq_f32(a.q[i])), y = vreinterpretq_s32_f32(vabsq_f32(b.q[i]));
    return vreinterpretq_f32_s32(vmaxq_s32(x, y));
  });
}
SIMD_INLINE F32 zero_where_below(F32 v, F32 x, F32 bound) {
  return quarters<F32>([&](int i) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v.q[i]), vcltq_f32(x.q[i], bound.q[i])));
  });
}
SIMD_INLINE uint64_t live_lanes(F32 a) {
  const uint32_t lane_bits[4] = {1, 2, 4, 8};
  const uint32x4_t bit = vld1q_u32(lane_bits), zeros = vdupq_n_u32(0);
  uint64_t bits = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t dead = vcleq_f32(a.q[i], vreinterpretq_f32_u32(zeros));  // false for NaN
    bits |= static_cast<uint64_t>(vaddvq_u32(vbicq_u32(bit, dead))) << 4 * i;
  }
  return bits;
}
SIMD_INLINE bool all_finite(F32 a) {
  const float32x4_t largest = vdupq_n_f32(std::numeric_limits<float>::max());
  const uint32x4_t low = vandq_u32(vcaleq_f32(a.q[0], largest), vcaleq_f32(a.q[1], largest));
  const uint32x4_t high = vandq_u32(vcaleq_f32(a.q[2], largest), vcaleq_f32(a.q[3], largest));
  return vminvq_u32(vandq_u32(low, high)) != 0;
}
SIMD_INLINE F32 pow2_of_rounded(F32 t) {
  return quarters<F32>([&](int i) {
    const uint32x4_t exponent = vshlq_n_u32(vreinterpretq_u32_f32(t.q[i]), 23);
    return vreinterpretq_f32_u32(vaddq_u32(exponent, vdupq_n_u32(0x3f800000)));
  });
}

SIMD_INLINE float32x4_t sum_quarters(F32 a) { return vaddq_f32(vaddq_f32(a.q[0], a.q[1]), vaddq_f32(a.q[2], a.q[3])); }
SIMD_INLINE float sum_lanes(F32 a) { return vaddvq_f32(sum_quarters(a)); }
SIMD_INLINE float max_lane(F32 a) { return vmaxnmvq_f32(max(max(a.q[0], a.q[1]), max(a.q[2], a.q[3]))); }

SIMD_INLINE float32x4_t sum_lanes4(const F32* a) {
  return vpaddq_f32(vpaddq_f32(sum_quarters(a[0]), sum_quarters(a[1])),
                    vpaddq_f32(sum_quarters(a[2]), sum_quarters(a[3])));
}
SIMD_INLINE F32 sum_lanes16(const F32* a) { return quarters<F32>([=](int i) { return sum_lanes4(a + 4 * i); }); }

SIMD_INLINE int16x8_t round_to_int16(float32x4_t low, float32x4_t high) {
  return vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(low)), vqmovn_s32(vcvtnq_s32_f32(high)));
}
SIMD_INLINE void store_int8(int8_t* p, F32 v) {
  vst1q_s8(p, vcombine_s8(vqmovn_s16(round_to_int16(v.q[0], v.q[1])), vqmovn_s16(round_to_int16(v.q[2], v.q[3]))));
}

SIMD_INLINE I32 pack4_int8(F32 a, F32 b, F32 c, F32 d) {
  alignas(16) static constexpr uint8_t kOrder[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const uint8x16_t order = vld1q_u8(kOrder);
  return quarters<I32>([&](int i) {
    const int8x8_t ab = vqmovn_s16(round_to_int16(a.q[i], b.q[i])), cd = vqmovn_s16(round_to_int16(c.q[i], d.q[i]));
    return vreinterpretq_s32_s8(vqtbl1q_s8(vcombine_s8(ab, cd), order));
  });
}

SIMD_INLINE I32 broadcast(int32_t x) { return quarters<I32>([=](int) { return vdupq_n_s32(x); }); }
SIMD_INLINE I32 load(const int32_t* p) { return quarters<I32>([=](int i) { return vld1q_s32(p + 4 * i); }); }
SIMD_INLINE void store(int32_t* p, I32 v) {
  vst1q_s32(p, v.q[0]);
  vst1q_s32(p + 4, v.q[1]);
  vst1q_s32(p + 8, v.q[2]);
  vst1q_s32(p + 12, v.q[3]);
}
SIMD_INLINE I32 negate(I32 a) { return quarters<I32>([&](int i) { return vnegq_s32(a.q[i]); }); }
SIMD_INLINE F32 to_f32(I32 a) { return quarters<F32>([&](int i) { return vcvtq_f32_s32(a.q[i]); }); }

SIMD_INLINE B64 load_bytes(const void* p) {
  return quarters<B64>([=](int i) { return vld1q_u8(static_cast<const uint8_t*>(p) + 16 * i); });
}
SIMD_INLINE B64 broadcast_dword(const int8_t* p) {
  uint32_t x;
  std::memcpy(&x, p, 4);
  return quarters<B64>([=](int) { return vreinterpretq_u8_u32(vdupq_n_u32(x)); });
}
SIMD_INLINE void store_bytes(void* p, B64 v) {
  uint8_t* const bytes = static_cast<uint8_t*>(p);
  vst1q_u8(bytes, v.q[0]);
  vst1q_u8(bytes + 16, v.q[1]);
  vst1q_u8(bytes + 32, v.q[2]);
  vst1q_u8(bytes + 48, v.q[3]);
}
SIMD_INLINE B64 broadcast_byte(int x) {
  return quarters<B64>([=](int) { return vdupq_n_u8(static_cast<uint8_t>(x)); });
}
SIMD_INLINE B64 as_bytes(I32 a) { return quarters<B64>([&](int i) { return vreinterpretq_u8_s32(a.q[i]); }); }
SIMD_INLINE I32 as_i32(B64 a) { return quarters<I32>([&](int i) { return vreinterpretq_s32_u8(a.q[i]); }); }
SIMD_INLINE B64 spread_dwords4(const int32_t* p) {
  return quarters<B64>([=](int i) { return vreinterpretq_u8_s32(vld1q_dup_s32(p + i)); });
}
SIMD_INLINE B64 spread_dwords2(const int32_t* p) {
  return quarters<B64>([=](int i) { return vreinterpretq_u8_s32(vld1q_dup_s32(p + i / 2)); });
}
SIMD_INLINE uint16x8_t pair_low(uint8x16_t a, uint8x16_t b) { return vreinterpretq_u16_u8(vzip1q_u8(a, b)); }
SIMD_INLINE uint16x8_t pair_high(uint8x16_t a, uint8x16_t b) { return vreinterpretq_u16_u8(vzip2q_u8(a, b)); }
SIMD_INLINE void interleave4(B64 a, B64 b, B64 c, B64 d, B64* out) {
  for (int i = 0; i < 4; ++i) {
    const uint16x8_t ab_low = pair_low(a.q[i], b.q[i]), ab_high = pair_high(a.q[i], b.q[i]);
    const uint16x8_t cd_low = pair_low(c.q[i], d.q[i]), cd_high = pair_high(c.q[i], d.q[i]);
    out[0].q[i] = vreinterpretq_u8_u16(vzip1q_u16(ab_low, cd_low));
    out[1].q[i] = vreinterpretq_u8_u16(vzip2q_u16(ab_low, cd_low));
    out[2].q[i] = vreinterpretq_u8_u16(vzip1q_u16(ab_high, cd_high));
    out[3].q[i] = vreinterpretq_u8_u16(vzip2q_u16(ab_high, cd_high));
  }
}
SIMD_INLINE B64 mix(B64 a, B64 b) { return quarters<B64>([&](int i) { return veorq_u8(a.q[i], b.q[i]); }); }
SIMD_INLINE B64 low_nibbles(B64 a) { return quarters<B64>([&](int i) { return vandq_u8(a.q[i], vdupq_n_u8(15)); }); }
SIMD_INLINE B64 high_nibbles(B64 a) { return quarters<B64>([&](int i) { return vshrq_n_u8(a.q[i], 4); }); }
SIMD_INLINE B64 bits_of(B64 a, int shift, int mask) {
  const int8x16_t by = vdupq_n_s8(static_cast<int8_t>(-shift));
  const uint8x16_t kept = vdupq_n_u8(static_cast<uint8_t>(mask));
  return quarters<B64>([&](int i) { return vandq_u8(vshlq_u8(a.q[i], by), kept); });
}
SIMD_INLINE B64 shift_left(B64 a, int n) {
  const int8x16_t by = vdupq_n_s8(static_cast<int8_t>(n));
  return quarters<B64>([&](int i) { return vshlq_u8(a.q[i], by); });
}
SIMD_INLINE B64 look_up(const uint8_t* table, B64 places) {
  const uint8x16_t bytes = vld1q_u8(table);
  return quarters<B64>([&](int i) { return vqtbl1q_u8(bytes, places.q[i]); });
}
SIMD_INLINE B64 bits_to_bytes(B64 dwords, int first) {
  const int32x4_t by = vdupq_n_s32(-first);
  return quarters<B64>([&](int i) {
    const uint32x4_t four = vandq_u32(vshlq_u32(vreinterpretq_u32_u8(dwords.q[i]), by), vdupq_n_u32(15));
    return vreinterpretq_u8_u32(vandq_u32(vmulq_u32(four, vdupq_n_u32(0x00204081)), vdupq_n_u32(0x01010101)));
  });
}

// Both sides are signed, so a nibble is itself, and q8_0 tiles lose their 128 by the sign bit alone.
constexpr int32_t kBiasQ8 = 0;
SIMD_INLINE int32x4_t dot(int32x4_t sum, uint8x16_t w, uint8x16_t a) {
  return vdotq_s32(sum, vreinterpretq_s8_u8(w), vreinterpretq_s8_u8(a));
}
SIMD_INLINE I32 dot_signed(I32 sum, B64 w, B64 a) {
  return {{dot(sum.q[0], w.q[0], a.q[0]), dot(sum.q[1], w.q[1], a.q[1]), dot(sum.q[2], w.q[2], a.q[2]),
           dot(sum.q[3], w.q[3], a.q[3])}};
}
SIMD_INLINE I32 dot_levels(I32 sum, B64 w, B64 a) { return dot_signed(sum, w, a); }
SIMD_INLINE I32 dot_nibbles(I32 sum, B64 w, B64 a) { return dot_signed(sum, w, a); }
SIMD_INLINE I32 dot_biased(I32 sum, B64 w, B64 a) {
  return dot_signed(sum, quarters<B64>([&](int i) { return veorq_u8(w.q[i], vdupq_n_u8(128)); }), a);
}

SIMD_INLINE F32 spread4(float32x4_t x) {
  return {{vdupq_laneq_f32(x, 0), vdupq_laneq_f32(x, 1), vdupq_laneq_f32(x, 2), vdupq_laneq_f32(x, 3)}};
}
SIMD_INLINE F32 spread2(float32x4_t x) {
  const float32x4_t first = vdupq_laneq_f32(x, 0), second = vdupq_laneq_f32(x, 1);
  return {{first, first, second, second}};
}
SIMD_INLINE float32x4_t load4(const float* p) { return vld1q_f32(p); }
SIMD_INLINE float32x4_t load4(const uint16_t* f16) { return widen(vld1_u16(f16)); }
SIMD_INLINE float32x4_t load2(const float* p) { return vcombine_f32(vld1_f32(p), vdup_n_f32(0.0f)); }
SIMD_INLINE float32x4_t load2(const uint16_t* f16) {
  uint32_t x;
  std::memcpy(&x, f16, 4);
  return widen(vcreate_u16(x));
}
SIMD_INLINE float32x4_t mul4(float32x4_t a, float32x4_t b) { return vmulq_f32(a, b); }
SIMD_INLINE float32x4_t scale4(float32x4_t a, float b) { return vmulq_n_f32(a, b); }

SIMD_INLINE void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }
SIMD_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace
}  // namespace smallthinker

#include "isa/simd_held.h"
