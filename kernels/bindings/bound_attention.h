// Python objects that hold a layer's attention and a sequence's cache of it: checked when they are made, so that a call
// checks only what changes from token to token.
#pragma once

#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bound_norm.h"
#include "thread_pool.h"
#include "timings.h"

namespace smallthinker {

// One sequence's KV cache of one layer, checked once.
class BoundKvLayer {
 public:
  BoundKvLayer(const std::string& quant, py::array& keys, py::array& values, int64_t head_dim)
      : kept_{keys, values}, cache_(check_kv_cache(quant, keys, values, head_dim)) {
    output<uint8_t>(keys, "keys", {-1, -1, -1});
    output<uint8_t>(values, "values", {-1, -1, -1});
    cache_.overflow = &overflow;
  }
  BoundKvLayer(const BoundKvLayer&) = delete;
  BoundKvLayer& operator=(const BoundKvLayer&) = delete;
  const KvCache& cache() const { return cache_; }

  float overflow = 0.0f;  // 0 for none

 private:
  std::vector<py::array> kept_;  // whose memory cache_ points to
  KvCache cache_;
};

// Of [T, P] each: P pairs, at least as many as layers have.
inline Angles check_angles(const py::array& cos, const py::array& sin, int64_t tokens, int64_t needed) {
  const float* c = input<float>(cos, "cos", {tokens, -1});
  const int64_t pairs = cos.shape(1);
  if (pairs < needed) fail("cos: expected at least ", needed, " columns, found ", pairs);
  return {c, input<float>(sin, "sin", {tokens, pairs}), pairs};
}

// The weights of one layer's attention, checked once.
class BoundAttentionLayer {
 public:
  using Quants = std::array<std::string, 4>;  // of q, k, v and o
  using Biases = std::array<std::optional<py::array>, 4>;
  using Norms = std::array<const BoundNorm*, 3>;
  using RopeColumns = std::tuple<int64_t, int64_t, std::string>;  // the first pair's column, numbers of a head, pairing
  using GrowthOf = std::tuple<double, int64_t, int64_t>;          // beta, every, offset
  struct Options {
    std::optional<RopeColumns> rope;
    std::optional<double> scale;
    Biases biases;
    Norms norms;
    float clip, softcap;
    std::optional<py::array> sinks;
    int64_t chunk;
    std::optional<GrowthOf> growth;
    std::optional<BoundResidual> residual;
    bool is_parallel;
  };

  BoundAttentionLayer(ThreadPool& pool, const Quants& quants, const BoundNorm* input_norm, const py::array& q,
                      const std::optional<py::array>& k, const std::optional<py::array>& v, const py::array& o, const BoundNorm* post_norm,
                      int64_t hidden, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t window,
                      const Options& options)
      : pool_(pool), kept_{q, o}, kept_residual_(options.residual), kv_heads_(kv_heads) {
    check_dim("hidden", hidden);
    check_dim("heads", heads);
    check_dim("kv_heads", kv_heads);
    check_dim("head_dim", head_dim);
    check_attention({Quant::f16, kv_heads, 0, head_dim, nullptr, nullptr}, heads, window, options.chunk, options.softcap);
    if (head_dim % 2 != 0) fail("head_dim: expected an even number, found ", head_dim);
    if (!(options.clip >= 0.0f)) fail("clip: expected 0 (none) or more, found ", options.clip);
    layer_.input_norm = kept("input_norm", input_norm, hidden, hidden);
    layer_.post_norm = kept("post_norm", post_norm, hidden, hidden);
    layer_.is_parallel = options.is_parallel;
    layer_.q = {matrix(quants[0], &q, "q", heads * head_dim, hidden)};
    if (v && !k) fail("v: expected None without k, which another layer has");
    layer_.k = {matrix(quants[1], k ? &*k : nullptr, "k", kv_heads * head_dim, hidden)};
    layer_.v = {matrix(quants[2], v ? &*v : nullptr, "v", kv_heads * head_dim, hidden)};
    layer_.o = {matrix(quants[3], &o, "o", hidden, heads * head_dim)};
    for (const std::optional<py::array>* array : {&k, &v, &options.sinks}) {
      if (*array) kept_.push_back(**array);
    }
    for (const std::optional<py::array>& bias : options.biases) {
      if (bias) kept_.push_back(*bias);
    }
    const std::array<std::pair<Projection*, const char*>, 4> projections{
        {{&layer_.q, "q"}, {&layer_.k, "k"}, {&layer_.v, "v"}, {&layer_.o, "o"}}};
    for (size_t i = 0; i < projections.size(); ++i) {
      const auto& [projection, name] = projections[i];
      const int64_t rows = projection->weights.rows;
      projection->bias = BoundNorm::optional_floats(options.biases[i], (std::string("biases: ") + name).c_str(), rows);
      if (i < options.norms.size()) {
        projection->norm = kept((std::string("norms: ") + name).c_str(), options.norms[i], head_dim, rows);
      }
    }
    layer_.clip = options.clip;
    layer_.head_dim = head_dim;
    if (options.residual) layer_.residual = options.residual->residual(hidden);
    layer_.scores.window = window;
    layer_.scores.chunk = options.chunk;
    layer_.scores.scale = static_cast<float>(options.scale.value_or(1.0 / std::sqrt(static_cast<double>(head_dim))));
    layer_.scores.softcap = options.softcap;
    layer_.scores.sinks = BoundNorm::optional_floats(options.sinks, "sinks", heads);
    if (options.rope) {
      const auto& [first, size, pairing] = *options.rope;
      if (first < 0 || first > kLargestDim) fail("rope: expected a column of 0 to ", kLargestDim, ", found ", first);
      if (size < 2 || size > head_dim || size % 2 != 0) fail("rope: expected 2 to ", head_dim, " numbers, even, found ", size);
      layer_.rope = {first, size / 2, is_interleaved(pairing)};
    }
    if (options.growth) {
      const auto& [beta, every, offset] = *options.growth;
      if (every < 1) fail("growth: expected a step every 1 position or more, found ", every);
      if (offset < 0 || offset > kLargestDim) fail("growth: expected an offset of 0 to ", kLargestDim, ", found ", offset);
      layer_.growth = {beta, every, offset};
    }
  }

