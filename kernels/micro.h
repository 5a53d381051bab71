// All micro-kernels as one table, compiled for the instruction set of the isa_*.cpp that includes this last, after its
// simd_*.h.
#pragma once

#include "micro_activations.h"
#include "micro_scores.h"
#include "micro_values.h"
#include "micro_attention.h"
#include "micro_kv_cache.h"
#include "micro_sampling.h"
#include "micro_ceilings.h"
#include "micro_up.h"
#include "micro_down.h"
#include "micro_tiles.h"

namespace smallthinker {
namespace {

constexpr Isa isa_named(const char* name) {
  return {name,     quantize_activations, tile_product,    find_live,    gated_up,    add_down,  order_sums,   add_sums,
          ask,      kv_store,             prepare_queries, attend_split, merge_split, exp_weights, mix_bytes,
          multiply_add, multiply_add_int8};
}

}  // namespace
}  // namespace smallthinker
