#include "frequency.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace smallthinker {
namespace {

int64_t checked_keys(int64_t layers, int64_t experts) {
  constexpr int64_t most = int64_t{1} << 31;
  if (layers < 1 || experts < 1 || layers > most / experts) {
    throw std::invalid_argument("expected at least one layer and one expert, found " + std::to_string(layers) + " and " +
                                std::to_string(experts));
  }
  return layers * experts;
}

}  // namespace

Frequency::Frequency(int64_t layers, int64_t experts, double even_chance, const Memory& memory)
    : layers_(layers),
      experts_(experts),
      memory_(memory),
      chance_(static_cast<size_t>(checked_keys(layers, experts)), even_chance),
      lateness_(chance_.size()),
      resident_(chance_.size()) {
  if (!(memory.tokens >= 1 && memory.prior_tokens >= 1 && memory.least_chance > 0)) {
    throw std::invalid_argument("memory: expected at least 1 token, 1 prior token and a chance above 0");
  }
  be_late(0, keys());
}

bool Frequency::remove(int64_t key) { return std::exchange(resident_[at(key)], uint8_t{0}) != 0; }

void Frequency::clear() { std::fill(resident_.begin(), resident_.end(), uint8_t{0}); }

double Frequency::rate() const { return std::max(1 / memory_.tokens, 1 / (tokens_ + memory_.prior_tokens)); }

void Frequency::average(int64_t layer, const std::vector<int64_t>& keys, const std::vector<double>& shares, double rate) {
  const int64_t first = first_of(layer), end = first + experts_;
  if (keys.size() != shares.size()) throw std::invalid_argument("expected a share for each key");
  for (const int64_t key : keys) {
    if (key < first || key >= end) {
      throw std::out_of_range("key " + std::to_string(key) + ": layer " + std::to_string(layer) + " has " +
                              std::to_string(first) + " to " + std::to_string(end - 1));
    }
  }
  for (int64_t key = first; key < end; ++key) chance_[static_cast<size_t>(key)] *= 1 - rate;
  for (size_t i = 0; i < keys.size(); ++i) chance_[static_cast<size_t>(keys[i])] += rate * shares[i];
  be_late(first, end);
}

void Frequency::restore(const double* chances, double tokens) {
  std::copy_n(chances, chance_.size(), chance_.begin());
  tokens_ = tokens;
  be_late(0, keys());
}

int64_t Frequency::victim(const std::vector<int64_t>& pinned, int64_t layer) {
  first_of(layer);
  // Most pinned keys are resident; what isn't must not become so.
  std::vector<size_t> hidden;
  hidden.reserve(pinned.size());
  for (const int64_t key : pinned) {
    if (remove(key)) hidden.push_back(static_cast<size_t>(key));
  }
  int64_t worst = -1;
  double latest = -std::numeric_limits<double>::infinity();
  for (int64_t of = 0; of < layers_; ++of) {
    // the part of a token until that layer is served again
    const double ring = static_cast<double>((of - layer - 1 + layers_) % layers_ + 1) / static_cast<double>(layers_);
    for (int64_t key = of * experts_; key < (of + 1) * experts_; ++key) {
      const double late = lateness_[static_cast<size_t>(key)] + ring;
      if (resident_[static_cast<size_t>(key)] != 0 && late > latest) {
        latest = late;
        worst = key;
      }
    }
  }
  for (const size_t key : hidden) resident_[key] = 1;
  return worst;
}

size_t Frequency::at(int64_t key) const {
  if (key < 0 || key >= keys()) {
    throw std::out_of_range("key " + std::to_string(key) + ": expected 0 to " + std::to_string(keys() - 1));
  }
  return static_cast<size_t>(key);
}

int64_t Frequency::first_of(int64_t layer) const {
  if (layer < 0 || layer >= layers_) {
    throw std::out_of_range("layer " + std::to_string(layer) + ": expected 0 to " + std::to_string(layers_ - 1));
  }
  return layer * experts_;
}

void Frequency::be_late(int64_t first, int64_t end) {
  for (auto key = static_cast<size_t>(first); key < static_cast<size_t>(end); ++key) {
    lateness_[key] = 1 / std::max(chance_[key], memory_.least_chance);
  }
}

}  // namespace smallthinker
