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

ReadQueue::ReadQueue(std::vector<std::unique_ptr<StoreFile>> files, Records records, uint8_t* slots, int64_t num_slots,
                     int64_t record_bytes, const Limits& limits, std::optional<Device> pace, std::optional<Stage> stage)
    : kind_(files.front()->kind()),
      files_(std::move(files)),
      records_(std::move(records)),
      slots_(slots),
      num_slots_(num_slots),
      record_bytes_(record_bytes),
      stage_(std::move(stage)),
      schedule_([this](int64_t record, int64_t number) { return records_.chunk(record, number).bytes; }, limits) {
  if (pace) pace_.emplace(*pace);
  const int threads = stage_ ? stage_->threads : limits.depth;
  const int64_t room = whole_blocks(records_.max_piece_bytes()) + kAlign;  // wherever a piece begins in a block
  if (stage_) {
    const int64_t bytes = (threads * room + kHugePage - 1) / kHugePage * kHugePage;
    stored_.reset(new (std::align_val_t{kHugePage}) uint8_t[static_cast<size_t>(bytes)]);
    os::want_huge_pages(stored_.get(), bytes);
  }
  const os::NoSignals quiet;
  try {
    for (int i = 0; i < threads; ++i) {
      threads_.emplace_back([this, stored = stage_ ? stored_.get() + i * room : nullptr] { work(stored); });
    }
  } catch (...) {  // no more threads to be had
    close();
    throw;
  }
}

ReadQueue::~ReadQueue() { close(); }

bool ReadQueue::is_own_thread() const { return working_for == this; }

void ReadQueue::submit(int64_t record, int64_t slot, bool speculative) {
  check_index("record", record, records_.count());
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
  files_.clear();
  stored_.reset();
}

// A thread that takes a chunk wakes the next one if there is another chunk to take, so one waking is enough.
void ReadQueue::wake_if_there_is_work() {
  if (schedule_.can_take()) work_.notify_one();
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
    const Piece at = records_.chunk(chunk->read->record, chunk->number);
    const int64_t before = at.offset % kAlign;  // reads begin on a block
    uint8_t* const slot = slots_ + chunk->read->slot * record_bytes_;
    // A device that has more to do goes on at once, however late this thread woke up for the last chunk's end.
    const double start = had_to_wait ? seconds(Clock::now()) : std::max(ended, seconds(chunk->read->submitted));
    const double due = pace_ ? pace_->due(start, at.bytes) : 0;
    lock.unlock();
    std::optional<Fault> fault =
        files_[size_t(at.file)]->read(at.offset - before, before + at.bytes, stage_ ? stored : slot + at.what);
    if (fault) fault->file = at.file;
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
      if (auto what = stage_->run(at, stored + before, slot)) fault = Fault{at.offset, *std::move(what), at.file};
      lock.lock();
      ended = seconds(Clock::now());  // meanwhile the device worked for other threads
    }
    give_back(*chunk, std::move(fault), is_staged);
  }
}

}  // namespace smallthinker
