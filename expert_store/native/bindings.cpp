// The Python module: checks arguments, keeps the slots' memory alive, releases the GIL. Meanings are in _storage.pyi.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <limits>

#include "../../kernels/forks_bindings.h"
#include "read_queue.h"
#include "system.h"

namespace py = pybind11;

namespace smallthinker {
namespace {

constexpr int kMostChunks = 64;  // in flight; each may have a thread of its own
// Ctrl-C reaches a thread that waits no later than this; an end of a read wakes it at once.
constexpr std::chrono::milliseconds kSignalSlice{50};

PyObject* read_error = nullptr;

[[noreturn]] void raise_fault(const Fault& fault) {
  PyErr_SetObject(read_error, py::make_tuple(fault.offset, fault.what).ptr());
  throw py::error_already_set();
}

void check(const char* name, int64_t value, int64_t least, int64_t most, int64_t unit = 1) {
  if (value >= least && value <= most && value % unit == 0) return;
  std::string text = std::string(name) + ": expected " + std::to_string(least) + " to " + std::to_string(most);
  if (unit > 1) text += " in steps of " + std::to_string(unit);
  throw py::value_error(text + ", found " + std::to_string(value));
}

uint8_t* check_slots(py::array& slots, int64_t record_bytes) {
  if (!py::isinstance<py::array_t<uint8_t>>(slots) || slots.ndim() != 2 || !(slots.flags() & py::array::c_style)) {
    throw py::value_error("slots: expected a C-contiguous uint8 array of two dimensions");
  }
  if (slots.shape(1) != record_bytes) {
    throw py::value_error("slots: expected rows of " + std::to_string(record_bytes) + " bytes, found " +
                          std::to_string(slots.shape(1)));
  }
  if (!slots.writeable()) throw py::value_error("slots: expected memory that can be written");
  auto* data = static_cast<uint8_t*>(slots.mutable_data());
  if (reinterpret_cast<uintptr_t>(data) % kAlign != 0) {
    throw py::value_error("slots: expected memory aligned to " + std::to_string(kAlign) +
                          " bytes (host.aligned_buffer)");
  }
  return data;
}

Device make_device(double bytes_per_sec, double requests_per_sec, double latency_sec) {
  const auto is_positive = [](double x) { return std::isfinite(x) && x > 0; };
  if (!is_positive(bytes_per_sec) || !is_positive(requests_per_sec) || !std::isfinite(latency_sec) || latency_sec < 0) {
    throw py::value_error("device: expected rates above 0 and a latency of at least 0");
  }
  return {bytes_per_sec, requests_per_sec, latency_sec};
}

py::list told(const ReadQueue::Ended& ended) {
  py::list list;
  for (const auto& read : ended) {
    py::object fault = py::none();
    if (read->fault) fault = py::make_tuple(read->fault->offset, read->fault->what);
    list.append(py::make_tuple(read->record, read->is_whole, fault));
  }
  return list;
}

py::tuple counted(const Counters& c) {
  return py::make_tuple(c.certain_reads, c.certain_bytes, c.speculative_reads, c.speculative_bytes, c.withdrawn_bytes,
                        c.busy_sec);
}

std::unique_ptr<Schedule> make_schedule(int64_t record_bytes, int64_t chunk_bytes, int depth, int speculative_depth) {
  check("chunk_bytes", chunk_bytes, 1, record_bytes);
  check("depth", depth, 1, kMostChunks);
  check("speculative_depth", speculative_depth, 1, depth);
  return std::make_unique<Schedule>(Limits{record_bytes, chunk_bytes, depth, speculative_depth});
}

// What Python makes of a record. `run` lives longer than the threads that call it, which may not have Python's lock.
std::optional<Stage> make_stage(const py::object& run, std::vector<int64_t> offsets, int threads, int64_t num_records,
                                int64_t record_bytes, int64_t file_bytes) {
  if (run.is_none()) return std::nullopt;
  check("offsets", int64_t(offsets.size()), num_records + 1, num_records + 1);
  check("threads", threads, 1, kMostChunks);
  for (size_t i = 0; i < offsets.size(); ++i) {
    const int64_t before = i == 0 ? -1 : offsets[i - 1];
    check("offsets", offsets[i], before + 1, i == 0 ? file_bytes : std::min(file_bytes, before + record_bytes), kAlign);
  }
  const auto call = [run = py::handle(run), record_bytes](uint8_t* stored, int64_t stored_bytes,
                                                          uint8_t* slot) -> std::optional<std::string> {
    const py::gil_scoped_acquire locked;
    try {
      run(py::memoryview::from_memory(stored, stored_bytes, true), py::memoryview::from_memory(slot, record_bytes));
    } catch (py::error_already_set& error) {
      if (error.matches(PyExc_ValueError)) return py::str(error.value()).cast<std::string>();
      return "cannot unpack: " + py::repr(error.value()).cast<std::string>();
    }
    return std::nullopt;
  };
  return Stage{std::move(offsets), threads, call};
}

// The queue and what it writes into. Members go in reverse order: the threads end before the slots may.
class BoundQueue {
 public:
  BoundQueue(const std::string& path, int64_t file_bytes, int64_t first_offset, int64_t record_bytes,
             int64_t num_records, py::array slots, const std::string& kind, int64_t chunk_bytes, int depth,
             int speculative_depth, std::optional<Device> pace, py::object stage, std::vector<int64_t> offsets,
             int threads)
      : slots_(std::move(slots)), stage_(std::move(stage)) {
    constexpr int64_t most = std::numeric_limits<int64_t>::max() / 2;
    check("record_bytes", record_bytes, kAlign, int64_t{1} << 31, kAlign);  // one read's length fits every system
    check("first_offset", first_offset, 0, most, kAlign);
    check("num_records", num_records, 1, (most - first_offset) / record_bytes);
    check("file_bytes", file_bytes, stage_.is_none() ? first_offset + num_records * record_bytes : 0, most);
    check("chunk_bytes", chunk_bytes, kAlign, int64_t{1} << 31, kAlign);
    check("depth", depth, 1, kMostChunks);
    check("speculative_depth", speculative_depth, 1, depth);
    uint8_t* const memory = check_slots(slots_, record_bytes);
    std::optional<Stage> unpack =
        make_stage(stage_, std::move(offsets), threads, num_records, record_bytes, file_bytes);
    const int64_t most_bytes = unpack ? record_bytes : std::min(chunk_bytes, record_bytes);
    const Limits limits{record_bytes, most_bytes, depth, speculative_depth};
    const Kind parsed = parse_kind(kind);
    const int64_t num_slots = slots_.shape(0);
    try {
      const py::gil_scoped_release unlocked;
      auto file = std::make_unique<StoreFile>(path, file_bytes, parsed, first_offset);
      queue_.reset(new ReadQueue(std::move(file), first_offset, num_records, memory, num_slots, limits, pace,
                                 std::move(unpack)));
    } catch (const Fault& fault) {
      raise_fault(fault);
    }
  }

