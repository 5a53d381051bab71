// What this module lends to the one that keeps the experts: background reading without Python, of the contract in
// read_queue.py. A capsule carries it from one to the other.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "schedule.h"

namespace smallthinker {

struct BackgroundReads {
  static constexpr const char* kCapsule = "smallthinker.BackgroundReads";
  using Ended = std::vector<std::unique_ptr<Read>>;

  virtual ~BackgroundReads() = default;
  // False: the queue is closed. std::out_of_range, std::invalid_argument.
  virtual bool submit(int64_t record, int64_t slot, bool speculative) = 0;
  virtual void promote(int64_t record) = 0;
  virtual bool cancel(int64_t record) = 0;
  virtual Ended poll() = 0;
  // Empty: nothing within the limit. std::invalid_argument: nothing to come.
  virtual Ended wait(std::chrono::milliseconds limit) = 0;
};

}  // namespace smallthinker
