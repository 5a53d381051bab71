// Memory that ends at a page which can't be read, on each operating system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#ifdef _WIN32
#define NOMINMAX
#include <windows.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace smallthinker {
namespace pages {

#ifdef _WIN32
constexpr size_t kPage = 4096;
#else
inline const size_t kPage = static_cast<size_t>(sysconf(_SC_PAGESIZE));
#endif
inline size_t readable(size_t bytes) { return (bytes / kPage + 1) * kPage; }

// The end of at least so many bytes, zeros.
inline uint8_t* before_unreadable(size_t bytes) {
  const size_t room = readable(bytes);
#ifdef _WIN32
  void* start = VirtualAlloc(nullptr, room + kPage, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
  if (start == nullptr) throw std::bad_alloc();
  uint8_t* end = static_cast<uint8_t*>(start) + room;
  DWORD before;
  VirtualProtect(end, kPage, PAGE_NOACCESS, &before);
#else
  void* start = mmap(nullptr, room + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) throw std::bad_alloc();
  uint8_t* end = static_cast<uint8_t*>(start) + room;
  mprotect(end, kPage, PROT_NONE);
#endif
  return end;
}

inline void give_back(uint8_t* end, size_t bytes) {
#ifdef _WIN32
  VirtualFree(end - readable(bytes), 0, MEM_RELEASE);
#else
  munmap(end - readable(bytes), readable(bytes) + kPage);
#endif
}

}  // namespace pages
}  // namespace smallthinker
