// When a slower device than the real one would have answered. Owns two buckets, of bytes and of requests, that let
// through what the device could have done by then and save nothing up while idle. No clock and no lock: who calls it
// says what time it is, in seconds. How many reads are under way at once is Limits::depth.
#pragma once

#include <algorithm>
#include <cstdint>

namespace smallthinker {

struct Device {
  double bytes_per_sec, requests_per_sec, latency_sec;
};

class Pace {
 public:
  explicit Pace(const Device& device) : device_(device) {}

  // The time at which a read of `bytes` ends that the device began at `start`. First nothing but the latency, which
  // reads under way share; then the bytes, one read after the other, in the order of these calls.
  double due(double start, int64_t bytes) {
    bytes_end_ = std::max(bytes_end_, start + device_.latency_sec) + static_cast<double>(bytes) / device_.bytes_per_sec;
    requests_end_ = std::max(requests_end_, start) + 1 / device_.requests_per_sec;
    return std::max(bytes_end_, requests_end_);
  }

 private:
  Device device_;
  double bytes_end_ = 0, requests_end_ = 0;
};

}  // namespace smallthinker
