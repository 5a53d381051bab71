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

template <int NT>
SIMD_INLINE void group_q4(const uint8_t* group, int64_t blocks, const ActivationRow* activations, F32* sums) {
  for (int64_t block = 0; block < blocks; ++block) {
    const uint8_t* weights = group + block * kTileBlockBytesQ4;
    const int64_t strip = block / 4, i = block % 4;
    prefetch_block<kTileBlockBytesQ4>(weights);
    const F32 scale = load(reinterpret_cast<const uint16_t*>(weights));
    I32 dot[NT];
    for (int t = 0; t < NT; ++t) dot[t] = broadcast(activations[t].start[strip * kLanes + i * 4]);
    for (int j = 0; j < 4; ++j) {
      const B64 packed = load_bytes(weights + 32 + 64 * j);
      const B64 low = low_nibbles(packed), high = high_nibbles(packed);
      for (int t = 0; t < NT; ++t) {
        const int8_t* q = activations[t].q + strip * 128 + i * 16 + j * 4;
        dot[t] = dot_nibbles(dot_nibbles(dot[t], low, broadcast_dword(q)), high, broadcast_dword(q + 64));
      }
    }
    for (int t = 0; t < NT; ++t) {
      sums[t] = fma(mul(scale, broadcast(activations[t].scale[block])), to_f32(dot[t]), sums[t]);
    }
  }
}

template <int NT>
SIMD_INLINE void group_q8(const uint8_t* group, int64_t blocks, const ActivationRow* activations, F32* sums) {
  for (int64_t block = 0; block < blocks; ++block) {
    const uint8_t* weights = group + block * kTileBlockBytesQ8;
    prefetch_block<kTileBlockBytesQ8>(weights);
    const F32 scale = load(reinterpret_cast<const uint16_t*>(weights));
    I32 dot[NT];
    for (int t = 0; t < NT; ++t) dot[t] = broadcast(activations[t].start[block / 2 * kLanes + block % 2 * 8]);
    for (int j = 0; j < 8; ++j) {
      const B64 w = load_bytes(weights + 32 + 64 * j);
      for (int t = 0; t < NT; ++t) {
        dot[t] = dot_biased(dot[t], w, broadcast_dword(activations[t].q + block * kBlock + j * 4));
      }
    }
    for (int t = 0; t < NT; ++t) {
      sums[t] = fma(mul(scale, broadcast(activations[t].scale[block])), to_f32(dot[t]), sums[t]);
    }
  }
}

// A column's fma waits for the one before it, so several groups run side by side; sums is [NG, NT].
template <class Weight, int NG, int NT>
SIMD_INLINE void groups_float(const uint8_t* group, int64_t cols, const ActivationRow* activations, F32* sums) {
  const Weight* weights = reinterpret_cast<const Weight*>(group);
  const int64_t stride = cols * kTileRows;
  for (int64_t col = 0; col < cols; ++col) {
    for (int g = 0; g < NG; ++g) {
      const F32 w = load(weights + g * stride + col * kTileRows);
      for (int t = 0; t < NT; ++t) sums[g * NT + t] = fma(w, broadcast(activations[t].x[col]), sums[g * NT + t]);
    }
  }
}

template <int NG, int NT>
void product(Quant quant, const uint8_t* group, int64_t rows, int64_t cols, const ActivationRow* activations, float* out,
             int64_t out_stride) {
  F32 sums[NG * NT];
  for (F32& sum : sums) sum = zero();
  if constexpr (NG == 1) {
    if (quant == Quant::q4_0) group_q4<NT>(group, cols / kBlock, activations, sums);
    if (quant == Quant::q8_0) group_q8<NT>(group, cols / kBlock, activations, sums);
  }
  if (quant == Quant::f16) groups_float<uint16_t, NG, NT>(group, cols, activations, sums);
  if (quant == Quant::f32) groups_float<float, NG, NT>(group, cols, activations, sums);
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

template <int NG>
void product_of_groups(Quant quant, const uint8_t* group, int64_t rows, int64_t cols, const ActivationRow* activations,
                       int64_t tokens, float* out, int64_t out_stride) {
  int64_t t = 0;
  for (; tokens - t >= kTileTokens; t += kTileTokens) {
    product<NG, kTileTokens>(quant, group, rows, cols, activations + t, out + t * out_stride, out_stride);
  }
  for (; tokens - t >= kTileTokens / 2; t += kTileTokens / 2) {  // several sequences' next tokens
    product<NG, kTileTokens / 2>(quant, group, rows, cols, activations + t, out + t * out_stride, out_stride);
  }
  if (kTileTokens / 2 > 3 && tokens - t == 3) {
    product<NG, 3>(quant, group, rows, cols, activations + t, out + t * out_stride, out_stride);
    return;
  }
  for (; tokens - t >= 2; t += 2) {
    product<NG, 2>(quant, group, rows, cols, activations + t, out + t * out_stride, out_stride);
  }
  if (t < tokens) product<NG, 1>(quant, group, rows, cols, activations + t, out + t * out_stride, out_stride);
}

void tile_product(Quant quant, const uint8_t* tiles, int64_t rows, int64_t cols, const ActivationRow* activations,
                  int64_t tokens, float* out, int64_t out_stride) {
  const int64_t stride = group_bytes(quant, cols);
  int64_t row = 0;
  if (!is_block_quantized(quant)) {
    for (; rows - row > (kTileGroups - 1) * kTileRows; row += kTileGroups * kTileRows) {
      product_of_groups<kTileGroups>(quant, tiles + row / kTileRows * stride, rows - row, cols, activations, tokens,
                                     out + row, out_stride);
    }
  }
  for (; row < rows; row += kTileRows) {
    product_of_groups<1>(quant, tiles + row / kTileRows * stride, rows - row, cols, activations, tokens, out + row,
                         out_stride);
  }
}

}  // namespace
}  // namespace smallthinker
