// The table of micro-kernels of one instruction set, and the choice between tables at run time.
//
// Every micro-kernel is written once (micro/*.h) over 16-lane vector types (simd_*.h) and compiled once per
// instruction set (isa_*.cpp). Above this header nothing knows which one runs; below it nothing knows threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "formats/formats.h"
#include "formats/half.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define SMALLTHINKER_X86 1
#else
#define SMALLTHINKER_X86 0
#endif

#if SMALLTHINKER_X86 && (defined(__clang__) ? __clang_major__ >= 13 : __GNUC__ >= 11)
#define SMALLTHINKER_COMPILES_AVXVNNI 1
#else
#define SMALLTHINKER_COMPILES_AVXVNNI 0
#endif

// Clang before 16 hides the dot products unless the whole file is compiled for them, as Apple's are.
#if defined(__AARCH64EL__) && (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD))
#define SMALLTHINKER_NEON 1
#else
#define SMALLTHINKER_NEON 0
#endif

namespace smallthinker {

// One token's input of matrix products, quantised once for weights of all formats of blocks. Formats of elements read `x`
// alone. Arrays are padded with zeros to a multiple of 128 columns.
//   q          int8, 32 columns share a scale
//   scale      one a block of 32
//   offset8    one a block: -8 times the sum of its q, and
//   offset128  -128 times. Where its integer sum begins, to undo the bias of unsigned weights
//   offset32   two a block, of 16 columns each: -32 times the sum of their q
//   sum        one a block: scale times the sum of its q, for weights with a min
// Rows of one format read what FormatKernels::order_for_rows adds:
//   ordered    q in the order of the format's rows
//   start      16 int32 a strip of 64 bytes of weights, where its integer sums begin: a block's at its first lane, the
//              other lanes are zero
struct ActivationRow {
  const float* x;
  int8_t* q = nullptr;
  float* scale = nullptr;
  int32_t *offset8 = nullptr, *offset128 = nullptr, *offset32 = nullptr;
  float* sum = nullptr;
  const int8_t* ordered = nullptr;
  int32_t* start = nullptr;
};

constexpr int64_t kLanes = 16;
constexpr int64_t kActivationStrip = 128;  // activations are padded to a multiple
constexpr int64_t kRoundVectors = 16;
constexpr int64_t kFarBytes = 8192;  // ahead in a stream, to the second-level cache: half of it reads q4_0 6 % slower
constexpr int64_t kNearBytes = 1152;  // ahead, to the first level
constexpr int64_t kChunkRows = 64;   // neurons of an expert that are computed at a time; one bit each
constexpr int64_t kTokenBlock = 32;  // tokens of an expert that are computed at a time, at most
constexpr int64_t kDownStrip = 128;  // sums of down are padded to a multiple
constexpr int64_t kKeyBlock = 64;   // online softmax steps at multiples of this position, whatever the call's shape
constexpr int kWeightBits = 42;      // the likeliest token's weight is 2^42
constexpr int64_t kKeySplit = 512;  // and sums begin anew at multiples of this one, so that threads can share a query

// One head of the KV cache: a ring of groups of 16 positions, position p in lane p % 16 of group p / 16 % groups. A
// group is 16 * row_bytes of keys, in the tiles layout (formats.h), and as much of values:
//   f16   16 rows of head_dim
//   q8_0  per 32 dimensions 16 f16 scales, one a position; then 16 rows of head_dim int8
struct KvHead {
  Quant quant;  // f16 or q8_0
  int64_t head_dim, capacity;
  const uint8_t *keys, *values;

  int64_t group_offset(int64_t position) const {
    return position / kLanes % (capacity / kLanes) * group_bytes(quant, head_dim);
  }
};

// What is made of queries and keys.
struct Scores {
  int64_t window = 0, chunk = 0;  // positions that a query sees, itself included; its own chunk of so many; 0: all
  float scale = 1.0f;             // of their products
  float softcap = 0.0f;           // softcap * tanh(score / softcap); 0 is none
  const float* sinks = nullptr;   // [H] one more score of each head, of a value of zeros; null: none
};

// Queries that share one key-value head: `heads` of each of `tokens`, query i being head i % heads of token i / heads.
struct AttentionUnit {
  KvHead cache;
  const float* q;  // of the first query; heads are head_dim apart, tokens token_stride
  int64_t tokens, heads, token_stride;
  int64_t position;  // the first token's
  Scores scores;

