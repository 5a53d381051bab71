#include "read_queue.h"

#include <algorithm>
#include <cstdio>
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
                     int64_t record_bytes, const Limits& limits, std::optional<Device> pace, std::optional<Stage> stage,
                     std::optional<Checksums> checksums)
    : kind_(files.front()->kind()),
      files_(std::move(files)),
      records_(std::move(records)),
      slots_(slots),
      num_slots_(num_slots),
      record_bytes_(record_bytes),
      stage_(std::move(stage)),
      schedule_([this](int64_t record, int64_t number) { return records_.chunk(record, number).bytes; }, limits) {
  if (pace) pace_.emplace(*pace);
  checksums_ = std::move(checksums);
  // One more than are at the disk, so that it isn't idle while a chunk is added up.
  const int threads = stage_ ? stage_->threads : limits.depth + (checksums_ ? 1 : 0);
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

bool ReadQueue::submit(int64_t record, int64_t slot, bool speculative) {
  check_index("record", record, records_.count());
  check_index("slot", slot, num_slots_);
  std::unique_lock<std::mutex> lock(mutex_);
  if (closing_) return false;
  schedule_.submit(record, slot, speculative);
  if (checksums_) {
    const auto [begin, end] = records_.sums(record);
    for (int64_t sum = begin; sum < end; ++sum) checksums_->begin(sum);
  }
  const bool is_work = schedule_.can_take();
  lock.unlock();  // which the thread that wakes up takes first
  if (is_work) work_.notify_one();
  // The caller goes on with arithmetic on every core. The thread that was woken for its core would wait for that, half a
  // millisecond of a read of one.
  std::this_thread::yield();
  return true;
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

// A chunk from the disk, to where it is added up: a stage's memory, else its slot.
std::optional<Fault> ReadQueue::bring(const Piece& at, uint8_t* stored, uint8_t* slot, bool again) const {
  const int64_t before = at.offset % kAlign;  // reads begin on a block
  const StoreFile& file = *files_[size_t(at.file)];
  uint8_t* const into = stage_ ? stored : slot + at.what;
  auto fault = again ? file.read_again(at.offset - before, before + at.bytes, into)
                     : file.read(at.offset - before, before + at.bytes, into);
  if (fault) fault->file = at.file;
  return fault;
}

std::optional<Fault> ReadQueue::finish(const Piece& at, uint8_t* stored, uint8_t* slot) const {
  if (!stage_) return std::nullopt;
  if (auto what = stage_->run(at, stored + at.offset % kAlign, slot)) return Fault{at.offset, *std::move(what), at.file};
  return std::nullopt;
}

std::optional<Fault> ReadQueue::bring_again(const Piece& at, uint8_t* stored, uint8_t* slot, uint32_t* part) const {
  if (auto fault = bring(at, stored, slot, true)) return fault;
  *part = part_of_sum(at, stored, slot);
  return finish(at, stored, slot);
}

uint32_t ReadQueue::part_of_sum(const Piece& at, const uint8_t* stored, const uint8_t* slot) const {
  return crc32_before(crc32(stage_ ? stored + at.offset % kAlign : slot + at.what, at.bytes), at.behind);
}

// Once all of a record has arrived: whether it is what its checksums say, perhaps when it is read again.
std::optional<Fault> ReadQueue::check_record(const Read& read, uint8_t* stored, std::unique_lock<std::mutex>& lock) {
  uint8_t* const slot = slots_ + read.slot * record_bytes_;
  const auto [begin, end] = records_.sums(read.record);
  for (int64_t sum = begin; sum < end; ++sum) {
    if (!checksums_->wants(sum) || checksums_->check(sum)) continue;
    schedule_.count_repeat();
    checksums_->begin(sum);
    std::optional<Piece> first;
    for (int64_t number = 0;; ++number) {
      const Piece at = records_.chunk(read.record, number);
      if (at.bytes == 0) break;
      if (at.sum != sum) continue;
      if (!first) first = at;
      uint32_t part = 0;
      lock.unlock();
      auto fault = bring_again(at, stored, slot, &part);
      lock.lock();
      if (fault) return fault;
      checksums_->add(sum, part);
    }
    if (checksums_->check(sum)) continue;
    char what[120];
    std::snprintf(what, sizeof what, "checksum of what begins here: expected %08x, found %08x, also when read again",
                  checksums_->expected(sum), checksums_->found(sum));
    return Fault{first->offset, what, first->file};
  }
  return std::nullopt;
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
    const Read& read = *chunk->read;
    const Piece at = records_.chunk(read.record, chunk->number);
    const bool is_summed = checksums_ && checksums_->wants(at.sum);
    uint8_t* const slot = slots_ + read.slot * record_bytes_;
    // A device that has more to do goes on at once, however late this thread woke up for the last chunk's end.
    const double start = had_to_wait ? seconds(Clock::now()) : std::max(ended, seconds(read.submitted));
    const double due = pace_ ? pace_->due(start, at.bytes) : 0;
    lock.unlock();
    std::optional<Fault> fault = bring(at, stored, slot, false);
    lock.lock();
    if (fault && !closing_) {
      schedule_.count_repeat();
      lock.unlock();
      fault = bring(at, stored, slot, true);
      lock.lock();
    }
    if (pace_) {
      ended = std::max(due, seconds(Clock::now()));
      closed_.wait_until(lock, point(due), [this] { return closing_; });
    }
    const bool is_staged = (stage_ || is_summed) && !fault && !closing_;
    if (is_staged) {
      schedule_.begin_stage();
      wake_if_there_is_work();
      lock.unlock();
      uint32_t part = is_summed ? part_of_sum(at, stored, slot) : 0;
      fault = finish(at, stored, slot);
      const bool was_refused = fault.has_value();
      if (was_refused) fault = bring_again(at, stored, slot, &part);
      lock.lock();
      ended = seconds(Clock::now());  // meanwhile the device worked for other threads
      if (was_refused) schedule_.count_repeat();
      if (is_summed && !fault) {
        checksums_->add(at.sum, part);
        const bool is_last = read.in_flight == 1 && read.next_bytes == 0 && !read.fault;
        if (is_last) fault = check_record(read, stored, lock);
      }
    }
    give_back(*chunk, std::move(fault), is_staged);
  }
}

}  // namespace smallthinker
