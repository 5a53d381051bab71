#include "read_queue.h"

#include <algorithm>
#include <cerrno>
#include <stdexcept>
#include <string>
#include <utility>

#include "system.h"

namespace smallthinker {
namespace {

void check_index(const char* what, int64_t index, int64_t count) {
  if (index >= 0 && index < count) return;
  throw std::out_of_range(std::string(what) + " " + std::to_string(index) + ": expected 0 to " + std::to_string(count - 1));
}

// Seconds on the clock that chunks are paced by, and back.
using Clock = std::chrono::steady_clock;
double seconds(Clock::time_point at) { return std::chrono::duration<double>(at.time_since_epoch()).count(); }
Clock::time_point point(double at) {
  return Clock::time_point(std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(at)));
}

}  // namespace

ReadQueue::ReadQueue(std::unique_ptr<StoreFile> file, int64_t first_offset, int64_t num_records, uint8_t* slots,
                     int64_t num_slots, const Limits& limits, std::optional<Device> pace)
    : kind_(file->kind()),
      file_(std::move(file)),
      first_offset_(first_offset),
      num_records_(num_records),
      num_slots_(num_slots),
      slots_(slots),
      limits_(limits),
      schedule_(limits) {
  if (pace && kind_ == Kind::uring) throw std::invalid_argument("kind: a ring can't be paced");
  if (pace) pace_.emplace(*pace);
  if (kind_ == Kind::uring) ring_ = std::make_unique<Ring>(limits.depth);
  const os::NoSignals quiet;
  try {
    if (ring_) {
      threads_.emplace_back([this] { drive_ring(); });
    } else {
      for (int i = 0; i < limits.depth; ++i) threads_.emplace_back([this] { work(); });
    }
  } catch (...) {  // no more threads to be had
    close();
    throw;
  }
}

ReadQueue::~ReadQueue() { close(); }

void ReadQueue::submit(int64_t record, int64_t slot, bool speculative) {
  check_index("record", record, num_records_);
  check_index("slot", slot, num_slots_);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (closing_) throw Closed{};
  schedule_.submit(record, slot, speculative);
  wake_if_there_is_work();
}

void ReadQueue::promote(int64_t record) {
  const std::lock_guard<std::mutex> lock(mutex_);
  schedule_.promote(record);
  wake_if_there_is_work();  // a certain chunk may be under way where a speculative one may not
}

bool ReadQueue::cancel(int64_t record) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool gone = schedule_.cancel(record);
  has_ended_.store(schedule_.has_ended(), std::memory_order_release);
  return gone;
}

ReadQueue::Ended ReadQueue::poll() {
  if (!has_ended_.load(std::memory_order_acquire)) return {};
  const std::lock_guard<std::mutex> lock(mutex_);
  has_ended_.store(false, std::memory_order_relaxed);
  return schedule_.take_ended();
}

ReadQueue::Ended ReadQueue::wait(std::chrono::milliseconds limit) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (schedule_.empty()) throw std::invalid_argument("wait: no read is under way");
  ended_.wait_for(lock, limit, [this] { return schedule_.has_ended() || schedule_.empty(); });
  has_ended_.store(false, std::memory_order_relaxed);
  return schedule_.take_ended();
}

void ReadQueue::drain() {
  std::unique_lock<std::mutex> lock(mutex_);
  schedule_.withdraw_all();
  has_ended_.store(false, std::memory_order_relaxed);
  idle_.wait(lock, [this] { return schedule_.in_flight() == 0; });
  ended_.notify_all();  // another thread may be waiting for what never comes now
}

Counters ReadQueue::counters() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return schedule_.counters();
}

void ReadQueue::close() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
  }
  closed_.notify_all();
  drain();
  work_.notify_all();
  if (ring_) ring_->wake();
  std::vector<std::thread> threads;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    threads.swap(threads_);  // so that only one of two closers joins
  }
  for (std::thread& thread : threads) thread.join();
  if (threads.empty()) return;
  ring_.reset();
  file_.reset();
}

