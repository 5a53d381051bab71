// When a slower device than the real one would have answered. A bucket of bytes and requests that lets through what the
// device could have done by then and saves nothing up while idle. No clock and no lock: who calls it says what time it
// is, in seconds. How many reads are under way at once is Limits::depth.
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
    const double transferred = std::max(end_, start + device_.latency_sec) + double(bytes) / device_.bytes_per_sec;
    end_ = std::max(transferred, std::max(end_, start) + 1 / device_.requests_per_sec);
    return end_;
  }

 private:
  Device device_;
  double end_ = 0;  // of the last read
};

}  // namespace smallthinker
