// The next token from logits: filters, and a draw that takes the same token on every CPU, with any number of threads.
//
// Weights are whole numbers, so a sum of them is the same in any order: nothing is sorted. Where a running sum over the
// order of tokens passes a number is found as in a radix sort of which only one bucket a level is looked into.
#include <algorithm>
#include <array>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <limits>
#include <vector>

#include "formats/f16.h"
#include "kernels.h"
#include "thread_pool.h"

namespace smallthinker {

namespace {

constexpr uint64_t kOne = uint64_t{1} << kWeightBits;
constexpr double kLog2E = 1.4426950408889634;
constexpr int64_t kLogitsAtOnce = 1 << 14;

// Larger for a larger logit; NaN is below everything.
inline uint32_t key_of(float logit) {
  const uint32_t bits = bit_cast<uint32_t>(logit + 0.0f);  // -0 becomes 0
  const uint32_t key = bits ^ ((uint32_t{0} - (bits >> 31)) | 0x80000000u);
  return logit == logit ? key : 0;
}

// -inf for none; false when one is NaN.
bool find_largest(const float* logits, int64_t n, float& largest) {
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, -std::numeric_limits<float>::infinity());
  uint32_t is_nan[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      const float x = logits[i + j];
      lanes[j] = x > lanes[j] ? x : lanes[j];
      is_nan[j] |= x != x;
    }
  }
  for (; i < n; ++i) {
    lanes[0] = std::max(lanes[0], logits[i]);
    is_nan[0] |= logits[i] != logits[i];
  }
  largest = *std::max_element(lanes, lanes + kLanes);
  return std::all_of(is_nan, is_nan + kLanes, [](uint32_t nan) { return nan == 0; });
}

// Tokens in order by their running sum of weights, or by their number.
class Order {
 public:
  // weights [n], or null for 1 each. memory [n].
  Order(const float* logits, int64_t n, const uint64_t* weights, int32_t* memory)
      : logits_(logits), n_(n), weights_(weights), memory_(memory), first_(sums(n, 21, [](int64_t i) { return i; })) {}

  struct Place {
    int64_t index;
    uint64_t before;  // the sum of those that come before it
  };

  // The first that brings the sum above `target`, which is less than all weights together.
  Place find(uint64_t target) const {
    uint64_t before = 0;
    uint32_t prefix = pass(first_, target, before);
    int64_t n = keep(n_, 21, prefix, [](int64_t i) { return static_cast<int32_t>(i); });
    for (const int shift : {10, 0}) {
      const auto kept = [this](int64_t i) { return memory_[i]; };
      const uint32_t bucket = pass(sums(n, shift, kept), target, before);
      prefix = prefix << (shift == 10 ? 11 : 10) | bucket;
      n = keep(n, shift, prefix, kept);
    }
    for (int64_t i = 0;; ++i) {  // of equal logits, by id
      const uint64_t weight = weight_of(memory_[i]);
      if (i + 1 == n || before + weight > target) return {memory_[i], before};
      before += weight;
    }
  }

 private:
  static constexpr uint32_t kBuckets = 2048;
  using Sums = std::array<uint64_t, kBuckets>;

  uint64_t weight_of(int64_t i) const { return weights_ == nullptr ? 1 : weights_[i]; }

  // Of the buckets that the bits of the key from `shift` on make. Neighbours are often in one bucket: four of each, or
  // every sum would wait for the one before it.
  template <class At>
  Sums sums(int64_t n, int shift, At at) const {
    const uint32_t mask = shift == 0 ? kBuckets / 2 - 1 : kBuckets - 1;
    std::array<Sums, 4> parts{};
    for (int64_t i = 0; i < n; ++i) {
      parts[static_cast<size_t>(i & 3)][(key_of(logits_[at(i)]) >> shift) & mask] += weight_of(at(i));
    }
    for (size_t b = 0; b < kBuckets; ++b) parts[0][b] += parts[1][b] + parts[2][b] + parts[3][b];
    return parts[0];
  }

  // The bucket within which the sum passes the target; `before` grows by those above it.
  static uint32_t pass(const Sums& sums, uint64_t target, uint64_t& before) {
    uint32_t bucket = kBuckets - 1;
    for (; bucket > 0 && before + sums[bucket] <= target; --bucket) before += sums[bucket];
    return bucket;
  }

  // Into memory, in their order, those whose key begins with `prefix`.
  template <class At>
  int64_t keep(int64_t n, int shift, uint32_t prefix, At at) const {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      const int32_t index = at(i);
      memory_[kept] = index;
      kept += (key_of(logits_[index]) >> shift) == prefix;
    }
    return kept;
  }

  const float* logits_;
  int64_t n_;
  const uint64_t* weights_;
  int32_t* memory_;
  Sums first_;
};

