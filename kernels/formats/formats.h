// The table of weight formats, and the sizes of what is packed in them. Owns the byte layouts that stores on disk share
// with the kernels; computes nothing.
//
// A format is a line here and a header in elements/, or in blocks_32/ or blocks_256/ by its block's columns, which says how
// its values lie in bytes and how they are multiplied.
//
// "tiles" (where all rows are used): groups of 16 rows, so that 16 rows are the 16 lanes of one vector. Rows are padded with
//   zeros to a multiple of 16.
//     formats of blocks    per block of columns: the fields of the format (TileField), whose units of 16 rows lie side by
//                          side. Scales go by f16 or byte, numbers by four bytes: bytes 4r..4r+3 of a vector of 64 are four
//                          of row r
//     formats of elements  per column: 16 values, one a row
// "rows" (where a zero ReLU gate skips single rows), which few formats have: every row on its own.
//     formats of blocks    the bytes of all blocks, then cols/32 f16 scales
//     formats of elements  plain
#pragma once

#include <cstdint>
#include <string>

// name, columns of a block (1: a format of elements), bytes of a row's block in ggml's files, whether it can lie in rows
#define SMALLTHINKER_FORMATS(X) \
  X(f32, 1, 4, true)            \
  X(f16, 1, 2, true)            \
  X(bf16, 1, 2, true)           \
  X(q8_0, 32, 34, true)         \
  X(q4_0, 32, 18, true)         \
  X(q4_1, 32, 20, false)        \
  X(q5_0, 32, 22, false)        \
  X(q5_1, 32, 24, false)        \
  X(iq4_nl, 32, 18, false)      \
  X(mxfp4, 32, 17, false)       \
  X(iq4_xs, 256, 136, false)    \
  X(q2_k, 256, 84, false)       \
  X(q3_k, 256, 110, false)      \
  X(q4_k, 256, 144, false)      \
  X(q5_k, 256, 176, false)      \
  X(q6_k, 256, 210, false)

