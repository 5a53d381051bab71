// The Python module: checks arguments, keeps the slots' memory alive, releases the GIL. Meanings are in _storage.pyi.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>

#include "../../kernels/forks_bindings.h"
#include "../../kernels/piece_stage.h"
#include "read_queue.h"
#include "simulated_queue.h"
#include "system.h"

namespace py = pybind11;

namespace smallthinker {
namespace {

constexpr int kMostChunks = 64;  // in flight; each may have a thread of its own
// Ctrl-C reaches a thread that waits no later than this; an end of a read wakes it at once.
constexpr std::chrono::milliseconds kSignalSlice{50};

PyObject* read_error = nullptr;

[[noreturn]] void raise_fault(const Fault& fault) {
  PyErr_SetObject(read_error, py::make_tuple(fault.offset, fault.what, fault.file).ptr());
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
    if (read->fault) fault = py::make_tuple(read->fault->offset, read->fault->what, read->fault->file);
    list.append(py::make_tuple(read->record, read->is_whole, fault));
  }
  return list;
}

py::tuple counted(const Counters& c) {
  return py::make_tuple(c.certain_reads, c.certain_bytes, c.speculative_reads, c.speculative_bytes, c.withdrawn_bytes,
                        c.busy_sec, c.repeated_reads);
}

std::unique_ptr<SimulatedQueue> make_simulated(const Device& device, int64_t record_bytes, int64_t chunk_bytes, int depth,
                                               int speculative_depth, double finish_sec) {
  check("chunk_bytes", chunk_bytes, 1, record_bytes);
  check("depth", depth, 1, kMostChunks);
  check("speculative_depth", speculative_depth, 1, depth);
  const auto cuts = [record_bytes, chunk_bytes](int64_t, int64_t number) {
    return std::max(int64_t{0}, std::min(chunk_bytes, record_bytes - number * chunk_bytes));
  };
  return std::make_unique<SimulatedQueue>(cuts, Limits{depth, speculative_depth}, device, finish_sec);
}

// What Python makes of a record. `run` lives longer than the threads that call it, which may not have Python's lock.
Stage python_stage(const py::object& run, int threads, int64_t record_bytes) {
  const auto call = [run = py::handle(run), record_bytes](const Piece& piece, uint8_t* stored,
                                                          uint8_t* slot) -> std::optional<std::string> {
    const py::gil_scoped_acquire locked;
    try {
      run(py::memoryview::from_memory(stored, piece.bytes, true), py::memoryview::from_memory(slot, record_bytes));
    } catch (py::error_already_set& error) {
      if (error.matches(PyExc_ValueError)) return py::str(error.value()).cast<std::string>();
      return "cannot unpack: " + py::repr(error.value()).cast<std::string>();
    }
    return std::nullopt;
  };
  return Stage{threads, call};
}

// What the kernels make of a piece. The capsule lives longer than the threads.
Stage kernel_stage(const PieceStage& stage, int threads) {
  const auto call = [&stage](const Piece& piece, uint8_t* stored, uint8_t* slot) -> std::optional<std::string> {
    const char* const what = stage.run(piece.what, stored, slot);
    return what == nullptr ? std::nullopt : std::optional<std::string>(what);
  };
  return Stage{threads, call};
}

std::optional<Stage> make_stage(const py::object& stage, int threads, const Records& records, int64_t record_bytes) {
  if (stage.is_none()) return std::nullopt;
  check("threads", threads, 1, kMostChunks);
  if (!PyCapsule_IsValid(stage.ptr(), PieceStage::kCapsule)) {
    check("pieces", int64_t(records.pieces().size()), records.count(), records.count());
    return python_stage(stage, threads, record_bytes);
  }
  const auto& native = *static_cast<const PieceStage*>(PyCapsule_GetPointer(stage.ptr(), PieceStage::kCapsule));
  check("bytes of the stage's slots", native.slot_bytes(), 0, record_bytes);
  for (const Piece& piece : records.pieces()) {
    check("shape of a piece", piece.what, 0, native.num_shapes() - 1);
    const int64_t expected = native.stored_bytes(piece.what);
    check("bytes of a piece", piece.bytes, expected, int64_t{1} << 31);  // what is behind a row may be read with it
  }
  return kernel_stage(native, threads);
}

std::vector<Piece> make_pieces(const py::array_t<int64_t, py::array::c_style | py::array::forcecast>& table) {
  if (table.ndim() != 2 || table.shape(1) != 4) throw py::value_error("pieces: expected four numbers each");
  const auto* numbers = table.data();
  std::vector<Piece> pieces;
  for (int64_t i = 0; i < table.shape(0); ++i, numbers += 4) {
    pieces.push_back({numbers[0], numbers[1], numbers[2], numbers[3]});
  }
  return pieces;
}

using Sums = py::array_t<uint32_t, py::array::c_style | py::array::forcecast>;

std::optional<Checksums> make_checksums(const std::optional<Sums>& sums, const std::vector<int64_t>& starts, bool always,
                                        Records& records) {
  if (!sums) return std::nullopt;
  check("sums", sums->size(), int64_t(starts.size()) - 1, int64_t(starts.size()) - 1);
  records.cover(starts);
  return Checksums(std::vector<uint32_t>(sums->data(), sums->data() + sums->size()), always);
}

uint32_t checksum(const py::buffer& data, uint32_t crc, bool by_tables) {
  const py::buffer_info info = data.request();
  const auto* const bytes = static_cast<const uint8_t*>(info.ptr);
  if (!PyBuffer_IsContiguous(info.view(), 'C')) throw py::value_error("data: expected contiguous bytes");
  const int64_t count = info.size * info.itemsize;
  const py::gil_scoped_release unlocked;
  return by_tables ? crc32_by_tables(bytes, count, crc) : crc32(bytes, count, crc);
}

// The queue and what it writes into. Members go in reverse order: the threads end before the slots may.
class BoundQueue {
 public:
  using Table = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

