// What this module lends to whoever knows the order of a step's work: one layer's experts, asked for, handed out as they land,
// and guessed ahead. A capsule carries it from one to the other. What each call means is in books.h and expert_cache.py. No
// exception crosses: false says that Python's error is set. All hold the GIL.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace smallthinker {

struct LayerExperts {
  static constexpr const char* kCapsule = "smallthinker.LayerExperts";
  using Ids = std::vector<int64_t>;
  struct Landed {
    int64_t position;  // in the request
    int32_t slot;
  };

  virtual ~LayerExperts() = default;
  virtual bool find(int64_t layer, const Ids& experts, const Ids& counts, int64_t tokens,
                    std::optional<std::vector<int32_t>>* slots) noexcept = 0;
  virtual bool found(int64_t layer, const Ids& experts, const Ids& counts, int64_t tokens) noexcept = 0;
  virtual int64_t first_guessed(int64_t layer, int64_t layers) const noexcept = 0;
  virtual bool request(int64_t layer, const Ids& experts, const Ids& counts, int64_t tokens) noexcept = 0;
  virtual bool landed(std::vector<Landed>* landed) noexcept = 0;
  virtual void end_request() noexcept = 0;  // whatever happened: Python's error, if one is set, stays
  virtual bool prefetch(int64_t layer, const Ids& experts, const std::vector<double>& likelihoods, int64_t max_under_way,
                        Ids* missing) noexcept = 0;
  virtual double stall_sec() const noexcept = 0;
  virtual int64_t wanted() const noexcept = 0;  // records that were asked for and hadn't been kept
};

}  // namespace smallthinker
