// What the books ask, of Python's objects or of another module: policies and queues.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include "../../expert_store/native/background_reads.h"
#include "books.h"

namespace smallthinker {

namespace py = pybind11;

// An EvictionPolicy that is written in Python.
class PythonPolicy : public Policy {
 public:
  explicit PythonPolicy(py::object policy) : policy_(std::move(policy)) {}
  void insert(int64_t record) override { policy_.attr("insert")(record); }
  void remove(int64_t record) override { policy_.attr("remove")(record); }
  void use(const Use& use) override {
    const py::object counts = use.counts.empty() ? py::object(py::none()) : py::cast(use.counts);
    policy_.attr("use")(use.layer, use.records, counts, use.tokens);
  }
  void step(int64_t tokens) override { policy_.attr("step")(tokens); }
  int64_t victim(const std::vector<uint8_t>& stays, int64_t layer) override {
    std::vector<int64_t> pinned;
    for (size_t record = 0; record < stays.size(); ++record) {
      if (stays[record] != 0) pinned.push_back(static_cast<int64_t>(record));
    }
    const py::object victim = policy_.attr("victim")(pinned, layer);
    return victim.is_none() ? -1 : victim.cast<int64_t>();
  }
  double score(int64_t record) override { return policy_.attr("score")(record).cast<double>(); }

 private:
  py::object policy_;
};

// A ReadQueue that is written in Python.
class PythonReads : public Reads {
 public:
  explicit PythonReads(py::object queue) : queue_(std::move(queue)) {}
  void submit(int64_t record, int64_t slot, bool speculative) override { queue_.attr("submit")(record, slot, speculative); }
  void promote(int64_t record) override { queue_.attr("promote")(record); }
  bool cancel(int64_t record) override { return queue_.attr("cancel")(record).cast<bool>(); }
  std::vector<Ended> poll() override { return told(queue_.attr("poll")()); }
  std::vector<Ended> wait() override { return told(queue_.attr("wait")()); }

 private:
  static std::vector<Ended> told(const py::object& finished) {
    std::vector<Ended> ended;
    for (const py::handle read : finished) {
      const auto [record, error] = read.cast<std::pair<int64_t, py::object>>();
      ended.push_back({record, error.is_none() ? nullptr : thrown(error)});
    }
    return ended;
  }
  static std::exception_ptr thrown(const py::object& error) {
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
    return std::make_exception_ptr(py::error_already_set());
  }

  py::object queue_;
};

// A native one, as a capsule lends it. Waiting releases the GIL, and hears of Ctrl-C.
class NativeReads : public Reads {
 public:
  struct Failed {
    int64_t record;
    std::optional<Fault> fault;  // none: it was stopped
  };

  explicit NativeReads(py::object queue)
      : queue_(std::move(queue)), lent_(queue_.attr("lend")()), reads_(*lent_.get_pointer<BackgroundReads>()) {}
  void submit(int64_t record, int64_t slot, bool speculative) override {
    if (!reads_.submit(record, slot, speculative)) queue_.attr("submit")(record, slot, speculative);  // says that it is closed
  }
  void promote(int64_t record) override { reads_.promote(record); }
  bool cancel(int64_t record) override { return reads_.cancel(record); }
  std::vector<Ended> poll() override { return told(reads_.poll()); }
  std::vector<Ended> wait() override {
    for (;;) {
      BackgroundReads::Ended ended;
      {
        const py::gil_scoped_release unlocked;
        ended = reads_.wait(kSignalSlice);
      }
      if (!ended.empty()) return told(ended);
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
  }

 private:
  // Ctrl-C reaches a thread that waits no later than this; an end of a read wakes it at once.
  static constexpr std::chrono::milliseconds kSignalSlice{50};

  static std::vector<Ended> told(const BackgroundReads::Ended& reads) {
    std::vector<Ended> ended;
    for (const auto& read : reads) {
      ended.push_back({read->record, read->is_whole ? nullptr : std::make_exception_ptr(Failed{read->record, read->fault})});
    }
    return ended;
  }

  py::object queue_;
  py::capsule lent_;
  BackgroundReads& reads_;
};

}  // namespace smallthinker
