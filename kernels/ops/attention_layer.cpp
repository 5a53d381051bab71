// The attention half of a layer in one call: norm, projections, rotary positions, KV cache, attention, output, and the
// norm that the experts want. A decode step has a few microseconds of work between any two of these, and each call from
// Python costs as much. Tokens of several sequences share a call: the weights are read once, only the caches differ.
#include <algorithm>
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

}  // namespace

void attention_layer(ThreadPool& pool, const AttentionLayer& layer, float* x, const std::vector<Span>& spans,
                     const float* cos, const float* sin, float* normed) {
  int64_t tokens = 0;
  for (const Span& span : spans) tokens += span.tokens;
  const int64_t dim = layer.o.rows, head_dim = layer.head_dim, q_dim = layer.q.rows, k_dim = layer.k.rows;
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
      rmsnorm(x + t * dim, layer.input_norm, layer.eps, n, dim, normed + t * dim);
    });
  });
  timed("qkv_proj", [&] { linear(pool, {{layer.q, q}, {layer.k, k}, {layer.v, v}}, normed, tokens); });
  if (layer.use_rope) {
    timed("rope", [&] {
      for_tokens(pool, tokens, [&](int64_t t, int64_t n) {
        const float* const c = cos + t * head_dim / 2;
        const float* const s = sin + t * head_dim / 2;
        rope(q + t * q_dim, c, s, n, q_dim / head_dim, head_dim);
        rope(k + t * k_dim, c, s, n, k_dim / head_dim, head_dim);
      });
    });
  }
  int64_t at = 0;
  for (const Span& span : spans) {
    timed("kv_append", [&] { kv_append(pool, k + at * k_dim, v + at * k_dim, span.tokens, span.cache, span.start); });
    timed("attention", [&] {
      attention(pool, q + at * q_dim, span.tokens, q_dim / head_dim, span.cache, span.start, layer.window,
                attended + at * q_dim);
    });
    at += span.tokens;
  }
  timed("o_proj", [&] { linear(pool, {{layer.o, out}}, attended, tokens); });
  timed("norms", [&] {
    for_tokens(pool, tokens, [&](int64_t t, int64_t n) {
      add(x + t * dim, out + t * dim, n * dim);
      rmsnorm(x + t * dim, layer.post_norm, layer.eps, n, dim, normed + t * dim);
    });
  });
}

}  // namespace smallthinker
