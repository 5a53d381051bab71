// What a layer makes of its own part of a token's inputs: two small products with a gate between them.
#include <algorithm>
#include <memory>

#include "kernels.h"
#include "thread_pool.h"

namespace smallthinker {

void input_gate(ThreadPool& pool, const InputGate& how, const float* inputs, int64_t stride, int64_t tokens, float* x) {
  const int64_t width = how.gate.rows, dim = how.proj.rows;
  const auto scratch = std::unique_ptr<float[]>(new float[static_cast<size_t>(tokens * (2 * width + dim))]);
  float* const gate = scratch.get();
  float* const inner = gate + tokens * width;
  float* const given = inner + tokens * width;
  linear(pool, {{how.gate, gate}}, x, tokens);
  {
    ThreadPool::Session session(pool);
    const auto activate = [&](int, int64_t t) {
      std::copy_n(inputs + t * stride, width, inner + t * width);
      session.isa().activate(how.activation, {}, gate + t * width, width, inner + t * width);
    };
    session.parallel_for(tokens, activate);
  }
  linear(pool, {{how.proj, given}}, inner, tokens);
  ThreadPool::Session session(pool);
  const auto add = [&](int, int64_t t) { add_residual(how.residual, given + t * dim, 1, dim, x + t * dim); };
  session.parallel_for(tokens, add);
}

}  // namespace smallthinker