  BoundQueue(const std::vector<std::pair<std::string, int64_t>>& files, int64_t record_bytes, const Table& pieces,
             std::vector<int64_t> starts, py::array slots, const std::string& kind, int64_t chunk_bytes, int depth,
             int speculative_depth, std::optional<Device> pace, py::object stage, int threads,
             const std::optional<Sums>& sums, const std::vector<int64_t>& sum_starts, bool sum_always)
      : slots_(std::move(slots)), stage_(std::move(stage)) {
    check("record_bytes", record_bytes, kAlign, int64_t{1} << 31, kAlign);  // one read's length fits every system
    check("chunk_bytes", chunk_bytes, kAlign, int64_t{1} << 31, kAlign);
    check("depth", depth, 1, kMostChunks);
    check("speculative_depth", speculative_depth, 1, depth);
    uint8_t* const memory = check_slots(slots_, record_bytes);
    std::vector<int64_t> file_bytes;
    for (const auto& file : files) file_bytes.push_back(file.second);
    const int64_t cut_bytes = stage_.is_none() ? chunk_bytes : Records::kWholePieces;
    Records records(make_pieces(pieces), std::move(starts), file_bytes, record_bytes, cut_bytes);
    std::optional<Stage> made = make_stage(stage_, threads, records, record_bytes);
    std::optional<Checksums> checksums = make_checksums(sums, sum_starts, sum_always, records);
    const Limits limits{depth, speculative_depth};
    const Kind parsed = parse_kind(kind);
    const int64_t num_slots = slots_.shape(0);
    int64_t number = 0;
    try {
      const py::gil_scoped_release unlocked;
      std::vector<std::unique_ptr<StoreFile>> opened;
      for (; number < int64_t(files.size()); ++number) {
        opened.push_back(std::make_unique<StoreFile>(files[size_t(number)].first, file_bytes[size_t(number)], parsed));
      }
      queue_.reset(new ReadQueue(std::move(opened), std::move(records), memory, num_slots, record_bytes, limits, pace,
                                 std::move(made), std::move(checksums)));
    } catch (Fault& fault) {
      fault.file = number;
      raise_fault(fault);
    }
  }

