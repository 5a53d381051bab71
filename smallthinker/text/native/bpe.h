// Byte pair encoding over a packed vocabulary: words to tokens, tokens to their text. Owns the order of merges. Knows
// nothing about normal forms, patterns or special tokens.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace smallthinker {

// A vocabulary in arrays of another's. Ids are 0 to tokens - 1; one without text has no token.
struct Vocabulary {
  const uint32_t* ends;    // [tokens] of each text, in `texts`; it begins where the one before ends
  int64_t tokens;
  const char* texts;       // UTF-8
  const uint32_t* sorted;  // [words] ids of those that a word can become, by their bytes
  int64_t words;
  const uint64_t* pairs;   // [merges] left id << 32 | right id, ascending
  const uint32_t* ranks;   // [merges] of each pair; the least is merged first
  const uint32_t* merged;  // [merges] what becomes of each pair
  int64_t merges;
};

// What a character that is no token becomes.
struct Unknown {
  bool byte_fallback;             // tokens <0x00> to <0xFF>, where the vocabulary has all that are needed
  std::optional<uint32_t> token;  // else this; else nothing
  bool fuses;                     // several in a row are one
};

class Bpe {
 public:
  struct Token {
    uint32_t id;
    uint32_t start, end;  // bytes of the word
  };

  // Throws std::invalid_argument for arrays that contradict each other.
  Bpe(const Vocabulary& vocabulary, const Unknown& unknown, bool ignores_merges);

  std::string_view text(int64_t id) const;  // empty for an id that is no token's
  std::optional<uint32_t> find(std::string_view word) const;
  std::vector<Token> encode(std::string_view word) const;

 private:
  struct Merge {
    uint32_t rank, id;
  };

  std::optional<Merge> merge_of(uint32_t left, uint32_t right) const;
  std::vector<Token> characters(std::string_view word) const;

  Vocabulary vocabulary_;
  Unknown unknown_;
  bool ignores_merges_;
};

}  // namespace smallthinker
