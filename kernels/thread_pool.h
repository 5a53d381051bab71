// Threads that stay, and the scratch memory of the kernels that run on them. Knows nothing of what it runs.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

#include "forks.h"
#include "isa/isa.h"
#include "timings.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace smallthinker {

class ThreadPool {
 public:
  // `threads` counts the calling thread, so 1 starts none.
  ThreadPool(int threads, const Isa& isa);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  const Isa& isa() const { return isa_; }
  int64_t scratch_bytes() const { return scratch_bytes_.load(std::memory_order_relaxed); }
  void release_scratch();
  const Home& home() const { return home_; }
  // Of the kernels that ran on this pool. Throws Forked, as does a session.
  Timings& timings() {
    home_.check();
    return timings_;
  }

  // One kernel call's exclusive use of the pool. A second calling thread waits here.
  class Session {
   public:
    explicit Session(ThreadPool& pool) : pool_(checked(pool)), lock_(pool.session_mutex_) {}

    int threads() const { return pool_.threads(); }
    const Isa& isa() const { return pool_.isa_; }

    // Uninitialised memory, aligned to a cache line, valid until the session ends. Pieces live in one allocation that
    // is kept for the next call, so they are asked for together, before any is used.
    template <class... Pieces>
    void allocate(Pieces&... pieces) {
      int64_t bytes = 0;
      ((bytes += stride(pieces)), ...);
      uint8_t* at = pool_.reserve(bytes);
      ((pieces.place(at), forbid_rest(at, pieces), at += stride(pieces)), ...);
    }

    // Runs body(worker, unit) for every unit in [0, units), each once, on any thread; worker < threads(). Returns when
    // all are done. Which thread runs a unit depends on timing, so results must not depend on it. `body` must not throw.
    template <class Body>
    void parallel_for(int64_t units, Body&& body) {
      using Plain = std::remove_reference_t<Body>;
      pool_.run({[](const void* context, int worker, int64_t unit) { (*static_cast<const Plain*>(context))(worker, unit); },
                 &body, units});
    }

   private:
#ifdef __SANITIZE_ADDRESS__  // a step past a piece is an error, not a look into the next one
    static constexpr int64_t kGap = 64;
    template <class Piece>
    static void forbid_rest(uint8_t* at, const Piece& piece) {
      ASAN_UNPOISON_MEMORY_REGION(at, piece.bytes());
      ASAN_POISON_MEMORY_REGION(at + piece.bytes(), stride(piece) - piece.bytes());
    }
#else
    static constexpr int64_t kGap = 0;
    template <class Piece>
    static void forbid_rest(uint8_t*, const Piece&) {}
#endif
    static ThreadPool& checked(ThreadPool& pool) {
      pool.home_.check();
      return pool;
    }

    template <class Piece>
    static int64_t stride(const Piece& piece) { return round_up(piece.bytes(), 64) + kGap; }

    ThreadPool& pool_;
    std::unique_lock<std::mutex> lock_;
  };

 private:
  struct Job {
    void (*body)(const void* context, int worker, int64_t unit) = nullptr;
    const void* context = nullptr;
    int64_t units = 0;
  };
  struct FreeAligned {
    void operator()(uint8_t* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };

  void run(Job job);
  void work(int worker);
  void take_units(int worker);
  uint64_t wait_for_job(uint64_t seen);
  uint8_t* reserve(int64_t bytes);

  const Home home_;
  const Isa& isa_;
  std::mutex session_mutex_;
  std::unique_ptr<uint8_t[], FreeAligned> scratch_;
  std::atomic<int64_t> scratch_bytes_{0};
  Timings timings_;

  Job job_;
  std::atomic<int64_t> next_unit_{0};
  std::atomic<uint64_t> generation_{0};  // odd while a job is open
  std::atomic<int> active_{0};           // workers that may be looking at job_
  std::atomic<int> parked_{0};
  std::atomic<bool> stop_{false};
  std::mutex park_mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

// A typed piece of a session's scratch memory.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : count_(count) {}
  int64_t bytes() const { return count_ * static_cast<int64_t>(sizeof(T)); }
  void place(uint8_t* at) { data_ = reinterpret_cast<T*>(at); }
  T* data() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  int64_t count_;
  T* data_ = nullptr;
};

}  // namespace smallthinker
