// The experts of one layer behind a ReLU gate: up and down for the neurons that the ReLU let through.
//
// An expert's neurons are computed in chunks of 64 (isa.h) and summed in parts of three chunks, then the parts are summed,
// always in this order. So few pairs (a decode step) can be split over the threads by parts, and many (a prompt) by
// experts and tokens, with the same result.
#include <algorithm>
#include <atomic>

#include "ops/ffn.h"

namespace smallthinker {

namespace {

constexpr int64_t kPartChunks = 3;
constexpr int64_t kPartRows = kPartChunks * kChunkRows;  // four experts of 768 neurons: 16 parts, even for a few threads
constexpr int64_t kMaxPartBytes = int64_t{4} << 20;      // of all parts' sums; above it, work is split by tokens
constexpr int64_t kSumColumns = 4 * kDownStrip;
constexpr int64_t kFewTokens = 4;  // of an expert, up to which their live rows are read and no others
constexpr int64_t kNextRows = 48;  // of up's size, 40 KiB of the 4B model's next gate

// What one worker does at a time: a block of an expert's tokens, and either one part of its neurons or all of them.
struct Unit : TokenBlock {
  int64_t part;
  const uint8_t* next = nullptr;  // what the worker will likely read next
};

struct Worker {
  float* a;        // [chunks of a part, tokens, kChunkRows]
  uint64_t* live;  // [chunks of a part, tokens]
  uint8_t* down;   // scratch of add_down
};

// Rows that come next, appended to those that `upcoming` has.
class RowList {
 public:
  explicit RowList(UpcomingRow* rows) : rows_(rows), upcoming_{rows, 0} {}
  Upcoming& upcoming() { return upcoming_; }

  void append(const uint8_t* first, int64_t rows, int64_t bytes) {
    for (int64_t row = 0; row < rows; ++row) rows_[upcoming_.n++] = {first + row * bytes, bytes};
  }
  void append_live(const uint8_t* first, uint64_t live, int64_t bytes) {
    for (; live != 0; live &= live - 1) append(first + lowest_bit(live) * bytes, 1, bytes);
  }

 private:
  UpcomingRow* rows_;
  Upcoming upcoming_;
};

class Experts {
 public:
  Experts(const ExpertCall& call, const Isa& isa)
      : call_(call),
        isa_(isa),
        gate_(isa.of(call.shape.formats.gate)),
        up_(isa.of(call.shape.formats.up)),
        down_(isa.of(call.shape.formats.down)),
        up_bytes_(row_bytes(call.shape.formats.up, call.shape.hidden)),
        down_bytes_(row_bytes(call.shape.formats.down, call.shape.hidden)),
        sections_(record_sections(call.shape)) {}

  int64_t parts() const { return (call_.shape.ffn + kPartRows - 1) / kPartRows; }
  int64_t padded() const { return round_up(call_.shape.hidden, kDownStrip); }

  // sums [end - begin, padded] = the part's neurons; returns how many were live.
  int64_t compute_part(const Unit& unit, const ActivationRow* activations, const Worker& worker, float* sums,
                       int64_t sums_stride) const {
    const int64_t tokens = unit.end - unit.begin;
    for (int64_t t = 0; t < tokens; ++t) std::fill_n(sums + t * sums_stride, padded(), 0.0f);
    if (tokens <= kFewTokens) return compute_few(unit, activations + unit.begin, worker, sums, sums_stride);
    int64_t n_live = 0;
    for (int64_t row = unit.part * kPartRows; row < end_of(unit.part); row += kChunkRows) {
      const int64_t rows = std::min(kChunkRows, call_.shape.ffn - row);
      gate_.gemm(gate(unit.expert, row), rows, call_.shape.hidden, activations + unit.begin, tokens, worker.a, kChunkRows);
      isa_.find_live(worker.a, rows, tokens, worker.live);
      UpcomingRow rows_ahead[kChunkRows];
      RowList ahead(rows_ahead);
      ahead.append(down(unit.expert, row), rows, down_bytes_);
      up_.gated_up(up(unit.expert, row), call_.shape.hidden, rows, activations + unit.begin, tokens, worker.live, worker.a,
                   ahead.upcoming());
      down_.add_down(down(unit.expert, row), call_.shape.hidden, rows, worker.a, worker.live, tokens, worker.down, sums,
                     sums_stride, ahead.upcoming());
      for (int64_t t = 0; t < tokens; ++t) n_live += count_bits(worker.live[t]);
    }
    return n_live;
  }

