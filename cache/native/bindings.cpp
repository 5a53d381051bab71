// The Python module: checks arguments, makes vectors of lists. Meanings are in _cache.pyi.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "frequency.h"

namespace py = pybind11;

namespace smallthinker {
namespace {

// Of any collection of ints; pybind11 makes vectors of sequences alone.
std::vector<int64_t> keys_of(const py::iterable& keys) {
  std::vector<int64_t> list;
  for (const py::handle key : keys) list.push_back(key.cast<int64_t>());
  return list;
}

void use(Frequency& frequency, int64_t layer, const py::iterable& keys, const std::optional<std::vector<double>>& counts,
         double tokens) {
  if (!(tokens >= 1)) throw py::value_error("tokens: expected at least 1");
  const std::vector<int64_t> list = keys_of(keys);
  std::vector<double> shares(list.size(), 1.0);
  if (counts) {
    if (counts->size() != list.size()) throw py::value_error("counts: expected one for each key");
    for (size_t i = 0; i < shares.size(); ++i) shares[i] = (*counts)[i] / tokens;
  }
  frequency.use(layer, list, shares, tokens);
}

void step(Frequency& frequency, double tokens) {
  if (!(tokens >= 1)) throw py::value_error("tokens: expected at least 1");
  frequency.step(tokens);
}

void remove_key(Frequency& frequency, int64_t key) {
  if (!frequency.remove(key)) throw py::key_error(std::to_string(key));
}

std::optional<int64_t> victim(Frequency& frequency, const py::iterable& pinned, int64_t layer) {
  const int64_t key = frequency.victim(keys_of(pinned), layer);
  return key < 0 ? std::nullopt : std::optional<int64_t>(key);
}

py::array_t<float> state(const Frequency& frequency) {
  const std::vector<double> chances = frequency.chances();
  py::array_t<float> state(frequency.keys());
  std::copy(chances.begin(), chances.end(), state.mutable_data());
  return state;
}

void restore(Frequency& frequency, const py::array_t<double, py::array::c_style | py::array::forcecast>& state,
             double tokens) {
  if (state.ndim() != 1 || state.size() != frequency.keys()) throw py::value_error("state: expected one number a key");
  frequency.restore(state.data(), tokens);
}

}  // namespace
}  // namespace smallthinker

PYBIND11_MODULE(_cache, m) {
  using namespace smallthinker;
  m.doc() = "What the expert cache asks between two kernels (cache/native/).";
  py::class_<Frequency>(m, "Frequency")
      .def(py::init([](const std::vector<int64_t>& experts, const std::vector<double>& per_token,
                       const std::vector<double>& memory_tokens, double prior_tokens, double judged_tokens,
                       double trust, double least_chance) {
             return Frequency(experts, per_token, {memory_tokens, prior_tokens, judged_tokens, trust, least_chance});
           }),
           py::arg("experts"), py::arg("per_token"), py::kw_only(), py::arg("memory_tokens"),
           py::arg("prior_tokens"), py::arg("judged_tokens"), py::arg("trust"), py::arg("least_chance"))
      .def("insert", &Frequency::insert, py::arg("key"))
      .def("remove", &remove_key, py::arg("key"))
      .def("clear", &Frequency::clear)
      .def("use", &use, py::arg("layer"), py::arg("keys"), py::arg("counts") = py::none(), py::arg("tokens") = 1)
      .def("step", &step, py::arg("tokens") = 1)
      .def("victim", &victim, py::arg("pinned"), py::arg("layer"))
      .def("score", &Frequency::chance, py::arg("key"))
      .def("state", &state)
      .def("restore_chances", &restore, py::arg("chances"), py::arg("tokens"));
}
