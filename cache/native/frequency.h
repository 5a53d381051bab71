// How often each expert is used, and which of the residents is expected to be used last. Pure: no memory, no clock.
// What it means is in cache/policies.py; here it is fast, since it is asked between two kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace smallthinker {

class Frequency {
 public:
  struct Memory {
    double tokens;        // about so many tokens are averaged over
    double prior_tokens;  // that were seen before the first, as it were
    double least_chance;  // of use per token that is reckoned with
  };

  // A key is layer * experts + expert. Throws std::invalid_argument for no keys or a memory that isn't positive.
  Frequency(int64_t layers, int64_t experts, double even_chance, const Memory& memory);

  int64_t keys() const { return static_cast<int64_t>(chance_.size()); }
  int64_t experts() const { return experts_; }
  double tokens() const { return tokens_; }
  double chance(int64_t key) const { return chance_[at(key)]; }
  const std::vector<double>& chances() const { return chance_; }

  void insert(int64_t key) { resident_[at(key)] = 1; }
  bool remove(int64_t key);  // false: it wasn't resident
  void clear();

  // What the next token weighs in the average.
  double rate() const;
  // Lets `shares` of so many tokens, one for each of these keys of the layer and 0 for its others, count by `rate`.
  void average(int64_t layer, const std::vector<int64_t>& keys, const std::vector<double>& shares, double rate);
  void step(double tokens) { tokens_ += tokens; }
  // Begins with these chances, keys() of them, as if so many tokens had shown them.
  void restore(const double* chances, double tokens);

  // The resident, none of the pinned, whose next use is expected last while `layer` is served; -1 when there is none.
  int64_t victim(const std::vector<int64_t>& pinned, int64_t layer);

 private:
  size_t at(int64_t key) const;           // throws std::out_of_range
  int64_t first_of(int64_t layer) const;  // key; throws std::out_of_range
  void be_late(int64_t first, int64_t end);

  const int64_t layers_, experts_;
  const Memory memory_;
  double tokens_ = 0;
  std::vector<double> chance_, lateness_;  // lateness: tokens until the next use, but for the layers on the way
  std::vector<uint8_t> resident_;
};

}  // namespace smallthinker
