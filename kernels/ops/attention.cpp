// Attention over a ring of keys and values, and what appends to it: how the work is cut up. The arithmetic is in
// micro/attention.h.
//
// T tokens, H query heads, K key-value heads, D head size; query heads h*H/K .. (h+1)*H/K - 1 share key-value head h.
// Softmax is online, in blocks of 64 keys, and begins anew every 512 keys, at multiples of the absolute position; what
// the splits give is added up in ascending order. So a query takes the same steps whatever chunk of the prompt it came
// in and however many threads share it, and there is no [T, S] matrix of scores.
#include <algorithm>
#include <limits>

#include "formats/half.h"
#include "kernels.h"
#include "thread_pool.h"

namespace smallthinker {

namespace {

// Tokens that share one widening of a block: as many as leave every thread some units to balance with.
constexpr int64_t kMaxTileTokens = 32, kMinTileTokens = 8, kUnitsPerThread = 4;
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// Pieces of one allocation, each on cache lines of its own.
struct Carver {
  uintptr_t at;
  template <class T>
  T* take(int64_t n) {
    T* piece = reinterpret_cast<T*>(at);
    at += static_cast<uintptr_t>(round_up(n * static_cast<int64_t>(sizeof(T)), 64));
    return piece;
  }
};

SoftmaxState take_state(Carver& memory, int64_t queries, int64_t dim) {
  float* max = memory.take<float>(queries);
  float* sum = memory.take<float>(queries);
  return {max, sum, memory.take<float>(queries * dim)};
}

struct WorkerMemory {
  AttentionScratch scratch;
  SoftmaxState split, total;

  WorkerMemory(Carver& memory, int64_t queries, int64_t head_dim) {
    const int64_t dim = round_up(head_dim, kLanes), blocks = head_dim / kBlock;
    scratch.q = memory.take<float>(queries * dim);
    scratch.queries.q = memory.take<int8_t>(queries * head_dim);
    scratch.queries.scale = memory.take<float>(queries * blocks);
    scratch.queries.start = memory.take<int32_t>(queries * blocks);
    scratch.p = memory.take<float>(queries * kKeyBlock);
    scratch.begin = memory.take<int32_t>(queries);
    scratch.end = memory.take<int32_t>(queries);
    scratch.wide = memory.take<float>(kKeyBlock * dim);
    scratch.scales = memory.take<float>(kKeyBlock * blocks);
    split = take_state(memory, queries, dim);
    total = take_state(memory, queries, dim);
  }
};

template <class Take>
int64_t bytes_of(Take take) {
  Carver counter{0};
  take(counter);
  return static_cast<int64_t>(counter.at);
}

struct Call {
  const Isa& isa;
  const float* q;
  int64_t tokens, heads;
  const KvCache& cache;
  int64_t start;
  const Scores& scores;
  float* out;

  int64_t dim() const { return round_up(cache.head_dim, kLanes); }

  AttentionUnit unit(int64_t first, int64_t n_tokens, int64_t head, int64_t n_heads) const {
    const int64_t kv_head = head / (heads / cache.kv_heads), at = kv_head * cache.head_bytes(), d = cache.head_dim;
    return {{cache.quant, d, cache.capacity, cache.keys + at, cache.values + at},
            q + (first * heads + head) * d, n_tokens, n_heads, heads * d, start + first, scores};
  }

  void begin(const AttentionUnit& unit, const SoftmaxState& total) const {
    const int64_t queries = unit.tokens * unit.heads, head = (unit.q - q) / cache.head_dim % heads;
    for (int64_t i = 0; i < queries; ++i) {
      total.max[i] = scores.sinks == nullptr ? kMinusInf : scores.sinks[head + i % unit.heads];
      total.sum[i] = scores.sinks == nullptr ? 0.0f : 1.0f;
    }
    std::fill_n(total.acc, queries * dim(), 0.0f);
  }