namespace smallthinker {

#define SMALLTHINKER_FORMAT(name, block, bytes, has_rows) name,
enum class Quant { SMALLTHINKER_FORMATS(SMALLTHINKER_FORMAT) };
#undef SMALLTHINKER_FORMAT

struct FormatSizes {
  const char* name;
  int64_t block, block_bytes;
  bool has_rows;
};

#define SMALLTHINKER_FORMAT(name, block, bytes, has_rows) {#name, block, bytes, has_rows},
constexpr FormatSizes kFormats[] = {SMALLTHINKER_FORMATS(SMALLTHINKER_FORMAT)};
#undef SMALLTHINKER_FORMAT
constexpr int64_t kNumFormats = sizeof(kFormats) / sizeof(kFormats[0]);

enum class Layout { tiles, rows };

// Some bytes of a row's block, from `offset` on in ggml's order, which a file has: in tiles, `unit` of them at a time lie
// beside those of the 15 other rows. A format's tile is its fields, one after the other.
struct TileField {
  int64_t offset, bytes, unit;
};

constexpr int64_t kBlock = 32;     // columns of activations that share one scale
constexpr int64_t kTileRows = 16;  // rows that share one vector
constexpr int64_t kScaleBytes = 2;
constexpr int64_t kSectionAlign = 64;

// Its number in kFormats, -1 for a name that is none's.
inline int find_format(const std::string& name) {
  for (int i = 0; i < kNumFormats; ++i) {
    if (name == kFormats[i].name) return i;
  }
  return -1;
}

constexpr const FormatSizes& sizes_of(Quant quant) { return kFormats[static_cast<int>(quant)]; }

constexpr bool is_block_quantized(Quant quant) { return sizes_of(quant).block > 1; }

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// One row of the "rows" layout. One sixteenth of a group of the "tiles" layout.
constexpr int64_t row_bytes(Quant quant, int64_t cols) {
  return cols / sizes_of(quant).block * sizes_of(quant).block_bytes;
}

constexpr int64_t group_bytes(Quant quant, int64_t cols) { return kTileRows * row_bytes(quant, cols); }

// A block of columns of a group.
constexpr int64_t tile_block_bytes(Quant quant) { return kTileRows * sizes_of(quant).block_bytes; }

constexpr int64_t packed_bytes(Quant quant, Layout layout, int64_t rows, int64_t cols) {
  return (layout == Layout::tiles ? round_up(rows, kTileRows) : rows) * row_bytes(quant, cols);
}

struct FfnFormats {
  Quant gate, up, down;
};

// clamped_swiglu is not of the gate alone: (up + 1) * g * sigmoid(alpha * g), up within +-limit and g, the gate, below it.
enum class Activation { relu, silu, gelu, gelu_tanh, relu2, clamped_swiglu };
constexpr const char* kActivations[] = {"relu", "silu", "gelu", "gelu_tanh", "relu2", "clamped_swiglu"};
struct Clamp {
  float limit = 0.0f, alpha = 0.0f;
};

// A feed-forward network, or one expert or slice of it: down(activation(gate x) * up x), or down(activation(up x)). biased:
// each product has a bias of its own.
struct FfnShape {
  FfnFormats formats;
  int64_t hidden, ffn;
  Activation activation;
  bool gated;
  bool biased = false;
  Clamp clamp{};
  bool whole = false;  // behind a ReLU gate, too, all of it is computed: `down` lies as in the model's files
};

// Which of the two kernels computes it, and with it the layout of its records. Behind a ReLU gate most neurons are zero:
// the sparse kernel reads only the live rows of up and of down, which lies transposed for it, in formats that have rows.
constexpr bool is_sparse(const FfnShape& shape) {
  return shape.activation == Activation::relu && shape.gated && !shape.biased && !shape.whole &&
         sizes_of(shape.formats.up).has_rows && sizes_of(shape.formats.down).has_rows;
}

// A packed matrix in a record. Transposed: its rows are the columns of what the model's files have.
struct Section {
  Layout layout;
  bool is_transposed;
  int64_t rows, cols, offset, bytes;
};

// An expert's record: gate, up, down, then their biases as rows of f32, each on a cache line. What there isn't has no rows.
struct RecordSections {
  Section gate, up, down, gate_bias, up_bias, down_bias;
  int64_t total_bytes;
};

constexpr Section section(Quant quant, Layout layout, bool is_transposed, int64_t rows, int64_t cols, int64_t end_before) {
  return {layout, is_transposed, rows, cols, round_up(end_before, kSectionAlign), packed_bytes(quant, layout, rows, cols)};
}
constexpr int64_t end_of(const Section& section) { return section.offset + section.bytes; }

constexpr RecordSections record_sections(const FfnShape& shape) {
  const bool sparse = is_sparse(shape);
  const int64_t hidden = shape.hidden, ffn = shape.ffn;
  const Section gate = section(shape.formats.gate, Layout::tiles, false, shape.gated ? ffn : 0, hidden, 0);
  const Section up = section(shape.formats.up, sparse ? Layout::rows : Layout::tiles, false, ffn, hidden, end_of(gate));
  const Section down = sparse ? section(shape.formats.down, Layout::rows, true, ffn, hidden, end_of(up))
                              : section(shape.formats.down, Layout::tiles, false, hidden, ffn, end_of(up));
  const auto bias = [&shape](int64_t cols, const Section& before) {
    return shape.biased ? section(Quant::f32, Layout::rows, false, 1, cols, end_of(before))
                        : Section{Layout::rows, false, 0, cols, end_of(before), 0};
  };
  const Section gate_bias = shape.gated ? bias(ffn, down) : Section{Layout::rows, false, 0, ffn, end_of(down), 0};
  const Section up_bias = bias(ffn, gate_bias), down_bias = bias(hidden, up_bias);
  return {gate, up, down, gate_bias, up_bias, down_bias, end_of(down_bias)};
}

}  // namespace smallthinker
