// Plain C++ for any CPU.
#include "isa.h"

#include "simd_portable.h"

#include "micro.h"

namespace smallthinker {

const Isa& isa_portable() {
  static constexpr Isa isa = isa_named("portable");
  return isa;
}

}  // namespace smallthinker
