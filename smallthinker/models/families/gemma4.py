"""Gemma 4, text: two kinds of attention with heads of their own, and experts beside a dense network (26B-A4B).

Five of six layers have a window; in the others a quarter of the pairs of a wide head turns, and keys may be values.
The last layers may read earlier ones' keys and values. Small ones (E2B, E4B) have an embedding for each layer, too,
whose table is larger than all of their layers. Knows nothing about stores or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from smallthinker.models import beside_keys, decoder, gguf_decoder, layer_keys
from smallthinker.models import description as d
from smallthinker.models.gguf_keys import FACTORS, GgufFacts, GgufKeys
from smallthinker.models.keys import LAYER_TYPES, Keys

ARCHITECTURE = "Gemma4ForCausalLM"
MODEL_TYPE, GGUF_ARCHITECTURE = "gemma4_text", "gemma4"

# What absent keys mean: the defaults of transformers' Gemma4TextConfig.
_ABSENT: Mapping[str, Any] = {
    "vocab_size": 262_144, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "attention_bias": False,
    "sliding_window": 512, "hidden_size_per_layer_input": 256, "attention_k_eq_v": False, "num_kv_shared_layers": 0,
    "enable_moe_block": False, "use_double_wide_mlp": False, "global_head_dim": 512,
    "vocab_size_per_layer_input": 262_144,
}  # fmt: skip
_ABSENT_THETA, _ABSENT_BOS, _ABSENT_EOS, _PATTERN = 1e4, 2, 1, 6
_ABSENT_POSITIONS = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
}
_IGNORED = {"vocab_size_per_layer_input"}  # but where there are such embeddings
_LIMITS = decoder.LIMITS | {"global_head_dim": 1_024, "num_global_key_value_heads": 1_024}
_FULL, _SLIDING = LAYER_TYPES

CHECKPOINT_NAMES = {
    **decoder.ATTENTION_NAMES,
    **decoder.SANDWICH_NAMES,
    **layer_keys.INPUT_NAMES,
    **beside_keys.NAMES,
    "output_scale": "model.layers.{layer}.layer_scalar",
}
# Keys and values of layers that read other ones', which published files have all the same.
UNUSED_TENSORS = (r"model\.layers\.\d+\.self_attn\.([kv]_proj|k_norm)\.weight",)
UNUSED_IN_GGUF = (r"blk\.\d+\.attn_([kv]|k_norm)\.weight",)
GGUF_NAMES = gguf_decoder.NAMES_OF_SANDWICHES | beside_keys.GGUF_NAMES


def from_config(raw: Mapping[str, Any], *, in_store: bool = False) -> d.Model:
    """The model of a parsed config.json. Raises ConfigError, naming the key."""
    positions = raw.get("rope_parameters") or _ABSENT_POSITIONS
    keys = Keys({**_ABSENT, **raw, "rope_parameters": positions}, _IGNORED, _LIMITS)
    common = decoder.common(keys, _ABSENT_BOS, _ABSENT_EOS, own=("per_layer_config",))
    types = keys.layer_types(layer_keys.types_of_period(common.layers, _PATTERN))
    types = (*types[:-1], _FULL)  # the last one is, whatever the file says
    window, bias = layer_keys.check_window(keys.window("sliding_window"), types), keys.flag("attention_bias")
    keys_are_values = keys.flag("attention_k_eq_v")
    global_kv_heads = keys.positive("num_global_key_value_heads", null=common.kv_heads)
    published = global_kv_heads if keys_are_values else common.kv_heads, keys.positive("global_head_dim")
    kv_heads, head_dim = layer_keys.heads_of_full_layers(keys, types, common.kv_heads, published)
    ropes = layer_keys.ropes(keys, types, {_FULL: head_dim, _SLIDING: common.head_dim}, common.context, _ABSENT_THETA)
    mixer = d.Attention(common.heads, common.kv_heads, common.head_dim, None, scale=1.0, bias=bias, out_bias=bias)
    mixer = replace(mixer, qk_norm=common.norm, v_norm=replace(common.norm, has_weight=False))
    values: Literal["keys", "own"] = "keys" if keys_are_values else "own"
    full = replace(mixer, kv_heads=kv_heads, head_dim=head_dim, rope=ropes[_FULL], values=values)
    mixers = {_SLIDING: replace(mixer, rope=ropes[_SLIDING], window=window), _FULL: full}
    sources = layer_keys.sources(keys, types)
    dense = decoder.dense(keys, common.hidden, act := decoder.activation(keys, "hidden_activation"))
    wide = replace(dense, slices=dense.slices * (2 if keys.flag("use_double_wide_mlp") else 1))
    networks = beside_keys.networks(keys, common, act, [dense if source is None else wide for source in sources])
    inputs = layer_keys.layer_inputs(keys, common)
    gate = None if inputs is None else d.InputGate(act, common.norm)
    head = replace(common.head, softcap=decoder.softcap(keys))
    keys.only("use_bidirectional_attention", (None, "vision"))
    keys.reject_unknown()
    norms = d.Norms(common.norm, common.norm, common.norm, common.norm)
    layers = [
        d.Layer(replace(mixers[kind], kv_of=source), network, norms, input_gate=gate, output_scale=True)
        for kind, source, network in zip(types, sources, networks, strict=True)
    ]
    return common.model(MODEL_TYPE, layers, head=head, embedding_scale=common.hidden**0.5, layer_inputs=inputs)


def to_config(model: d.Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `from_config` gives back an equal one."""
    full, last = model.layers[-1].attention, model.layers[-1].ffn
    assert last is not None
    found = layer_keys.gemma_keys(model, ARCHITECTURE)
    return found | {
        **beside_keys.keys_of(last),
        "per_layer_config": layer_keys.per_layer_config(found["layer_types"], full.kv_heads, full.head_dim),
        "attention_k_eq_v": full.values == "keys",
        "hidden_size_per_layer_input": 0 if model.layer_inputs is None else model.layer_inputs.size,
        "vocab_size_per_layer_input": model.vocab_size,
        "num_kv_shared_layers": sum(layer.attention.kv_of is not None for layer in model.layers),
        "use_double_wide_mlp": decoder.dense_keys(last)["intermediate_size"] > found["intermediate_size"],
    }


