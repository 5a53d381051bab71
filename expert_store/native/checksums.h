// What the stored bytes of records must add up to, piece by piece as they arrive, in any order. Owns which sums have been
// found right. No locks, no files: who calls it holds a lock.
#pragma once

#include <cstdint>
#include <vector>

#include "crc32.h"

namespace smallthinker {

class Checksums {
 public:
  // always: else a sum that was found right is not looked at again.
  Checksums(std::vector<uint32_t> expected, bool always)
      : expected_(std::move(expected)), found_(expected_.size()), is_right_(expected_.size()), always_(always) {}

  int64_t count() const { return int64_t(expected_.size()); }
  bool wants(int64_t sum) const { return always_ || !is_right_[size_t(sum)]; }
  void begin(int64_t sum) { found_[size_t(sum)] = 0; }
  void add(int64_t sum, uint32_t part) { found_[size_t(sum)] ^= part; }
  bool check(int64_t sum) {
    const bool right = found_[size_t(sum)] == expected_[size_t(sum)];
    is_right_[size_t(sum)] = right;
    return right;
  }
  uint32_t expected(int64_t sum) const { return expected_[size_t(sum)]; }
  uint32_t found(int64_t sum) const { return found_[size_t(sum)]; }

 private:
  std::vector<uint32_t> expected_;
  std::vector<uint32_t> found_;
  std::vector<bool> is_right_;
  bool always_;
};

}  // namespace smallthinker
