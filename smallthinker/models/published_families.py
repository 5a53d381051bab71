"""Shapes of other families' models, each a config.json as data; `published.py` lists them. Knows nothing else.

What is not said here is as the family's file has it. Checked by their published numbers of weights
(tests/models/test_families.py). Phi-4-mini is here without LongRoPE's 96 factors, as within its first 4096 positions.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def _config(architecture: str, layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, **more: Any) -> Config:
    return {
        "architectures": [architecture],
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    } | more


def _qwen3(layers: int, hidden: int, ffn: int, heads: int) -> Config:
    return _config(
        "Qwen3ForCausalLM", layers, hidden, ffn, heads, 8, head_dim=128, max_position_embeddings=40_960, rope_theta=1e6,
        sliding_window=None, tie_word_embeddings=True, bos_token_id=151_643, eos_token_id=151_645,
    )  # fmt: skip


def _qwen2(layers: int, hidden: int, ffn: int, heads: int) -> Config:
    return _config(
        "Qwen2ForCausalLM", layers, hidden, ffn, heads, 2, rope_theta=1e6, tie_word_embeddings=True,
        bos_token_id=151_643, eos_token_id=151_645,
    )  # fmt: skip


def _llama3(layers: int, hidden: int, ffn: int, heads: int, factor: float, tied: bool) -> Config:
    scaling = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    return _config(
        "LlamaForCausalLM", layers, hidden, ffn, heads, 8, vocab_size=128_256, max_position_embeddings=131_072,
        rms_norm_eps=1e-5, rope_theta=5e5, rope_scaling=scaling, tie_word_embeddings=tied, bos_token_id=128_000,
        eos_token_id=[128_001, 128_008, 128_009],
    )  # fmt: skip


def _smollm2(layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, theta: float) -> Config:
    return _config(
        "LlamaForCausalLM", layers, hidden, ffn, heads, kv_heads, vocab_size=49_152, max_position_embeddings=8192,
        rms_norm_eps=1e-5, rope_theta=theta, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def _gemma3(layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, **more: Any) -> Config:
    return _config("Gemma3ForCausalLM", layers, hidden, ffn, heads, kv_heads, **{"vocab_size": 262_144} | more)


def _gemma4_small(layers: int, hidden: int, ffn: int, kv_heads: int, full_every: int, **more: Any) -> Config:
    types = ["full_attention" if (n + 1) % full_every == 0 else "sliding_attention" for n in range(layers)]
    return _config(
        "Gemma4ForCausalLM", layers, hidden, ffn, 8, kv_heads, max_position_embeddings=131_072, layer_types=types,
        final_logit_softcapping=30.0, **more,
    )  # fmt: skip


FAMILIES: dict[str, Config] = {
    "qwen3-0.6b": _qwen3(28, 1024, 3072, 16),
    "qwen3-1.7b": _qwen3(28, 2048, 6144, 16),
    "qwen3-4b": _qwen3(36, 2560, 9728, 32),
    "qwen2.5-0.5b": _qwen2(24, 896, 4864, 14),
    "qwen2.5-1.5b": _qwen2(28, 1536, 8960, 12),
    "llama-3.2-1b": _llama3(16, 2048, 8192, 32, 32.0, tied=True),
    "llama-3.2-3b": _llama3(28, 3072, 8192, 24, 32.0, tied=True),
    "llama-3.1-8b": _llama3(32, 4096, 14_336, 32, 8.0, tied=False),
    "smollm2-135m": _smollm2(30, 576, 1536, 9, 3, 1e5),
    "smollm2-1.7b": _smollm2(24, 2048, 8192, 32, 32, 1.3e5),
    "smollm3-3b": _config(
        "SmolLM3ForCausalLM", 36, 2048, 11_008, 16, 4, max_position_embeddings=65_536, rope_theta=5e6
    ),
    "gemma-3-270m": _gemma3(18, 640, 2048, 4, 1, max_position_embeddings=32_768, sliding_window=512),
    "gemma-3-1b": _gemma3(26, 1152, 6912, 4, 1, max_position_embeddings=32_768, sliding_window=512),
    "gemma-3-4b": _gemma3(
        34, 2560, 10_240, 8, 4, vocab_size=262_208, sliding_window=1024,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
    "phi-4-mini": _config(
        "Phi3ForCausalLM", 32, 3072, 8192, 24, 8, vocab_size=200_064, partial_rotary_factor=0.75,
        tie_word_embeddings=True, bos_token_id=199_999, eos_token_id=199_999,
    ),
    "mixtral-8x7b": _config("MixtralForCausalLM", 32, 4096, 14_336, 32, 8, max_position_embeddings=32_768),
    "glm-4.5-air": _config(
        "Glm4MoeForCausalLM", 46, 4096, 10_944, 96, 8, head_dim=128, attention_bias=True, rope_theta=1e6,
        eos_token_id=[151_329, 151_336, 151_338],
    ),
    "gemma-4-e2b": _gemma4_small(35, 1536, 6144, 1, 5, num_kv_shared_layers=20, use_double_wide_mlp=True),
    "gemma-4-e4b": _gemma4_small(42, 2560, 10_240, 2, 6, num_kv_shared_layers=18),
    "gemma-4-26b-a4b": _config(
        "Gemma4ForCausalLM", 30, 2816, 2112, 16, 8, max_position_embeddings=262_144, sliding_window=1024,
        hidden_size_per_layer_input=0, attention_k_eq_v=True, num_global_key_value_heads=2, enable_moe_block=True,
        num_experts=128, top_k_experts=8, moe_intermediate_size=704, final_logit_softcapping=30.0,
    ),
}  # fmt: skip
