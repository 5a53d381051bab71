// The feed-forward network of one layer: which kernel computes it, and the sum of what its experts give a token.
#include "ops/ffn.h"

namespace smallthinker {

int64_t experts(ThreadPool& pool, const ExpertCall& call) {
  return is_sparse(call.shape) ? experts_sparse(pool, call) : experts_dense(pool, call);
}

void combine(ThreadPool& pool, float* x, const float* contributions, const float* weights, int64_t tokens, int64_t k,
             int64_t dim) {
  ThreadPool::Session session(pool);
  const auto add_token = [&](int, int64_t t) {
    for (int64_t j = 0; j < k; ++j) {
      const float weight = weights[t * k + j];
      const float* const contribution = contributions + (t * k + j) * dim;
      for (int64_t d = 0; d < dim; ++d) x[t * dim + d] += weight * contribution[d];
    }
  };
  session.parallel_for(tokens, add_token);
}

}  // namespace smallthinker
