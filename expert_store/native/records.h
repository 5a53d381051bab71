// Where records lie in files: in pieces, which are read in chunks. A table, checked once.
#pragma once

#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace smallthinker {

// `what`: of a piece that goes into its slot as it lies, where it goes; else what the stage is told of it. `sum`: which
// checksum it is a part of, if any, and how many bytes of that come behind it.
struct Piece {
  int64_t file, offset, bytes, what;
  int64_t sum = -1, behind = 0;
};

// Throws std::invalid_argument for what lies outside its files or, where there is no stage, isn't `record_bytes` in order.
class Records {
 public:
  static constexpr int64_t kWholePieces = std::numeric_limits<int64_t>::max();

  // starts: each record's first piece, and behind the last one's the end. chunk_bytes: how pieces are cut; a stage gets
  // whole ones.
  Records(std::vector<Piece> pieces, std::vector<int64_t> starts, const std::vector<int64_t>& file_bytes,
          int64_t record_bytes, int64_t chunk_bytes);

  // Each checksum is of some pieces of one record; sum_starts: of each the first, and behind the last one's the end.
  void cover(const std::vector<int64_t>& sum_starts);

  int64_t count() const { return int64_t(starts_.size()) - 1; }
  const std::vector<Piece>& pieces() const { return pieces_; }
  int64_t max_piece_bytes() const;
  // A record's chunk; of no bytes behind the last one.
  Piece chunk(int64_t record, int64_t number) const;
  // The checksums of a record, from the first to behind the last.
  std::pair<int64_t, int64_t> sums(int64_t record) const;

 private:
  void check(const std::vector<int64_t>& file_bytes, int64_t record_bytes) const;

  std::vector<Piece> pieces_;
  std::vector<int64_t> starts_;
  int64_t chunk_bytes_;
};

}  // namespace smallthinker
