// Scores of one block of keys. Keys lie in tiles, so 16 keys are the 16 lanes of a score vector and nothing is summed
// across lanes. NQ queries times NV vectors of sums stay in registers, so that a load serves several products. A score
// runs over the dimensions in order: the same for one query as for any number of them, and for keys that are widened on
// the way or were widened into scratch.
#pragma once

namespace smallthinker {
namespace {

constexpr int64_t kKeyBlockBytes = tile_block_bytes(Quant::q8_0);

// Sums of 8 * 2 vectors beside their operands fit in 32 registers, 6 * 1 in 16 registers of half the size.
constexpr int kBlockQueries = kAccumulators >= 16 ? 8 : 6;
constexpr int kBlockVectors = kAccumulators >= 16 ? 2 : 1;
constexpr int64_t kKeyGroups = kKeyBlock / kLanes;

template <int NQ, int NV>
SIMD_INLINE void store_scores(const F32* sums, float* p) {
  for (int i = 0; i < NQ; ++i) {
    for (int v = 0; v < NV; ++v) store(p + i * kKeyBlock + v * kLanes, sums[i * NV + v]);
  }
}

// `ahead` is null or what will be read after these NV groups: as many bytes, fetched in order as memory likes it.
template <int64_t Bytes>
SIMD_INLINE void prefetch_part(const uint8_t* ahead, int64_t part) {
  if (Bytes < 64 && part % 2 != 0) return;
  for (int64_t at = 0; at < Bytes; at += 64) prefetch(ahead + part * Bytes + at);
}

// How many of the `left` queries to take at once: shares as equal as can be, or seven would be six and one.
SIMD_INLINE int64_t share_of(int64_t left) {
  const int64_t shares = (left + kBlockQueries - 1) / kBlockQueries;
  return (left + shares - 1) / shares;
}

SIMD_INLINE const uint8_t* skip(const uint8_t* ahead, int64_t bytes) {
  return ahead == nullptr ? nullptr : ahead + bytes;
}

template <int NQ, int NV, class Key>
SIMD_INLINE void score_floats(const float* q, int64_t q_stride, const Key* const* keys, int64_t dim,
                              const uint8_t* ahead, float* p) {
  F32 sums[NQ * NV];
  for (F32& sum : sums) sum = zero();
  for (int64_t d = 0; d < dim; ++d) {
    if (ahead != nullptr) prefetch_part<NV * kLanes * 2>(ahead, d);
    F32 key[NV];
    for (int v = 0; v < NV; ++v) key[v] = load(keys[v] + d * kLanes);
    for (int i = 0; i < NQ; ++i) {
      const F32 query = broadcast(q[i * q_stride + d]);
      for (int v = 0; v < NV; ++v) sums[i * NV + v] = fma(key[v], query, sums[i * NV + v]);
    }
  }
  store_scores<NQ, NV>(sums, p);
}

// Products of int8 are exact in int32: all that is lost here is the query's rounding to int8, one scale per 32.
template <int NQ, int NV>
SIMD_INLINE void score_q8(const QuantizedQueries& q, int64_t first, const uint8_t* const* keys, int64_t dim,
                          const uint8_t* ahead, float* p) {
  const int64_t blocks = dim / kBlock;
  F32 sums[NQ * NV];
  for (F32& sum : sums) sum = zero();
  for (int64_t block = 0; block < blocks; ++block) {
    I32 dots[NQ * NV];
    for (int i = 0; i < NQ; ++i) {
      for (int v = 0; v < NV; ++v) dots[i * NV + v] = broadcast(q.start[(first + i) * blocks + block]);
    }
    for (int j = 0; j < 8; ++j) {
      if (ahead != nullptr) prefetch_part<NV * kKeyBlockBytes / 8>(ahead, block * 8 + j);
      B64 key[NV];
      for (int v = 0; v < NV; ++v) key[v] = load_bytes(keys[v] + block * kKeyBlockBytes + 2 * kTileRows + 64 * j);
      for (int i = 0; i < NQ; ++i) {
        const B64 query = broadcast_dword(q.q + (first + i) * dim + block * kBlock + 4 * j);
        for (int v = 0; v < NV; ++v) dots[i * NV + v] = dot_biased(dots[i * NV + v], key[v], query);
      }
    }
    for (int v = 0; v < NV; ++v) {
      const F32 scale = load(reinterpret_cast<const uint16_t*>(keys[v] + block * kKeyBlockBytes));
      for (int i = 0; i < NQ; ++i) {
        const F32 product = mul(scale, broadcast(q.scale[(first + i) * blocks + block]));
        sums[i * NV + v] = fma(product, to_f32(dots[i * NV + v]), sums[i * NV + v]);
      }
    }
  }
  store_scores<NQ, NV>(sums, p);
}

// Queries [first, first + n), n <= NQ. Key is float or uint16_t (f16), or uint8_t for q8_0.
template <int NQ, class Key>
void score_queries(const AttentionUnit& unit, const AttentionScratch& s, const Key* const* keys,
                   const uint8_t* ahead, int64_t first, int64_t n) {
  if constexpr (NQ > 1) {
    if (n < NQ) return score_queries<NQ - 1>(unit, s, keys, ahead, first, n);
  }
  const int64_t dim = unit.cache.head_dim, stride = round_up(dim, kLanes);
  float* p = s.p + first * kKeyBlock;
  constexpr int NV = kBlockVectors;
  if constexpr (sizeof(Key) == 1) {
    for (int64_t g = 0; g < kKeyGroups; g += NV, ahead = skip(ahead, NV * dim * kKeyBlockBytes / kBlock)) {
      score_q8<NQ, NV>(s.queries, first, keys + g, dim, ahead, p + g * kLanes);
    }
  } else {
    for (int64_t g = 0; g < kKeyGroups; g += NV, ahead = skip(ahead, NV * dim * kLanes * 2)) {
      score_floats<NQ, NV>(s.q + first * stride, stride, keys + g, dim, ahead, p + g * kLanes);
    }
  }
}

// The values of the same block are fetched meanwhile: waiting for memory in turns with computing takes twice the time.
template <class Key>
void score_block(const AttentionUnit& unit, const AttentionScratch& s, const Key* const* keys,
                 const uint8_t* ahead) {
  const int64_t queries = unit.tokens * unit.heads;
  for (int64_t i = 0, n; i < queries; i += n) {
    n = share_of(queries - i);
    score_queries<kBlockQueries>(unit, s, keys, i == 0 ? ahead : nullptr, i, n);
  }
}

}  // namespace
}  // namespace smallthinker
