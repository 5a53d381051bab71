// The Python module: the machine's side of it, threads and instruction sets; the rest is registered by headers, since each
// file more that includes pybind11 takes ten seconds more to compile. Each function checks its arguments, releases the GIL
// and calls a kernel; shapes and meanings are in _kernels.pyi.
#include "bindings/checks.h"
#include "bindings/register_formats.h"
#include "bindings/register_layers.h"
#include "bindings/register_model.h"
#include "bindings/register_ops.h"
#include "forks_bindings.h"
#include "isa/isa.h"
#include "thread_pool.h"
#include "timings.h"

#include <pybind11/stl.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace smallthinker {
namespace {

constexpr int kMaxThreads = 256;
// The one place that reads the environment: the instruction set of pools that don't name one.
const Isa& default_isa() {
  static const Isa& isa = [&]() -> const Isa& {
    const char* name = std::getenv("SMALLTHINKER_ISA");
    try {
      return find_isa(name == nullptr ? "" : name);
    } catch (const std::invalid_argument& e) {
      throw std::invalid_argument(std::string("SMALLTHINKER_ISA: ") + e.what());
    }
  }();
  return isa;
}
using OwnedPool = std::unique_ptr<ThreadPool, DeleteAtHome>;
OwnedPool make_pool(int threads, const std::optional<std::string>& isa) {
  if (threads < 1 || threads > kMaxThreads) fail("threads: expected 1 to ", kMaxThreads, ", found ", threads);
  if (isa && isa->empty()) fail("isa: expected a name or None");
  return OwnedPool(new ThreadPool(threads, isa ? find_isa(*isa) : default_isa()));
}
py::dict bind_timings(const Timings& timings) {
  py::dict by_name;
  for (const Timings::Entry& entry : timings.entries()) by_name[entry.name] = py::make_tuple(entry.calls, entry.sec);
  return by_name;
}
uint64_t bind_read_memory(ThreadPool& pool, const py::array& data) {
  const uint8_t* from = input<uint8_t>(data, "data", {-1});
  const int64_t bytes = data.shape(0);
  py::gil_scoped_release unlocked;
  return read_memory(pool, from, bytes);
}
int64_t bind_multiply_add(ThreadPool& pool, int64_t multiplications, bool int8) {
  check_dim("multiplications", multiplications);
  py::gil_scoped_release unlocked;
  return multiply_add(pool, multiplications, int8);
}

}  // namespace
}  // namespace smallthinker

PYBIND11_MODULE(_kernels, m) {
  using namespace smallthinker;
  namespace py = pybind11;
  using py::arg;
  translate_forked();
  poolless_timings();
  default_isa();  // a wrong SMALLTHINKER_ISA fails the import, not the first token
  m.attr("BLOCK") = kBlock;
  m.attr("TILE_ROWS") = kTileRows;
  m.attr("KV_GROUP") = kLanes;
  m.attr("KV_SPLIT") = kKeySplit;
#if defined(__clang__)
  m.attr("COMPILER") = __VERSION__;  // names itself
#elif defined(__GNUC__)
  m.attr("COMPILER") = "GCC " __VERSION__;
#elif defined(_MSC_VER)
  m.attr("COMPILER") = "MSVC " + std::to_string(_MSC_VER);
#else
  m.attr("COMPILER") = "unknown";
#endif
  m.def("isa", [] { return std::string(default_isa().name); });
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const Isa* isa : available_isas()) names.emplace_back(isa->name);
    return names;
  });
  m.def("built_isas", [] {
    std::vector<std::string> names;
    for (const Isa* isa : built_isas()) names.emplace_back(isa->name);
    return names;
  });
  m.def("timings", [] { return bind_timings(poolless_timings()); });
  py::class_<ThreadPool, OwnedPool>(m, "ThreadPool")
      .def(py::init(&make_pool), arg("threads"), arg("isa") = py::none())
      .def_property_readonly("threads", &ThreadPool::threads)
      .def_property_readonly("isa", [](const ThreadPool& pool) { return std::string(pool.isa().name); })
      .def_property_readonly("scratch_bytes", &ThreadPool::scratch_bytes)
      .def("release_scratch", &ThreadPool::release_scratch, py::call_guard<py::gil_scoped_release>())
      .def("timings", [](ThreadPool& pool) { return bind_timings(pool.timings()); });
  m.def("read_memory", &bind_read_memory, arg("pool"), arg("data"));
  m.def("multiply_add", &bind_multiply_add, arg("pool"), arg("multiplications"), arg("int8") = false);
  register_formats(m);
  register_model(m);
  register_layers(m);
  register_ops(m);  // after the classes, which signatures would else name in C++
}
