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
#include <optional>
#include <utility>
#include <vector>

#include "formats/half.h"
#include "kernels.h"
#include "thread_pool.h"

namespace smallthinker {

namespace {

constexpr uint64_t kOne = uint64_t{1} << kWeightBits;
constexpr double kLog2E = 1.4426950408889634;
constexpr int64_t kFewest = 1 << 14;  // logits that are worth a thread

// body(piece, first, count) for every piece of [0, n), each on a thread.
int64_t pieces_of(const ThreadPool::Session& session, int64_t n) {
  return std::max<int64_t>(1, std::min<int64_t>(session.threads(), n / kFewest));
}
template <class Body>
void in_pieces(ThreadPool::Session& session, int64_t n, const Body& body) {
  const int64_t pieces = pieces_of(session, n), size = (n + pieces - 1) / pieces;
  const auto unit = [&](int, int64_t piece) { body(piece, piece * size, std::min(size, n - piece * size)); };
  session.parallel_for(pieces, unit);
}

// Larger for a larger logit; NaN is below everything.
inline uint32_t key_of(float logit) {
  const uint32_t bits = bit_cast<uint32_t>(logit + 0.0f);  // -0 becomes 0
  const uint32_t key = bits ^ ((uint32_t{0} - (bits >> 31)) | 0x80000000u);
  return logit == logit ? key : 0;
}

// False when one is NaN. By whole numbers, since the largest of floats in vectors isn't what max() promises of NaN.
bool find_largest(const float* logits, int64_t n, float& largest) {
  int32_t best = std::numeric_limits<int32_t>::min(), magnitude = 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto bits = bit_cast<int32_t>(logits[i]);
    best = std::max(best, bits ^ ((bits >> 31) & 0x7fffffff));
    magnitude = std::max(magnitude, bits & 0x7fffffff);
  }
  largest = bit_cast<float>(best ^ ((best >> 31) & 0x7fffffff));
  return magnitude <= 0x7f800000;
}

// The numbers i of [0, n) for which is_wanted(i), ascending, into `to` [n]; returns how many. Where none of eight is
// wanted, they cost a look: the compiler makes vectors of the first loop, and of the second what a processor can't guess.
template <class IsWanted>
int64_t filter_piece(int64_t begin, int64_t end, const IsWanted& is_wanted, int32_t* to) {
  constexpr int64_t kFlags = 256, kWord = 8;
  uint8_t flags[kFlags];
  int64_t found = 0;
  for (int64_t first = begin; first < end; first += kFlags) {
    const int64_t count = std::min(kFlags, end - first);
    for (int64_t j = 0; j < count; ++j) flags[j] = is_wanted(first + j);
    std::fill(flags + count, flags + kFlags, uint8_t{0});
    for (int64_t word = 0; word < count; word += kWord) {
      if (bit_cast<uint64_t>(*reinterpret_cast<const std::array<uint8_t, kWord>*>(flags + word)) == 0) continue;
      for (int64_t j = word; j < std::min(word + kWord, count); ++j) {
        to[found] = static_cast<int32_t>(first + j);
        found += flags[j];
      }
    }
  }
  return found;
}
template <class IsWanted>
int64_t filter(ThreadPool::Session& session, int64_t n, const IsWanted& is_wanted, int32_t* to) {
  std::vector<std::pair<int64_t, int64_t>> found(static_cast<size_t>(pieces_of(session, n)));
  in_pieces(session, n, [&](int64_t piece, int64_t first, int64_t count) {
    found[static_cast<size_t>(piece)] = {first, filter_piece(first, first + count, is_wanted, to + first)};
  });
  int64_t total = 0;
  for (const auto& [first, count] : found) {
    if (first > total) std::copy_n(to + first, count, to + total);
    total += count;
  }
  return total;
}

// Tokens in order by their running sum of weights, or by their number.
class Order {
 public:
  // weights [n], or null for 1 each. memory [n].
  Order(ThreadPool::Session& session, const float* logits, int64_t n, const uint64_t* weights, int32_t* memory)
      : session_(session), logits_(logits), n_(n), weights_(weights), memory_(memory) {
    std::vector<Sums> parts(static_cast<size_t>(pieces_of(session, n)));
    in_pieces(session, n, [&](int64_t piece, int64_t first, int64_t count) {
      parts[static_cast<size_t>(piece)] = sums(count, 21, [=](int64_t i) { return first + i; });
    });
    for (const Sums& part : parts) add(first_, part);
  }