  // Few tokens are bound by reading, so that every step asks for what comes two chunks later: gates for the rows of up
  // that turned out live for any of them, up for those of down, down for the gates of the unit that this thread will
  // likely do next.
  int64_t compute_few(const Unit& unit, const ActivationRow* activations, const Worker& worker, float* sums,
                      int64_t sums_stride) const {
    const int64_t tokens = unit.end - unit.begin, first = unit.part * kPartRows, last = end_of(unit.part);
    UpcomingRow rows_ahead[2 * kPartRows + kNextRows];
    RowList ahead(rows_ahead);
    uint64_t live_for_any[kPartChunks];
    int64_t n_live = 0;
    for (int64_t row = first, chunk = 0; row < last; row += kChunkRows, ++chunk) {
      const int64_t n = std::min(kChunkRows, call_.shape.ffn - row);
      float* const a = worker.a + chunk * tokens * kChunkRows;
      uint64_t* const live = worker.live + chunk * tokens;
      for (int64_t group = 0; group < n; group += kTileRows) {
        isa_.prefetch_rows(ahead.upcoming(), kTileRows / 2);
        gate_.gemm(gate(unit.expert, row + group), kTileRows, call_.shape.hidden, activations, tokens, a + group, kChunkRows);
      }
      isa_.find_live(a, n, tokens, live);
      live_for_any[chunk] = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        live_for_any[chunk] |= live[t];
        n_live += count_bits(live[t]);
      }
      ahead.append_live(up(unit.expert, row), live_for_any[chunk], up_bytes_);
    }
    for (int64_t row = first, chunk = 0; row < last; row += kChunkRows, ++chunk) {
      ahead.append_live(down(unit.expert, row), live_for_any[chunk], down_bytes_);
    }
    if (unit.next != nullptr) ahead.append(unit.next, kNextRows, row_bytes(call_.shape.formats.gate, call_.shape.hidden));
    for (int64_t row = first, chunk = 0; row < last; row += kChunkRows, ++chunk) {
      up_.gated_up(up(unit.expert, row), call_.shape.hidden, std::min(kChunkRows, call_.shape.ffn - row), activations, tokens,
                   worker.live + chunk * tokens, worker.a + chunk * tokens * kChunkRows, ahead.upcoming());
    }
    for (int64_t row = first, chunk = 0; row < last; row += kChunkRows, ++chunk) {
      for (int64_t t = 0; t < tokens; ++t) {  // the first brings the rows into the cache, and most are live for others
        down_.add_down(down(unit.expert, row), call_.shape.hidden, std::min(kChunkRows, call_.shape.ffn - row),
                       worker.a + (chunk * tokens + t) * kChunkRows, worker.live + chunk * tokens + t, 1, worker.down,
                       sums + t * sums_stride, 0, ahead.upcoming());
      }
    }
    return n_live;
  }

  const uint8_t* gate(int64_t expert, int64_t row) const {
    return record(expert) + row / kTileRows * group_bytes(call_.shape.formats.gate, call_.shape.hidden);
  }
  float* out(int64_t place) const { return call_.out + call_.pairs[place] * call_.shape.hidden; }

 private:
  const uint8_t* record(int64_t expert) const { return call_.slots + call_.slot_ids[expert] * call_.record_bytes; }
  const uint8_t* up(int64_t expert, int64_t row) const {
    return record(expert) + sections_.up.offset + row * up_bytes_;
  }
  const uint8_t* down(int64_t expert, int64_t row) const {
    return record(expert) + sections_.down.offset + row * down_bytes_;
  }
  int64_t end_of(int64_t part) const { return std::min(call_.shape.ffn, (part + 1) * kPartRows); }

  const ExpertCall& call_;
  const Isa& isa_;
  const FormatKernels &gate_, &up_, &down_;
  const int64_t up_bytes_, down_bytes_;
  const RecordSections sections_;
};

}  // namespace

