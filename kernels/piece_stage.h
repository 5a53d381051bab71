// What this module lends to the one that reads: it turns a piece of a record, as a file has it, into what its slot holds, from
// any thread and without Python. A capsule carries it from one to the other.
#pragma once

#include <cstdint>

namespace smallthinker {

struct PieceStage {
  static constexpr const char* kCapsule = "smallthinker.PieceStage";

  virtual ~PieceStage() = default;
  // Pieces are of so many shapes; of each, what it takes in the file. Nothing is written behind `slot_bytes`.
  virtual int64_t num_shapes() const = 0;
  virtual int64_t stored_bytes(int64_t shape) const = 0;
  virtual int64_t slot_bytes() const = 0;
  // nullptr, or what is wrong with the piece: a text that stays.
  virtual const char* run(int64_t shape, const uint8_t* stored, uint8_t* slot) const noexcept = 0;
};

}  // namespace smallthinker
