// Rows of a packed matrix by their numbers.
#include "kernels.h"

namespace smallthinker {

void embed(Quant quant, const uint8_t* data, int64_t cols, const int32_t* ids, int64_t tokens, float* out) {
  for (int64_t t = 0; t < tokens; ++t) unpack_row(quant, Layout::tiles, data, ids[t], cols, out + t * cols);
}

}  // namespace smallthinker
