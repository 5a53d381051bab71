// The weighted sum of one block's values. Values lie in rows, so 16 dimensions are the 16 lanes of a vector. As with
// the scores, NQ queries times NV vectors of sums stay in registers, and every sum runs over the keys in order.
#pragma once

namespace smallthinker {
namespace {

// Where a block's values come from. `get` gives NV vectors of a key's row from dimension d on, as f32.
struct WideValues {
  static constexpr int64_t kVectorBytes = 0;  // in the cache, its share of the scales included
  const float* rows;
  int64_t stride;
};
struct F16Values {
  static constexpr int64_t kVectorBytes = 2 * kLanes;
  const uint8_t* const* groups;
  int64_t dim;
};
struct Q8Values {
  static constexpr int64_t kVectorBytes = kLanes + 1;
  const uint8_t* const* groups;
  int64_t dim;
  const float* scales;  // [dim / 32, 64]
};

template <int NV>
SIMD_INLINE void get(const WideValues& values, int64_t key, int64_t d, F32* to) {
  for (int v = 0; v < NV; ++v) to[v] = load(values.rows + key * values.stride + d + v * kLanes);
}
template <int NV>
SIMD_INLINE void get(const F16Values& values, int64_t key, int64_t d, F32* to) {
  const uint16_t* row = reinterpret_cast<const uint16_t*>(values.groups[key / kLanes]) + key % kLanes * values.dim + d;
  for (int v = 0; v < NV; ++v) {
    const int64_t left = values.dim - d - v * kLanes;
    if (left >= kLanes) {
      to[v] = load(row + v * kLanes);
    } else {
      uint16_t lanes[kLanes] = {};
      std::memcpy(lanes, row + v * kLanes, static_cast<size_t>(left) * sizeof(uint16_t));
      to[v] = load(lanes);
    }
  }
}
// An int8 times an f16 is exact in f32, so it makes no difference when they are multiplied.
template <int NV>
SIMD_INLINE void get(const Q8Values& values, int64_t key, int64_t d, F32* to) {
  const int8_t* row =
      reinterpret_cast<const int8_t*>(values.groups[key / kLanes]) + values.dim + key % kLanes * values.dim + d;
  for (int v = 0; v < NV; ++v) {
    to[v] = mul(load(row + v * kLanes), broadcast(values.scales[(d + v * kLanes) / kBlock * kKeyBlock + key]));
  }
}

// `ahead` is null or what will be read after this block: as many bytes.
template <int NQ, int NV, class Values>
SIMD_INLINE void add_vectors(const float* p, const Values& values, int64_t begin, int64_t end, int64_t d,
                             const uint8_t* ahead, float* acc, int64_t stride) {
  F32 sums[NQ * NV];
  for (int i = 0; i < NQ; ++i) {
    for (int v = 0; v < NV; ++v) sums[i * NV + v] = load(acc + i * stride + v * kLanes);
  }
  for (int64_t key = begin; key < end; ++key) {
    if (ahead != nullptr) prefetch_part<NV * Values::kVectorBytes>(ahead, d / (NV * kLanes) * kKeyBlock + key);
    F32 value[NV];
    get<NV>(values, key, d, value);
    for (int i = 0; i < NQ; ++i) {
      const F32 weight = broadcast(p[i * kKeyBlock + key]);
      for (int v = 0; v < NV; ++v) sums[i * NV + v] = fma(weight, value[v], sums[i * NV + v]);
    }
  }
  for (int i = 0; i < NQ; ++i) {
    for (int v = 0; v < NV; ++v) store(acc + i * stride + v * kLanes, sums[i * NV + v]);
  }
}

template <int NQ, class Values>
void add_keys(const float* p, const Values& values, int64_t begin, int64_t end, int64_t stride,
              const uint8_t* ahead, float* acc) {
  if (begin >= end) return;
  int64_t d = 0;
  for (; stride - d >= kBlockVectors * kLanes; d += kBlockVectors * kLanes) {
    add_vectors<NQ, kBlockVectors>(p, values, begin, end, d, ahead, acc + d, stride);
  }
  for (; d < stride; d += kLanes) add_vectors<NQ, 1>(p, values, begin, end, d, nullptr, acc + d, stride);
}

// Queries [first, first + n), n <= NQ. Keys that all of them see are taken together, those before and after query by
// query: a key that a query doesn't see may hold anything, and 0 times a NaN is no zero.
template <int NQ, class Values>
void add_values(const AttentionScratch& s, const Values& values, int64_t first, int64_t n, int64_t stride,
                const uint8_t* ahead, float* acc) {
  if constexpr (NQ > 1) {
    if (n < NQ) return add_values<NQ - 1>(s, values, first, n, stride, ahead, acc);
  }
  int64_t begin = 0, end = kKeyBlock;
  for (int64_t i = first; i < first + NQ; ++i) {
    begin = begin > s.begin[i] ? begin : s.begin[i];
    end = end < s.end[i] ? end : s.end[i];
  }
  if (begin >= end) begin = end = kKeyBlock;  // nothing in common
  for (int64_t i = first; i < first + NQ; ++i) {
    add_keys<1>(s.p + i * kKeyBlock, values, s.begin[i], s.end[i] < begin ? s.end[i] : begin, stride, nullptr,
                acc + i * stride);
  }
  add_keys<NQ>(s.p + first * kKeyBlock, values, begin, end, stride, ahead, acc + first * stride);
  for (int64_t i = first; i < first + NQ; ++i) {
    add_keys<1>(s.p + i * kKeyBlock, values, s.begin[i] > end ? s.begin[i] : end, s.end[i], stride, nullptr,
                acc + i * stride);
  }
}

// The keys of the next block are fetched meanwhile.
template <class Values>
void add_block_values(const AttentionUnit& unit, const AttentionScratch& s, const Values& values,
                      const uint8_t* ahead, float* acc) {
  const int64_t stride = round_up(unit.cache.head_dim, kLanes), queries = unit.tokens * unit.heads;
  for (int64_t i = 0, n; i < queries; i += n) {
    n = share_of(queries - i);
    add_values<kBlockQueries>(s, values, i, n, stride, i == 0 ? ahead : nullptr, acc);
  }
}

}  // namespace
}  // namespace smallthinker
