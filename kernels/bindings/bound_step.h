// One step's arithmetic by the kernels.
#pragma once

#include <utility>
#include <vector>

#include "forward.h"
#include "step_arithmetic.h"

namespace smallthinker {

class BoundStep final : public StepArithmetic {
 public:
  // kept: what the step's pointers point into, and the runner itself.
  BoundStep(BoundForward& forward, BoundForward::Step step, py::tuple kept)
      : forward_(forward), step_(std::move(step)), kept_(std::move(kept)) {}

  Stop run(int64_t first, int64_t last, const int32_t* ahead) override {
    return forward_.run(first, last, step_, ahead, &forward_.live_neurons);
  }
  void mix(int64_t layer) override {
    const auto i = static_cast<size_t>(layer);
    const py::gil_scoped_release unlocked;
    forward_.layers_[i].mixer->add_to(step_.x, step_.spans[i], step_.angles, step_.normed);
  }
  Guess guess(int64_t source, int64_t target) override {
    return std::move(forward_.guess(source, step_.x, step_.tokens, {target}).front());
  }
  void compute(int64_t layer, const Routes& part, const std::vector<int32_t>& slots) override {
    for (size_t i = 0; i < slots.size(); ++i) check_slot("slots", static_cast<int64_t>(i), slots[i], forward_.slots_.shape(0));
    forward_.live_neurons += forward_.alone([&] {
      return forward_.compute_locked(of(layer), step_.normed, step_.weights, step_.tokens, part, slots);
    });
  }
  void share(int64_t layer) override {
    if (of(layer).ffn->shared() == nullptr) return;
    forward_.alone([&] { forward_.share_locked(of(layer), step_.x, step_.normed, step_.tokens); });
  }
  void combine(int64_t layer) override {
    forward_.alone([&] { forward_.combine_locked(layer, step_.x, step_.weights, step_.tokens, step_.inputs); });
  }

 private:
  const BoundForward::Layer& of(int64_t layer) const { return forward_.layers_[static_cast<size_t>(layer)]; }

  BoundForward& forward_;
  const BoundForward::Step step_;
  const py::tuple kept_;
};

}  // namespace smallthinker
