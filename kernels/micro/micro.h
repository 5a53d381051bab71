// All micro-kernels as one table, compiled for the instruction set of the isa_*.cpp that includes this last, after its
// simd_*.h.
#pragma once

#include "formats/all.h"
#include "micro/activations.h"
#include "micro/scores.h"
#include "micro/values.h"
#include "micro/attention.h"
#include "micro/nonlinear.h"
#include "micro/kv_cache.h"
#include "micro/sampling.h"
#include "micro/ceilings.h"
#include "micro/up.h"
#include "micro/down.h"
#include "micro/tiles.h"
#include "micro/panels.h"
#include "micro/gemm.h"

namespace smallthinker {
namespace {

template <class Format>
constexpr FormatKernels kernels_of() {
  if constexpr (sizes_of(Format::kQuant).has_rows) {
    return {order_bytes<Format>, order_for_rows<Format>, gemm<Format>, gated_up<Format>, add_down<Format>, order_sums<Format>};
  } else {
    return {nullptr, nullptr, gemm<Format>, nullptr, nullptr, nullptr};
  }
}

constexpr Isa isa_named(const char* name) {
#define SMALLTHINKER_FORMAT(name, block, bytes, has_rows) kernels_of<format::name>(),
  return {name,        {SMALLTHINKER_FORMATS(SMALLTHINKER_FORMAT)},
          quantize_activations, activate, find_live, add_sums, prefetch_rows, kv_store, prepare_queries, attend_split,
          merge_split, softcap, exp_weights, mix_bytes, multiply_add, multiply_add_int8};
#undef SMALLTHINKER_FORMAT
}

}  // namespace
}  // namespace smallthinker
