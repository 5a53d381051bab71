// Plain C++ for any CPU.
#include "isa.h"

#include "simd_portable.h"

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

const Isa& isa_portable() {
  static constexpr Isa isa{
      "portable", quantize_activations, tile_product, find_live, gated_up, add_down, order_sums, add_sums, ask,
      kv_store, prepare_queries, attend_split, merge_split, mix_bytes, multiply_add,
      multiply_add_int8};
  return isa;
}

}  // namespace smallthinker
