// A step's way through the layers without a line of Python, as long as everything that it needs is in memory. Between
// kernels that sweep the processor's caches, what Python does for a layer costs several times its usual price.
//
// Shape letters: T tokens of a step, d hidden size, E experts of a layer, k experts per token, L layers.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings/bound_attention.h"
#include "bindings/bound_ffn.h"
#include "step_arithmetic.h"

namespace smallthinker {

// LOSSY, see lossy_routing.py: what a step of less than `tokens` tokens may do instead of waiting for experts.
struct LossyRouting {
  int64_t tokens = 0;        // none: all is exact
  int64_t experts = 0;       // of a token, at most; 0: as the model has it
  float prefer = 0;          // see Preference
  float skip = 0;            // an expert in no slot is left out if its weight is below this share of the token's
  int64_t pairs = 0, replaced = 0, left_out = 0;  // of tokens and experts, so far
};

class BoundForward {
 public:
  // (the layer whose state is taken, the layer guessed for) -> a matrix [E, d] in q8_0 and an offset [E]: what they make of
  // a state of mean square 1 takes the place of the router's product. The state is that after the source's attention; that
  // before it, where both layers are the same; the final one of the token before, where the source is kFinalState.
  using Predictors = std::map<std::pair<int64_t, int64_t>, std::pair<py::array, py::array>>;
  using Caches = std::vector<std::vector<const BoundKvLayer*>>;  // of each sequence, by layer

  using Stop = StepArithmetic::Stop;

  // mixers, ffns: of every layer, BoundAttentionLayer and BoundFfn. slots [n, record_bytes]. input_gates: of every layer, or
  // none at all.
  BoundForward(ThreadPool& pool, const std::vector<py::object>& mixers, const std::vector<py::object>& ffns,
               const py::array& slots, const Predictors& predictors,
               const std::vector<std::shared_ptr<BoundInputGate>>& input_gates)
      : pool_(pool), kept_(mixers), kept_predictors_(predictors), slots_(slots), input_gates_(input_gates) {
    kept_.insert(kept_.end(), ffns.begin(), ffns.end());
    if (mixers.empty() || mixers.size() != ffns.size()) {
      fail("ffns: expected as many as mixers, at least one, ", mixers.size(), ", found ", ffns.size());
    }
    if (!input_gates.empty() && input_gates.size() != mixers.size()) {
      fail("input_gates: expected as many as mixers, ", mixers.size(), ", found ", input_gates.size());
    }
    for (const auto& gate : input_gates) {
      if (gate == nullptr) continue;
      if (input_width_ > 0 && gate->how().gate.rows != input_width_) fail("input_gates: expected one width, found two");
      input_width_ = gate->how().gate.rows;
    }
    int64_t records = 0;
    for (size_t i = 0; i < mixers.size(); ++i) {
      layers_.push_back({&mixers[i].cast<BoundAttentionLayer&>(), &ffns[i].cast<BoundFfn&>(), records});
      const Layer& layer = layers_.back();
      records += layer.ffn->experts();
      pairs_ = std::max(pairs_, layer.mixer->pairs());
      ExpertCall call = layer.ffn->call();
      check_slots(slots, call);
      if (call.shape.hidden != layer.mixer->dim() || call.shape.hidden != layers_[0].mixer->dim()) {
        fail("layer ", i, ": expected states ", layers_[0].mixer->dim(), " wide");
      }
      if (gate_of(i) != nullptr && gate_of(i)->proj.rows != dim()) fail("input_gates[", i, "]: expected states ", dim(), " wide");
    }
    for (const auto& [pair, of_pair] : kept_predictors_) {
      const auto& [matrix, offset] = of_pair;
      const BoundFfn& ffn = *at("predictors", pair.second).ffn;
      if (!ffn.has_router()) fail("predictors: layer ", pair.second, " has no router whose choice there is to predict");
      if (pair.first != kFinalState) at("predictors", pair.first);
      check_matrix(Quant::q8_0, ffn.experts(), dim());
      const uint8_t* bytes = packed(matrix, "predictors", packed_bytes(Quant::q8_0, Layout::tiles, ffn.experts(), dim()));
      const float* by = input<float>(offset, "predictors", {ffn.experts()});
      predictors_[pair] = {{Quant::q8_0, bytes, ffn.experts(), dim()}, by};
    }
  }

