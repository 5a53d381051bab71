"""Models of four families, small enough to be made in seconds and large enough that budgets matter: some 200 MiB each,
with layers of 8 MiB, contexts of 2,048 tokens and vocabularies of 32,000."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from smallthinker.expert_store.synthetic.synth import synth

CONTEXT = 2048
_COMMON: dict[str, Any] = {
    "bos_token_id": 31998,
    "eos_token_id": [31998, 31999],
    "head_dim": 64,
    "hidden_size": 512,
    "max_position_embeddings": CONTEXT,
    "num_attention_heads": 8,
    "num_hidden_layers": 16,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "vocab_size": 32000,
}
# config.json and the format of each
SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "smallthinker": (
        _COMMON
        | {
            "architectures": ["SmallThinkerForCausalLM"],
            "moe_ffn_hidden_size": 256,
            "moe_num_active_primary_experts": 4,
            "moe_num_primary_experts": 32,
            "moe_primary_router_apply_softmax": True,
            "norm_topk_prob": True,
            "rope_layout": [0, 1, 1, 1] * 4,
            "sliding_window_layout": [0, 1, 1, 1] * 4,
            "sliding_window_size": 512,
            "tie_word_embeddings": False,
        },
        "q8_0",
    ),
    "qwen3_moe": (
        _COMMON
        | {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "decoder_sparse_step": 1,
            "intermediate_size": 1024,
            "mlp_only_layers": [],
            "moe_intermediate_size": 256,
            "norm_topk_prob": True,
            "num_experts": 32,
            "num_experts_per_tok": 8,
            "tie_word_embeddings": True,
        },
        "q8_0",
    ),
    "gpt_oss": (
        _COMMON
        | {
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "attention_bias": True,
            "intermediate_size": 512,
            "num_experts_per_tok": 4,
            "num_local_experts": 32,
            "sliding_window": 128,
            "swiglu_limit": 7.0,
            "tie_word_embeddings": False,
        },
        "mxfp4",
    ),
    "gemma3": (
        _COMMON
        | {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "intermediate_size": 6144,
            "query_pre_attn_scalar": 64,
            "sliding_window": 256,
            "sliding_window_pattern": 6,
            "tie_word_embeddings": True,
        },
        "q8_0",
    ),
}


def make_shape(name: str, folder: Path) -> Path:
    """A store of that family below the folder, made where it isn't there yet."""
    store = folder / name
    if not store.exists():
        config, quant = SHAPES[name]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.json"
        path.write_text(json.dumps(config))
        synth(str(path), store, quant)
    return store