  void finish(const AttentionUnit& unit, const SoftmaxState& total) const {
    float* to = out + (unit.q - q);
    for (int64_t i = 0; i < unit.tokens * unit.heads; ++i) {
      float* row = to + i / unit.heads * unit.token_stride + i % unit.heads * cache.head_dim;
      for (int64_t d = 0; d < cache.head_dim; ++d) row[d] = total.acc[i * dim() + d] / total.sum[i];
    }
  }
};

// Every unit goes through its splits by itself.
void attend_units(ThreadPool::Session& session, const Call& call, int64_t tile_tokens, int64_t unit_heads) {
  const int64_t most = std::min(call.tokens, tile_tokens) * unit_heads, units_per_tile = call.heads / unit_heads;
  const auto place = [&](Carver& memory) { return WorkerMemory(memory, most, call.cache.head_dim); };
  const int64_t worker_bytes = bytes_of(place);
  Scratch<uint8_t> scratch(session.threads() * worker_bytes);
  session.allocate(scratch);
  const auto attend = [&](int worker, int64_t index) {
    Carver carver{reinterpret_cast<uintptr_t>(scratch.data() + worker * worker_bytes)};
    const WorkerMemory memory = place(carver);
    const int64_t first = index / units_per_tile * tile_tokens;
    const AttentionUnit unit = call.unit(first, std::min(tile_tokens, call.tokens - first),
                                         index % units_per_tile * unit_heads, unit_heads);
    call.isa.prepare_queries(unit, memory.scratch);
    call.begin(unit, memory.total);
    const int64_t end = unit.position + unit.tokens;
    for (int64_t at = unit.first_visible(unit.position) / kKeySplit * kKeySplit; at < end; at += kKeySplit) {
      call.isa.attend_split(unit, at, at + kKeySplit, memory.scratch, memory.split);
      call.isa.merge_split(unit.tokens * unit_heads, call.dim(), memory.split, memory.total);
    }
    call.finish(unit, memory.total);
  };
  session.parallel_for((call.tokens + tile_tokens - 1) / tile_tokens * units_per_tile, attend);
}

// One token: every split is a unit, so that few heads keep many threads busy, to the end.
void attend_splits(ThreadPool::Session& session, const Call& call, int64_t unit_heads) {
  const int64_t first = call.unit(0, 1, 0, 1).first_visible(call.start) / kKeySplit;
  const int64_t splits = call.start / kKeySplit + 1 - first, head_units = call.heads / unit_heads;
  const auto place = [&](Carver& memory) { return WorkerMemory(memory, unit_heads, call.cache.head_dim); };
  const auto place_state = [&](Carver& memory) { return take_state(memory, unit_heads, call.dim()); };
  const int64_t worker_bytes = bytes_of(place), state_bytes = bytes_of(place_state);
  Scratch<uint8_t> scratch(session.threads() * worker_bytes), states(head_units * splits * state_bytes);
  session.allocate(scratch, states);
  const auto memory_of = [&](int worker) {
    Carver carver{reinterpret_cast<uintptr_t>(scratch.data() + worker * worker_bytes)};
    return place(carver);
  };
  const auto state_of = [&](int64_t unit, int64_t split) {
    Carver carver{reinterpret_cast<uintptr_t>(states.data() + (unit * splits + split) * state_bytes)};
    return place_state(carver);
  };
  const auto attend = [&](int worker, int64_t index) {
    const WorkerMemory memory = memory_of(worker);
    const int64_t split = index / head_units, at = (first + split) * kKeySplit;
    const AttentionUnit unit = call.unit(0, 1, index % head_units * unit_heads, unit_heads);
    call.isa.prepare_queries(unit, memory.scratch);
    call.isa.attend_split(unit, at, at + kKeySplit, memory.scratch, state_of(index % head_units, split));
  };
  session.parallel_for(splits * head_units, attend);
  const auto merge = [&](int worker, int64_t index) {
    const SoftmaxState total = memory_of(worker).total;
    const AttentionUnit unit = call.unit(0, 1, index * unit_heads, unit_heads);
    call.begin(unit, total);
    for (int64_t split = 0; split < splits; ++split) {
      call.isa.merge_split(unit_heads, call.dim(), state_of(index, split), total);
    }
    call.finish(unit, total);
  };
  session.parallel_for(head_units, merge);
}

// The largest magnitude of those that are finite; as integers they have the same order.
float largest_finite(const float* x, int64_t n) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t magnitude = bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
    largest = std::max(largest, magnitude < 0x7f800000u ? magnitude : 0);
  }
  return bit_cast<float>(largest);
}

void note_overflow(const float* k, const float* v, int64_t n, const KvCache& cache) {
  const float largest = std::max(largest_finite(k, n), largest_finite(v, n));
  const float stored = cache.quant == Quant::f16 ? largest : largest / 127.0f;  // of q8_0 the scale
  if (stored >= 65520.0f) *cache.overflow = std::max(*cache.overflow, largest);  // rounds to an f16 of infinity
}

}  // namespace

void attention(ThreadPool& pool, const float* q, int64_t tokens, int64_t heads, const KvCache& cache, int64_t start,
               const Scores& scores, float* out) {
  ThreadPool::Session session(pool);
  const Call call{session.isa(), q, tokens, heads, cache, start, scores, out};
  const int64_t splits = start / kKeySplit - call.unit(0, 1, 0, 1).first_visible(start) / kKeySplit + 1;
  const auto tiles = [&](int64_t tile_tokens) { return (tokens + tile_tokens - 1) / tile_tokens; };
  int64_t tile_tokens = kMaxTileTokens;
  while (tile_tokens > kMinTileTokens && tiles(tile_tokens) * cache.kv_heads < kUnitsPerThread * session.threads()) {
    tile_tokens /= 2;
  }
  // Heads that share keys stay together while that leaves a unit for every thread.
  const bool share_splits = tokens == 1 && splits > 1;
  const int64_t units = (share_splits ? splits : tiles(tile_tokens)) * cache.kv_heads;
  const int64_t unit_heads = units >= session.threads() ? heads / cache.kv_heads : 1;
  if (share_splits) attend_splits(session, call, unit_heads);
  else attend_units(session, call, tile_tokens, unit_heads);
}

void kv_append(ThreadPool& pool, const float* k, const float* v, int64_t tokens, const KvCache& cache, int64_t start) {
  const Isa& isa = pool.isa();
  const int64_t dim = cache.head_dim;
  if (cache.overflow != nullptr) note_overflow(k, v, tokens * cache.kv_heads * dim, cache);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t head = 0; head < cache.kv_heads; ++head) {
      const int64_t from = (t * cache.kv_heads + head) * dim, position = start + t;
      const KvHead at{cache.quant, dim, cache.capacity, nullptr, nullptr};
      const int64_t group = head * cache.head_bytes() + at.group_offset(position);
      isa.kv_store(cache.quant, k + from, v + from, dim, position % kLanes, cache.keys + group, cache.values + group);
    }
  }
}

}  // namespace smallthinker
