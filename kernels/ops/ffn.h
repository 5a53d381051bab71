// What the two feed-forward kernels share. A pair is one token at one expert; `place` is its index in call.pairs.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "thread_pool.h"

namespace smallthinker {

// ffn_sparse.cpp, ffn_dense.cpp: each for the shapes that is_sparse gives it.
int64_t experts_sparse(ThreadPool& pool, const ExpertCall& call);
int64_t experts_dense(ThreadPool& pool, const ExpertCall& call);

constexpr int64_t kEvenTokens = 8;  // an expert's blocks of tokens are even, in multiples of what a product takes

// Some of an expert's tokens, at most kTokenBlock, which are computed at a time.
struct TokenBlock {
  int64_t expert, begin, end;  // places
};

inline int64_t max_token_blocks(const ExpertCall& call) {
  return call.offsets[call.n_experts] / kTokenBlock + call.n_experts;
}

// body(block) of every expert, in the order of places.
template <class Body>
void for_token_blocks(const ExpertCall& call, const Body& body) {
  for (int64_t expert = 0; expert < call.n_experts; ++expert) {
    const int64_t first = call.offsets[expert], last = call.offsets[expert + 1];
    const int64_t blocks = (last - first + kTokenBlock - 1) / kTokenBlock;
    const int64_t step = blocks == 0 ? 1 : round_up((last - first + blocks - 1) / blocks, kEvenTokens);
    for (int64_t begin = first; begin < last; begin += step) body(TokenBlock{expert, begin, std::min(begin + step, last)});
  }
}

}  // namespace smallthinker
