// The experts of one layer: gate, ReLU, up and down for the neurons that the ReLU let through.
//
// A pair is one token at one expert; `place` is its index in call.pairs. An expert's neurons are computed in chunks of
// 64 (isa.h) and summed in parts of three chunks, then the parts are summed, always in this order. So few pairs (a decode
// step) can be split over the threads by parts, and many (a prompt) by experts and tokens, with the same result.
#include <algorithm>
#include <atomic>
#include <tuple>

#include "kernels.h"
#include "thread_pool.h"

namespace smallthinker {

namespace {

constexpr int64_t kPartRows = 3 * kChunkRows;  // 16 parts of four experts of 768 neurons: even work for a few threads
constexpr int64_t kMostPartBytes = int64_t{4} << 20;
constexpr int64_t kSumColumns = 4 * kDownStrip;

// What one worker does at a time: a block of an expert's tokens, and either one part of its neurons or all of them.
struct Unit {
  int64_t expert, begin, end;  // places
  int64_t part;
};

struct Worker {
  float* a;        // [kTokenBlock, kChunkRows]
  uint64_t* live;  // [kTokenBlock]
  uint8_t* down;   // scratch of add_down
};

class Experts {
 public:
  Experts(const ExpertCall& call, const Isa& isa) : call_(call), isa_(isa) {}

  int64_t parts() const { return (call_.ffn + kPartRows - 1) / kPartRows; }
  int64_t padded() const { return round_up(call_.hidden, kDownStrip); }

  // sums [end - begin, padded] = the part's neurons; returns how many were live.
  int64_t compute_part(const Unit& unit, int64_t part, const ActivationRow* activations, const Worker& worker,
                       float* sums, int64_t sums_stride) const {
    const auto [quant, hidden, ffn] = std::tuple(call_.quant, call_.hidden, call_.ffn);
    const RecordSections sections = record_sections(quant, hidden, ffn);
    const uint8_t* const record = call_.slots + call_.slot_ids[unit.expert] * call_.record_bytes;
    const int64_t tokens = unit.end - unit.begin, stride = row_bytes(quant, hidden);
    for (int64_t t = 0; t < tokens; ++t) std::fill_n(sums + t * sums_stride, padded(), 0.0f);
    int64_t n_live = 0;
    for (int64_t row = part * kPartRows; row < std::min(ffn, (part + 1) * kPartRows); row += kChunkRows) {
      const int64_t rows = std::min(kChunkRows, ffn - row);
      const uint8_t* const down = record + sections.down_offset + row * stride;
      isa_.tile_product(quant, record + row / kTileRows * group_bytes(quant, hidden), rows, hidden,
                        activations + unit.begin, tokens, worker.a, kChunkRows);
      isa_.gated_up(quant, record + sections.up_offset + row * stride, down, hidden, rows, activations + unit.begin,
                    tokens, worker.a, worker.live);
      isa_.add_down(quant, down, hidden, rows, worker.a, worker.live, tokens, worker.down, sums, sums_stride);
      for (int64_t t = 0; t < tokens; ++t) n_live += count_bits(worker.live[t]);
    }
    return n_live;
  }

  float* out(int64_t place) const { return call_.out + call_.pairs[place] * call_.hidden; }

