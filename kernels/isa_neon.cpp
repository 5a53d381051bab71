// NEON with the dot products of Armv8.2: phones and single-board computers since 2018, every Apple M.
#include "isa.h"

#if SMALLTHINKER_NEON

#include <arm_neon.h>

#include <cmath>
#include <cstring>
#include <limits>

// From here on everything is compiled for this instruction set. Standard headers stay above: an inline function of
// theirs compiled for it could be the copy that the linker keeps for every other file.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#include "simd_neon.h"

#include "micro_activations.h"
#include "micro_scores.h"
#include "micro_values.h"
#include "micro_attention.h"
#include "micro_kv_cache.h"
#include "micro_ceilings.h"
#include "micro_up.h"
#include "micro_down.h"
#include "micro_tiles.h"

namespace smallthinker {

const Isa& isa_neon() {
  static constexpr Isa isa{
      "neon", quantize_activations, tile_product, find_live, gated_up, add_down, order_sums, add_sums, ask,
      kv_store, prepare_queries, attend_split, merge_split, mix_bytes, multiply_add,
      multiply_add_int8};
  return isa;
}

}  // namespace smallthinker

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // SMALLTHINKER_NEON
