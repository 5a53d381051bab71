// Dense matrix products: out = x @ W.T with W in the tiles layout.
#include <algorithm>

#include "kernels.h"
#include "thread_pool.h"

namespace smallthinker {

void linear(ThreadPool& pool, const std::vector<Product>& products, const float* x, int64_t tokens) {
  ThreadPool::Session session(pool);
  const Isa& isa = session.isa();
  const int64_t cols = products.front().weights.cols;
  const bool quantized = std::any_of(products.begin(), products.end(),
                                     [](const Product& product) { return is_block_quantized(product.weights.quant); });
  const int64_t row_scratch = activation_bytes(quantized, cols);
  Scratch<uint8_t> prepared(tokens * row_scratch);
  Scratch<ActivationRow> activations(tokens);
  session.allocate(prepared, activations);

  const auto prepare = [&](int, int64_t t) {
    activations[t] = prepare_activations(isa, quantized, cols, x + t * cols, prepared.data() + t * row_scratch);
  };
  session.parallel_for(tokens, prepare);

  // Several chunks a thread even out a core that is shared with other processes. A chunk of four groups lets f32 and
  // f16 products run side by side; a smaller matrix is better spread over the threads.
  int64_t groups = 0;
  for (const Product& product : products) groups += (product.weights.rows + kTileRows - 1) / kTileRows;
  int64_t chunk = std::max<int64_t>(1, groups / (session.threads() * 8));
  if (chunk > 4) chunk = round_up(chunk, 4);
  const auto chunks_of = [&](const Matrix& m) { return (m.rows + chunk * kTileRows - 1) / (chunk * kTileRows); };
  int64_t chunks = 0;
  for (const Product& product : products) chunks += chunks_of(product.weights);
  const auto multiply = [&](int, int64_t unit) {
    auto product = products.begin();
    for (; unit >= chunks_of(product->weights); ++product) unit -= chunks_of(product->weights);
    const Matrix& weights = product->weights;
    const int64_t row = unit * chunk * kTileRows, n = std::min(weights.rows - row, chunk * kTileRows);
    isa.of(weights.quant).gemm(weights.data + unit * chunk * group_bytes(weights.quant, cols), n, cols, activations.data(),
                               tokens, product->out + row, weights.rows);
  };
  session.parallel_for(chunks, multiply);
}

}  // namespace smallthinker
