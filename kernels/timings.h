// How often each kernel was called and how long it ran. Knows nothing of what it times.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <vector>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace smallthinker {

class Timings {
 public:
  struct Entry {
    const char* name;  // a literal
    int64_t calls;
    double sec;
  };

  void add(const char* name, double sec) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (Entry& entry : entries_) {  // a dozen names: faster than any map
      if (entry.name == name || std::strcmp(entry.name, name) == 0) {
        ++entry.calls;
        entry.sec += sec;
        return;
      }
    }
    entries_.push_back({name, 1, sec});
  }

  void lock() const { mutex_.lock(); }
  void unlock() const { mutex_.unlock(); }

  std::vector<Entry> entries() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return entries_;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<Entry> entries_;
};

// Of kernels that take no pool, over the whole process. A fork waits until nobody is writing here.
inline Timings& poolless_timings() {
  static Timings timings;
#ifndef _WIN32
  static const int error = pthread_atfork([] { timings.lock(); }, [] { timings.unlock(); }, [] { timings.unlock(); });
  static_cast<void>(error);
#endif
  return timings;
}

// Times its own life: stands behind the release of the GIL, so that waiting for the GIL is not counted. Under 0.1 us.
class Timed {
 public:
  Timed(Timings& timings, const char* name) : timings_(timings), name_(name), began_(Clock::now()) {}
  ~Timed() { timings_.add(name_, std::chrono::duration<double>(Clock::now() - began_).count()); }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  Timings& timings_;
  const char* name_;
  const Clock::time_point began_;
};

}  // namespace smallthinker
