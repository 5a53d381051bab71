"""What llama.cpp's files of decoder-only models have in common: names of tensors, and metadata as a config.json.

Owns what llama.cpp takes for granted of every architecture. Each family's file says what its own files have besides;
nothing here knows a family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smallthinker.models.gguf_keys import FACTORS, GgufFacts, GgufKeys
from smallthinker.models.layer_keys import per_layer_config
from smallthinker.models.places import Stored
from smallthinker.models.rope_keys import turning_part

_MOST_LAYERS = 1024
_INFINITE = 1e29  # a factor of a pair that doesn't turn is 1e30
_LAYER = "blk.{layer}."
# Where a layer's experts are one tensor.
NAMES: dict[str, str | Stored] = {
    "embed_tokens": "token_embd.weight",
    "lm_head": "output.weight",
    "norm": "output_norm.weight",
    "router": f"{_LAYER}ffn_gate_inp.weight",
    "input_layernorm": f"{_LAYER}attn_norm.weight",
    "post_attention_layernorm": f"{_LAYER}ffn_norm.weight",
    **{f"{part}_proj": f"{_LAYER}attn_{part}.weight" for part in "qkv"},
    **{f"{part}_proj_bias": f"{_LAYER}attn_{part}.bias" for part in "qkv"},
    "o_proj": f"{_LAYER}attn_output.weight",
    "o_proj_bias": f"{_LAYER}attn_output.bias",
    **{f"{part}_norm": f"{_LAYER}attn_{part}_norm.weight" for part in "qk"},
    **{part: f"{_LAYER}ffn_{part}_exps.weight" for part in ("gate", "up", "down")},
    **{f"dense_{part}": f"{_LAYER}ffn_{part}.weight" for part in ("gate", "up", "down")},
    **{f"dense_{part}_bias": f"{_LAYER}ffn_{part}.bias" for part in ("gate", "up", "down")},
    **{f"shared_{part}": f"{_LAYER}ffn_{part}_shexp.weight" for part in ("gate", "up", "down")},
    **{f"beside_{part}": f"{_LAYER}ffn_{part}.weight" for part in ("gate", "up", "down")},
    "beside_norm": f"{_LAYER}ffn_norm.weight",
    "beside_out_norm": f"{_LAYER}post_ffw_norm_1.weight",
    "experts_out_norm": f"{_LAYER}post_ffw_norm_2.weight",
    "router_norm": f"{_LAYER}ffn_gate_inp.scale",
    "router_expert_scale": f"{_LAYER}ffn_down_exps.scale",
    "output_scale": f"{_LAYER}layer_output_scale.weight",
    "layer_embeddings": "per_layer_token_embd.weight",
    "layer_inputs_proj": "per_layer_model_proj.weight",
    "layer_inputs_norm": "per_layer_proj_norm.weight",
    "input_gate": f"{_LAYER}inp_gate.weight",
    "input_proj": f"{_LAYER}proj.weight",
    "input_out_norm": f"{_LAYER}post_norm.weight",
}
# Of llama's relatives: llama.cpp turns pairs that lie side by side there, so its converter moves rows.
NAMES_OF_LLAMA: dict[str, str | Stored] = {
    **NAMES,
    **{f"{part}_proj": Stored(f"{_LAYER}attn_{part}.weight", rotary_neighbours=True) for part in "qk"},
    **{f"{part}_proj_bias": Stored(f"{_LAYER}attn_{part}.bias", rotary_neighbours=True) for part in "qk"},
}
# Where norms stand behind both parts of a layer, too.
_SANDWICH = {
    "attention_out_norm": "post_attention_norm", "ffn_out_norm": "post_ffw_norm",
}  # fmt: skip
NAMES_OF_SANDWICHES: dict[str, str | Stored] = {
    **NAMES, **{role: f"{_LAYER}{name}.weight" for role, name in _SANDWICH.items()},
}  # fmt: skip


def name_of(role: str) -> str:
    """Of a file with sandwiches, which has all names that others have."""
    stored = NAMES_OF_SANDWICHES[role]
    return stored if isinstance(stored, str) else stored.name


def layer_types(keys: GgufKeys, layers: int, period: int) -> list[str]:
    """period: where the file doesn't say which layers have the window, all but each so many's last. Raises
    ConfigError."""
    pattern = keys.take("attention.sliding_window_pattern", period)
    if type(pattern) is int and pattern > 0:
        pattern = [(layer + 1) % pattern != 0 for layer in range(min(layers, _MOST_LAYERS))]
    if not isinstance(pattern, list) or len(pattern) != layers or any(type(one) is not bool for one in pattern):
        raise keys.fault("attention.sliding_window_pattern", f"an integer or {layers} times true or false", pattern)
    return ["sliding_attention" if one else "full_attention" for one in pattern]


def of_layers(keys: GgufKeys, key: str, value: Any, layers: int) -> list[int]:
    """What a key says of each layer: one number, or a list of them. Raises ConfigError."""
    values = value if isinstance(value, list) else [value] * min(layers, _MOST_LAYERS)
    if len(values) != layers or any(type(one) is not int for one in values):
        raise keys.fault(key, f"an integer or {layers} of them", value)
    return values


def common(keys: GgufKeys, facts: GgufFacts, architecture: str, *, partial: bool = False) -> dict[str, Any]:
    """What llama.cpp's converter writes for every architecture, as a config.json. partial: a part of each head may
    turn. Raises ConfigError."""
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", hidden // max(heads, 1))
    context, turned = keys.integer("context_length"), keys.integer("rope.dimension_count", head_dim)
    keys.same(
        "attention.value_length", keys.integer("attention.value_length", head_dim), head_dim, "attention.key_length"
    )
    keys.same("vocab_size", keys.integer("vocab_size", facts.vocab_size), facts.vocab_size, "tokens")
    keys.only("attention.causal", (True,))
    if not partial:
        keys.same("rope.dimension_count", turned, head_dim, "attention.key_length")
    return {
        "architectures": [architecture],
        "hidden_size": hidden,
        "num_hidden_layers": keys.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": facts.vocab_size,
        "max_position_embeddings": context,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10_000.0),
        "rope_scaling": _scaling(keys, facts, context, turned // 2),
        **({"partial_rotary_factor": turned / max(head_dim, 1)} if partial else {}),
        "tie_word_embeddings": facts.tied,
        "bos_token_id": facts.bos_token_id,
        "eos_token_id": facts.eos_token_ids,
    }


def rope_parameters(keys: GgufKeys, raw: dict[str, Any], theta: float) -> dict[str, Any]:
    """Positions of both types of layers, where each has a base of its own; what `raw` says of those without a window is
    taken out of it. theta: what an absent base of the others means. Raises ConfigError."""
    return {
        "full_attention": {"rope_theta": raw.pop("rope_theta")} | (raw.pop("rope_scaling") or {"rope_type": "default"}),
        "sliding_attention": {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", theta)},
    }


def heads_of_types(keys: GgufKeys, raw: Mapping[str, Any], types: Sequence[str], kv_heads: Any) -> dict[str, Any]:
    """Heads of both types of layers, where each has its own; `raw` has those of layers without a window. kv_heads: what
    `attention.head_count_kv` says. Raises ConfigError."""
    size = keys.integer("attention.key_length_swa")
    for key in ("attention.value_length_swa", "rope.dimension_count_swa"):
        keys.same(key, keys.integer(key, size), size, "attention.key_length_swa")
    counts = dict(zip(types, of_layers(keys, "attention.head_count_kv", kv_heads, len(types)), strict=True))
    full = counts["full_attention"]
    return {
        "head_dim": size,
        "num_key_value_heads": counts.get("sliding_attention", full),
        "per_layer_config": per_layer_config(types, full, raw["head_dim"]),
    }


def _scaling(keys: GgufKeys, facts: GgufFacts, context: int, pairs: int) -> dict[str, Any] | None:
    kind = keys.text("rope.scaling.type", "none")
    factor = keys.number("rope.scaling.factor", 1.0)
    whole, long, short = (facts.factors(name) for name in FACTORS)
    if whole is not None or long is not None:
        if kind not in ("none", "longrope") or factor not in (0.0, 1.0):
            raise keys.fault("rope.scaling.type", "'none' or 'longrope', beside factors of each pair", kind)
        turning = whole.count(1.0) if whole else 0
        if whole and len(whole) == pairs and all(f >= _INFINITE for f in whole[turning:]):
            return {"rope_type": "proportional", "partial_rotary_factor": turning_part(turning, 2 * pairs)}
        original = keys.integer("rope.scaling.original_context_length", context)
        return {
            "rope_type": "longrope",
            "short_factor": whole or short,
            "long_factor": whole or long,
            "original_max_position_embeddings": original,
            "attention_factor": keys.number("rope.scaling.attn_factor", 1.0),
        }
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        keys.same("rope.scaling.factor", factor or 1.0, 1.0, "without a rope.scaling.type")
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise keys.fault("rope.scaling.type", "'none', 'linear' or 'yarn', or 'longrope' with its factors", kind)
    keys.only("rope.scaling.yarn_ext_factor", (1.0, -1.0))
    keys.only("rope.scaling.yarn_attn_factor", (1.0,))  # llama.cpp multiplies by it, transformers does not
    log = keys.number("rope.scaling.yarn_log_multiplier", 0.0)
    return {
        **({"mscale": 1.0, "mscale_all_dim": log} if log else {}),
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.integer("rope.scaling.original_context_length"),
        "beta_fast": keys.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.number("rope.scaling.yarn_beta_slow", 1.0),
    }
