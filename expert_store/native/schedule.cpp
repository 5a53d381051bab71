#include "schedule.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace smallthinker {

void Schedule::submit(int64_t record, int64_t slot, bool speculative) {
  if (reads_.count(record) != 0) {
    throw std::invalid_argument("record " + std::to_string(record) + " is under way already");
  }
  const auto other = by_slot_.find(slot);
  if (other != by_slot_.end()) {
    throw std::invalid_argument("slot " + std::to_string(slot) + ": record " + std::to_string(other->second->record) +
                                " is being read into it");
  }
  auto read = std::make_unique<Read>();
  read->record = record;
  read->slot = slot;
  read->speculative = speculative;
  read->next_bytes = cuts_(record, 0);
  read->submitted = std::chrono::steady_clock::now();
  Read* const bare = read.get();
  (speculative ? speculative_ : certain_).push_back(bare);
  by_slot_.emplace(slot, bare);
  reads_.emplace(record, std::move(read));
}

void Schedule::promote(int64_t record) {
  const auto found = reads_.find(record);
  if (found == reads_.end()) return;
  Read* const read = found->second.get();
  if (!read->speculative || read->over || read->withdrawn) return;
  read->speculative = false;
  const auto waiting = std::find(speculative_.begin(), speculative_.end(), read);
  if (waiting == speculative_.end()) return;  // all of its chunks are in flight
  speculative_.erase(waiting);
  certain_.push_back(read);
}

bool Schedule::cancel(int64_t record) {
  const auto found = reads_.find(record);
  if (found == reads_.end() || found->second->over) return false;
  Read* const read = found->second.get();
  remove_waiting(read);
  if (read->chunks == 0) {
    extract(read);
    return true;
  }
  read->withdrawn = true;
  end_if_done(read);  // one that had to yield has nothing in flight
  return false;
}

void Schedule::withdraw_all() {
  certain_.clear();
  speculative_.clear();
  std::vector<Read*> reads;
  for (const auto& entry : reads_) reads.push_back(entry.second.get());
  for (Read* read : reads) {
    read->withdrawn = true;
    if (read->in_flight == 0) {
      counters_.withdrawn_bytes += read->arrived;
      extract(read);
    }
  }
  ended_.clear();
  forgetting_ = !is_idle();
}

const Schedule::Queue* Schedule::next_queue() const {
  if (!certain_.empty()) return in_flight_ < limits_.depth ? &certain_ : nullptr;
  if (!speculative_.empty() && in_flight_ < limits_.speculative_depth) return &speculative_;
  return nullptr;
}

std::optional<Chunk> Schedule::take() {
  Queue* const queue = const_cast<Queue*>(next_queue());
  if (queue == nullptr) return std::nullopt;
  Read* const read = queue->front();
  const Chunk chunk{read, read->chunks++, read->next_bytes};
  read->next_bytes = cuts_(read->record, read->chunks);
  if (read->next_bytes == 0) queue->pop_front();
  ++read->in_flight;
  if (in_flight_++ == 0) busy_from_ = std::chrono::steady_clock::now();
  return chunk;
}

void Schedule::leave_disk() {
  if (--in_flight_ == 0) counters_.busy_sec += busy_since();
}

void Schedule::begin_stage() {
  leave_disk();
  ++in_stage_;
}

void Schedule::give_back(const Chunk& chunk, std::optional<Fault> fault, bool was_staged) {
  Read* const read = chunk.read;
  --read->in_flight;
  if (was_staged) {
    --in_stage_;
  } else {
    leave_disk();
  }
  if (!fault) {
    read->arrived += chunk.bytes;
  } else if (!read->fault || fault->offset < read->fault->offset) {  // whichever came first, the first in the file
    read->fault = std::move(fault);
    remove_waiting(read);
  }
  if (!forgetting_) return end_if_done(read);
  if (read->in_flight == 0) {
    counters_.withdrawn_bytes += read->arrived;
    extract(read);
  }
  forgetting_ = !is_idle();
}

void Schedule::end_if_done(Read* read) {
  const bool stopped = read->withdrawn || read->fault;
  if (read->in_flight > 0 || (!stopped && read->next_bytes > 0)) return;
  read->over = true;
  ended_.push_back(read);
}

std::vector<std::unique_ptr<Read>> Schedule::take_ended() {
  std::vector<std::unique_ptr<Read>> ended;
  ended.reserve(ended_.size());
  for (Read* read : ended_) {
    read->is_whole = read->next_bytes == 0 && !read->fault;
    if (read->is_whole) {
      (read->speculative ? counters_.speculative_reads : counters_.certain_reads) += 1;
      (read->speculative ? counters_.speculative_bytes : counters_.certain_bytes) += read->arrived;
    } else if (!read->fault) {
      counters_.withdrawn_bytes += read->arrived;
    }
    ended.push_back(extract(read));
  }
  ended_.clear();
  return ended;
}

Counters Schedule::counters() const {
  Counters counters = counters_;
  if (in_flight_ > 0) counters.busy_sec += busy_since();
  return counters;
}

void Schedule::remove_waiting(Read* read) {
  for (Queue* queue : {&certain_, &speculative_}) {
    queue->erase(std::remove(queue->begin(), queue->end(), read), queue->end());
  }
}

std::unique_ptr<Read> Schedule::extract(Read* read) {
  by_slot_.erase(read->slot);
  const auto found = reads_.find(read->record);
  std::unique_ptr<Read> owned = std::move(found->second);
  reads_.erase(found);
  return owned;
}

double Schedule::busy_since() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - busy_from_).count();
}

}  // namespace smallthinker
