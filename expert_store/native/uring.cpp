#include "uring.h"

#if defined(__linux__) && __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <tuple>

namespace smallthinker {
namespace {

constexpr uint64_t kWake = ~uint64_t{0};
constexpr long kSetup = 425, kEnter = 426;  // the same numbers on every architecture
#ifndef IORING_SETUP_COOP_TASKRUN
#define IORING_SETUP_COOP_TASKRUN (1U << 8)
#endif

template <class T>
T* at(uint8_t* base, uint32_t offset) {
  return reinterpret_cast<T*>(base + offset);
}

Fault refused(int error) {
  return {-1, "this system refuses io_uring (" + error_text(error) + "); use the direct reader"};
}

int setup(unsigned entries, io_uring_params& params) {
  // Since 5.19 a completion need not interrupt the thread, which waits for it anyway.
  for (const unsigned flags : {unsigned{IORING_SETUP_COOP_TASKRUN}, 0U}) {
    std::memset(&params, 0, sizeof params);
    params.flags = flags;
    const long fd = syscall(kSetup, entries, &params);
    if (fd >= 0) return static_cast<int>(fd);
    if (errno != EINVAL) break;
  }
  throw refused(errno);
}

}  // namespace

Ring::Ring(int reads) {
  try {
    io_uring_params params;
    ring_ = setup(static_cast<unsigned>(reads) + 1, params);  // and the poll that listens for `wake`
    // without it, before 5.4, the queues would be two maps; IORING_OP_READ came later still
    if ((params.features & IORING_FEAT_SINGLE_MMAP) == 0) throw refused(ENOSYS);
    queue_bytes_ = std::max<size_t>(params.sq_off.array + params.sq_entries * sizeof(uint32_t),
                                    params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe));
    entries_bytes_ = params.sq_entries * sizeof(io_uring_sqe);
    map();
    sq_tail_ = at<uint32_t>(queue_, params.sq_off.tail);
    sq_mask_ = *at<uint32_t>(queue_, params.sq_off.ring_mask);
    sq_array_ = at<uint32_t>(queue_, params.sq_off.array);
    cq_head_ = at<uint32_t>(queue_, params.cq_off.head);
    cq_tail_ = at<uint32_t>(queue_, params.cq_off.tail);
    cq_mask_ = *at<uint32_t>(queue_, params.cq_off.ring_mask);
    completions_ = queue_ + params.cq_off.cqes;
    event_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (event_ < 0) throw refused(errno);
  } catch (...) {
    release();
    throw;
  }
}

Ring::~Ring() { release(); }

void Ring::map() {
  const auto shared = [this](size_t bytes, off_t what) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring_, what);
    return memory == MAP_FAILED ? nullptr : memory;
  };
  queue_ = static_cast<uint8_t*>(shared(queue_bytes_, static_cast<off_t>(IORING_OFF_SQ_RING)));
  entries_ = shared(entries_bytes_, static_cast<off_t>(IORING_OFF_SQES));
  if (queue_ == nullptr || entries_ == nullptr) throw refused(errno);
}

void Ring::release() {
  if (queue_ != nullptr) munmap(queue_, queue_bytes_);
  if (entries_ != nullptr) munmap(entries_, entries_bytes_);
  if (ring_ >= 0) close(ring_);
  if (event_ >= 0) close(event_);
}

void Ring::read(Handle handle, uint8_t* into, int64_t bytes, int64_t offset, uint64_t tag) {
  push(IORING_OP_READ, handle, reinterpret_cast<uintptr_t>(into), static_cast<uint32_t>(bytes),
       static_cast<uint64_t>(offset), 0, tag);
}

void Ring::push(uint8_t opcode, Handle handle, uint64_t address, uint32_t length, uint64_t offset, uint32_t flags,
                uint64_t tag) {
  const uint32_t tail = *sq_tail_;  // only this thread writes it
  auto& entry = static_cast<io_uring_sqe*>(entries_)[tail & sq_mask_];
  std::memset(&entry, 0, sizeof entry);
  entry.opcode = opcode;
  entry.fd = handle;
  entry.addr = address;
  entry.len = length;
  entry.off = offset;
  entry.poll32_events = flags;
  entry.user_data = tag;
  sq_array_[tail & sq_mask_] = tail & sq_mask_;
  __atomic_store_n(sq_tail_, tail + 1, __ATOMIC_RELEASE);
  queued_.push_back(tag);
}

void Ring::submit_and_wait() {
  if (!is_listening_) {
    push(IORING_OP_POLL_ADD, event_, 0, 0, 0, POLLIN, kWake);
    is_listening_ = true;
  }
  const bool may_sleep = failed_.empty();
  const long count = syscall(kEnter, ring_, queued_.size(), may_sleep ? 1 : 0, IORING_ENTER_GETEVENTS, nullptr, 0);
  if (count >= 0) {
    queued_.erase(queued_.begin(), queued_.begin() + count);
  } else if (errno != EINTR && errno != EAGAIN && errno != EBUSY) {
    fail_queued(errno);
  }
}

// What the kernel has not taken, it has not touched.
void Ring::fail_queued(int error) {
  __atomic_store_n(sq_tail_, *sq_tail_ - static_cast<uint32_t>(queued_.size()), __ATOMIC_RELEASE);
  for (const uint64_t tag : queued_) {
    if (tag == kWake) {
      is_listening_ = false;
    } else {
      failed_.emplace_back(tag, -error);
    }
  }
  queued_.clear();
}

bool Ring::next(uint64_t& tag, int& result) {
  if (!failed_.empty()) {
    std::tie(tag, result) = failed_.front();
    failed_.pop_front();
    return true;
  }
  for (;;) {
    const uint32_t head = *cq_head_;  // only this thread writes it
    if (head == __atomic_load_n(cq_tail_, __ATOMIC_ACQUIRE)) return false;
    const auto& completion = reinterpret_cast<const io_uring_cqe*>(completions_)[head & cq_mask_];
    tag = completion.user_data;
    result = completion.res;
    __atomic_store_n(cq_head_, head + 1, __ATOMIC_RELEASE);
    if (tag != kWake) return true;
    uint64_t count;
    static_cast<void>(::read(event_, &count, sizeof count));
    is_listening_ = false;
  }
}

void Ring::wake() {
  const uint64_t one = 1;
  static_cast<void>(::write(event_, &one, sizeof one));
}

}  // namespace smallthinker

#else

namespace smallthinker {

Ring::Ring(int) { throw Fault{-1, "this system has no io_uring; use the direct reader"}; }
Ring::~Ring() = default;
void Ring::read(Handle, uint8_t*, int64_t, int64_t, uint64_t) {}
void Ring::submit_and_wait() {}
bool Ring::next(uint64_t&, int&) { return false; }
void Ring::wake() {}

}  // namespace smallthinker
#endif