// A thread that takes a chunk wakes the next one if there is another chunk to take, so one waking is enough.
void ReadQueue::wake_if_there_is_work() {
  if (!schedule_.can_take()) return;
  if (ring_) {
    ring_->wake();
  } else {
    work_.notify_one();
  }
}

void ReadQueue::give_back(const Chunk& chunk, std::optional<Fault> fault) {
  schedule_.give_back(chunk, std::move(fault));
  if (schedule_.in_flight() == 0) idle_.notify_all();
  if (!schedule_.has_ended()) return;
  has_ended_.store(true, std::memory_order_release);
  ended_.notify_one();
}

// The life of a thread that reads one chunk after the other.
void ReadQueue::work() {
  std::unique_lock<std::mutex> lock(mutex_);
  double ended = 0;  // when the paced device was done with the thread's last chunk
  for (;;) {
    const bool had_to_wait = !closing_ && !schedule_.can_take();
    work_.wait(lock, [this] { return closing_ || schedule_.can_take(); });
    const std::optional<Chunk> chunk = schedule_.take();
    if (!chunk) return;  // closing, and nothing is left to take
    wake_if_there_is_work();
    const int64_t at = offset(*chunk);
    uint8_t* const into = target(*chunk);
    // A device that has more to do goes on at once, however late this thread woke up for the last chunk's end.
    const double start = had_to_wait ? seconds(Clock::now()) : std::max(ended, seconds(chunk->read->submitted));
    const double due = pace_ ? pace_->due(start, chunk->bytes) : 0;
    lock.unlock();
    std::optional<Fault> fault = file_->read(at, chunk->bytes, into);
    lock.lock();
    if (pace_) {
      ended = std::max(due, seconds(Clock::now()));
      closed_.wait_until(lock, point(due), [this] { return closing_; });
    }
    give_back(*chunk, std::move(fault));
  }
}

// The life of the one thread behind a ring: it hands chunks to the kernel and takes them back.
void ReadQueue::drive_ring() {
  struct Going {
    Chunk chunk;
    int64_t offset, done;
    uint8_t* into;
    bool is_free = true;
  };
  std::vector<Going> going(limits_.depth);
  const auto ask = [&](size_t i) {
    const Going& read = going[i];
    const int64_t at = read.offset + read.done, bytes = read.chunk.bytes - read.done;
    ring_->read(file_->direct(), read.into + read.done, bytes, at, i);
  };
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      if (closing_ && schedule_.in_flight() == 0) return;
      for (size_t i = 0; i < going.size(); ++i) {
        if (!going[i].is_free) continue;
        const std::optional<Chunk> chunk = schedule_.take();
        if (!chunk) break;
        going[i] = {*chunk, offset(*chunk), 0, target(*chunk), false};
        lock.unlock();
        ask(i);
        lock.lock();
      }
    }
    ring_->submit_and_wait();
    uint64_t tag;
    int result;
    while (ring_->next(tag, result)) {
      Going& read = going[tag];
      const int64_t left = read.chunk.bytes - read.done;
      const int64_t blocks = result - result % kAlign;  // a short read may end anywhere, see StoreFile
      std::optional<Fault> fault;
      if (result == -EINTR || result == -EAGAIN || (blocks > 0 && blocks < left)) {
        read.done += blocks > 0 ? blocks : 0;
        ask(tag);
        continue;
      }
      if (result < 0) {
        fault = Fault{read.offset + read.done, "cannot read: " + error_text(-result)};
      } else if (blocks == 0) {
        fault = file_->end_of_file(read.offset + read.done, left);
      }
      read.is_free = true;
      const std::lock_guard<std::mutex> lock(mutex_);
      give_back(read.chunk, std::move(fault));
    }
  }
}

}  // namespace smallthinker
