// One step's arithmetic, as it is lent.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "forward.h"
#include "lending.h"
#include "step_arithmetic.h"

namespace smallthinker {

class LentStep final : public StepArithmetic {
 public:
  // kept: what the step's pointers point into, and the runner itself.
  LentStep(BoundForward& forward, BoundForward::Step step, py::tuple kept)
      : forward_(forward), step_(std::move(step)), kept_(std::move(kept)) {}

  // To be owned by Python.
  static py::capsule lend(std::unique_ptr<LentStep> step) {
    const py::capsule capsule(static_cast<StepArithmetic*>(step.get()), kCapsule, [](PyObject* owner) {
      delete static_cast<StepArithmetic*>(PyCapsule_GetPointer(owner, kCapsule));
    });
    step.release();
    return capsule;
  }

  bool run(int64_t first, int64_t last, const int32_t* ahead, Stop* stop) noexcept override {
    return without_exception([&] { *stop = forward_.run(first, last, step_, ahead, &forward_.live_neurons); });
  }
  bool mix(int64_t layer) noexcept override {
    return without_exception([&] {
      const auto i = static_cast<size_t>(layer);
      const py::gil_scoped_release unlocked;
      forward_.layers_[i].mixer->add_to(step_.x, step_.spans[i], step_.angles, step_.normed);
    });
  }
  bool guess(int64_t source, int64_t target, Guess* guess) noexcept override {
    return without_exception([&] { *guess = forward_.guess(source, step_.x, step_.tokens, {target}).front(); });
  }
  bool compute(int64_t layer, const Routes& part, const std::vector<int32_t>& slots) noexcept override {
    return without_exception([&] {
      for (size_t i = 0; i < slots.size(); ++i) check_slot("slots", static_cast<int64_t>(i), slots[i], forward_.slots_.shape(0));
      forward_.live_neurons += forward_.alone([&] {
        return forward_.compute_locked(of(layer), step_.normed, step_.weights, step_.tokens, part, slots);
      });
    });
  }
  bool share(int64_t layer) noexcept override {
    if (of(layer).ffn->shared() == nullptr) return true;
    return without_exception([&] {
      forward_.alone([&] { forward_.share_locked(of(layer), step_.x, step_.normed, step_.tokens); });
    });
  }
  bool combine(int64_t layer) noexcept override {
    return without_exception([&] {
      forward_.alone([&] { forward_.combine_locked(layer, step_.x, step_.weights, step_.tokens, step_.inputs); });
    });
  }

 private:
  const BoundForward::Layer& of(int64_t layer) const { return forward_.layers_[static_cast<size_t>(layer)]; }

  BoundForward& forward_;
  const BoundForward::Step step_;
  const py::tuple kept_;
};

}  // namespace smallthinker
