// The weights of tokens that are drawn from (ops/sample.cpp).
#pragma once

namespace smallthinker {
namespace {

// (2^f - 1) / f for |f| <= 1/2, so that 2^0 is 1 exactly; within 2^-38.
constexpr double kExp2[] = {0x1.62e42fef9cc61p-1,  0x1.ebfbdff823cebp-3,  0x1.c6b08da70ee14p-5,  0x1.3b2ab7181c206p-7,
                            0x1.5d8775957d843p-10, 0x1.4308ac82fd3c0p-13, 0x1.00c0e6aac1400p-16, 0x1.63d13acb40000p-20};

template <class To, class From>
SIMD_INLINE To bits_as(From from) {
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// Only sums, products and bits of doubles, each rounded once: no exp() of a library, which differs between machines. On
// the grid of 2^-32 a larger logit never weighs less, since the polynomial's steps are larger than its errors there.
uint64_t exp_weights(const float* logits, int64_t n, double largest, double scale, uint64_t* weights) {
  constexpr double kGrid = 0x1.8p20, kWhole = 0x1.8p52, kInteger = 0x1p52;  // added, they round to 2^-32, 1 and 1
  constexpr uint64_t kExponent = static_cast<uint64_t>(1023 + kWeightBits) << 52;
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    double y = (static_cast<double>(logits[i]) - largest) * scale;
    y = y >= -64.0 ? y : -64.0;  // NaN, too
    y = (y + kGrid) - kGrid;
    const double shifted = y + kWhole;
    const double f = y - (shifted - kWhole);
    double p = kExp2[7];
    for (int k = 6; k >= 0; --k) p = p * f + kExp2[k];
    p = p * f + 1.0;
    const double power = bits_as<double>((bits_as<uint64_t>(shifted) << 52) + kExponent);
    const uint64_t weight = bits_as<uint64_t>(p * power + kInteger) - bits_as<uint64_t>(kInteger);
    weights[i] = weight;
    sum += weight;
  }
  return sum;
}

}  // namespace
}  // namespace smallthinker