def from_gguf(keys: GgufKeys, facts: GgufFacts) -> dict[str, Any]:
    """The config.json that says what llama.cpp would compute. Raises ConfigError, naming the metadata's key."""
    width, kv_heads = keys.take("feed_forward_length"), keys.take("attention.head_count_kv")
    raw = gguf_decoder.common(keys, facts, ARCHITECTURE)
    types = gguf_decoder.layer_types(keys, raw["num_hidden_layers"], _PATTERN)
    widths = gguf_decoder.of_layers(keys, "feed_forward_length", width, len(types))
    if types[-1:] != [_FULL]:
        raise keys.fault("attention.sliding_window_pattern", "a last layer without a window", types)
    if raw["rope_scaling"] is None:
        raise keys.fault("rope", f"{FACTORS[0]}, a factor of each rotary pair", None)
    raw |= gguf_decoder.heads_of_types(keys, raw, types, kv_heads)
    raw["rope_parameters"] = gguf_decoder.rope_parameters(keys, raw, _ABSENT_THETA)
    full_layers = [n for n, kind in enumerate(types) if kind == _FULL]
    has_values = any(facts.has(f"blk.{n}.attn_v.weight") for n in full_layers)  # not all: some may read other layers'
    return raw | {
        **beside_keys.from_gguf(keys),
        "intermediate_size": widths[0],
        "use_double_wide_mlp": widths[-1] != widths[0],
        "attention_k_eq_v": not has_values,
        "sliding_window": keys.integer("attention.sliding_window"),
        "layer_types": types,
        "num_kv_shared_layers": keys.integer("attention.shared_kv_layers", 0),
        "hidden_size_per_layer_input": keys.integer("embedding_length_per_layer_input", 0),
        "vocab_size_per_layer_input": facts.vocab_size,
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0) or None,
    }
