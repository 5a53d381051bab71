// Python objects that hold a layer's weights and caches: checked when they are made, so that a call checks only what
// changes from token to token.
#pragma once

#include <pybind11/stl.h>

#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "checks.h"
#include "thread_pool.h"
#include "timings.h"

namespace smallthinker {

// The routers of all layers, for the next tokens of one or a few sequences, and what guesses instead of them from the
// state within an earlier layer; checked once.
class BoundTokenRouter {
 public:
  // (the layer whose state is taken, the layer guessed for) -> a matrix in q8_0. Source kFinal is the final state of the
  // token before.
  using Predictors = std::map<std::pair<int64_t, int64_t>, py::array>;

  BoundTokenRouter(ThreadPool& pool, const std::vector<py::array>& data, int64_t experts, int64_t dim, int64_t k,
                   const std::string& gating, const Predictors& predictors)
      : pool_(pool), kept_(data), kept_predictors_(predictors), experts_(experts), dim_(dim), k_(k),
        gating_(parse_gating(gating, k, experts)) {
    check_matrix(Quant::f32, experts, dim);
    for (const py::array& matrix : kept_) {
      const uint8_t* bytes = packed(matrix, "data", packed_bytes(Quant::f32, Layout::tiles, experts, dim));
      matrices_.push_back({Quant::f32, bytes, experts, dim});
    }
    if (!predictors.empty()) check_matrix(Quant::q8_0, experts, dim);
    for (const auto& [pair, matrix] : kept_predictors_) {
      at("predictors", pair.second);
      if (pair.first != kFinal) at("predictors", pair.first);
      const uint8_t* bytes = packed(matrix, "predictors", packed_bytes(Quant::q8_0, Layout::tiles, experts, dim));
      predictors_[pair] = {Quant::q8_0, bytes, experts, dim};
    }
  }

  // The ids of `layer`, best first.
  std::vector<int32_t> route(int64_t layer, const py::array& x, py::array& weights) {
    const float* from = input<float>(x, "x", {1, dim_});
    float* to_weights = output<float>(weights, "weights", {1, k_});
    Answers answers(1, experts_, k_, 1);
    answers.add(at("layer", layer), 0);
    compute(answers, from, 1, to_weights);
    return std::move(answers.ids[0]);
  }

  // Of several tokens: the distinct experts of `layer`, ascending, and the pairs token * k + rank of each.
  struct Routes {
    std::vector<int32_t> experts;
    std::vector<std::vector<int32_t>> pairs;
  };
  Routes route_several(int64_t layer, const py::array& x, py::array& weights) {
    const float* from = input<float>(x, "x", {-1, dim_});
    const int64_t tokens = x.shape(0);
    float* to_weights = output<float>(weights, "weights", {tokens, k_});
    Answers answers(1, experts_, k_, tokens);
    answers.add(at("layer", layer), 0);
    compute(answers, from, tokens, to_weights);
    std::vector<std::vector<int32_t>> pairs_of(static_cast<size_t>(experts_));
    for (size_t pair = 0; pair < answers.ids[0].size(); ++pair) {
      pairs_of[static_cast<size_t>(answers.ids[0][pair])].push_back(static_cast<int32_t>(pair));
    }
    Routes routes;
    for (size_t expert = 0; expert < pairs_of.size(); ++expert) {
      if (pairs_of[expert].empty()) continue;
      routes.experts.push_back(static_cast<int32_t>(expert));
      routes.pairs.push_back(std::move(pairs_of[expert]));
    }
    return routes;
  }

  // For who has checked the arguments and let go of the GIL: `route` of one token into ids [k] and weights [k], and
  // `guess` of one target into ids.
  void choose(int64_t layer, const float* x, int32_t* ids, float* weights) {
    choose_by(matrices_[static_cast<size_t>(layer)], x, ids, weights);
  }
  void guess_one(int64_t source, int64_t target, const float* x, int32_t* ids) {
    const auto predictor = predictors_.find({source, target});
    std::vector<float> unused(static_cast<size_t>(k_));
    choose_by(predictor != predictors_.end() ? predictor->second : matrices_[static_cast<size_t>(target)], x, ids,
              unused.data());
  }
  int64_t layers() const { return static_cast<int64_t>(matrices_.size()); }
  int64_t experts() const { return experts_; }
  int64_t dim() const { return dim_; }
  int64_t k() const { return k_; }

