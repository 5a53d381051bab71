// The feed-forward network beside a layer's experts that every token uses. Its matrices lie apart, as those of attention
// do, so it is three products and an activation.
#include <cmath>
#include <memory>

#include "kernels.h"
#include "thread_pool.h"

namespace smallthinker {

void shared_ffn(ThreadPool& pool, const SharedFfn& ffn, const float* x, int64_t tokens, float* out) {
  const int64_t width = ffn.up.rows, dim = ffn.down.rows;
  const bool gated = ffn.gate.rows > 0, has_output_gate = ffn.output_gate.rows > 0;
  const int64_t normed = ffn.before.size > 0 ? dim : 0;
  const auto scratch = std::unique_ptr<float[]>(new float[static_cast<size_t>(tokens * (2 * width + 1 + normed))]);
  float* const up = scratch.get();
  float* const gate = up + tokens * width;
  float* const output_gate = gate + tokens * width;
  if (normed > 0) {
    norm(ffn.before, x, tokens, output_gate + tokens);
    x = output_gate + tokens;
  }

  std::vector<Product> products{{ffn.up, up}};
  if (gated) products.push_back({ffn.gate, gate});
  if (has_output_gate) products.push_back({ffn.output_gate, output_gate});
  linear(pool, products, x, tokens);
  {
    ThreadPool::Session session(pool);
    const auto activate = [&](int, int64_t t) {
      session.isa().activate(ffn.activation, {}, gated ? gate + t * width : nullptr, width, up + t * width);
    };
    session.parallel_for(tokens, activate);
  }
  linear(pool, {{ffn.down, out}}, up, tokens);
  for (int64_t t = 0; has_output_gate && t < tokens; ++t) {
    const float share = static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(output_gate[t]))));
    for (int64_t d = 0; d < dim; ++d) out[t * dim + d] *= share;
  }
  if (ffn.after.size > 0) norm(ffn.after, out, tokens, out);
}

}  // namespace smallthinker
