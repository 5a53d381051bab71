// The attention half of a layer in one call: norm, projections, rotary positions, KV cache, attention, output, and the
// norm that the experts want. What a layer doesn't have is not gone through the tokens for. A decode step has a few microseconds of work between any two of these, and each call from
// Python costs as much. Tokens of several sequences share a call: the weights are read once, only the caches differ.
#include <algorithm>
#include <cmath>
#include <memory>

#include "kernels.h"
#include "thread_pool.h"
#include "timings.h"

namespace smallthinker {

namespace {

constexpr int64_t kTokensAtOnce = 8;  // of the elementwise work

template <class Body>
void for_tokens(ThreadPool& pool, int64_t tokens, const Body& body) {
  ThreadPool::Session session(pool);
  const auto unit = [&](int, int64_t at) {
    const int64_t first = at * kTokensAtOnce;
    body(first, std::min(kTokensAtOnce, tokens - first));
  };
  session.parallel_for((tokens + kTokensAtOnce - 1) / kTokensAtOnce, unit);
}

// y [T, rows]
void add_bias_and_norm(const Projection& projection, float* y, int64_t tokens) {
  const int64_t rows = projection.weights.rows;
  if (projection.bias != nullptr) {
    for (int64_t t = 0; t < tokens; ++t) add(y + t * rows, projection.bias, rows);
  }
  if (projection.norm.size > 0) norm(projection.norm, y, tokens * rows / projection.norm.size, y);
}

bool changes_qkv(const AttentionLayer& layer) {
  if (layer.rope.pairs > 0 || layer.clip > 0.0f || layer.v.weights.data == nullptr) return true;
  const auto changes = [](const Projection& projection) { return projection.bias != nullptr || projection.norm.size > 0; };
  return changes(layer.q) || changes(layer.k) || changes(layer.v);
}

// q [tokens, dim] from position `start` on.
void grow(const Growth& how, float* q, int64_t start, int64_t tokens, int64_t dim) {
  for (int64_t t = 0; t < tokens; ++t, q += dim) {
    const double steps = static_cast<double>((start + t + how.offset) / how.every);
    const float factor = static_cast<float>(1.0 + how.beta * std::log1p(steps));
    for (int64_t i = 0; i < dim; ++i) q[i] *= factor;
  }
}

}  // namespace

void attention_layer(ThreadPool& pool, const AttentionLayer& layer, float* x, const std::vector<Span>& spans,
                     const Angles& angles, float* normed) {
  int64_t tokens = 0;
  for (const Span& span : spans) tokens += span.tokens;
  const int64_t dim = layer.o.weights.rows, head_dim = layer.head_dim;
  const int64_t q_dim = layer.q.weights.rows, k_dim = layer.k.weights.rows;
  const auto scratch = std::unique_ptr<float[]>(new float[static_cast<size_t>(tokens * (2 * q_dim + 2 * k_dim + dim))]);
  float* const q = scratch.get();
  float* const k = q + tokens * q_dim;
  float* const v = k + tokens * k_dim;
  float* const attended = v + tokens * k_dim;
  float* const out = attended + tokens * q_dim;

  const auto timed = [&](const char* name, const auto& step) {
    Timed timer(pool.timings(), name);
    step();
  };
  timed("norms", [&] {
    for_tokens(pool, tokens, [&](int64_t t, int64_t n) {
      norm_or_copy(layer.input_norm, x + t * dim, n, dim, normed + t * dim);
    });
  });
  std::vector<Product> products{{layer.q.weights, q}};
  const bool has_keys = layer.k.weights.data != nullptr;
  if (has_keys) products.push_back({layer.k.weights, k});
  const bool has_values = layer.v.weights.data != nullptr;
  if (has_values) products.push_back({layer.v.weights, v});
  timed("qkv_proj", [&] { linear(pool, products, normed, tokens); });
  if (changes_qkv(layer)) {
    const auto change = [&](const Projection& projection, float* y, int64_t t, int64_t n, const Rotation& rotation) {
      const int64_t rows = projection.weights.rows;
      y += t * rows;
      add_bias_and_norm(projection, y, n);
      if (layer.clip > 0.0f) clamp(y, n * rows, layer.clip);
      rope(y, angles, t, rotation, n, rows / head_dim, head_dim);
    };
    timed("rope", [&] {
      for_tokens(pool, tokens, [&](int64_t t, int64_t n) {
        change(layer.q, q, t, n, layer.rope);
        if (!has_keys) return;
        if (!has_values) std::copy_n(k + t * k_dim, n * k_dim, v + t * k_dim);
        change(layer.k, k, t, n, layer.rope);
        change(layer.v, v, t, n, {});
      });
    });
  }
  int64_t at = 0;
  for (const Span& span : spans) {
    if (layer.growth.beta != 0.0) grow(layer.growth, q + at * q_dim, span.start, span.tokens, q_dim);
    if (has_keys) timed("kv_append", [&] { kv_append(pool, k + at * k_dim, v + at * k_dim, span.tokens, span.cache, span.start); });
    timed("attention", [&] {
      attention(pool, q + at * q_dim, span.tokens, q_dim / head_dim, span.cache, span.start, layer.scores,
                attended + at * q_dim);
    });
    at += span.tokens;
  }
  timed("o_proj", [&] { linear(pool, {{layer.o.weights, out}}, attended, tokens); });
  timed("norms", [&] {
    for_tokens(pool, tokens, [&](int64_t t, int64_t n) {
      add_bias_and_norm(layer.o, out + t * dim, n);
      add_residual(layer.residual, out + t * dim, n, dim, x + t * dim);
      if (!layer.is_parallel) norm_or_copy(layer.post_norm, x + t * dim, n, dim, normed + t * dim);
    });
  });
}

}  // namespace smallthinker