  // What the layers `targets` would choose for x, best first: as their predictors for `source` say or, without one, as
  // their own routers do of the same x.
  std::vector<std::vector<int32_t>> guess(int64_t source, const py::array& x, const std::vector<int64_t>& targets) {
    return guesses(source, x, 1, targets).ids;
  }

  // The same of several tokens: of each target its distinct experts, by the best rank that a token gives them, and these
  // ranks.
  using Ranked = std::pair<std::vector<int32_t>, std::vector<int32_t>>;
  std::vector<Ranked> guess_several(int64_t source, const py::array& x, const std::vector<int64_t>& targets) {
    const int64_t tokens = x.ndim() == 2 ? x.shape(0) : -1;
    std::vector<Ranked> ranked;
    for (const std::vector<int32_t>& ids : guesses(source, x, tokens, targets).ids) {
      std::vector<char> is_known(static_cast<size_t>(experts_));
      auto& [experts, ranks] = ranked.emplace_back();
      for (int64_t rank = 0; rank < k_; ++rank) {
        for (int64_t t = 0; t < tokens; ++t) {
          const int32_t expert = ids[static_cast<size_t>(t * k_ + rank)];
          if (std::exchange(is_known[static_cast<size_t>(expert)], char{1}) != 0) continue;
          experts.push_back(expert);
          ranks.push_back(static_cast<int32_t>(rank));
        }
      }
    }
    return ranked;
  }

 private:
  static constexpr int64_t kFinal = -1;

  struct Answers {
    Answers(size_t n, int64_t experts, int64_t k, int64_t tokens)
        : logits(n, std::vector<float>(static_cast<size_t>(tokens * experts))),
          ids(n, std::vector<int32_t>(static_cast<size_t>(tokens * k))) {}
    void add(const Matrix& matrix, size_t place) {
      (matrix.quant == Quant::f32 ? exact : guessed).push_back({matrix, logits[place].data()});
    }
    std::vector<std::vector<float>> logits;  // [tokens, experts] each
    std::vector<std::vector<int32_t>> ids;   // [tokens, k] each
    std::vector<Product> exact, guessed;  // one product of several matrices takes one format
  };

  Answers guesses(int64_t source, const py::array& x, int64_t tokens, const std::vector<int64_t>& targets) {
    const float* from = input<float>(x, "x", {tokens, dim_});
    Answers answers(targets.size(), experts_, k_, tokens);
    for (size_t i = 0; i < targets.size(); ++i) {
      const auto predictor = predictors_.find({source, targets[i]});
      if (predictor == predictors_.end() && source == kFinal) fail("targets: no predictor of layer ", targets[i]);
      answers.add(predictor != predictors_.end() ? predictor->second : at("targets", targets[i]), i);
    }
    compute(answers, from, tokens, nullptr);
    return answers;
  }

  void choose_by(const Matrix& matrix, const float* x, int32_t* ids, float* weights) {
    Timed timed(pool_.timings(), "router");
    std::vector<float> logits(static_cast<size_t>(experts_));
    linear(pool_, {{matrix, logits.data()}}, x, 1);
    smallthinker::route(logits.data(), 1, experts_, k_, gating_, ids, weights);
  }

  // Weights are those of the first answer, if they are wanted.
  void compute(Answers& answers, const float* x, int64_t tokens, float* weights) {
    py::gil_scoped_release unlocked;
    Timed timed(pool_.timings(), "router");
    if (!answers.exact.empty()) linear(pool_, answers.exact, x, tokens);
    if (!answers.guessed.empty()) linear(pool_, answers.guessed, x, tokens);
    std::vector<float> unused(static_cast<size_t>(tokens * k_));
    for (size_t i = 0; i < answers.ids.size(); ++i) {
      float* to_weights = i == 0 && weights != nullptr ? weights : unused.data();
      smallthinker::route(answers.logits[i].data(), tokens, experts_, k_, gating_, answers.ids[i].data(), to_weights);
    }
  }

  const Matrix& at(const char* name, int64_t layer) const {
    if (layer < 0 || layer >= static_cast<int64_t>(matrices_.size())) {
      fail(name, ": expected 0 to ", static_cast<int64_t>(matrices_.size()) - 1, ", found ", layer);
    }
    return matrices_[static_cast<size_t>(layer)];
  }

