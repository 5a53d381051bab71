// Weight formats: their sizes, records' layouts, packing.
#pragma once

#include "bindings/checks.h"
#include "formats/packing/repack_stage.h"

#include <pybind11/stl.h>

#include <tuple>
#include <vector>

namespace smallthinker {
namespace {

int64_t bind_packed_bytes(const std::string& quant, const std::string& layout, int64_t rows, int64_t cols) {
  const Quant q = parse_quant(quant);
  check_matrix(q, rows, cols);
  check_layout(q, parse_layout(layout));
  return packed_bytes(q, parse_layout(layout), rows, cols);
}

std::vector<Section> bind_record_sections(const FfnQuants& quants, int64_t hidden, int64_t ffn, const std::string& activation,
                                          bool gated, bool biased, bool whole) {
  // where matrices lie doesn't depend on what is clamped
  const RecordSections all = record_sections(check_ffn_shape(quants, hidden, ffn, activation, gated, biased, {1.0f, 1.0f}, whole));
  std::vector<Section> found;
  for (const Section& section : {all.gate, all.up, all.down, all.gate_bias, all.up_bias, all.down_bias}) {
    if (section.rows > 0) found.push_back(section);
  }
  return found;
}

py::array_t<uint8_t> bind_pack(const std::string& quant, const std::string& layout, const py::array& w) {
  const float* from = input<float>(w, "w", {-1, -1});
  const int64_t rows = w.shape(0), cols = w.shape(1);
  const Quant q = parse_quant(quant);
  if (!can_pack(q)) fail("quant: expected a format that can be made of numbers, found ", quant, ", which only files bring");
  py::array_t<uint8_t> data(bind_packed_bytes(quant, layout, rows, cols));
  uint8_t* to = data.mutable_data();
  const Layout l = parse_layout(layout);
  py::gil_scoped_release unlocked;
  pack(q, l, from, rows, cols, to);
  return data;
}

py::array_t<uint8_t> bind_repack(const std::string& quant, const std::string& layout, const py::array& blocks, bool finite) {
  const uint8_t* from = input<uint8_t>(blocks, "blocks", {-1, -1});
  const Quant q = parse_quant(quant);
  const Layout l = parse_layout(layout);
  const int64_t block_bytes = sizes_of(q).block_bytes, rows = blocks.shape(0);
  if (blocks.shape(1) % block_bytes != 0) fail("blocks: expected rows of whole blocks of ", block_bytes, " bytes, found ", blocks.shape(1));
  const int64_t cols = blocks.shape(1) / block_bytes * sizes_of(q).block;
  py::array_t<uint8_t> data(bind_packed_bytes(quant, layout, rows, cols));
  uint8_t* to = data.mutable_data();
  bool found_finite;
  {
    py::gil_scoped_release unlocked;
    found_finite = repack(q, l, from, rows, cols, to);
  }
  if (finite && !found_finite) fail("blocks: expected finite scales, found NaN or infinity");
  return data;
}

using ShapeOf = std::tuple<std::string, std::string, int64_t, int64_t, int64_t, int64_t>;

py::capsule bind_piece_stage(const std::vector<ShapeOf>& given) {
  constexpr int64_t most = int64_t{1} << 31;  // of a piece, and of a slot
  std::vector<PieceShape> shapes;
  for (const auto& [quant, layout, rows, cols, stride, target] : given) {
    const PieceShape shape{parse_quant(quant), parse_layout(layout), rows, cols, stride, target};
    check_matrix(shape.quant, rows, cols);
    check_layout(shape.quant, shape.layout);
    const int64_t least = row_bytes(shape.quant, cols);
    if (stride < least || stride > most / rows) fail("stride: expected ", least, " to ", most / rows, ", found ", stride);
    if (target < 0 || target > most) fail("target: expected 0 to ", most, ", found ", target);
    shapes.push_back(shape);
  }
  auto* const stage = new RepackStage(std::move(shapes));
  return py::capsule(static_cast<PieceStage*>(stage), PieceStage::kCapsule,
                     [](PyObject* self) { delete static_cast<PieceStage*>(PyCapsule_GetPointer(self, PieceStage::kCapsule)); });
}

py::array_t<float> bind_unpack(const std::string& quant, const std::string& layout, const py::array& data, int64_t rows,
                               int64_t cols) {
  const uint8_t* from = packed(data, "data", bind_packed_bytes(quant, layout, rows, cols));
  py::array_t<float> w({rows, cols});
  float* to = w.mutable_data();
  const Quant q = parse_quant(quant);
  const Layout l = parse_layout(layout);
  py::gil_scoped_release unlocked;
  unpack(q, l, from, rows, cols, to);
  return w;
}

}  // namespace

inline void register_formats(py::module_& m) {
  using py::arg;
  m.def("formats", [] {
    py::dict by_name;
    for (const FormatSizes& format : kFormats) by_name[format.name] = py::make_tuple(format.block, format.block_bytes);
    return by_name;
  });
  m.def("can_pack", [](const std::string& quant) { return can_pack(parse_quant(quant)); }, arg("quant"));
  m.def("has_rows", [](const std::string& quant) { return sizes_of(parse_quant(quant)).has_rows; }, arg("quant"));
  m.def("activations", [] { return std::vector<std::string>(std::begin(kActivations), std::end(kActivations)); });
  m.def("packed_bytes", &bind_packed_bytes, arg("quant"), arg("layout"), arg("rows"), arg("cols"));
  py::class_<Section>(m, "Section")
      .def_property_readonly("layout", [](const Section& s) { return s.layout == Layout::tiles ? "tiles" : "rows"; })
      .def_readonly("is_transposed", &Section::is_transposed)
      .def_readonly("rows", &Section::rows)
      .def_readonly("cols", &Section::cols)
      .def_readonly("offset", &Section::offset)
      .def_readonly("nbytes", &Section::bytes);
  m.def("record_sections", &bind_record_sections, arg("quants"), arg("hidden"), arg("ffn"), arg("activation"), arg("gated"),
        arg("biased") = false, arg("whole") = false);
  m.def("pack", &bind_pack, arg("quant"), arg("layout"), arg("w"));
  m.def("piece_stage", &bind_piece_stage, arg("shapes"));
  m.def("repack", &bind_repack, arg("quant"), arg("layout"), arg("blocks"), arg("finite") = false);
  m.def("unpack", &bind_unpack, arg("quant"), arg("layout"), arg("data"), arg("rows"), arg("cols"));
}

}  // namespace smallthinker