  int64_t first_visible(int64_t at) const {
    const int64_t of_window = scores.window == 0 || at < scores.window ? 0 : at - scores.window + 1;
    return scores.chunk == 0 ? of_window : std::max(of_window, at / scores.chunk * scores.chunk);
  }
};

// q8_0: queries as int8, one scale a block, and where a block's integer sum begins (it undoes the bias of the keys).
struct QuantizedQueries {
  int8_t* q;       // [queries, head_dim]
  float* scale;    // [queries, head_dim / 32]
  int32_t* start;  // [queries, head_dim / 32]
};

// One thread's memory; dim is head_dim rounded up to 16.
struct AttentionScratch {
  float* q;  // [queries, dim], scaled
  QuantizedQueries queries;
  float* p;                // [queries, kKeyBlock] scores, then exponentials
  int32_t *begin, *end;    // [queries] keys of the block that a query sees
  float* wide;             // [kKeyBlock, dim] keys, then values
  float* scales;           // [head_dim / 32, kKeyBlock] of q8_0 values
};

// Of online softmax: running maximum and sum of exponentials [queries], weighted sum of values [queries, dim].
struct SoftmaxState {
  float *max, *sum, *acc;
};

// Rows that will be read, in that order: kernels prefetch some of them while they compute, since the hardware can't guess
// which rows of up and down are live, nor follow 64 rows at once.
struct UpcomingRow {
  const uint8_t* data;
  int64_t bytes;
};
struct Upcoming {
  const UpcomingRow* rows;
  int64_t n;
  int64_t prefetched = 0;
};

// What depends on the weights' format (formats/), one table a format.
struct FormatKernels {
  // Null but for gemm where the format has no rows.
  //
  // Sets row.ordered and row.start, of a row that is quantised, in order_bytes(cols) bytes of scratch.
  int64_t (*order_bytes)(int64_t cols);
  void (*order_for_rows)(int64_t cols, ActivationRow& row, uint8_t* scratch);

  // out[t * out_stride + r] = weight row r . activations t, for `rows` rows of the tiles layout. A gemv for one token.
  void (*gemm)(const uint8_t* tiles, int64_t rows, int64_t cols, const ActivationRow* activations, int64_t tokens,
               float* out, int64_t out_stride);

  // Of `rows` neurons, at most kChunkRows, of an expert: `a` [tokens, kChunkRows] holds the gates and becomes
  // gate * (row of up . activations) for the live ones. Other rows are not read for one token.
  void (*gated_up)(const uint8_t* up, int64_t cols, int64_t rows, const ActivationRow* activations, int64_t tokens,
                   const uint64_t* live, float* a, Upcoming& upcoming);

  // sums[t * sums_stride] += the sum over live neurons of a[t, neuron] * the neuron's row of down. A token's sums are
  // cols rounded up to a multiple of kDownStrip, in an order of their own. scratch: down_scratch_bytes(...).
  void (*add_down)(const uint8_t* down, int64_t cols, int64_t rows, const float* a, const uint64_t* live, int64_t tokens,
                   uint8_t* scratch, float* sums, int64_t sums_stride, Upcoming& upcoming);

  // out [cols] = sums in the order of columns; cols may end, and sums begin, at any multiple of kDownStrip.
  void (*order_sums)(int64_t cols, const float* sums, float* out);
};

struct Isa {
  const char* name;

  FormatKernels formats[kNumFormats];
  const FormatKernels& of(Quant quant) const { return formats[static_cast<int>(quant)]; }

  // Fills q, scale and offsets of `row` from row.x, but for the padding. A block with a NaN or an infinity gets the scale NaN, so that its
  // outputs are NaN; a block under 1e-30 everywhere counts as zero.
  void (*quantize_activations)(int64_t cols, const ActivationRow& row);

  // up [n] becomes activation(gate) * up or, where `gate` is null, activation(up); n is a multiple of 16. `clamp` is
  // clamped_swiglu's, which has a gate.
  void (*activate)(Activation activation, const Clamp& clamp, const float* gate, int64_t n, float* up);

