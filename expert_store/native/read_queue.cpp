#include "read_queue.h"

#include <algorithm>
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

thread_local const ReadQueue* working_for = nullptr;

}  // namespace

ReadQueue::ReadQueue(std::unique_ptr<StoreFile> file, int64_t first_offset, int64_t num_records, uint8_t* slots,
                     int64_t num_slots, const Limits& limits, std::optional<Device> pace, std::optional<Stage> stage)
    : kind_(file->kind()),
      file_(std::move(file)),
      first_offset_(first_offset),
      num_records_(num_records),
      num_slots_(num_slots),
      slots_(slots),
      limits_(limits),
      stage_(std::move(stage)),
      schedule_(limits) {
  if (pace) pace_.emplace(*pace);
  const int threads = stage_ ? stage_->threads : limits.depth;
  for (int i = 0; stage_ && i < threads; ++i) {
    int64_t most = 0;
    for (int64_t record = 0; record < num_records; ++record) {
      most = std::max(most, stage_->offsets[record + 1] - stage_->offsets[record]);
    }
    stored_.push_back(aligned_bytes(most));
  }
  const os::NoSignals quiet;
  try {
    for (int i = 0; i < threads; ++i) {
      threads_.emplace_back([this, stored = stage_ ? stored_[i].get() : nullptr] { work(stored); });
    }
  } catch (...) {  // no more threads to be had
    close();
    throw;
  }
}

ReadQueue::~ReadQueue() { close(); }

bool ReadQueue::is_own_thread() const { return working_for == this; }

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
  idle_.wait(lock, [this] { return schedule_.is_idle(); });
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
  std::vector<std::thread> threads;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    threads.swap(threads_);  // so that only one of two closers joins
  }
  for (std::thread& thread : threads) thread.join();
  if (threads.empty()) return;
  file_.reset();
  stored_.clear();
}

// A thread that takes a chunk wakes the next one if there is another chunk to take, so one waking is enough.
void ReadQueue::wake_if_there_is_work() {
  if (schedule_.can_take()) work_.notify_one();
}

ReadQueue::Place ReadQueue::place(const Chunk& chunk) const {
  const int64_t record = chunk.read->record;
  if (!stage_) return {first_offset_ + record * limits_.record_bytes + chunk.begin, chunk.bytes};
  return {stage_->offsets[record], stage_->offsets[record + 1] - stage_->offsets[record]};
}

void ReadQueue::give_back(const Chunk& chunk, std::optional<Fault> fault, bool was_staged) {
  schedule_.give_back(chunk, std::move(fault), was_staged);
  if (schedule_.is_idle()) idle_.notify_all();
  if (!schedule_.has_ended()) return;
  has_ended_.store(true, std::memory_order_release);
  ended_.notify_one();
}

// The life of a thread that reads one chunk after the other.
void ReadQueue::work(uint8_t* stored) {
  working_for = this;
  std::unique_lock<std::mutex> lock(mutex_);
  double ended = 0;  // when the paced device was done with the thread's last chunk
  for (;;) {
    const bool had_to_wait = !closing_ && !schedule_.can_take();
    work_.wait(lock, [this] { return closing_ || schedule_.can_take(); });
    const std::optional<Chunk> chunk = schedule_.take();
    if (!chunk) return;  // closing, and nothing is left to take
    wake_if_there_is_work();
    const Place at = place(*chunk);
    uint8_t* const slot = target(*chunk);
    // A device that has more to do goes on at once, however late this thread woke up for the last chunk's end.
    const double start = had_to_wait ? seconds(Clock::now()) : std::max(ended, seconds(chunk->read->submitted));
    const double due = pace_ ? pace_->due(start, at.bytes) : 0;
    lock.unlock();
    std::optional<Fault> fault = file_->read(at.offset, at.bytes, stage_ ? stored : slot);
    lock.lock();
    if (pace_) {
      ended = std::max(due, seconds(Clock::now()));
      closed_.wait_until(lock, point(due), [this] { return closing_; });
    }
    const bool is_staged = stage_ && !fault && !closing_;
    if (is_staged) {
      schedule_.begin_stage();
      wake_if_there_is_work();
      lock.unlock();
      if (auto what = stage_->run(stored, at.bytes, slot)) fault = Fault{at.offset, *std::move(what)};
      lock.lock();
      ended = seconds(Clock::now());  // meanwhile the device worked for other threads
    }
    give_back(*chunk, std::move(fault), is_staged);
  }
}

}  // namespace smallthinker
