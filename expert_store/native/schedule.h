// Which chunk of which record is read next. Certain reads first, in order; speculative ones when no certain one waits.
// Owns the reads under way and their progress. How a record is cut into chunks is for others to know. No threads, no locks, no files: who calls it holds a lock.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "store_file.h"

namespace smallthinker {

// Bytes of a record's chunk `number`, counted from 0; none behind the last.
using Cuts = std::function<int64_t(int64_t record, int64_t number)>;

struct Limits {
  int depth;              // chunks under way at once
  int speculative_depth;  // as long as a speculative one would be the next
};

// One record on its way into a slot. It is under way until its end has been told.
struct Read {
  int64_t record, slot;
  bool speculative;
  bool withdrawn = false;
  bool over = false;
  int64_t chunks = 0;     // that have been handed out
  int64_t next_bytes;     // of the next one; none where all have been
  int64_t arrived = 0;    // bytes
  int in_flight = 0;  // chunks, at the disk or in the stage
  std::chrono::steady_clock::time_point submitted;
  std::optional<Fault> fault;
  bool is_whole = false;  // known once it is over
};

struct Chunk {
  Read* read;
  int64_t number, bytes;  // of the record's chunks
};

struct Counters {
  int64_t certain_reads = 0, certain_bytes = 0;
  int64_t speculative_reads = 0, speculative_bytes = 0;
  int64_t withdrawn_bytes = 0;
  int64_t repeated_reads = 0;  // of a chunk, or of what has one checksum, because the first one failed or was wrong
  double busy_sec = 0;  // with at least one chunk in flight
};

class Schedule {
 public:
  Schedule(Cuts cuts, const Limits& limits) : cuts_(std::move(cuts)), limits_(limits) {}

  void submit(int64_t record, int64_t slot, bool speculative);  // std::invalid_argument: record or slot is under way
  void promote(int64_t record);
  bool cancel(int64_t record);  // true: gone without a word
  void withdraw_all();          // and whatever had ended is forgotten; the chunks in flight are still to come back

  bool can_take() const { return next_queue() != nullptr; }
  std::optional<Chunk> take();
  void begin_stage();  // a chunk that was taken has left the disk, and is given back once it has been through the stage
  void count_repeat() { ++counters_.repeated_reads; }
  void give_back(const Chunk& chunk, std::optional<Fault> fault, bool was_staged);

  bool empty() const { return reads_.empty(); }
  bool is_idle() const { return in_flight_ + in_stage_ == 0; }
  bool has_ended() const { return !ended_.empty(); }
  std::vector<std::unique_ptr<Read>> take_ended();  // in the order in which they ended; from here on they are over
  Counters counters() const;

 private:
  using Queue = std::deque<Read*>;

  const Queue* next_queue() const;
  void leave_disk();
  void remove_waiting(Read* read);
  void end_if_done(Read* read);
  std::unique_ptr<Read> extract(Read* read);
  double busy_since() const;

  Cuts cuts_;
  Limits limits_;
  std::unordered_map<int64_t, std::unique_ptr<Read>> reads_;  // by record
  std::unordered_map<int64_t, Read*> by_slot_;
  Queue certain_, speculative_;  // with chunks that nobody has taken
  std::deque<Read*> ended_;
  int in_flight_ = 0;  // chunks at the disk
  int in_stage_ = 0;
  bool forgetting_ = false;
  std::chrono::steady_clock::time_point busy_from_;
  Counters counters_;
};

}  // namespace smallthinker
