#include "crc32.h"

#include <array>
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#define SMALLTHINKER_FOLDS 1
#include <emmintrin.h>
#include <wmmintrin.h>
#ifdef _MSC_VER
#include <intrin.h>
#define SMALLTHINKER_FOR(target)
#else
#include <cpuid.h>
#define SMALLTHINKER_FOR(name) __attribute__((target(name)))
#endif
#elif defined(__aarch64__) && !defined(_MSC_VER)
#define SMALLTHINKER_CRC_INSTRUCTION 1
#ifdef __linux__
#include <sys/auxv.h>
#endif
#endif

namespace smallthinker {
namespace {

// Bit 31 is the coefficient of x^0, as everywhere in this file.
constexpr uint32_t kPolynomial = 0xEDB88320;

constexpr uint32_t times_x(uint32_t a) { return a & 1 ? a >> 1 ^ kPolynomial : a >> 1; }

constexpr uint32_t times(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = uint32_t{1} << 31; bit != 0; bit >>= 1) {
    if (a & bit) product ^= b;
    b = times_x(b);
  }
  return product;
}

// x^n modulo the polynomial.
constexpr uint32_t power_of_x(uint64_t n) {
  uint32_t result = uint32_t{1} << 31, square = uint32_t{1} << 30;
  for (; n != 0; n >>= 1, square = times(square, square)) {
    if (n & 1) result = times(result, square);
  }
  return result;
}

using Tables = std::array<std::array<uint32_t, 256>, 8>;

// Of each byte, with 0 to 7 bytes behind it.
constexpr Tables make_tables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = times_x(crc);
    tables[0][byte] = crc;
  }
  for (uint32_t byte = 0; byte < 256; ++byte) {
    for (size_t i = 1; i < 8; ++i) tables[i][byte] = tables[i - 1][byte] >> 8 ^ tables[0][tables[i - 1][byte] & 255];
  }
  return tables;
}

constexpr Tables kTables = make_tables();

// The functions below neither begin nor end with the inversion that the checksum has.
uint32_t raw_by_tables(const uint8_t* data, int64_t bytes, uint32_t crc) {
  for (; bytes >= 8; data += 8, bytes -= 8) {
    const uint32_t low = crc ^ (data[0] | data[1] << 8 | data[2] << 16 | uint32_t{data[3]} << 24);
    crc = kTables[7][low & 255] ^ kTables[6][low >> 8 & 255] ^ kTables[5][low >> 16 & 255] ^ kTables[4][low >> 24] ^
          kTables[3][data[4]] ^ kTables[2][data[5]] ^ kTables[1][data[6]] ^ kTables[0][data[7]];
  }
  for (; bytes > 0; ++data, --bytes) crc = crc >> 8 ^ kTables[0][(crc ^ *data) & 255];
  return crc;
}

#if SMALLTHINKER_FOLDS
// Four sums of 16 bytes each are carried over 64 bytes by products without carries, then over 16 to one: 16 bytes with the
// same remainder as all before them. A product of reflected numbers is one place short, hence the shift.
constexpr int64_t folds_over(int bits) { return int64_t{power_of_x(uint64_t(bits))} << 1; }

SMALLTHINKER_FOR("pclmul,sse2")
inline __m128i folded(__m128i sum, __m128i over, __m128i next) {
  const __m128i low = _mm_clmulepi64_si128(sum, over, 0x00), high = _mm_clmulepi64_si128(sum, over, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

SMALLTHINKER_FOR("pclmul,sse2")
uint32_t raw_by_folding(const uint8_t* data, int64_t bytes, uint32_t crc) {
  constexpr int64_t over_64[] = {folds_over(512 + 32), folds_over(512 - 32)};
  constexpr int64_t over_16[] = {folds_over(128 + 32), folds_over(128 - 32)};
  if (bytes < 128) return raw_by_tables(data, bytes, crc);
  const auto load = [](const void* at) SMALLTHINKER_FOR("pclmul,sse2") {
    return _mm_loadu_si128(static_cast<const __m128i*>(at));
  };
  __m128i sums[4], over = load(over_64);
  for (int i = 0; i < 4; ++i) sums[i] = load(data + 16 * i);
  sums[0] = _mm_xor_si128(sums[0], _mm_cvtsi32_si128(int(crc)));
  for (data += 64, bytes -= 64; bytes >= 64; data += 64, bytes -= 64) {
    for (int i = 0; i < 4; ++i) sums[i] = folded(sums[i], over, load(data + 16 * i));
  }
  over = load(over_16);
  for (int i = 1; i < 4; ++i) sums[i] = folded(sums[i - 1], over, sums[i]);
  uint8_t last[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(last), sums[3]);
  return raw_by_tables(data, bytes, raw_by_tables(last, 16, 0));
}

bool can_fold() {
#ifdef _MSC_VER
  int found[4];
  __cpuid(found, 1);
  return (found[2] >> 1 & 1) != 0;
#else
  unsigned a = 0, b = 0, c = 0, d = 0;  // not __builtin_cpu_supports: not every compiler's runtime knows
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 1 & 1) != 0;
#endif
}
#endif

#if SMALLTHINKER_CRC_INSTRUCTION
// In the assembler's own words: compilers differ in how they are asked for the intrinsics.
uint32_t raw_by_instruction(const uint8_t* data, int64_t bytes, uint32_t crc) {
  for (; bytes >= 8; data += 8, bytes -= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    asm(".arch_extension crc\n\tcrc32x %w0, %w0, %x1" : "+r"(crc) : "r"(word));
  }
  return raw_by_tables(data, bytes, crc);
}

bool has_crc_instruction() {
#if defined(__linux__)
  constexpr unsigned long kCrc32 = 1UL << 7;  // HWCAP_CRC32
  return (getauxval(AT_HWCAP) & kCrc32) != 0;
#elif defined(__APPLE__)
  return true;  // every one of them
#else
  return false;
#endif
}
#endif

using Raw = uint32_t (*)(const uint8_t*, int64_t, uint32_t);

Raw fastest() {
#if SMALLTHINKER_FOLDS
  if (can_fold()) return raw_by_folding;
#elif SMALLTHINKER_CRC_INSTRUCTION
  if (has_crc_instruction()) return raw_by_instruction;
#endif
  return raw_by_tables;
}

}  // namespace

uint32_t crc32(const uint8_t* data, int64_t bytes, uint32_t crc) {
  static const Raw raw = fastest();
  return ~raw(data, bytes, ~crc);
}

uint32_t crc32_by_tables(const uint8_t* data, int64_t bytes, uint32_t crc) { return ~raw_by_tables(data, bytes, ~crc); }

uint32_t crc32_before(uint32_t crc, int64_t bytes_behind) { return times(power_of_x(8 * uint64_t(bytes_behind)), crc); }

}  // namespace smallthinker
