#include "guess_record.h"

#include <algorithm>
#include <stdexcept>

namespace smallthinker {

GuessRecord::GuessRecord(int64_t layers, int64_t k, std::set<int64_t> certain, const Rules& rules)
    : certain_(std::move(certain)), rules_(rules) {
  const auto ranks = static_cast<size_t>(k);
  const OfLayer nothing{std::vector<double>(ranks, rules.hope), std::vector<int64_t>(ranks), {}};
  of_layers_.fill(std::vector<OfLayer>(static_cast<size_t>(layers), nothing));
}

void GuessRecord::begin_token() {
  for (auto& of_kind : of_layers_) {
    for (OfLayer& layer : of_kind) layer.open.clear();
  }
  of_layers_[0].front().open = std::exchange(of_next_, {});
}

std::vector<double> GuessRecord::likelihoods(int64_t source, int64_t target) const {
  std::vector<double> found = at(source == target, target).precision;
  const bool is_certain = certain_.count(target) != 0;
  for (double& p : found) p = is_certain ? 1.0 : p >= rules_.worth ? p : 0.0;
  return found;
}

bool GuessRecord::may_be_right(int64_t target, bool own) const {
  const OfLayer& layer = at(own, target);
  const auto is_some = [](int64_t n) { return n > 0; };
  return *std::max_element(layer.precision.begin(), layer.precision.end()) >= rules_.worth ||
         std::none_of(layer.judged.begin(), layer.judged.end(), is_some);
}

void GuessRecord::predict(int64_t source, int64_t target, const Guess& guess, const std::vector<int64_t>& missing) {
  OfLayer& layer = of_layers_[source == target ? 1 : 0].at(static_cast<size_t>(target));
  Open& open = source == kFinalState ? of_next_ : layer.open;
  for (const int64_t place : missing) {
    const auto i = static_cast<size_t>(place);
    if (guess.ranks.at(i) < 0 || static_cast<size_t>(guess.ranks.at(i)) >= layer.precision.size()) throw std::out_of_range("rank");
    open.emplace_back(guess.ranks[i], guess.experts.at(i));
  }
}

void GuessRecord::score(int64_t layer, const std::vector<int32_t>& experts) {
  for (auto& of_kind : of_layers_) {
    OfLayer& found = of_kind.at(static_cast<size_t>(layer));
    for (const auto& [rank, expert] : found.open) {
      double& precision = found.precision[static_cast<size_t>(rank)];
      int64_t& judged = found.judged[static_cast<size_t>(rank)];
      const double keep = std::min(rules_.keep, 1 - 1 / static_cast<double>(judged + 2));  // a mean at first
      const bool is_right = std::find(experts.begin(), experts.end(), expert) != experts.end();
      precision = keep * precision + (1 - keep) * (is_right ? 1 : 0);
      ++judged;
    }
    found.open.clear();
  }
}

}  // namespace smallthinker
