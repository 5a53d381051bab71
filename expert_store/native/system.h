// The system calls behind StoreFile, one meaning each on every operating system. Faults are told as in errno.
#pragma once

#include <cstdint>
#include <string>

#include "store_file.h"

namespace smallthinker {
namespace os {

#ifdef _WIN32
const Handle kNone = reinterpret_cast<Handle>(static_cast<intptr_t>(-1));
#else
constexpr Handle kNone = -1;
#endif

// random: through the page cache, without reading ahead; none: past it.
enum class Caching { random, none };

int last_error();                          // of the last call below on this thread, as errno numbers it
bool means_no_direct_reads(int error);     // rather than a fault of the file
Handle open_file(const std::string& path, Caching caching);  // kNone: see last_error
void close_file(Handle handle);
int64_t file_bytes(Handle handle);         // -1: see last_error
int64_t read_at(Handle handle, uint8_t* into, int64_t bytes, int64_t offset);  // may be short; -1: see last_error

// Whether the page cache holds all of it, so that reading needs no disk and brings in no page. False where it can't be
// told: before Linux 6.5, and on Windows and macOS.
bool is_cached(Handle handle, int64_t offset, int64_t bytes);
// Take these bytes out of the page cache; ask for them to be read into it. Nothing happens outside Linux.
void drop_cached(Handle handle, int64_t offset, int64_t bytes);
void will_need(Handle handle, int64_t offset, int64_t bytes);

// Ask for huge pages in this memory, which starts on one. Nothing happens outside Linux.
void want_huge_pages(void* start, int64_t bytes);

// A map of these bytes of a file. One for each read: in a map of the whole file, a fault maps its neighbours' pages too,
// which the reader of those can't drop from the page cache then.
struct Window {
  Window(Handle handle, int64_t offset, int64_t bytes);  // data is nullptr: see last_error
  ~Window();
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;
  int populate() const;  // bring the pages into memory; 0, or an errno

  const uint8_t* data = nullptr;
  void* start = nullptr;
  int64_t length;
};

// Signals are for Python's main thread: while one of these lives, threads that are started take none.
class NoSignals {
 public:
  NoSignals();
  ~NoSignals();
  NoSignals(const NoSignals&) = delete;
  NoSignals& operator=(const NoSignals&) = delete;

 private:
  void* saved_ = nullptr;
};

}  // namespace os
}  // namespace smallthinker
