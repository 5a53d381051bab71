// One block of keys and values against queries that share its head: scores, exponentials, weighted sum of values.
#pragma once

namespace smallthinker {
namespace {

// exp(x) for x <= 0 or NaN, within 2 ulp: 2^n * e^r with n rounded and |r| <= ln 2 / 2. Below e^-87.3, the smallest
// normal number, the result is 0. Our own because libm's differs between machines and between vectors and tails.
SIMD_INLINE F32 exp_of_nonpositive(F32 x) {
  const F32 bound = broadcast(-87.3f), round = broadcast(12582912.0f);  // 1.5 * 2^23
  const F32 clamped = max(bound, x);  // in this order a NaN stays
  const F32 t = fma(clamped, broadcast(1.44269504f), round);
  const F32 n = sub(t, round);
  F32 r = fma(n, broadcast(-0.693359375f), clamped);  // ln 2 in two parts; the product with the first is exact
  r = fma(n, broadcast(2.12194440e-4f), r);
  F32 e = broadcast(1.0f / 720);
  e = fma(e, r, broadcast(1.0f / 120));
  e = fma(e, r, broadcast(1.0f / 24));
  e = fma(e, r, broadcast(1.0f / 6));
  e = fma(e, r, broadcast(0.5f));
  e = fma(e, r, broadcast(1.0f));
  e = fma(e, r, broadcast(1.0f));
  return zero_where_below(mul(e, pow2_of_rounded(t)), x, bound);
}

void widen_f16(const uint16_t* src, int64_t n, float* dst) {
  int64_t i = 0;
  for (; n - i >= kLanes; i += kLanes) store(dst + i, load(src + i));
  if (i < n) {
    uint16_t lanes[kLanes] = {};
    std::memcpy(lanes, src + i, static_cast<size_t>(n - i) * sizeof(uint16_t));
    store(dst + i, load(lanes));
  }
}

// Scores of 16 keys: lanes along the dimension, one vector of sums per key, then all of them added up at once.
SIMD_INLINE F32 score_keys(const float* q, const float* k, int64_t dim) {
  F32 scores[kLanes];
  for (int64_t first = 0; first < kLanes; first += kAccumulators) {
    F32 sums[kAccumulators];
    for (F32& sum : sums) sum = zero();
    for (int64_t d = 0; d < dim; d += kLanes) {
      const F32 query = load(q + d);
      for (int i = 0; i < kAccumulators; ++i) sums[i] = fma(query, load(k + (first + i) * dim + d), sums[i]);
    }
    for (int i = 0; i < kAccumulators; ++i) scores[first + i] = sums[i];
  }
  return sum_lanes16(scores);
}

template <int Vectors>
SIMD_INLINE void add_values(const float* p, const float* v, int64_t begin, int64_t end, int64_t dim, F32 correction,
                            float* acc) {
  F32 sums[Vectors];
  for (int i = 0; i < Vectors; ++i) sums[i] = mul(load(acc + i * kLanes), correction);
  for (int64_t key = begin; key < end; ++key) {
    const F32 weight = broadcast(p[key]);
    for (int i = 0; i < Vectors; ++i) sums[i] = fma(weight, load(v + key * dim + i * kLanes), sums[i]);
  }
  for (int i = 0; i < Vectors; ++i) store(acc + i * kLanes, sums[i]);
}

// All queries meet the keys before any meets the values, so that each half of the block stays in the first-level cache.
void attend(const AttentionBlock& block) {
  const int64_t dim = block.dim_padded;
  const float kMinusInf = -std::numeric_limits<float>::infinity();
  for (int64_t query = 0; query < block.queries; ++query) {
    const int64_t begin = block.begin[query], end = block.end[query];
    float* p = block.p + query * kKeyBlock;
    for (int64_t key = begin / kLanes * kLanes; key < end; key += kLanes) {
      store(p + key, score_keys(block.q + query * dim, block.k + key * dim, dim));
    }
    for (int64_t key = 0; key < begin; ++key) p[key] = kMinusInf;
    for (int64_t key = end; key < kKeyBlock; ++key) p[key] = kMinusInf;
  }
  for (int64_t query = 0; query < block.queries; ++query) {
    if (block.begin[query] >= block.end[query]) continue;
    float* p = block.p + query * kKeyBlock;
    F32 largest = load(p);
    for (int64_t key = kLanes; key < kKeyBlock; key += kLanes) largest = max(largest, load(p + key));
    const float old_max = block.max[query], block_max = max_lane(largest);
    const float new_max = block_max > old_max ? block_max : old_max;
    F32 sum = zero();
    for (int64_t key = 0; key < kKeyBlock; key += kLanes) {
      const F32 e = exp_of_nonpositive(sub(load(p + key), broadcast(new_max)));
      store(p + key, e);
      sum = add(sum, e);
    }
    const F32 correction = exp_of_nonpositive(broadcast(old_max - new_max));
    float lanes[kLanes];
    store(lanes, correction);
    block.max[query] = new_max;
    block.sum[query] = block.sum[query] * lanes[0] + sum_lanes(sum);

    float* acc = block.acc + query * dim;
    int64_t d = 0;
    for (; dim - d >= 8 * kLanes; d += 8 * kLanes) {
      add_values<8>(p, block.v + d, block.begin[query], block.end[query], dim, correction, acc + d);
    }
    for (; d < dim; d += kLanes) {
      add_values<1>(p, block.v + d, block.begin[query], block.end[query], dim, correction, acc + d);
    }
  }
}

}  // namespace
}  // namespace smallthinker
