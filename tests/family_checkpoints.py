"""Tiny random checkpoints of every family, written by transformers itself, and its logits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

os.environ.setdefault("USE_HUB_KERNELS", "0")
FULL, SLIDING = "full_attention", "sliding_attention"

BASE: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-4, "tie_word_embeddings": False,
    "bos_token_id": 298, "eos_token_id": 299, "pad_token_id": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 4.0,
    "beta_slow": 1.0,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75,
    "short_factor": [1.0 + 0.1 * i for i in range(6)], "long_factor": [1.5 + 0.7 * i for i in range(6)],
    "original_max_position_embeddings": 48,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3}
GLM = {
    "head_dim": 32, "num_mtp_layers": 0, "moe_intermediate_size": 32, "n_routed_experts": 8, "num_experts_per_tok": 3,
    "n_shared_experts": 2, "routed_scaling_factor": 1.8, "first_k_dense_replace": 1,
}  # fmt: skip
MINISTRAL = {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3}
LLAMA4 = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "intermediate_size_mlp": 192,
    "no_rope_layers": [1, 1, 0, 1],
    "attention_chunk_size": 16,
    "floor_scale": 8,
    "attn_scale": 0.3,
    "interleave_moe_layer_step": 0,
}
GEMMA4 = {
    "num_hidden_layers": 4,
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "sliding_window": 12,
    "head_dim": 16,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 8.0,
    "tie_word_embeddings": True,
}
# model_type, and what it has over BASE.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 3": ("llama", {"rope_parameters": LLAMA3}),
    "smollm2": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "llama linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 5e5}}),
    "llama proportional": (
        "llama", {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e4}},
    ),
    "mistral": ("mistral", {"sliding_window": 12, "head_dim": 32}),
    "mistral nemo": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 2}),
    "qwen2 yarn": ("qwen2", {"rope_parameters": YARN, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3 biases": (
        "qwen3",
        {"head_dim": 32, "attention_bias": True, "use_sliding_window": True, "sliding_window": 9,
         "layer_types": [SLIDING, FULL, SLIDING]},
    ),
    "qwen3_moe": ("qwen3_moe", EXPERTS | {"moe_intermediate_size": 32, "norm_topk_prob": True, "head_dim": 32}),
    "qwen3_moe mixed": (
        "qwen3_moe",
        EXPERTS | {"moe_intermediate_size": 32, "mlp_only_layers": [1], "attention_bias": True, "head_dim": 32,
                   "use_sliding_window": True, "sliding_window": 12},
    ),
    "olmoe": ("olmoe", EXPERTS | {"intermediate_size": 32}),
    "olmoe clip": ("olmoe", EXPERTS | {"intermediate_size": 32, "norm_topk_prob": True, "clip_qkv": 0.9,
                                       "attention_bias": True}),
    "mixtral": ("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 12}),
    "mixtral whole": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "wide": ("llama", {"intermediate_size": 512, "num_hidden_layers": 1}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    "smollm3 keys": (
        "smollm3",
        {"no_rope_layers": [0, 1, 1], "use_sliding_window": True, "sliding_window": 9, "attention_bias": True,
         "mlp_bias": True},
    ),
    "gemma3": (
        "gemma3_text",
        {"num_hidden_layers": 7, "head_dim": 32, "sliding_window": 12, "query_pre_attn_scalar": 24,
         "tie_word_embeddings": True, "final_logit_softcapping": 9.0,
         "rope_parameters": {SLIDING: {"rope_type": "default", "rope_theta": 1e4},
                             FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}},
    ),
    "gemma3 scaled as heads": (
        "gemma3_text",
        {"num_hidden_layers": 7, "head_dim": 32, "sliding_window": 9, "query_pre_attn_scalar": 32,
         "tie_word_embeddings": True},
    ),
    "gemma3 pattern": ("gemma3_text", {"sliding_window": 9, "sliding_window_pattern": 2, "head_dim": 16}),
    "gpt_oss": (
        "gpt_oss",
        {"head_dim": 32, "sliding_window": 12, "num_local_experts": 8, "num_experts_per_tok": 3,
         "rope_parameters": YARN | {"truncate": False}, "swiglu_limit": 1.5},
    ),
    "gpt_oss limits as published": (
        "gpt_oss",
        {"head_dim": 32, "sliding_window": 12, "num_local_experts": 8, "num_experts_per_tok": 3,
         "rope_parameters": YARN | {"truncate": False}},
    ),
    "gpt_oss of half blocks": (
        "gpt_oss",
        {"head_dim": 32, "sliding_window": 12, "num_local_experts": 8, "num_experts_per_tok": 3,
         "intermediate_size": 48, "rope_parameters": YARN | {"truncate": False}},
    ),
    "phi3": (
        "phi3",
        {"rope_parameters": LONG, "original_max_position_embeddings": 48, "sliding_window": 20,
         "max_position_embeddings": 192},
    ),
    "phi3 plain": ("phi3", {}),
    "ministral3": ("ministral3", {"head_dim": 32, "rope_parameters": YARN | MINISTRAL}),
    "ministral3 window": (
        "ministral3",
        {"head_dim": 32, "sliding_window": 20, "rope_parameters": YARN | MINISTRAL | {"mscale_all_dim": 0.5}},
    ),
    "llama4": ("llama4_text", LLAMA4 | {"moe_layers": [], "tie_word_embeddings": True}),
    "llama4 whole": (
        "llama4_text",
        LLAMA4 | {"moe_layers": [], "no_rope_layers": [1, 1, 1, 1], "attention_chunk_size": None, "use_qk_norm": False},
    ),
    "llama4 of half blocks": (
        "llama4_text",
        LLAMA4 | {"interleave_moe_layer_step": 2, "num_local_experts": 8, "num_experts_per_tok": 2,
                  "intermediate_size": 48, "intermediate_size_mlp": 144},
    ),
    "llama4 experts": (
        "llama4_text",
        LLAMA4 | {"interleave_moe_layer_step": 2, "num_local_experts": 8, "num_experts_per_tok": 2,
                  "intermediate_size": 32, "attention_bias": True},
    ),
    "gemma4 experts": (
        "gemma4_text",
        GEMMA4 | {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "enable_moe_block": True, "num_experts": 8,
                  "top_k_experts": 3, "moe_intermediate_size": 32},
    ),
    "gemma4 biases": ("gemma4_text", GEMMA4 | {"attention_bias": True, "num_kv_shared_layers": 1}),
    "gemma4 shared keys": (
        "gemma4_text",
        GEMMA4 | {"num_kv_shared_layers": 2, "use_double_wide_mlp": True,
                  "layer_types": [SLIDING, FULL, SLIDING, SLIDING, FULL], "num_hidden_layers": 5},
    ),
    "gemma4 small": (
        "gemma4_text",
        GEMMA4 | {"num_kv_shared_layers": 2, "use_double_wide_mlp": True, "num_key_value_heads": 1,
                  "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 300},
    ),
    # columns that are no whole blocks
    "gemma4 narrow inputs": (
        "gemma4_text", GEMMA4 | {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 300},
    ),
    "glm4_moe": ("glm4_moe", GLM | {"use_qk_norm": True, "attention_bias": True}),
    "glm4_moe groups": ("glm4_moe", GLM | {"n_group": 4, "topk_group": 2, "norm_topk_prob": False}),
}  # fmt: skip

# Where another one has two experts that are as good as equal for some token, of which rounding may rightly choose
# either; or scores so large that keys in f16 move them.
SEEDS = {"gemma4 experts": 5, "gemma4 narrow inputs": 1}
SAVED_BUFFERS = ("correction_bias", "layer_scalar")
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}  # the others know no float64


class Made(NamedTuple):
    """A checkpoint, tokens, and transformers' logits of them in float64."""

    folder: Path
    tokens: torch.Tensor
    logits: torch.Tensor