int64_t experts_sparse(ThreadPool& pool, const ExpertCall& call) {
  const int64_t n_pairs = call.offsets[call.n_experts];

  ThreadPool::Session session(pool);
  const Isa& isa = session.isa();
  const Experts layer(call, isa);
  const FormatKernels &up = isa.of(call.shape.formats.up), &down_format = isa.of(call.shape.formats.down);
  const bool quantized = is_block_quantized(call.shape.formats.gate) || is_block_quantized(call.shape.formats.up);
  const int64_t prepared_bytes = activation_bytes(quantized, call.shape.hidden);
  const int64_t row_scratch = prepared_bytes + up.order_bytes(call.shape.hidden);
  const int64_t parts = layer.parts(), padded = layer.padded(), threads = session.threads();
  const bool by_parts = n_pairs * parts * padded * 4 <= kMaxPartBytes;

  Scratch<uint8_t> prepared(call.tokens * row_scratch);
  Scratch<ActivationRow> tokens(call.tokens), activations(n_pairs);  // activations by place
  Scratch<Unit> units(max_token_blocks(call) * (by_parts ? parts : 1));
  const int64_t max_tokens = std::min(kTokenBlock, n_pairs);
  const int64_t down_bytes = down_scratch_bytes(call.shape.formats.down, call.shape.hidden, max_tokens);
  Scratch<float> a(threads * max_tokens * kPartRows);
  Scratch<uint64_t> live(threads * max_tokens * kPartChunks);
  Scratch<float> sums(by_parts ? n_pairs * parts * padded : threads * max_tokens * 2 * padded);
  Scratch<uint8_t> down(threads * down_bytes);
  session.allocate(prepared, tokens, activations, units, a, live, sums, down);

  const auto prepare = [&](int, int64_t t) {
    uint8_t* const scratch = prepared.data() + t * row_scratch;
    tokens[t] = prepare_activations(isa, quantized, call.shape.hidden, call.x + t * call.shape.hidden, scratch);
    up.order_for_rows(call.shape.hidden, tokens[t], scratch + prepared_bytes);
  };
  session.parallel_for(call.tokens, prepare);
  for (int64_t place = 0; place < n_pairs; ++place) activations[place] = tokens[call.pairs[place] / call.k];

  int64_t n_units = 0;
  for_token_blocks(call, [&](const TokenBlock& block) {
    for (int64_t part = 0; part < parts; part += by_parts ? 1 : parts) units[n_units++] = {block, part};
  });
  for (int64_t i = 0; i + threads < n_units; ++i) {  // as when the threads take turns
    const Unit& next = units[i + threads];
    units[i].next = layer.gate(next.expert, next.part * kPartRows);
  }

  std::atomic<int64_t> live_total{0};
  const auto compute = [&](int index, int64_t at) {
    const Unit& unit = units[at];
    const Worker worker{a.data() + index * max_tokens * kPartRows, live.data() + index * max_tokens * kPartChunks,
                        down.data() + index * down_bytes};
    if (by_parts) {  // all parts of a place lie together
      live_total += layer.compute_part(unit, activations.data(), worker,
                                       sums.data() + (unit.begin * parts + unit.part) * padded, parts * padded);
      return;
    }
    float* const total = sums.data() + index * max_tokens * 2 * padded;  // of a token, and beside it its next part
    for (int64_t part = 0; part < parts; ++part) {
      live_total += layer.compute_part({unit, part, unit.next}, activations.data(), worker,
                                       part == 0 ? total : total + padded, 2 * padded);
      if (part == 0) continue;
      for (int64_t t = 0; t < unit.end - unit.begin; ++t) {
        isa.add_sums(total + t * 2 * padded, total + (t * 2 + 1) * padded, padded);
      }
    }
    for (int64_t place = unit.begin; place < unit.end; ++place) {
      down_format.order_sums(call.shape.hidden, total + (place - unit.begin) * 2 * padded, layer.out(place));
    }
  };
  session.parallel_for(n_units, compute);
  if (!by_parts) return live_total;

  const int64_t pieces = (padded + kSumColumns - 1) / kSumColumns;
  const auto sum_up = [&](int, int64_t unit) {
    const int64_t place = unit / pieces, col = unit % pieces * kSumColumns, n = std::min(kSumColumns, padded - col);
    float* const total = sums.data() + place * parts * padded + col;
    for (int64_t part = 1; part < parts; ++part) isa.add_sums(total, total + part * padded, n);
    down_format.order_sums(std::min(n, call.shape.hidden - col), total, layer.out(place) + col);
  };
  session.parallel_for(n_pairs * pieces, sum_up);
  return live_total;
}

}  // namespace smallthinker
