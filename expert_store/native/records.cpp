#include "records.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "store_file.h"

namespace smallthinker {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument(what); }

void check_piece(int64_t number, const char* name, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return;
  fail("piece " + std::to_string(number) + ": " + name + ": expected " + std::to_string(least) + " to " +
       std::to_string(most) + ", found " + std::to_string(value));
}

}  // namespace

Records::Records(std::vector<Piece> pieces, std::vector<int64_t> starts, const std::vector<int64_t>& file_bytes,
                 int64_t record_bytes, int64_t chunk_bytes)
    : pieces_(std::move(pieces)), starts_(std::move(starts)), chunk_bytes_(chunk_bytes) {
  check(file_bytes, record_bytes);
}

void Records::check(const std::vector<int64_t>& file_bytes, int64_t record_bytes) const {
  const int64_t num_pieces = int64_t(pieces_.size());
  if (starts_.size() < 2 || starts_.front() != 0 || starts_.back() != num_pieces) {
    fail("starts: expected 0 to the number of pieces, " + std::to_string(num_pieces));
  }
  for (size_t i = 1; i < starts_.size(); ++i) {
    if (starts_[i] <= starts_[i - 1]) fail("starts: expected at least one piece for each record");
  }
  for (int64_t i = 0; i < num_pieces; ++i) {
    const Piece& piece = pieces_[size_t(i)];
    check_piece(i, "file", piece.file, 0, int64_t(file_bytes.size()) - 1);
    const int64_t end = file_bytes[size_t(piece.file)];
    check_piece(i, "offset", piece.offset, 0, end);
    check_piece(i, "bytes", piece.bytes, 1, std::min(end - piece.offset, int64_t{1} << 31));
  }
  if (chunk_bytes_ == kWholePieces) return;
  for (size_t record = 0; record + 1 < starts_.size(); ++record) {
    int64_t filled = 0;
    for (int64_t i = starts_[record]; i < starts_[record + 1]; ++i) {
      const Piece& piece = pieces_[size_t(i)];
      check_piece(i, "place in the slot", piece.what, filled, filled);
      if (piece.offset % kAlign != 0 || piece.bytes % kAlign != 0) {
        fail("piece " + std::to_string(i) + ": expected offset and bytes in steps of " + std::to_string(kAlign));
      }
      filled += piece.bytes;
    }
    if (filled != record_bytes) {
      fail("record " + std::to_string(record) + ": expected " + std::to_string(record_bytes) + " bytes, found " +
           std::to_string(filled));
    }
  }
}

void Records::cover(const std::vector<int64_t>& sum_starts) {
  const int64_t num_pieces = int64_t(pieces_.size());
  if (sum_starts.empty() || sum_starts.front() != 0 || sum_starts.back() != num_pieces) {
    fail("sum_starts: expected 0 to the number of pieces, " + std::to_string(num_pieces));
  }
  size_t record = 0;
  for (size_t sum = 0; sum + 1 < sum_starts.size(); ++sum) {
    const int64_t begin = sum_starts[sum], end = sum_starts[sum + 1];
    if (begin == starts_[record + 1]) ++record;
    if (end <= begin || end > starts_[record + 1]) fail("sum_starts: expected at least one piece each, of one record");
    int64_t behind = 0;
    for (int64_t i = end; i-- > begin;) {
      pieces_[size_t(i)].sum = int64_t(sum);
      pieces_[size_t(i)].behind = behind;
      behind += pieces_[size_t(i)].bytes;
    }
  }
}

std::pair<int64_t, int64_t> Records::sums(int64_t record) const {
  return {pieces_[size_t(starts_[size_t(record)])].sum, pieces_[size_t(starts_[size_t(record) + 1] - 1)].sum + 1};
}

int64_t Records::max_piece_bytes() const {
  int64_t most = 0;
  for (const Piece& piece : pieces_) most = std::max(most, piece.bytes);
  return most;
}

Piece Records::chunk(int64_t record, int64_t number) const {
  for (int64_t i = starts_[size_t(record)]; i < starts_[size_t(record) + 1]; ++i) {
    const Piece& piece = pieces_[size_t(i)];
    const int64_t chunks = (piece.bytes - 1) / chunk_bytes_ + 1;
    if (number < chunks) {
      const int64_t begin = number == 0 ? 0 : number * chunk_bytes_;
      const int64_t bytes = std::min(chunk_bytes_, piece.bytes - begin);
      const int64_t behind = piece.behind + piece.bytes - begin - bytes;
      return {piece.file, piece.offset + begin, bytes, piece.what + begin, piece.sum, behind};
    }
    number -= chunks;
  }
  return {0, 0, 0, 0};
}

}  // namespace smallthinker
