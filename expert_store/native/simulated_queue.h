// The queue over a disk that is only computed: the same schedule and pace, on a clock that the caller moves on. No threads,
// no files; times are seconds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <queue>
#include <tuple>
#include <utility>
#include <vector>

#include "pace.h"
#include "schedule.h"

namespace smallthinker {

class SimulatedQueue {
 public:
  using Ended = std::vector<std::unique_ptr<Read>>;

  // finish_sec: of processor time that one record takes between the disk and its slot, one after the other.
  SimulatedQueue(Cuts cuts, const Limits& limits, const Device& device, double finish_sec)
      : schedule_(std::move(cuts), limits), pace_(device), finish_sec_(finish_sec) {}

  void submit(double now, int64_t record, int64_t slot, bool speculative) {
    advance(now);
    schedule_.submit(record, slot, speculative);
    fill();
  }

  void promote(double now, int64_t record) {
    advance(now);
    schedule_.promote(record);
    fill();
  }

  bool cancel(double now, int64_t record) {
    advance(now);
    const bool is_gone = schedule_.cancel(record);
    hear(now);
    return is_gone;
  }

  Ended poll(double now) {
    advance(now);
    Ended due;
    std::vector<Known> later;
    for (Known& read : ended_) {
      if (read.at <= now) {
        due.push_back(std::move(read.read));
      } else {
        later.push_back(std::move(read));
      }
    }
    ended_ = std::move(later);
    return due;
  }

  // When `poll` will have something to tell; nothing where nothing is being read.
  std::optional<double> next_end(double now) {
    advance(now);
    while (ended_.empty() && !chunks_.empty()) advance(chunks_.top().end);
    if (ended_.empty()) return std::nullopt;
    // A record may be finished while a later one, which is stopped, is not held up by it.
    const auto earlier = [](const Known& a, const Known& b) { return a.at < b.at; };
    return std::max(now, std::min_element(ended_.begin(), ended_.end(), earlier)->at);
  }

  // Withdraws everything, and says when the disk is idle.
  double drain(double now) {
    schedule_.withdraw_all();
    ended_.clear();
    while (!chunks_.empty()) advance(chunks_.top().end);
    return std::max(now, now_);
  }

  int64_t withdrawn_bytes() const { return schedule_.counters().withdrawn_bytes; }
  double busy_sec() const { return busy_sec_; }  // with at least one chunk under way

 private:
  struct InFlight {
    double end;
    int64_t order;
    Chunk chunk;
    bool operator>(const InFlight& other) const { return std::tie(end, order) > std::tie(other.end, other.order); }
  };

  struct Known {
    double at;  // when it will be told
    std::unique_ptr<Read> read;
  };

  // Lets the disk work up to that moment.
  void advance(double until) {
    while (!chunks_.empty() && chunks_.top().end <= until) {
      const InFlight done = chunks_.top();
      chunks_.pop();
      busy_sec_ += done.end - now_;
      now_ = done.end;
      schedule_.give_back(done.chunk, std::nullopt, false);
      hear(now_);
      fill();
    }
    if (!chunks_.empty()) busy_sec_ += std::max(until - now_, 0.0);
    now_ = std::max(now_, until);
  }

  // Asks the disk for chunks, as many as may be in flight.
  void fill() {
    while (const std::optional<Chunk> chunk = schedule_.take()) {
      chunks_.push({pace_.due(now_, chunk->bytes), ++order_, *chunk});
    }
  }

  void hear(double now) {
    for (auto& read : schedule_.take_ended()) {
      if (read->is_whole) finished_ = std::max(now, finished_) + finish_sec_;
      const double at = read->is_whole ? finished_ : now;
      ended_.push_back({at, std::move(read)});
    }
  }

  Schedule schedule_;
  Pace pace_;
  double finish_sec_, now_ = 0, busy_sec_ = 0, finished_ = -std::numeric_limits<double>::infinity();
  int64_t order_ = 0;
  std::priority_queue<InFlight, std::vector<InFlight>, std::greater<InFlight>> chunks_;
  std::vector<Known> ended_;
};

}  // namespace smallthinker
