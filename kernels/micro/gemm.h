// Products with matrices in the "tiles" layout, by the way that suits the number of tokens.
#pragma once

namespace smallthinker {
namespace {

template <class Format>
void gemm(const uint8_t* tiles, int64_t rows, int64_t cols, const ActivationRow* activations, int64_t tokens, float* out,
          int64_t out_stride) {
  if constexpr (kHasPanels<Format>) {
    while (tokens >= 2 * kTileTokens) {
      const int64_t n = std::min(tokens, kPanelTokens) / kTileTokens * kTileTokens;
      gemm_of_panels<Format>(tiles, rows, cols, activations, n, out, out_stride);
      activations += n;
      out += n * out_stride;
      tokens -= n;
    }
  }
  const int64_t stride = group_bytes(Format::kQuant, cols);
  int64_t row = 0;
  if constexpr (!is_block_quantized(Format::kQuant)) {
    for (; rows - row > (kTileGroups - 1) * kTileRows; row += kTileGroups * kTileRows) {
      product_of_groups<Format, kTileGroups>(tiles + row / kTileRows * stride, rows - row, cols, activations, tokens,
                                             out + row, out_stride);
    }
  }
  for (; row < rows; row += kTileRows) {
    product_of_groups<Format, 1>(tiles + row / kTileRows * stride, rows - row, cols, activations, tokens, out + row,
                                 out_stride);
  }
}

}  // namespace
}  // namespace smallthinker
