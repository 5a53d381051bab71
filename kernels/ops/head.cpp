// The LM head beside its product: only chosen groups of 16 rows, where most are known not to matter; and what some models
// make of logits.
#include <algorithm>

#include "kernels.h"
#include "thread_pool.h"

namespace smallthinker {

void linear_groups(ThreadPool& pool, Quant quant, const uint8_t* data, int64_t rows, int64_t cols,
                   const int32_t* groups, int64_t n_groups, const float* x, int64_t tokens, float* out) {
  ThreadPool::Session session(pool);
  const Isa& isa = session.isa();
  const bool quantized = is_block_quantized(quant);
  const int64_t row_scratch = activation_bytes(quantized, cols);
  Scratch<uint8_t> prepared(tokens * row_scratch);
  Scratch<ActivationRow> activations(tokens);
  session.allocate(prepared, activations);

  const auto prepare = [&](int, int64_t t) {
    activations[t] = prepare_activations(isa, quantized, cols, x + t * cols, prepared.data() + t * row_scratch);
  };
  session.parallel_for(tokens, prepare);

  // Neighbours go to the micro-kernel in one call: it reads ahead, and within a run that is what comes next.
  const int64_t chunk = std::max<int64_t>(1, n_groups / (session.threads() * 8));
  const auto multiply = [&](int, int64_t unit) {
    const int64_t end = std::min(n_groups, (unit + 1) * chunk);
    for (int64_t i = unit * chunk, next; i < end; i = next) {
      for (next = i + 1; next < end && groups[next] == groups[next - 1] + 1;) ++next;
      const int64_t first = groups[i] * kTileRows, n = std::min(rows - first, (next - i) * kTileRows);
      isa.of(quant).gemm(data + groups[i] * group_bytes(quant, cols), n, cols, activations.data(), tokens, out + first,
                         rows);
    }
  };
  session.parallel_for((n_groups + chunk - 1) / chunk, multiply);
}

void finish_logits(ThreadPool& pool, const LogitsEnd& how, float* logits, int64_t tokens, int64_t rows) {
  constexpr int64_t kColumnsAtOnce = 4096;
  ThreadPool::Session session(pool);
  const int64_t parts = (rows + kColumnsAtOnce - 1) / kColumnsAtOnce;
  const auto finish = [&](int, int64_t unit) {
    const int64_t first = unit % parts * kColumnsAtOnce, n = std::min(kColumnsAtOnce, rows - first);
    float* const x = logits + unit / parts * rows + first;
    if (how.bias != nullptr) add(x, how.bias + first, n);
    if (how.scale != 1.0f) {
      for (int64_t i = 0; i < n; ++i) x[i] *= how.scale;
    }
    if (how.softcap > 0.0f) session.isa().softcap(x, n, how.softcap);
  };
  session.parallel_for(tokens * parts, finish);
}

}  // namespace smallthinker
