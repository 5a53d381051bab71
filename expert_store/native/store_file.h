// A store's file, opened for reading pieces of records by one of several ways. Owns the descriptors, and
// what a read's fault is called. Knows nothing about order or slots.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <string>

namespace smallthinker {

constexpr int64_t kAlign = 4096;  // what direct reads need of offset, length and address, on every common disk

constexpr int64_t whole_blocks(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

enum class Kind { direct, mmap, buffered };

Kind parse_kind(const std::string& name);  // throws std::invalid_argument
const char* kind_name(Kind kind);

struct FreeAligned {
  void operator()(uint8_t* p) const { ::operator delete[](p, std::align_val_t{kAlign}); }
};
using AlignedBytes = std::unique_ptr<uint8_t[], FreeAligned>;
inline AlignedBytes aligned_bytes(int64_t bytes) {
  return AlignedBytes(new (std::align_val_t{kAlign}) uint8_t[static_cast<size_t>(bytes)]);
}

// For what is read again and again: in huge pages where the system has some, which a disk takes in fewer requests.
constexpr int64_t kHugePage = 2 << 20;
struct FreeHuge {
  void operator()(uint8_t* p) const { ::operator delete[](p, std::align_val_t{kHugePage}); }
};
using HugeBytes = std::unique_ptr<uint8_t[], FreeHuge>;

// Why bytes could not be had. `offset` is of the file, negative where the fault is no byte's but the whole file's; `file`:
// which of several.
struct Fault {
  int64_t offset;
  std::string what;
  int64_t file = 0;
};

#ifdef _WIN32
using Handle = void*;
#else
using Handle = int;
#endif

// Every read may come from any thread. None leaves a page in the page cache that was not there before.
class StoreFile {
 public:
  // Throws Fault: can't open, not `file_bytes` long, or this way of reading can't be had here. A first block is read to
  // find that out: some file systems open for direct reads and refuse the first one.
  StoreFile(const std::string& path, int64_t file_bytes, Kind kind);
  ~StoreFile();
  StoreFile(const StoreFile&) = delete;
  StoreFile& operator=(const StoreFile&) = delete;

  Kind kind() const { return kind_; }

  // Brings all `bytes`, or says why not. Offset and address are multiples of kAlign; there is room for whole ones of them,
  // in which anything may lie afterwards.
  std::optional<Fault> read(int64_t offset, int64_t bytes, uint8_t* into) const;
  // The same from the disk itself, whatever the page cache has.
  std::optional<Fault> read_again(int64_t offset, int64_t bytes, uint8_t* into) const;

 private:
  // What a read that brought nothing at `offset` means, with `missing` bytes to come.
  Fault end_of_file(int64_t offset, int64_t missing) const;
  std::optional<Fault> read_handle(Handle handle, int64_t offset, int64_t bytes, uint8_t* into) const;
  std::optional<Fault> read_buffered(int64_t offset, int64_t bytes, uint8_t* into) const;
  std::optional<Fault> read_mapped(int64_t offset, int64_t bytes, uint8_t* into) const;
  std::optional<Fault> check_size(int64_t offset) const;
  bool is_cached(int64_t offset, int64_t bytes) const;
  void open_direct(const std::string& path);
  void close();

  int64_t file_bytes_;
  Kind kind_;
  Handle buffered_, direct_;
};

// A system error's number in words.
std::string error_text(int error);

}  // namespace smallthinker
