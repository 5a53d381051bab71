// f32 matrices to and from the weight formats. Rounding is ggml's, so weights that were quantised
// elsewhere with q4_0 or q8_0 come out of unpack and back into pack unchanged.
//
// A block with a NaN or an infinity gets the scale NaN: nothing in it can be trusted, and the result shows it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "formats/all.h"
#include "kernels.h"

namespace smallthinker {

namespace {

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

// A block as the format's integers and their scale.
template <class Format>
float quantize(const float* w, int32_t* q) {
  if (!all_finite(w)) {
    std::fill_n(q, kBlock, Format::kZero);
    return kNan;
  }
  float largest = 0.0f;
  for (int64_t i = 0; i < kBlock; ++i) {
    if (std::fabs(w[i]) > std::fabs(largest)) largest = w[i];
  }
  const float scale = Format::scale_for(largest);
  const float inverse = 1.0f / scale;
  if (!std::isfinite(inverse)) {  // no scale, or one far below the smallest f16
    std::fill_n(q, kBlock, Format::kZero);
    return 0.0f;
  }
  for (int64_t i = 0; i < kBlock; ++i) q[i] = Format::round(w[i] * inverse);
  return scale;
}

// Where a block's bytes and its scale are: `data` is a row in the rows layout, or its group in the tiles layout.
template <class Format>
struct BlockPlace {
  BlockPlace(Layout layout, int64_t lane, int64_t cols, int64_t block) {
    if (layout == Layout::tiles) {
      const int64_t tile = block * kTileRows * (kScaleBytes + Format::kBytes);
      scale = tile + kScaleBytes * lane;
      bytes = tile + kScaleBytes * kTileRows + 4 * lane;
      step = 4 * kTileRows;
    } else {
      scale = cols / kBlock * Format::kBytes + kScaleBytes * block;
      bytes = block * Format::kBytes;
      step = 4;
    }
  }
  int64_t at(int64_t byte) const { return bytes + byte / 4 * step + byte % 4; }

  int64_t scale, bytes, step;
};

template <class Format>
void pack_row(Layout layout, const float* w, int64_t lane, int64_t cols, uint8_t* data) {
  if constexpr (is_block_quantized(Format::kQuant)) {
    for (int64_t block = 0; block < cols / kBlock; ++block) {
      const BlockPlace<Format> place(layout, lane, cols, block);
      int32_t q[kBlock];
      uint8_t bytes[Format::kBytes];
      store_u16(data + place.scale, f32_to_f16(quantize<Format>(w + block * kBlock, q)));
      Format::encode(q, layout, bytes);
      for (int64_t i = 0; i < Format::kBytes; ++i) data[place.at(i)] = bytes[i];
    }
  } else {
    for (int64_t col = 0; col < cols; ++col) {
      const auto element = Format::narrow(w[col]);
      const int64_t at = layout == Layout::tiles ? col * kTileRows + lane : col;
      std::memcpy(data + at * static_cast<int64_t>(sizeof(element)), &element, sizeof(element));
    }
  }
}

template <class Format>
void unpack_row(Layout layout, const uint8_t* data, int64_t lane, int64_t cols, float* w) {
  if constexpr (is_block_quantized(Format::kQuant)) {
    for (int64_t block = 0; block < cols / kBlock; ++block, w += kBlock) {
      const BlockPlace<Format> place(layout, lane, cols, block);
      int32_t q[kBlock];
      uint8_t bytes[Format::kBytes];
      for (int64_t i = 0; i < Format::kBytes; ++i) bytes[i] = data[place.at(i)];
      Format::decode(bytes, layout, q);
      const float scale = load_f16(data + place.scale);
      for (int64_t i = 0; i < kBlock; ++i) w[i] = scale * static_cast<float>(q[i] - Format::kZero);
    }
  } else {
    for (int64_t col = 0; col < cols; ++col) {
      typename Format::Element element;
      const int64_t at = layout == Layout::tiles ? col * kTileRows + lane : col;
      std::memcpy(&element, data + at * static_cast<int64_t>(sizeof(element)), sizeof(element));
      w[col] = Format::widen(element);
    }
  }
}

struct Packing {
  void (*pack)(Layout layout, const float* w, int64_t lane, int64_t cols, uint8_t* data);
  void (*unpack)(Layout layout, const uint8_t* data, int64_t lane, int64_t cols, float* w);
};

const Packing& packing_of(Quant quant) {
#define SMALLTHINKER_FORMAT(name, block, bytes) {pack_row<format::name>, unpack_row<format::name>},
  static constexpr Packing packings[] = {SMALLTHINKER_FORMATS(SMALLTHINKER_FORMAT)};
#undef SMALLTHINKER_FORMAT
  return packings[static_cast<int>(quant)];
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
    packing_of(quant).pack(layout, row < rows ? w + row * cols : zeros.get(), row % kTileRows, cols,
                           data + row_offset(quant, layout, row, cols));
  }
}

void unpack(Quant quant, Layout layout, const uint8_t* data, int64_t rows, int64_t cols, float* w) {
  for (int64_t row = 0; row < rows; ++row) unpack_row(quant, layout, data, row, cols, w + row * cols);
}

void unpack_row(Quant quant, Layout layout, const uint8_t* data, int64_t row, int64_t cols, float* w) {
  packing_of(quant).unpack(layout, data + row_offset(quant, layout, row, cols), row % kTileRows, cols, w);
}

}  // namespace smallthinker
