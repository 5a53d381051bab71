// What the layers ask, of Python's objects: arithmetic that isn't the kernels', observers.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>
#include <vector>

#include "layers/layers.h"

namespace smallthinker {

namespace py = pybind11;

// A LayerArithmetic of forward.py.
class PythonArithmetic final : public StepArithmetic {
 public:
  PythonArithmetic(py::object arithmetic, int64_t layers) : arithmetic_(std::move(arithmetic)), layers_(layers) {}
  Stop run(int64_t first, int64_t last, const int32_t* ahead) override {
    const py::array_t<int32_t> asked({int64_t{2}, layers_}, ahead);
    const py::object told = arithmetic_.attr("run")(first, last, asked);
    Stop stop;
    stop.layer = told.attr("layer").cast<int64_t>();
    for (const py::handle layer : told.attr("used")) stop.used.push_back(routes(layer));
    const py::object route = told.attr("route"), guess = told.attr("guess");
    stop.is_mixed = told.attr("is_mixed").cast<bool>();
    if (!route.is_none()) stop.route = routes(route);
    if (!guess.is_none()) stop.guess = guess_of(guess);
    stop.why = !route.is_none() ? (guess.is_none() ? Why::routed : Why::guessed)
                                : (guess.is_none() ? Why::done : Why::guessed_before);
    if (stop.why == Why::guessed) stop.slots.assign(stop.route.experts.size(), 0);  // which don't tell it anything
    return stop;
  }
  void mix(int64_t layer) override { arithmetic_.attr("mix")(layer); }
  Guess guess(int64_t source, int64_t target) override { return guess_of(arithmetic_.attr("guess")(source, target)); }
  void compute(int64_t layer, const Routes& part, const std::vector<int32_t>&) override {
    arithmetic_.attr("compute")(layer, part.experts.size(), part.pairs.size());
  }
  void share(int64_t) override {}  // neither is asked of it
  void combine(int64_t) override {}

 private:
  static Guess guess_of(const py::object& told) {
    auto [experts, ranks] = told.cast<std::pair<std::vector<int32_t>, std::vector<int32_t>>>();
    return {std::move(experts), std::move(ranks)};
  }
  // Of experts, and the pairs of each.
  static Routes routes(const py::handle& told) {
    const auto [experts, pairs] = told.cast<std::pair<std::vector<int32_t>, std::vector<std::vector<int32_t>>>>();
    Routes found{experts, {0}, {}};
    for (const std::vector<int32_t>& of_expert : pairs) {
      found.pairs.insert(found.pairs.end(), of_expert.begin(), of_expert.end());
      found.offsets.push_back(static_cast<int32_t>(found.pairs.size()));
    }
    return found;
  }

  py::object arithmetic_;
  const int64_t layers_;
};

// cancelled() -> whether to end, on_layer(layer), watcher: an object with what an Observer has; each may be None.
class PythonObserver final : public Observer {
 public:
  PythonObserver(py::object cancelled, py::object on_layer, py::object watcher)
      : cancelled_(std::move(cancelled)), on_layer_(std::move(on_layer)), watcher_(std::move(watcher)) {}
  void between_layers(int64_t layer) override {
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!cancelled_.is_none() && cancelled_().cast<bool>()) {
      PyErr_SetString(py::module_::import("smallthinker.errors").attr("CancelledError").ptr(), "cancelled");
      throw py::error_already_set();
    }
    if (!on_layer_.is_none()) on_layer_(layer);
  }
  bool is_watching() const override { return !watcher_.is_none(); }
  void entered(int64_t layer) override { watcher_.attr("entered")(layer); }
  void routed(int64_t layer, bool is_mixed, const Routes& route) override {
    std::vector<std::vector<int32_t>> pairs;
    for (size_t i = 0; i < route.experts.size(); ++i) {
      pairs.emplace_back(route.pairs.begin() + route.offsets[i], route.pairs.begin() + route.offsets[i + 1]);
    }
    watcher_.attr("routed")(layer, is_mixed, route.experts, pairs);
  }
  void attended(int64_t layer) override { watcher_.attr("attended")(layer); }

 private:
  const py::object cancelled_, on_layer_, watcher_;
};

}  // namespace smallthinker