  struct Place {
    int64_t index;
    uint64_t before;  // the sum of those that come before it
  };

  // The first that brings the sum above `target`, which is less than all weights together.
  Place find(uint64_t target) const {
    uint64_t before = 0;
    uint32_t prefix = pass(first_, target, before);
    const float* const logits = logits_;
    int64_t n = filter(session_, n_, [=](int64_t i) { return key_of(logits[i]) >> 21 == prefix; }, memory_);
    for (int shift = 10; shift >= 0 && !are_equal(n); shift -= 10) {
      const auto kept = [this](int64_t i) { return memory_[i]; };
      prefix = prefix << (shift == 10 ? 11 : 10) | pass(sums(n, shift, kept), target, before);
      int64_t left = 0;
      for (int64_t i = 0; i < n; ++i) {
        memory_[left] = memory_[i];
        left += key_of(logits_[memory_[i]]) >> shift == prefix;
      }
      n = left;
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

  bool are_equal(int64_t n) const {
    const float first = logits_[memory_[0]];
    return std::all_of(memory_, memory_ + n, [&](int32_t i) { return logits_[i] == first; });
  }

  // Of the buckets that the bits of the key from `shift` on make. Neighbours are often in one bucket: four of each, or
  // every sum would wait for the one before it.
  template <class At>
  Sums sums(int64_t n, int shift, const At& at) const {
    constexpr int64_t kTogether = 256;
    const uint32_t mask = shift == 0 ? kBuckets / 2 - 1 : kBuckets - 1;
    std::array<Sums, 4> parts{};
    uint32_t buckets[kTogether];
    for (int64_t first = 0; first < n; first += kTogether) {
      const int64_t count = std::min(kTogether, n - first);
      for (int64_t j = 0; j < count; ++j) buckets[j] = (key_of(logits_[at(first + j)]) >> shift) & mask;
      const auto sum = [&](size_t part, int64_t j) { parts[part][buckets[j]] += weight_of(at(first + j)); };
      int64_t j = 0;
      for (; j + 4 <= count; j += 4) sum(0, j), sum(1, j + 1), sum(2, j + 2), sum(3, j + 3);
      for (; j < count; ++j) sum(0, j);
    }
    for (size_t part = 1; part < parts.size(); ++part) add(parts[0], parts[part]);
    return parts[0];
  }

  static void add(Sums& to, const Sums& from) {
    for (size_t b = 0; b < kBuckets; ++b) to[b] += from[b];
  }

  // The bucket within which the sum passes the target; `before` grows by those above it.
  static uint32_t pass(const Sums& sums, uint64_t target, uint64_t& before) {
    uint32_t bucket = kBuckets - 1;
    for (; bucket > 0 && before + sums[bucket] <= target; --bucket) before += sums[bucket];
    return bucket;
  }

  ThreadPool::Session& session_;
  const float* logits_;
  int64_t n_;
  const uint64_t* weights_;
  int32_t* memory_;
  Sums first_{};
};

// The ids of the first k in order, ascending, into memory [n].
void first_ids(ThreadPool::Session& session, const float* logits, int64_t n, int64_t k, int32_t* memory) {
  const int64_t last = Order(session, logits, n, nullptr, memory).find(static_cast<uint64_t>(k - 1)).index;
  const uint32_t least = key_of(logits[last]);
  const int64_t until = filter(session, last + 1, [=](int64_t i) { return key_of(logits[i]) >= least; }, memory);
  const float* const rest = logits + last + 1;
  const int64_t more = filter(session, n - last - 1, [=](int64_t i) { return key_of(rest[i]) > least; }, memory + until);
  for (int64_t i = until; i < until + more; ++i) memory[i] += static_cast<int32_t>(last + 1);
}

uint64_t weigh(ThreadPool::Session& session, const float* logits, int64_t n, float largest, double temperature,
               uint64_t* weights) {
  if (std::isinf(largest)) {  // those that are infinite share all there is
    for (int64_t i = 0; i < n; ++i) weights[i] = logits[i] == largest ? kOne : 0;
    return kOne * static_cast<uint64_t>(std::count(logits, logits + n, largest));
  }
  const double scale = std::min(kLog2E / temperature, DBL_MAX);
  std::atomic<uint64_t> total{0};
  in_pieces(session, n, [&](int64_t, int64_t first, int64_t count) {
    total += session.isa().exp_weights(logits + first, count, largest, scale, weights + first);
  });
  return total;
}

// The same order, looked into no further than needed: first among the tokens within 2^-14 of the likeliest, which are
// few and hold nearly all weight where a model is sure of anything.
class Search {
 public:
  struct Memory {
    int32_t *ids, *places;  // [n]
    uint64_t* weights;      // [n / 4]
    float* logits;          // [n / 4]
  };

  Search(ThreadPool::Session& session, const float* logits, int64_t n, const uint64_t* weights, float largest,
         double temperature, const Memory& memory)
      : session_(session), logits_(logits), n_(n), weights_(weights), memory_(memory) {
    const auto least = static_cast<float>(std::max(largest - 14.0 / kLog2E * temperature, -double{FLT_MAX}));
    const int64_t few = filter(session, n, [=](int64_t i) { return logits[i] >= least; }, memory.ids);
    if (few > n / 4) return;
    for (int64_t i = 0; i < few; ++i) {
      memory.weights[i] = weights[memory.ids[i]];
      memory.logits[i] = logits[memory.ids[i]];
      few_mass_ += memory.weights[i];
    }
    few_count_ = few;
    few_.emplace(session, memory.logits, few, memory.weights, memory.places);
  }

  Order::Place find(uint64_t target) {
    if (target < few_mass_) {
      const Order::Place place = few_->find(target);
      return {memory_.ids[place.index], place.before};
    }
    if (!all_) all_.emplace(session_, logits_, n_, weights_, memory_.places);
    return all_->find(target);
  }

  // All weights of at least so much.
  uint64_t mass_of(uint64_t least) const {
    const bool is_among_few = few_ && least >= kOne >> 13;
    const uint64_t* const weights = is_among_few ? memory_.weights : weights_;
    std::atomic<uint64_t> mass{0};
    in_pieces(session_, is_among_few ? few_count_ : n_, [&](int64_t, int64_t first, int64_t count) {
      uint64_t sum = 0;
      for (int64_t i = first; i < first + count; ++i) sum += weights[i] >= least ? weights[i] : 0;
      mass += sum;
    });
    return mass;
  }

 private:
  ThreadPool::Session& session_;
  const float* logits_;
  int64_t n_;
  const uint64_t* weights_;
  Memory memory_;
  uint64_t few_mass_ = 0;
  int64_t few_count_ = 0;
  std::optional<Order> few_, all_;
};

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
  Scratch<int32_t> few_ids(k);
  Scratch<uint64_t> few_weights(k / 4);
  Scratch<float> few_logits(k / 4);
  session.allocate(weights, memory, ids, chosen, few_ids, few_weights, few_logits);
  if (k < n) {
    first_ids(session, logits, n, k, memory.data());
    std::copy_n(memory.data(), k, ids.data());
    for (int64_t i = 0; i < k; ++i) chosen[i] = logits[ids[i]];
    logits = chosen.data();
  }
  const uint64_t total = weigh(session, logits, k, largest, filters.temperature, weights.data());
  Search order(session, logits, k, weights.data(), largest, filters.temperature,
               {few_ids.data(), memory.data(), few_weights.data(), few_logits.data()});

  // What both filters leave is a beginning of the order: the shorter of two.
  uint64_t mass = total;
  if (filters.min_p > 0.0) {
    const auto least = static_cast<uint64_t>(std::ceil(filters.min_p * static_cast<double>(kOne)));
    mass = order.mass_of(least);
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
  first_ids(session, logits, n, k, memory.data());
  std::copy_n(memory.data(), k, ids);
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
