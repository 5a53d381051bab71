// Which experts a token goes to, from its router logits.
#include <cmath>
#include <vector>

#include "kernels.h"

namespace smallthinker {

namespace {
// NaN is below everything, so that k valid ids come out of any logits.
bool is_better(float a, float b) { return a > b || (std::isnan(b) && !std::isnan(a)); }
}  // namespace

void route(const float* logits, int64_t tokens, int64_t experts, int64_t k, Gating gating, int32_t* ids,
           float* weights) {
  std::vector<char> taken(static_cast<size_t>(experts));
  std::vector<double> gates(static_cast<size_t>(k));
  for (int64_t t = 0; t < tokens; ++t, logits += experts, ids += k, weights += k) {
    taken.assign(taken.size(), 0);
    for (int64_t j = 0; j < k; ++j) {
      int64_t best = -1;
      for (int64_t e = 0; e < experts; ++e) {
        if (!taken[static_cast<size_t>(e)] && (best < 0 || is_better(logits[e], logits[best]))) best = e;
      }
      taken[static_cast<size_t>(best)] = 1;
      ids[j] = static_cast<int32_t>(best);
    }
    double sum = 0.0;
    const double largest = logits[ids[0]];
    for (int64_t j = 0; j < k; ++j) {
      const double v = logits[ids[j]];
      gates[static_cast<size_t>(j)] = gating == Gating::softmax ? std::exp(v - largest) : 1.0 / (1.0 + std::exp(-v));
      sum += gates[static_cast<size_t>(j)];
    }
    for (int64_t j = 0; j < k; ++j) weights[j] = static_cast<float>(gates[static_cast<size_t>(j)] / sum);
  }
}

void router(ThreadPool& pool, const Matrix& weights, const float* x, int64_t tokens, int64_t k, Gating gating, int32_t* ids,
            float* expert_weights) {
  std::vector<float> logits(static_cast<size_t>(tokens * weights.rows));
  linear(pool, {{weights, logits.data()}}, x, tokens);
  route(logits.data(), tokens, weights.rows, k, gating, ids, expert_weights);
}

}  // namespace smallthinker
