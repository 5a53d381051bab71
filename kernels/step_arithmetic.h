// What the order of a step's work asks (layers/): the arithmetic of its layers, the kernels' or, for `plan`, a clock's.
//
// Shape letters: T tokens of a step, k experts per token, L layers.
#pragma once

#include <cstdint>
#include <vector>

namespace smallthinker {

constexpr int64_t kFinalState = -1;  // in place of a layer whose state is taken: the state that goes into the head

// The experts that a step wants of a layer: those of one token best first, of several tokens ascending. Pairs (token * k +
// rank) of expert i are pairs[offsets[i]] to pairs[offsets[i + 1] - 1].
struct Routes {
  std::vector<int32_t> experts, offsets, pairs;
};

// Experts that a later layer may want, by the best rank that a token gives them, and these ranks.
struct Guess {
  std::vector<int32_t> experts, ranks;
};

struct StepArithmetic {
  // Why `run` ended.
  enum class Why {
    done,
    routed,          // an expert of the layer isn't in memory, or it was to go no further. Attention has been added only
                     // where the router reads it; nothing else of the layer is computed
    guessed,         // attention has been added, and what is guessed of a later layer isn't in memory
    guessed_before,  // what is guessed before the layer's attention isn't in memory; nothing of the layer is computed
  };
  struct Stop {
    int64_t layer = 0;
    Why why = Why::done;
    bool is_mixed = false;        // attention has been added
    std::vector<Routes> used;     // of the layers from `first` on that found their experts in slots, this one among them if guessed
    Routes route;                 // of the layer, if routed or guessed
    std::vector<int32_t> slots;   // of the route's experts, if guessed
    Guess guess;
  };

  virtual ~StepArithmetic() = default;
  // The layers from `first` on, as long as their experts are in slots; `last` is routed and no more. ahead [2, L]: the layer
  // that is guessed before the attention of one whose router reads what comes of it, and once attention has been added; -1
  // for none.
  virtual Stop run(int64_t first, int64_t last, const int32_t* ahead) = 0;
  virtual void mix(int64_t layer) = 0;  // attention
  virtual Guess guess(int64_t source, int64_t target) = 0;
  // What some of the last route's experts, in these slots, give the tokens that chose them; kept until `combine`.
  virtual void compute(int64_t layer, const Routes& part, const std::vector<int32_t>& slots) = 0;
  virtual void share(int64_t layer) = 0;  // what every token uses, kept as well
  virtual void combine(int64_t layer) = 0;
};

}  // namespace smallthinker
