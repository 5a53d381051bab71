#include "bpe.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <stdexcept>
#include <tuple>

namespace smallthinker {
namespace {

size_t character_bytes(unsigned char lead) { return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4; }

}  // namespace

Bpe::Bpe(const Vocabulary& vocabulary, const Unknown& unknown, bool ignores_merges)
    : vocabulary_(vocabulary), unknown_(unknown), ignores_merges_(ignores_merges) {
  const auto expect = [](bool is_so, const char* what) {
    if (!is_so) throw std::invalid_argument(what);
  };
  const auto& v = vocabulary_;
  const auto is_token = [&v](uint32_t id) { return int64_t{id} < v.tokens; };
  expect(std::is_sorted(v.ends, v.ends + v.tokens), "ends: expected to ascend");
  expect(std::all_of(v.sorted, v.sorted + v.words, is_token), "sorted: expected ids of tokens");
  expect(std::is_sorted(v.sorted, v.sorted + v.words, [this](uint32_t a, uint32_t b) { return text(a) < text(b); }),
         "sorted: expected to ascend");
  expect(std::is_sorted(v.pairs, v.pairs + v.merges), "pairs: expected to ascend");
  expect(std::all_of(v.merged, v.merged + v.merges, is_token), "merged: expected ids of tokens");
  expect(!unknown_.token || is_token(*unknown_.token), "unknown: expected the id of a token");
}

std::string_view Bpe::text(int64_t id) const {
  if (id < 0 || id >= vocabulary_.tokens) return {};
  const uint32_t start = id == 0 ? 0 : vocabulary_.ends[id - 1];
  return {vocabulary_.texts + start, vocabulary_.ends[id] - start};
}

std::optional<uint32_t> Bpe::find(std::string_view word) const {
  const uint32_t* const end = vocabulary_.sorted + vocabulary_.words;
  const auto is_before = [this](uint32_t id, std::string_view wanted) { return text(id) < wanted; };
  const uint32_t* const found = std::lower_bound(vocabulary_.sorted, end, word, is_before);
  if (found == end || text(*found) != word || word.empty()) return std::nullopt;
  return *found;
}

std::optional<Bpe::Merge> Bpe::merge_of(uint32_t left, uint32_t right) const {
  const uint64_t pair = uint64_t{left} << 32 | right;
  const uint64_t* const end = vocabulary_.pairs + vocabulary_.merges;
  const uint64_t* const found = std::lower_bound(vocabulary_.pairs, end, pair);
  if (found == end || *found != pair) return std::nullopt;
  const auto at = found - vocabulary_.pairs;
  return Merge{vocabulary_.ranks[at], vocabulary_.merged[at]};
}

std::vector<Bpe::Token> Bpe::characters(std::string_view word) const {
  std::vector<Token> found;
  bool after_unknown = false;
  for (size_t at = 0; at < word.size();) {
    const auto start = uint32_t(at);
    const size_t size = std::min(character_bytes(static_cast<unsigned char>(word[at])), word.size() - at);
    at += size;
    const auto end = uint32_t(at);
    if (const auto id = find(word.substr(start, size))) {
      found.push_back({*id, start, end});
      after_unknown = false;
      continue;
    }
    if (unknown_.byte_fallback) {
      std::vector<Token> bytes;
      for (uint32_t i = start; i < end; ++i) {
        constexpr char digits[] = "0123456789ABCDEF";
        const auto byte = static_cast<unsigned char>(word[i]);
        const char name[] = {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
        if (const auto id = find({name, sizeof name})) bytes.push_back({*id, i, i + 1});
      }
      if (bytes.size() == size) {
        found.insert(found.end(), bytes.begin(), bytes.end());
        after_unknown = false;
        continue;
      }
    }
    if (!unknown_.token) continue;
    if (after_unknown && unknown_.fuses) {
      found.back().end = end;
    } else {
      found.push_back({*unknown_.token, start, end});
    }
    after_unknown = true;
  }
  return found;
}

std::vector<Bpe::Token> Bpe::encode(std::string_view word) const {
  if (ignores_merges_) {
    if (const auto id = find(word)) return {{*id, 0, uint32_t(word.size())}};
  }
  std::vector<Token> tokens = characters(word);
  if (tokens.size() < 2) return tokens;
  // Merged away ones become empty. Neighbours by their places; -1 at the ends.
  const auto count = int64_t(tokens.size());
  std::vector<int64_t> before(tokens.size()), behind(tokens.size());
  std::vector<uint8_t> is_gone(tokens.size());
  using Candidate = std::tuple<uint32_t, int64_t, uint32_t>;  // rank, place of the left one, what becomes of it
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto consider = [&](int64_t left, int64_t right) {
    if (const auto merge = merge_of(tokens[size_t(left)].id, tokens[size_t(right)].id)) {
      candidates.emplace(merge->rank, left, merge->id);
    }
  };
  for (int64_t i = 0; i < count; ++i) {
    before[size_t(i)] = i - 1;
    behind[size_t(i)] = i + 1 < count ? i + 1 : -1;
    if (i + 1 < count) consider(i, i + 1);
  }
  while (!candidates.empty()) {
    const auto [rank, left, id] = candidates.top();
    candidates.pop();
    if (is_gone[size_t(left)]) continue;
    const int64_t right = behind[size_t(left)];
    if (right < 0) continue;
    const auto still = merge_of(tokens[size_t(left)].id, tokens[size_t(right)].id);
    if (!still || still->id != id) continue;  // one of them has been merged with another since
    tokens[size_t(left)].id = id;
    tokens[size_t(left)].end = tokens[size_t(right)].end;
    is_gone[size_t(right)] = 1;
    behind[size_t(left)] = behind[size_t(right)];
    if (behind[size_t(left)] >= 0) {
      before[size_t(behind[size_t(left)])] = left;
      consider(left, behind[size_t(left)]);
    }
    if (before[size_t(left)] >= 0) consider(before[size_t(left)], left);
  }
  size_t kept = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (!is_gone[i]) tokens[kept++] = tokens[i];
  }
  tokens.resize(kept);
  return tokens;
}

}  // namespace smallthinker
