// The Python module: checks arguments, keeps the arrays alive. Meanings are in _bpe.pyi.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "bpe.h"

namespace py = pybind11;

namespace smallthinker {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

class BoundBpe {
 public:
  BoundBpe(Array<uint32_t> ends, Array<uint8_t> texts, Array<uint32_t> sorted, Array<uint64_t> pairs, Array<uint32_t> ranks,
           Array<uint32_t> merged, bool byte_fallback, std::optional<uint32_t> unknown, bool fuses_unknown,
           bool ignores_merges)
      : ends_(std::move(ends)),
        texts_(std::move(texts)),
        sorted_(std::move(sorted)),
        pairs_(std::move(pairs)),
        ranks_(std::move(ranks)),
        merged_(std::move(merged)),
        bpe_(checked(), {byte_fallback, unknown, fuses_unknown}, ignores_merges) {}

  // Texts are checked to be UTF-8 where they come from; this can't fail for those.
  py::object text(int64_t id) const {
    const std::string_view found = bpe_.text(id);
    if (found.empty()) return py::none();
    return py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(found.data(), py::ssize_t(found.size()), "replace"));
  }

  std::optional<uint32_t> find(const std::string& word) const { return bpe_.find(word); }

  py::list encode(const std::string& word) const {
    py::list list;
    for (const Bpe::Token& token : bpe_.encode(word)) list.append(py::make_tuple(token.id, token.start, token.end));
    return list;
  }

 private:
  Vocabulary checked() const {
    for (const py::array& array : {py::array(ends_), py::array(texts_), py::array(sorted_), py::array(pairs_),
                                   py::array(ranks_), py::array(merged_)}) {
      if (array.ndim() != 1) throw py::value_error("expected arrays of one dimension");
    }
    if (pairs_.size() != ranks_.size() || pairs_.size() != merged_.size()) {
      throw py::value_error("pairs: expected a rank and a result for each");
    }
    const int64_t nbytes = ends_.size() == 0 ? 0 : int64_t{ends_.data()[ends_.size() - 1]};
    if (nbytes != texts_.size()) throw py::value_error("texts: expected to end where the last one does");
    return {ends_.data(),   ends_.size(),   reinterpret_cast<const char*>(texts_.data()), sorted_.data(),
            sorted_.size(), pairs_.data(),  ranks_.data(),                                merged_.data(),
            pairs_.size()};
  }

  Array<uint32_t> ends_;
  Array<uint8_t> texts_;
  Array<uint32_t> sorted_;
  Array<uint64_t> pairs_;
  Array<uint32_t> ranks_, merged_;
  Bpe bpe_;
};

}  // namespace
}  // namespace smallthinker

PYBIND11_MODULE(_bpe, m) {
  using namespace smallthinker;
  m.doc() = "Byte pair encoding over a packed vocabulary (smallthinker/text/native/).";
  py::class_<BoundBpe>(m, "Bpe")
      .def(py::init<Array<uint32_t>, Array<uint8_t>, Array<uint32_t>, Array<uint64_t>, Array<uint32_t>, Array<uint32_t>, bool,
                    std::optional<uint32_t>, bool, bool>(),
           py::kw_only(), py::arg("ends"), py::arg("texts"), py::arg("sorted"), py::arg("pairs"), py::arg("ranks"),
           py::arg("merged"), py::arg("byte_fallback"), py::arg("unknown"), py::arg("fuses_unknown"),
           py::arg("ignores_merges"))
      .def("text", &BoundBpe::text, py::arg("id"))
      .def("find", &BoundBpe::find, py::arg("word"))
      .def("encode", &BoundBpe::encode, py::arg("word"));
}