  // One step's arrays: x [T, d] is computed in place; normed [T, d] gets the last norm; ids, weights [T, largest k] the last
  // route, as [T, its layer's k] from their start on. inputs [T, L * width]: what layers are given of the tokens, where they
  // have input gates. slot_of [records or more]: where an expert is, or -1; those of a layer stand together, layer after layer.
  struct Step {
    float *x, *normed;
    int64_t tokens;
    int32_t* ids;
    float* weights;
    const float* inputs;
    const int32_t* slot_of;
    Angles angles;
    std::vector<std::vector<Span>> spans;  // by layer
  };

  // Checked. counts[i] tokens of caches[i] from position starts[i] on.
  Step begin(py::array& x, py::array& normed, py::array& ids, py::array& weights, const py::array& slot_of, const Caches& caches,
             const std::vector<int64_t>& starts, const std::vector<int64_t>& counts, const py::array& cos, const py::array& sin,
             const py::array& inputs) const {
    Step step;
    step.x = output<float>(x, "x", {-1, dim()});
    step.tokens = x.shape(0);
    step.normed = output<float>(normed, "normed", {step.tokens, dim()});
    check_disjoint(normed, x, "x");
    const int64_t widest = widest_k();
    step.ids = output<int32_t>(ids, "ids", {step.tokens, widest});
    step.weights = output<float>(weights, "weights", {step.tokens, widest});
    step.inputs = check_inputs(inputs, step.tokens);
    step.slot_of = input<int32_t>(slot_of, "slot_of", {-1});
    if (slot_of.size() < records()) fail("slot_of: expected at least ", records(), " records, found ", slot_of.size());
    step.angles = check_angles(cos, sin, step.tokens, pairs_);
    for (const auto& of_sequence : caches) {
      if (of_sequence.size() != layers_.size()) fail("caches: expected those of ", layers_.size(), " layers, found ", of_sequence.size());
    }
    std::vector<const BoundKvLayer*> of_layer(caches.size());
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      for (size_t s = 0; s < caches.size(); ++s) of_layer[s] = caches[s][layer];
      step.spans.push_back(layers_[layer].mixer->spans(of_layer, starts, counts, step.tokens));
    }
    return step;
  }

  // See StepArithmetic. Adds up the neurons that were computed.
  Stop run(int64_t first, int64_t last, const Step& step, const int32_t* ahead, int64_t* live_neurons) {
    const int64_t n_layers = num_layers();
    if (first < 0 || first > last || last > n_layers) fail("first, last: expected 0 to ", n_layers, ", found ", first, ", ", last);
    for (int64_t i = 0; i < 2 * n_layers; ++i) {
      if (ahead[i] >= n_layers) fail("ahead: expected less than ", n_layers, ", found ", ahead[i]);
    }
    return alone([&] { return run_locked(first, last, step, ahead, ahead + n_layers, live_neurons); });
  }

  // What each layer in `targets` would choose for x [T, d]: as its predictor for `source` says or, without one, as its
  // own router does of the same x.
  std::vector<Guess> guess(int64_t source, const py::array& x, const std::vector<int64_t>& targets) {
    const float* from = input<float>(x, "x", {-1, dim()});
    return guess(source, from, x.shape(0), targets);
  }
  std::vector<Guess> guess(int64_t source, const float* from, int64_t tokens, const std::vector<int64_t>& targets) {
    for (const int64_t target : targets) {
      const bool is_known = predictors_.count({source, target}) != 0 || !at("targets", target).ffn->has_router();
      if (source == kFinalState && !is_known) fail("targets: no predictor of layer ", target);
    }
    const py::gil_scoped_release unlocked;
    std::vector<Guess> guesses;
    for (const int64_t target : targets) guesses.push_back(guess_one(source, target, from, tokens));
    return guesses;
  }

