// Who is in which slot, who may not leave, and what was read for whom. No memory, no files, no Python: slots are numbers,
// and reading, the choice of a victim and the time are behind interfaces. What each call means to the engine is in
// cache/expert_cache.py.
//
// A record is an expert's; records count experts layer after layer. One caller at a time. Whatever throws, the books are
// right afterwards.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "layer_experts.h"

namespace smallthinker {

// What has been used: `tokens` tokens of a layer asked for these records, counts[i] of them for records[i], or all of them
// where there are no counts.
struct Use {
  int64_t layer;
  std::vector<int64_t> records, counts;
  int64_t tokens;
};

// See EvictionPolicy in cache/policies.py.
struct Policy {
  virtual ~Policy() = default;
  virtual void insert(int64_t record) = 0;
  virtual void remove(int64_t record) = 0;
  virtual void use(const Use& use) = 0;
  virtual void step(int64_t tokens) = 0;
  virtual int64_t victim(const std::vector<uint8_t>& stays, int64_t layer) = 0;  // [records]: not 0 may not leave; -1 for none
  virtual double score(int64_t record) = 0;
};

// See ReadQueue in expert_store/read_queue.py.
struct Reads {
  struct Ended {
    int64_t record;
    std::exception_ptr error;  // none: the slot holds the whole record
  };
  virtual ~Reads() = default;
  virtual void submit(int64_t record, int64_t slot, bool speculative) = 0;
  virtual void promote(int64_t record) = 0;
  virtual bool cancel(int64_t record) = 0;
  virtual std::vector<Ended> poll() = 0;
  virtual std::vector<Ended> wait() = 0;
};

// In records, since the books were opened; what each means is in cache/read_counters.py.
struct Counts {
  int64_t hits = 0, in_time = 0, late = 0, misses = 0, evictions = 0, wasted = 0, preloaded = 0, rereads = 0;
  double stall_sec = 0;
};

class Books {
 public:
  using Landed = LayerExperts::Landed;

  // slot_of [records]: outlives the books, which write it: the slot of a record that is whole, -1 for the others. experts: of
  // each layer. seconds: for what waiting takes. took_free: called each time that a free slot is taken.
  Books(Policy& policy, Reads& reads, const std::vector<int64_t>& experts, int64_t slots, int32_t* slot_of,
        std::function<double()> seconds, std::function<void()> took_free);

  // The slots of a layer's records if all are resident, counted as hits. They stay until the next layer is asked for.
  std::optional<std::vector<int32_t>> find(int64_t layer, const std::vector<int64_t>& experts, std::vector<int64_t> counts,
                                           int64_t tokens);
  // Some tokens found these in `slot_of`.
  void found(int64_t layer, const std::vector<int64_t>& experts, std::vector<int64_t> counts, int64_t tokens);
  // From `layer` on, the first for which reads were guessed; `layers` where there is none.
  int64_t first_guessed(int64_t layer, int64_t layers) const;

  // Begins reading what is missing of a layer, what most tokens want first; an open request ends. `landed` hands out each
  // record once, resident ones first, and waits where none has landed; what it handed out before may leave. Empty: all
  // have been. It throws the error of a record that can't be read.
  void request(int64_t layer, const std::vector<int64_t>& experts, std::vector<int64_t> counts, int64_t tokens);
  std::vector<Landed> landed();
  void end_request();  // takes back what has not landed

  // Returns the places, in `experts`, of those that aren't resident.
  std::vector<int64_t> prefetch(int64_t layer, const std::vector<int64_t>& experts, const std::vector<double>& likelihoods,
                                int64_t max_under_way);
  void preload(const std::vector<int64_t>& records);

  void step(int64_t tokens);
  void hold();
  void settle(const std::vector<std::vector<std::pair<int64_t, std::vector<int64_t>>>>& tokens);
  void tell_policy();

  struct Resized {
    std::vector<int64_t> regained, released;  // slots
  };
  Resized resize(int64_t limit);

  const Counts& counts() const { return counts_; }
  const std::vector<uint32_t>& uses() const { return uses_; }  // by tokens, [records]
  const std::vector<int64_t>& free_slots() const { return free_; }
  const std::vector<int64_t>& released_slots() const { return released_; }
  int64_t limit() const { return slots_ - static_cast<int64_t>(released_.size()); }
  std::vector<std::pair<int64_t, int64_t>> reading() const;  // records and their slots
  int64_t withdrawn() const;                                 // of those

 private:
  // What a layer may want: `expected` may not leave before the layer has been served, `read` is read for it alone.
  struct Guess {
    std::vector<int64_t> expected, read;
  };
  struct Request {
    int64_t layer;
    std::vector<int64_t> records;
    std::vector<int64_t> waiting;  // positions without a slot yet, in order
    int64_t pending = 0;           // of position_, under way
    std::vector<Landed> landed;    // to be handed out
    std::vector<int64_t> given;    // records that the caller computes now
  };

  static constexpr uint8_t kPinned = 1, kActive = 2;  // in stays_: by the request or a guess; in what is computed now

  int64_t first(int64_t layer) const;  // throws std::out_of_range
  std::vector<int64_t> records_of(int64_t layer, const std::vector<int64_t>& experts) const;  // throws std::out_of_range
  bool is_reading(int64_t record) const { return reading_[static_cast<size_t>(record)] >= 0; }
  int32_t& slot_of(int64_t record) { return slot_of_[record]; }
  void pin(int64_t record) { stays_[static_cast<size_t>(record)] |= kPinned; }
  void unpin(int64_t record) { stays_[static_cast<size_t>(record)] &= static_cast<uint8_t>(~kPinned); }
  void be_active(std::vector<int64_t> records);

  void claim(int64_t position);
  void begin_reads();
  bool regain_or_read(int64_t position);
  void handle(const std::vector<Reads::Ended>& ended);
  void resolve_guess(int64_t layer, const std::vector<int64_t>& records);
  void withdraw(int64_t record);
  void withdraw_guesses();
  void start_read(int64_t record, int64_t slot, bool speculative);
  int64_t take_slot(int64_t layer, double likelihood);  // -1: none to be had
  int64_t take_preloading();
  int64_t pop_free();

  Policy& policy_;
  Reads& reads_;
  std::vector<int64_t> first_of_;  // record of each layer, and the end of the last
  const int64_t slots_;
  int32_t* const slot_of_;
  const std::function<double()> seconds_;
  const std::function<void()> took_free_;
  std::vector<int32_t> reading_;     // [records]: slot, for reads under way; -1
  std::vector<uint8_t> withdrawn_;   // [records]: nobody wants its read any more
  std::vector<uint8_t> stays_;       // [records]
  std::vector<int64_t> position_;    // [records]: in the open request, for reads that it waits for; -1
  std::vector<uint8_t> gone_;        // [records]: evicted, and not read since
  std::vector<int64_t> preloading_;  // under way, in the order in which they were asked for
  std::vector<int64_t> active_;
  std::map<int64_t, Guess> guesses_;  // by layer
  std::vector<int64_t> free_, released_;
  std::optional<Request> request_;
  std::vector<Use> used_, told_;  // what the policy hasn't heard of yet, in order; and what it has, in this step
  bool is_held_ = false;
  std::vector<uint32_t> uses_;
  Counts counts_;
};

}  // namespace smallthinker
