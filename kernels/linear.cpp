// Dense matrix products: out = x @ W.T with W in the tiles layout.
#include <algorithm>

#include "kernels.h"
#include "thread_pool.h"

namespace smallthinker {

void linear(ThreadPool& pool, Quant quant, const uint8_t* data, int64_t rows, int64_t cols, const float* x,
            int64_t tokens, float* out) {
  ThreadPool::Session session(pool);
  const Isa& isa = session.isa();
  const int64_t row_scratch = activation_bytes(quant, cols);
  Scratch<uint8_t> quantized(tokens * row_scratch);
  Scratch<ActivationRow> activations(tokens);
  session.allocate(quantized, activations);

  const auto prepare = [&](int, int64_t t) {
    activations[t] = place_activations(quant, cols, x + t * cols, quantized.data() + t * row_scratch);
    if (is_block_quantized(quant)) isa.quantize_activations(quant, cols, activations[t]);
  };
  session.parallel_for(tokens, prepare);

  // Several chunks a thread even out a core that is shared with other processes. A chunk of four groups lets f32 and
  // f16 products run side by side; a smaller matrix is better spread over the threads.
  const int64_t groups = (rows + kTileRows - 1) / kTileRows;
  int64_t chunk = std::max<int64_t>(1, groups / (session.threads() * 8));
  if (chunk > 4) chunk = round_up(chunk, 4);
  const auto multiply = [&](int, int64_t unit) {
    const int64_t first = unit * chunk * kTileRows;
    const int64_t n = std::min(rows - first, chunk * kTileRows);
    isa.tile_product(quant, data + unit * chunk * group_bytes(quant, cols), n, cols, activations.data(), tokens,
                     out + first, rows);
  };
  session.parallel_for((groups + chunk - 1) / chunk, multiply);
}

}  // namespace smallthinker