  // What some of a layer's experts give the tokens that chose them, kept until `combine`: pairs[i] are those of the
  // expert in slots[i]. weights [T, k]: of the route, where they multiply what experts read. Returns how many neurons were
  // computed.
  int64_t compute(int64_t layer, const py::array& normed, const std::vector<std::vector<int32_t>>& pairs,
                  const std::vector<int32_t>& slots, const std::optional<py::array>& weights) {
    const float* from = input<float>(normed, "normed", {-1, dim()});
    const Layer& of = at("layer", layer);
    const int64_t tokens = normed.shape(0);
    const float* weigh = weights ? input<float>(*weights, "weights", {tokens, of.ffn->k()}) : nullptr;
    if (of.ffn->weighs_input() && weigh == nullptr) fail("weights: expected those of the route, found None");
    if (slots.size() != pairs.size()) fail("slots: expected as many as pairs, ", pairs.size(), ", found ", slots.size());
    Routes route;
    route.offsets.push_back(0);
    std::vector<char> is_used(static_cast<size_t>(tokens * of.ffn->k()));
    for (size_t i = 0; i < pairs.size(); ++i) {
      check_slot("slots", static_cast<int64_t>(i), slots[i], slots_.shape(0));
      for (const int32_t pair : pairs[i]) {
        if (pair < 0 || pair >= tokens * of.ffn->k()) fail("pairs: expected 0 to ", tokens * of.ffn->k() - 1, ", found ", pair);
        if (is_used[static_cast<size_t>(pair)]++) fail("pairs: ", pair, " is there twice");
      }
      route.pairs.insert(route.pairs.end(), pairs[i].begin(), pairs[i].end());
      route.offsets.push_back(static_cast<int32_t>(route.pairs.size()));
    }
    if (slots.empty()) return 0;
    return alone([&] { return compute_locked(of, from, weigh, tokens, route, slots); });
  }

  // What the layer's shared network gives each of normed [T, d], or of the states x, kept until `combine`.
  void share(int64_t layer, const py::array& normed, const std::optional<py::array>& x) {
    const float* from = input<float>(normed, "normed", {-1, dim()});
    const float* state = x ? input<float>(*x, "x", {normed.shape(0), dim()}) : nullptr;
    const Layer& of = at("layer", layer);
    if (of.ffn->shared_reads_state() && state == nullptr) fail("x: expected states, found None");
    const int64_t tokens = normed.shape(0);
    alone([&] { share_locked(of, state, from, tokens); });
  }

  // x [T, d] += the sum over rank j of weights[t, j] times what was computed last for pair t * k + j, k the layer's, and
  // then what was shared last; and what the layer makes of its part of inputs, as in `run`.
  void combine(int64_t layer, py::array& x, const py::array& weights, const py::array& inputs) {
    const Layer& of = at("layer", layer);
    float* to = output<float>(x, "x", {-1, dim()});
    const int64_t tokens = x.shape(0);
    const float* w = input<float>(weights, "weights", {tokens, of.ffn->k()});
    const float* given = check_inputs(inputs, tokens);
    alone([&] {
      if (floats(of, tokens) > contributions_.size()) fail("x: expected at most the tokens that were computed, found ", tokens);
      combine_locked(layer, to, w, tokens, given);
    });
  }

  int64_t num_layers() const { return static_cast<int64_t>(layers_.size()); }
  int64_t dim() const { return layers_[0].mixer->dim(); }

  void be_lossy(int64_t tokens, int64_t experts, float prefer, float skip) { lossy_ = {tokens, experts, prefer, skip}; }
  const LossyRouting& lossy() const { return lossy_; }