 private:
  const ExpertCall& call_;
  const Isa& isa_;
};

}  // namespace

int64_t experts(ThreadPool& pool, const ExpertCall& call) {
  const int64_t n_pairs = call.offsets[call.n_experts];
  const int64_t row_scratch = activation_bytes(call.quant, call.hidden);

  ThreadPool::Session session(pool);
  const Isa& isa = session.isa();
  const Experts layer(call, isa);
  const int64_t parts = layer.parts(), padded = layer.padded(), threads = session.threads();
  const bool by_parts = n_pairs * parts * padded * 4 <= kMostPartBytes;
  const int64_t block = by_parts ? kTokenBlock : std::clamp<int64_t>(n_pairs / (2 * threads), 1, kTokenBlock);

  Scratch<uint8_t> quantized(call.tokens * row_scratch);
  Scratch<ActivationRow> activations(n_pairs);  // by place
  Scratch<Unit> units((n_pairs / block + call.n_experts) * (by_parts ? parts : 1));
  const int64_t most_tokens = std::min(block, n_pairs);
  const int64_t down_bytes = down_scratch_bytes(call.quant, call.hidden, most_tokens);
  Scratch<float> a(threads * most_tokens * kChunkRows);
  Scratch<uint64_t> live(threads * most_tokens);
  Scratch<float> sums(by_parts ? n_pairs * parts * padded : threads * most_tokens * 2 * padded);
  Scratch<uint8_t> down(threads * down_bytes);
  session.allocate(quantized, activations, units, a, live, sums, down);

  const auto prepare = [&](int, int64_t t) {
    const ActivationRow row =
        place_activations(call.quant, call.hidden, call.x + t * call.hidden, quantized.data() + t * row_scratch);
    if (is_block_quantized(call.quant)) isa.quantize_activations(call.quant, call.hidden, row);
  };
  session.parallel_for(call.tokens, prepare);
  for (int64_t place = 0; place < n_pairs; ++place) {
    const int64_t t = call.pairs[place] / call.k;
    activations[place] =
        place_activations(call.quant, call.hidden, call.x + t * call.hidden, quantized.data() + t * row_scratch);
  }

  int64_t n_units = 0;
  for (int64_t expert = 0; expert < call.n_experts; ++expert) {
    for (int64_t begin = call.offsets[expert]; begin < call.offsets[expert + 1]; begin += block) {
      const int64_t end = std::min<int64_t>(begin + block, call.offsets[expert + 1]);
      for (int64_t part = 0; part < parts; part += by_parts ? 1 : parts) {
        units[n_units++] = {expert, begin, end, part};
      }
    }
  }

  std::atomic<int64_t> live_total{0};
  const auto compute = [&](int index, int64_t at) {
    const Unit& unit = units[at];
    const Worker worker{a.data() + index * most_tokens * kChunkRows, live.data() + index * most_tokens,
                        down.data() + index * down_bytes};
    if (by_parts) {  // all parts of a place lie together
      live_total += layer.compute_part(unit, unit.part, activations.data(), worker,
                                       sums.data() + (unit.begin * parts + unit.part) * padded, parts * padded);
      return;
    }
    float* const total = sums.data() + index * most_tokens * 2 * padded;  // of a token, and beside it its next part
    for (int64_t part = 0; part < parts; ++part) {
      live_total += layer.compute_part(unit, part, activations.data(), worker, part == 0 ? total : total + padded, 2 * padded);
      if (part == 0) continue;
      for (int64_t t = 0; t < unit.end - unit.begin; ++t) isa.add_sums(total + t * 2 * padded, total + (t * 2 + 1) * padded, padded);
    }
    for (int64_t place = unit.begin; place < unit.end; ++place) {
      isa.order_sums(call.quant, call.hidden, total + (place - unit.begin) * 2 * padded, layer.out(place));
    }
  };
  session.parallel_for(n_units, compute);
  if (!by_parts) return live_total;

  const int64_t pieces = (padded + kSumColumns - 1) / kSumColumns;
  const auto sum_up = [&](int, int64_t unit) {
    const int64_t place = unit / pieces, col = unit % pieces * kSumColumns, n = std::min(kSumColumns, padded - col);
    float* const total = sums.data() + place * parts * padded + col;
    for (int64_t part = 1; part < parts; ++part) isa.add_sums(total, total + part * padded, n);
    isa.order_sums(call.quant, std::min(n, call.hidden - col), total, layer.out(place) + col);
  };
  session.parallel_for(n_pairs * pieces, sum_up);
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
