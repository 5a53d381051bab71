// Plain C++ for any CPU.
#include "isa/isa.h"

#include "isa/simd_portable.h"

#include "micro/micro.h"

namespace smallthinker {

const Isa& isa_portable() {
  static constexpr Isa isa = isa_named("portable");
  return isa;
}

}  // namespace smallthinker
