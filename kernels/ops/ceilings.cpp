// What reading memory and what arithmetic cost when nothing else is done: the ceilings of the benchmarks.
#include <algorithm>
#include <atomic>

#include "kernels.h"
#include "thread_pool.h"

namespace smallthinker {

uint64_t read_memory(ThreadPool& pool, const uint8_t* data, int64_t bytes) {
  constexpr int64_t kChunk = 1 << 18;
  ThreadPool::Session session(pool);
  const int64_t whole = bytes / 256 * 256;
  std::atomic<uint64_t> total{0};
  const auto read_chunk = [&](int, int64_t unit) {
    const int64_t begin = unit * kChunk;
    total.fetch_xor(session.isa().mix_bytes(data + begin, std::min(whole - begin, kChunk)), std::memory_order_relaxed);
  };
  session.parallel_for((whole + kChunk - 1) / kChunk, read_chunk);
  for (int64_t at = whole; at < bytes; ++at) total.fetch_xor(data[at], std::memory_order_relaxed);
  return total;
}

int64_t multiply_add(ThreadPool& pool, int64_t multiplications, bool is_int8) {
  constexpr int64_t kUnitRounds = 1 << 12;
  const int64_t round = kRoundVectors * kLanes * (is_int8 ? 4 : 1);
  const int64_t units = std::max<int64_t>(1, multiplications / round / kUnitRounds);
  ThreadPool::Session session(pool);
  const Isa& isa = session.isa();
  std::atomic<int64_t> total{0};  // so that no compiler leaves the work out
  const auto run_unit = [&](int, int64_t) {
    const int64_t sum = is_int8 ? isa.multiply_add_int8(kUnitRounds) : static_cast<int64_t>(isa.multiply_add(kUnitRounds));
    total.fetch_add(sum, std::memory_order_relaxed);
  };
  session.parallel_for(units, run_unit);
  return units * kUnitRounds * round;
}

}  // namespace smallthinker
