// The activations of feed-forward networks that keep every neuron. Ours because libm's differ between machines.
//
// All three smooth ones are relu(x) - |x| * tail(|x|), where the tail falls from 1/2 to 0: nothing cancels, so that also
// small results of large negative x are right to a few roundings. What is not finite stays not finite.
#pragma once

namespace smallthinker {
namespace {

SIMD_INLINE F32 minus_tail(F32 x, F32 tail) { return sub(max(zero(), x), mul(abs(x), tail)); }

// -|x|, at least -14, where the tails of gelu are 0: squares stay finite. In this order a NaN stays.
SIMD_INLINE F32 negative_within_14(F32 x) { return max(broadcast(-14.0f), sub(zero(), abs(x))); }

// 1 / (1 + e^y), y >= 0, of e = e^-y.
SIMD_INLINE F32 logistic_tail(F32 e) { return div(e, add(broadcast(1.0f), e)); }

SIMD_INLINE F32 silu(F32 x) { return minus_tail(x, logistic_tail(exp_of_nonpositive(sub(zero(), abs(x))))); }

// (1 - erf(a / sqrt 2)) / 2 = e^(-a^2 / 2) * t * P(t), t = 1 / (1 + 0.26 a); P is fitted, within 3e-8 of it for a in
// [0, 14]. The exponent's rounding would show in the result, so what the square lost is multiplied in.
SIMD_INLINE F32 gelu(F32 x) {
  constexpr float kP[] = {0.103759058f, 0.103016734f, 0.103030391f, 0.0510271005f, 0.160949349f, -0.150951311f,
                          0.251493543f, -0.15283002f, 0.0305051524f};
  const F32 a = negative_within_14(x), minus_half = broadcast(-0.5f);
  const F32 square = mul(a, a), lost = fma(a, a, sub(zero(), square));
  const F32 t = div(broadcast(1.0f), fma(a, broadcast(-0.26f), broadcast(1.0f)));
  F32 p = broadcast(kP[8]);
  for (int i = 7; i >= 0; --i) p = fma(p, t, broadcast(kP[i]));
  const F32 e = exp_of_nonpositive(mul(minus_half, square));
  return minus_tail(x, mul(fma(mul(minus_half, lost), e, e), mul(p, t)));
}

// x (1 + tanh u) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3), which is x / (1 + e^-2u).
SIMD_INLINE F32 gelu_tanh(F32 x) {
  const F32 a = negative_within_14(x);
  const F32 slope = fma(mul(a, a), broadcast(0.0713548163f), broadcast(1.59576912f));
  return minus_tail(x, logistic_tail(exp_of_nonpositive(mul(slope, a))));
}

template <Activation A>
SIMD_INLINE F32 activated(F32 x) {
  if constexpr (A == Activation::silu) return silu(x);
  else if constexpr (A == Activation::gelu) return gelu(x);
  else if constexpr (A == Activation::gelu_tanh) return gelu_tanh(x);
  const F32 positive = max(zero(), x);
  return A == Activation::relu2 ? mul(positive, positive) : positive;
}

template <Activation A>
void activate_as(const float* gate, int64_t n, float* up) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32 u = load(up + i);
    store(up + i, gate == nullptr ? activated<A>(u) : mul(activated<A>(load(gate + i)), u));
  }
}

// The smaller of both; x if it is NaN.
SIMD_INLINE F32 at_most(F32 limit, F32 x) { return sub(zero(), max(sub(zero(), limit), sub(zero(), x))); }

// g * sigmoid(alpha g) is silu(alpha g) / alpha.
void clamped_swiglu(const Clamp& clamp, const float* gate, int64_t n, float* up) {
  const F32 limit = broadcast(clamp.limit), lowest = broadcast(-clamp.limit), alpha = broadcast(clamp.alpha);
  const F32 one = broadcast(1.0f), share = broadcast(1.0f / clamp.alpha);
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32 g = mul(share, silu(mul(alpha, at_most(limit, load(gate + i)))));
    store(up + i, mul(add(max(lowest, at_most(limit, load(up + i))), one), g));
  }
}

void activate(Activation activation, const Clamp& clamp, const float* gate, int64_t n, float* up) {
  switch (activation) {
    case Activation::relu: return activate_as<Activation::relu>(gate, n, up);
    case Activation::silu: return activate_as<Activation::silu>(gate, n, up);
    case Activation::gelu: return activate_as<Activation::gelu>(gate, n, up);
    case Activation::gelu_tanh: return activate_as<Activation::gelu_tanh>(gate, n, up);
    case Activation::relu2: return activate_as<Activation::relu2>(gate, n, up);
    case Activation::clamped_swiglu: return clamped_swiglu(clamp, gate, n, up);
  }
}

}  // namespace
}  // namespace smallthinker
