// A process that was forked has the memory of the one before it and none of its threads. What owns threads can't be used
// there, nor destroyed: their end would be waited for in vain, and a lock that one of them held stays locked.
#pragma once

#include <atomic>
#include <exception>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace smallthinker {

struct Forked : std::exception {
  const char* what() const noexcept override { return "forked from the process whose threads these are"; }
};

// How many forks lie between this process and the one in which this was first asked.
inline int forks() {
#ifdef _WIN32
  return 0;
#else
  static std::atomic<int> count{0};
  static const int error = pthread_atfork(nullptr, nullptr, [] { count.fetch_add(1, std::memory_order_relaxed); });
  static_cast<void>(error);  // no memory: as if nobody ever forked
  return count.load(std::memory_order_relaxed);
#endif
}

// A member of what owns threads.
class Home {
 public:
  bool is_here() const { return forks() == forks_; }
  void check() const {
    if (!is_here()) throw Forked{};
  }

 private:
  const int forks_ = forks();
};

// A deleter: what a forked process can't destroy stays until it ends.
struct DeleteAtHome {
  template <class T>
  void operator()(T* owner) const {
    if (owner->home().is_here()) delete owner;
  }
};

}  // namespace smallthinker
