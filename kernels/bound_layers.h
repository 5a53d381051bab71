// Python objects that hold a layer's weights and caches: checked when they are made, so that a call checks only what
// changes from token to token.
#pragma once

#include <pybind11/stl.h>

#include <mutex>
#include <string>
#include <vector>

#include "checks.h"
#include "thread_pool.h"
#include "timings.h"

namespace smallthinker {

// The routers of all layers, for one token; checked once.
class BoundTokenRouter {
 public:
  BoundTokenRouter(ThreadPool& pool, const std::vector<py::array>& data, int64_t experts, int64_t dim, int64_t k,
                   const std::string& gating)
      : pool_(pool), kept_(data), k_(k), gating_(parse_gating(gating, k, experts)) {
    check_matrix(Quant::f32, experts, dim);
    for (const py::array& matrix : kept_) {
      const uint8_t* bytes = packed(matrix, "data", packed_bytes(Quant::f32, Layout::tiles, experts, dim));
      matrices_.push_back({Quant::f32, bytes, experts, dim});
    }
  }

  std::vector<int32_t> route(int64_t layer, const py::array& x, py::array& weights) {
    if (layer < 0 || layer >= static_cast<int64_t>(matrices_.size())) {
      fail("layer: expected 0 to ", matrices_.size() - 1, ", found ", layer);
    }
    const Matrix& matrix = matrices_[static_cast<size_t>(layer)];
    const float* from = input<float>(x, "x", {1, matrix.cols});
    float* to_weights = output<float>(weights, "weights", {1, k_});
    std::vector<int32_t> ids(static_cast<size_t>(k_));
    py::gil_scoped_release unlocked;
    Timed timed(pool_.timings(), "router");
    router(pool_, matrix, from, 1, k_, gating_, ids.data(), to_weights);
    return ids;
  }

 private:
  ThreadPool& pool_;
  const std::vector<py::array> kept_;
  const int64_t k_;
  const Gating gating_;
  std::vector<Matrix> matrices_;
};

// The weights and the KV cache of one layer, checked once.
class BoundAttentionLayer {
 public:
  BoundAttentionLayer(ThreadPool& pool, const std::string& quant, const py::array& input_norm, const py::array& q,
                      const py::array& k, const py::array& v, const py::array& o, const py::array& post_norm,
                      const std::string& kv_quant, py::array& keys, py::array& values, int64_t heads, int64_t head_dim,
                      float eps, bool use_rope, int64_t window)
      : pool_(pool), kept_{input_norm, q, k, v, o, post_norm, keys, values} {
    const int64_t dim = input_norm.size();
    layer_.input_norm = input<float>(input_norm, "input_norm", {-1});
    layer_.post_norm = input<float>(post_norm, "post_norm", {dim});
    layer_.cache = check_kv_cache(kv_quant, keys, values, head_dim);
    output<uint8_t>(keys, "keys", {-1, -1, -1});
    output<uint8_t>(values, "values", {-1, -1, -1});
    check_dim("heads", heads);
    check_attention(layer_.cache, heads, window);
    if (head_dim % 2 != 0) fail("head_dim: expected an even number, found ", head_dim);
    const auto matrix = [&](const py::array& data, const char* name, int64_t rows, int64_t cols) {
      const Quant format = parse_quant(quant);
      check_matrix(format, rows, cols);
      return Matrix{format, packed(data, name, packed_bytes(format, Layout::tiles, rows, cols)), rows, cols};
    };
    layer_.q = matrix(q, "q", heads * head_dim, dim);
    layer_.k = matrix(k, "k", layer_.cache.kv_heads * head_dim, dim);
    layer_.v = matrix(v, "v", layer_.cache.kv_heads * head_dim, dim);
    layer_.o = matrix(o, "o", dim, heads * head_dim);
    layer_.eps = eps;
    layer_.use_rope = use_rope;
    layer_.window = window;
  }

  void forward(py::array& x, int64_t start, const py::array& cos, const py::array& sin, py::array& normed) {
    float* to = output<float>(x, "x", {-1, layer_.o.rows});
    const int64_t tokens = x.shape(0), half = layer_.cache.head_dim / 2;
    const float* c = input<float>(cos, "cos", {tokens, half});
    const float* s = input<float>(sin, "sin", {tokens, half});
    float* norm = output<float>(normed, "normed", {tokens, layer_.o.rows});
    check_disjoint(normed, x, "x");
    check_start(start, tokens);
    check_capacity(layer_.cache, start, tokens, layer_.window);
    if (tokens == 0) return;
    py::gil_scoped_release unlocked;
    attention_layer(pool_, layer_, to, tokens, start, c, s, norm);
  }

 private:
  ThreadPool& pool_;
  std::vector<py::array> kept_;  // whose memory layer_ points to
  AttentionLayer layer_{};
};

// All experts of one token, which are in slots; checked once.
class BoundTokenExperts {
 public:
  BoundTokenExperts(ThreadPool& pool, const std::string& quant, int64_t hidden, int64_t ffn, int64_t k, const py::array& slots)
      : pool_(pool), kept_(slots) {
    check_experts_shape(hidden, ffn);
    check_dim("k", k);
    call_.quant = parse_quant(quant);
    call_.hidden = hidden;
    call_.ffn = ffn;
    call_.tokens = 1;
    call_.n_experts = call_.k = k;
    check_slots(slots, call_);
    slot_ids_.resize(static_cast<size_t>(k));
    contributions_.resize(static_cast<size_t>(k * hidden));
    for (int32_t i = 0; i <= k; ++i) counting_.push_back(i);
    call_.slot_ids = slot_ids_.data();
    call_.offsets = call_.pairs = counting_.data();
    call_.out = contributions_.data();
  }

  int64_t add(py::array& x, const py::array& normed, const std::vector<int32_t>& slots, const py::array& weights) {
    float* to = output<float>(x, "x", {1, call_.hidden});
    const float* from = input<float>(normed, "normed", {1, call_.hidden});
    const float* w = input<float>(weights, "weights", {1, call_.k});
    if (slots.size() != slot_ids_.size()) fail("slots: expected ", call_.k, " of them, found ", slots.size());
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < slots.size(); ++i) {
      check_slot("slots", static_cast<int64_t>(i), slots[i], kept_.shape(0));
      slot_ids_[i] = slots[i];
    }
    call_.x = from;
    py::gil_scoped_release unlocked;
    const int64_t live = [&] {
      Timed timed(pool_.timings(), "experts");
      return experts(pool_, call_);
    }();
    Timed timed(pool_.timings(), "combine");
    combine(pool_, to, contributions_.data(), w, 1, call_.k, call_.hidden);
    return live;
  }

 private:
  ThreadPool& pool_;
  const py::array kept_;
  ExpertCall call_{};
  std::vector<int32_t> slot_ids_, counting_;
  std::vector<float> contributions_;
  std::mutex mutex_;
};

}  // namespace smallthinker
