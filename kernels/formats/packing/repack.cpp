// Rows of ggml's blocks, as files have them, to the layouts of the kernels: bytes move, no weight is computed. It runs
// while a model does, on every expert that is read from such a file.
#include <array>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "formats/all.h"
#include "kernels.h"

namespace smallthinker {

namespace {

using Rows = std::array<const uint8_t*, kTileRows>;

// A field of a block of 16 rows; `flip` is what each byte is xored with.
template <int64_t Unit>
uint8_t* interleave(const Rows& rows, int64_t at, int64_t bytes, uint32_t flip, uint8_t* to) {
  using Word = std::conditional_t<Unit == 4, uint32_t, std::conditional_t<Unit == 2, uint16_t, uint8_t>>;
  for (int64_t end = at + bytes; at < end; at += Unit) {
    for (const uint8_t* row : rows) {
      Word word;
      std::memcpy(&word, row + at, Unit);
      word = static_cast<Word>(word ^ flip);
      std::memcpy(to, &word, Unit);
      to += Unit;
    }
  }
  return to;
}

template <class Format>
void repack_group(const Rows& rows, int64_t blocks, uint8_t* to) {
  uint32_t flip = 0;
  if constexpr (is_block_quantized(Format::kQuant)) flip = 0x01010101u * Format::kTileFlip;
  for (int64_t block = 0; block < blocks; ++block) {
    for (const TileField& field : Format::kTile) {
      const int64_t at = block * sizes_of(Format::kQuant).block_bytes + field.offset;
      if (field.unit == 4) to = interleave<4>(rows, at, field.bytes, flip, to);
      else if (field.unit == 2) to = interleave<2>(rows, at, field.bytes, 0, to);
      else to = interleave<1>(rows, at, field.bytes, 0, to);
    }
  }
}

template <class Format>
void repack_row(const uint8_t* row, int64_t blocks, uint8_t* to) {
  if constexpr (!sizes_of(Format::kQuant).has_rows) {
    throw std::invalid_argument(std::string("quant: ") + sizes_of(Format::kQuant).name + " has no layout rows");
  } else if constexpr (is_block_quantized(Format::kQuant)) {
    for (int64_t block = 0; block < blocks; ++block, row += kScaleBytes + Format::kBytes) {
      std::memcpy(to + blocks * Format::kBytes + block * kScaleBytes, row, kScaleBytes);
      std::memcpy(to + block * Format::kBytes, row + kScaleBytes, Format::kBytes);
    }
  } else {
    std::memcpy(to, row, static_cast<size_t>(blocks * sizes_of(Format::kQuant).block_bytes));
  }
}

// Fields of two bytes are f16; mxfp4 has its one power of two.
template <class Format>
bool is_finite(const uint8_t* block) {
  if constexpr (Format::kQuant == Quant::mxfp4) return block[0] != 255;
  for (const TileField& field : Format::kTile) {
    uint16_t half;
    std::memcpy(&half, block + field.offset, 2);
    if (field.unit == 2 && (half & 0x7c00u) == 0x7c00u) return false;
  }
  return true;
}

struct Repacking {
  void (*group)(const Rows& rows, int64_t blocks, uint8_t* to);
  void (*row)(const uint8_t* row, int64_t blocks, uint8_t* to);
  bool (*is_finite)(const uint8_t* block);
};

const Repacking& repacking_of(Quant quant) {
#define SMALLTHINKER_FORMAT(name, block, bytes, has_rows) {repack_group<format::name>, repack_row<format::name>, is_finite<format::name>},
  static constexpr Repacking repackings[] = {SMALLTHINKER_FORMATS(SMALLTHINKER_FORMAT)};
#undef SMALLTHINKER_FORMAT
  return repackings[static_cast<int>(quant)];
}

}  // namespace

bool has_finite_scales(Quant quant, const uint8_t* blocks, int64_t bytes) {
  const auto is_finite = repacking_of(quant).is_finite;
  for (const uint8_t* const end = blocks + bytes; blocks < end; blocks += sizes_of(quant).block_bytes) {
    if (!is_finite(blocks)) return false;
  }
  return true;
}

void repack(Quant quant, Layout layout, const uint8_t* rows, int64_t n_rows, int64_t cols, uint8_t* packed) {
  const int64_t stride = row_bytes(quant, cols), blocks = cols / sizes_of(quant).block;
  const Repacking& repacking = repacking_of(quant);
  if (layout == Layout::rows) {
    for (int64_t row = 0; row < n_rows; ++row) repacking.row(rows + row * stride, blocks, packed + row * stride);
    return;
  }
  const auto zeros = std::unique_ptr<uint8_t[]>(n_rows % kTileRows == 0 ? nullptr : new uint8_t[static_cast<size_t>(stride)]());
  for (int64_t first = 0; first < n_rows; first += kTileRows, packed += kTileRows * stride) {
    Rows group;
    for (int64_t lane = 0; lane < kTileRows; ++lane) {
      group[static_cast<size_t>(lane)] = first + lane < n_rows ? rows + (first + lane) * stride : zeros.get();
    }
    repacking.group(group, blocks, packed);
  }
}

}  // namespace smallthinker
