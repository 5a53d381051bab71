"""Shapes for synthetic stores, each a config.json as data. Knows nothing else.

PowerInfer/SmallThinker-4BA0.6B-Instruct and PowerInfer/SmallThinker-21BA3B-Instruct (arXiv 2507.20984, Apache-2.0); and
a dense model in the shape of Qwen2.5-1.5B (arXiv 2412.15115), without its biases, its networks in seven slices;
Qwen/Qwen3-30B-A3B (arXiv 2505.09388), allenai/OLMoE-1B-7B-0924 (arXiv 2409.02060) and openai/gpt-oss-20b
(arXiv 2508.10925), all Apache-2.0; and the families of `published_families.py`. Which of them run is for `supported.py`
to say.
"""

from __future__ import annotations

from typing import Any

from smallthinker.models import description as d
from smallthinker.models.families import described
from smallthinker.models.published_families import FAMILIES

_COMMON: dict[str, Any] = {
    "architectures": ["SmallThinkerForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": [151643, 151645],
    "head_dim": 128,
    "initializer_range": 0.02,
    "model_type": "smallthinker",
    "moe_ffn_hidden_size": 768,
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1500000.0,
    "sliding_window_size": 4096,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}


def _dense() -> d.Model:
    norm = d.Norm(1e-6)
    layer = d.Layer(
        d.Attention(12, 2, 128, d.Rope(1e6, 128)),
        d.Ffn(8960 // 7, d.Activation("silu"), slices=7),
        d.Norms(norm, norm),
    )
    tokens = d.SpecialTokens(151_643, (151_643, 151_645))
    return d.Model(described.MODEL_TYPE, 151_936, 1536, 32_768, (layer,) * 28, norm, d.Head(tied=True), tokens)


PUBLISHED: dict[str, dict[str, Any]] = {
    "4b": _COMMON
    | {
        "model_name": "smallthinker_4b_instruct",
        "hidden_size": 1536,
        "max_position_embeddings": 32768,
        "moe_num_active_primary_experts": 4,
        "moe_num_primary_experts": 32,
        "num_attention_heads": 12,
        "num_hidden_layers": 32,
        "num_key_value_heads": 2,
        "rope_layout": [1] * 32,
        "sliding_window_layout": [0] * 32,
        "tie_word_embeddings": True,
    },
    "21b": _COMMON
    | {
        "model_name": "smallthinker_21b_instruct",
        "hidden_size": 2560,
        "max_position_embeddings": 16384,
        "moe_num_active_primary_experts": 6,
        "moe_num_primary_experts": 64,
        "moe_primary_router_apply_softmax": True,
        "num_attention_heads": 28,
        "num_hidden_layers": 52,
        "num_key_value_heads": 4,
        "rope_layout": [0, 1, 1, 1] * 13,
        "sliding_window_layout": [0, 1, 1, 1] * 13,
        "tie_word_embeddings": False,
    },
    "dense-1.5b": described.to_config(_dense()),
    "qwen3-30b-a3b": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "bos_token_id": 151643,
        "decoder_sparse_step": 1,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "olmoe": {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        "attention_bias": False,
        "clip_qkv": None,
        "eos_token_id": 50279,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "max_position_embeddings": 4096,
        "norm_topk_prob": False,
        "num_attention_heads": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 16,
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": 50304,
    },
    "gpt-oss-20b": {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "attention_bias": True,
        "eos_token_id": 200002,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "max_position_embeddings": 131072,
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 24,
        "num_key_value_heads": 8,
        "num_local_experts": 32,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000.0,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "vocab_size": 201088,
    },
} | FAMILIES


def published_shape(name: str) -> dict[str, Any] | None:
    """The config.json of a shape, whatever the case of its name; None for other names."""
    return PUBLISHED.get(name.lower())
