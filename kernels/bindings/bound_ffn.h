// Python objects that hold a layer's feed-forward network: how its router chooses, the shape of its experts' records, and
// the network that every token uses. Checked when they are made.
#pragma once

#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bound_norm.h"
#include "bindings/checks.h"

namespace smallthinker {

// How a router chooses. An empty bias or expert_scale is none.
class BoundScoring {
 public:
  BoundScoring(int64_t experts, int64_t k, const std::string& gating, bool over_all, bool normalise, const py::array& bias,
               bool bias_chooses, int64_t groups, int64_t kept_groups, float scale, const py::array& expert_scale,
               float logit_scale = 1.0f)
      : kept_{bias, expert_scale}, experts_(experts) {
    check_dim("experts", experts);
    how_.k = k;
    how_.gating = parse_gating(gating, k, experts);
    how_.over_all = over_all;
    how_.normalise = normalise;
    how_.bias = of_experts(bias, "bias");
    how_.bias_chooses = bias_chooses;
    how_.expert_scale = of_experts(expert_scale, "expert_scale");
    how_.scale = scale;
    how_.logit_scale = logit_scale;
    if (!std::isfinite(scale)) fail("scale: expected a finite number, found ", scale);
    if (!std::isfinite(logit_scale)) fail("logit_scale: expected a finite number, found ", logit_scale);
    if (groups < 1 || experts % groups != 0 || (groups > 1 && experts / groups < 2)) {
      fail("groups: expected a divisor of ", experts, " (experts) that leaves 2 or more to each, found ", groups);
    }
    if (kept_groups < 1 || kept_groups > groups) fail("kept_groups: expected 1 to ", groups, ", found ", kept_groups);
    if (k > kept_groups * (experts / groups)) fail("k: expected at most the ", kept_groups * (experts / groups), " experts of the kept groups, found ", k);
    how_.groups = groups;
    how_.kept_groups = kept_groups;
  }

  const Scoring& how() const { return how_; }
  int64_t experts() const { return experts_; }

 private:
  const float* of_experts(const py::array& values, const char* name) const {
    return values.size() == 0 ? nullptr : input<float>(values, name, {experts_});
  }

  const std::vector<py::array> kept_;  // whose memory how_ points to
  const int64_t experts_;
  Scoring how_{};
};

// A network that every token uses, in tiles, each matrix in its own format. Without a gate or an output gate None. around:
// for one that reads the state itself, norms of what it reads, of what it gives and of what the experts give.
class BoundSharedFfn {
 public:
  using Quants = std::array<std::string, 4>;  // of gate, up, down and the output gate
  using Around = std::optional<std::array<std::optional<BoundNorm>, 3>>;

  BoundSharedFfn(const Quants& quants, int64_t hidden, int64_t width, const std::string& activation,
                 const std::optional<py::array>& gate, const py::array& up, const py::array& down,
                 const std::optional<py::array>& output_gate, const Around& around)
      : around_(around) {
    if (hidden % kBlock != 0) fail("hidden: expected a multiple of ", kBlock, ", found ", hidden);
    if (width % kTileRows != 0) fail("width: expected a multiple of ", kTileRows, ", found ", width);
    ffn_.activation = parse_activation(activation);
    if (ffn_.activation == Activation::clamped_swiglu) fail("activation: expected one without a limit, found ", activation);
    const auto matrix = [this](const std::string& quant, const py::array& data, const char* name, int64_t rows, int64_t cols) {
      const Quant format = parse_quant(quant);
      check_matrix(format, rows, cols);
      kept_.push_back(data);
      return Matrix{format, packed(data, name, packed_bytes(format, Layout::tiles, rows, cols)), rows, cols};
    };
    if (gate) ffn_.gate = matrix(quants[0], *gate, "gate", width, hidden);
    ffn_.up = matrix(quants[1], up, "up", width, hidden);
    ffn_.down = matrix(quants[2], down, "down", hidden, width);
    if (output_gate) ffn_.output_gate = matrix(quants[3], *output_gate, "output_gate", 1, hidden);
    if (!around) return;
    const std::array<Norm*, 3> norms{&ffn_.before, &ffn_.after, &of_experts_};
    for (size_t i = 0; i < norms.size(); ++i) {
      const std::optional<BoundNorm>& of = (*around_)[i];
      if (!of) continue;
      if (of->norm().size != hidden) fail("around[", i, "]: expected a norm of ", hidden, ", found ", of->norm().size);
      *norms[i] = of->norm();
    }
  }

  const SharedFfn& ffn() const { return ffn_; }
  bool reads_state() const { return around_.has_value(); }  // not the norm that the experts read
  const Norm& of_experts() const { return of_experts_; }

