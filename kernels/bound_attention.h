// Python objects that hold a layer's attention and a sequence's cache of it: checked when they are made, so that a call
// checks only what changes from token to token.
#pragma once

#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "checks.h"
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

// The weights of one layer's attention, checked once.
class BoundAttentionLayer {
 public:
  using Quants = std::array<std::string, 4>;  // of q, k, v and o

  BoundAttentionLayer(ThreadPool& pool, const Quants& quants, const py::array& input_norm, const py::array& q,
                      const py::array& k, const py::array& v, const py::array& o, const py::array& post_norm,
                      int64_t heads, int64_t kv_heads, int64_t head_dim, float eps, bool use_rope, int64_t window)
      : pool_(pool), kept_{input_norm, q, k, v, o, post_norm}, kv_heads_(kv_heads) {
    const int64_t dim = input_norm.size();
    layer_.input_norm = input<float>(input_norm, "input_norm", {-1});
    layer_.post_norm = input<float>(post_norm, "post_norm", {dim});
    check_dim("heads", heads);
    check_dim("kv_heads", kv_heads);
    check_dim("head_dim", head_dim);
    check_attention({Quant::f16, kv_heads, 0, head_dim, nullptr, nullptr}, heads, window);
    if (head_dim % 2 != 0) fail("head_dim: expected an even number, found ", head_dim);
    const auto matrix = [](const std::string& quant, const py::array& data, const char* name, int64_t rows, int64_t cols) {
      const Quant format = parse_quant(quant);
      check_matrix(format, rows, cols);
      return Matrix{format, packed(data, name, packed_bytes(format, Layout::tiles, rows, cols)), rows, cols};
    };
    layer_.q = matrix(quants[0], q, "q", heads * head_dim, dim);
    layer_.k = matrix(quants[1], k, "k", kv_heads * head_dim, dim);
    layer_.v = matrix(quants[2], v, "v", kv_heads * head_dim, dim);
    layer_.o = matrix(quants[3], o, "o", dim, heads * head_dim);
    layer_.head_dim = head_dim;
    layer_.eps = eps;
    layer_.use_rope = use_rope;
    layer_.window = window;
  }

  // A span of counts[i] tokens from position starts[i] on for each of caches.
  void forward(py::array& x, const std::vector<const BoundKvLayer*>& caches, const std::vector<int64_t>& starts,
               const std::vector<int64_t>& counts, const py::array& cos, const py::array& sin, py::array& normed) {
    float* to = output<float>(x, "x", {-1, layer_.o.rows});
    const int64_t tokens = x.shape(0), half = layer_.head_dim / 2;
    const float* c = input<float>(cos, "cos", {tokens, half});
    const float* s = input<float>(sin, "sin", {tokens, half});
    float* norm = output<float>(normed, "normed", {tokens, layer_.o.rows});
    check_disjoint(normed, x, "x");
    const std::vector<Span> all = spans(caches, starts, counts, tokens);
    if (tokens == 0) return;
    py::gil_scoped_release unlocked;
    add_to(to, all, c, s, norm);
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
  void add_to(float* x, const std::vector<Span>& spans, const float* cos, const float* sin, float* normed) {
    attention_layer(pool_, layer_, x, spans, cos, sin, normed);
  }
  int64_t dim() const { return layer_.o.rows; }
  int64_t head_dim() const { return layer_.head_dim; }

 private:
  // The i-th of some caches, for `tokens` tokens from position `start` on.
  Span span(const BoundKvLayer* kv, int64_t i, int64_t start, int64_t tokens) const {
    if (kv == nullptr) fail("caches[", i, "]: expected a KvLayer, found None");
    const KvCache& cache = kv->cache();
    if (cache.kv_heads != kv_heads_ || cache.head_dim != layer_.head_dim) {
      fail("caches[", i, "]: expected ", kv_heads_, " heads of ", layer_.head_dim, ", found ", cache.kv_heads, " of ",
           cache.head_dim);
    }
    check_start(start, tokens);
    check_capacity(cache, start, tokens, layer_.window);
    return {cache, start, tokens};
  }

  ThreadPool& pool_;
  std::vector<py::array> kept_;  // whose memory layer_ points to
  const int64_t kv_heads_;
  AttentionLayer layer_{};
};

}  // namespace smallthinker