// The ids of the first k in order, ascending.
void first_ids(const float* logits, int64_t n, int64_t k, int32_t* memory, int32_t* ids) {
  const int64_t last = Order(logits, n, nullptr, memory).find(static_cast<uint64_t>(k - 1)).index;
  const uint32_t least = key_of(logits[last]);
  int64_t kept = 0;
  for (int64_t i = 0; i < n && kept < k; ++i) {
    const uint32_t key = key_of(logits[i]);
    ids[kept] = static_cast<int32_t>(i);
    kept += (key > least) | ((key == least) & (i <= last));
  }
}

uint64_t weigh(ThreadPool::Session& session, const float* logits, int64_t n, float largest, double temperature,
               uint64_t* weights) {
  if (std::isinf(largest)) {  // those that are infinite share all there is
    for (int64_t i = 0; i < n; ++i) weights[i] = logits[i] == largest ? kOne : 0;
    return kOne * static_cast<uint64_t>(std::count(logits, logits + n, largest));
  }
  const double scale = std::min(kLog2E / temperature, DBL_MAX);
  std::atomic<uint64_t> total{0};
  const auto some = [&](int, int64_t unit) {
    const int64_t first = unit * kLogitsAtOnce, count = std::min(kLogitsAtOnce, n - first);
    total += session.isa().exp_weights(logits + first, count, largest, scale, weights + first);
  };
  session.parallel_for((n + kLogitsAtOnce - 1) / kLogitsAtOnce, some);
  return total;
}

uint64_t share(double part, uint64_t of) { return static_cast<uint64_t>(part * static_cast<double>(of)); }

}  // namespace

int64_t sample(ThreadPool& pool, const float* logits, int64_t n, const Filters& filters, double u) {
  float largest;
  if (!find_largest(logits, n, largest) || largest == -std::numeric_limits<float>::infinity()) return -1;
  const int64_t k = std::min(filters.top_k, n);
  ThreadPool::Session session(pool);
  Scratch<uint64_t> weights(k);
  Scratch<int32_t> memory(n), ids(k < n ? k : 0);
  Scratch<float> chosen(k < n ? k : 0);
  session.allocate(weights, memory, ids, chosen);
  if (k < n) {
    first_ids(logits, n, k, memory.data(), ids.data());
    for (int64_t i = 0; i < k; ++i) chosen[i] = logits[ids[i]];
    logits = chosen.data();
  }
  const uint64_t total = weigh(session, logits, k, largest, filters.temperature, weights.data());
  const Order order(logits, k, weights.data(), memory.data());

  // What both filters leave is a beginning of the order: the shorter of two.
  uint64_t mass = total;
  if (filters.min_p > 0.0) {
    const auto least = static_cast<uint64_t>(std::ceil(filters.min_p * static_cast<double>(kOne)));
    mass = 0;
    for (int64_t i = 0; i < k; ++i) mass += weights[i] >= least ? weights[i] : 0;
  }
  if (filters.top_p < 1.0) {
    const auto needed = static_cast<uint64_t>(std::ceil(filters.top_p * static_cast<double>(total)));
    if (needed < mass) {
      const Order::Place last = order.find(std::max<uint64_t>(needed, 1) - 1);
      mass = last.before + weights[last.index];
    }
  }
  const int64_t drawn = order.find(std::min(share(u, mass), mass - 1)).index;
  return k < n ? ids[drawn] : drawn;
}

void top_ids(ThreadPool& pool, const float* logits, int64_t n, int64_t k, int32_t* ids) {
  if (k == 0) return;
  ThreadPool::Session session(pool);
  Scratch<int32_t> memory(n);
  session.allocate(memory);
  first_ids(logits, n, k, memory.data(), ids);
  std::stable_sort(ids, ids + k, [&](int32_t a, int32_t b) { return key_of(logits[a]) > key_of(logits[b]); });
}

double log_sum_exp(ThreadPool& pool, const float* logits, int64_t n) {
  float largest;
  find_largest(logits, n, largest);
  ThreadPool::Session session(pool);
  Scratch<uint64_t> weights(n);
  session.allocate(weights);
  return std::log(static_cast<double>(weigh(session, logits, n, largest, 1.0, weights.data())) / static_cast<double>(kOne));
}

void penalize(float* logits, int64_t n, const int32_t* recent, int64_t n_recent, float penalty) {
  std::vector<bool> is_done(static_cast<size_t>(n));
  for (int64_t i = 0; i < n_recent; ++i) {
    const int32_t id = recent[i];
    float& logit = logits[id];
    if (is_done[static_cast<size_t>(id)] || !std::isfinite(logit) || logit == 0.0f) continue;
    is_done[static_cast<size_t>(id)] = true;
    // banned tokens stay the only ones that are -inf, and no penalty makes a token the only one
    logit = std::clamp(logit > 0.0f ? logit / penalty : logit * penalty, -FLT_MAX, FLT_MAX);
  }
}

}  // namespace smallthinker
