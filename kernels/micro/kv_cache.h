// Keys and values of one position into the KV cache (isa.h: KvHead).
#pragma once

namespace smallthinker {
namespace {

SIMD_INLINE uint16_t to_f16(float x) {
  uint16_t lanes[kLanes];
  store(lanes, broadcast(x));
  return lanes[0];
}

// The first n of 16 dimensions, at the position's place in its groups.
SIMD_INLINE void store_f16_part(F32 k, F32 v, int64_t n, uint16_t* keys, uint16_t* values) {
  uint16_t half[2][kLanes];
  store(half[0], k);
  store(half[1], v);
  for (int64_t i = 0; i < n; ++i) keys[i * kLanes] = half[0][i];
  for (int64_t i = 0; i < n; ++i) values[i] = half[1][i];
}

SIMD_INLINE void store_f16_position(const float* k, const float* v, int64_t dim, int64_t lane, uint16_t* keys,
                                    uint16_t* values) {
  int64_t d = 0;
  for (; dim - d >= kLanes; d += kLanes) {
    store_f16_part(load(k + d), load(v + d), kLanes, keys + d * kLanes + lane, values + lane * dim + d);
  }
  if (d < dim) {
    float tail[2][kLanes] = {};
    std::memcpy(tail[0], k + d, static_cast<size_t>(dim - d) * sizeof(float));
    std::memcpy(tail[1], v + d, static_cast<size_t>(dim - d) * sizeof(float));
    store_f16_part(load(tail[0]), load(tail[1]), dim - d, keys + d * kLanes + lane, values + lane * dim + d);
  }
}

SIMD_INLINE void store_q8_position(const float* k, const float* v, int64_t dim, int64_t lane, uint8_t* keys,
                                   uint8_t* values) {
  int8_t* rows = reinterpret_cast<int8_t*>(values) + dim + lane * dim;
  for (int64_t block = 0; block < dim / kBlock; ++block) {
    uint8_t q[kBlock];
    int8_t* signed_q = reinterpret_cast<int8_t*>(q);
    const uint16_t key_scale = to_f16(quantize_block(k + block * kBlock, signed_q));
    uint8_t* tile = keys + block * kKeyBlockBytes;
    std::memcpy(tile + 2 * lane, &key_scale, 2);
    for (int i = 0; i < kBlock; ++i) q[i] ^= 0x80;  // q + 128, as the products want it
    for (int j = 0; j < kBlock / 4; ++j) std::memcpy(tile + 2 * kTileRows + 64 * j + 4 * lane, q + 4 * j, 4);

    int8_t* row = rows + block * kBlock;
    const uint16_t value_scale = to_f16(quantize_block(v + block * kBlock, row));
    std::memcpy(values + 2 * (block * kLanes + lane), &value_scale, 2);
  }
}

void kv_store(Quant quant, const float* k, const float* v, int64_t dim, int64_t lane, uint8_t* keys, uint8_t* values) {
  if (quant == Quant::q8_0) return store_q8_position(k, v, dim, lane, keys, values);
  store_f16_position(k, v, dim, lane, reinterpret_cast<uint16_t*>(keys), reinterpret_cast<uint16_t*>(values));
}

}  // namespace
}  // namespace smallthinker
