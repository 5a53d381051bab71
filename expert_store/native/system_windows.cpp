// Windows. Run under wine alone, by tests/run_wine.sh.
#ifdef _WIN32
#define NOMINMAX
#include <windows.h>

#include <cerrno>
#include <filesystem>

#include "system.h"

namespace smallthinker {
namespace os {
namespace {

int to_errno(DWORD error) {
  switch (error) {
    case ERROR_FILE_NOT_FOUND:
    case ERROR_PATH_NOT_FOUND: return ENOENT;
    case ERROR_ACCESS_DENIED:
    case ERROR_SHARING_VIOLATION: return EACCES;
    case ERROR_INVALID_PARAMETER: return EINVAL;
    case ERROR_NOT_SUPPORTED: return ENOTSUP;
    case ERROR_NOT_ENOUGH_MEMORY: return ENOMEM;
    default: return EIO;
  }
}

// Reads of several threads on one handle run side by side only if each brings an event of its own.
struct Event {
  Event() : handle(CreateEventW(nullptr, TRUE, FALSE, nullptr)) {}
  ~Event() { CloseHandle(handle); }
  HANDLE handle;
};

}  // namespace

int last_error() { return to_errno(GetLastError()); }

bool means_no_direct_reads(int error) { return error == EINVAL || error == ENOTSUP; }

Handle open_file(const std::string& path, Caching caching) {
  const DWORD flags = FILE_FLAG_OVERLAPPED | (caching == Caching::none ? FILE_FLAG_NO_BUFFERING : FILE_FLAG_RANDOM_ACCESS);
  return CreateFileW(std::filesystem::u8path(path).c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, nullptr,
                     OPEN_EXISTING, flags, nullptr);
}

void close_file(Handle handle) { CloseHandle(handle); }

int64_t file_bytes(Handle handle) {
  LARGE_INTEGER size;
  return GetFileSizeEx(handle, &size) ? size.QuadPart : -1;
}

int64_t read_at(Handle handle, uint8_t* into, int64_t bytes, int64_t offset) {
  static thread_local Event event;
  OVERLAPPED at{};
  at.Offset = static_cast<DWORD>(offset);
  at.OffsetHigh = static_cast<DWORD>(offset >> 32);
  at.hEvent = event.handle;
  DWORD count = 0;
  if (!ReadFile(handle, into, static_cast<DWORD>(bytes), nullptr, &at) && GetLastError() != ERROR_IO_PENDING) {
    return GetLastError() == ERROR_HANDLE_EOF ? 0 : -1;
  }
  if (!GetOverlappedResult(handle, &at, &count, TRUE)) return GetLastError() == ERROR_HANDLE_EOF ? 0 : -1;
  return count;
}

bool is_cached(Handle, int64_t, int64_t) { return false; }
void drop_cached(Handle, int64_t, int64_t) {}
void will_need(Handle, int64_t, int64_t) {}

void want_huge_pages(void*, int64_t) {}

Window::Window(Handle handle, int64_t offset, int64_t bytes) : length(bytes) {
  constexpr int64_t granularity = 64 << 10;
  const int64_t before = offset % granularity, first = offset - before;
  const HANDLE mapping = CreateFileMappingW(handle, nullptr, PAGE_READONLY, 0, 0, nullptr);
  if (mapping == nullptr) return;
  start = MapViewOfFile(mapping, FILE_MAP_READ, static_cast<DWORD>(first >> 32), static_cast<DWORD>(first),
                        static_cast<SIZE_T>(before + bytes));
  CloseHandle(mapping);  // the view keeps it
  if (start != nullptr) data = static_cast<const uint8_t*>(start) + before;
}

Window::~Window() {
  if (start != nullptr) UnmapViewOfFile(start);
}

int Window::populate() const { return 0; }  // a mapped file can't be cut short here; the copy touches the pages

NoSignals::NoSignals() = default;
NoSignals::~NoSignals() = default;

}  // namespace os
}  // namespace smallthinker
#endif
