// The reading code without Python, for systems where no Python runs here: each reader and the queue over files that this
// program writes, moves, cuts short and damages. reads FOLDER prints what was tried and ends with 0, or says what is wrong.
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <random>
#include <system_error>

#include "crc32.h"
#include "read_queue.h"

namespace smallthinker {
namespace {

namespace fs = std::filesystem;
constexpr int64_t kRecord = 3 * kAlign, kStride = 4 * kAlign, kRecords = 40, kSlots = 6;
constexpr int64_t kFileBytes = kRecords * kStride + 17;

void expect(bool is_right, const std::string& what) {
  if (is_right) return;
  std::cerr << "wrong: " << what << std::endl;
  std::exit(1);
}

std::vector<uint8_t> some_bytes() {
  std::mt19937 random(1);
  std::vector<uint8_t> bytes(static_cast<size_t>(kFileBytes));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

void write(const fs::path& path, const std::vector<uint8_t>& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  expect(file.good(), "the file can't be written");
}

Fault fault_of(const std::string& path, int64_t bytes, Kind kind) {
  try {
    const StoreFile file(path, bytes, kind);
  } catch (const Fault& fault) {
    return fault;
  }
  return {-1, "none"};
}

void expect_text(const Fault& fault, const std::string& text) {
  expect(fault.what.find(text) != std::string::npos, "expected '" + text + "', found '" + fault.what + "'");
}

std::unique_ptr<ReadQueue> queue_of(const std::string& path, Kind kind, uint8_t* slots, const std::vector<uint8_t>& right, int depth) {
  std::vector<Piece> pieces;
  std::vector<int64_t> starts{0}, sum_starts;
  std::vector<uint32_t> sums;
  for (int64_t record = 0; record < kRecords; ++record) {
    pieces.push_back({0, record * kStride, kRecord, 0, record, 0});
    starts.push_back(record + 1);
    sum_starts.push_back(record);
    sums.push_back(crc32(right.data() + record * kStride, kRecord));
  }
  sum_starts.push_back(kRecords);
  Records records(pieces, starts, {kFileBytes}, kRecord, kAlign * 2);
  records.cover(sum_starts);
  std::vector<std::unique_ptr<StoreFile>> files;
  files.push_back(std::make_unique<StoreFile>(path, kFileBytes, kind));
  return std::make_unique<ReadQueue>(std::move(files), std::move(records), slots, kSlots, kRecord, Limits{depth, 2},
                                     std::nullopt, std::nullopt, Checksums(sums, true));
}

// Every record into every slot in a drawn order, some as guesses that are taken back; `bad`: the record that must fail.
void read_all(const std::string& path, Kind kind, const std::vector<uint8_t>& right, int depth, int64_t bad) {
  const HugeBytes slots(new (std::align_val_t{kHugePage}) uint8_t[static_cast<size_t>(kSlots * kRecord)]);
  const auto queue = queue_of(path, kind, slots.get(), right, depth);
  std::mt19937 random(static_cast<unsigned>(depth));
  int64_t came = 0;
  for (int64_t next = 0; next < kRecords;) {
    int64_t under_way = 0;
    for (; under_way < kSlots && next < kRecords; ++under_way, ++next) queue->submit(next, under_way, random() % 3 == 0);
    while (under_way > 0) {
      for (const auto& read : queue->wait(std::chrono::seconds(60))) {
        --under_way;
        const bool is_same = std::memcmp(slots.get() + read->slot * kRecord, right.data() + read->record * kStride, kRecord) == 0;
        if (read->record == bad) {
          expect(read->fault.has_value(), "a damaged record came without a word");
        } else {
          expect(!read->fault && is_same, "a record: " + (read->fault ? read->fault->what : "other bytes"));
          ++came;
        }
      }
    }
  }
  expect(came == kRecords - (bad >= 0), "records are missing");
  for (int64_t slot = 0; slot < kSlots; ++slot) queue->submit(slot, slot, true);
  for (int64_t record = 0; record < kSlots; ++record) queue->cancel(record);
  queue->drain();
  queue->close();
}

void try_reader(const fs::path& folder, Kind kind) {
  const std::string name = kind_name(kind);
  const fs::path path = folder / fs::u8path("experts \xC3\xA9\xE2\x82\xAC.bin");
  const std::string utf8 = path.u8string();
  std::vector<uint8_t> right = some_bytes();
  write(path, right);
  for (const int depth : {1, 3, 16}) read_all(utf8, kind, right, depth, -1);

  std::vector<uint8_t> damaged = right;
  damaged[7 * kStride + 5000] ^= 4;
  write(path, damaged);
  read_all(utf8, kind, right, 4, 7);
  write(path, right);

  expect_text(fault_of((folder / "no such file").u8string(), 1, kind), std::generic_category().message(ENOENT));
  expect_text(fault_of(utf8, kFileBytes - 1, kind), "expected a file of " + std::to_string(kFileBytes - 1) + " bytes");
  expect(fault_of(folder.u8string(), 1, kind).what != "none", "a folder was opened as a file");

  // what was opened can be replaced and removed meanwhile, as a conversion does
  const StoreFile opened(utf8, kFileBytes, kind);
  fs::rename(path, folder / "moved");
  write(path, damaged);
  const AlignedBytes into = aligned_bytes(kStride);
  expect(!opened.read(7 * kStride, kStride, into.get()), "a moved file can't be read");
  expect(std::memcmp(into.get(), right.data() + 7 * kStride, kStride) == 0, "a moved file's bytes are another's");
  expect(!opened.read_again(39 * kStride, kStride, into.get()), "its end can't be read again");
  fs::remove(path);
  std::error_code unused;
  fs::resize_file(folder / "moved", kFileBytes / 2, unused);  // Windows refuses that while a map is open
  if (!unused) {
    const auto fault = opened.read(39 * kStride, kStride, into.get());
    expect(fault.has_value(), "a file that was cut short gave bytes");
    expect_text(*fault, "it changed since opening");
  }
  fs::remove(folder / "moved");
  std::cout << name << ": read, damaged, moved, replaced, cut" << (unused ? " (refused)" : "") << std::endl;
}

}  // namespace
}  // namespace smallthinker

int main(int count, char** arguments) {
  using namespace smallthinker;
  if (count != 2) return 2;
  const fs::path folder = fs::u8path(arguments[1]);
  fs::create_directories(folder);
  const std::vector<uint8_t> bytes = some_bytes();
  expect(crc32(bytes.data(), kFileBytes) == crc32_by_tables(bytes.data(), kFileBytes), "checksums differ");
  try {
    for (const Kind kind : {Kind::buffered, Kind::mmap, Kind::direct}) try_reader(folder, kind);
  } catch (const Fault& fault) {
    expect(false, fault.what);
  } catch (const std::exception& e) {
    expect(false, e.what());
  }
  return 0;
}
