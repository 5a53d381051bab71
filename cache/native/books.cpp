#include "books.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

namespace smallthinker {
namespace {

// Of the wait for a record, what a right guess saves. It would have been read anyway, into the same slot; so only a wrong
// one costs what it evicts.
constexpr double kSaved = 0.5;

bool has(const std::vector<int64_t>& list, int64_t item) { return std::find(list.begin(), list.end(), item) != list.end(); }

void drop(std::vector<int64_t>* list, int64_t item) { list->erase(std::remove(list->begin(), list->end(), item), list->end()); }

}  // namespace

Books::Books(Policy& policy, Reads& reads, const std::vector<int64_t>& experts, int64_t slots, int32_t* slot_of,
             std::function<double()> seconds, std::function<void()> took_free)
    : policy_(policy),
      reads_(reads),
      first_of_{0},
      slots_(slots),
      slot_of_(slot_of),
      seconds_(std::move(seconds)),
      took_free_(std::move(took_free)) {
  for (const int64_t n : experts) first_of_.push_back(first_of_.back() + n);
  const auto records = static_cast<size_t>(first_of_.back());
  std::fill_n(slot_of_, records, -1);
  reading_.assign(records, -1);
  position_.assign(records, -1);
  withdrawn_.assign(records, 0);
  stays_.assign(records, 0);
  gone_.assign(records, 0);
  uses_.assign(records, 0);
  for (int64_t slot = slots - 1; slot >= 0; --slot) free_.push_back(slot);
}

std::optional<std::vector<int32_t>> Books::find(int64_t layer, const std::vector<int64_t>& experts, std::vector<int64_t> counts,
                                                int64_t tokens) {
  handle(reads_.poll());
  std::vector<int64_t> records = records_of(layer, experts);
  std::vector<int32_t> slots;
  for (const int64_t record : records) {
    if (slot_of(record) < 0) return std::nullopt;
    slots.push_back(slot_of(record));
  }
  counts_.hits += static_cast<int64_t>(slots.size());
  resolve_guess(layer, records);
  be_active(records);
  used_.push_back({layer, std::move(records), std::move(counts), tokens});
  return slots;
}

void Books::found(int64_t layer, const std::vector<int64_t>& experts, std::vector<int64_t> counts, int64_t tokens) {
  std::vector<int64_t> records = records_of(layer, experts);
  counts_.hits += static_cast<int64_t>(records.size());
  be_active(records);
  used_.push_back({layer, std::move(records), std::move(counts), tokens});
}

int64_t Books::first_guessed(int64_t layer, int64_t layers) const {
  const auto guess = guesses_.lower_bound(layer);
  return guess == guesses_.end() ? layers : std::min(guess->first, layers);
}

void Books::request(int64_t layer, const std::vector<int64_t>& experts, std::vector<int64_t> counts, int64_t tokens) {
  end_request();
  be_active({});
  handle(reads_.poll());
  std::vector<int64_t> order(experts.size());
  std::iota(order.begin(), order.end(), 0);
  const auto more_want = [&](int64_t a, int64_t b) { return counts[static_cast<size_t>(a)] > counts[static_cast<size_t>(b)]; };
  if (!counts.empty()) std::stable_sort(order.begin(), order.end(), more_want);  // the longest arithmetic to hide the next read behind
  request_.emplace(Request{layer, records_of(layer, experts), {}, 0, {}, {}});
  used_.push_back({layer, request_->records, std::move(counts), tokens});
  tell_policy();
  resolve_guess(layer, request_->records);
  for (const int64_t position : order) claim(position);
  begin_reads();  // after every hit is pinned: a miss must not evict what this very request needs
}

// Its slot, where it stays now; or a guess that came late; or it has to be read.
void Books::claim(int64_t position) {
  const int64_t record = request_->records[static_cast<size_t>(position)];
  const auto at = static_cast<size_t>(record);
  const int32_t slot = slot_of(record);
  if (slot < 0 && (!is_reading(record) || withdrawn_[at] != 0)) {
    ++counts_.misses;
    request_->waiting.push_back(position);
    return;
  }
  pin(record);
  if (slot >= 0) {
    ++counts_.hits;
    request_->landed.push_back({position, slot});
    return;
  }
  reads_.promote(record);
  if (has(preloading_, record)) {
    drop(&preloading_, record);
    ++counts_.late;
  }
  position_[at] = position;
  ++request_->pending;
}

// As many as slots can be had for.
void Books::begin_reads() {
  std::vector<int64_t> waiting = std::move(request_->waiting), still;
  for (size_t i = 0; i < waiting.size(); ++i) {
    const int64_t record = request_->records[static_cast<size_t>(waiting[i])];
    const bool is_being_stopped = slot_of(record) < 0 && is_reading(record);  // an earlier read of it
    if (is_being_stopped) {
      still.push_back(waiting[i]);
    } else if (!regain_or_read(waiting[i])) {  // no slot: those keep their places, before what is being stopped
      still.insert(still.begin(), waiting.begin() + static_cast<std::ptrdiff_t>(i), waiting.end());
      break;
    }
  }
  request_->waiting = std::move(still);
}

bool Books::regain_or_read(int64_t position) {
  const int64_t record = request_->records[static_cast<size_t>(position)];
  if (slot_of(record) >= 0) {  // a withdrawn read that was too late to stop: counted a miss and, landing, wasted
    pin(record);
    --counts_.misses;
    --counts_.wasted;
    ++counts_.late;
    request_->landed.push_back({position, slot_of(record)});
    return true;
  }
  int64_t slot = take_slot(request_->layer, 1);
  if (slot < 0 && !guesses_.empty()) {  // what is certain goes before what is guessed
    withdraw_guesses();
    slot = take_slot(request_->layer, 1);
  }
  if (slot < 0) slot = take_preloading();
  if (slot < 0) return false;
  start_read(record, slot, false);
  position_[static_cast<size_t>(record)] = position;
  ++request_->pending;
  return true;
}

std::vector<Books::Landed> Books::landed() {
  if (!request_) throw std::logic_error("no request is open");
  Request& open = *request_;
  for (const int64_t record : open.given) unpin(record);
  open.given.clear();
  if (open.landed.empty()) begin_reads();
  while (open.landed.empty() && (open.pending > 0 || !open.waiting.empty())) {
    std::vector<Reads::Ended> ended = reads_.poll();
    if (ended.empty()) {
      const double began = seconds_();
      ended = reads_.wait();
      counts_.stall_sec += seconds_() - began;
    }
    handle(ended);
    for (const Reads::Ended& read : ended) {
      const int64_t position = std::exchange(position_[static_cast<size_t>(read.record)], -1);
      if (position < 0) continue;
      --open.pending;
      if (read.error) std::rethrow_exception(read.error);
      open.landed.push_back({position, slot_of(read.record)});
    }
    if (open.landed.empty()) begin_reads();
  }
  for (const Landed& landed : open.landed) open.given.push_back(open.records[static_cast<size_t>(landed.position)]);
  return std::exchange(open.landed, {});
}

void Books::end_request() {
  if (!request_) return;
  const Request open = std::move(*request_);
  request_.reset();
  for (const int64_t record : open.records) unpin(record);
  for (const int64_t record : open.records) {
    if (std::exchange(position_[static_cast<size_t>(record)], -1) >= 0 && is_reading(record)) withdraw(record);
  }
}

std::vector<int64_t> Books::prefetch(int64_t layer, const std::vector<int64_t>& experts, const std::vector<double>& likelihoods,
                                     int64_t max_under_way) {
  if (likelihoods.size() != experts.size()) throw std::invalid_argument("likelihoods: expected one for each expert");
  const std::vector<int64_t> records = records_of(layer, experts);
  std::vector<int64_t> missing;
  for (size_t i = 0; i < records.size(); ++i) {
    if (slot_of(records[i]) < 0) missing.push_back(static_cast<int64_t>(i));
  }
  const auto known = guesses_.find(layer);
  if (known == guesses_.end() && missing.empty()) return missing;
  Guess& guess = guesses_[layer];
  for (const int64_t record : std::vector<int64_t>(guess.read)) {
    if (has(records, record) || !is_reading(record)) continue;
    drop(&guess.read, record);
    drop(&guess.expected, record);
    withdraw(record);
  }
  for (const int64_t record : records) {
    if (slot_of(record) < 0 || (stays_[static_cast<size_t>(record)] & kPinned) != 0) continue;
    pin(record);  // so that they aren't evicted for the others
    guess.expected.push_back(record);
  }
  int64_t under_way = 0;
  for (const auto& [of, other] : guesses_) {
    under_way += std::count_if(other.read.begin(), other.read.end(), [&](int64_t record) { return is_reading(record); });
  }
  for (const int64_t place : missing) {
    const int64_t record = records[static_cast<size_t>(place)];
    const double likelihood = likelihoods[static_cast<size_t>(place)];
    if (is_reading(record) || !(likelihood > 0) || under_way >= max_under_way) continue;
    const int64_t slot = take_slot(layer, likelihood);
    if (slot < 0) continue;
    start_read(record, slot, true);
    guess.expected.push_back(record);
    guess.read.push_back(record);
    ++under_way;
  }
  return missing;
}

void Books::preload(const std::vector<int64_t>& records) {
  for (const int64_t record : records) {
    if (record < 0 || record >= first_of_.back()) throw std::out_of_range("record " + std::to_string(record));
    if (free_.empty()) return;
    if (slot_of(record) >= 0 || is_reading(record)) continue;
    start_read(record, pop_free(), true);
    preloading_.push_back(record);
  }
}

void Books::step(int64_t tokens) {
  tell_policy();
  policy_.step(tokens);
  for (const Use& use : told_) {
    for (size_t i = 0; i < use.records.size(); ++i) {
      const int64_t count = use.counts.empty() ? use.tokens : use.counts[i];
      uses_[static_cast<size_t>(use.records[i])] += static_cast<uint32_t>(count);
    }
  }
  told_.clear();
}

void Books::hold() {
  tell_policy();
  is_held_ = true;
}

void Books::settle(const std::vector<std::vector<std::pair<int64_t, std::vector<int64_t>>>>& tokens) {
  is_held_ = false;
  used_.clear();
  for (const auto& layers : tokens) {
    for (const auto& [layer, experts] : layers) used_.push_back({layer, records_of(layer, experts), {}, 1});
    step(1);
  }
}

// All at once: what the policy computes for one use sweeps the processor's cache.
void Books::tell_policy() {
  if (is_held_) return;
  for (Use& use : used_) {
    policy_.use(use);
    told_.push_back(std::move(use));
  }
  used_.clear();
}

Books::Resized Books::resize(int64_t limit) {
  end_request();
  be_active({});
  limit = std::clamp(limit, int64_t{1}, slots_);
  Resized resized;
  while (this->limit() < limit) {
    resized.regained.push_back(released_.back());
    free_.push_back(released_.back());
    released_.pop_back();
  }
  while (this->limit() > limit) {
    int64_t slot = -1;
    if (!free_.empty()) {
      slot = free_.front();  // that would be filled last
      free_.erase(free_.begin());
    } else {
      slot = take_slot(0, 1);
    }
    if (slot < 0) slot = take_preloading();
    if (slot < 0) break;
    released_.push_back(slot);
    resized.released.push_back(slot);
  }
  return resized;
}

std::vector<std::pair<int64_t, int64_t>> Books::reading() const {
  std::vector<std::pair<int64_t, int64_t>> reading;
  for (size_t record = 0; record < reading_.size(); ++record) {
    if (reading_[record] >= 0) reading.emplace_back(record, reading_[record]);
  }
  return reading;
}

int64_t Books::withdrawn() const { return std::count(withdrawn_.begin(), withdrawn_.end(), uint8_t{1}); }

void Books::be_active(std::vector<int64_t> records) {
  for (const int64_t record : active_) stays_[static_cast<size_t>(record)] &= static_cast<uint8_t>(~kActive);
  active_ = std::move(records);
  for (const int64_t record : active_) stays_[static_cast<size_t>(record)] |= kActive;
}

void Books::handle(const std::vector<Reads::Ended>& ended) {
  for (const Reads::Ended& read : ended) {
    const auto at = static_cast<size_t>(read.record);
    const int64_t slot = std::exchange(reading_[at], -1);
    const bool was_withdrawn = std::exchange(withdrawn_[at], uint8_t{0}) != 0;
    if (has(preloading_, read.record)) {
      drop(&preloading_, read.record);
      unpin(read.record);
      counts_.preloaded += !read.error;
    }
    if (!read.error) {
      slot_of(read.record) = static_cast<int32_t>(slot);
      counts_.rereads += std::exchange(gone_[at], uint8_t{0});
      if (was_withdrawn) {  // it was whole before it could be stopped
        policy_.insert(read.record);
        ++counts_.wasted;
      }
      continue;
    }
    if (!was_withdrawn) {  // broken; whoever needs it will ask again and be told
      policy_.remove(read.record);
      unpin(read.record);
      for (auto& [layer, guess] : guesses_) drop(&guess.read, read.record);
    }
    free_.push_back(slot);
  }
}

// The layer's experts are known: what was expected in vain may go, reads for nothing end.
void Books::resolve_guess(int64_t layer, const std::vector<int64_t>& records) {
  const auto found = guesses_.find(layer);
  if (found == guesses_.end()) return;
  const Guess guess = std::move(found->second);
  guesses_.erase(found);
  for (const int64_t record : guess.expected) unpin(record);
  for (const int64_t record : guess.read) {
    const bool is_under_way = is_reading(record);
    if (has(records, record)) {
      if (is_under_way) {
        ++counts_.late;
      } else {  // whoever asks counts it among the hits
        ++counts_.in_time;
        --counts_.hits;
      }
    } else if (is_under_way) {
      withdraw(record);
    } else {
      ++counts_.wasted;
    }
  }
}

void Books::withdraw(int64_t record) {
  policy_.remove(record);
  unpin(record);
  const auto at = static_cast<size_t>(record);
  if (reads_.cancel(record)) {
    free_.push_back(std::exchange(reading_[at], -1));
  } else {
    withdrawn_[at] = 1;
  }
}

// Nothing is expected any more, in any layer.
void Books::withdraw_guesses() {
  for (const auto& [layer, guess] : std::exchange(guesses_, {})) {
    for (const int64_t record : guess.expected) unpin(record);
    for (const int64_t record : guess.read) {
      if (is_reading(record)) withdraw(record);
    }
  }
}

// The slot of what is preloaded last, if its read can still be taken back; -1.
int64_t Books::take_preloading() {
  while (!preloading_.empty()) {
    const int64_t record = preloading_.back();
    preloading_.pop_back();
    const size_t free = free_.size();
    withdraw(record);
    if (free_.size() > free) return pop_free();
  }
  return -1;
}

void Books::start_read(int64_t record, int64_t slot, bool speculative) {
  try {
    reads_.submit(record, slot, speculative);
  } catch (...) {
    free_.push_back(slot);
    throw;
  }
  reading_[static_cast<size_t>(record)] = static_cast<int32_t>(slot);
  pin(record);
  policy_.insert(record);  // now, not when it lands: what is evicted must not depend on the disk's timing
}

// A free slot, or one taken from the policy's victim, for a record that is wanted with this likelihood in `layer`; -1 when
// every record is pinned, being read, or more of a loss than a guess is worth.
int64_t Books::take_slot(int64_t layer, double likelihood) {
  if (!free_.empty()) return pop_free();
  const int64_t victim = policy_.victim(stays_, layer);
  if (victim < 0) return -1;
  if (likelihood < 1 && (1 - likelihood) * policy_.score(victim) >= likelihood * kSaved) return -1;
  policy_.remove(victim);
  ++counts_.evictions;
  gone_[static_cast<size_t>(victim)] = 1;
  return std::exchange(slot_of(victim), -1);
}

int64_t Books::pop_free() {
  took_free_();
  const int64_t slot = free_.back();
  free_.pop_back();
  return slot;
}

int64_t Books::first(int64_t layer) const {
  if (layer < 0 || layer + 1 >= static_cast<int64_t>(first_of_.size())) throw std::out_of_range("layer " + std::to_string(layer));
  return first_of_[static_cast<size_t>(layer)];
}

std::vector<int64_t> Books::records_of(int64_t layer, const std::vector<int64_t>& experts) const {
  const int64_t begin = first(layer), end = first_of_[static_cast<size_t>(layer) + 1];
  std::vector<int64_t> records;
  records.reserve(experts.size());
  for (const int64_t expert : experts) {
    if (expert < 0 || begin + expert >= end) throw std::out_of_range("expert " + std::to_string(expert));
    records.push_back(begin + expert);
  }
  return records;
}

}  // namespace smallthinker
