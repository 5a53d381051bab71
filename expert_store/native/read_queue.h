// Reads records in the background into slots, by threads that know nothing of Python. Owns the threads and the hand-over
// of what has ended; the order is Schedule's, the bytes are StoreFile's. The contract is in read_queue.py.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "../../kernels/forks.h"
#include "background_reads.h"
#include "checksums.h"
#include "pace.h"
#include "records.h"
#include "schedule.h"
#include "store_file.h"

namespace smallthinker {

// What becomes of a piece between the disk and its slot. Threads read it whole into memory of their own, and hand it to
// the stage when they have left the disk to others.
struct Stage {
  int threads;  // at most Limits::depth of them at the disk
  // Fills the slot, or the piece's part of it, from what lies in the file, or says why not. Called from several threads at
  // once.
  std::function<std::optional<std::string>(const Piece& piece, uint8_t* stored, uint8_t* slot)> run;
};

class ReadQueue final : public BackgroundReads {
 public:
  // `slots` is [num_slots, record_bytes] and outlives the queue. `pace`: no chunk comes back before that device would have
  // brought it. `checksums`: of what `records` is covered with. What can't be read, or isn't what they say, is read once
  // more past the page cache, in the thread that noticed.
  ReadQueue(std::vector<std::unique_ptr<StoreFile>> files, Records records, uint8_t* slots, int64_t num_slots,
            int64_t record_bytes, const Limits& limits, std::optional<Device> pace, std::optional<Stage> stage,
            std::optional<Checksums> checksums);
  ~ReadQueue() override;
  ReadQueue(const ReadQueue&) = delete;
  ReadQueue& operator=(const ReadQueue&) = delete;

  const Home& home() const { return home_; }
  Kind kind() const { return kind_; }
  bool is_own_thread() const;  // which can't wait for its own end, so it must not close the queue

  bool submit(int64_t record, int64_t slot, bool speculative) override;
  void promote(int64_t record) override;
  bool cancel(int64_t record) override;
  Ended poll() override;
  Ended wait(std::chrono::milliseconds limit) override;
  void drain();
  Counters counters();
  void close();

 private:
  void work(uint8_t* stored);
  std::optional<Fault> bring(const Piece& at, uint8_t* stored, uint8_t* slot, bool again) const;
  std::optional<Fault> finish(const Piece& at, uint8_t* stored, uint8_t* slot) const;
  std::optional<Fault> bring_again(const Piece& at, uint8_t* stored, uint8_t* slot, uint32_t* part) const;
  uint32_t part_of_sum(const Piece& at, const uint8_t* stored, const uint8_t* slot) const;
  std::optional<Fault> check_record(const Read& read, uint8_t* stored, std::unique_lock<std::mutex>& lock);
  void give_back(const Chunk& chunk, std::optional<Fault> fault, bool was_staged);
  void wake_if_there_is_work();

  const Home home_;
  const Kind kind_;
  std::vector<std::unique_ptr<StoreFile>> files_;
  const Records records_;
  uint8_t* const slots_;
  const int64_t num_slots_, record_bytes_;
  const std::optional<Stage> stage_;
  HugeBytes stored_;  // what each thread hands to the stage, one after another

  std::mutex mutex_;  // of everything below
  std::condition_variable work_, ended_, idle_, closed_;
  Schedule schedule_;
  std::optional<Pace> pace_;
  std::optional<Checksums> checksums_;
  bool closing_ = false;
  std::atomic<bool> has_ended_{false};  // also looked at without the lock: `poll` is called far more often than it tells
  std::vector<std::thread> threads_;
};

}  // namespace smallthinker
