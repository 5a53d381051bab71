// The table of micro-kernels of one instruction set, and the choice between tables at run time.
//
// Every micro-kernel is written once (micro_*.h) over 16-lane vector types (simd_*.h) and compiled once per
// instruction set (isa_*.cpp). Above this header nothing knows which one runs; below it nothing knows threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "formats.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define SMALLTHINKER_X86 1
#else
#define SMALLTHINKER_X86 0
#endif

namespace smallthinker {

// One token's input of a matrix product. f32 and f16 weights read `x`. Block quantised weights read the rest, in strips
// of 128 columns (q4_0) or 64 columns (q8_0), the last one padded with zeros:
//   q      q4_0: the first halves of four blocks, then their second halves, as the nibbles lie; q8_0: as in `x`
//   scale  one a block
//   start  16 int32 a strip, where the integer sums of a strip begin: undoes the unsigned weights' bias. The value of
//          a block is at its first lane (4 or 8 lanes a block), the other lanes are zero
struct ActivationRow {
  const float* x;
  int8_t* q;
  float* scale;
  int32_t* start;
};

// One neuron of an expert that the ReLU let through, and what its row of down is multiplied by.
struct LiveNeuron {
  int32_t row;
  float a;
};

// Queries that share one key-value head, and one block of that head's keys and values in f32, rows padded to 16.
struct AttentionBlock {
  int64_t queries, dim_padded;
  const float* q;            // [queries, dim_padded], already scaled
  const float* k;            // [kKeyBlock, dim_padded]
  const float* v;            // [kKeyBlock, dim_padded]
  const int32_t *begin, *end;  // [queries] keys of the block that a query sees
  float* p;                  // [queries, kKeyBlock] scratch
  float *max, *sum;          // [queries] running maximum and running sum of exponentials
  float* acc;                // [queries, dim_padded] running weighted sum of values
};

constexpr int64_t kLanes = 16;
constexpr int64_t kPrefetchBytes = 4096;  // ahead in a stream; half of it reads q4_0 5 % slower, none 25 %
constexpr int64_t kKeyBlock = 64;  // online softmax steps at multiples of this position, whatever the call's shape

struct Isa {
  const char* name;

  // Fills q, scale and start of `row` from row.x. Quant is q4_0 or q8_0. A block with a NaN or an infinity gets the
  // scale NaN, so that its outputs are NaN; a block under 1e-30 everywhere counts as zero.
  void (*quantize_activations)(Quant quant, int64_t cols, const ActivationRow& row);

  // out[t * out_stride + r] = weight row r . activations t, for `rows` rows of the tiles layout.
  void (*tile_product)(Quant quant, const uint8_t* tiles, int64_t rows, int64_t cols, const ActivationRow* activations,
                       int64_t tokens, float* out, int64_t out_stride);

  // For every row r in [first, last) with a live gate[r - first]: appends {r, gate * (row r . activations)} to `live`.
  // A gate is live when it is above zero, or NaN. Returns how many.
  int64_t (*live_rows)(Quant quant, const uint8_t* rows, int64_t first, int64_t last, int64_t cols, const float* gate,
                       const ActivationRow& activations, LiveNeuron* live);

  // out[c - col_begin] = sum over live neurons, in the order given, of a * weight[row][c]. Column bounds are multiples
  // of 128, but for the matrix's own end.
  void (*sum_rows)(Quant quant, const uint8_t* rows, int64_t cols, int64_t col_begin, int64_t col_end,
                   const LiveNeuron* live, int64_t n_live, float* out);

  // dst[0..n) from f16, zeros up to the next multiple of 16.
  void (*widen_f16)(const uint16_t* src, int64_t n, float* dst);

  // One step of online softmax for every query.
  void (*attend)(const AttentionBlock& block);

  // Reads all bytes, a multiple of 256, and returns a mix of them.
  uint64_t (*mix_bytes)(const uint8_t* data, int64_t bytes);
};

// Scratch bytes of one token's q, scale and start, and their places in it.
int64_t activation_bytes(Quant quant, int64_t cols);
ActivationRow place_activations(Quant quant, int64_t cols, const float* x, uint8_t* scratch);

const Isa& isa_portable();
#if SMALLTHINKER_X86
const Isa& isa_avx2();
const Isa& isa_avx512();
#endif

// The instruction sets that this build has, best last; a CPU may lack some.
std::vector<const Isa*> built_isas();
// The instruction sets that this CPU can run, best last.
std::vector<const Isa*> available_isas();
// The best one for an empty name. Throws std::invalid_argument for a name that is unknown or that this CPU can't run.
const Isa& find_isa(const std::string& name);

}  // namespace smallthinker
