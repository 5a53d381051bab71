// Every kernel that Python can call, on plain pointers that the bindings have checked.
//
// Shape letters: T tokens, E experts, H query heads, K key-value heads, D head size, k experts per token.
//
// A token's result never depends on T, on the other tokens of the call, on the number of threads or on timing: every
// output element is computed by one thread, with the same operations in the same order.
#pragma once

#include <cstdint>
#include <vector>

#include "formats/formats.h"
#include "isa/isa.h"

namespace smallthinker {

class ThreadPool;

// formats/packing/packing.cpp. Some formats can't be made here, only read; only some have the rows layout.
bool can_pack(Quant quant);
void pack(Quant quant, Layout layout, const float* w, int64_t rows, int64_t cols, uint8_t* data);
void unpack(Quant quant, Layout layout, const uint8_t* data, int64_t rows, int64_t cols, float* w);
void unpack_row(Quant quant, Layout layout, const uint8_t* data, int64_t row, int64_t cols, float* w);

// formats/packing/repack.cpp: ggml's blocks of whole rows, as files have them, as `packed_bytes` that mean the same. Bytes
// move, that is all; padding rows are of zero bytes. `rows` may lie anywhere. Returns whether all scales, mins and elements
// are finite.
bool repack(Quant quant, Layout layout, const uint8_t* rows, int64_t n_rows, int64_t cols, uint8_t* packed);

// ops/embed.cpp
void embed(Quant quant, const uint8_t* data, int64_t cols, const int32_t* ids, int64_t tokens, float* out);

// ops/linear.cpp
struct Matrix {  // in the tiles layout
  Quant quant;
  const uint8_t* data;
  int64_t rows, cols;
};
struct Product {  // out [T, weights.rows]
  Matrix weights;
  float* out;
};
// Products of matrices of one width with the same x [T, cols], which is prepared once for all of their formats.
void linear(ThreadPool& pool, const std::vector<Product>& products, const float* x, int64_t tokens);

// ops/head.cpp: rows 16 * g to 16 * g + 15 of every chosen group g, ascending, the same bits as `linear`; others stay.
void linear_groups(ThreadPool& pool, Quant quant, const uint8_t* data, int64_t rows, int64_t cols,
                   const int32_t* groups, int64_t n_groups, const float* x, int64_t tokens, float* out);
struct LogitsEnd {  // softcap * tanh((logit + bias) * scale / softcap); softcap 0 is none
  const float* bias;  // [rows], or null: none
  float scale, softcap;
};
void finish_logits(ThreadPool& pool, const LogitsEnd& how, float* logits, int64_t tokens, int64_t rows);

// ops/norm_rope.cpp
struct Norm {  // of `size` numbers; size 0 is none. Centred: less their mean
  int64_t size = 0;
  float eps = 0.0f;
  bool centred = false;
  const float *weight = nullptr, *bias = nullptr;  // [size], or null: none
};
// out [rows, size], which may be x.
void norm(const Norm& how, const float* x, int64_t rows, float* out);
void norm_or_copy(const Norm& how, const float* x, int64_t rows, int64_t dim, float* out);
// cos and sin [T, pairs] of positions * frequencies, times a factor for each pair.
void rope_angles(const int64_t* positions, int64_t tokens, const double* frequencies, const double* factors, int64_t pairs,
                 float* cos, float* sin);
struct Angles {  // cos and sin [T, pairs] of all rotary positions that layers have, side by side
  const float *cos, *sin;
  int64_t pairs;
};
struct Rotation {  // the first 2 * pairs numbers of a head, by the angles from column `first` on; pairs 0 is none
  int64_t first = 0, pairs = 0;
  bool interleaved = false;  // pairs (2i, 2i + 1), not (i, i + pairs)
};
// x [T, H, D]; angles of token `at` and those after it.
void rope(float* x, const Angles& angles, int64_t at, const Rotation& how, int64_t tokens, int64_t heads, int64_t head_dim);
void add(float* x, const float* y, int64_t n);
void clamp(float* x, int64_t n, float limit);
struct Residual {  // how what a part of a layer gives, y, changes the state: x = (x + scale * norm(y)) * output_scale
  Norm norm;       // or none
  float scale = 1.0f, output_scale = 1.0f;

