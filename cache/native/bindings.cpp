// The Python module: checks arguments, makes vectors of lists, keeps alive what the books ask. Meanings are in _cache.pyi.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "adapters.h"
#include "books.h"
#include "frequency.h"
#include "layer_experts.h"
#include "lending.h"

namespace py = pybind11;

namespace smallthinker {
namespace {

using Counted = std::optional<std::vector<int64_t>>;

// Of any collection of ints; pybind11 makes vectors of sequences alone.
std::vector<int64_t> keys_of(const py::iterable& keys) {
  std::vector<int64_t> list;
  for (const py::handle key : keys) list.push_back(key.cast<int64_t>());
  return list;
}

void use(Frequency& frequency, int64_t layer, const py::iterable& keys, Counted counts, int64_t tokens) {
  const std::vector<int64_t> list = keys_of(keys);
  if (counts && counts->size() != list.size()) throw py::value_error("counts: expected one for each key");
  frequency.use({layer, list, std::move(counts).value_or(std::vector<int64_t>()), tokens});
}

void remove_key(Frequency& frequency, int64_t key) {
  try {
    frequency.remove(key);
  } catch (const std::invalid_argument&) {
    throw py::key_error(std::to_string(key));
  }
}

std::optional<int64_t> victim(Frequency& frequency, const py::iterable& pinned, int64_t layer) {
  std::vector<uint8_t> stays(static_cast<size_t>(frequency.keys()));
  for (const int64_t key : keys_of(pinned)) {
    if (key < 0 || key >= frequency.keys()) throw py::index_error("key " + std::to_string(key));
    stays[static_cast<size_t>(key)] = 1;
  }
  const int64_t key = frequency.victim(stays, layer);
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

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class BoundBooks final : public LayerExperts {
 public:
  BoundBooks(py::object policy, py::object queue, const std::vector<int64_t>& experts, int64_t slots,
             py::array_t<int32_t, py::array::c_style> slot_table, std::function<double()> clock,
             std::function<void()> took_free)
      : policy_(std::move(policy)), queue_(std::move(queue)), slot_table_(std::move(slot_table)) {
    int64_t records = 0;
    for (const int64_t n : experts) {
      if (n < 0) throw py::value_error("experts: expected 0 or more");
      records += n;
    }
    if (slot_table_.ndim() != 1 || slot_table_.size() != records) throw py::value_error("slot_table: expected one number a record");
    if (slots < 1) throw py::value_error("slots: expected at least 1");
    Policy* asked = nullptr;
    if (py::isinstance<Frequency>(policy_)) {
      asked = policy_.cast<Frequency*>();
    } else {
      python_policy_ = std::make_unique<PythonPolicy>(policy_);
      asked = python_policy_.get();
    }
    if (py::hasattr(queue_, "lend")) {
      reads_ = std::make_unique<NativeReads>(queue_);
    } else {
      reads_ = std::make_unique<PythonReads>(queue_);
    }
    books_.emplace(*asked, *reads_, experts, slots, slot_table_.mutable_data(), clock ? clock : steady_seconds, std::move(took_free));
  }

  Books& books() { return *books_; }

  std::vector<Landed> next_landed() {
    try {
      return books_->landed();
    } catch (const NativeReads::Failed& failed) {
      py::object fault = py::none();
      if (failed.fault) fault = py::make_tuple(failed.fault->offset, failed.fault->what, failed.fault->file);
      const py::object error = queue_.attr("error_of")(failed.record, fault);
      PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
      throw py::error_already_set();
    }
  }

  bool find(int64_t layer, const Ids& experts, const Ids& counts, int64_t tokens,
            std::optional<std::vector<int32_t>>* slots) noexcept override {
    return without_exception([&] { *slots = books_->find(layer, experts, counts, tokens); });
  }
  bool found(int64_t layer, const Ids& experts, const Ids& counts, int64_t tokens) noexcept override {
    return without_exception([&] { books_->found(layer, experts, counts, tokens); });
  }
  int64_t first_guessed(int64_t layer, int64_t layers) const noexcept override { return books_->first_guessed(layer, layers); }
  bool request(int64_t layer, const Ids& experts, const Ids& counts, int64_t tokens) noexcept override {
    return without_exception([&] { books_->request(layer, experts, counts, tokens); });
  }
  bool landed(std::vector<Landed>* landed) noexcept override {
    return without_exception([&] { *landed = next_landed(); });
  }
  void end_request() noexcept override {
    const py::error_scope kept;
    without_exception([&] { books_->end_request(); });  // if it can't, it ends with the next one
  }
  bool prefetch(int64_t layer, const Ids& experts, const std::vector<double>& likelihoods, int64_t max_under_way,
                Ids* missing) noexcept override {
    return without_exception([&] { *missing = books_->prefetch(layer, experts, likelihoods, max_under_way); });
  }
  double stall_sec() const noexcept override { return books_->counts().stall_sec; }
  int64_t wanted() const noexcept override {
    const Counts& counts = books_->counts();
    return counts.in_time + counts.late + counts.misses;
  }

  py::tuple counts() const {
    const Counts& c = books_->counts();
    return py::make_tuple(c.hits, c.in_time, c.late, c.misses, c.evictions, c.wasted, c.preloaded, c.rereads, c.stall_sec);
  }

  py::array_t<uint32_t> uses() const {
    const std::vector<uint32_t>& uses = books_->uses();
    return py::array_t<uint32_t>(static_cast<py::ssize_t>(uses.size()), uses.data());
  }

 private:
  const py::object policy_, queue_;
  py::array_t<int32_t, py::array::c_style> slot_table_;
  std::unique_ptr<PythonPolicy> python_policy_;
  std::unique_ptr<Reads> reads_;
  std::optional<Books> books_;
};

std::vector<int64_t> plain(Counted counts) { return std::move(counts).value_or(std::vector<int64_t>()); }

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
      .def("use", &use, py::arg("layer"), py::arg("keys"), py::arg("counts") = py::none(), py::arg("tokens") = 1)
      .def("step", &Frequency::step, py::arg("tokens") = 1)
      .def("victim", &victim, py::arg("pinned"), py::arg("layer"))
      .def("score", &Frequency::score, py::arg("key"))
      .def("state", &state)
      .def("restore_chances", &restore, py::arg("chances"), py::arg("tokens"));
  py::class_<BoundBooks>(m, "Books")
      .def(py::init<py::object, py::object, const std::vector<int64_t>&, int64_t, py::array_t<int32_t, py::array::c_style>,
                    std::function<double()>, std::function<void()>>(),
           py::arg("policy"), py::arg("queue"), py::arg("experts"), py::arg("slots"), py::arg("slot_table"), py::kw_only(),
           py::arg("clock"), py::arg("took_free"))
      .def("find", [](BoundBooks& self, int64_t layer, const std::vector<int64_t>& experts, Counted counts, int64_t tokens) {
             return self.books().find(layer, experts, plain(std::move(counts)), tokens);
           }, py::arg("layer"), py::arg("experts"), py::arg("counts"), py::arg("tokens"))
      .def("request", [](BoundBooks& self, int64_t layer, const std::vector<int64_t>& experts, Counted counts, int64_t tokens) {
             self.books().request(layer, experts, plain(std::move(counts)), tokens);
           }, py::arg("layer"), py::arg("experts"), py::arg("counts"), py::arg("tokens"))
      .def("landed", [](BoundBooks& self) {
             std::vector<std::pair<int64_t, int32_t>> pairs;
             for (const auto& landed : self.next_landed()) pairs.emplace_back(landed.position, landed.slot);
             return pairs;
           })
      .def("end_request", [](BoundBooks& self) { self.books().end_request(); })
      .def("prefetch", [](BoundBooks& self, int64_t layer, const std::vector<int64_t>& experts,
                          const std::vector<double>& likelihoods, int64_t max_under_way) {
             return self.books().prefetch(layer, experts, likelihoods, max_under_way);
           }, py::arg("layer"), py::arg("experts"), py::arg("likelihoods"), py::arg("max_under_way"))
      .def("preload", [](BoundBooks& self, const std::vector<int64_t>& records) { self.books().preload(records); }, py::arg("records"))
      .def("step", [](BoundBooks& self, int64_t tokens) { self.books().step(tokens); }, py::arg("tokens"))
      .def("hold", [](BoundBooks& self) { self.books().hold(); })
      .def("settle", [](BoundBooks& self, const std::vector<std::vector<std::pair<int64_t, std::vector<int64_t>>>>& tokens) {
             self.books().settle(tokens);
           }, py::arg("tokens"))
      .def("lend", [](const py::object& self) {
             LayerExperts* const lent = self.cast<BoundBooks*>();
             const py::capsule capsule(lent, LayerExperts::kCapsule);  // as long as the books are there
             return capsule;
           })
      .def("tell_policy", [](BoundBooks& self) { self.books().tell_policy(); })
      .def("resize", [](BoundBooks& self, int64_t limit) {
             Books::Resized resized = self.books().resize(limit);
             return std::make_pair(std::move(resized.regained), std::move(resized.released));
           }, py::arg("limit"))
      .def("counts", &BoundBooks::counts)
      .def("uses", &BoundBooks::uses)
      .def_property_readonly("free_slots", [](BoundBooks& self) { return self.books().free_slots(); })
      .def_property_readonly("released_slots", [](BoundBooks& self) { return self.books().released_slots(); })
      .def_property_readonly("taken", [](BoundBooks& self) { return self.books().limit() - static_cast<int64_t>(self.books().free_slots().size()); })
      .def_property_readonly("limit", [](BoundBooks& self) { return self.books().limit(); })
      .def_property_readonly("reading", [](BoundBooks& self) { return self.books().reading(); })
      .def_property_readonly("withdrawn", [](BoundBooks& self) { return self.books().withdrawn(); });
}
