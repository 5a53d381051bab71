// All micro-kernels as one table, compiled for the instruction set of the isa_*.cpp that includes this last, after its
// simd_*.h.
#pragma once

#include "micro/activations.h"
#include "micro/scores.h"
#include "micro/values.h"
#include "micro/attention.h"
#include "micro/kv_cache.h"
#include "micro/sampling.h"
#include "micro/ceilings.h"
#include "micro/up.h"
#include "micro/down.h"
#include "micro/tiles.h"

namespace smallthinker {
namespace {

constexpr Isa isa_named(const char* name) {
  return {name,     quantize_activations, tile_product,    find_live,    gated_up,    add_down,  order_sums,   add_sums,
          ask,      kv_store,             prepare_queries, attend_split, merge_split, exp_weights, mix_bytes,
          multiply_add, multiply_add_int8};
}

}  // namespace
}  // namespace smallthinker