  // A span of counts[i] tokens from position starts[i] on for each of caches.
  void forward(py::array& x, const std::vector<const BoundKvLayer*>& caches, const std::vector<int64_t>& starts,
               const std::vector<int64_t>& counts, const py::array& cos, const py::array& sin, py::array& normed) {
    float* to = output<float>(x, "x", {-1, dim()});
    const int64_t tokens = x.shape(0);
    const Angles angles = check_angles(cos, sin, tokens, pairs());
    float* norm = output<float>(normed, "normed", {tokens, dim()});
    check_disjoint(normed, x, "x");
    const std::vector<Span> all = spans(caches, starts, counts, tokens);
    if (tokens == 0) return;
    py::gil_scoped_release unlocked;
    add_to(to, all, angles, norm);
  }

  // Checked: counts[i] tokens of caches[i] from position starts[i] on, `tokens` in all.
  std::vector<Span> spans(const std::vector<const BoundKvLayer*>& caches, const std::vector<int64_t>& starts,
                          const std::vector<int64_t>& counts, int64_t tokens) const {
    if (starts.size() != caches.size()) fail("starts: expected as many as caches, ", caches.size(), ", found ", starts.size());
    if (counts.size() != caches.size()) fail("counts: expected as many as caches, ", caches.size(), ", found ", counts.size());
    std::vector<Span> found;
    int64_t left = tokens;
    for (size_t i = 0; i < caches.size(); ++i) {
      if (counts[i] < 1 || counts[i] > left) fail("counts[", i, "]: expected 1 to ", left, ", found ", counts[i]);
      found.push_back(span(caches[i], static_cast<int64_t>(i), starts[i], counts[i]));
      for (size_t j = 0; j < i; ++j) {
        if (found[j].cache.keys == found[i].cache.keys) fail("caches[", i, "]: is there twice");
      }
      left -= counts[i];
    }
    if (left != 0) fail("counts: expected ", tokens, " tokens in all, found ", tokens - left);
    return found;
  }

  // For who has checked the arguments and let go of the GIL.
  void add_to(float* x, const std::vector<Span>& spans, const Angles& angles, float* normed) {
    attention_layer(pool_, layer_, x, spans, angles, normed);
  }
  // normed [T, d] = what the network would read of x if the mixer added nothing.
  void norm_for_ffn(const float* x, int64_t tokens, float* normed) const {
    norm_or_copy(layer_.is_parallel ? layer_.input_norm : layer_.post_norm, x, tokens, dim(), normed);
  }
  int64_t dim() const { return layer_.o.weights.rows; }
  int64_t pairs() const { return layer_.rope.first + layer_.rope.pairs; }  // of angles that it needs

 private:
  // Of `size` numbers or of `whole` rows; none if null.
  Norm kept(const char* name, const BoundNorm* norm, int64_t size, int64_t whole) {
    if (norm == nullptr) return {};
    kept_norms_.push_back(*norm);
    const int64_t found = norm->norm().size;
    if (found != size && found != whole) {
      const std::string other = size == whole ? "" : " or " + std::to_string(whole);
      fail(name, ": expected a size of ", size, other, ", found ", found);
    }
    return norm->norm();
  }

  static Matrix matrix(const std::string& quant, const py::array* data, const char* name, int64_t rows, int64_t cols) {
    const Quant format = parse_quant(quant);
    check_matrix(format, rows, cols);
    const int64_t bytes = packed_bytes(format, Layout::tiles, rows, cols);
    return {format, data == nullptr ? nullptr : packed(*data, name, bytes), rows, cols};
  }

  // The i-th of some caches, for `tokens` tokens from position `start` on.
  Span span(const BoundKvLayer* kv, int64_t i, int64_t start, int64_t tokens) const {
    if (kv == nullptr) fail("caches[", i, "]: expected a KvLayer, found None");
    const KvCache& cache = kv->cache();
    if (cache.kv_heads != kv_heads_ || cache.head_dim != layer_.head_dim) {
      fail("caches[", i, "]: expected ", kv_heads_, " heads of ", layer_.head_dim, ", found ", cache.kv_heads, " of ",
           cache.head_dim);
    }
    check_start(start, tokens);
    check_capacity(cache, start, tokens, layer_.scores.window);
    return {cache, start, tokens};
  }

  ThreadPool& pool_;
  std::vector<py::array> kept_;  // whose memory layer_ points to, as that of these
  std::vector<BoundNorm> kept_norms_;
  const std::optional<BoundResidual> kept_residual_;
  const int64_t kv_heads_;
  AttentionLayer layer_{};
};

}  // namespace smallthinker
