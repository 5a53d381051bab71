// The order of a step's work, and what its guesses have shown. Meanings are in _kernels.pyi.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <numeric>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "bindings/bound_step.h"
#include "bindings/python_step.h"
#include "layers/guess_record.h"
#include "layers/layers.h"
#include "layers/lent_error.h"

namespace smallthinker {
namespace {

using Ahead = py::array_t<int32_t, py::array::c_style>;

class BoundLayers {
 public:
  BoundLayers(py::object books, int64_t layers, int64_t slots, std::set<int64_t> own, bool asks_early, int64_t many_tokens,
              int64_t max_under_way)
      : books_(std::move(books)), lent_(books_.attr("lend")()), num_layers_(layers),
        layers_(*lent_.get_pointer<LayerExperts>(), {layers, many_tokens, max_under_way, slots, std::move(own), asks_early}) {}

  // What a step that is held has used, and what layers waited: (layer, seconds, records).
  py::tuple run(const py::object& arithmetic, int64_t tokens, GuessRecord* guesses, const Ahead& ahead, bool held,
                py::object cancelled, py::object on_layer, py::object watcher) {
    if (tokens < 1) throw py::value_error("tokens: expected at least 1");
    if (ahead.ndim() != 2 || ahead.shape(0) != 2 || ahead.shape(1) != num_layers_) throw py::value_error("ahead: expected [2, layers]");
    PythonObserver observer(std::move(cancelled), std::move(on_layer), std::move(watcher));
    std::optional<PythonArithmetic> python;
    LayerStep step{asked(arithmetic, &python), observer, guesses, ahead.data(), tokens, held, {}, {}};
    told([&] { layers_.run(step); });
    py::list waits;
    for (const Wait& wait : step.waits) waits.append(py::make_tuple(wait.layer, wait.sec, wait.records));
    return py::make_tuple(step.routes, waits);
  }

  void guess(const py::object& arithmetic, GuessRecord& guesses, int64_t source, int64_t target) {
    PythonObserver nobody{py::none(), py::none(), py::none()};
    std::optional<PythonArithmetic> python;
    const LayerStep step{asked(arithmetic, &python), nobody, &guesses, nullptr, 1, false, {}, {}};
    told([&] { layers_.guess(source, target, step); });
  }

  double guess_sec() const { return layers_.guess_sec; }

 private:
  template <class Work>
  static void told(Work&& work) {
    try {
      work();
    } catch (const LentError&) {
      throw py::error_already_set();
    }
  }

  StepArithmetic& asked(const py::object& arithmetic, std::optional<PythonArithmetic>* python) const {
    if (py::isinstance<BoundStep>(arithmetic)) return arithmetic.cast<BoundStep&>();
    return python->emplace(arithmetic, num_layers_);
  }

  const py::object books_;
  const py::capsule lent_;
  const int64_t num_layers_;
  Layers layers_;
};

}  // namespace

inline void register_layers(py::module_& m) {
  py::class_<GuessRecord>(m, "GuessRecord")
      .def(py::init([](int64_t layers, int64_t k, std::set<int64_t> certain, double hope, double keep, double worth) {
             if (layers < 1 || k < 1) throw py::value_error("layers, k: expected at least 1");
             return GuessRecord(layers, k, std::move(certain), {hope, keep, worth});
           }),
           py::arg("layers"), py::arg("k"), py::arg("certain"), py::kw_only(), py::arg("hope"), py::arg("keep"), py::arg("worth"))
      .def("begin_token", &GuessRecord::begin_token)
      .def("likelihoods", &GuessRecord::likelihoods, py::arg("source"), py::arg("target"))
      .def("precision", &GuessRecord::precision, py::arg("target"), py::arg("own"))
      .def("may_be_right", &GuessRecord::may_be_right, py::arg("target"), py::arg("own"))
      .def("predict",
           [](GuessRecord& self, int64_t source, int64_t target, std::vector<int32_t> experts, std::vector<int32_t> ranks) {
             std::vector<int64_t> all(experts.size());
             std::iota(all.begin(), all.end(), 0);
             self.predict(source, target, {std::move(experts), std::move(ranks)}, all);
           },
           py::arg("source"), py::arg("target"), py::arg("experts"), py::arg("ranks"))
      .def("score", &GuessRecord::score, py::arg("layer"), py::arg("experts"));
  py::class_<BoundLayers>(m, "Layers")
      .def(py::init<py::object, int64_t, int64_t, std::set<int64_t>, bool, int64_t, int64_t>(), py::arg("books"),
           py::arg("layers"), py::arg("slots"), py::kw_only(), py::arg("own"), py::arg("asks_early"), py::arg("many_tokens"),
           py::arg("max_under_way"))
      .def("run", &BoundLayers::run, py::arg("arithmetic"), py::arg("tokens"), py::arg("guesses"), py::arg("ahead"), py::kw_only(),
           py::arg("held"), py::arg("cancelled"), py::arg("on_layer"), py::arg("watcher"))
      .def("guess", &BoundLayers::guess, py::arg("arithmetic"), py::arg("guesses"), py::arg("source"), py::arg("target"))
      .def_property_readonly("guess_sec", &BoundLayers::guess_sec);
}

}  // namespace smallthinker
