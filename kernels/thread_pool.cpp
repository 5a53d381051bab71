#include "thread_pool.h"

#include <chrono>

#if SMALLTHINKER_X86
#include <immintrin.h>
#endif

namespace smallthinker {

namespace {

// A layer's kernels follow each other within tens of microseconds, and waking a parked thread costs about as much.
// Past that the caller is waiting for the disk or for the user, and a spinning worker would only take their CPU.
constexpr std::chrono::microseconds kSpin{50};

void pause() {
#if SMALLTHINKER_X86
  _mm_pause();
#elif SMALLTHINKER_NEON
  asm volatile("yield");
#else
  std::this_thread::yield();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads, const Isa& isa) : isa_(isa) {
  workers_.reserve(static_cast<size_t>(threads - 1));
  try {
    for (int worker = 1; worker < threads; ++worker) workers_.emplace_back([this, worker] { work(worker); });
  } catch (...) {  // the system refused a thread: the destructor won't run, and joinable threads would end the process
    stop_ = true;
    { std::lock_guard<std::mutex> lock(park_mutex_); }
    wake_.notify_all();
    for (std::thread& thread : workers_) thread.join();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  { std::lock_guard<std::mutex> lock(park_mutex_); }
  wake_.notify_all();
  for (std::thread& thread : workers_) thread.join();
}

void ThreadPool::release_scratch() {
  home_.check();
  std::lock_guard<std::mutex> alone(session_mutex_);
  scratch_.reset();
  scratch_bytes_ = 0;
}

uint8_t* ThreadPool::reserve(int64_t bytes) {
  if (bytes > scratch_bytes_) {
    scratch_.reset();
    scratch_bytes_ = 0;
    scratch_.reset(static_cast<uint8_t*>(::operator new[](static_cast<size_t>(bytes), std::align_val_t{64})));
    scratch_bytes_ = bytes;
  }
  return scratch_.get();
}

void ThreadPool::take_units(int worker) {
  for (int64_t unit; (unit = next_unit_.fetch_add(1, std::memory_order_relaxed)) < job_.units;) {
    job_.body(job_.context, worker, unit);
  }
}

// A worker enters (active_) before it looks whether a job is open, and the caller closes the job before it waits for
// active_ to fall to zero. So either the caller waits for the worker or the worker sees a closed job, and a worker
// that sleeps through a short job delays nobody: the caller has done its share.
void ThreadPool::run(Job job) {
  if (workers_.empty() || job.units <= 1) {
    for (int64_t unit = 0; unit < job.units; ++unit) job.body(job.context, 0, unit);
    return;
  }
  job_ = job;
  next_unit_.store(0, std::memory_order_relaxed);
  generation_.fetch_add(1);
  if (parked_.load() > 0) {
    { std::lock_guard<std::mutex> lock(park_mutex_); }
    wake_.notify_all();
  }
  take_units(0);
  generation_.fetch_add(1);
  for (int spins = 0; active_.load() > 0; ++spins) {
    // The worker may have lost its core to another process; then spinning here only keeps it from coming back.
    if (spins < 4096) pause();
    else std::this_thread::yield();
  }
}

uint64_t ThreadPool::wait_for_job(uint64_t seen) {
  const auto is_new = [&](uint64_t generation) { return (generation & 1) != 0 && generation != seen; };
  const auto park_at = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      const uint64_t generation = generation_.load();
      if (is_new(generation) || stop_.load()) return generation;
      pause();
    }
    std::this_thread::yield();  // a thread that reads may have been woken for this core, and would wait half a millisecond
  } while (std::chrono::steady_clock::now() < park_at);

  std::unique_lock<std::mutex> lock(park_mutex_);
  parked_.fetch_add(1);
  wake_.wait(lock, [&] { return is_new(generation_.load()) || stop_.load(); });
  parked_.fetch_sub(1);
  return generation_.load();
}

void ThreadPool::work(int worker) {
  uint64_t seen = 0;
  for (;;) {
    wait_for_job(seen);
    if (stop_.load()) return;
    active_.fetch_add(1);
    const uint64_t generation = generation_.load();
    if ((generation & 1) != 0) take_units(worker);
    seen = generation;
    active_.fetch_sub(1);
  }
}

}  // namespace smallthinker
