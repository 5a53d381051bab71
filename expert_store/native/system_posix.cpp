// Linux and macOS. The macOS lines (F_NOCACHE, no page cache calls) have been compiled nowhere and run nowhere yet.
#ifndef _WIN32
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/syscall.h>
#endif

#include <cerrno>

#include "system.h"

namespace smallthinker {
namespace os {
namespace {

int64_t page_bytes() {
  static const int64_t page = sysconf(_SC_PAGESIZE);
  return page;
}

#ifdef __linux__
constexpr long kCachestat = 451;  // the same number on every architecture
constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ, which older headers lack
#endif

}  // namespace

int last_error() { return errno; }

bool means_no_direct_reads(int error) { return error == EINVAL || error == ENOTSUP; }

Handle open_file(const std::string& path, Caching caching) {
  int flags = O_RDONLY | O_CLOEXEC;
#ifdef O_DIRECT
  if (caching == Caching::none) flags |= O_DIRECT;
#endif
  const int fd = open(path.c_str(), flags);
#ifdef F_NOCACHE
  if (fd >= 0 && caching == Caching::none) fcntl(fd, F_NOCACHE, 1);
#endif
#ifdef __linux__
  if (fd >= 0 && caching == Caching::random) posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
#endif
  return fd;
}

void close_file(Handle handle) { ::close(handle); }

int64_t file_bytes(Handle handle) {
  struct stat stat;
  return fstat(handle, &stat) == 0 ? static_cast<int64_t>(stat.st_size) : -1;
}

int64_t read_at(Handle handle, uint8_t* into, int64_t bytes, int64_t offset) {
  for (;;) {
    const ssize_t count = pread(handle, into, static_cast<size_t>(bytes), static_cast<off_t>(offset));
    if (count >= 0 || errno != EINTR) return count;
  }
}

// Not by a read that mustn't wait (RWF_NOWAIT): that starts to read ahead what isn't there.
bool is_cached([[maybe_unused]] Handle handle, [[maybe_unused]] int64_t offset, [[maybe_unused]] int64_t bytes) {
#ifdef __linux__
  struct {
    uint64_t offset, bytes;
  } range{static_cast<uint64_t>(offset), static_cast<uint64_t>(bytes)};
  struct {
    uint64_t cached, dirty, writeback, evicted, recently_evicted;
  } pages{};
  if (syscall(kCachestat, handle, &range, &pages, 0) != 0) return false;
  const int64_t page = page_bytes();
  return static_cast<int64_t>(pages.cached) > (offset + bytes - 1) / page - offset / page;
#else
  return false;
#endif
}

void drop_cached([[maybe_unused]] Handle handle, [[maybe_unused]] int64_t offset, [[maybe_unused]] int64_t bytes) {
#ifdef __linux__
  // To whole pages outwards: the kernel keeps a page of which a part is asked for. A GGUF file's slices lie anywhere, and
  // two such pages of each were 13 MiB after some hundred experts.
  const int64_t page = page_bytes(), first = offset / page * page;
  posix_fadvise(handle, first, (offset + bytes + page - 1) / page * page - first, POSIX_FADV_DONTNEED);
#endif
}

void will_need([[maybe_unused]] Handle handle, [[maybe_unused]] int64_t offset, [[maybe_unused]] int64_t bytes) {
#ifdef __linux__
  posix_fadvise(handle, offset, bytes, POSIX_FADV_WILLNEED);
#endif
}

void want_huge_pages([[maybe_unused]] void* start, [[maybe_unused]] int64_t bytes) {
#ifdef __linux__
  madvise(start, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
}

Window::Window(Handle handle, int64_t offset, int64_t bytes) : length(bytes + offset % page_bytes()) {
  const int64_t before = offset % page_bytes();
  void* map = mmap(nullptr, static_cast<size_t>(length), PROT_READ, MAP_SHARED, handle, static_cast<off_t>(offset - before));
  if (map == MAP_FAILED) return;
  madvise(map, static_cast<size_t>(length), MADV_RANDOM);  // a fault must not bring in what nobody drops again
  start = map;
  data = static_cast<const uint8_t*>(map) + before;
}

Window::~Window() {
  if (start != nullptr) munmap(start, static_cast<size_t>(length));
}

int Window::populate() const {
#ifdef __linux__
  for (;;) {
    if (madvise(start, static_cast<size_t>(length), kPopulateRead) == 0) return 0;
    if (errno == EINVAL) break;  // before Linux 5.14
    if (errno != EINTR && errno != EAGAIN) return errno;
  }
#endif
  const volatile uint8_t* first = static_cast<const uint8_t*>(start);
  for (int64_t i = 0; i < length; i += page_bytes()) static_cast<void>(first[i]);
  return 0;
}

NoSignals::NoSignals() {
  sigset_t all;
  sigfillset(&all);
  for (const int own : {SIGBUS, SIGFPE, SIGILL, SIGSEGV}) sigdelset(&all, own);  // a thread's own faults
  auto* saved = new sigset_t;
  pthread_sigmask(SIG_SETMASK, &all, saved);
  saved_ = saved;
}

NoSignals::~NoSignals() {
  auto* saved = static_cast<sigset_t*>(saved_);
  pthread_sigmask(SIG_SETMASK, saved, nullptr);
  delete saved;
}

}  // namespace os
}  // namespace smallthinker
#endif
