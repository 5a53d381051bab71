// The Python module: checks arguments, makes vectors of lists. Meanings are in _cache.pyi.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>

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
  const double rate = frequency.rate();
  frequency.average(layer, list, shares, tokens == 1 ? rate : 1 - std::pow(1 - rate, tokens));
}

void remove_key(Frequency& frequency, int64_t key) {
  if (!frequency.remove(key)) throw py::key_error(std::to_string(key));
}

std::optional<int64_t> victim(Frequency& frequency, const py::iterable& pinned, int64_t layer) {
  const int64_t key = frequency.victim(keys_of(pinned), layer);
  return key < 0 ? std::nullopt : std::optional<int64_t>(key);
}

py::array_t<float> state(const Frequency& frequency) {
  py::array_t<float> chances(frequency.keys());
  std::copy(frequency.chances().begin(), frequency.chances().end(), chances.mutable_data());
  return chances;
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
      .def(py::init([](int64_t layers, int64_t experts, double even_chance, double memory_tokens, double prior_tokens,
                       double least_chance) {
             return Frequency(layers, experts, even_chance, {memory_tokens, prior_tokens, least_chance});
           }),
           py::arg("layers"), py::arg("experts"), py::kw_only(), py::arg("even_chance"), py::arg("memory_tokens"),
           py::arg("prior_tokens"), py::arg("least_chance"))
      .def("insert", &Frequency::insert, py::arg("key"))
      .def("remove", &remove_key, py::arg("key"))
      .def("clear", &Frequency::clear)
      .def("use", &use, py::arg("layer"), py::arg("keys"), py::arg("counts") = py::none(), py::arg("tokens") = 1)
      .def("rate", &Frequency::rate)
      .def("average", &Frequency::average, py::arg("layer"), py::arg("keys"), py::arg("shares"), py::arg("rate"))
      .def("step", &Frequency::step, py::arg("tokens") = 1)
      .def("victim", &victim, py::arg("pinned"), py::arg("layer"))
      .def("score", &Frequency::chance, py::arg("key"))
      .def("state", &state)
      .def("restore_chances", &restore, py::arg("chances"), py::arg("tokens"));
}
