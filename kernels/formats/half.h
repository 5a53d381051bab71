// Floats of 16 bits without hardware help: exact, round to nearest even. IEEE half precision (f16) is bit-equal to the
// F16C instructions; bf16 is the upper half of an f32.
#pragma once

#include <cstdint>
#include <cstring>

namespace smallthinker {

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // inf, NaN (made quiet, payload kept)
    const uint32_t quiet = magnitude > 0x7c00u ? 0x00400000u : 0u;
    return bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13) | quiet);
  }
  if (magnitude < 0x0400u) {  // subnormal: magnitude * 2^-24 is exact in f32
    return bit_cast<float>(sign | bit_cast<uint32_t>(static_cast<float>(magnitude) * 5.9604644775390625e-8f));
  }
  return bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
}

inline uint16_t f32_to_f16(float f) {
  const uint32_t bits = bit_cast<uint32_t>(f);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 puts the last half-precision bit at the last bit of the sum, so the FPU rounds for us.
    half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

struct Bf16 {  // not a bare uint16_t, which is an f16
  uint16_t bits;
};

inline float bf16_to_f32(Bf16 b) { return bit_cast<float>(static_cast<uint32_t>(b.bits) << 16); }

inline Bf16 f32_to_bf16(float f) {
  const uint32_t bits = bit_cast<uint32_t>(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};  // a NaN stays one
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

}  // namespace smallthinker
