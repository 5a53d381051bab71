// The only file that knows the order of a step's work.
#include "layers.h"

#include <algorithm>
#include <chrono>
#include <optional>

#include "lent_error.h"

namespace smallthinker {
namespace {

using Ids = LayerExperts::Ids;

constexpr int64_t kTokensACall = 64;  // times layers: how long cancelling may take

Ids experts_of(const Routes& route) { return {route.experts.begin(), route.experts.end()}; }

// How many tokens want each expert; none for one token, which wants them all.
Ids counts_of(const Routes& route, int64_t tokens) {
  Ids counts;
  if (tokens == 1) return counts;
  for (size_t i = 0; i < route.experts.size(); ++i) counts.push_back(route.offsets[i + 1] - route.offsets[i]);
  return counts;
}

void hold(int64_t layer, const Routes& route, LayerStep& step) {
  step.routes.emplace_back();
  step.routes.back().first = layer;
  for (size_t i = 0; i < route.experts.size(); ++i) {
    for (int32_t at = route.offsets[i]; at < route.offsets[i + 1]; ++at) {
      step.routes.back().second.emplace_back(route.pairs[static_cast<size_t>(at)], route.experts[i]);
    }
  }
}

// Of a route, the experts at these places.
Routes part_of(const Routes& route, const std::vector<LayerExperts::Landed>& landed) {
  Routes part;
  part.offsets.push_back(0);
  for (const auto& [position, slot] : landed) {
    const auto i = static_cast<size_t>(position);
    part.experts.push_back(route.experts[i]);
    part.pairs.insert(part.pairs.end(), route.pairs.begin() + route.offsets[i], route.pairs.begin() + route.offsets[i + 1]);
    part.offsets.push_back(static_cast<int32_t>(part.pairs.size()));
  }
  return part;
}

// Withdraws the reads that are not over, unpins everything.
class OpenRequest {
 public:
  OpenRequest(LayerExperts& experts, int64_t layer, const Ids& wanted, const Ids& counts, int64_t tokens) : experts_(experts) {
    throw_unless(experts_.request(layer, wanted, counts, tokens));
  }
  ~OpenRequest() { experts_.end_request(); }
  OpenRequest(const OpenRequest&) = delete;
  OpenRequest& operator=(const OpenRequest&) = delete;