  int64_t live_neurons = 0;  // that bound steps have computed

  // Free what experts' contributions take; the next step takes what it needs.
  void release() {
    pool_.home().check();
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<float>().swap(contributions_);
  }

 private:
  friend class BoundStep;

  // Work that uses what calls share. Without the GIL, which another thread may want that holds the lock.
  template <class Work>
  std::invoke_result_t<Work> alone(Work&& work) {
    const py::gil_scoped_release unlocked;
    pool_.home().check();  // else the lock may be held for ever
    const std::lock_guard<std::mutex> lock(mutex_);
    return work();
  }

  static constexpr float kTiny = 1e-12f;  // beside a mean square

  struct Predictor {
    Matrix matrix;
    const float* offset;
  };

  struct Layer {
    BoundAttentionLayer* mixer;
    BoundFfn* ffn;
    int64_t first_record;
  };
  // [T, L * width], or null where no layer has a gate.
  const float* check_inputs(const py::array& inputs, int64_t tokens) const {
    const int64_t width = input_width_ * static_cast<int64_t>(layers_.size());
    return width == 0 ? nullptr : input<float>(inputs, "inputs", {tokens, width});
  }
  const InputGate* gate_of(size_t layer) const {
    return input_gates_.empty() || input_gates_[layer] == nullptr ? nullptr : &input_gates_[layer]->how();
  }
  int64_t records() const { return layers_.back().first_record + layers_.back().ffn->experts(); }
  int64_t widest_k() const {
    int64_t widest = 0;
    for (const Layer& layer : layers_) widest = std::max(widest, layer.ffn->k());
    return widest;
  }
  const Layer& at(const char* name, int64_t layer) const {
    if (layer < 0 || layer >= static_cast<int64_t>(layers_.size())) {
      fail(name, ": expected 0 to ", static_cast<int64_t>(layers_.size()) - 1, ", found ", layer);
    }
    return layers_[static_cast<size_t>(layer)];
  }

  Stop run_locked(int64_t first, int64_t last, const Step& step, const int32_t* guessed_before, const int32_t* guessed_after,
                  int64_t* live_neurons) {
    Stop stop;
    for (stop.layer = first; stop.layer < num_layers(); ++stop.layer) {
      const Layer& layer = layers_[static_cast<size_t>(stop.layer)];
      stop.is_mixed = false;
      const auto mix = [&] {
        layer.mixer->add_to(step.x, step.spans[static_cast<size_t>(stop.layer)], step.angles, step.normed);
        stop.is_mixed = true;
      };
      if (layer.ffn->reads_mixed()) {
        if (!is_guess_there(stop.layer, guessed_before[stop.layer], step, &stop.guess)) {
          stop.why = StepArithmetic::Why::guessed_before;
          return stop;
        }
        mix();
      }
      Routes route = choose(layer, step);
      std::vector<int32_t> found;
      if (stop.layer == last || !are_there(layer, step.slot_of, route.experts, &found)) {
        stop.why = StepArithmetic::Why::routed;
        stop.route = std::move(route);
        return stop;
      }
      if (!stop.is_mixed) mix();
      if (!is_guess_there(stop.layer, guessed_after[stop.layer], step, &stop.guess)) {
        stop.why = StepArithmetic::Why::guessed;
        stop.used.push_back(route);
        stop.route = std::move(route);
        stop.slots = std::move(found);
        return stop;
      }
      *live_neurons += compute_locked(layer, step.normed, step.weights, step.tokens, route, found);
      share_locked(layer, step.x, step.normed, step.tokens);
      combine_locked(stop.layer, step.x, step.weights, step.tokens, step.inputs);
      stop.used.push_back(std::move(route));
    }
    return stop;
  }

