// Pieces of experts, as GGUF files have them, into records: what the read queue calls from its threads.
#pragma once

#include <cstdint>
#include <vector>

#include "formats/formats.h"
#include "piece_stage.h"

namespace smallthinker {

// Some rows of a matrix, or of every row some columns, and where they go. stride: from one row's first byte to the next one's
// in the file. target: of the first row, or of the first group of rows, in the slot.
struct PieceShape {
  Quant quant;
  Layout layout;
  int64_t rows, cols, stride, target;
};

class RepackStage final : public PieceStage {
 public:
  // Shapes are positive, and rows at least as far apart as they are long.
  explicit RepackStage(std::vector<PieceShape> shapes) : shapes_(std::move(shapes)) {}

  int64_t num_shapes() const override { return int64_t(shapes_.size()); }
  int64_t stored_bytes(int64_t shape) const override;
  int64_t slot_bytes() const override;
  const char* run(int64_t shape, const uint8_t* stored, uint8_t* slot) const noexcept override;

 private:
  const std::vector<PieceShape> shapes_;
};

}  // namespace smallthinker
