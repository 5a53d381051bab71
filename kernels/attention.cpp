// Attention over an f16 ring of keys and values, and what appends to it.
//
// T tokens, H query heads, K key-value heads, D head size; query heads h*H/K .. (h+1)*H/K - 1 share key-value head h.
// Softmax is online, in blocks of 64 keys that begin at multiples of 64 of the absolute position. So a query takes the
// same steps whatever chunk of the prompt it came in, and there is no [T, S] matrix of scores.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "f16.h"
#include "kernels.h"
#include "thread_pool.h"

namespace smallthinker {

namespace {

constexpr int64_t kQueryTokens = 8;  // tokens that share one widening of a block

struct Tile {
  const float* q;
  const uint16_t* k_cache;
  const uint16_t* v_cache;
  float* out;
  int64_t heads, start, window, tokens;
  KvShape shape;

  int64_t dim_padded() const { return round_up(shape.head_dim, kLanes); }
  int64_t first_visible(int64_t position) const {
    return window == 0 ? 0 : std::max<int64_t>(0, position - window + 1);
  }
};

// One worker's memory for `queries` queries at a time.
struct TileScratch {
  float *k, *v, *q, *acc, *p, *max, *sum;
  int32_t *begin, *end;

  static int64_t floats(int64_t queries, int64_t dim) {
    return 2 * kKeyBlock * dim + queries * (2 * dim + kKeyBlock + 4);
  }
  TileScratch(float* at, int64_t queries, int64_t dim) {
    const auto take = [&at](int64_t n) { return std::exchange(at, at + n); };
    k = take(kKeyBlock * dim);
    v = take(kKeyBlock * dim);
    q = take(queries * dim);
    acc = take(queries * dim);
    p = take(queries * kKeyBlock);
    max = take(queries);
    sum = take(queries);
    begin = reinterpret_cast<int32_t*>(take(queries));
    end = reinterpret_cast<int32_t*>(take(queries));
  }
};

// Tokens [first, last) of the call, query heads [head, head + n_heads), all of one key-value head.
void attend_tile(const Isa& isa, const Tile& tile, int64_t first, int64_t last, int64_t head, int64_t n_heads,
                 const TileScratch& scratch) {
  const auto [kv_heads, capacity, head_dim] = tile.shape;
  const int64_t dim = tile.dim_padded(), kv_head = head / (tile.heads / kv_heads), queries = (last - first) * n_heads;
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  for (int64_t i = 0; i < queries; ++i) {
    const float* q = tile.q + ((first + i / n_heads) * tile.heads + head + i % n_heads) * head_dim;
    for (int64_t d = 0; d < dim; ++d) scratch.q[i * dim + d] = d < head_dim ? q[d] * scale : 0.0f;
  }
  std::fill_n(scratch.acc, queries * dim, 0.0f);
  std::fill_n(scratch.sum, queries, 0.0f);
  std::fill_n(scratch.max, queries, -std::numeric_limits<float>::infinity());

  const int64_t seen_first = tile.first_visible(tile.start + first), seen_end = tile.start + last;
  for (int64_t base = seen_first / kKeyBlock * kKeyBlock; base < seen_end; base += kKeyBlock) {
    for (int64_t p = std::max(base, seen_first); p < std::min(base + kKeyBlock, seen_end); ++p) {
      const int64_t at = (kv_head * capacity + p % capacity) * head_dim;
      isa.widen_f16(tile.k_cache + at, head_dim, scratch.k + (p - base) * dim);
      isa.widen_f16(tile.v_cache + at, head_dim, scratch.v + (p - base) * dim);
    }
    for (int64_t i = 0; i < queries; ++i) {
      const int64_t position = tile.start + first + i / n_heads;
      const int64_t begin = std::clamp<int64_t>(tile.first_visible(position) - base, 0, kKeyBlock);
      scratch.begin[i] = static_cast<int32_t>(begin);
      scratch.end[i] = static_cast<int32_t>(std::clamp<int64_t>(position + 1 - base, begin, kKeyBlock));
    }
    isa.attend({queries, dim, scratch.q, scratch.k, scratch.v, scratch.begin, scratch.end, scratch.p, scratch.max,
                scratch.sum, scratch.acc});
  }
  for (int64_t i = 0; i < queries; ++i) {
    float* out = tile.out + ((first + i / n_heads) * tile.heads + head + i % n_heads) * head_dim;
    for (int64_t d = 0; d < head_dim; ++d) out[d] = scratch.acc[i * dim + d] / scratch.sum[i];
  }
}

}  // namespace

void attention(ThreadPool& pool, const float* q, int64_t tokens, int64_t heads, const KvShape& shape,
               const uint16_t* k_cache, const uint16_t* v_cache, int64_t start, int64_t window, float* out) {
  const Tile tile{q, k_cache, v_cache, out, heads, start, window, tokens, shape};
  ThreadPool::Session session(pool);
  // Heads that share keys stay together while that leaves a unit for every thread.
  const int64_t tiles = (tokens + kQueryTokens - 1) / kQueryTokens, group = heads / shape.kv_heads;
  const int64_t unit_heads = tiles * shape.kv_heads >= session.threads() ? group : 1;
  const int64_t queries = std::min(tokens, kQueryTokens) * unit_heads;
  const int64_t worker_floats = round_up(TileScratch::floats(queries, tile.dim_padded()), 16);
  Scratch<float> scratch(session.threads() * worker_floats);
  session.allocate(scratch);
  // Keys that a block lacks are multiplied, and masked afterwards, so they must be numbers that were written.
  std::fill_n(scratch.data(), session.threads() * worker_floats, 0.0f);

  const int64_t units_per_tile = heads / unit_heads;
  const auto attend_unit = [&](int worker, int64_t unit) {
    const int64_t first = unit / units_per_tile * kQueryTokens;
    const TileScratch memory(scratch.data() + worker * worker_floats, queries, tile.dim_padded());
    attend_tile(session.isa(), tile, first, std::min(tokens, first + kQueryTokens), unit % units_per_tile * unit_heads,
                unit_heads, memory);
  };
  session.parallel_for(tiles * units_per_tile, attend_unit);
}

void kv_append(const float* k, const float* v, int64_t tokens, const KvShape& shape, int64_t start, uint16_t* k_cache,
               uint16_t* v_cache) {
  const auto [kv_heads, capacity, dim] = shape;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t head = 0; head < kv_heads; ++head) {
      const int64_t from = (t * kv_heads + head) * dim, to = (head * capacity + (start + t) % capacity) * dim;
      for (int64_t d = 0; d < dim; ++d) k_cache[to + d] = f32_to_f16(k[from + d]);
      for (int64_t d = 0; d < dim; ++d) v_cache[to + d] = f32_to_f16(v[from + d]);
    }
  }
}

}  // namespace smallthinker
