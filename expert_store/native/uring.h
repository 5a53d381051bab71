// One io_uring: reads go in, completions come out, and another thread may wake the one that waits. By raw system calls,
// so nothing has to be installed. Only Linux since 5.6 has it; elsewhere, and where a container's filter forbids it,
// opening throws.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <utility>

#include "store_file.h"

namespace smallthinker {

// All but `wake` belong to one thread at a time.
class Ring {
 public:
  explicit Ring(int reads);  // as many at once. Throws Fault: the kernel refuses
  ~Ring();                   // nothing may be under way
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  void read(Handle handle, uint8_t* into, int64_t bytes, int64_t offset, uint64_t tag);
  // Hands over what was queued and sleeps until something ends or `wake` is called.
  void submit_and_wait();
  bool next(uint64_t& tag, int& result);  // what has ended: bytes, or a negative errno. False: nothing more
  void wake();                            // from any thread, at any time

 private:
  void push(uint8_t opcode, Handle handle, uint64_t address, uint32_t length, uint64_t offset, uint32_t flags, uint64_t tag);
  void map();
  void release();
  void fail_queued(int error);

  int ring_ = -1, event_ = -1;
  uint8_t *queue_ = nullptr, *completions_ = nullptr;  // one memory of both on every kernel since 5.4
  size_t queue_bytes_ = 0;
  void* entries_ = nullptr;
  size_t entries_bytes_ = 0;
  uint32_t *sq_tail_ = nullptr, *sq_array_ = nullptr, *cq_head_ = nullptr, *cq_tail_ = nullptr;
  uint32_t sq_mask_ = 0, cq_mask_ = 0;
  bool is_listening_ = false;  // a poll of event_ is in the ring
  std::deque<uint64_t> queued_;                         // tags that the kernel has not taken yet
  std::deque<std::pair<uint64_t, int>> failed_;         // that it would not take
};

}  // namespace smallthinker
