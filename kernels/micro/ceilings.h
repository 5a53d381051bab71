// What bounds the other kernels, measured by doing nothing else: reading memory, f32 and int8 arithmetic.
#pragma once

namespace smallthinker {
namespace {

// With the widest loads and the products' own prefetch distance: on one core that is 40 % faster than 16-byte loads, so
// a plain loop would be no ceiling. `bytes` is a multiple of 256.
uint64_t mix_bytes(const uint8_t* data, int64_t bytes) {
  B64 sums[4] = {load_bytes(data), load_bytes(data + 64), load_bytes(data + 128), load_bytes(data + 192)};
  for (int64_t at = 256; at < bytes; at += 256) {
    for (int i = 0; i < 4; ++i) {
      prefetch_l2(data + at + kFarBytes + i * 64);
      sums[i] = mix(sums[i], load_bytes(data + at + i * 64));
    }
  }
  const B64 sum = mix(mix(sums[0], sums[1]), mix(sums[2], sums[3]));
  uint64_t words[8], total = 0;
  std::memcpy(words, &sum, sizeof(words));
  for (uint64_t word : words) total ^= word;
  return total;
}

// As many sums as stay in registers, to hide the latency of a multiply-add.
float multiply_add(int64_t rounds) {
  F32 sums[kAccumulators];
  for (F32& sum : sums) sum = zero();
  const F32 a = broadcast(0.5f), b = broadcast(1.0f);
  for (int64_t round = 0; round < rounds; ++round) {
    for (int repeat = 0; repeat < kRoundVectors / kAccumulators; ++repeat) {
      for (F32& sum : sums) sum = fma(sum, a, b);
    }
  }
  F32 total = zero();
  for (const F32& sum : sums) total = add(total, sum);
  return sum_lanes(total);
}

// The same with the products of bytes that quantised weights go through, four of them to a lane.
int32_t multiply_add_int8(int64_t rounds) {
  I32 sums[kAccumulators];
  for (I32& sum : sums) sum = broadcast(int32_t{0});
  const B64 w = broadcast_byte(1), a = broadcast_byte(-1);
  for (int64_t round = 0; round < rounds; ++round) {
    for (int repeat = 0; repeat < kRoundVectors / kAccumulators; ++repeat) {
      for (I32& sum : sums) sum = dot_nibbles(sum, w, a);
    }
  }
  int32_t lanes[kLanes], total = 0;
  for (const I32& sum : sums) {
    store(lanes, sum);
    total += lanes[0];
  }
  return total;
}

}  // namespace
}  // namespace smallthinker