  // The layer's exact route, into step.ids and step.weights as well. Where the mixer comes first, of its norm.
  Routes choose(const Layer& layer, const Step& step) {
    const int64_t k = layer.ffn->k(), experts = layer.ffn->experts(), tokens = step.tokens;
    std::vector<char> is_out;  // by pair, where one may be left out
    if (layer.ffn->has_router()) {
      const bool reads_norm = layer.ffn->reads_mixed() && !layer.ffn->reads_state();
      const bool is_lossy = tokens < lossy_.tokens;
      const Preference prefers{step.slot_of + layer.first_record, lossy_.prefer, &lossy_.replaced};
      ask_router(*layer.ffn, reads_norm ? step.normed : step.x, tokens, step.ids, step.weights,
                 is_lossy && lossy_.prefer > 0 ? &prefers : nullptr);
      if (is_lossy) is_out = leave_out(layer, step);
    } else {
      for (int64_t pair = 0; pair < tokens * k; ++pair) step.ids[pair] = static_cast<int32_t>(pair % k);
      std::fill_n(step.weights, tokens * k, 1.0f);
    }
    Routes route;
    route.offsets.push_back(0);
    const auto is_in = [&](int64_t pair) { return is_out.empty() || is_out[static_cast<size_t>(pair)] == 0; };
    if (tokens == 1) {
      for (int32_t rank = 0; rank < k; ++rank) {
        if (!is_in(rank)) continue;
        route.experts.push_back(step.ids[rank]);
        route.pairs.push_back(rank);
        route.offsets.push_back(static_cast<int32_t>(route.pairs.size()));
      }
      return route;
    }
    std::vector<std::vector<int32_t>> pairs_of(static_cast<size_t>(experts));
    for (int64_t pair = 0; pair < tokens * k; ++pair) {
      if (is_in(pair)) pairs_of[static_cast<size_t>(step.ids[pair])].push_back(static_cast<int32_t>(pair));
    }
    for (size_t expert = 0; expert < pairs_of.size(); ++expert) {
      if (pairs_of[expert].empty()) continue;
      route.experts.push_back(static_cast<int32_t>(expert));
      route.pairs.insert(route.pairs.end(), pairs_of[expert].begin(), pairs_of[expert].end());
      route.offsets.push_back(static_cast<int32_t>(route.pairs.size()));
    }
    return route;
  }

  // By pair: what the lossy routing leaves out, which then weighs nothing; a token's others take its weight.
  std::vector<char> leave_out(const Layer& layer, const Step& step) {
    const int64_t k = layer.ffn->k();
    std::vector<char> is_out(static_cast<size_t>(step.tokens * k));
    if (floats(layer, step.tokens) > contributions_.size()) contributions_.resize(floats(layer, step.tokens));
    lossy_.pairs += step.tokens * k;
    for (int64_t t = 0; t < step.tokens; ++t) {
      float* const weights = step.weights + t * k;
      const float all = std::accumulate(weights, weights + k, 0.0f);
      float kept = weights[0];
      for (int64_t rank = 1; rank < k; ++rank) {
        const int64_t pair = t * k + rank;
        const bool is_missing = step.slot_of[layer.first_record + step.ids[pair]] < 0;
        const bool is_one_more = lossy_.experts > 0 && rank >= lossy_.experts;
        if (!is_one_more && !(is_missing && weights[rank] < lossy_.skip * all)) {
          kept += weights[rank];
          continue;
        }
        is_out[static_cast<size_t>(pair)] = 1;
        ++lossy_.left_out;
        weights[rank] = 0;
        std::fill_n(contributions_.begin() + static_cast<std::ptrdiff_t>(pair * dim()), dim(), 0.0f);
      }
      if (kept > 0 && all > 0) {
        for (int64_t rank = 0; rank < k; ++rank) weights[rank] *= all / kept;
      }
    }
    return is_out;
  }

  // Guesses for layer `target`, -1 for none. Whether all of it is in slots.
  bool is_guess_there(int64_t source, int64_t target, const Step& step, Guess* guess) {
    if (target < 0) return true;
    *guess = guess_one(source, target, step.x, step.tokens);
    return are_there(layers_[static_cast<size_t>(target)], step.slot_of, guess->experts, nullptr);
  }