  ThreadPool& pool_;
  const std::vector<py::array> kept_;
  const Predictors kept_predictors_;
  const int64_t experts_, dim_, k_;
  const Gating gating_;
  std::vector<Matrix> matrices_;
  std::map<std::pair<int64_t, int64_t>, Matrix> predictors_;
};

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
  BoundAttentionLayer(ThreadPool& pool, const std::string& quant, const py::array& input_norm, const py::array& q,
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
    const auto matrix = [&](const py::array& data, const char* name, int64_t rows, int64_t cols) {
      const Quant format = parse_quant(quant);
      check_matrix(format, rows, cols);
      return Matrix{format, packed(data, name, packed_bytes(format, Layout::tiles, rows, cols)), rows, cols};
    };
    layer_.q = matrix(q, "q", heads * head_dim, dim);
    layer_.k = matrix(k, "k", kv_heads * head_dim, dim);
    layer_.v = matrix(v, "v", kv_heads * head_dim, dim);
    layer_.o = matrix(o, "o", dim, heads * head_dim);
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
    if (starts.size() != caches.size()) fail("starts: expected as many as caches, ", caches.size(), ", found ", starts.size());
    if (counts.size() != caches.size()) fail("counts: expected as many as caches, ", caches.size(), ", found ", counts.size());
    std::vector<Span> spans;
    int64_t left = tokens;
    for (size_t i = 0; i < caches.size(); ++i) {
      if (counts[i] < 1 || counts[i] > left) fail("counts[", i, "]: expected 1 to ", left, ", found ", counts[i]);
      spans.push_back(span(caches[i], static_cast<int64_t>(i), starts[i], counts[i]));
      for (size_t j = 0; j < i; ++j) {
        if (spans[j].cache.keys == spans[i].cache.keys) fail("caches[", i, "]: is there twice");
      }
      left -= counts[i];
    }
    if (left != 0) fail("counts: expected ", tokens, " tokens in all, found ", tokens - left);
    if (tokens == 0) return;
    py::gil_scoped_release unlocked;
    add_to(to, spans, c, s, norm);
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
    check_capacity(cache, start, tokens, layer_.window);
    return {cache, start, tokens};
  }

  // For who has checked the arguments and let go of the GIL.
  void add_to(float* x, const std::vector<Span>& spans, const float* cos, const float* sin, float* normed) {
    attention_layer(pool_, layer_, x, spans, cos, sin, normed);
  }
  int64_t dim() const { return layer_.o.rows; }
  int64_t head_dim() const { return layer_.head_dim; }

 private:
  ThreadPool& pool_;
  std::vector<py::array> kept_;  // whose memory layer_ points to
  const int64_t kv_heads_;
  AttentionLayer layer_{};
};

// The experts of the next tokens of one or a few sequences, which are in slots; checked once. What a pair (token * k +
// place) contributes is kept until `combine`.
class BoundTokenExperts {
 public:
  using Pairs = std::vector<std::vector<int32_t>>;  // of each expert

  BoundTokenExperts(ThreadPool& pool, const std::string& quant, int64_t hidden, int64_t ffn, int64_t k, const py::array& slots)
      : pool_(pool), kept_(slots) {
    check_experts_shape(hidden, ffn);
    check_dim("k", k);
    call_.quant = parse_quant(quant);
    call_.hidden = hidden;
    call_.ffn = ffn;
    call_.k = k;
    check_slots(slots, call_);
    for (int32_t i = 0; i <= k; ++i) counting_.push_back(i);
  }

  // One token, all of its experts.
  int64_t add(py::array& x, const py::array& normed, const std::vector<int32_t>& slots, const py::array& weights) {
    output<float>(x, "x", {1, call_.hidden});
    input<float>(weights, "weights", {1, call_.k});
    if (static_cast<int64_t>(slots.size()) != call_.k) fail("slots: expected ", call_.k, " of them, found ", slots.size());
    const int64_t live = compute(normed, {counting_.begin(), counting_.end() - 1}, slots);
    combine_all(x, weights);
    return live;
  }

  // One token, some of its experts by their places in the route.
  int64_t compute(const py::array& normed, const std::vector<int32_t>& places, const std::vector<int32_t>& slots) {
    const float* from = input<float>(normed, "normed", {1, call_.hidden});
    if (slots.size() != places.size()) fail("slots: expected as many as places, ", places.size(), ", found ", slots.size());
    if (static_cast<int64_t>(places.size()) > call_.k) fail("places: expected at most ", call_.k, ", found ", places.size());
    for (const int32_t place : places) check_pair("places", place, call_.k);
    return run(from, 1, counting_, places, slots);
  }

