"""gpt-oss (arXiv 2508.10925): sinks, biases everywhere, clamped SwiGLU, a window in every other layer.

Checkpoints stack a layer's experts, [E, columns, rows], with gate and up row by row in turn, or have them packed as
MXFP4. Knows nothing about stores or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallthinker.models import decoder, gguf_decoder, layer_keys
from smallthinker.models import description as d
from smallthinker.models.gguf_keys import GgufFacts, GgufKeys
from smallthinker.models.keys import Keys
from smallthinker.models.places import Stored
from smallthinker.models.rope_keys import rope, rope_keys

ARCHITECTURE = "GptOssForCausalLM"
MODEL_TYPE, GGUF_ARCHITECTURE = "gpt_oss", "gpt-oss"

# What absent keys mean: the defaults of transformers' GptOssConfig. Every expert is of intermediate_size.
_ABSENT: Mapping[str, Any] = {
    "vocab_size": 201_088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "attention_bias": True, "sliding_window": 128,
    "num_local_experts": 128, "num_experts_per_tok": 4, "swiglu_alpha": 1.702, "swiglu_limit": 7.0,
}  # fmt: skip
_ABSENT_THETA = 150_000.0
_ABSENT_SCALING = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
_PACKED = {"quant_method", "modules_to_not_convert"}  # all that says how the published files are packed: MXFP4
_IGNORED = {"initial_context_length"}  # rope_scaling says it

_MOE = "model.layers.{layer}.mlp."
CHECKPOINT_NAMES = decoder.ATTENTION_NAMES | {
    "sinks": "model.layers.{layer}.self_attn.sinks",
    "router": f"{_MOE}router.weight",
    "router_bias": f"{_MOE}router.bias",
    **{
        part: Stored(f"{_MOE}experts.gate_up_proj", joined=("gate", "up"), taking_turns=True, transposed=True)
        for part in ("gate", "up")
    },
    **{
        f"{part}_bias": Stored(f"{_MOE}experts.gate_up_proj_bias", joined=("gate_bias", "up_bias"), taking_turns=True)
        for part in ("gate", "up")
    },
    "down": Stored(f"{_MOE}experts.down_proj", transposed=True),
    "down_bias": f"{_MOE}experts.down_proj_bias",
}
GGUF_NAMES = {
    **gguf_decoder.NAMES,
    "post_attention_layernorm": "blk.{layer}.post_attention_norm.weight",
    "sinks": "blk.{layer}.attn_sinks.weight",
    "router_bias": "blk.{layer}.ffn_gate_inp.bias",
    **{f"{part}_bias": f"blk.{{layer}}.ffn_{part}_exps.bias" for part in ("gate", "up", "down")},
}


def from_config(raw: Mapping[str, Any], *, in_store: bool = False) -> d.Model:
    """The model of a parsed config.json. Raises ConfigError, naming the key."""
    if raw.get("rope_scaling") is None and raw.get("rope_parameters") is None:
        raw = {**raw, "rope_scaling": _ABSENT_SCALING}
    packed = raw.get("quantization_config")
    if isinstance(packed, Mapping) and packed.get("quant_method") == "mxfp4" and set(packed) <= _PACKED:
        raw = {**raw, "quantization_config": None}
    keys = Keys({**_ABSENT, **raw}, _IGNORED, decoder.LIMITS)
    common = decoder.common(keys)
    bias = keys.flag("attention_bias")
    mixer = d.Attention(
        common.heads,
        common.kv_heads,
        common.head_dim,
        rope(keys, common.head_dim, common.context, _ABSENT_THETA),
        bias=bias,
        out_bias=bias,
        sinks=True,
    )
    window = keys.window("sliding_window")
    types = keys.layer_types(["full_attention" if n % 2 else "sliding_attention" for n in range(common.layers)])
    layer_keys.check_window(window, types)
    experts = keys.positive("num_local_experts")
    used = keys.positive("num_experts_per_tok", most=experts)
    keys.agrees("num_experts", (None, experts), "num_local_experts")
    keys.agrees("experts_per_token", (None, used), "num_experts_per_tok")
    keys.only("hidden_act", ("silu",))
    limit, alpha = keys.number("swiglu_limit", 1e-3, 1e6), keys.number("swiglu_alpha", 1e-3, 1e6)
    network = d.Ffn(
        keys.positive("intermediate_size", multiple_of=d.TILE),
        d.Activation("clamped_swiglu", limit, alpha),
        bias=True,
        router=d.Router(experts, used, "ffn_input", "softmax", over="chosen", normalise=True, bias="logits"),
    )
    keys.reject_unknown()
    norms = d.Norms(common.norm, common.norm)
    return common.model(MODEL_TYPE, layer_keys.in_layers(mixer, [network] * common.layers, norms, window, types))


def to_config(model: d.Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `from_config` gives back an equal one."""
    mixer, ffn = model.layers[0].attention, model.layers[0].ffn
    assert ffn is not None and ffn.router is not None and mixer.rope is not None
    positions = rope_keys(mixer.rope)
    return {
        **decoder.common_keys(model, ARCHITECTURE),
        **positions,
        "rope_scaling": positions["rope_scaling"] or {"rope_type": "default"},
        "intermediate_size": ffn.width,
        "attention_bias": mixer.bias,
        "sliding_window": layer_keys.window_of(model),
        "layer_types": layer_keys.layer_types(model),
        "num_local_experts": ffn.router.experts,
        "num_experts_per_tok": ffn.router.k,
        "swiglu_limit": ffn.activation.limit,
        "swiglu_alpha": ffn.activation.alpha,
    }


def from_gguf(keys: GgufKeys, facts: GgufFacts) -> dict[str, Any]:
    """The config.json of the model; what metadata can't say is as published. Raises ConfigError, naming the key."""
    raw = gguf_decoder.common(keys, facts, ARCHITECTURE)
    keys.integer("feed_forward_length", 0)
    if raw["rope_scaling"] is not None:
        raw["rope_scaling"]["truncate"] = False
    return raw | {
        "rope_scaling": raw["rope_scaling"] or {"rope_type": "default"},
        "intermediate_size": keys.integer("expert_feed_forward_length"),
        "sliding_window": keys.integer("attention.sliding_window"),
        "num_local_experts": keys.integer("expert_count"),
        "num_experts_per_tok": keys.integer("expert_used_count"),
    }
