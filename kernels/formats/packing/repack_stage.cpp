#include "formats/packing/repack_stage.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "kernels.h"

namespace smallthinker {

int64_t RepackStage::stored_bytes(int64_t shape) const {
  const PieceShape& piece = shapes_[size_t(shape)];
  return (piece.rows - 1) * piece.stride + row_bytes(piece.quant, piece.cols);
}

int64_t RepackStage::slot_bytes() const {
  int64_t most = 0;
  for (const PieceShape& piece : shapes_) {
    most = std::max(most, piece.target + packed_bytes(piece.quant, piece.layout, piece.rows, piece.cols));
  }
  return most;
}

const char* RepackStage::run(int64_t shape, const uint8_t* stored, uint8_t* slot) const noexcept {
  const PieceShape& piece = shapes_[size_t(shape)];
  const int64_t bytes = row_bytes(piece.quant, piece.cols);
  std::unique_ptr<uint8_t[]> gathered;
  if (piece.stride != bytes) {
    gathered.reset(new (std::nothrow) uint8_t[size_t(piece.rows * bytes)]);
    if (gathered == nullptr) return "no memory for its rows";
    for (int64_t row = 0; row < piece.rows; ++row) {
      std::memcpy(gathered.get() + row * bytes, stored + row * piece.stride, size_t(bytes));
    }
    stored = gathered.get();
  }
  try {
    const bool finite = repack(piece.quant, piece.layout, stored, piece.rows, piece.cols, slot + piece.target);
    if (!finite) return "expected finite scales and weights, found NaN or infinity";
  } catch (const std::bad_alloc&) {
    return "no memory to repack it";
  }
  return nullptr;
}

}  // namespace smallthinker
