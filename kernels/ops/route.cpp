// Which experts a token goes to, from its router logits.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.h"

namespace smallthinker {

namespace {

// NaN is below everything, so that k valid ids come out of any logits.
bool is_better(float a, float b) { return a > b || (std::isnan(b) && !std::isnan(a)); }

// The best of `n` values that isn't taken, which it is then; ties by lower index.
int64_t take_best(const float* values, int64_t n, char* taken) {
  int64_t best = -1;
  for (int64_t i = 0; i < n; ++i) {
    if (!taken[i] && (best < 0 || is_better(values[i], values[best]))) best = i;
  }
  taken[best] = 1;
  return best;
}

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

// The sum of e^(logit - largest) over `n` logits.
double exponentials(const float* logits, int64_t n, double largest) {
  double sum = 0.0;
  for (int64_t e = 0; e < n; ++e) sum += std::exp(logits[e] - largest);
  return sum;
}

// scores + bias: what is chosen by where the bias counts for the choice alone.
void biased_scores(const float* logits, int64_t experts, const Scoring& how, float* choice) {
  const double largest = *std::max_element(logits, logits + experts);
  const double sum = how.gating == Gating::softmax ? exponentials(logits, experts, largest) : 1.0;
  for (int64_t e = 0; e < experts; ++e) {
    const double score = how.gating == Gating::softmax ? std::exp(logits[e] - largest) / sum : sigmoid(logits[e]);
    choice[e] = static_cast<float>(score) + how.bias[e];
  }
}

// Takes the experts that don't belong to the best groups: those whose best two experts have the largest sums.
void leave_out_groups(const float* choice, int64_t experts, const Scoring& how, char* taken) {
  const int64_t size = experts / how.groups;
  std::vector<float> sums(static_cast<size_t>(how.groups));
  for (int64_t group = 0; group < how.groups; ++group) {
    const float* const of_group = choice + group * size;
    char* const is_taken = taken + group * size;
    const int64_t first = take_best(of_group, size, is_taken), second = take_best(of_group, size, is_taken);
    sums[static_cast<size_t>(group)] = of_group[first] + of_group[second];
  }
  std::fill_n(taken, experts, char{1});
  std::vector<char> kept(static_cast<size_t>(how.groups));
  for (int64_t i = 0; i < how.kept_groups; ++i) {
    std::fill_n(taken + take_best(sums.data(), how.groups, kept.data()) * size, size, char{0});
  }
}

// Chooses again what `ids`, k of them and best first, hold but for the first; `open` are the experts that may be chosen.
void prefer(const Preference& prefers, const float* choice, int64_t experts, const std::vector<char>& open, int64_t k, int32_t* ids) {
  const std::vector<int32_t> exact(ids, ids + k);
  const auto [least, most] = std::minmax_element(choice, choice + experts);
  const float margin = prefers.margin * (*most - *least);
  std::vector<float> preferred(choice, choice + experts);  // with all in slots, the same numbers
  for (int64_t e = 0; e < experts; ++e) preferred[static_cast<size_t>(e)] -= prefers.slot_of[e] < 0 ? margin : 0;
  std::vector<char> taken = open;
  taken[static_cast<size_t>(ids[0])] = 1;
  for (int64_t j = 1; j < k; ++j) {
    ids[j] = static_cast<int32_t>(take_best(preferred.data(), experts, taken.data()));
    *prefers.replaced += std::find(exact.begin(), exact.end(), ids[j]) == exact.end();
  }
  std::stable_sort(ids + 1, ids + k, [&](int32_t a, int32_t b) { return is_better(choice[a], choice[b]); });
}

}  // namespace

void route(const float* logits, int64_t tokens, int64_t experts, const Scoring& how, int32_t* ids, float* weights,
           const Preference* prefers) {
  const int64_t k = how.k;
  const bool adds_bias = how.bias != nullptr && !how.bias_chooses, chooses_by_bias = how.bias != nullptr && how.bias_chooses;
  std::vector<char> taken(static_cast<size_t>(experts));
  std::vector<double> gates(static_cast<size_t>(k));
  std::vector<float> biased(static_cast<size_t>(adds_bias ? experts : 0)), scores(static_cast<size_t>(chooses_by_bias ? experts : 0));
  for (int64_t t = 0; t < tokens; ++t, logits += experts, ids += k, weights += k) {
    const float* own = logits;
    if (adds_bias) {
      for (int64_t e = 0; e < experts; ++e) biased[static_cast<size_t>(e)] = logits[e] + how.bias[e];
      own = biased.data();
    }
    const float* choice = own;
    if (chooses_by_bias) {
      biased_scores(own, experts, how, scores.data());
      choice = scores.data();
    }
    taken.assign(taken.size(), 0);
    if (how.groups > 1) leave_out_groups(choice, experts, how, taken.data());
    const std::vector<char> open = prefers == nullptr ? std::vector<char>() : taken;
    for (int64_t j = 0; j < k; ++j) ids[j] = static_cast<int32_t>(take_best(choice, experts, taken.data()));
    if (prefers != nullptr) prefer(*prefers, choice, experts, open, k, ids);

    // Divided by the sum over the chosen, a softmax over all experts is one over the chosen.
    const bool over_all = how.gating == Gating::softmax && how.over_all && !how.normalise;
    double largest = own[ids[0]], sum = 0.0;
    for (int64_t j = 1; j < k; ++j) largest = std::max<double>(largest, own[ids[j]]);
    if (over_all) largest = std::max<double>(largest, *std::max_element(own, own + experts));
    for (int64_t j = 0; j < k; ++j) {
      const double v = own[ids[j]];
      gates[static_cast<size_t>(j)] = how.gating == Gating::softmax ? std::exp(v - largest) : sigmoid(v);
      sum += gates[static_cast<size_t>(j)];
    }
    if (over_all) sum = exponentials(own, experts, largest);
    if (how.gating == Gating::sigmoid && !how.normalise) sum = 1.0;
    for (int64_t j = 0; j < k; ++j) {
      double weight = gates[static_cast<size_t>(j)] / sum * how.scale;
      if (how.expert_scale != nullptr) weight *= how.expert_scale[ids[j]];
      weights[j] = static_cast<float>(weight);
    }
  }
}

void router(ThreadPool& pool, const Matrix& weights, const float* x, int64_t tokens, const Scoring& how, int32_t* ids,
            float* expert_weights, const Preference* prefers) {
  std::vector<float> logits(static_cast<size_t>(tokens * weights.rows));
  linear(pool, {{weights, logits.data()}}, x, tokens);
  if (how.logit_scale != 1.0f) {
    for (float& logit : logits) logit *= how.logit_scale;
  }
  route(logits.data(), tokens, weights.rows, how, ids, expert_weights, prefers);
}

}  // namespace smallthinker