  Guess guess_one(int64_t source, int64_t target, const float* x, int64_t tokens) {
    const BoundFfn& ffn = *layers_[static_cast<size_t>(target)].ffn;
    if (!ffn.has_router()) {
      Guess all{std::vector<int32_t>(static_cast<size_t>(ffn.k())), std::vector<int32_t>(static_cast<size_t>(ffn.k()))};
      std::iota(all.experts.begin(), all.experts.end(), 0);
      return all;
    }
    const auto predictor = predictors_.find({source, target});
    std::vector<float> normed;
    if (predictor == predictors_.end() && ffn.reads_mixed() && !ffn.reads_state()) {  // what it would read if no mixer came between
      normed.resize(static_cast<size_t>(tokens * dim()));
      layers_[static_cast<size_t>(target)].mixer->norm_for_ffn(x, tokens, normed.data());
      x = normed.data();
    }
    std::vector<int32_t> ids(static_cast<size_t>(tokens * ffn.k()));
    std::vector<float> unused(ids.size());
    if (predictor != predictors_.end()) ask_predictor(predictor->second, ffn, x, tokens, ids.data(), unused.data());
    else ask_router(ffn, x, tokens, ids.data(), unused.data());
    Guess guess;
    std::vector<char> is_known(static_cast<size_t>(ffn.experts()));
    for (int64_t rank = 0; rank < ffn.k(); ++rank) {
      for (int64_t t = 0; t < tokens; ++t) {
        const int32_t expert = ids[static_cast<size_t>(t * ffn.k() + rank)];
        if (std::exchange(is_known[static_cast<size_t>(expert)], char{1}) != 0) continue;
        guess.experts.push_back(expert);
        guess.ranks.push_back(static_cast<int32_t>(rank));
      }
    }
    return guess;
  }

  // x [T, d] through the router's own norm, if it has one.
  void ask_router(const BoundFfn& ffn, const float* x, int64_t tokens, int32_t* ids, float* weights,
                  const Preference* prefers = nullptr) {
    const Norm how = ffn.router_norm();
    std::vector<float> normed(static_cast<size_t>(how.size > 0 ? tokens * dim() : 0));
    if (how.size > 0) norm(how, x, tokens, normed.data());
    Timed timed(pool_.timings(), "router");
    router(pool_, ffn.router(), how.size > 0 ? normed.data() : x, tokens, ffn.scoring(), ids, weights, prefers);
  }

  void ask_predictor(const Predictor& predictor, const BoundFfn& ffn, const float* x, int64_t tokens, int32_t* ids,
                     float* weights) {
    Timed timed(pool_.timings(), "router");
    std::vector<float> scaled(static_cast<size_t>(tokens * dim())), logits(static_cast<size_t>(tokens * ffn.experts()));
    norm({dim(), kTiny}, x, tokens, scaled.data());
    linear(pool_, {{predictor.matrix, logits.data()}}, scaled.data(), tokens);
    const Scoring& how = ffn.scoring();
    const auto experts = static_cast<size_t>(ffn.experts());
    for (size_t i = 0; i < logits.size(); ++i) logits[i] = (logits[i] + predictor.offset[i % experts]) * how.logit_scale;
    route(logits.data(), tokens, ffn.experts(), how, ids, weights);
  }

  // Whether all of these experts of a layer are in slots, which go into `found`.
  bool are_there(const Layer& layer, const int32_t* slot_of, const std::vector<int32_t>& experts,
                 std::vector<int32_t>* found) const {
    for (const int32_t expert : experts) {
      const int32_t slot = slot_of[layer.first_record + expert];
      if (slot < 0) return false;
      check_slot("slot_of", layer.first_record + expert, slot, slots_.shape(0));
      if (found != nullptr) found->push_back(slot);
    }
    return true;
  }