  // Several tokens, all of their experts.
  int64_t add_several(py::array& x, const py::array& normed, const std::vector<int32_t>& slots, const Pairs& pairs,
                      const py::array& weights) {
    output<float>(x, "x", {-1, call_.hidden});
    input<float>(normed, "normed", {x.shape(0), call_.hidden});
    input<float>(weights, "weights", {x.shape(0), call_.k});
    const int64_t live = compute_several(normed, pairs, slots);
    combine_all(x, weights);
    return live;
  }

  // Several tokens, some of their experts.
  int64_t compute_several(const py::array& normed, const Pairs& pairs, const std::vector<int32_t>& slots) {
    const float* from = input<float>(normed, "normed", {-1, call_.hidden});
    if (slots.size() != pairs.size()) fail("slots: expected as many as pairs, ", pairs.size(), ", found ", slots.size());
    std::vector<int32_t> offsets{0}, flat;
    for (const auto& of_expert : pairs) {
      for (const int32_t pair : of_expert) check_pair("pairs", pair, normed.shape(0) * call_.k);
      flat.insert(flat.end(), of_expert.begin(), of_expert.end());
      offsets.push_back(static_cast<int32_t>(flat.size()));
    }
    return run(from, normed.shape(0), offsets, flat, slots);
  }

  void combine_all(py::array& x, const py::array& weights) {
    float* to = output<float>(x, "x", {-1, call_.hidden});
    const int64_t tokens = x.shape(0);
    const float* w = input<float>(weights, "weights", {tokens, call_.k});
    py::gil_scoped_release unlocked;  // before the lock, which another thread may hold and want the GIL
    pool_.home().check();  // else the lock may be held for ever
    std::lock_guard<std::mutex> lock(mutex_);
    if (floats(tokens) > contributions_.size()) fail("x: expected at most the tokens that were computed, found ", tokens);
    combine_locked(to, w, tokens);
  }

  // For who has checked the arguments and let go of the GIL: `add` for slots [k].
  int64_t add_to(float* x, const float* normed, const int32_t* slots, const float* weights) {
    pool_.home().check();  // else the lock may be held for ever
    std::lock_guard<std::mutex> lock(mutex_);
    const int64_t live = run_locked(normed, 1, counting_, counting_.data(), slots, call_.k);
    combine_locked(x, weights, 1);
    return live;
  }
  int64_t slots() const { return kept_.shape(0); }
  int64_t hidden() const { return call_.hidden; }
  int64_t k() const { return call_.k; }

 private:
  static void check_pair(const char* name, int64_t pair, int64_t pairs) {
    if (pair < 0 || pair >= pairs) fail(name, ": expected 0 to ", pairs - 1, ", found ", pair);
  }

  size_t floats(int64_t tokens) const { return static_cast<size_t>(tokens * call_.k * call_.hidden); }

  int64_t run(const float* from, int64_t tokens, const std::vector<int32_t>& offsets, const std::vector<int32_t>& pairs,
              const std::vector<int32_t>& slots) {
    for (size_t i = 0; i < slots.size(); ++i) check_slot("slots", static_cast<int64_t>(i), slots[i], kept_.shape(0));
    if (slots.empty()) return 0;
    py::gil_scoped_release unlocked;
    pool_.home().check();  // else the lock may be held for ever
    std::lock_guard<std::mutex> lock(mutex_);
    return run_locked(from, tokens, offsets, pairs.data(), slots.data(), static_cast<int64_t>(slots.size()));
  }

  int64_t run_locked(const float* from, int64_t tokens, const std::vector<int32_t>& offsets, const int32_t* pairs,
                     const int32_t* slots, int64_t n_experts) {
    if (floats(tokens) > contributions_.size()) contributions_.resize(floats(tokens));
    ExpertCall call = call_;
    call.tokens = tokens;
    call.n_experts = n_experts;
    call.slot_ids = slots;
    call.offsets = offsets.data();
    call.pairs = pairs;
    call.x = from;
    call.out = contributions_.data();
    Timed timed(pool_.timings(), "experts");
    return experts(pool_, call);
  }

  void combine_locked(float* x, const float* weights, int64_t tokens) {
    Timed timed(pool_.timings(), "combine");
    combine(pool_, x, contributions_.data(), weights, tokens, call_.k, call_.hidden);
  }

  ThreadPool& pool_;
  const py::array kept_;
  ExpertCall call_{};
  std::vector<int32_t> counting_;  // 0 to k
  std::vector<float> contributions_;
  std::mutex mutex_;
};

}  // namespace smallthinker
