// How often each expert is used, and which of the residents is expected to be used last. Pure: no memory, no clock.
// What it means is in cache/policies.py; here it is fast, since it is asked between two kernels.
//
// Several averages, each over another stretch of the past, foretell what the next token uses. What is reckoned with is
// their mixture, weighted by how well each has foretold lately: exponential weights (Littlestone and Warmuth 1994) on
// squared errors, with a past that fades.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "books.h"

namespace smallthinker {

class Frequency final : public Policy {
 public:
  struct Memory {
    std::vector<double> tokens;  // about so many tokens each of the averages is over
    double prior_tokens;         // that were seen before the first, as it were
    double judged_tokens;        // about so many tokens the averages are judged by
    double trust;                // how much more the better of them weighs
    double least_chance;         // of use per token that is reckoned with
  };

  // Keys count experts layer after layer. experts, per_token: of each layer, and how many of them a token uses. Throws
  // std::invalid_argument for no keys or a memory that isn't positive.
  Frequency(const std::vector<int64_t>& experts, const std::vector<double>& per_token, const Memory& memory);

  int64_t keys() const { return static_cast<int64_t>(resident_.size()); }
  std::vector<double> chances() const;

  void insert(int64_t key) override { resident_[at(key)] = 1; }
  void remove(int64_t key) override;  // std::invalid_argument: it isn't resident
  // So many tokens use these keys of the layer, and none of its others.
  void use(const Use& use) override;
  void step(int64_t tokens) override;
  double score(int64_t key) override { return mixed(at(key)); }  // chance of use by the next token
  // The resident, none of those that stay, whose next use is expected last while `layer` is served; -1 for none.
  int64_t victim(const std::vector<uint8_t>& stays, int64_t layer) override;

  // Begins with these chances, keys() of them, as if so many tokens had shown them.
  void restore(const double* chances, double tokens);

 private:
  struct Average {
    double tokens;
    double weight;           // in the mixture
    double loss = 0;         // in this step, of all its tokens
    double credit = 0;       // less than 0: the fading sum of losses
    std::vector<double> chance;
  };

  int64_t layers() const { return static_cast<int64_t>(first_.size()) - 1; }
  size_t at(int64_t key) const;              // throws std::out_of_range
  std::pair<int64_t, int64_t> keys_of(int64_t layer) const;  // first and end; throws std::out_of_range
  void check(const Use& use) const;
  void add(Average& average, int64_t layer, const std::vector<int64_t>& keys, const std::vector<double>& shares, double rate);
  double rate(const Average& average) const;  // what the next token weighs in it
  double mixed(size_t key) const;
  void be_late(int64_t first, int64_t end);

  std::vector<int64_t> first_;  // key of each layer, and the end of the last
  double per_token_ = 0;        // experts that a token uses, in all layers
  const Memory memory_;
  double tokens_ = 0;
  std::vector<Average> averages_;
  std::vector<double> lateness_;  // tokens until the next use, but for the layers on the way
  std::vector<uint8_t> resident_;
};

}  // namespace smallthinker
