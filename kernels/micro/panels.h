// Products of many tokens with formats whose integers and scales take long to unpack: a block of columns of 16 rows is
// unpacked once for up to kPanelTokens tokens, as if it were a block of a plainer format. The same sums in the same order as
// with the tiles themselves.
#pragma once

namespace smallthinker {
namespace {

constexpr int64_t kPanelTokens = 64;  // whose sums take 4 KB

// Measured with AVX2 alone (1.2 to 1.8 times the speed), where every instruction counts.
template <class Format>
constexpr bool kHasPanels = kHoldsSums && sizes_of(Format::kQuant).block == 256;

// An unpacked block of `Packed`, as a format of one plane: what add_sum needs of one.
template <class Packed>
struct Panel : format::Block {
  static constexpr Quant kQuant = Packed::kQuant;
  static constexpr int64_t kScaleCols = Packed::kScaleCols, kPartCols = kScaleCols;
  static constexpr int kPlanes = 1;
  static constexpr int32_t kMost = Packed::kMost, kZero = Packed::kZero;
  static constexpr bool kHasMins = Packed::kHasMins;

  static constexpr int64_t kCols = sizes_of(kQuant).block;
  static constexpr int kGroups = static_cast<int>(kCols / kScaleCols);
  struct TileScales {
    float scales[kGroups * kTileRows], mins[kHasMins ? kGroups * kTileRows : 1];
  };
  SIMD_INLINE I32 tile_dot(I32 sum, B64 w, B64 a) { return Packed::tile_dot(sum, w, a); }
  SIMD_INLINE F32 scale_of(const TileScales& scales, int g) { return load(scales.scales + g * kTileRows); }
  SIMD_INLINE F32 min_of(const TileScales& scales, int g) { return load(scales.mins + g * kTileRows); }
  SIMD_INLINE void tile_step(const uint8_t* tile, int part, int step, B64* w) {
    *w = load_bytes(tile + kTileRows * (part * kPartCols + 4 * step));
  }
};

template <class Packed>
void unpack_panel(const uint8_t* tile, uint8_t* panel, typename Panel<Packed>::TileScales& to) {
  constexpr int64_t kPlaneCols = Part<Packed>::kPlaneCols, kBytes = tile_block_bytes(Packed::kQuant) / Part<Packed>::kParts;
  const typename Packed::TileScales scales = Packed::tile_scales(tile);
  for (int part = 0; part < Part<Packed>::kParts; ++part) {
    prefetch_block<kBytes>(tile + part * kBytes);
    for (int step = 0; step < kPlaneCols / 4; ++step) {
      B64 w[Packed::kPlanes];
      Packed::tile_step(tile, part, step, w);
      for (int p = 0; p < Packed::kPlanes; ++p) {
        store_bytes(panel + kTileRows * (part * Packed::kPartCols + p * kPlaneCols + 4 * step), w[p]);
      }
    }
  }
  for (int g = 0; g < Panel<Packed>::kGroups; ++g) {
    store(to.scales + g * kTileRows, Packed::scale_of(scales, g));
    if constexpr (Packed::kHasMins) store(to.mins + g * kTileRows, Packed::min_of(scales, g));
  }
}

template <class Packed, int NT>
void add_panel(const uint8_t* panel, const typename Panel<Packed>::TileScales& scales, const ActivationRow* a, int64_t col,
               F32* sums) {
  F32 tile[NT];
  for (int t = 0; t < NT; ++t) tile[t] = sums[t];
  for (int part = 0; part < Part<Panel<Packed>>::kParts; ++part, col += Packed::kScaleCols) {
    add_sum<Panel<Packed>, 0, NT>(panel, scales, part, a, col, tile);
  }
  for (int t = 0; t < NT; ++t) sums[t] = tile[t];
}

// `tokens` is a multiple of kTileTokens, at most kPanelTokens.
template <class Packed>
void gemm_of_panels(const uint8_t* tiles, int64_t rows, int64_t cols, const ActivationRow* activations, int64_t tokens,
                    float* out, int64_t out_stride) {
  constexpr int64_t kCols = Panel<Packed>::kCols;
  alignas(64) uint8_t panel[kTileRows * kCols];
  typename Panel<Packed>::TileScales scales;
  F32 sums[kPanelTokens];
  for (int64_t row = 0; row < rows; row += kTileRows) {
    for (F32& sum : sums) sum = zero();
    for (int64_t col = 0; col < cols; col += kCols, tiles += tile_block_bytes(Packed::kQuant)) {
      unpack_panel<Packed>(tiles, panel, scales);
      for (int64_t t = 0; t < tokens; t += kTileTokens) {
        add_panel<Packed, kTileTokens>(panel, scales, activations + t, col, sums + t);
      }
    }
    for (int64_t t = 0; t < tokens; ++t) store_rows(out + t * out_stride + row, sums[t], rows - row);
  }
}

}  // namespace
}  // namespace smallthinker
