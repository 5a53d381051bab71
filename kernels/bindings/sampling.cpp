// The choice of the next token from logits.
#include "bindings/bindings.h"
#include "bindings/checks.h"
#include "thread_pool.h"

#include <cmath>

namespace smallthinker {
namespace {

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

void register_sampling(py::module_& m) {
  using py::arg;
  m.def("sample", &bind_sample, arg("pool"), arg("logits"), arg("temperature"), arg("top_k"), arg("top_p"), arg("min_p"),
        arg("u"));
  m.def("top_ids", &bind_top_ids, arg("pool"), arg("logits"), arg("ids"));
  m.def("log_sum_exp", &bind_log_sum_exp, arg("pool"), arg("logits"));
  m.def("penalize", &bind_penalize, arg("logits"), arg("recent"), arg("penalty"));
}

}  // namespace smallthinker
