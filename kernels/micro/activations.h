// Activations to int8, one scale per block of 32, and in the order in which rows of a format read them (isa.h: ActivationRow).
#pragma once

namespace smallthinker {
namespace {

constexpr float kSmallestActivation = 1e-30f;  // 127 / amax must stay finite

// Writes the block and returns its scale.
SIMD_INLINE float quantize_block(const float* x, int8_t* q) {
  const F32 a = load(x), b = load(x + 16);
  if (!all_finite(a) || !all_finite(b)) {
    std::memset(q, 0, kBlock);
    return std::numeric_limits<float>::quiet_NaN();
  }
  const float amax = max_lane(max(abs(a), abs(b)));
  const bool is_zero = amax < kSmallestActivation;
  const F32 inverse = broadcast(is_zero ? 0.0f : 127.0f / amax);
  store_int8(q, mul(a, inverse));
  store_int8(q + 16, mul(b, inverse));
  return is_zero ? 0.0f : amax / 127.0f;
}

SIMD_INLINE int32_t sum_bytes(const int8_t* p, int n) {
  int32_t sum = 0;
  for (int i = 0; i < n; ++i) sum += p[i];
  return sum;
}

void quantize_activations(int64_t cols, const ActivationRow& row) {
  for (int64_t block = 0; block < cols / kBlock; ++block) {
    int8_t* const q = row.q + block * kBlock;
    row.scale[block] = quantize_block(row.x + block * kBlock, q);
    const int32_t first = sum_bytes(q, kBlock / 2), second = sum_bytes(q + kBlock / 2, kBlock / 2);
    row.offset8[block] = -8 * (first + second);
    row.offset128[block] = -128 * (first + second);
    row.offset32[2 * block] = -32 * first;
    row.offset32[2 * block + 1] = -32 * second;
    row.sum[block] = row.scale[block] * static_cast<float>(first + second);
  }
}

// Blocks of a strip of a row, and bytes of its activations in the format's own order, of its starts.
template <class Format>
constexpr int64_t kStripBlocks = Format::kStripCols / kBlock;
template <class Format>
constexpr int64_t kOrderedBytes = Format::kOwnOrder ? Format::kStripCols : 0;
template <class Format>
constexpr int64_t kStartBytes = Format::kStartOf8 != 0 ? kLanes * 4 : 0;

template <class Format>
int64_t order_bytes(int64_t cols) {
  if constexpr (is_block_quantized(Format::kQuant)) {
    return round_up(cols, Format::kStripCols) / Format::kStripCols * (kOrderedBytes<Format> + kStartBytes<Format>);
  }
  return 0;
}

template <class Format>
void order_for_rows(int64_t cols, ActivationRow& row, uint8_t* scratch) {
  if constexpr (is_block_quantized(Format::kQuant)) {
    const int64_t strips = round_up(cols, Format::kStripCols) / Format::kStripCols;
    row.ordered = row.q;
    if constexpr (Format::kOwnOrder) {
      int8_t* const ordered = reinterpret_cast<int8_t*>(scratch);
      for (int64_t at = 0; at < strips * Format::kStripCols; at += Format::kStripCols) Format::order(row.q + at, ordered + at);
      row.ordered = ordered;
    }
    if constexpr (Format::kStartOf8 != 0) {
      row.start = reinterpret_cast<int32_t*>(scratch + strips * kOrderedBytes<Format>);
      std::memset(row.start, 0, static_cast<size_t>(strips * kStartBytes<Format>));
      for (int64_t block = 0; block < strips * kStripBlocks<Format>; ++block) {
        row.start[block * Format::kBlockLanes] = row.offset8[block] * Format::kStartOf8;
      }
    }
  }
}

}  // namespace
}  // namespace smallthinker