def make_checkpoint(name: str, folder: Path, seed: int | None = None) -> Made:
    """Weights large enough that every part matters in the logits."""
    import transformers as hf

    kind, changes = CASES[name]
    config = hf.AutoConfig.for_model(kind, **(BASE | changes))
    torch.manual_seed(SEEDS.get(name, 0) if seed is None else seed)
    model = hf.AutoModelForCausalLM.from_config(config, **EAGER).float().eval()
    with torch.no_grad():
        for weight in [*model.parameters(), *(b for n, b in model.named_buffers() if n.endswith(SAVED_BUFFERS))]:
            noise = torch.randn_like(weight)
            weight.copy_(weight + 0.3 * noise if weight.dim() < 2 else noise * 1.2 * weight.shape[-1] ** -0.5)
        for key, weight in model.named_parameters():
            if key.endswith("router.scale"):  # which is divided by the root of the size
                weight *= weight.numel() ** 0.5
    model.save_pretrained(folder)
    tokens = torch.randint(0, 256, (1, 60), generator=torch.Generator().manual_seed(1))
    return Made(folder, tokens, transformers_logits(folder, tokens, torch.float64))


def transformers_logits(folder: Path, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[T, V] of a checkpoint."""
    import transformers as hf

    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **EAGER).eval()
    # told otherwise than by a number, it doesn't try to compute fewer positions of shared keys, at which it would fail
    more = {"logits_to_keep": torch.arange(tokens.shape[1])} if hasattr(model.config, "num_kv_shared_layers") else {}
    with torch.no_grad():
        logits: torch.Tensor = model(tokens, use_cache=False, **more).logits[0]
    return logits
