// The layers of one token whose experts are all in memory, one after the other without a line of Python: between kernels
// that sweep the processor's caches, what Python does for a layer costs several times its usual price.
#pragma once

#include <pybind11/stl.h>

#include <vector>

#include "bound_layers.h"

namespace smallthinker {

class BoundTokenLayers {
 public:
  // Why `run` ended before its last layer.
  enum class Stop {
    begin,     // it was to go no further
    routed,    // an expert of the layer isn't in memory; its route is known, nothing is computed
    attended,  // attention has been added, and what is guessed of a later layer isn't in memory
  };
  struct End {
    int64_t layer;
    Stop stop;
    int64_t live_neurons;
  };

  // attention: a BoundAttentionLayer for each layer.
  BoundTokenLayers(BoundTokenRouter& router, const std::vector<py::object>& attention, BoundTokenExperts& experts)
      : router_(router), kept_(attention), experts_(experts) {
    if (attention.empty() || static_cast<int64_t>(attention.size()) != router.layers()) {
      fail("attention: expected ", router.layers(), " layers, found ", attention.size());
    }
    for (const py::object& layer : kept_) {
      attention_.push_back(&layer.cast<BoundAttentionLayer&>());
      if (attention_.back()->dim() != router.dim()) fail("attention: expected states ", router.dim(), " wide");
    }
    if (experts.hidden() != router.dim() || experts.k() != router.k()) {
      fail("experts: expected ", router.k(), " of a token, with states ", router.dim(), " wide");
    }
  }

  // x [1, d] through the layers from `first` to `last` - 1, in place, as long as they find what they need. slots[layer *
  // E + expert]: where an expert is, or -1; there may be more. caches: of every layer, one token from `start` on. ids [layers + 1, k] gets
  // the routes and behind them the last guess, weights [1, k] the last route's. ahead[layer]: the layer that is guessed
  // once attention has been added, or -1; -2 stops there.
  End run(int64_t first, int64_t last, py::array& x, py::array& normed, py::array& weights, const py::array& slots,
          const py::array& ahead, const std::vector<const BoundKvLayer*>& caches, int64_t start, const py::array& cos,
          const py::array& sin, py::array& ids) {
    const int64_t layers = router_.layers(), k = router_.k();
    float* to = output<float>(x, "x", {1, router_.dim()});
    float* norm = output<float>(normed, "normed", {1, router_.dim()});
    float* w = output<float>(weights, "weights", {1, k});
    int32_t* routes = output<int32_t>(ids, "ids", {layers + 1, k});
    const int32_t* slot_of = input<int32_t>(slots, "slots", {-1});
    const int64_t records = layers * router_.experts();
    if (slots.size() < records) fail("slots: expected at least ", records, " records, found ", slots.size());
    const int32_t* guessed = input<int32_t>(ahead, "ahead", {layers});
    const int64_t half = attention_[0]->head_dim() / 2;
    const float* c = input<float>(cos, "cos", {1, half});
    const float* s = input<float>(sin, "sin", {1, half});
    check_disjoint(normed, x, "x");
    if (first < 0 || first > last || last > layers) fail("first, last: expected 0 to ", layers, ", found ", first, ", ", last);
    if (static_cast<int64_t>(caches.size()) != layers) fail("caches: expected ", layers, ", found ", caches.size());
    std::vector<std::vector<Span>> spans;
    for (int64_t layer = first; layer < last; ++layer) {
      const auto at = static_cast<size_t>(layer);
      if (attention_[at]->head_dim() / 2 != half) fail("cos: expected as many angles in every layer");
      if (guessed[layer] >= layers) fail("ahead[", layer, "]: expected less than ", layers, ", found ", guessed[layer]);
      spans.push_back({attention_[at]->span(caches[at], layer, start, 1)});
    }
    int32_t* const guess = routes + layers * k;
    std::vector<int32_t> chosen(static_cast<size_t>(k));
    py::gil_scoped_release unlocked;
    End end{first, Stop::begin, 0};
    for (; end.layer < last; ++end.layer) {
      const int64_t layer = end.layer;
      int32_t* of_layer = routes + layer * k;
      router_.choose(layer, to, of_layer, w);
      if (!are_there(slot_of, layer, of_layer, chosen.data())) {
        end.stop = Stop::routed;
        return end;
      }
      attention_[static_cast<size_t>(layer)]->add_to(to, spans[static_cast<size_t>(layer - first)], c, s, norm);
      if (guessed[layer] >= 0) router_.guess_one(layer, guessed[layer], to, guess);
      if (guessed[layer] < -1 || (guessed[layer] >= 0 && !are_there(slot_of, guessed[layer], guess, nullptr))) {
        end.stop = Stop::attended;
        return end;
      }
      end.live_neurons += experts_.add_to(to, norm, chosen.data(), w);
    }
    return end;
  }

 private:
  // Whether all of these experts [k] of a layer are in slots, which go into `into`.
  bool are_there(const int32_t* slot_of, int64_t layer, const int32_t* ids, int32_t* into) const {
    for (int64_t rank = 0; rank < router_.k(); ++rank) {
      const int64_t record = layer * router_.experts() + ids[rank];
      if (slot_of[record] < 0) return false;
      check_slot("slots", record, slot_of[record], experts_.slots());
      if (into != nullptr) into[rank] = slot_of[record];
    }
    return true;
  }

  BoundTokenRouter& router_;
  const std::vector<py::object> kept_;  // what attention_ points to
  std::vector<BoundAttentionLayer*> attention_;
  BoundTokenExperts& experts_;
};

}  // namespace smallthinker