 private:
  LayerExperts& experts_;
};

class Stopwatch {
 public:
  explicit Stopwatch(double* total) : total_(total), began_(Clock::now()) {}
  ~Stopwatch() { *total_ += std::chrono::duration<double>(Clock::now() - began_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  double* const total_;
  const Clock::time_point began_;
};

}  // namespace

void Layers::run(LayerStep& step) {
  int64_t layer = 0, asked = -1;  // asked: whose own experts have been guessed
  while (layer < limits_.layers) {
    step.observer.between_layers(layer);
    const Stop stop = run_in_memory(layer, asked, step);
    layer = stop.layer + 1;
    switch (stop.why) {
      case StepArithmetic::Why::done: return;
      case StepArithmetic::Why::guessed_before:  // the rest of the layer is still to come
        read_guess(stop.layer, stop.layer, step, stop.guess);
        layer = asked = stop.layer;
        break;
      case StepArithmetic::Why::guessed:  // its experts are in memory, those guessed of a later layer are not
        read_guess(stop.layer, step.ahead[limits_.layers + stop.layer], step, stop.guess);
        compute(stop.layer, stop.route, stop.slots, step);
        break;
      case StepArithmetic::Why::routed: serve(stop, step); break;
    }
  }
}

// The layers from this one on, as far as everything that they need is in memory.
StepArithmetic::Stop Layers::run_in_memory(int64_t layer, int64_t asked, LayerStep& step) {
  int64_t last = std::min(experts_.first_guessed(layer, limits_.layers), layer + std::max<int64_t>(1, kTokensACall / step.tokens));
  std::vector<int32_t> ahead;
  if (step.guesses == nullptr || is_many(step)) {
    ahead.assign(static_cast<size_t>(2 * limits_.layers), -1);
  } else {
    ahead.assign(step.ahead, step.ahead + 2 * limits_.layers);
    if (layer == asked) ahead[static_cast<size_t>(layer)] = -1;
  }
  if (step.guesses != nullptr && is_many(step)) {
    last = layer;
    if (limits_.own.count(layer) != 0) read_most(layer, layer, step);
  }
  if (step.observer.is_watching()) {
    last = layer;
    step.observer.entered(layer);
  }
  Stop stop = step.arithmetic.run(layer, last, ahead.data());
  for (const Routes& used : stop.used) {
    throw_unless(experts_.found(layer, experts_of(used), counts_of(used, step.tokens), step.tokens));
    if (step.is_held) hold(layer, used, step);
    ++layer;
  }
  return stop;
}

// One layer that may miss something; nothing of it has been computed but, if it is mixed, attention.
void Layers::serve(const Stop& stop, LayerStep& step) {
  if (step.guesses == nullptr) {
    serve_route(stop.layer, stop.route, step, stop.is_mixed);
    return;
  }
  const double waited = experts_.stall_sec();
  const int64_t wanted = experts_.wanted();
  step.guesses->score(stop.layer, stop.route.experts);
  serve_route(stop.layer, stop.route, step, stop.is_mixed);
  step.waits.push_back({stop.layer, experts_.stall_sec() - waited, experts_.wanted() - wanted});
}

void Layers::serve_route(int64_t layer, const Routes& route, LayerStep& step, bool is_mixed) {
  if (step.observer.is_watching()) {
    if (is_mixed) step.observer.attended(layer);
    step.observer.routed(layer, is_mixed, route);
  }
  if (step.is_held) hold(layer, route, step);
  const Ids wanted = experts_of(route), counts = counts_of(route, step.tokens);
  std::optional<std::vector<int32_t>> slots;
  throw_unless(experts_.find(layer, wanted, counts, step.tokens, &slots));
  if (slots) {  // nothing to read
    if (!is_mixed) mix(layer, step);
    guess_next(layer, step);
    compute(layer, route, *slots, step);
    return;
  }
  if (!limits_.asks_early && !is_mixed) {
    mix(layer, step);
    is_mixed = true;
  }
  {
    const OpenRequest request(experts_, layer, wanted, counts, step.tokens);  // misses go to the disk now
    if (!is_mixed) {
      guess_next(layer, step);  // for when the disk is through with those before attention is
      mix(layer, step);         // arithmetic while the disk works
    }
    guess_next(layer, step);
    step.arithmetic.share(layer);
    for (;;) {  // resident ones first
      std::vector<LayerExperts::Landed> landed;
      throw_unless(experts_.landed(&landed));
      if (landed.empty()) break;
      std::vector<int32_t> of_landed;
      for (const auto& one : landed) of_landed.push_back(one.slot);
      step.arithmetic.compute(layer, part_of(route, landed), of_landed);
    }
  }
  step.arithmetic.combine(layer);  // in the router's order, whichever landed first
}

// The layer's network, with all of its experts in memory.
void Layers::compute(int64_t layer, const Routes& route, const std::vector<int32_t>& slots, LayerStep& step) {
  step.arithmetic.compute(layer, route, slots);
  step.arithmetic.share(layer);
  step.arithmetic.combine(layer);
}

void Layers::mix(int64_t layer, LayerStep& step) {
  step.arithmetic.mix(layer);
  if (step.observer.is_watching()) step.observer.attended(layer);
}

// Of the next layer; after this one's attention most guesses are right.
void Layers::guess_next(int64_t source, const LayerStep& step) {
  if (step.guesses == nullptr) return;
  if (is_many(step)) {
    if (source + 1 < limits_.layers) read_most(source, source + 1, step);
    return;
  }
  const int32_t target = step.ahead[limits_.layers + source];
  if (target >= 0) guess(source, target, step);
}

void Layers::guess(int64_t source, int64_t target, const LayerStep& step) {
  Guess guess;
  {
    const Stopwatch watch(&guess_sec);
    guess = step.arithmetic.guess(source, target);
  }
  read_guess(source, target, step, guess);
}

// What was guessed of layer `target`, which may be `source` itself: before its attention, where its router reads what comes of
// that.
void Layers::read_guess(int64_t source, int64_t target, const LayerStep& step, const Guess& guess) {
  const Stopwatch watch(&guess_sec);
  const std::vector<double> of_rank = step.guesses->likelihoods(source, target);
  std::vector<double> likelihoods;
  for (const int32_t rank : guess.ranks) likelihoods.push_back(of_rank.at(static_cast<size_t>(rank)));
  Ids places;
  throw_unless(experts_.prefetch(target, {guess.experts.begin(), guess.experts.end()}, likelihoods,
                                 std::min<int64_t>(step.tokens, 2) * limits_.max_under_way, &places));
  step.guesses->predict(source, target, guess, places);
}

// Many tokens want most of a layer's experts: all that a token names, the best-ranked first.
void Layers::read_most(int64_t source, int64_t target, const LayerStep& step) {
  const Guess guess = step.arithmetic.guess(source, target);
  Ids missing;
  throw_unless(experts_.prefetch(target, {guess.experts.begin(), guess.experts.end()},
                                 std::vector<double>(guess.experts.size(), 1.0), limits_.slots, &missing));
}

}  // namespace smallthinker
