// The experts of one layer: gate, ReLU, up and down for the neurons that the ReLU let through.
//
// A call is two rounds over all its experts together, so that its cost in barriers doesn't grow with the number of
// experts. A pair is one token at one expert; `place` is its index in call.pairs.
#include <algorithm>
#include <atomic>
#include <tuple>

#include "kernels.h"
#include "thread_pool.h"

namespace smallthinker {

namespace {
constexpr int64_t kRowChunk = 64;    // neurons a unit of the first round
constexpr int64_t kColChunk = 256;   // output columns a unit of the second round
}  // namespace

int64_t experts(ThreadPool& pool, const ExpertCall& call) {
  const auto [quant, hidden, ffn] = std::tuple(call.quant, call.hidden, call.ffn);
  const RecordSections sections = record_sections(quant, hidden, ffn);
  const int64_t n_pairs = call.offsets[call.n_experts];
  const int64_t row_chunks = (ffn + kRowChunk - 1) / kRowChunk;
  const int64_t col_chunks = (hidden + kColChunk - 1) / kColChunk;
  const int64_t row_scratch = activation_bytes(quant, hidden);

  ThreadPool::Session session(pool);
  const Isa& isa = session.isa();
  Scratch<uint8_t> quantized(call.tokens * row_scratch);
  Scratch<ActivationRow> activations(n_pairs);                // by place
  Scratch<float> gate(session.threads() * kRowChunk * n_pairs);  // by worker
  Scratch<LiveNeuron> live(n_pairs * ffn);                    // by place, a chunk's neurons at its first row
  Scratch<int32_t> n_live(n_pairs * row_chunks);
  Scratch<LiveNeuron> dense(session.threads() * ffn);         // by worker
  session.allocate(quantized, activations, gate, live, n_live, dense);

  const auto prepare = [&](int, int64_t t) {
    const ActivationRow row =
        place_activations(quant, hidden, call.x + t * hidden, quantized.data() + t * row_scratch);
    if (is_block_quantized(quant)) isa.quantize_activations(quant, hidden, row);
  };
  session.parallel_for(call.tokens, prepare);
  for (int64_t place = 0; place < n_pairs; ++place) {
    const int64_t t = call.pairs[place] / call.k;
    activations[place] = place_activations(quant, hidden, call.x + t * hidden, quantized.data() + t * row_scratch);
  }

  // A neuron's up needs only its own gate, so both run on the same rows without a barrier between them.
  std::atomic<int64_t> live_total{0};
  const auto gate_and_up = [&](int worker, int64_t unit) {
    const int64_t expert = unit / row_chunks, chunk = unit % row_chunks;
    const int64_t begin = call.offsets[expert], tokens = call.offsets[expert + 1] - begin;
    const uint8_t* record = call.slots + call.slot_ids[expert] * call.record_bytes;
    const int64_t first = chunk * kRowChunk, last = std::min(ffn, first + kRowChunk);
    float* gates = gate.data() + worker * kRowChunk * n_pairs;
    isa.tile_product(quant, record + first / kTileRows * group_bytes(quant, hidden), last - first, hidden,
                     activations.data() + begin, tokens, gates, kRowChunk);
    int64_t total = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t place = begin + t;
      const int64_t n = isa.live_rows(quant, record + sections.up_offset, first, last, hidden, gates + t * kRowChunk,
                                      activations[place], live.data() + place * ffn + first);
      n_live[place * row_chunks + chunk] = static_cast<int32_t>(n);
      total += n;
    }
    live_total.fetch_add(total, std::memory_order_relaxed);
  };
  session.parallel_for(call.n_experts * row_chunks, gate_and_up);

  const auto down = [&](int worker, int64_t unit) {
    const int64_t expert = unit / col_chunks, col = unit % col_chunks * kColChunk;
    const uint8_t* record = call.slots + call.slot_ids[expert] * call.record_bytes;
    LiveNeuron* neurons = dense.data() + worker * ffn;
    for (int64_t place = call.offsets[expert]; place < call.offsets[expert + 1]; ++place) {
      int64_t n = 0;
      for (int64_t chunk = 0; chunk < row_chunks; ++chunk) {
        const int64_t count = n_live[place * row_chunks + chunk];
        std::copy_n(live.data() + place * ffn + chunk * kRowChunk, count, neurons + n);
        n += count;
      }
      isa.sum_rows(quant, record + sections.down_offset, hidden, col, std::min(hidden, col + kColChunk), neurons, n,
                   call.out + call.pairs[place] * hidden + col);
    }
  };
  session.parallel_for(call.n_experts * col_chunks, down);
  return live_total;
}

void combine(float* x, const float* contributions, const float* weights, int64_t tokens, int64_t k, int64_t dim) {
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < k; ++j) {
      const float weight = weights[t * k + j];
      const float* contribution = contributions + (t * k + j) * dim;
      for (int64_t d = 0; d < dim; ++d) x[t * dim + d] += weight * contribution[d];
    }
  }
}

}  // namespace smallthinker
