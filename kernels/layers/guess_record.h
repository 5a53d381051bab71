// How often guesses of a layer's experts were right lately, by layer and rank, over those that meant a read: experts that are
// resident are guessed more easily. What follows from it is decided in router/look_ahead.py.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "../step_arithmetic.h"

namespace smallthinker {

class GuessRecord {
 public:
  struct Rules {
    double hope;   // a precision to begin with
    double keep;   // of the running precision, at each guess once there were some
    double worth;  // a precision below it isn't worth a read
  };

  // k: experts of a token; certain: layers of which all is wanted.
  GuessRecord(int64_t layers, int64_t k, std::set<int64_t> certain, const Rules& rules);

  // What is still open of the token before is given up; what its final state told of the first layer is open now.
  void begin_token();
  // How likely the guess ranked first, second ... is right; 0 where it isn't worth a read. std::out_of_range, as below.
  std::vector<double> likelihoods(int64_t source, int64_t target) const;
  std::vector<double> precision(int64_t target, bool own) const { return at(own, target).precision; }
  bool may_be_right(int64_t target, bool own) const;
  // These had to be read: places in the guess. A token's final state tells of the next one's first layer.
  void predict(int64_t source, int64_t target, const Guess& guess, const std::vector<int64_t>& missing);
  void score(int64_t layer, const std::vector<int32_t>& experts);  // the exact ones

 private:
  using Open = std::vector<std::pair<int32_t, int32_t>>;  // rank, expert
  struct OfLayer {
    std::vector<double> precision;  // by rank
    std::vector<int64_t> judged;
    Open open;  // whose truth is still to come
  };

  const OfLayer& at(bool own, int64_t layer) const { return of_layers_[own ? 1 : 0].at(static_cast<size_t>(layer)); }

  const std::set<int64_t> certain_;
  const Rules rules_;
  std::array<std::vector<OfLayer>, 2> of_layers_;  // of guesses by another layer's state, and by the layer's own
  Open of_next_;                                   // of the next token's first layer
};

}  // namespace smallthinker
