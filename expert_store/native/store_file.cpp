#include "store_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>

#include "system.h"

namespace smallthinker {
namespace {

// A request to read ahead is cut to what the disk takes at once; this much every disk takes.
constexpr int64_t kReadAheadBytes = 128 << 10;

Fault open_fault(int error) { return {-1, "cannot open: " + error_text(error)}; }

}  // namespace

Kind parse_kind(const std::string& name) {
  for (const Kind kind : {Kind::direct, Kind::mmap, Kind::buffered}) {
    if (name == kind_name(kind)) return kind;
  }
  throw std::invalid_argument("kind: expected direct, mmap or buffered, found '" + name + "'");
}

const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::direct: return "direct";
    case Kind::mmap: return "mmap";
    default: return "buffered";
  }
}

// as errno numbers it, which are other numbers than the system's own on Windows
std::string error_text(int error) { return std::generic_category().message(error); }

StoreFile::StoreFile(const std::string& path, int64_t file_bytes, Kind kind)
    : file_bytes_(file_bytes), kind_(kind), buffered_(os::kNone), direct_(os::kNone) {
  try {
    buffered_ = os::open_file(path, os::Caching::random);
    if (buffered_ == os::kNone) throw open_fault(os::last_error());
    if (const auto fault = check_size(0)) throw *fault;
    if (kind == Kind::direct) open_direct(path);
  } catch (...) {
    close();
    throw;
  }
}

StoreFile::~StoreFile() { close(); }

void StoreFile::close() {
  for (Handle* handle : {&buffered_, &direct_}) {
    if (*handle != os::kNone) os::close_file(*handle);
    *handle = os::kNone;
  }
}

void StoreFile::open_direct(const std::string& path) {
  direct_ = os::open_file(path, os::Caching::none);
  if (direct_ == os::kNone) {
    const int error = os::last_error();
    if (!os::means_no_direct_reads(error)) throw open_fault(error);
    throw Fault{-1, "this system or file system has no direct reads; use the buffered reader"};
  }
  const AlignedBytes block = aligned_bytes(kAlign);
  if (os::read_at(direct_, block.get(), kAlign, 0) < 0) {
    throw Fault{-1, "direct reads refused (" + error_text(os::last_error()) + "); use the buffered reader"};
  }
}

std::optional<Fault> StoreFile::read(int64_t offset, int64_t bytes, uint8_t* into) const {
  if (kind_ == Kind::mmap) return read_mapped(offset, bytes, into);
  if (kind_ == Kind::buffered) return read_buffered(offset, bytes, into);
  // What the page cache holds anyway, say after a copy or a conversion, costs no disk. It is copied out of a map: an
  // ordinary read that meets a mark of an earlier read-ahead goes on reading ahead, advice or not, and nobody would drop
  // those pages again.
  if (is_cached(offset, bytes) && !read_mapped(offset, bytes, into)) return std::nullopt;
  return read_handle(direct_, offset, bytes, into);
}

std::optional<Fault> StoreFile::read_again(int64_t offset, int64_t bytes, uint8_t* into) const {
  os::drop_cached(buffered_, offset, whole_blocks(bytes));
  return kind_ == Kind::direct ? read_handle(direct_, offset, bytes, into) : read(offset, bytes, into);
}

bool StoreFile::is_cached(int64_t offset, int64_t bytes) const { return os::is_cached(buffered_, offset, bytes); }

std::optional<Fault> StoreFile::read_handle(Handle handle, int64_t offset, int64_t bytes, uint8_t* into) const {
  const int64_t room = whole_blocks(bytes);
  int64_t done = 0;
  while (done < bytes) {
    int64_t count = os::read_at(handle, into + done, room - done, offset + done);
    if (count < 0) return Fault{offset + done, "cannot read: " + error_text(os::last_error())};
    if (done + count >= bytes) return std::nullopt;
    // A short read may end anywhere, the next one must start on a block: read the broken block again.
    count -= count % kAlign;
    if (count == 0) return end_of_file(offset + done, bytes - done);
    done += count;
  }
  return std::nullopt;
}

std::optional<Fault> StoreFile::read_buffered(int64_t offset, int64_t bytes, uint8_t* into) const {
  const bool was_cached = is_cached(offset, bytes);
  const auto fault = read_handle(buffered_, offset, bytes, into);
  if (!was_cached) os::drop_cached(buffered_, offset, bytes);
  return fault;
}

std::optional<Fault> StoreFile::read_mapped(int64_t offset, int64_t bytes, uint8_t* into) const {
  // A touch behind the end of a file that was cut short kills the process (SIGBUS), so look before, and have the
  // kernel bring the pages in, which says so instead. Only a cut between that and the copy remains: use `buffered`
  // where others may shorten the file.
  if (const auto fault = check_size(offset)) return fault;
  const bool was_cached = is_cached(offset, bytes);
  if (!was_cached) {
    for (int64_t at = 0; at < bytes; at += kReadAheadBytes) {
      os::will_need(buffered_, offset + at, std::min(kReadAheadBytes, bytes - at));
    }
  }
  int error;
  {
    const os::Window window(buffered_, offset, bytes);
    error = window.data == nullptr ? os::last_error() : window.populate();
    if (error == 0) std::memcpy(into, window.data, bytes);
  }  // first the map goes: mapped pages can't leave the cache
  if (!was_cached) os::drop_cached(buffered_, offset, bytes);
  if (error == 0) return std::nullopt;
  if (const auto fault = check_size(offset)) return fault;
  // the kernel says "bad address" for every page that it could not bring in
  return Fault{offset, "cannot read: " + error_text(error == EFAULT ? EIO : error)};
}

std::optional<Fault> StoreFile::check_size(int64_t offset) const {
  const int64_t found = os::file_bytes(buffered_);
  if (found == file_bytes_) return std::nullopt;
  if (found < 0) return Fault{offset, "cannot read its size: " + error_text(os::last_error())};
  return Fault{offset, "expected a file of " + std::to_string(file_bytes_) + " bytes, found " + std::to_string(found) +
                           ": it changed since opening"};
}

Fault StoreFile::end_of_file(int64_t offset, int64_t missing) const {
  if (auto fault = check_size(offset)) return *fault;
  return {offset, "expected " + std::to_string(missing) + " more bytes, found the end of the file"};
}

}  // namespace smallthinker
