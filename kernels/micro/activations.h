// Activations to int8, one scale per block of 32, in the order in which the products read them (isa.h: ActivationRow).
#pragma once

namespace smallthinker {
namespace {

constexpr float kSmallestActivation = 1e-30f;  // 127 / amax must stay finite

// Writes the block's two halves and returns its scale.
SIMD_INLINE float quantize_block(const float* x, int8_t* first, int8_t* second) {
  const F32 a = load(x), b = load(x + 16);
  if (!all_finite(a) || !all_finite(b)) {
    std::memset(first, 0, 16);
    std::memset(second, 0, 16);
    return std::numeric_limits<float>::quiet_NaN();
  }
  const float amax = max_lane(max(abs(a), abs(b)));
  const bool is_zero = amax < kSmallestActivation;
  const F32 inverse = broadcast(is_zero ? 0.0f : 127.0f / amax);
  store_int8(first, mul(a, inverse));
  store_int8(second, mul(b, inverse));
  return is_zero ? 0.0f : amax / 127.0f;
}

SIMD_INLINE int32_t sum_bytes(const int8_t* p, int n) {
  int32_t sum = 0;
  for (int i = 0; i < n; ++i) sum += p[i];
  return sum;
}

void quantize_activations(Quant quant, int64_t cols, const ActivationRow& row) {
  const int per_strip = quant == Quant::q4_0 ? 4 : 2;
  const int64_t blocks = cols / kBlock;
  const int64_t strips = (blocks + per_strip - 1) / per_strip;
  std::memset(row.start, 0, static_cast<size_t>(strips * kLanes) * sizeof(int32_t));
  for (int64_t block = 0; block < strips * per_strip; ++block) {
    const int64_t strip = block / per_strip, i = block % per_strip;
    int8_t* first = quant == Quant::q4_0 ? row.q + strip * 128 + i * 16 : row.q + block * kBlock;
    int8_t* second = quant == Quant::q4_0 ? first + 64 : first + 16;
    if (block < blocks) {
      row.scale[block] = quantize_block(row.x + block * kBlock, first, second);
      const int32_t bias = quant == Quant::q4_0 ? 8 : kBiasQ8;
      row.start[strip * kLanes + i * (kLanes / per_strip)] = -bias * (sum_bytes(first, 16) + sum_bytes(second, 16));
    } else {
      row.scale[block] = 0.0f;
      std::memset(first, 0, 16);
      std::memset(second, 0, 16);
    }
  }
}

}  // namespace
}  // namespace smallthinker
