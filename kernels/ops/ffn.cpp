// The feed-forward network of one layer: which kernel computes it, and the sum of what its experts give a token.
#include "ops/ffn.h"

#include <algorithm>

namespace smallthinker {

int64_t experts(ThreadPool& pool, const ExpertCall& call) {
  return is_sparse(call.shape) ? experts_sparse(pool, call) : experts_dense(pool, call);
}

void combine(ThreadPool& pool, float* x, const float* contributions, const float* weights, const float* shared,
             int64_t tokens, int64_t k, int64_t dim, const Residual& residual, const Norm& of_experts) {
  ThreadPool::Session session(pool);
  const bool is_sum = residual.is_sum() && of_experts.size == 0;
  Scratch<float> sums(is_sum ? 0 : session.threads() * dim);
  if (!is_sum) session.allocate(sums);
  const auto add_token = [&](int worker, int64_t t) {
    float* const to = is_sum ? x + t * dim : sums.data() + worker * dim;
    if (!is_sum) std::fill_n(to, dim, 0.0f);
    for (int64_t j = 0; j < k; ++j) {
      const float weight = weights[t * k + j];
      const float* const contribution = contributions + (t * k + j) * dim;
      for (int64_t d = 0; d < dim; ++d) to[d] += weight * contribution[d];
    }
    if (of_experts.size > 0) norm(of_experts, to, 1, to);
    if (shared != nullptr) add(to, shared + t * dim, dim);
    if (!is_sum) add_residual(residual, to, 1, dim, x + t * dim);
  };
  session.parallel_for(tokens, add_token);
}

}  // namespace smallthinker