  ~BoundQueue() {
    if (queue_) close();  // its threads may wait for the lock that is held here
  }

  std::string kind() const { return kind_name(queue_->kind()); }
  bool is_own_thread() const { return queue_->is_own_thread(); }

  bool submit(int64_t record, int64_t slot, bool speculative) { return queue().submit(record, slot, speculative); }

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

  // Valid as long as this object.
  py::capsule lend() { return py::capsule(static_cast<BackgroundReads*>(queue_.get()), BackgroundReads::kCapsule); }

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
  m.def("crc32", &checksum, py::arg("data"), py::arg("crc") = 0, py::kw_only(), py::arg("by_tables") = false);
  py::class_<Device>(m, "Device")
      .def(py::init(&make_device), py::kw_only(), py::arg("bytes_per_sec"), py::arg("requests_per_sec"),
           py::arg("latency_sec"));
  py::class_<Pace>(m, "Pace")
      .def(py::init<const Device&>(), py::arg("device"))
      .def("due", &Pace::due, py::arg("start_sec"), py::arg("nbytes"));
  py::class_<SimulatedQueue>(m, "SimulatedQueue")
      .def(py::init(&make_simulated), py::arg("device"), py::kw_only(), py::arg("record_bytes"), py::arg("chunk_bytes"),
           py::arg("depth"), py::arg("speculative_depth"), py::arg("finish_sec"))
      .def("submit", &SimulatedQueue::submit, py::arg("now_sec"), py::arg("record"), py::arg("slot"), py::arg("speculative"))
      .def("promote", &SimulatedQueue::promote, py::arg("now_sec"), py::arg("record"))
      .def("cancel", &SimulatedQueue::cancel, py::arg("now_sec"), py::arg("record"))
      .def("poll", [](SimulatedQueue& self, double now) { return told(self.poll(now)); }, py::arg("now_sec"))
      .def("next_end", &SimulatedQueue::next_end, py::arg("now_sec"))
      .def("drain", &SimulatedQueue::drain, py::arg("now_sec"))
      .def_property_readonly("withdrawn_bytes", &SimulatedQueue::withdrawn_bytes)
      .def_property_readonly("busy_sec", &SimulatedQueue::busy_sec);
  py::class_<BoundQueue>(m, "ReadQueue")
      .def(py::init<const std::vector<std::pair<std::string, int64_t>>&, int64_t, const BoundQueue::Table&,
                    std::vector<int64_t>, py::array, const std::string&, int64_t, int, int, std::optional<Device>,
                    py::object, int, const std::optional<Sums>&, const std::vector<int64_t>&, bool>(),
           py::arg("files"), py::kw_only(), py::arg("record_bytes"), py::arg("pieces"), py::arg("starts"),
           py::arg("slots"), py::arg("kind"), py::arg("chunk_bytes"), py::arg("depth"), py::arg("speculative_depth"),
           py::arg("pace") = py::none(), py::arg("stage") = py::none(), py::arg("threads") = 1,
           py::arg("sums") = py::none(), py::arg("sum_starts") = std::vector<int64_t>{0}, py::arg("sum_always") = false)
      .def_property_readonly("kind", &BoundQueue::kind)
      .def_property_readonly("is_own_thread", &BoundQueue::is_own_thread)
      .def("submit", &BoundQueue::submit, py::arg("record"), py::arg("slot"), py::arg("speculative"))
      .def("promote", &BoundQueue::promote, py::arg("record"))
      .def("cancel", &BoundQueue::cancel, py::arg("record"))
      .def("poll", &BoundQueue::poll)
      .def("wait", &BoundQueue::wait)
      .def("drain", &BoundQueue::drain)
      .def("lend", &BoundQueue::lend)
      .def("counters", &BoundQueue::counters)
      .def("close", &BoundQueue::close);
}