  // Of `rows` gates, at most kChunkRows and a multiple of 16, of each token [tokens, kChunkRows]: live[t] has a bit for
  // each that is above zero, or NaN; the others become zero.
  void (*find_live)(float* gates, int64_t rows, int64_t tokens, uint64_t* live);

  // to += from; n is a multiple of 16.
  void (*add_sums)(float* to, const float* from, int64_t n);

  // Prefetches the next `n` upcoming rows.
  void (*prefetch_rows)(Upcoming& upcoming, int64_t n);

  // One position's key and value of one head into lane `lane` of their groups (KvHead). q8_0 rounds as ggml's vector
  // code does, amax / 127 and to nearest even; a block with a NaN or an infinity gets the scale NaN.
  void (*kv_store)(Quant quant, const float* k, const float* v, int64_t head_dim, int64_t lane, uint8_t* key_group,
                   uint8_t* value_group);

  // Attention of one unit: its queries once, then splits [begin, end) of positions, each into a state of its own, and
  // their sum in ascending order, begun with {-inf, 0, 0} or, with a sink, {sink, 1, 0}.
  void (*prepare_queries)(const AttentionUnit& unit, const AttentionScratch& scratch);
  void (*attend_split)(const AttentionUnit& unit, int64_t begin, int64_t end, const AttentionScratch& scratch,
                       const SoftmaxState& split);
  void (*merge_split)(int64_t queries, int64_t dim, const SoftmaxState& split, const SoftmaxState& total);

  // x [n] becomes cap * tanh(x / cap).
  void (*softcap)(float* x, int64_t n, float cap);

  // weights[i] = 2^(kWeightBits + y), y = (logits[i] - largest) * scale <= 0 on a grid of 2^-32, rounded to a whole
  // number; 0 for NaN and -inf. Returns their sum. The same on every instruction set.
  uint64_t (*exp_weights)(const float* logits, int64_t n, double largest, double scale, uint64_t* weights);

  // Reads all bytes, a multiple of 256, and returns a mix of them.
  uint64_t (*mix_bytes)(const uint8_t* data, int64_t bytes);

  // kRoundVectors * 16 multiplications and as many additions a round, in registers: arithmetic without memory.
  float (*multiply_add)(int64_t rounds);
  int32_t (*multiply_add_int8)(int64_t rounds);  // four times as many
};

int64_t down_scratch_bytes(Quant quant, int64_t cols, int64_t tokens);

inline int64_t lowest_bit(uint64_t bits) {  // bits != 0
#if defined(__GNUC__) || defined(__clang__)
  return __builtin_ctzll(bits);
#else
  int64_t n = 0;
  for (; (bits & 1) == 0; bits >>= 1) ++n;
  return n;
#endif
}

inline int64_t count_bits(uint64_t bits) {
  int64_t n = 0;
  for (; bits != 0; bits &= bits - 1) ++n;
  return n;
}

// Scratch bytes of one token's prepared activations: none, unless `quantized`.
int64_t activation_bytes(bool quantized, int64_t cols);
// Where they lie in that scratch, with zeros in the padding; the rest is still to be filled, x set.
ActivationRow place_activations(bool quantized, int64_t cols, uint8_t* scratch);
// Columns of a quantised row from `first` on, a multiple of 32, to be filled from x.
ActivationRow columns_from(const ActivationRow& row, int64_t first, const float* x);
ActivationRow prepare_activations(const Isa& isa, bool quantized, int64_t cols, const float* x, uint8_t* scratch);

const Isa& isa_portable();
#if SMALLTHINKER_X86
const Isa& isa_avx2();
const Isa& isa_avx512();
#endif
#if SMALLTHINKER_COMPILES_AVXVNNI
const Isa& isa_avx2vnni();
#endif
#if SMALLTHINKER_NEON
const Isa& isa_neon();
#endif

// The instruction sets that this build has, best last; a CPU may lack some.
std::vector<const Isa*> built_isas();
// The instruction sets that this CPU can run, best last.
std::vector<const Isa*> available_isas();
// The best one for an empty name. Throws std::invalid_argument for a name that is unknown or that this CPU can't run.
const Isa& find_isa(const std::string& name);

}  // namespace smallthinker
