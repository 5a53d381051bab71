// Plain C++ for any CPU.
#include "isa.h"

#include "simd_portable.h"

#include "micro_activations.h"
#include "micro_attention.h"
#include "micro_memory.h"
#include "micro_rows.h"
#include "micro_tiles.h"

namespace smallthinker {

const Isa& isa_portable() {
  static constexpr Isa isa{"portable", quantize_activations, tile_product, live_rows, sum_rows,
                           widen_f16, attend, mix_bytes};
  return isa;
}

}  // namespace smallthinker