 private:
  const Around around_;  // whose memory the norms point to
  Norm of_experts_;
  std::vector<py::array> kept_;  // whose memory ffn_ points to
  SharedFfn ffn_{};
};

// What a layer makes of the numbers that it is given of each token; checked once.
class BoundInputGate {
 public:
  BoundInputGate(const std::array<std::string, 2>& quants, int64_t hidden, int64_t width, const std::string& activation,
                 const py::array& gate, const py::array& proj, const BoundResidual& residual)
      : kept_{gate, proj}, kept_residual_(residual) {
    const auto matrix = [](const std::string& quant, const py::array& data, const char* name, int64_t rows, int64_t cols) {
      const Quant format = parse_quant(quant);
      check_matrix(format, rows, cols);
      return Matrix{format, packed(data, name, packed_bytes(format, Layout::tiles, rows, cols)), rows, cols};
    };
    how_ = {parse_activation(activation), matrix(quants[0], gate, "gate", width, hidden),
            matrix(quants[1], proj, "proj", hidden, width), kept_residual_.residual(hidden)};
    if (how_.activation == Activation::clamped_swiglu) fail("activation: expected one without a limit, found ", activation);
  }

  const InputGate& how() const { return how_; }

 private:
  const std::array<py::array, 2> kept_;  // whose memory how_ points to, as that of this
  const BoundResidual kept_residual_;
  InputGate how_{};
};

// The feed-forward network of one layer: its router, and the shape of its experts' records; checked once. Without a router
// its k slices are all used by every token, with weight 1. reads_mixed: the router reads what the experts do, so that they
// are known only after the layer's mixer; reads_state: it reads the state without the experts' norm. router_norm: of what
// it reads. weighs_input: a weight multiplies what the expert reads, not what it gives.
class BoundFfn {
 public:
  BoundFfn(const FfnQuants& quants, int64_t hidden, int64_t ffn, const std::string& activation, bool gated, int64_t experts,
           int64_t k, std::shared_ptr<BoundScoring> scoring, const std::optional<py::array>& router, bool reads_mixed,
           std::shared_ptr<BoundSharedFfn> shared, bool biased, const ClampOf& clamp, bool weighs_input,
           const std::optional<BoundResidual>& residual, bool whole, const std::optional<BoundNorm>& router_norm,
           bool reads_state)
      : kept_(router), scoring_(std::move(scoring)), shared_(std::move(shared)), residual_(residual), router_norm_(router_norm),
        experts_(experts), weighs_input_(weighs_input), reads_state_(reads_state) {
    call_.shape = check_ffn_shape(quants, hidden, ffn, activation, gated, biased, clamp, whole);
    if (residual) residual->residual(hidden);  // fits
    call_.k = k;
    check_dim("experts", experts);
    if (shared_ != nullptr && shared_->ffn().down.rows != hidden) fail("shared: expected a network of ", hidden, " (hidden)");
    if (router_norm && router_norm->norm().size != hidden) fail("router_norm: expected one of ", hidden, ", found ", router_norm->norm().size);
    if ((scoring_ != nullptr) != router.has_value()) fail("scoring, router: expected both or neither");
    if (!router) {
      if (k != experts) fail("k: expected ", experts, ", all slices, without a router, found ", k);
      return;
    }
    if (scoring_->experts() != experts || scoring_->how().k != k) {
      fail("scoring: expected ", k, " of ", experts, " experts, found ", scoring_->how().k, " of ", scoring_->experts());
    }
    reads_mixed_ = reads_mixed;
    check_matrix(Quant::f32, experts, hidden);
    router_ = {Quant::f32, packed(*router, "router", packed_bytes(Quant::f32, Layout::tiles, experts, hidden)), experts, hidden};
  }

  bool has_router() const { return kept_.has_value(); }
  bool reads_mixed() const { return reads_mixed_; }
  bool reads_state() const { return reads_state_; }  // its norm is not what the router reads
  Norm router_norm() const { return router_norm_ ? router_norm_->norm() : Norm{}; }
  Norm of_experts() const { return shared_ == nullptr ? Norm{} : shared_->of_experts(); }
  bool shared_reads_state() const { return shared_ != nullptr && shared_->reads_state(); }
  bool weighs_input() const { return weighs_input_; }
  const Matrix& router() const { return router_; }
  const Scoring& scoring() const { return scoring_->how(); }
  const SharedFfn* shared() const { return shared_ == nullptr ? nullptr : &shared_->ffn(); }
  int64_t experts() const { return experts_; }
  int64_t k() const { return call_.k; }
  const ExpertCall& call() const { return call_; }
  Residual residual() const { return residual_ ? residual_->residual(call_.shape.hidden) : Residual{}; }

 private:
  const std::optional<py::array> kept_;  // whose memory router_ points to
  const std::shared_ptr<BoundScoring> scoring_;
  const std::shared_ptr<BoundSharedFfn> shared_;
  const std::optional<BoundResidual> residual_;
  const std::optional<BoundNorm> router_norm_;
  const int64_t experts_;
  const bool weighs_input_, reads_state_;
  bool reads_mixed_ = false;
  Matrix router_{};
  ExpertCall call_{};
};

}  // namespace smallthinker
