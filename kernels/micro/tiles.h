// Products with matrices in the "tiles" layout. The 16 rows of a group are the 16 lanes, so an output element is one
// lane's sum over the columns in order: the same operations for one token as for any tile of tokens.
//
// NT tokens of a tile, NG row groups at a time.
#pragma once

namespace smallthinker {
namespace {

// The lines of a block further on, first to the second-level cache, which keeps more of them under way, and from there
// to the first. Past the matrix's end a prefetch does nothing.
template <int64_t Bytes>
SIMD_INLINE void prefetch_block(const uint8_t* weights) {
  for (int64_t at = 0; at < Bytes; at += 64) {
    prefetch_l2(weights + kFarBytes + at);
    prefetch(weights + kNearBytes + at);
  }
}

template <class Format, int NT>
SIMD_INLINE void add_blocks(const uint8_t* group, int64_t blocks, const ActivationRow* activations, F32* sums) {
  constexpr int64_t kBytes = tile_block_bytes(Format::kQuant);
  for (int64_t block = 0; block < blocks; ++block) {
    const uint8_t* weights = group + block * kBytes;
    prefetch_block<kBytes>(weights);
    const F32 scale = load(reinterpret_cast<const uint16_t*>(weights));
    I32 dot[NT];
    for (int t = 0; t < NT; ++t) dot[t] = broadcast(Format::offset(activations[t], block));
    Format::template add_tile<NT>(weights + kScaleBytes * kTileRows, activations, block, dot);
    for (int t = 0; t < NT; ++t) {
      sums[t] = fma(mul(scale, broadcast(activations[t].scale[block])), to_f32(dot[t]), sums[t]);
    }
  }
}

// A column's fma waits for the one before it, so several groups run side by side; sums is [NG, NT].
template <class Element, int NG, int NT>
SIMD_INLINE void add_elements(const uint8_t* group, int64_t cols, const ActivationRow* activations, F32* sums) {
  const Element* weights = reinterpret_cast<const Element*>(group);
  const int64_t stride = cols * kTileRows;
  for (int64_t col = 0; col < cols; ++col) {
    for (int g = 0; g < NG; ++g) {
      const F32 w = load(weights + g * stride + col * kTileRows);
      for (int t = 0; t < NT; ++t) sums[g * NT + t] = fma(w, broadcast(activations[t].x[col]), sums[g * NT + t]);
    }
  }
}

template <class Format, int NG, int NT>
void product(const uint8_t* group, int64_t rows, int64_t cols, const ActivationRow* activations, float* out,
             int64_t out_stride) {
  F32 sums[NG * NT];
  for (F32& sum : sums) sum = zero();
  if constexpr (is_block_quantized(Format::kQuant)) {
    static_assert(NG == 1, "a block's products are enough to hide their latency");
    add_blocks<Format, NT>(group, cols / kBlock, activations, sums);
  } else {
    add_elements<typename Format::Element, NG, NT>(group, cols, activations, sums);
  }
  for (int g = 0; g < NG; ++g) {
    for (int t = 0; t < NT; ++t) {
      float* to = out + t * out_stride + g * kTileRows;
      if (rows - g * kTileRows >= kTileRows) {
        store(to, sums[g * NT + t]);
      } else {
        float lanes[kTileRows];
        store(lanes, sums[g * NT + t]);
        std::memcpy(to, lanes, static_cast<size_t>(rows - g * kTileRows) * sizeof(float));
      }
    }
  }
}

template <class Format, int NG>
void product_of_groups(const uint8_t* group, int64_t rows, int64_t cols, const ActivationRow* activations, int64_t tokens,
                       float* out, int64_t out_stride) {
  int64_t t = 0;
  for (; tokens - t >= kTileTokens; t += kTileTokens) {
    product<Format, NG, kTileTokens>(group, rows, cols, activations + t, out + t * out_stride, out_stride);
  }
  for (; tokens - t >= kTileTokens / 2; t += kTileTokens / 2) {  // a few sequences' next tokens
    product<Format, NG, kTileTokens / 2>(group, rows, cols, activations + t, out + t * out_stride, out_stride);
  }
  if (kTileTokens / 2 > 3 && tokens - t == 3) {
    product<Format, NG, 3>(group, rows, cols, activations + t, out + t * out_stride, out_stride);
    return;
  }
  for (; tokens - t >= 2; t += 2) {
    product<Format, NG, 2>(group, rows, cols, activations + t, out + t * out_stride, out_stride);
  }
  if (t < tokens) product<Format, NG, 1>(group, rows, cols, activations + t, out + t * out_stride, out_stride);
}

template <class Format>
void gemm(const uint8_t* tiles, int64_t rows, int64_t cols, const ActivationRow* activations, int64_t tokens, float* out,
          int64_t out_stride) {
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