  // Of contributions: a row of each pair, then one of each token where there is a shared network.
  static size_t floats(const Layer& layer, int64_t tokens) {
    const int64_t rows = layer.ffn->k() + (layer.ffn->shared() != nullptr ? 1 : 0);
    return static_cast<size_t>(tokens * rows * layer.ffn->call().shape.hidden);
  }
  float* shared_row(const Layer& layer, int64_t tokens) {
    return layer.ffn->shared() == nullptr ? nullptr : contributions_.data() + tokens * layer.ffn->k() * dim();
  }

  void share_locked(const Layer& layer, const float* x, const float* normed, int64_t tokens) {
    if (layer.ffn->shared() == nullptr) return;
    if (floats(layer, tokens) > contributions_.size()) contributions_.resize(floats(layer, tokens));
    Timed timed(pool_.timings(), "shared");
    const float* const read = layer.ffn->shared_reads_state() ? x : normed;
    shared_ffn(pool_, *layer.ffn->shared(), read, tokens, shared_row(layer, tokens));
  }

  int64_t compute_locked(const Layer& layer, const float* normed, const float* weights, int64_t tokens, const Routes& route,
                         const std::vector<int32_t>& slots) {
    if (floats(layer, tokens) > contributions_.size()) contributions_.resize(floats(layer, tokens));
    ExpertCall call = layer.ffn->call();
    call.slots = static_cast<const uint8_t*>(slots_.data());
    call.record_bytes = slots_.shape(1);
    call.tokens = tokens;
    call.n_experts = static_cast<int64_t>(slots.size());
    call.slot_ids = slots.data();
    call.offsets = route.offsets.data();
    call.pairs = route.pairs.data();
    call.x = normed;
    call.out = contributions_.data();
    std::vector<float> weighed;
    if (layer.ffn->weighs_input()) {  // each pair is a token of its own
      weighed.resize(static_cast<size_t>(tokens * call.k * dim()));
      for (const int32_t pair : route.pairs) {
        for (int64_t d = 0; d < dim(); ++d) {
          weighed[static_cast<size_t>(pair * dim() + d)] = normed[pair / call.k * dim() + d] * weights[pair];
        }
      }
      call.x = weighed.data();
      call.tokens = tokens * call.k;
      call.k = 1;
    }
    Timed timed(pool_.timings(), "experts");
    return experts(pool_, call);
  }

  void combine_locked(int64_t number, float* x, const float* weights, int64_t tokens, const float* inputs) {
    const Layer& layer = layers_[static_cast<size_t>(number)];
    const std::vector<float> ones(static_cast<size_t>(layer.ffn->weighs_input() ? tokens * layer.ffn->k() : 0), 1.0f);
    if (layer.ffn->weighs_input()) weights = ones.data();
    Timed timed(pool_.timings(), "combine");
    smallthinker::combine(pool_, x, contributions_.data(), weights, shared_row(layer, tokens), tokens, layer.ffn->k(), dim(),
                          layer.ffn->residual(), layer.ffn->of_experts());
    const InputGate* const gate = gate_of(static_cast<size_t>(number));
    if (gate == nullptr) return;
    input_gate(pool_, *gate, inputs + number * input_width_, static_cast<int64_t>(layers_.size()) * input_width_, tokens, x);
  }

  ThreadPool& pool_;
  std::vector<py::object> kept_;  // what layers_ points to
  const Predictors kept_predictors_;
  const py::array slots_;
  const std::vector<std::shared_ptr<BoundInputGate>> input_gates_;
  int64_t input_width_ = 0;
  std::vector<Layer> layers_;
  int64_t pairs_ = 0;  // of angles that layers need
  std::map<std::pair<int64_t, int64_t>, Predictor> predictors_;
  std::vector<float> contributions_;
  LossyRouting lossy_;
  std::mutex mutex_;
};

}  // namespace smallthinker