  bool is_sum() const { return norm.size == 0 && scale == 1.0f && output_scale == 1.0f; }
};
// x, y [rows, dim]; y is norm(y) afterwards.
void add_residual(const Residual& how, float* y, int64_t rows, int64_t dim, float* x);

// ops/route.cpp
enum class Gating { softmax, sigmoid };
// How k experts are chosen of a token's logits [E], and with which weights: by the largest logits, with their softmax or
// sigmoids, divided by the sum of the chosen ones'.
struct Scoring {
  int64_t k;
  Gating gating;
  bool over_all = false;         // a softmax over all experts, where it isn't divided by the sum of the chosen ones'
  bool normalise = true;         // divided by that sum; a softmax over the chosen is, as it is
  const float* bias = nullptr;   // [E], part of the logits or,
  bool bias_chooses = false;     // added to the scores for the choice alone
  int64_t groups = 1, kept_groups = 1;  // only experts of the best groups are chosen
  float scale = 1.0f;                   // of the weights,
  const float* expert_scale = nullptr;  // and each expert's own [E]
  float logit_scale = 1.0f;             // of the product with the router's matrix
};
// LOSSY, see lossy_routing.py: but for a token's best expert, those in no slot are chosen as if their scores were lower by
// `margin` times the span of its scores. Weights are of the true ones.
struct Preference {
  const int32_t* slot_of;  // [E], -1: in none
  float margin;
  int64_t* replaced;  // becomes more by the experts that would not have been chosen
};
void route(const float* logits, int64_t tokens, int64_t experts, const Scoring& how, int32_t* ids, float* weights,
           const Preference* prefers = nullptr);
// The same from x [T, d] and the router's matrix.
void router(ThreadPool& pool, const Matrix& weights, const float* x, int64_t tokens, const Scoring& how, int32_t* ids,
            float* expert_weights, const Preference* prefers = nullptr);

// ops/attention.cpp
struct KvCache {  // of one layer; isa.h (KvHead) says how a head lies in it
  Quant quant;    // f16 or q8_0, head_dim a multiple of 32 then
  int64_t kv_heads, capacity, head_dim;  // capacity in positions, a multiple of 16
  uint8_t *keys, *values;                // [K, capacity * row_bytes]
  float* overflow = nullptr;  // becomes the largest finite number that was beyond the format's range, and is infinite now

