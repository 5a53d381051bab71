// f32 matrices to and from the weight formats of formats.h. Rounding is ggml's, so weights that were quantised
// elsewhere with q4_0 or q8_0 come out of unpack and back into pack unchanged.
//
// A block with a NaN or an infinity gets the scale NaN: nothing in it can be trusted, and the result shows it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "formats/f16.h"
#include "kernels.h"

namespace smallthinker {

namespace {

constexpr int64_t kHalf = kBlock / 2;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

void store_u16(uint8_t* p, uint16_t x) { std::memcpy(p, &x, 2); }

float load_f16(const uint8_t* p) {
  uint16_t x;
  std::memcpy(&x, p, 2);
  return f16_to_f32(x);
}

bool all_finite(const float* w) {
  float sum = 0.0f;  // of zeros, or NaN if any of them isn't: 0 * inf and 0 * NaN are NaN
  for (int64_t i = 0; i < kBlock; ++i) sum += w[i] * 0.0f;
  return sum == 0.0f;
}

// A block as integers and the scale. q4_0 gives 0..15, q8_0 -127..127.
float quantize(Quant quant, const float* w, int32_t* q) {
  const int32_t zero = quant == Quant::q4_0 ? 8 : 0;
  if (!all_finite(w)) {
    std::fill_n(q, kBlock, zero);
    return kNan;
  }
  float largest = 0.0f;
  for (int64_t i = 0; i < kBlock; ++i) {
    if (std::fabs(w[i]) > std::fabs(largest)) largest = w[i];
  }
  const float scale = quant == Quant::q4_0 ? largest / -8.0f : std::fabs(largest) / 127.0f;
  const float inverse = 1.0f / scale;
  if (!std::isfinite(inverse)) {  // no scale, or one far below the smallest f16
    std::fill_n(q, kBlock, zero);
    return 0.0f;
  }
  for (int64_t i = 0; i < kBlock; ++i) {
    const float x = w[i] * inverse;
    if (quant == Quant::q4_0) q[i] = std::clamp(static_cast<int32_t>(x + 8.5f), 0, 15);
    else q[i] = std::clamp(static_cast<int32_t>(x + std::copysign(0.5f, x)), -127, 127);
  }
  return scale;
}

// Where element (lane, col) of a group of tiles is, for the formats without blocks.
int64_t tile_index(int64_t lane, int64_t col) { return col * kTileRows + lane; }

void pack_blocks(Quant quant, Layout layout, const float* w, int64_t lane, int64_t cols, uint8_t* data) {
  const int64_t block_bytes = quant == Quant::q4_0 ? kTileBlockBytesQ4 : kTileBlockBytesQ8;
  for (int64_t block = 0; block < cols / kBlock; ++block) {
    int32_t q[kBlock];
    const uint16_t scale = f32_to_f16(quantize(quant, w + block * kBlock, q));
    if (layout == Layout::tiles) {
      uint8_t* to = data + block * block_bytes;
      store_u16(to + 2 * lane, scale);
      to += 2 * kTileRows + 4 * lane;
      if (quant == Quant::q4_0) {
        for (int64_t i = 0; i < kHalf; ++i) to[i / 4 * 64 + i % 4] = static_cast<uint8_t>(q[i] | q[i + kHalf] << 4);
      } else {
        for (int64_t i = 0; i < kBlock; ++i) to[i / 4 * 64 + i % 4] = static_cast<uint8_t>(q[i] + 128);
      }
    } else if (quant == Quant::q4_0) {
      store_u16(data + cols / 2 + 2 * block, scale);
      for (int64_t i = 0; i < kHalf; ++i) data[block * kHalf + i] = static_cast<uint8_t>(q[i] | q[i + kHalf] << 4);
    } else {
      store_u16(data + cols + 2 * block, scale);
      for (int64_t i = 0; i < kBlock; ++i) data[block * kBlock + i] = static_cast<uint8_t>(q[i]);
    }
  }
}

void unpack_blocks(Quant quant, Layout layout, const uint8_t* data, int64_t lane, int64_t cols, float* w) {
  const int64_t block_bytes = quant == Quant::q4_0 ? kTileBlockBytesQ4 : kTileBlockBytesQ8;
  const bool is_tile = layout == Layout::tiles;
  const uint8_t* row_scales = data + (quant == Quant::q4_0 ? cols / 2 : cols);
  for (int64_t block = 0; block < cols / kBlock; ++block, w += kBlock) {
    const uint8_t* tile = data + block * block_bytes;
    const float scale = load_f16(is_tile ? tile + 2 * lane : row_scales + 2 * block);
    const uint8_t* tile_bytes = tile + 2 * kTileRows + 4 * lane;
    if (quant == Quant::q4_0) {
      for (int64_t i = 0; i < kHalf; ++i) {
        const int32_t byte = is_tile ? tile_bytes[i / 4 * 64 + i % 4] : data[block * kHalf + i];
        w[i] = scale * static_cast<float>((byte & 15) - 8);
        w[i + kHalf] = scale * static_cast<float>((byte >> 4) - 8);
      }
    } else {
      for (int64_t i = 0; i < kBlock; ++i) {
        const int32_t q = is_tile ? tile_bytes[i / 4 * 64 + i % 4] - 128 : static_cast<int8_t>(data[block * kBlock + i]);
        w[i] = scale * static_cast<float>(q);
      }
    }
  }
}

// `data` is the row in the rows layout, or its group in the tiles layout.
void pack_row(Quant quant, Layout layout, const float* w, int64_t lane, int64_t cols, uint8_t* data) {
  if (is_block_quantized(quant)) return pack_blocks(quant, layout, w, lane, cols, data);
  for (int64_t col = 0; col < cols; ++col) {
    const int64_t at = layout == Layout::tiles ? tile_index(lane, col) : col;
    if (quant == Quant::f16) store_u16(data + 2 * at, f32_to_f16(w[col]));
    else std::memcpy(data + 4 * at, w + col, 4);
  }
}

void unpack_row(Quant quant, Layout layout, const uint8_t* data, int64_t lane, int64_t cols, float* w) {
  if (is_block_quantized(quant)) return unpack_blocks(quant, layout, data, lane, cols, w);
  for (int64_t col = 0; col < cols; ++col) {
    const int64_t at = layout == Layout::tiles ? tile_index(lane, col) : col;
    if (quant == Quant::f16) w[col] = load_f16(data + 2 * at);
    else std::memcpy(w + col, data + 4 * at, 4);
  }
}

int64_t row_offset(Quant quant, Layout layout, int64_t row, int64_t cols) {
  return layout == Layout::tiles ? row / kTileRows * group_bytes(quant, cols) : row * row_bytes(quant, cols);
}

}  // namespace

void pack(Quant quant, Layout layout, const float* w, int64_t rows, int64_t cols, uint8_t* data) {
  const int64_t padded = layout == Layout::tiles ? round_up(rows, kTileRows) : rows;
  // A zero weight is not a zero byte in q4_0 and q8_0, so padding rows are packed like any other.
  const auto zeros = std::unique_ptr<float[]>(rows == padded ? nullptr : new float[static_cast<size_t>(cols)]());
  for (int64_t row = 0; row < padded; ++row) {
    pack_row(quant, layout, row < rows ? w + row * cols : zeros.get(), row % kTileRows, cols,
             data + row_offset(quant, layout, row, cols));
  }
}

void unpack(Quant quant, Layout layout, const uint8_t* data, int64_t rows, int64_t cols, float* w) {
  for (int64_t row = 0; row < rows; ++row) {
    unpack_row(quant, layout, data + row_offset(quant, layout, row, cols), row % kTileRows, cols, w + row * cols);
  }
}

void embed(Quant quant, const uint8_t* data, int64_t cols, const int32_t* ids, int64_t tokens, float* out) {
  for (int64_t t = 0; t < tokens; ++t) {
    unpack_row(quant, Layout::tiles, data + row_offset(quant, Layout::tiles, ids[t], cols), ids[t] % kTileRows, cols,
               out + t * cols);
  }
}

}  // namespace smallthinker
