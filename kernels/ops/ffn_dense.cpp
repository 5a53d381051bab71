// The experts of one layer, or the slices of its dense network, where every neuron counts: rows of gate and of up, the
// activation, rows of down.
//
// Down needs all of a pair's neurons, so a wave of pairs is computed in two steps with a barrier between them. In both a
// unit is some rows for a block of an expert's tokens: the threads share one token's matrices as evenly as a prompt's
// tokens. An output element is one lane's sum over the columns (tiles.h), whatever else is in its unit.
#include <algorithm>

#include "ops/ffn.h"

namespace smallthinker {

namespace {

constexpr int64_t kMaxWaveBytes = int64_t{8} << 20;  // of neurons: the scratch of a prompt's chunk is bounded
constexpr int64_t kUnitsPerThread = 4;  // even out a shared core; with 8, streams begin more often: 2 % slower decode
constexpr int64_t kUnitFloats = kTokenBlock * 128;   // results of a unit: with many tokens, rows that stay in the cache

// Rows of a unit: a multiple of 32, since neurons are rounded to int8 in blocks.
int64_t rows_of_unit(int64_t rows, int64_t blocks, int64_t threads, int64_t max_tokens) {
  const int64_t even = blocks * rows / (threads * kUnitsPerThread), most = kUnitFloats / max_tokens;
  return std::max(std::min(even, most) / kBlock * kBlock, kBlock);
}

}  // namespace

int64_t experts_dense(ThreadPool& pool, const ExpertCall& call) {
  const FfnShape& shape = call.shape;
  const FfnFormats& formats = shape.formats;
  const int64_t hidden = shape.hidden, ffn = shape.ffn, n_pairs = call.offsets[call.n_experts];
  const RecordSections sections = record_sections(shape);

  ThreadPool::Session session(pool);
  const Isa& isa = session.isa();
  const int64_t threads = session.threads(), max_tokens = std::min(kTokenBlock, std::max<int64_t>(n_pairs, 1));
  const bool quantized = is_block_quantized(formats.up) || (shape.gated && is_block_quantized(formats.gate));
  const bool quantized_neurons = is_block_quantized(formats.down);
  const int64_t row_scratch = activation_bytes(quantized, hidden);
  const int64_t neuron_scratch = activation_bytes(quantized_neurons, ffn);
  const int64_t pair_bytes = quantized_neurons ? neuron_scratch : ffn * static_cast<int64_t>(sizeof(float));
  const int64_t wave_pairs = std::min(n_pairs, std::max(kTokenBlock, kMaxWaveBytes / pair_bytes));

  Scratch<uint8_t> prepared(call.tokens * row_scratch), prepared_neurons(wave_pairs * neuron_scratch);
  Scratch<ActivationRow> tokens(call.tokens), activations(n_pairs), neurons(wave_pairs);  // activations by place
  Scratch<float> neuron_values(quantized_neurons ? 0 : wave_pairs * ffn), results(threads * 2 * kUnitFloats);
  Scratch<TokenBlock> blocks(max_token_blocks(call));
  session.allocate(prepared, prepared_neurons, tokens, activations, neurons, neuron_values, results, blocks);

  const auto prepare = [&](int, int64_t t) {
    tokens[t] = prepare_activations(isa, quantized, hidden, call.x + t * hidden, prepared.data() + t * row_scratch);
  };
  session.parallel_for(call.tokens, prepare);
  for (int64_t place = 0; place < n_pairs; ++place) activations[place] = tokens[call.pairs[place] / call.k];
  for (int64_t i = 0; i < wave_pairs; ++i) {
    neurons[i] = place_activations(quantized_neurons, ffn, prepared_neurons.data() + i * neuron_scratch);
    if (!quantized_neurons) neurons[i].x = neuron_values.data() + i * ffn;
  }
  int64_t n_blocks = 0;
  for_token_blocks(call, [&](const TokenBlock& block) { blocks[n_blocks++] = block; });

  const auto multiply = [&](const TokenBlock& block, const Section& section, Quant quant, int64_t row, int64_t rows,
                            const ActivationRow* inputs, float* out) {
    const uint8_t* const record = call.slots + call.slot_ids[block.expert] * call.record_bytes;
    isa.of(quant).gemm(record + section.offset + row / kTileRows * group_bytes(quant, section.cols), rows, section.cols,
                       inputs, block.end - block.begin, out, rows);
  };
  const auto add_bias = [&](const TokenBlock& block, const Section& section, int64_t row, int64_t rows, float* to) {
    if (section.rows == 0) return;
    const uint8_t* const record = call.slots + call.slot_ids[block.expert] * call.record_bytes;
    const float* const bias = reinterpret_cast<const float*>(record + section.offset) + row;
    for (int64_t t = 0; t < block.end - block.begin; ++t) add(to + t * rows, bias, rows);
  };
  for (int64_t first = 0, next = 0; first < n_blocks; first = next) {
    const int64_t begin = blocks[first].begin;
    while (next < n_blocks && blocks[next].end - begin <= wave_pairs) ++next;

    const int64_t ffn_rows = rows_of_unit(ffn, next - first, threads, max_tokens);
    const int64_t ffn_units = (ffn + ffn_rows - 1) / ffn_rows;
    const auto compute_neurons = [&](int worker, int64_t unit) {
      const TokenBlock& block = blocks[first + unit / ffn_units];
      const int64_t row = unit % ffn_units * ffn_rows, rows = std::min(ffn_rows, ffn - row);
      float* const up = results.data() + worker * 2 * kUnitFloats;
      float* const gate = shape.gated ? up + kUnitFloats : nullptr;
      if (shape.gated) multiply(block, sections.gate, formats.gate, row, rows, activations.data() + block.begin, gate);
      multiply(block, sections.up, formats.up, row, rows, activations.data() + block.begin, up);
      if (gate != nullptr) add_bias(block, sections.gate_bias, row, rows, gate);
      add_bias(block, sections.up_bias, row, rows, up);
      isa.activate(shape.activation, shape.clamp, gate, (block.end - block.begin) * rows, up);
      for (int64_t place = block.begin; place < block.end; ++place) {
        const float* const from = up + (place - block.begin) * rows;
        if (quantized_neurons) isa.quantize_activations(rows, columns_from(neurons[place - begin], row, from));
        else std::copy_n(from, rows, neuron_values.data() + (place - begin) * ffn + row);
      }
    };
    session.parallel_for((next - first) * ffn_units, compute_neurons);

    const int64_t down_rows = rows_of_unit(hidden, next - first, threads, max_tokens);
    const int64_t down_units = (hidden + down_rows - 1) / down_rows;
    const auto compute_down = [&](int worker, int64_t unit) {
      const TokenBlock& block = blocks[first + unit / down_units];
      const int64_t row = unit % down_units * down_rows, rows = std::min(down_rows, hidden - row);
      float* const out = results.data() + worker * 2 * kUnitFloats;
      multiply(block, sections.down, formats.down, row, rows, neurons.data() + (block.begin - begin), out);
      add_bias(block, sections.down_bias, row, rows, out);
      for (int64_t place = block.begin; place < block.end; ++place) {
        std::copy_n(out + (place - block.begin) * rows, rows, call.out + call.pairs[place] * hidden + row);
      }
    };
    session.parallel_for((next - first) * down_units, compute_down);
  }
  return n_pairs * ffn;
}

}  // namespace smallthinker
