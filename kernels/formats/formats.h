// Weight formats and their sizes. Owns the byte layout that stores on disk share with the kernels; computes nothing.
//
// "tiles" (dense matrices, expert gate): groups of 16 rows, so that 16 rows are the 16 lanes of one vector.
//   q4_0  per block of 32 columns: 16 f16 scales, then 4 vectors of 64 bytes; bytes 4r..4r+3 of vector j are row r,
//         low nibbles columns 4j..4j+3, high nibbles columns 16+4j..16+4j+3. A nibble n means scale * (n - 8).
//   q8_0  per block of 32 columns: 16 f16 scales, then 8 vectors of 64 bytes; bytes 4r..4r+3 of vector j are row r,
//         columns 4j..4j+3, stored as q + 128 because the dot product instruction wants one unsigned side.
//   f16, f32  per column: 16 values, one a row.
// "rows" (expert up, and down transposed): every row on its own, so that a zero ReLU gate skips it.
//   q4_0  cols/2 bytes of nibbles (byte i of a block: column i low, column 16+i high), then cols/32 f16 scales.
//   q8_0  cols int8, then cols/32 f16 scales.
//   f16, f32  plain.
#pragma once

#include <cstdint>

namespace smallthinker {

enum class Quant { f32, f16, q8_0, q4_0 };
enum class Layout { tiles, rows };

constexpr int64_t kBlock = 32;     // columns that share one scale
constexpr int64_t kTileRows = 16;  // rows that share one vector
constexpr int64_t kSectionAlign = 64;

constexpr int64_t kTileBlockBytesQ4 = 2 * kTileRows + kTileRows * kBlock / 2;
constexpr int64_t kTileBlockBytesQ8 = 2 * kTileRows + kTileRows * kBlock;

constexpr bool is_block_quantized(Quant quant) { return quant == Quant::q4_0 || quant == Quant::q8_0; }

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// One row of the "rows" layout. One sixteenth of a group of the "tiles" layout.
constexpr int64_t row_bytes(Quant quant, int64_t cols) {
  switch (quant) {
    case Quant::q4_0: return cols / kBlock * 18;
    case Quant::q8_0: return cols / kBlock * 34;
    case Quant::f16: return cols * 2;
    default: return cols * 4;
  }
}

constexpr int64_t group_bytes(Quant quant, int64_t cols) { return kTileRows * row_bytes(quant, cols); }

constexpr int64_t packed_bytes(Quant quant, Layout layout, int64_t rows, int64_t cols) {
  return (layout == Layout::tiles ? round_up(rows, kTileRows) : rows) * row_bytes(quant, cols);
}

// An expert's record: gate (tiles) at 0, up (rows), down transposed (rows); sections start on cache lines.
struct RecordSections {
  int64_t up_offset;
  int64_t down_offset;
  int64_t total_bytes;
};

constexpr RecordSections record_sections(Quant quant, int64_t hidden, int64_t ffn) {
  const int64_t up = round_up(packed_bytes(quant, Layout::tiles, ffn, hidden), kSectionAlign);
  const int64_t down = up + round_up(packed_bytes(quant, Layout::rows, ffn, hidden), kSectionAlign);
  return {up, down, down + packed_bytes(quant, Layout::rows, ffn, hidden)};
}

}  // namespace smallthinker
