// Single operations, one call each: for tests, benches and what Python does itself.
#pragma once

#include "bindings/bound_attention.h"
#include "bindings/bound_ffn.h"
#include "bindings/checks.h"
#include "thread_pool.h"
#include "timings.h"

#include <pybind11/stl.h>

#include <cmath>
#include <optional>

namespace smallthinker {
namespace {

void bind_embed(const std::string& quant, const py::array& data, int64_t rows, int64_t cols, const py::array& ids,
                py::array& out) {
  const Quant q = parse_quant(quant);
  check_matrix(q, rows, cols);
  const uint8_t* from = packed(data, "data", packed_bytes(q, Layout::tiles, rows, cols));
  const int32_t* id = input<int32_t>(ids, "ids", {-1});
  const int64_t tokens = ids.shape(0);
  float* to = output<float>(out, "out", {tokens, cols});
  for (int64_t t = 0; t < tokens; ++t) {
    if (id[t] < 0 || id[t] >= rows) fail("ids[", t, "]: expected 0 to ", rows - 1, ", found ", id[t]);
  }
  py::gil_scoped_release unlocked;
  Timed timed(poolless_timings(), "embed");
  embed(q, from, cols, id, tokens, to);
}

void bind_rmsnorm(const py::array& x, const py::array& weight, float eps, py::array& out) {
  const float* from = input<float>(x, "x", {-1, -1});
  const int64_t tokens = x.shape(0), dim = x.shape(1);
  check_dim("x.shape[1]", dim);
  const float* w = input<float>(weight, "weight", {dim});
  float* to = output<float>(out, "out", {tokens, dim});
  if (to != from) check_disjoint(out, x, "x");
  check_disjoint(out, weight, "weight");
  py::gil_scoped_release unlocked;
  Timed timed(poolless_timings(), "rmsnorm");
  norm({dim, eps, false, w, nullptr}, from, tokens, to);
}

void bind_norm(const BoundNorm& how, const py::array& x, py::array& out) {
  const float* from = input<float>(x, "x", {-1, how.norm().size});
  const int64_t rows = x.shape(0);
  float* to = output<float>(out, "out", {rows, how.norm().size});
  if (to != from) check_disjoint(out, x, "x");
  py::gil_scoped_release unlocked;
  Timed timed(poolless_timings(), "rmsnorm");
  norm(how.norm(), from, rows, to);
}

void bind_linear(ThreadPool& pool, const std::string& quant, const py::array& data, int64_t rows, int64_t cols,
                 const py::array& x, py::array& out) {
  const Quant q = parse_quant(quant);
  check_matrix(q, rows, cols);
  const uint8_t* weights = packed(data, "data", packed_bytes(q, Layout::tiles, rows, cols));
  const float* from = input<float>(x, "x", {-1, cols});
  const int64_t tokens = x.shape(0);
  float* to = output<float>(out, "out", {tokens, rows});
  check_disjoint(out, x, "x");
  check_disjoint(out, data, "data");
  py::gil_scoped_release unlocked;
  Timed timed(pool.timings(), "linear");
  linear(pool, {{{q, weights, rows, cols}, to}}, from, tokens);
}

void bind_linear_groups(ThreadPool& pool, const std::string& quant, const py::array& data, int64_t rows, int64_t cols,
                        const py::array& groups, const py::array& x, py::array& out) {
  const Quant q = parse_quant(quant);
  check_matrix(q, rows, cols);
  const uint8_t* weights = packed(data, "data", packed_bytes(q, Layout::tiles, rows, cols));
  const int32_t* chosen = input<int32_t>(groups, "groups", {-1});
  const int64_t last = (rows - 1) / kTileRows, n_groups = groups.shape(0);
  for (int64_t i = 0; i < n_groups; ++i) {
    if (chosen[i] < 0 || chosen[i] > last) fail("groups[", i, "]: expected 0 to ", last, ", found ", chosen[i]);
    if (i > 0 && chosen[i] <= chosen[i - 1]) fail("groups[", i, "]: not above the one before it");
  }
  const float* from = input<float>(x, "x", {-1, cols});
  const int64_t tokens = x.shape(0);
  float* to = output<float>(out, "out", {tokens, rows});
  check_disjoint(out, x, "x");
  check_disjoint(out, data, "data");
  py::gil_scoped_release unlocked;
  Timed timed(pool.timings(), "linear_groups");
  linear_groups(pool, q, weights, rows, cols, chosen, n_groups, from, tokens, to);
}

void bind_finish_logits(ThreadPool& pool, py::array& logits, const std::optional<py::array>& bias, float scale, float softcap) {
  float* x = output<float>(logits, "logits", {-1, -1});
  const int64_t tokens = logits.shape(0), rows = logits.shape(1);
  if (!(softcap >= 0.0f)) fail("softcap: expected 0 (none) or more, found ", softcap);
  const LogitsEnd how{BoundNorm::optional_floats(bias, "bias", rows), scale, softcap};
  py::gil_scoped_release unlocked;
  Timed timed(pool.timings(), "linear");  // the head's
  finish_logits(pool, how, x, tokens, rows);
}

void bind_rope_angles(const py::array& positions, const py::array& frequencies, const py::array& factors, py::array& cos,
                      py::array& sin) {
  const int64_t* p = input<int64_t>(positions, "positions", {-1});
  const int64_t tokens = positions.shape(0);
  const double* of = input<double>(frequencies, "frequencies", {-1});
  const int64_t pairs = frequencies.shape(0);
  const double* times = input<double>(factors, "factors", {pairs});
  float* c = output<float>(cos, "cos", {tokens, pairs});
  float* s = output<float>(sin, "sin", {tokens, pairs});
  py::gil_scoped_release unlocked;
  Timed timed(poolless_timings(), "rope_angles");
  rope_angles(p, tokens, of, times, pairs, c, s);
}

void bind_rope(py::array& x, const py::array& cos, const py::array& sin, const std::string& pairing) {
  float* values = output<float>(x, "x", {-1, -1, -1});
  const int64_t tokens = x.shape(0), heads = x.shape(1), head_dim = x.shape(2);
  const Angles angles = check_angles(cos, sin, tokens, 1);
  if (2 * angles.pairs > head_dim) fail("cos: expected at most ", head_dim / 2, " columns, found ", angles.pairs);
  const Rotation how{0, angles.pairs, is_interleaved(pairing)};
  py::gil_scoped_release unlocked;
  Timed timed(poolless_timings(), "rope");
  rope(values, angles, 0, how, tokens, heads, head_dim);
}

void bind_route(const py::array& logits, int64_t k, const std::string& gating, py::array& ids, py::array& weights,
                bool over_all, bool normalise, const py::array& bias, bool bias_chooses, int64_t groups, int64_t kept_groups,
                float scale, const py::array& expert_scale) {
  const float* from = input<float>(logits, "logits", {-1, -1});
  const int64_t tokens = logits.shape(0), experts = logits.shape(1);
  const BoundScoring scoring(experts, k, gating, over_all, normalise, bias, bias_chooses, groups, kept_groups, scale, expert_scale);
  int32_t* to_ids = output<int32_t>(ids, "ids", {tokens, k});
  float* to_weights = output<float>(weights, "weights", {tokens, k});
  py::gil_scoped_release unlocked;
  Timed timed(poolless_timings(), "route");
  route(from, tokens, experts, scoring.how(), to_ids, to_weights);
}

void bind_kv_append(ThreadPool& pool, const std::string& quant, const py::array& k, const py::array& v, py::array& keys,
                    py::array& values, int64_t start) {
  const float* from_k = input<float>(k, "k", {-1, -1, -1});
  const int64_t tokens = k.shape(0), heads = k.shape(1), dim = k.shape(2);
  const float* from_v = input<float>(v, "v", {tokens, heads, dim});
  const KvCache cache = check_kv_cache(quant, keys, values, dim);
  output<uint8_t>(keys, "keys", {heads, -1, -1});
  output<uint8_t>(values, "values", {heads, -1, -1});
  check_start(start, tokens);
  if (tokens > 0 && cache.capacity < 1) fail("keys: expected a capacity of at least 1");
  py::gil_scoped_release unlocked;
  Timed timed(pool.timings(), "kv_append");
  kv_append(pool, from_k, from_v, tokens, cache, start);
}

void bind_attention(ThreadPool& pool, const std::string& quant, const py::array& q, const py::array& keys,
                    const py::array& values, int64_t start, int64_t window, py::array& out, std::optional<double> scale,
                    float softcap, const std::optional<py::array>& sinks, int64_t chunk) {
  const float* from = input<float>(q, "q", {-1, -1, -1});
  const int64_t tokens = q.shape(0), heads = q.shape(1), dim = q.shape(2);
  check_dim("q.shape[1]", heads);
  check_dim("q.shape[2]", dim);
  const KvCache cache = check_kv_cache(quant, keys, values, dim);
  float* to = output<float>(out, "out", {tokens, heads, dim});
  check_start(start, tokens);
  check_attention(cache, heads, window, chunk, softcap);
  check_capacity(cache, start, tokens, window);
  check_disjoint(out, q, "q");
  const float scale_of_products = static_cast<float>(scale.value_or(1.0 / std::sqrt(static_cast<double>(dim))));
  const Scores scores{window, chunk, scale_of_products, softcap, BoundNorm::optional_floats(sinks, "sinks", heads)};
  if (tokens == 0) return;
  py::gil_scoped_release unlocked;
  Timed timed(pool.timings(), "attention");
  attention(pool, from, tokens, heads, cache, start, scores, to);
}

int64_t bind_experts(ThreadPool& pool, const FfnQuants& quants, int64_t hidden, int64_t ffn, const std::string& activation,
                     bool gated, const py::array& x, const py::array& slots, const py::array& slot_ids,
                     const py::array& offsets, const py::array& pairs, int64_t k, py::array& out, bool biased,
                     float limit, float alpha) {
  ExpertCall call{};
  call.shape = check_ffn_shape(quants, hidden, ffn, activation, gated, biased, {limit, alpha});
  call.k = k;
  call.x = input<float>(x, "x", {-1, hidden});
  call.tokens = x.shape(0);
  check_dim("k", k);
  if (call.tokens * k > std::numeric_limits<int32_t>::max()) fail("x: ", call.tokens, " tokens of ", k, " experts are too many");
  check_slots(slots, call);
  call.slot_ids = input<int32_t>(slot_ids, "slot_ids", {-1});
  call.n_experts = slot_ids.shape(0);
  call.offsets = input<int32_t>(offsets, "offsets", {call.n_experts + 1});
  call.pairs = input<int32_t>(pairs, "pairs", {-1});
  const int64_t n_pairs = pairs.shape(0);
  call.out = output<float>(out, "out", {call.tokens * k, hidden});
  check_disjoint(out, x, "x");
  check_disjoint(out, slots, "slots");

  for (int64_t i = 0; i < call.n_experts; ++i) {
    check_slot("slot_ids", i, call.slot_ids[i], slots.shape(0));
    if (call.offsets[i] > call.offsets[i + 1]) fail("offsets[", i + 1, "]: less than the one before it");
  }
  if (call.offsets[0] != 0 || call.offsets[call.n_experts] != n_pairs) {
    fail("offsets: expected 0 to ", n_pairs, " (pairs), found ", call.offsets[0], " to ", call.offsets[call.n_experts]);
  }
  std::vector<char> is_used(static_cast<size_t>(call.tokens * k));
  for (int64_t i = 0; i < n_pairs; ++i) {
    const int64_t pair = call.pairs[i];
    if (pair < 0 || pair >= call.tokens * k) fail("pairs[", i, "]: expected 0 to ", call.tokens * k - 1, ", found ", pair);
    if (is_used[static_cast<size_t>(pair)]++) fail("pairs[", i, "]: ", pair, " is there twice");
  }
  py::gil_scoped_release unlocked;
  Timed timed(pool.timings(), "experts");
  return experts(pool, call);
}

void bind_combine(ThreadPool& pool, py::array& x, const py::array& contributions, const py::array& weights) {
  float* to = output<float>(x, "x", {-1, -1});
  const int64_t tokens = x.shape(0), dim = x.shape(1);
  const float* w = input<float>(weights, "weights", {tokens, -1});
  const int64_t k = weights.shape(1);
  const float* from = input<float>(contributions, "contributions", {tokens * k, dim});
  py::gil_scoped_release unlocked;
  Timed timed(pool.timings(), "combine");
  combine(pool, to, from, w, nullptr, tokens, k, dim, {});
}

void bind_add(py::array& x, const py::array& y) {
  float* to = output<float>(x, "x", {-1, -1});
  const float* from = input<float>(y, "y", {x.shape(0), x.shape(1)});
  py::gil_scoped_release unlocked;
  Timed timed(poolless_timings(), "add");
  add(to, from, x.size());
}

const float* check_logits(const py::array& logits) {
  const float* from = input<float>(logits, "logits", {-1});
  if (logits.shape(0) < 1 || logits.shape(0) > kMaxLogits) fail("logits: expected 1 to ", kMaxLogits, ", found ", logits.shape(0));
  return from;
}

int64_t bind_sample(ThreadPool& pool, const py::array& logits, double temperature, int64_t top_k, double top_p, double min_p,
                    double u) {
  const float* from = check_logits(logits);
  if (!(temperature > 0.0) || !std::isfinite(temperature)) fail("temperature: expected a number above 0, found ", temperature);
  if (top_k < 1) fail("top_k: expected 1 or more, found ", top_k);
  if (!(top_p > 0.0 && top_p <= 1.0)) fail("top_p: expected above 0, at most 1, found ", top_p);
  if (!(min_p >= 0.0 && min_p < 1.0)) fail("min_p: expected 0 or more, below 1, found ", min_p);
  if (!(u >= 0.0 && u < 1.0)) fail("u: expected 0 or more, below 1, found ", u);
  const int64_t n = logits.shape(0);
  py::gil_scoped_release unlocked;
  return sample(pool, from, n, {temperature, top_k, top_p, min_p}, u);
}

void bind_top_ids(ThreadPool& pool, const py::array& logits, py::array& ids) {
  const float* from = check_logits(logits);
  int32_t* to = output<int32_t>(ids, "ids", {-1});
  const int64_t n = logits.shape(0), k = ids.shape(0);
  if (k > n) fail("ids: expected at most ", n, ", found ", k);
  check_disjoint(ids, logits, "logits");
  py::gil_scoped_release unlocked;
  top_ids(pool, from, n, k, to);
}

double bind_log_sum_exp(ThreadPool& pool, const py::array& logits) {
  const float* from = check_logits(logits);
  const int64_t n = logits.shape(0);
  py::gil_scoped_release unlocked;
  return log_sum_exp(pool, from, n);
}

void bind_penalize(py::array& logits, const py::array& recent, float penalty) {
  float* to = output<float>(logits, "logits", {-1});
  const int32_t* ids = input<int32_t>(recent, "recent", {-1});
  const int64_t n = logits.shape(0), n_recent = recent.shape(0);
  for (int64_t i = 0; i < n_recent; ++i) {
    if (ids[i] < 0 || ids[i] >= n) fail("recent[", i, "]: expected 0 to ", n - 1, ", found ", ids[i]);
  }
  if (!(penalty >= 0.0f)) fail("penalty: expected 0 or more, found ", penalty);
  penalize(to, n, ids, n_recent, penalty);
}

}  // namespace

inline void register_ops(py::module_& m) {
  using py::arg;
  const py::array_t<float> none(0);
  m.def("embed", &bind_embed, arg("quant"), arg("data"), arg("rows"), arg("cols"), arg("ids"), arg("out"));
  m.def("rmsnorm", &bind_rmsnorm, arg("x"), arg("weight"), arg("eps"), arg("out"));
  m.def("norm", &bind_norm, arg("how"), arg("x"), arg("out"));
  m.def("linear", &bind_linear, arg("pool"), arg("quant"), arg("data"), arg("rows"), arg("cols"), arg("x"), arg("out"));
  m.def("linear_groups", &bind_linear_groups, arg("pool"), arg("quant"), arg("data"), arg("rows"), arg("cols"),
        arg("groups"), arg("x"), arg("out"));
  m.def("finish_logits", &bind_finish_logits, arg("pool"), arg("logits"), arg("bias"), arg("scale"), arg("softcap"));
  m.def("rope_angles", &bind_rope_angles, arg("positions"), arg("frequencies"), arg("factors"), arg("cos"), arg("sin"));
  m.def("rope", &bind_rope, arg("x"), arg("cos"), arg("sin"), arg("pairing") = "half");
  m.def("route", &bind_route, arg("logits"), arg("k"), arg("gating"), arg("ids"), arg("weights"), arg("over_all") = false,
        arg("normalise") = true, arg("bias") = none, arg("bias_chooses") = false, arg("groups") = 1, arg("kept_groups") = 1,
        arg("scale") = 1.0f, arg("expert_scale") = none);
  m.def("kv_append", &bind_kv_append, arg("pool"), arg("quant"), arg("k"), arg("v"), arg("keys"), arg("values"),
        arg("start"));
  m.def("attention", &bind_attention, arg("pool"), arg("quant"), arg("q"), arg("keys"), arg("values"), arg("start"),
        arg("window"), arg("out"), arg("scale") = py::none(), arg("softcap") = 0.0f, arg("sinks") = py::none(), arg("chunk") = 0);
  m.def("experts", &bind_experts, arg("pool"), arg("quants"), arg("hidden"), arg("ffn"), arg("activation"), arg("gated"),
        arg("x"), arg("slots"), arg("slot_ids"), arg("offsets"), arg("pairs"), arg("k"), arg("out"), arg("biased") = false,
        arg("limit") = 0.0f, arg("alpha") = 0.0f);
  m.def("combine", &bind_combine, arg("pool"), arg("x"), arg("contributions"), arg("weights"));
  m.def("add", &bind_add, arg("x"), arg("y"));
  m.def("sample", &bind_sample, arg("pool"), arg("logits"), arg("temperature"), arg("top_k"), arg("top_p"), arg("min_p"),
        arg("u"));
  m.def("top_ids", &bind_top_ids, arg("pool"), arg("logits"), arg("ids"));
  m.def("log_sum_exp", &bind_log_sum_exp, arg("pool"), arg("logits"));
  m.def("penalize", &bind_penalize, arg("logits"), arg("recent"), arg("penalty"));
}

}  // namespace smallthinker
