// Keys and values of one position into the KV cache (isa.h: KvHead).
#pragma once

namespace smallthinker {
namespace {

SIMD_INLINE uint16_t to_f16(float x) {
  uint16_t lanes[kLanes];
  store(lanes, broadcast(x));
  return lanes[0];
}

SIMD_INLINE void store_f16_position(const float* k, const float* v, int64_t dim, int64_t lane, uint16_t* keys,
                                    uint16_t* values) {
  for (int64_t d = 0; d < dim; d += kLanes) {
    const int64_t n = dim - d < kLanes ? dim - d : kLanes;
    float wide[2][kLanes] = {};
    uint16_t half[2][kLanes];
    std::memcpy(wide[0], k + d, static_cast<size_t>(n) * sizeof(float));
    std::memcpy(wide[1], v + d, static_cast<size_t>(n) * sizeof(float));
    store(half[0], load(wide[0]));
    store(half[1], load(wide[1]));
    for (int64_t i = 0; i < n; ++i) keys[(d + i) * kLanes + lane] = half[0][i];
    std::memcpy(values + lane * dim + d, half[1], static_cast<size_t>(n) * sizeof(uint16_t));
  }
}

SIMD_INLINE void store_q8_position(const float* k, const float* v, int64_t dim, int64_t lane, uint8_t* keys,
                                   uint8_t* values) {
  int8_t* rows = reinterpret_cast<int8_t*>(values) + dim + lane * dim;
  for (int64_t block = 0; block < dim / kBlock; ++block) {
    uint8_t q[kBlock];
    int8_t* signed_q = reinterpret_cast<int8_t*>(q);
    const uint16_t key_scale = to_f16(quantize_block(k + block * kBlock, signed_q, signed_q + kBlock / 2));
    uint8_t* tile = keys + block * kTileBlockBytesQ8;
    std::memcpy(tile + 2 * lane, &key_scale, 2);
    for (int i = 0; i < kBlock; ++i) q[i] ^= 0x80;  // q + 128, as the products want it
    for (int j = 0; j < kBlock / 4; ++j) std::memcpy(tile + 2 * kTileRows + 64 * j + 4 * lane, q + 4 * j, 4);

    int8_t* row = rows + block * kBlock;
    const uint16_t value_scale = to_f16(quantize_block(v + block * kBlock, row, row + kBlock / 2));
    std::memcpy(values + 2 * (block * kLanes + lane), &value_scale, 2);
  }
}

void kv_store(Quant quant, const float* k, const float* v, int64_t dim, int64_t lane, uint8_t* keys, uint8_t* values) {
  if (quant == Quant::q8_0) return store_q8_position(k, v, dim, lane, keys, values);
  store_f16_position(k, v, dim, lane, reinterpret_cast<uint16_t*>(keys), reinterpret_cast<uint16_t*>(values));
}

}  // namespace
}  // namespace smallthinker
