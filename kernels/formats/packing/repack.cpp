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

// The bits that are all set in a word of a field that is NaN or infinite; 0 where none can be. Fields of two bytes are f16;
// mxfp4 has its one power of two.
constexpr uint32_t exponent_of(Quant quant, const TileField& field) {
  if (quant == Quant::mxfp4) return field.offset == 0 ? 0xffu : 0u;
  if (quant == Quant::bf16) return 0x7f80u;
  if (quant == Quant::f32) return 0x7f800000u;
  return field.unit == 2 ? 0x7c00u : 0u;
}

template <class Word>
bool are_finite(const uint8_t* words, int64_t n, uint32_t exponent) {
  uint32_t bad = 0;  // without a branch: nearly all are
  for (int64_t i = 0; i < n; ++i) {
    Word word;
    std::memcpy(&word, words + i * static_cast<int64_t>(sizeof(Word)), sizeof(Word));
    bad |= static_cast<uint32_t>((word & exponent) == exponent);
  }
  return bad == 0;
}

// Words of `unit` bytes that have just been written.
bool are_finite(int64_t unit, const uint8_t* words, int64_t n, uint32_t exponent) {
  if (exponent == 0) return true;
  if (unit == 4) return are_finite<uint32_t>(words, n, exponent);
  return unit == 2 ? are_finite<uint16_t>(words, n, exponent) : are_finite<uint8_t>(words, n, exponent);
}

template <class Format>
bool repack_group(const Rows& rows, int64_t blocks, uint8_t* to) {
  uint32_t flip = 0;
  bool finite = true;
  if constexpr (is_block_quantized(Format::kQuant)) flip = 0x01010101u * Format::kTileFlip;
  for (int64_t block = 0; block < blocks; ++block) {
    for (const TileField& field : Format::kTile) {
      const int64_t at = block * sizes_of(Format::kQuant).block_bytes + field.offset;
      const uint8_t* const written = to;
      if (field.unit == 4) to = interleave<4>(rows, at, field.bytes, flip, to);
      else if (field.unit == 2) to = interleave<2>(rows, at, field.bytes, 0, to);
      else to = interleave<1>(rows, at, field.bytes, 0, to);
      finite &= are_finite(field.unit, written, kTileRows * field.bytes / field.unit, exponent_of(Format::kQuant, field));
    }
  }
  return finite;
}

template <class Format>
bool repack_row(const uint8_t* row, int64_t blocks, uint8_t* to) {
  constexpr const TileField& first = Format::kTile[0];  // a block's scale, or an element
  constexpr uint32_t exponent = exponent_of(Format::kQuant, first);
  if constexpr (!sizes_of(Format::kQuant).has_rows) {
    throw std::invalid_argument(std::string("quant: ") + sizes_of(Format::kQuant).name + " has no layout rows");
  } else if constexpr (is_block_quantized(Format::kQuant)) {
    uint8_t* const scales = to + blocks * Format::kBytes;
    for (int64_t block = 0; block < blocks; ++block, row += kScaleBytes + Format::kBytes) {
      std::memcpy(scales + block * kScaleBytes, row, kScaleBytes);
      std::memcpy(to + block * Format::kBytes, row + kScaleBytes, Format::kBytes);
    }
    return are_finite(first.unit, scales, blocks, exponent);
  } else {
    std::memcpy(to, row, static_cast<size_t>(blocks * sizes_of(Format::kQuant).block_bytes));
    return are_finite(first.unit, to, blocks, exponent);
  }
}

struct Repacking {
  bool (*group)(const Rows& rows, int64_t blocks, uint8_t* to);
  bool (*row)(const uint8_t* row, int64_t blocks, uint8_t* to);
};

const Repacking& repacking_of(Quant quant) {
#define SMALLTHINKER_FORMAT(name, block, bytes, has_rows) {repack_group<format::name>, repack_row<format::name>},
  static constexpr Repacking repackings[] = {SMALLTHINKER_FORMATS(SMALLTHINKER_FORMAT)};
#undef SMALLTHINKER_FORMAT
  return repackings[static_cast<int>(quant)];
}

}  // namespace

bool repack(Quant quant, Layout layout, const uint8_t* rows, int64_t n_rows, int64_t cols, uint8_t* packed) {
  const int64_t stride = row_bytes(quant, cols), blocks = cols / sizes_of(quant).block;
  const Repacking& repacking = repacking_of(quant);
  bool finite = true;
  if (layout == Layout::rows) {
    for (int64_t row = 0; row < n_rows; ++row) finite &= repacking.row(rows + row * stride, blocks, packed + row * stride);
    return finite;
  }
  const auto zeros = std::unique_ptr<uint8_t[]>(n_rows % kTileRows == 0 ? nullptr : new uint8_t[static_cast<size_t>(stride)]());
  for (int64_t first = 0; first < n_rows; first += kTileRows, packed += kTileRows * stride) {
    Rows group;
    for (int64_t lane = 0; lane < kTileRows; ++lane) {
      group[static_cast<size_t>(lane)] = first + lane < n_rows ? rows + (first + lane) * stride : zeros.get();
    }
    finite &= repacking.group(group, blocks, packed);
  }
  return finite;
}

}  // namespace smallthinker
