// f32 matrices to and from the weight formats. Rounding is ggml's, so weights that were quantised
// elsewhere with q4_0 or q8_0 come out of unpack and back into pack unchanged.
#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "formats/all.h"
#include "kernels.h"

namespace smallthinker {

namespace {

// Where pieces of a block of ggml's bytes lie: body(offset in the block, bytes, place). `data` is a row in the rows layout,
// or its group in the tiles layout.
template <class Format, class Data, class Body>
void for_pieces(Layout layout, int64_t lane, int64_t cols, int64_t block, Data* data, const Body& body) {
  if (layout == Layout::tiles) {
    Data* at = data + block * tile_block_bytes(Format::kQuant);
    for (const TileField& field : Format::kTile) {
      for (int64_t i = 0; i < field.bytes; i += field.unit, at += kTileRows * field.unit) {
        body(field.offset + i, field.unit, at + lane * field.unit);
      }
    }
  } else if constexpr (sizes_of(Format::kQuant).has_rows) {
    body(0, kScaleBytes, data + cols / kBlock * Format::kBytes + kScaleBytes * block);
    body(kScaleBytes, Format::kBytes, data + block * Format::kBytes);
  } else {
    throw std::invalid_argument(std::string("quant: ") + sizes_of(Format::kQuant).name + " has no layout rows");
  }
}

template <class Format>
uint8_t flip_of(Layout layout, int64_t piece_bytes) {
  return layout == Layout::tiles && piece_bytes == 4 ? Format::kTileFlip : 0;
}

template <class Format, class = void>
struct HasQuantizer : std::false_type {};
template <class Format>
struct HasQuantizer<Format, std::void_t<decltype(&Format::quantize)>> : std::true_type {};

template <class Format>
void pack_row(Layout layout, const float* w, int64_t lane, int64_t cols, uint8_t* data) {
  if constexpr (HasQuantizer<Format>::value) {
    constexpr int64_t kCols = sizes_of(Format::kQuant).block;
    for (int64_t block = 0; block < cols / kCols; ++block) {
      uint8_t bytes[sizes_of(Format::kQuant).block_bytes];
      Format::quantize(w + block * kCols, bytes);
      for_pieces<Format>(layout, lane, cols, block, data, [&](int64_t offset, int64_t n, uint8_t* to) {
        for (int64_t i = 0; i < n; ++i) to[i] = bytes[offset + i] ^ flip_of<Format>(layout, n);
      });
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
    constexpr int64_t kCols = sizes_of(Format::kQuant).block;
    for (int64_t block = 0; block < cols / kCols; ++block) {
      uint8_t bytes[sizes_of(Format::kQuant).block_bytes];
      for_pieces<Format>(layout, lane, cols, block, data, [&](int64_t offset, int64_t n, const uint8_t* from) {
        for (int64_t i = 0; i < n; ++i) bytes[offset + i] = from[i] ^ flip_of<Format>(layout, n);
      });
      Format::unpack(bytes, w + block * kCols);
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
  void (*pack)(Layout layout, const float* w, int64_t lane, int64_t cols, uint8_t* data);  // null: files alone have it
  void (*unpack)(Layout layout, const uint8_t* data, int64_t lane, int64_t cols, float* w);
};

template <class Format>
constexpr Packing packing() {
  if constexpr (!is_block_quantized(Format::kQuant) || HasQuantizer<Format>::value) return {pack_row<Format>, unpack_row<Format>};
  else return {nullptr, unpack_row<Format>};
}

const Packing& packing_of(Quant quant) {
#define SMALLTHINKER_FORMAT(name, block, bytes, has_rows) packing<format::name>(),
  static constexpr Packing packings[] = {SMALLTHINKER_FORMATS(SMALLTHINKER_FORMAT)};
#undef SMALLTHINKER_FORMAT
  return packings[static_cast<int>(quant)];
}

int64_t row_offset(Quant quant, Layout layout, int64_t row, int64_t cols) {
  return layout == Layout::tiles ? row / kTileRows * group_bytes(quant, cols) : row * row_bytes(quant, cols);
}

}  // namespace

bool can_pack(Quant quant) { return packing_of(quant).pack != nullptr; }

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