  ~BoundQueue() {
    if (queue_) close();  // its threads may wait for the lock that is held here
  }

  std::string kind() const { return kind_name(queue_->kind()); }
  bool is_own_thread() const { return queue_->is_own_thread(); }

  bool submit(int64_t record, int64_t slot, bool speculative) {
    try {
      queue().submit(record, slot, speculative);
    } catch (const ReadQueue::Closed&) {
      return false;
    }
    return true;
  }

  void promote(int64_t record) { queue().promote(record); }
  bool cancel(int64_t record) { return queue().cancel(record); }
  py::list poll() { return told(queue().poll()); }

  py::list wait() {
    for (;;) {
      ReadQueue::Ended ended = queue().poll();
      if (ended.empty()) {
        const py::gil_scoped_release unlocked;
        ended = queue_->wait(kSignalSlice);
      }
      if (!ended.empty()) return told(ended);
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
  }

  void drain() {
    const py::gil_scoped_release unlocked;
    queue().drain();
  }

  py::tuple counters() const {
    return counted(queue().counters());
  }

  void close() {
    if (queue_->home().is_here()) {
      const py::gil_scoped_release unlocked;
      queue_->close();
    }
    slots_ = py::array();  // nobody writes there any more, and they may be most of the memory
    stage_ = py::object();
  }

 private:
  ReadQueue& queue() const {
    queue_->home().check();
    return *queue_;
  }

  py::array slots_;
  py::object stage_;
  std::unique_ptr<ReadQueue, DeleteAtHome> queue_;
};

}  // namespace
}  // namespace smallthinker

PYBIND11_MODULE(_storage, m) {
  using namespace smallthinker;
  m.doc() = "Background reading of records (expert_store/native/).";
  translate_forked();
  read_error = PyErr_NewException("smallthinker._storage.ReadError", PyExc_Exception, nullptr);
  m.attr("ReadError") = py::reinterpret_borrow<py::object>(read_error);
  py::class_<Device>(m, "Device")
      .def(py::init(&make_device), py::kw_only(), py::arg("bytes_per_sec"), py::arg("requests_per_sec"),
           py::arg("latency_sec"));
  py::class_<Pace>(m, "Pace")
      .def(py::init<const Device&>(), py::arg("device"))
      .def("due", &Pace::due, py::arg("start_sec"), py::arg("nbytes"));
  py::class_<Chunk>(m, "Chunk").def_readonly("nbytes", &Chunk::bytes);
  py::class_<Schedule>(m, "Schedule")
      .def(py::init(&make_schedule), py::kw_only(), py::arg("record_bytes"), py::arg("chunk_bytes"), py::arg("depth"),
           py::arg("speculative_depth"))
      .def("submit", &Schedule::submit, py::arg("record"), py::arg("slot"), py::arg("speculative"))
      .def("promote", &Schedule::promote, py::arg("record"))
      .def("cancel", &Schedule::cancel, py::arg("record"))
      .def("withdraw_all", &Schedule::withdraw_all)
      .def("take", &Schedule::take)
      .def("give_back", [](Schedule& self, const Chunk& chunk) { self.give_back(chunk, std::nullopt, false); },
           py::arg("chunk"))
      .def("take_ended", [](Schedule& self) { return told(self.take_ended()); })
      .def("counters", [](const Schedule& self) { return counted(self.counters()); });
  py::class_<BoundQueue>(m, "ReadQueue")
      .def(py::init<const std::string&, int64_t, int64_t, int64_t, int64_t, py::array, const std::string&, int64_t, int,
                    int, std::optional<Device>, py::object, std::vector<int64_t>, int>(),
           py::arg("path"), py::kw_only(), py::arg("file_bytes"), py::arg("first_offset"), py::arg("record_bytes"),
           py::arg("num_records"), py::arg("slots"), py::arg("kind"), py::arg("chunk_bytes"), py::arg("depth"),
           py::arg("speculative_depth"), py::arg("pace") = py::none(), py::arg("stage") = py::none(),
           py::arg("offsets") = std::vector<int64_t>(), py::arg("threads") = 1)
      .def_property_readonly("kind", &BoundQueue::kind)
      .def_property_readonly("is_own_thread", &BoundQueue::is_own_thread)
      .def("submit", &BoundQueue::submit, py::arg("record"), py::arg("slot"), py::arg("speculative"))
      .def("promote", &BoundQueue::promote, py::arg("record"))
      .def("cancel", &BoundQueue::cancel, py::arg("record"))
      .def("poll", &BoundQueue::poll)
      .def("wait", &BoundQueue::wait)
      .def("drain", &BoundQueue::drain)
      .def("counters", &BoundQueue::counters)
      .def("close", &BoundQueue::close);
}
