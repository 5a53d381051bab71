#include "frequency.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace smallthinker {
namespace {

std::vector<int64_t> first_keys(const std::vector<int64_t>& experts) {
  constexpr int64_t most = int64_t{1} << 31;
  std::vector<int64_t> first{0};
  for (const int64_t n : experts) {
    if (n < 0 || n > most - first.back()) throw std::invalid_argument("experts: expected 0 or more, found " + std::to_string(n));
    first.push_back(first.back() + n);
  }
  if (first.back() == 0) throw std::invalid_argument("experts: expected at least one");
  return first;
}

}  // namespace

Frequency::Frequency(const std::vector<int64_t>& experts, const std::vector<double>& per_token, const Memory& memory)
    : first_(first_keys(experts)), memory_(memory), lateness_(static_cast<size_t>(first_.back())), resident_(lateness_.size()) {
  const bool are_tokens = std::all_of(memory.tokens.begin(), memory.tokens.end(), [](double n) { return n >= 1; });
  if (memory.tokens.empty() || !are_tokens || !(memory.prior_tokens >= 1 && memory.judged_tokens >= 1)) {
    throw std::invalid_argument("memory: expected at least one average, and at least 1 token for each length");
  }
  if (!(memory.trust >= 0 && memory.least_chance > 0)) {
    throw std::invalid_argument("memory: expected chances above 0 and a trust of at least 0");
  }
  if (per_token.size() != experts.size()) throw std::invalid_argument("per_token: expected a number for each layer");
  std::vector<double> even;
  for (size_t layer = 0; layer < experts.size(); ++layer) {
    if (experts[layer] > 0 && !(per_token[layer] > 0)) throw std::invalid_argument("per_token: expected more than 0");
    per_token_ += experts[layer] > 0 ? per_token[layer] : 0;
    even.insert(even.end(), static_cast<size_t>(experts[layer]), per_token[layer] / static_cast<double>(experts[layer]));
  }
  const double weight = 1 / static_cast<double>(memory.tokens.size());
  for (const double tokens : memory.tokens) averages_.emplace_back(Average{tokens, weight}).chance = even;
  be_late(0, keys());
}

void Frequency::remove(int64_t key) {
  if (std::exchange(resident_[at(key)], uint8_t{0}) == 0) throw std::invalid_argument("key " + std::to_string(key) + " isn't resident");
}

std::vector<double> Frequency::chances() const {
  std::vector<double> chances(resident_.size());
  for (size_t key = 0; key < chances.size(); ++key) chances[key] = mixed(key);
  return chances;
}

void Frequency::use(const Use& use) {
  check(use);
  const auto [first, end] = keys_of(use.layer);
  const std::vector<int64_t>& keys = use.records;
  const auto tokens = static_cast<double>(use.tokens);
  std::vector<double> shares(keys.size(), 1.0);
  for (size_t i = 0; i < use.counts.size(); ++i) shares[i] = static_cast<double>(use.counts[i]) / tokens;
  for (Average& average : averages_) {
    double error = 0;
    for (auto key = static_cast<size_t>(first); key < static_cast<size_t>(end); ++key) error += average.chance[key] * average.chance[key];
    for (size_t i = 0; i < keys.size(); ++i) {
      error += shares[i] * (shares[i] - 2 * average.chance[static_cast<size_t>(keys[i])]);
    }
    average.loss += tokens * error / per_token_;
    const double once = rate(average);
    add(average, use.layer, keys, shares, tokens == 1 ? once : 1 - std::pow(1 - once, tokens));
  }
  be_late(first, end);
}

void Frequency::step(int64_t count) {
  if (count < 1) throw std::invalid_argument("tokens: expected at least 1");
  const auto tokens = static_cast<double>(count);
  tokens_ += tokens;
  const double kept = std::pow(1 - 1 / memory_.judged_tokens, tokens);
  double best = -std::numeric_limits<double>::infinity(), sum = 0;
  for (Average& average : averages_) {
    average.credit = kept * average.credit - (1 - kept) * memory_.judged_tokens * average.loss / tokens;
    average.loss = 0;
    best = std::max(best, average.credit);
  }
  for (Average& average : averages_) sum += average.weight = std::exp(memory_.trust * (average.credit - best));
  for (Average& average : averages_) average.weight /= sum;
  be_late(0, keys());
}

void Frequency::restore(const double* chances, double tokens) {
  for (Average& average : averages_) std::copy_n(chances, average.chance.size(), average.chance.begin());
  tokens_ = tokens;
  be_late(0, keys());
}

int64_t Frequency::victim(const std::vector<uint8_t>& stays, int64_t layer) {
  keys_of(layer);
  if (stays.size() != resident_.size()) throw std::invalid_argument("stays: expected one for each key");
  int64_t worst = -1;
  double latest = -std::numeric_limits<double>::infinity();
  for (int64_t of = 0; of < layers(); ++of) {
    // the part of a token until that layer is served again
    const double ring = static_cast<double>((of - layer - 1 + layers()) % layers() + 1) / static_cast<double>(layers());
    const auto [first, end] = keys_of(of);
    for (auto key = static_cast<size_t>(first); key < static_cast<size_t>(end); ++key) {
      const double late = lateness_[key] + ring;
      if (resident_[key] != 0 && stays[key] == 0 && late > latest) {
        latest = late;
        worst = static_cast<int64_t>(key);
      }
    }
  }
  return worst;
}

void Frequency::check(const Use& use) const {
  const auto [first, end] = keys_of(use.layer);
  if (use.tokens < 1) throw std::invalid_argument("tokens: expected at least 1");
  if (!use.counts.empty() && use.counts.size() != use.records.size()) throw std::invalid_argument("counts: expected one for each key");
  for (const int64_t key : use.records) {
    if (key < first || key >= end) {
      throw std::out_of_range("key " + std::to_string(key) + ": layer " + std::to_string(use.layer) + " has " +
                              std::to_string(first) + " to " + std::to_string(end - 1));
    }
  }
}

void Frequency::add(Average& average, int64_t layer, const std::vector<int64_t>& keys, const std::vector<double>& shares,
                    double rate) {
  const auto [first, end] = keys_of(layer);
  for (auto key = static_cast<size_t>(first); key < static_cast<size_t>(end); ++key) average.chance[key] *= 1 - rate;
  for (size_t i = 0; i < keys.size(); ++i) average.chance[static_cast<size_t>(keys[i])] += rate * shares[i];
}

double Frequency::rate(const Average& average) const {
  return std::max(1 / average.tokens, 1 / (tokens_ + memory_.prior_tokens));
}

double Frequency::mixed(size_t key) const {
  double chance = 0;
  for (const Average& average : averages_) chance += average.weight * average.chance[key];
  return chance;
}

size_t Frequency::at(int64_t key) const {
  if (key < 0 || key >= keys()) {
    throw std::out_of_range("key " + std::to_string(key) + ": expected 0 to " + std::to_string(keys() - 1));
  }
  return static_cast<size_t>(key);
}

std::pair<int64_t, int64_t> Frequency::keys_of(int64_t layer) const {
  if (layer < 0 || layer >= layers()) {
    throw std::out_of_range("layer " + std::to_string(layer) + ": expected 0 to " + std::to_string(layers() - 1));
  }
  return {first_[static_cast<size_t>(layer)], first_[static_cast<size_t>(layer) + 1]};
}

void Frequency::be_late(int64_t first, int64_t end) {
  for (auto key = static_cast<size_t>(first); key < static_cast<size_t>(end); ++key) {
    lateness_[key] = 1 / std::max(mixed(key), memory_.least_chance);
  }
}

}  // namespace smallthinker
