#include "isa/isa.h"

#include <cstring>
#include <stdexcept>

#if SMALLTHINKER_X86
#include <cpuid.h>
#elif SMALLTHINKER_NEON && defined(__linux__)
#include <sys/auxv.h>
#elif SMALLTHINKER_NEON && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace smallthinker {

namespace {
#if SMALLTHINKER_X86
struct X86Features {
  bool avx2 = false, avxvnni = false, avx512 = false;
};

// Not __builtin_cpu_supports: with zig and others that bring LLVM's runtime it says no to everything, and compilers
// disagree on names. A feature counts if the system saves its registers, too.
X86Features find_features() {
  X86Features found;
  unsigned eax, ebx, ecx, edx;
  const auto bit = [](unsigned word, int at) { return (word >> at & 1) != 0; };
  if (__get_cpuid_count(1, 0, &eax, &ebx, &ecx, &edx) == 0 || !bit(ecx, 27)) return found;  // no OSXSAVE
  const bool fma = bit(ecx, 12) && bit(ecx, 28) && bit(ecx, 29);                            // with AVX and F16C
  unsigned saved, high;
  __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  if (!fma || (saved & 0x06) != 0x06 || __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return found;
  found.avx2 = bit(ebx, 5);
#if defined(__APPLE__)
  const bool saves_zmm = true;  // from their first use on: until then the bits are off
#else
  const bool saves_zmm = (saved & 0xe0) == 0xe0;
#endif
  const bool f = bit(ebx, 16), dq = bit(ebx, 17), bw = bit(ebx, 30), vl = bit(ebx, 31), vnni = bit(ecx, 11);
  found.avx512 = found.avx2 && saves_zmm && f && dq && bw && vl && vnni;
  const bool has_more = eax >= 1;  // a second page of leaf 7
  found.avxvnni = found.avx2 && has_more && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && bit(eax, 4);
  return found;
}
#endif

#if SMALLTHINKER_NEON
bool has_dot_product() {
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1UL << 20;  // HWCAP_ASIMDDP, which older headers lack
  return (getauxval(AT_HWCAP) & kDotProduct) != 0;
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof(has);
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#else
  return false;
#endif
}
#endif
}  // namespace

int64_t activation_bytes(bool quantized, int64_t cols) {
  const int64_t padded = round_up(cols, kActivationStrip);
  return quantized ? round_up(padded + padded / kBlock * 6 * 4, 64) : 0;
}

ActivationRow place_activations(bool quantized, int64_t cols, uint8_t* scratch) {
  ActivationRow row{nullptr};
  if (!quantized) return row;
  const int64_t padded = round_up(cols, kActivationStrip), blocks = padded / kBlock;
  row.q = reinterpret_cast<int8_t*>(scratch);
  row.scale = reinterpret_cast<float*>(scratch + padded);
  row.offset8 = reinterpret_cast<int32_t*>(row.scale + blocks);
  row.offset128 = row.offset8 + blocks;
  row.offset32 = row.offset128 + blocks;
  row.sum = reinterpret_cast<float*>(row.offset32 + 2 * blocks);
  std::memset(row.q + cols, 0, static_cast<size_t>(padded - cols));
  for (int64_t block = cols / kBlock; block < blocks; ++block) {
    row.scale[block] = row.sum[block] = 0.0f;
    row.offset8[block] = row.offset128[block] = row.offset32[2 * block] = row.offset32[2 * block + 1] = 0;
  }
  return row;
}

ActivationRow columns_from(const ActivationRow& row, int64_t first, const float* x) {
  const int64_t block = first / kBlock;
  return {x, row.q + first, row.scale + block, row.offset8 + block, row.offset128 + block, row.offset32 + 2 * block, row.sum + block};
}

ActivationRow prepare_activations(const Isa& isa, bool quantized, int64_t cols, const float* x, uint8_t* scratch) {
  ActivationRow row = place_activations(quantized, cols, scratch);
  row.x = x;
  if (quantized) isa.quantize_activations(cols, row);
  return row;
}

std::vector<const Isa*> built_isas() {
  return {
      &isa_portable(),
#if SMALLTHINKER_X86
      &isa_avx2(),
#if SMALLTHINKER_COMPILES_AVXVNNI
      &isa_avx2vnni(),
#endif
      &isa_avx512(),
#elif SMALLTHINKER_NEON
      &isa_neon(),
#endif
  };
}

int64_t down_scratch_bytes(Quant quant, int64_t cols, int64_t tokens) {
  if (!is_block_quantized(quant)) return 0;
  const int64_t blocks = round_up(cols / kBlock, kLanes), fours = kChunkRows / 4;
  const int64_t tile = kChunkRows * kDownStrip, sums = round_up(cols, kDownStrip) * 4;
  const int64_t scales = (kChunkRows + 1) * blocks * 4, factors = tokens * (fours + 2) * blocks * 4;
  return round_up(tile + sums + scales + factors, 64);
}

std::vector<const Isa*> available_isas() {
  std::vector<const Isa*> isas{&isa_portable()};
#if SMALLTHINKER_X86
  const X86Features has = find_features();
  if (has.avx2) isas.push_back(&isa_avx2());
#if SMALLTHINKER_COMPILES_AVXVNNI
  if (has.avxvnni) isas.push_back(&isa_avx2vnni());
#endif
  if (has.avx512) isas.push_back(&isa_avx512());
#elif SMALLTHINKER_NEON
  if (has_dot_product()) isas.push_back(&isa_neon());
#endif
  return isas;
}

const Isa& find_isa(const std::string& name) {
  const std::vector<const Isa*> isas = available_isas();
  if (name.empty()) return *isas.back();
  std::string names;
  for (const Isa* isa : isas) {
    if (name == isa->name) return *isa;
    names += names.empty() ? isa->name : std::string(", ") + isa->name;
  }
  throw std::invalid_argument("instruction set '" + name + "' is unknown or not supported by this CPU; it can run " + names);
}

}  // namespace smallthinker
