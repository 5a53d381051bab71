// Online softmax: a split of keys, block by block, against queries that share its head; and the sum of two splits.
#pragma once

namespace smallthinker {
namespace {

// From here on, widening a block into scratch once costs less than widening it on the way for every kBlockQueries.
constexpr int64_t kWidenQueries = 2 * kBlockQueries + 1;

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

SIMD_INLINE float exp_of_nonpositive(float x) {
  float lanes[kLanes];
  store(lanes, exp_of_nonpositive(broadcast(x)));
  return lanes[0];
}

// cap * tanh(x / cap), tanh u = (1 - e^-2u) / (1 + e^-2u): within 1e-7 of cap, which is all that softmax sees.
SIMD_INLINE F32 softcapped(F32 x, float cap) {
  const F32 one = broadcast(1.0f), e = exp_of_nonpositive(mul(abs(x), broadcast(-2.0f / cap)));
  const F32 magnitude = mul(broadcast(cap), div(sub(one, e), add(one, e)));
  const F32 positive = zero_where_below(magnitude, x, zero());
  return sub(add(positive, positive), magnitude);
}

void softcap(float* x, int64_t n, float cap) {
  int64_t i = 0;
  for (; n - i >= kLanes; i += kLanes) store(x + i, softcapped(load(x + i), cap));
  if (i == n) return;
  float lanes[kLanes] = {};
  std::memcpy(lanes, x + i, static_cast<size_t>(n - i) * sizeof(float));
  store(lanes, softcapped(load(lanes), cap));
  std::memcpy(x + i, lanes, static_cast<size_t>(n - i) * sizeof(float));
}

void prepare_queries(const AttentionUnit& unit, const AttentionScratch& s) {
  const int64_t dim = unit.cache.head_dim, stride = round_up(dim, kLanes), blocks = dim / kBlock;
  for (int64_t i = 0; i < unit.tokens * unit.heads; ++i) {
    const float* from = unit.q + i / unit.heads * unit.token_stride + i % unit.heads * dim;
    float* q = s.q + i * stride;
    for (int64_t d = 0; d < stride; ++d) q[d] = d < dim ? from[d] * unit.scores.scale : 0.0f;
    if (unit.cache.quant != Quant::q8_0) continue;
    for (int64_t block = 0; block < blocks; ++block) {
      int8_t* to = s.queries.q + i * dim + block * kBlock;
      s.queries.scale[i * blocks + block] = quantize_block(q + block * kBlock, to);
      s.queries.start[i * blocks + block] = -kBiasQ8 * sum_bytes(to, kBlock);
    }
  }
}

// The scores of a query become exponentials; its running maximum and its sums are brought up to date.
SIMD_INLINE void soften(const AttentionScratch& s, int64_t query, int64_t stride, const SoftmaxState& state) {
  const float kMinusInf = -std::numeric_limits<float>::infinity();
  float* p = s.p + query * kKeyBlock;
  for (int64_t key = 0; key < s.begin[query]; ++key) p[key] = kMinusInf;
  for (int64_t key = s.end[query]; key < kKeyBlock; ++key) p[key] = kMinusInf;
  F32 largest = load(p);
  for (int64_t key = kLanes; key < kKeyBlock; key += kLanes) largest = max(largest, load(p + key));
  const float old_max = state.max[query], block_max = max_lane(largest);
  const float new_max = block_max > old_max ? block_max : old_max;
  F32 sum = zero();
  for (int64_t key = 0; key < kKeyBlock; key += kLanes) {
    const F32 e = exp_of_nonpositive(sub(load(p + key), broadcast(new_max)));
    store(p + key, e);
    sum = add(sum, e);
  }
  const float block_sum = sum_lanes(sum);
  if (new_max == old_max) {  // the correction is 1
    state.sum[query] += block_sum;
    return;
  }
  const float correction = exp_of_nonpositive(old_max - new_max);
  state.max[query] = new_max;
  state.sum[query] = state.sum[query] * correction + block_sum;
  float* acc = state.acc + query * stride;
  for (int64_t d = 0; d < stride; d += kLanes) store(acc + d, mul(load(acc + d), broadcast(correction)));
}

// Keys and values of one block: groups of 16 that some query sees; the others point to one of those.
struct KeyBlock {
  const uint8_t* keys[kKeyGroups];
  const uint8_t* values[kKeyGroups];
  const uint8_t* next_keys;  // to be fetched ahead, nothing more
  int64_t begin, end;        // keys that some query sees
};

SIMD_INLINE KeyBlock find_block(const AttentionUnit& unit, int64_t base, int64_t seen_begin, int64_t seen_end) {
  KeyBlock block;
  block.begin = seen_begin > base ? seen_begin - base : 0;
  block.end = seen_end - base < kKeyBlock ? seen_end - base : kKeyBlock;
  block.next_keys = unit.cache.keys + unit.cache.group_offset(base + kKeyBlock);
  const int64_t first = block.begin / kLanes, last = (block.end - 1) / kLanes;
  for (int64_t g = 0; g < kKeyGroups; ++g) {
    const int64_t at = unit.cache.group_offset(base + (g < first ? first : g > last ? last : g) * kLanes);
    block.keys[g] = unit.cache.keys + at;
    block.values[g] = unit.cache.values + at;
  }
  return block;
}

void score_f16(const AttentionUnit& unit, const AttentionScratch& s, const KeyBlock& block, bool widen) {
  const int64_t dim = unit.cache.head_dim;
  const uint16_t* keys[kKeyGroups];
  const float* wide[kKeyGroups];
  for (int64_t g = 0; g < kKeyGroups; ++g) {
    keys[g] = reinterpret_cast<const uint16_t*>(block.keys[g]);
    wide[g] = s.wide + g * dim * kLanes;
    if (!widen) continue;
    for (int64_t d = 0; d < dim; ++d) store(s.wide + (g * dim + d) * kLanes, load(keys[g] + d * kLanes));
  }
  if (widen) score_block(unit, s, wide, nullptr);
  else score_block(unit, s, keys, block.values[0]);
}

template <class Values>
void weigh_block(const AttentionUnit& unit, const AttentionScratch& s, const Values& values, const KeyBlock& block,
                 bool widen, float* acc) {
  if (!widen) return add_block_values(unit, s, values, block.next_keys, acc);
  const int64_t stride = round_up(unit.cache.head_dim, kLanes);
  for (int64_t key = block.begin; key < block.end; ++key) {
    for (int64_t d = 0; d < stride; d += kLanes) {
      F32 value;
      get<1>(values, key, d, &value);
      store(s.wide + key * stride + d, value);
    }
  }
  add_block_values(unit, s, WideValues{s.wide, stride}, nullptr, acc);
}

void weigh_q8(const AttentionUnit& unit, const AttentionScratch& s, const KeyBlock& block, bool widen, float* acc) {
  for (int64_t b = 0; b < unit.cache.head_dim / kBlock; ++b) {
    for (int64_t g = 0; g < kKeyGroups; ++g) {
      const uint16_t* scales = reinterpret_cast<const uint16_t*>(block.values[g]) + b * kLanes;
      store(s.scales + b * kKeyBlock + g * kLanes, load(scales));
    }
  }
  weigh_block(unit, s, Q8Values{block.values, unit.cache.head_dim, s.scales}, block, widen, acc);
}

// All queries meet a block's keys before any meets its values, so that each half stays in the first-level cache.
void attend_split(const AttentionUnit& unit, int64_t split_begin, int64_t split_end, const AttentionScratch& s,
                  const SoftmaxState& state) {
  const int64_t dim = unit.cache.head_dim, stride = round_up(dim, kLanes), queries = unit.tokens * unit.heads;
  const bool widen = queries >= kWidenQueries;
  for (int64_t i = 0; i < queries; ++i) {
    state.max[i] = -std::numeric_limits<float>::infinity();
    state.sum[i] = 0.0f;
  }
  std::memset(state.acc, 0, static_cast<size_t>(queries * stride) * sizeof(float));

  const int64_t first = unit.first_visible(unit.position), last = unit.position + unit.tokens;
  const int64_t seen_begin = first > split_begin ? first : split_begin, seen_end = last < split_end ? last : split_end;
  for (int64_t base = seen_begin / kKeyBlock * kKeyBlock; base < seen_end; base += kKeyBlock) {
    const KeyBlock block = find_block(unit, base, seen_begin, seen_end);
    for (int64_t token = 0, i = 0; token < unit.tokens; ++token) {
      const int64_t position = unit.position + token, visible = unit.first_visible(position) - base;
      const int64_t begin = visible < 0 ? 0 : visible > kKeyBlock ? kKeyBlock : visible, end = position + 1 - base;
      for (const int64_t next = i + unit.heads; i < next; ++i) {
        s.begin[i] = static_cast<int32_t>(begin);
        s.end[i] = static_cast<int32_t>(end < begin ? begin : end > kKeyBlock ? kKeyBlock : end);
      }
    }
    const bool is_q8 = unit.cache.quant == Quant::q8_0;
    if (is_q8) score_block(unit, s, block.keys, block.values[0]);
    else score_f16(unit, s, block, widen);
    for (int64_t i = 0; i < queries; ++i) {
      if (s.begin[i] >= s.end[i]) continue;
      if (unit.scores.softcap > 0.0f) softcap(s.p + i * kKeyBlock, kKeyBlock, unit.scores.softcap);
      soften(s, i, stride, state);
    }
    if (is_q8) weigh_q8(unit, s, block, widen, state.acc);
    else weigh_block(unit, s, F16Values{block.values, dim}, block, widen, state.acc);
  }
}

// A query that sees nothing of the split is left alone: its sum would not be changed, but the sign of a zero could be.
void merge_split(int64_t queries, int64_t stride, const SoftmaxState& split, const SoftmaxState& total) {
  for (int64_t i = 0; i < queries; ++i) {
    if (split.sum[i] == 0.0f) continue;
    const float old_max = total.max[i], new_max = split.max[i] > old_max ? split.max[i] : old_max;
    const float a = exp_of_nonpositive(old_max - new_max), b = exp_of_nonpositive(split.max[i] - new_max);
    total.max[i] = new_max;
    total.sum[i] = total.sum[i] * a + split.sum[i] * b;
    for (int64_t d = i * stride; d < (i + 1) * stride; d += kLanes) {
      store(total.acc + d, fma(load(total.acc + d), broadcast(a), mul(load(split.acc + d), broadcast(b))));
    }
  }
}

}  // namespace
}  // namespace smallthinker
