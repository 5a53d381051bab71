// A model's parts, bound once, and the runner that takes tokens through them.
#pragma once

#include "bindings/bound_step.h"
#include "forward.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <utility>

namespace smallthinker {
namespace {

// (layer, why, live neurons, [(experts, tokens of each, their pairs one after another)] of the layers that were run, the
// route's (experts, pairs of each), the guess's (experts, ranks)).
py::tuple bind_run(BoundForward& self, int64_t first, int64_t last, py::array& x, py::array& normed, py::array& ids,
                   py::array& weights, const py::array& slot_of, const py::array& ahead, const BoundForward::Caches& caches,
                   const std::vector<int64_t>& starts, const std::vector<int64_t>& counts, const py::array& cos,
                   const py::array& sin, const py::array& inputs) {
  const auto step = self.begin(x, normed, ids, weights, slot_of, caches, starts, counts, cos, sin, inputs);
  int64_t live = 0;
  const auto end = self.run(first, last, step, input<int32_t>(ahead, "ahead", {2, self.num_layers()}), &live);
  py::list used;
  for (const Routes& routes : end.used) {
    std::vector<int32_t> tokens;
    for (size_t i = 0; i < routes.experts.size(); ++i) tokens.push_back(routes.offsets[i + 1] - routes.offsets[i]);
    used.append(py::make_tuple(routes.experts, tokens, routes.pairs));
  }
  std::vector<std::vector<int32_t>> pairs;
  for (size_t i = 0; i < end.route.experts.size(); ++i) {
    pairs.emplace_back(end.route.pairs.begin() + end.route.offsets[i], end.route.pairs.begin() + end.route.offsets[i + 1]);
  }
  return py::make_tuple(end.layer, static_cast<int>(end.why), live, used, py::make_tuple(end.route.experts, pairs),
                        py::make_tuple(end.guess.experts, end.guess.ranks));
}

std::unique_ptr<BoundStep> bind_step(const py::object& self, py::array& x, py::array& normed, py::array& ids, py::array& weights,
                                     const py::array& slot_of, const py::list& caches, const std::vector<int64_t>& starts,
                                     const std::vector<int64_t>& counts, const py::array& cos, const py::array& sin,
                                     const py::array& inputs) {
  auto& forward = self.cast<BoundForward&>();
  auto step = forward.begin(x, normed, ids, weights, slot_of, caches.cast<BoundForward::Caches>(), starts, counts, cos, sin, inputs);
  return std::make_unique<BoundStep>(forward, std::move(step),
                                     py::make_tuple(self, x, normed, ids, weights, slot_of, caches, cos, sin, inputs));
}

}  // namespace

inline void register_model(py::module_& m) {
  using py::arg;
  const py::array_t<float> none(0);

  py::class_<BoundKvLayer>(m, "KvLayer")
      .def(py::init<const std::string&, py::array&, py::array&, int64_t>(), arg("quant"), arg("keys"), arg("values"),
           arg("head_dim"))
      .def_readwrite("overflow", &BoundKvLayer::overflow);

  py::class_<BoundNorm>(m, "Norm")
      .def(py::init<int64_t, float, const std::optional<py::array>&, const std::optional<py::array>&, const std::string&>(),
           arg("size"), arg("eps"), arg("weight") = py::none(), arg("bias") = py::none(), arg("kind") = "rms");

  py::class_<BoundResidual>(m, "Residual")
      .def(py::init<const std::optional<BoundNorm>&, float, float>(), arg("norm") = py::none(), arg("scale") = 1.0f,
           arg("output_scale") = 1.0f);

  using Attention = BoundAttentionLayer;
  auto make_attention =
      [](ThreadPool& pool, const Attention::Quants& quants, const BoundNorm* input_norm, const py::array& q,
         const std::optional<py::array>& k, const std::optional<py::array>& v, const py::array& o, const BoundNorm* post_norm,
         int64_t hidden, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t window,
         const std::optional<Attention::RopeColumns>& rope, std::optional<double> scale, const Attention::Biases& biases,
         const Attention::Norms& norms, float clip, float softcap, const std::optional<py::array>& sinks, int64_t chunk,
         const std::optional<Attention::GrowthOf>& growth, const std::optional<BoundResidual>& residual, bool parallel) {
        const Attention::Options options{rope, scale, biases, norms, clip, softcap, sinks, chunk, growth, residual, parallel};
        return std::make_unique<Attention>(pool, quants, input_norm, q, k, v, o, post_norm, hidden, heads, kv_heads,
                                           head_dim, window, options);
      };

  py::class_<Attention>(m, "AttentionLayer")
      .def(py::init(std::move(make_attention)), arg("pool"), arg("quants"), arg("input_norm"), arg("q"), arg("k"),
           arg("v"), arg("o"), arg("post_norm"), arg("hidden"), arg("heads"), arg("kv_heads"), arg("head_dim"), arg("window") = 0,
           arg("rope") = py::none(), arg("scale") = py::none(), arg("biases") = Attention::Biases{},
           arg("norms") = Attention::Norms{}, arg("clip") = 0.0f, arg("softcap") = 0.0f, arg("sinks") = py::none(),
           arg("chunk") = 0, arg("growth") = py::none(), arg("residual") = py::none(), arg("parallel") = false, py::keep_alive<1, 2>())
      .def("forward", &BoundAttentionLayer::forward, arg("x"), arg("caches"), arg("starts"), arg("counts"), arg("cos"),
           arg("sin"), arg("normed"));

  py::class_<BoundScoring, std::shared_ptr<BoundScoring>>(m, "Scoring")
      .def(py::init<int64_t, int64_t, const std::string&, bool, bool, const py::array&, bool, int64_t, int64_t, float,
                    const py::array&, float>(),
           arg("experts"), arg("k"), arg("gating"), arg("over_all") = false, arg("normalise") = true, arg("bias") = none,
           arg("bias_chooses") = false, arg("groups") = 1, arg("kept_groups") = 1, arg("scale") = 1.0f,
           arg("expert_scale") = none, arg("logit_scale") = 1.0f);

  py::class_<BoundSharedFfn, std::shared_ptr<BoundSharedFfn>>(m, "SharedFfn")
      .def(py::init<const BoundSharedFfn::Quants&, int64_t, int64_t, const std::string&, const std::optional<py::array>&,
                    const py::array&, const py::array&, const std::optional<py::array>&, const BoundSharedFfn::Around&>(),
           arg("quants"), arg("hidden"), arg("width"), arg("activation"), arg("gate"), arg("up"), arg("down"),
           arg("output_gate"), arg("around") = py::none());

  py::class_<BoundFfn>(m, "Ffn")
      .def(py::init<const FfnQuants&, int64_t, int64_t, const std::string&, bool, int64_t, int64_t,
                    std::shared_ptr<BoundScoring>, const std::optional<py::array>&, bool, std::shared_ptr<BoundSharedFfn>, bool,
                    const ClampOf&, bool, const std::optional<BoundResidual>&, bool, const std::optional<BoundNorm>&, bool>(),
           arg("quants"), arg("hidden"), arg("ffn"), arg("activation"), arg("gated"), arg("experts"), arg("k"),
           arg("scoring"), arg("router"), arg("reads_mixed") = false, arg("shared") = py::none(),
           arg("biased") = false, arg("clamp") = ClampOf{}, arg("weighs_input") = false, arg("residual") = py::none(),
           arg("whole") = false, arg("router_norm") = py::none(), arg("reads_state") = false);

  py::class_<BoundInputGate, std::shared_ptr<BoundInputGate>>(m, "InputGate")
      .def(py::init<const std::array<std::string, 2>&, int64_t, int64_t, const std::string&, const py::array&,
                    const py::array&, const BoundResidual&>(),
           arg("quants"), arg("hidden"), arg("width"), arg("activation"), arg("gate"), arg("proj"), arg("residual"));

  py::class_<BoundStep>(m, "Step");

  py::class_<BoundForward> forward(m, "Forward");
  forward
      .def(py::init<ThreadPool&, const std::vector<py::object>&, const std::vector<py::object>&, const py::array&,
                    const BoundForward::Predictors&, const std::vector<std::shared_ptr<BoundInputGate>>&>(),
           arg("pool"), arg("mixers"), arg("ffns"), arg("slots"), arg("predictors") = BoundForward::Predictors{},
           arg("input_gates") = std::vector<std::shared_ptr<BoundInputGate>>{}, py::keep_alive<1, 2>())
      .def("run", &bind_run, arg("first"), arg("last"), arg("x"), arg("normed"), arg("ids"), arg("weights"), arg("slot_of"),
           arg("ahead"), arg("caches"), arg("starts"), arg("counts"), arg("cos"), arg("sin"), arg("inputs") = none)
      .def("step", &bind_step, arg("x"), arg("normed"), arg("ids"), arg("weights"), arg("slot_of"), arg("caches"), arg("starts"),
           arg("counts"), arg("cos"), arg("sin"), arg("inputs") = none)
      .def_readonly("live_neurons", &BoundForward::live_neurons)
      .def("guess",
           [](BoundForward& self, int64_t source, const py::array& x, const std::vector<int64_t>& targets) {
             py::list guesses;
             for (const Guess& guess : self.guess(source, x, targets)) {
               guesses.append(py::make_tuple(guess.experts, guess.ranks));
             }
             return guesses;
           },
           arg("source"), arg("x"), arg("targets"))
      .def("compute", &BoundForward::compute, arg("layer"), arg("normed"), arg("pairs"), arg("slots"),
           arg("weights") = py::none())
      .def("share", &BoundForward::share, arg("layer"), arg("normed"), arg("x") = py::none())
      .def("combine", &BoundForward::combine, arg("layer"), arg("x"), arg("weights"), arg("inputs") = none)
      .def("be_lossy", &BoundForward::be_lossy, arg("tokens"), arg("experts"), arg("prefer"), arg("skip"))
      .def("lossy_counts",
           [](const BoundForward& self) {
             return py::make_tuple(self.lossy().pairs, self.lossy().replaced, self.lossy().left_out);
           })
      .def("release", &BoundForward::release);
  forward.attr("DONE") = static_cast<int>(StepArithmetic::Why::done);
  forward.attr("ROUTED") = static_cast<int>(StepArithmetic::Why::routed);
  forward.attr("GUESSED") = static_cast<int>(StepArithmetic::Why::guessed);
  forward.attr("GUESSED_BEFORE") = static_cast<int>(StepArithmetic::Why::guessed_before);
}

}  // namespace smallthinker
