// 16-lane vectors as arrays, in loops that compilers turn into whatever the target has. The same names as in
// simd_avx512.h and simd_avx2.h; micro/*.h is written over them. Included once, by isa_portable.cpp.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "formats/half.h"

namespace smallthinker {
namespace {

#define SIMD_INLINE static inline

struct F32 { float v[16]; };
struct I32 { int32_t v[16]; };
struct B64 { uint8_t v[64]; };
struct F32x4 { float v[4]; };

constexpr int kTileTokens = 2;
constexpr int kTileGroups = 1;
constexpr int kElementTokens = 2;
constexpr int kAccumulators = 4;
constexpr int kUpTokens = 1;
constexpr int kDownTokens = 1;
constexpr int kDownVectors = 4;

template <class Lane>
SIMD_INLINE F32 lanes(Lane lane) {
  F32 r;
  for (int i = 0; i < 16; ++i) r.v[i] = lane(i);
  return r;
}

SIMD_INLINE F32 broadcast(float x) { return lanes([=](int) { return x; }); }
SIMD_INLINE F32 zero() { return broadcast(0.0f); }
SIMD_INLINE F32 load(const float* p) { return lanes([=](int i) { return p[i]; }); }
SIMD_INLINE F32 load(const uint16_t* f16) { return lanes([=](int i) { return f16_to_f32(f16[i]); }); }
SIMD_INLINE F32 load(const Bf16* bf16) { return lanes([=](int i) { return bf16_to_f32(bf16[i]); }); }
SIMD_INLINE F32 load(const int8_t* p) { return lanes([=](int i) { return static_cast<float>(p[i]); }); }
SIMD_INLINE void store(float* p, const F32& v) { std::memcpy(p, v.v, sizeof(v.v)); }
SIMD_INLINE void store(uint16_t* f16, const F32& v) {
  for (int i = 0; i < 16; ++i) f16[i] = f32_to_f16(v.v[i]);
}

SIMD_INLINE F32 add(const F32& a, const F32& b) { return lanes([&](int i) { return a.v[i] + b.v[i]; }); }
SIMD_INLINE F32 sub(const F32& a, const F32& b) { return lanes([&](int i) { return a.v[i] - b.v[i]; }); }
SIMD_INLINE F32 mul(const F32& a, const F32& b) { return lanes([&](int i) { return a.v[i] * b.v[i]; }); }
SIMD_INLINE F32 div(const F32& a, const F32& b) { return lanes([&](int i) { return a.v[i] / b.v[i]; }); }
// Two roundings: std::fma without the instruction is a function call for every lane.
SIMD_INLINE F32 fma(const F32& a, const F32& b, const F32& c) {
  return lanes([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
SIMD_INLINE F32 max(const F32& a, const F32& b) {
  return lanes([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });  // b if either is NaN
}
SIMD_INLINE F32 abs(const F32& a) { return lanes([&](int i) { return std::fabs(a.v[i]); }); }
SIMD_INLINE F32 max_magnitude(const F32& a, const F32& b) {
  return lanes([&](int i) {
    const float x = std::fabs(a.v[i]), y = std::fabs(b.v[i]);
    return x > y || x != x ? x : y;
  });
}
SIMD_INLINE F32 zero_where_below(const F32& v, const F32& x, const F32& bound) {
  return lanes([&](int i) { return x.v[i] < bound.v[i] ? 0.0f : v.v[i]; });
}
SIMD_INLINE uint64_t live_lanes(const F32& a) {
  uint64_t bits = 0;
  for (int i = 0; i < 16; ++i) bits |= static_cast<uint64_t>(!(a.v[i] <= 0.0f)) << i;
  return bits;
}
SIMD_INLINE bool all_finite(const F32& a) {
  bool finite = true;
  for (float x : a.v) finite &= std::fabs(x) <= std::numeric_limits<float>::max();
  return finite;
}
SIMD_INLINE F32 pow2_of_rounded(const F32& t) {
  return lanes([&](int i) { return bit_cast<float>((bit_cast<uint32_t>(t.v[i]) << 23) + 0x3f800000u); });
}

SIMD_INLINE float sum_lanes(F32 a) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a.v[i] += a.v[i + width];
  }
  return a.v[0];
}
SIMD_INLINE float max_lane(F32 a) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a.v[i] = a.v[i] > a.v[i + width] ? a.v[i] : a.v[i + width];
  }
  return a.v[0];
}
SIMD_INLINE F32 sum_lanes16(const F32* a) { return lanes([=](int i) { return sum_lanes(a[i]); }); }

SIMD_INLINE void store_int8(int8_t* p, const F32& v) {
  // Adding 1.5 * 2^23 rounds to nearest even and leaves the integer in the low bits.
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>((v.v[i] + 12582912.0f) - 12582912.0f);
}

SIMD_INLINE I32 pack4_int8(const F32& a, const F32& b, const F32& c, const F32& d) {
  int8_t rows[4][16];
  store_int8(rows[0], a);
  store_int8(rows[1], b);
  store_int8(rows[2], c);
  store_int8(rows[3], d);
  I32 r;
  for (int i = 0; i < 16; ++i) {
    const int8_t dword[4] = {rows[0][i], rows[1][i], rows[2][i], rows[3][i]};
    std::memcpy(&r.v[i], dword, 4);
  }
  return r;
}

SIMD_INLINE I32 broadcast(int32_t x) {
  I32 r;
  for (int32_t& lane : r.v) lane = x;
  return r;
}
SIMD_INLINE I32 load(const int32_t* p) {
  I32 r;
  std::memcpy(r.v, p, sizeof(r.v));
  return r;
}
SIMD_INLINE void store(int32_t* p, const I32& a) { std::memcpy(p, a.v, sizeof(a.v)); }
SIMD_INLINE I32 negate(I32 a) {
  for (int32_t& x : a.v) x = -x;
  return a;
}
SIMD_INLINE F32 to_f32(const I32& a) { return lanes([&](int i) { return static_cast<float>(a.v[i]); }); }

SIMD_INLINE B64 load_bytes(const void* p) {
  B64 r;
  std::memcpy(r.v, p, sizeof(r.v));
  return r;
}
SIMD_INLINE B64 broadcast_dword(const int8_t* p) {
  B64 r;
  for (int i = 0; i < 64; i += 4) std::memcpy(r.v + i, p, 4);
  return r;
}
SIMD_INLINE void store_bytes(void* p, const B64& a) { std::memcpy(p, a.v, sizeof(a.v)); }
SIMD_INLINE B64 broadcast_byte(int x) {
  B64 r;
  for (uint8_t& byte : r.v) byte = static_cast<uint8_t>(x);
  return r;
}
SIMD_INLINE B64 as_bytes(const I32& a) { return bit_cast<B64>(a); }
SIMD_INLINE I32 as_i32(const B64& a) { return bit_cast<I32>(a); }
SIMD_INLINE B64 spread_dwords4(const int32_t* p) {
  I32 r;
  for (int i = 0; i < 16; ++i) r.v[i] = p[i / 4];
  return as_bytes(r);
}
SIMD_INLINE B64 spread_dwords2(const int32_t* p) {
  I32 r;
  for (int i = 0; i < 16; ++i) r.v[i] = p[i / 8];
  return as_bytes(r);
}
SIMD_INLINE void interleave4(const B64& a, const B64& b, const B64& c, const B64& d, B64* out) {
  for (int v = 0; v < 4; ++v) {
    for (int i = 0; i < 16; ++i) {
      const int from = i / 4 * 16 + v * 4 + i % 4;
      const uint8_t dword[4] = {a.v[from], b.v[from], c.v[from], d.v[from]};
      std::memcpy(out[v].v + 4 * i, dword, 4);
    }
  }
}
SIMD_INLINE B64 mix(B64 a, const B64& b) {
  for (int i = 0; i < 64; ++i) a.v[i] ^= b.v[i];
  return a;
}
SIMD_INLINE B64 low_nibbles(B64 a) {
  for (uint8_t& x : a.v) x &= 15;
  return a;
}
SIMD_INLINE B64 high_nibbles(B64 a) {
  for (uint8_t& x : a.v) x >>= 4;
  return a;
}
SIMD_INLINE B64 bits_of(B64 a, int shift, int mask) {
  for (uint8_t& x : a.v) x = static_cast<uint8_t>(x >> shift & mask);
  return a;
}
SIMD_INLINE B64 shift_left(B64 a, int n) {
  for (uint8_t& x : a.v) x = static_cast<uint8_t>(x << n);
  return a;
}
SIMD_INLINE B64 look_up(const uint8_t* table, B64 places) {
  for (uint8_t& x : places.v) x = table[x];
  return places;
}
SIMD_INLINE B64 bits_to_bytes(const B64& dwords, int first) {
  I32 bits = as_i32(dwords);
  for (int32_t& x : bits.v) x = static_cast<int32_t>((static_cast<uint32_t>(x) >> first & 15) * 0x00204081u & 0x01010101u);
  return as_bytes(bits);
}

constexpr int32_t kBiasQ8 = 0;
SIMD_INLINE I32 dot_signed(I32 sum, const B64& w, const B64& a) {
  for (int i = 0; i < 16; ++i) {
    for (int b = 4 * i; b < 4 * i + 4; ++b) sum.v[i] += static_cast<int8_t>(w.v[b]) * static_cast<int8_t>(a.v[b]);
  }
  return sum;
}
SIMD_INLINE I32 dot_nibbles(const I32& sum, const B64& w, const B64& a) { return dot_signed(sum, w, a); }
SIMD_INLINE I32 dot_levels(const I32& sum, const B64& w, const B64& a) { return dot_signed(sum, w, a); }
SIMD_INLINE I32 dot_biased(const I32& sum, B64 w, const B64& a) {
  for (uint8_t& x : w.v) x ^= 128;
  return dot_signed(sum, w, a);
}

SIMD_INLINE F32 spread4(const F32x4& x) { return lanes([&](int i) { return x.v[i / 4]; }); }
SIMD_INLINE F32 spread2(const F32x4& x) { return lanes([&](int i) { return x.v[i / 8]; }); }
SIMD_INLINE F32x4 load4(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
SIMD_INLINE F32x4 load4(const uint16_t* p) {
  return {{f16_to_f32(p[0]), f16_to_f32(p[1]), f16_to_f32(p[2]), f16_to_f32(p[3])}};
}
SIMD_INLINE F32x4 load2(const float* p) { return {{p[0], p[1], 0.0f, 0.0f}}; }
SIMD_INLINE F32x4 load2(const uint16_t* p) { return {{f16_to_f32(p[0]), f16_to_f32(p[1]), 0.0f, 0.0f}}; }
SIMD_INLINE F32x4 mul4(F32x4 a, const F32x4& b) {
  for (int i = 0; i < 4; ++i) a.v[i] *= b.v[i];
  return a;
}
SIMD_INLINE F32x4 scale4(F32x4 a, float b) {
  for (float& x : a.v) x *= b;
  return a;
}

SIMD_INLINE void prefetch_l2(const void*) {}
SIMD_INLINE void prefetch(const void*) {}

}  // namespace
}  // namespace smallthinker

#include "isa/simd_held.h"
