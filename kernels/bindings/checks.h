// Checks that several bindings share: shapes, caches and slots that kernels are handed. As in arguments.h, ValueError
// says what was expected and what was found.
#pragma once

#include <algorithm>
#include <array>
#include <iterator>
#include <string>

#include "bindings/arguments.h"
#include "isa/isa.h"
#include "kernels.h"

namespace smallthinker {

inline Activation parse_activation(const std::string& name) {
  std::string names;
  for (size_t i = 0; i < std::size(kActivations); ++i) {
    if (name == kActivations[i]) return static_cast<Activation>(i);
    names += (names.empty() ? "" : ", ") + std::string(kActivations[i]);
  }
  fail("activation: expected one of ", names, ", found '", name, "'");
}

// Of gate, up and down.
using FfnQuants = std::array<std::string, 3>;
using ClampOf = std::array<float, 2>;        // limit and alpha of clamped_swiglu
inline FfnShape check_ffn_shape(const FfnQuants& quants, int64_t hidden, int64_t ffn, const std::string& activation, bool gated,
                                bool biased, const ClampOf& clamp, bool whole = false) {
  check_dim("hidden", hidden);
  check_dim("ffn", ffn);
  if (hidden % kBlock != 0) fail("hidden: expected a multiple of ", kBlock, ", found ", hidden);
  if (ffn % kTileRows != 0) fail("ffn: expected a multiple of ", kTileRows, ", found ", ffn);
  const FfnFormats formats{parse_quant(quants[0]), parse_quant(quants[1]), parse_quant(quants[2])};
  const auto check_cols = [](const char* name, Quant quant, int64_t cols) {
    const FormatSizes& sizes = sizes_of(quant);
    if (cols % sizes.block != 0) fail(name, ": expected a multiple of ", sizes.block, " for ", sizes.name, ", found ", cols);
  };
  if (gated) check_cols("hidden", formats.gate, hidden);
  check_cols("hidden", formats.up, hidden);
  check_cols("ffn", formats.down, ffn);
  const Activation parsed = parse_activation(activation);
  if (parsed == Activation::clamped_swiglu && !(gated && clamp[0] > 0.0f && clamp[1] > 0.0f)) {
    fail("activation: expected a gate, a limit and an alpha above 0 for clamped_swiglu, found ", clamp[0], " and ", clamp[1]);
  }
  return {formats, hidden, ffn, parsed, gated, biased, {clamp[0], clamp[1]}, whole};
}

inline Gating parse_gating(const std::string& name, int64_t k, int64_t experts) {
  if (k < 1 || k > experts) fail("k: expected 1 to ", experts, " (experts), found ", k);
  if (name == "softmax") return Gating::softmax;
  if (name == "sigmoid") return Gating::sigmoid;
  fail("gating: expected softmax or sigmoid, found '", name, "'");
}

inline bool is_interleaved(const std::string& pairing) {
  if (pairing != "half" && pairing != "interleaved") fail("pairing: expected half or interleaved, found '", pairing, "'");
  return pairing == "interleaved";
}

inline void check_start(int64_t start, int64_t tokens) {
  if (start < 0 || start > std::numeric_limits<int32_t>::max() - tokens) {
    fail("start: expected 0 to ", std::numeric_limits<int32_t>::max() - tokens, ", found ", start);
  }
}

// The KV cache of one layer: keys and values [K, C / 16, bytes of 16 positions].
inline KvCache check_kv_cache(const std::string& quant, const py::array& keys, const py::array& values, int64_t head_dim) {
  KvCache cache{parse_quant(quant), 0, 0, head_dim, nullptr, nullptr};
  if (cache.quant != Quant::f16 && cache.quant != Quant::q8_0) fail("quant: expected f16 or q8_0, found '", quant, "'");
  check_dim("head_dim", head_dim);
  if (cache.quant == Quant::q8_0 && head_dim % kBlock != 0) {
    fail("head_dim: expected a multiple of ", kBlock, " for q8_0, found ", head_dim);
  }
  const int64_t bytes = group_bytes(cache.quant, head_dim);
  cache.keys = const_cast<uint8_t*>(input<uint8_t>(keys, "keys", {-1, -1, bytes}));
  cache.kv_heads = keys.shape(0);
  cache.capacity = keys.shape(1) * kLanes;
  cache.values = const_cast<uint8_t*>(input<uint8_t>(values, "values", {cache.kv_heads, keys.shape(1), bytes}));
  const auto misaligned = [](const uint8_t* p) { return reinterpret_cast<uintptr_t>(p) % 4 != 0; };
  if (misaligned(cache.keys)) fail("keys: expected data aligned to 4 bytes");
  if (misaligned(cache.values)) fail("values: expected data aligned to 4 bytes");
  return cache;
}

inline void check_attention(const KvCache& cache, int64_t heads, int64_t window, int64_t chunk, float softcap) {
  if (window < 0) fail("window: expected 0 (none) or more, found ", window);
  if (chunk < 0) fail("chunk: expected 0 (none) or more, found ", chunk);
  if (!(softcap >= 0.0f)) fail("softcap: expected 0 (none) or more, found ", softcap);
  if (cache.kv_heads < 1 || heads % cache.kv_heads != 0) {
    fail("keys: ", cache.kv_heads, " heads don't divide the ", heads, " of q");
  }
}

inline void check_capacity(const KvCache& cache, int64_t start, int64_t tokens, int64_t window) {
  const int64_t seen = window == 0 ? start + tokens : std::min(start + tokens, window + tokens - 1);
  if (cache.capacity < seen) fail("keys: expected a capacity of at least ", seen, " positions, found ", cache.capacity);
}

inline void check_slots(const py::array& slots, ExpertCall& call) {
  call.slots = input<uint8_t>(slots, "slots", {-1, -1});
  call.record_bytes = slots.shape(1);
  const int64_t needed = record_sections(call.shape).total_bytes;
  if (call.record_bytes < needed) fail("slots: expected records of at least ", needed, " bytes, found ", call.record_bytes);
  if (reinterpret_cast<uintptr_t>(call.slots) % 4 != 0 || call.record_bytes % 4 != 0) {
    fail("slots: expected records aligned to 4 bytes");
  }
}

inline void check_slot(const char* name, int64_t i, int64_t slot, int64_t n_slots) {
  if (slot < 0 || slot >= n_slots) fail(name, "[", i, "]: expected 0 to ", n_slots - 1, ", found ", slot);
}

}  // namespace smallthinker