  int64_t head_bytes() const { return capacity * row_bytes(quant, head_dim); }
};
void kv_append(ThreadPool& pool, const float* k, const float* v, int64_t tokens, const KvCache& cache, int64_t start);
void attention(ThreadPool& pool, const float* q, int64_t tokens, int64_t heads, const KvCache& cache, int64_t start,
               const Scores& scores, float* out);

// ops/attention_layer.cpp
struct Projection {  // a product, then the bias, then the norm
  Matrix weights;
  const float* bias = nullptr;  // [rows], or null: none
  Norm norm;                    // of each head, of the whole row, or none
};
struct Growth {  // queries times 1 + beta ln(1 + floor((position + offset) / every)); beta 0 is none
  double beta = 0.0;
  int64_t every = 1, offset = 0;
};
struct AttentionLayer {
  Norm input_norm, post_norm;  // or none
  bool is_parallel;            // the experts take what the projections take
  Projection q, k, v, o;       // v without weights: k's product, before its norm; k without: what the cache holds
  float clip;                  // q, k and v stay within +-clip; 0: anywhere
  Rotation rope;
  Growth growth;
  Scores scores;
  int64_t head_dim;
  Residual residual;
};
struct Span {  // consecutive tokens of one sequence
  KvCache cache;
  int64_t start, tokens;
};
// x [T, d] += o(attention(q, k, v of input_norm(x))), as `residual` has it; normed [T, d] = post_norm of the sum. The
// tokens are those of the spans, one after the other; each attends to its own span's cache.
void attention_layer(ThreadPool& pool, const AttentionLayer& layer, float* x, const std::vector<Span>& spans,
                     const Angles& angles, float* normed);

// ops/ffn.cpp
struct ExpertCall {
  FfnShape shape;
  const float* x;           // [T, hidden]
  int64_t tokens;
  const uint8_t* slots;     // [n_slots, record_bytes]
  int64_t record_bytes;
  const int32_t* slot_ids;  // [n_experts]
  const int32_t* offsets;   // [n_experts + 1] into pairs
  const int32_t* pairs;     // token * k + place among the token's experts
  int64_t n_experts, k;
  float* out;               // [T * k, hidden]
};
// out of every pair, by the kernel for the network's shape. Returns how many neurons were computed, over all pairs.
int64_t experts(ThreadPool& pool, const ExpertCall& call);
// x [T, dim] and what is summed, as `residual` has it: weights [T, k] * contributions [T * k, dim] by rank, their sum
// through the norm `of_experts` if there is one, then what the shared network gives [T, dim], where there is one.
void combine(ThreadPool& pool, float* x, const float* contributions, const float* weights, const float* shared,
             int64_t tokens, int64_t k, int64_t dim, const Residual& residual, const Norm& of_experts = {});

// ops/ffn_shared.cpp
struct SharedFfn {  // a network that every token uses, of matrices that lie apart
  Activation activation;
  Matrix gate, up, down;  // gate.rows 0: none
  Matrix output_gate;     // [1, d]; rows 0: none
  Norm before, after;     // of what it reads and gives, or none
};
// out [T, d] = down(activation(gate x) * up x), or without a gate down(activation(up x)); times sigmoid(output_gate x).
void shared_ffn(ThreadPool& pool, const SharedFfn& ffn, const float* x, int64_t tokens, float* out);

// ops/input_gate.cpp
struct InputGate {  // what a layer makes of the numbers that it is given of each token
  Activation activation;
  Matrix gate, proj;  // [width, d], [d, width]
  Residual residual;
};
// x [T, d] and proj(activation(gate x) * inputs), as `residual` has it. inputs: `width` numbers every `stride`.
void input_gate(ThreadPool& pool, const InputGate& how, const float* inputs, int64_t stride, int64_t tokens, float* x);

// ops/sample.cpp: the order of tokens is that of their logits, the largest first, ties by lower id. -0 is 0.
constexpr int64_t kMaxLogits = int64_t{1} << 20;  // weights add up to less than 2^63
struct Filters {
  double temperature;  // above 0
  int64_t top_k;       // 1 to n
  double top_p, min_p;
};
// The token that the number `u` in [0, 1) draws, as in _kernels.pyi; -1 when a logit is NaN or all are -inf.
int64_t sample(ThreadPool& pool, const float* logits, int64_t n, const Filters& filters, double u);
// The first k ids of that order.
void top_ids(ThreadPool& pool, const float* logits, int64_t n, int64_t k, int32_t* ids);
// log(sum(exp(logits - their largest))).
double log_sum_exp(ThreadPool& pool, const float* logits, int64_t n);
// Each token in `recent` once: a positive logit is divided by `penalty`, a negative one multiplied; what was finite stays.
void penalize(float* logits, int64_t n, const int32_t* recent, int64_t n_recent, float penalty);

// ops/ceilings.cpp
uint64_t read_memory(ThreadPool& pool, const uint8_t* data, int64_t bytes);
// In f32, or of int8 into int32. Returns how many were done.
int64_t multiply_add(ThreadPool& pool, int64_t multiplications, bool is_int8);

}  // namespace smallthinker
