// One step's way through the layers. What a layer needs and memory lacks is asked for as soon as its router can say, before
// attention or after it, and used as it lands; what is only guessed is read meanwhile. The arithmetic, the experts' cache
// and the guesses are behind interfaces. Knows nothing about text, sampling, memory budgets or what one layer computes.
//
// Shape letters: L layers.
#pragma once

#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "../../cache/native/layer_experts.h"
#include "../step_arithmetic.h"
#include "guess_record.h"

namespace smallthinker {

// Who is shown what is computed. Each may throw, which ends the step.
struct Observer {
  virtual ~Observer() = default;
  virtual void between_layers(int64_t layer) = 0;
  virtual bool is_watching() const = 0;  // of a layer what follows
  virtual void entered(int64_t layer) = 0;
  virtual void routed(int64_t layer, bool is_mixed, const Routes& route) = 0;
  virtual void attended(int64_t layer) = 0;
};

// Of a step, by layer: (token * k + rank, expert).
using HeldRoutes = std::vector<std::pair<int64_t, std::vector<std::pair<int32_t, int32_t>>>>;

// What a layer waited for the records that it wanted and that weren't kept.
struct Wait {
  int64_t layer;
  double sec;
  int64_t records;
};

// One step as it is under way.
struct LayerStep {
  StepArithmetic& arithmetic;
  Observer& observer;
  GuessRecord* guesses;  // none: nothing is guessed
  const int32_t* ahead;  // [2, L], see StepArithmetic::run; of a step of many tokens it isn't looked at
  int64_t tokens;
  bool is_held;          // the policy hears of its tokens later, of those that were right
  HeldRoutes routes;     // if held
  std::vector<Wait> waits;
};

struct LayerLimits {
  int64_t layers;
  int64_t many_tokens;      // of a step, from which most of what a layer's router names is wanted; fewer are an answer's
  int64_t max_under_way;    // guessed records, of one token
  int64_t slots;
  std::set<int64_t> own;    // layers whose routers read what attention gives
  bool asks_early;          // before attention, where the router can say; else for measuring what that is worth
};

class Layers {
 public:
  Layers(LayerExperts& experts, LayerLimits limits) : experts_(experts), limits_(std::move(limits)) {}

  void run(LayerStep& step);
  // Has what layer `target` will likely want read in the disk's idle time. source: the layer within which the states are, or
  // -1 for the final ones.
  void guess(int64_t source, int64_t target, const LayerStep& step);

  double guess_sec = 0;  // that guesses have taken so far

 private:
  using Stop = StepArithmetic::Stop;

  bool is_many(const LayerStep& step) const { return step.tokens >= limits_.many_tokens; }
  Stop run_in_memory(int64_t layer, int64_t asked, LayerStep& step);
  void serve(const Stop& stop, LayerStep& step);
  void serve_route(int64_t layer, const Routes& route, LayerStep& step, bool is_mixed);
  void compute(int64_t layer, const Routes& route, const std::vector<int32_t>& slots, LayerStep& step);
  void mix(int64_t layer, LayerStep& step);
  void guess_next(int64_t source, const LayerStep& step);
  void read_guess(int64_t source, int64_t target, const LayerStep& step, const Guess& guess);
  void read_most(int64_t source, int64_t target, const LayerStep& step);

  LayerExperts& experts_;
  const LayerLimits limits_;
};

}  // namespace smallthinker
