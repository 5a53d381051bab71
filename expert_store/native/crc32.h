// CRC-32, that of zlib and PNG, as fast as memory can be read where the processor helps, and of parts in any order.
#pragma once

#include <cstdint>

namespace smallthinker {

// Of these bytes behind others of which `crc` is the checksum.
uint32_t crc32(const uint8_t* data, int64_t bytes, uint32_t crc = 0);

// What a part's checksum contributes to the whole's, when so many bytes come behind the part: the whole's is the XOR of
// all parts'.
uint32_t crc32_before(uint32_t crc, int64_t bytes_behind);

// By tables alone, as on a processor that has no help.
uint32_t crc32_by_tables(const uint8_t* data, int64_t bytes, uint32_t crc = 0);

}  // namespace smallthinker
