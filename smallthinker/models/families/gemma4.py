"""Gemma 4, text: two kinds of attention with heads of their own, and experts beside a dense network (26B-A4B).

Five of six layers have a window; in the others a quarter of the pairs of a wide head turns, and keys may be values.
The last layers may read earlier ones' keys and values. Small ones (E2B, E4B) have an embedding for each layer, too,
whose table is larger than all of their layers. Knows nothing about stores or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from smallthinker.errors import ConfigError, shown
from smallthinker.models import decoder, gguf_decoder
from smallthinker.models import description as d
from smallthinker.models.gguf_keys import FACTORS, GgufFacts, GgufKeys
from smallthinker.models.keys import LAYER_TYPES, Keys
from smallthinker.models.places import Stored

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
_ABSENT_BOS, _ABSENT_EOS, _PATTERN = 2, 1, 6
_ABSENT_POSITIONS = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
}
_IGNORED = {"vocab_size_per_layer_input"}  # but where there are such embeddings
_LIMITS = decoder.LIMITS | {
    "global_head_dim": 1_024, "num_global_key_value_heads": 1_024, "top_k_experts": 256, "num_kv_shared_layers": 1_024,
    "hidden_size_per_layer_input": 65_536,
}  # fmt: skip
_FULL, _SLIDING = LAYER_TYPES

_LAYER = "model.layers.{layer}."
_NORMS = {
    "attention_out_norm": "post_attention_layernorm",
    "post_attention_layernorm": "pre_feedforward_layernorm_2",
    "dense_post_attention_layernorm": "pre_feedforward_layernorm",
    "ffn_out_norm": "post_feedforward_layernorm",
    "beside_norm": "pre_feedforward_layernorm",
    "beside_out_norm": "post_feedforward_layernorm_1",
    "experts_out_norm": "post_feedforward_layernorm_2",
    "input_out_norm": "post_per_layer_input_norm",
}
_PARTS = ("gate", "up", "down")
CHECKPOINT_NAMES = decoder.ATTENTION_NAMES | {
    **{role: f"{_LAYER}{name}.weight" for role, name in _NORMS.items()},
    "output_scale": f"{_LAYER}layer_scalar",
    "layer_embeddings": "model.embed_tokens_per_layer.weight",
    "layer_inputs_proj": "model.per_layer_model_projection.weight",
    "layer_inputs_norm": "model.per_layer_projection_norm.weight",
    "input_gate": f"{_LAYER}per_layer_input_gate.weight",
    "input_proj": f"{_LAYER}per_layer_projection.weight",
    "router": f"{_LAYER}router.proj.weight",
    "router_norm": f"{_LAYER}router.scale",
    "router_expert_scale": f"{_LAYER}router.per_expert_scale",
    **{part: Stored(f"{_LAYER}experts.gate_up_proj", joined=("gate", "up")) for part in ("gate", "up")},
    "down": f"{_LAYER}experts.down_proj",
    **{f"{kind}_{part}": f"{_LAYER}mlp.{part}_proj.weight" for kind in ("beside", "dense") for part in _PARTS},
}
# Keys and values of layers that read other ones', which published files have all the same.
UNUSED_TENSORS = (r"model\.layers\.\d+\.self_attn\.([kv]_proj|k_norm)\.weight",)
_GGUF = "blk.{layer}."
UNUSED_IN_GGUF = (r"blk\.\d+\.attn_([kv]|k_norm)\.weight",)
GGUF_NAMES = gguf_decoder.NAMES_OF_SANDWICHES | {
    "post_attention_layernorm": f"{_GGUF}pre_ffw_norm_2.weight",
    "dense_post_attention_layernorm": f"{_GGUF}ffn_norm.weight",
    "beside_norm": f"{_GGUF}ffn_norm.weight",
    "beside_out_norm": f"{_GGUF}post_ffw_norm_1.weight",
    "experts_out_norm": f"{_GGUF}post_ffw_norm_2.weight",
    "output_scale": f"{_GGUF}layer_output_scale.weight",
    "layer_embeddings": "per_layer_token_embd.weight",
    "layer_inputs_proj": "per_layer_model_proj.weight",
    "layer_inputs_norm": "per_layer_proj_norm.weight",
    "input_gate": f"{_GGUF}inp_gate.weight",
    "input_proj": f"{_GGUF}proj.weight",
    "input_out_norm": f"{_GGUF}post_norm.weight",
    "router_norm": f"{_GGUF}ffn_gate_inp.scale",
    "router_expert_scale": f"{_GGUF}ffn_down_exps.scale",
    **{part: Stored(f"{_GGUF}ffn_gate_up_exps.weight", joined=("gate", "up")) for part in ("gate", "up")},
    **{f"beside_{part}": f"{_GGUF}ffn_{part}.weight" for part in _PARTS},
}


def from_config(raw: Mapping[str, Any], *, in_store: bool = False) -> d.Model:
    """The model of a parsed config.json. Raises ConfigError, naming the key."""
    plain = {key: value for key, value in raw.items() if key not in ("per_layer_config", "rope_parameters")}
    keys = Keys({**_ABSENT, **plain}, _IGNORED, _LIMITS)
    common = decoder.common(keys, _ABSENT_BOS, _ABSENT_EOS)
    types = keys.layer_types([_SLIDING if (n + 1) % _PATTERN else _FULL for n in range(common.layers)])
    types = (*types[:-1], _FULL)  # the last one is, whatever the file says
    window = decoder.check_window(keys.window("sliding_window"), types)
    positions = raw.get("rope_parameters") or _ABSENT_POSITIONS
    keys_are_values, bias = keys.flag("attention_k_eq_v"), keys.flag("attention_bias")
    kv_heads, head_dim = _of_full_layers(keys, raw.get("per_layer_config"), types, keys_are_values, common.kv_heads)
    sliding = d.Attention(
        common.heads,
        common.kv_heads,
        common.head_dim,
        _rope(positions, _SLIDING, common.head_dim),
        window=window,
        scale=1.0,
        qk_norm=common.norm,
        v_norm=replace(common.norm, has_weight=False),
        bias=bias,
        out_bias=bias,
    )
    full = replace(
        sliding,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope=_rope(positions, _FULL, head_dim),
        window=0,
        values="keys" if keys_are_values else "own",
    )
    mixers = {_SLIDING: sliding, _FULL: full}
    sources = _sources(keys, types)
    dense = decoder.dense(keys, common.hidden, act := decoder.activation(keys, "hidden_activation"))
    wide = replace(dense, slices=dense.slices * (2 if keys.flag("use_double_wide_mlp") else 1))
    networks = [dense if source is None else wide for source in sources]
    if keys.flag("enable_moe_block"):
        networks = [_with_experts(keys, common, act, network) for network in networks]
    softcap = 0.0 if keys.get("final_logit_softcapping") is None else keys.number("final_logit_softcapping", 1e-3, 1e6)
    inputs = _layer_inputs(keys, common)
    gate = None if inputs is None else d.InputGate(act, common.norm)
    keys.only("use_bidirectional_attention", (None, "vision"))
    for key in () if keys.raw["enable_moe_block"] else ("num_experts", "top_k_experts", "moe_intermediate_size"):
        keys.get(key)
    keys.reject_unknown()
    norms = d.Norms(common.norm, common.norm, common.norm, common.norm)
    return common.model(
        MODEL_TYPE,
        [
            d.Layer(replace(mixers[kind], kv_of=source), network, norms, input_gate=gate, output_scale=True)
            for kind, source, network in zip(types, sources, networks, strict=True)
        ],
        head=replace(common.head, softcap=softcap),
        embedding_scale=common.hidden**0.5,
        layer_inputs=inputs,
    )


def _layer_inputs(keys: Keys, common: decoder.Common) -> d.LayerInputs | None:
    if keys.get("hidden_size_per_layer_input") in (None, 0):
        return None
    size = keys.positive("hidden_size_per_layer_input")
    keys.only("vocab_size_per_layer_input", (common.vocab,))
    return d.LayerInputs(size, common.norm, size**0.5, common.hidden**-0.5, 2**-0.5)


def _of_full_layers(
    keys: Keys, overrides: Any, types: Sequence[str], keys_are_values: bool, kv_heads: int
) -> tuple[int, int]:
    """Key heads and head_dim of layers without a window: as transformers writes it, or as published."""
    published = keys.positive("global_head_dim")
    heads = keys.positive("num_global_key_value_heads", null=kv_heads)
    if overrides is None:
        return heads if keys_are_values else kv_heads, published
    numbers = [n for n, kind in enumerate(types) if kind == _FULL]
    found_numbers = [str(key) for key in overrides] if isinstance(overrides, Mapping) else []
    if not all(key.isdecimal() for key in found_numbers) or sorted(map(int, found_numbers)) != numbers:
        raise ConfigError(f"per_layer_config: expected the layers without a window, found {shown(overrides)}")
    found = {shown(value): value for value in overrides.values()}
    of, *others = found.values()
    if others or not isinstance(of, Mapping) or not set(of) <= {"head_dim", "num_key_value_heads"}:
        raise ConfigError(f"per_layer_config: expected one head_dim and num_key_value_heads, found {shown(overrides)}")
    read = Keys({"head_dim": published, "num_key_value_heads": kv_heads, **of}, (), _LIMITS)
    return read.positive("num_key_value_heads"), read.positive("head_dim")


def _rope(positions: Any, kind: str, head_dim: int) -> d.Rope:
    of = positions.get(kind) if isinstance(positions, Mapping) and set(positions) <= set(LAYER_TYPES) else None
    where = f"rope_parameters.{kind}"
    if not isinstance(of, Mapping) or not set(of) <= {"rope_type", "rope_theta", "partial_rotary_factor", "factor"}:
        raise ConfigError(f"{where}: expected an object of rope_type, rope_theta, ..., found {shown(of)}")
    read = Keys({"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0, "factor": 1.0, **of}, (), {})
    theta, part = read.number("rope_theta", 1.0, 1e15), read.number("partial_rotary_factor", 0.0, 1.0)
    proportional = {"default": False, "proportional": True}
    try:
        is_proportional = read.one_of("rope_type", proportional)
        read.only("factor", (1.0,))
    except ConfigError as e:
        raise ConfigError(f"{where}.{e}") from None
    if not is_proportional and part != 1.0:
        raise ConfigError(f"{where}.partial_rotary_factor: only 1.0 is supported for 'default', found {part:g}")
    return d.Rope(theta, head_dim, turning=int(part * head_dim // 2) if is_proportional and part != 1.0 else None)


def _sources(keys: Keys, types: Sequence[str]) -> list[int | None]:
    """Of each layer, the one whose keys and values it reads: the last of its kind that has its own."""
    own = len(types) - keys.natural("num_kv_shared_layers")
    if own < 1 or {*types[own:]} - {*types[:own]}:
        raise ConfigError(
            f"num_kv_shared_layers: expected layers of each kind that keep keys and values, found {own} of {len(types)}"
        )
    last = {kind: n for n, kind in enumerate(types[:own])}
    return [None if n < own else last[kind] for n, kind in enumerate(types)]


def _with_experts(keys: Keys, common: decoder.Common, act: d.Activation, dense: d.Ffn) -> d.Ffn:
    """Beside the dense network, which is one slice then: every token uses it, and it stays in memory."""
    experts = keys.positive("num_experts")
    keys.agrees("num_local_experts", (None, experts), "num_experts")
    router = d.Router(
        experts,
        keys.positive("top_k_experts", most=experts),
        "mixed",
        "softmax",
        over="all",
        normalise=True,
        norm=common.norm,
        expert_scale=True,
        logit_scale=common.hidden**-0.5,
    )
    whole = d.Ffn(dense.width * dense.slices, act)
    beside = d.Beside(whole, common.norm, common.norm, common.norm)
    return d.Ffn(keys.positive("moe_intermediate_size", multiple_of=d.BLOCK), act, router=router, beside=beside)


def to_config(model: d.Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `from_config` gives back an equal one."""
    mixers, networks = [layer.attention for layer in model.layers], [layer.ffn for layer in model.layers]
    types, full = decoder.layer_types(model), mixers[-1]
    sliding = next((mixer for mixer in mixers if mixer.window), full)
    first = networks[0]
    assert first is not None and full.rope is not None and sliding.rope is not None
    dense = first if first.beside is None else first.beside.ffn
    found = {
        **decoder.common_keys(model, ARCHITECTURE),
        "num_key_value_heads": sliding.kv_heads,
        "head_dim": sliding.head_dim,
        **decoder.dense_keys(dense),
        "rope_parameters": {_SLIDING: _positions(sliding.rope), _FULL: _positions(full.rope)},
        "per_layer_config": {
            str(n): {"head_dim": full.head_dim, "num_key_value_heads": full.kv_heads}
            for n, kind in enumerate(types)
            if kind == _FULL
        },
        "hidden_activation": decoder.activation_name(first.activation),
        "attention_bias": full.bias,
        "attention_k_eq_v": full.values == "keys",
        "sliding_window": sliding.window or None,
        "layer_types": types,
        "final_logit_softcapping": model.head.softcap or None,
        "hidden_size_per_layer_input": 0 if model.layer_inputs is None else model.layer_inputs.size,
        "vocab_size_per_layer_input": model.vocab_size,
        "num_kv_shared_layers": sum(mixer.kv_of is not None for mixer in mixers),
        "use_double_wide_mlp": _width(networks[-1]) > _width(first),
        "enable_moe_block": first.router is not None,
    }
    if first.router is not None:
        found |= {
            "num_experts": first.router.experts,
            "top_k_experts": first.router.k,
            "moe_intermediate_size": first.width,
        }
    return found


def _width(ffn: d.Ffn | None) -> int:
    assert ffn is not None
    return ffn.width * ffn.slices if ffn.beside is None else ffn.beside.ffn.width


def _positions(rope: d.Rope) -> dict[str, Any]:
    if rope.turning is None:
        return {"rope_type": "default", "rope_theta": rope.theta}
    part = rope.turning * 2 / rope.size
    return {"rope_type": "proportional", "rope_theta": rope.theta, "partial_rotary_factor": part}


def from_gguf(keys: GgufKeys, facts: GgufFacts) -> dict[str, Any]:
    """The config.json that says what llama.cpp would compute. Raises ConfigError, naming the metadata's key."""
    width, kv_heads = keys.take("feed_forward_length"), keys.take("attention.head_count_kv")
    raw = gguf_decoder.common(keys, facts._replace(factors_of={}), ARCHITECTURE)
    layers = raw["num_hidden_layers"]
    types = gguf_decoder.layer_types(keys, layers, _PATTERN)
    if types[-1:] != [_FULL]:
        raise keys.fault("attention.sliding_window_pattern", "a last layer without a window", types)
    widths = gguf_decoder.of_layers(keys, "feed_forward_length", width, layers)
    heads = dict(zip(types, gguf_decoder.of_layers(keys, "attention.head_count_kv", kv_heads, layers), strict=True))
    head_dim = keys.integer("attention.key_length_swa")
    for key in ("attention.value_length_swa", "rope.dimension_count_swa"):
        keys.same(key, keys.integer(key, head_dim), head_dim, "attention.key_length_swa")
    full_dim, theta = raw.pop("head_dim"), raw.pop("rope_theta")
    raw.pop("rope_scaling")
    experts = keys.integer("expert_count", 0)
    full_layers = [n for n, kind in enumerate(types) if kind == _FULL]
    has_values = any(facts.has(f"blk.{n}.attn_v.weight") for n in full_layers)  # not all: some may read other layers'
    return raw | {
        "head_dim": head_dim,
        "num_key_value_heads": heads.get(_SLIDING, heads[_FULL]),
        "per_layer_config": {
            str(n): {"head_dim": full_dim, "num_key_value_heads": heads[_FULL]} for n in full_layers
        },
        "rope_parameters": {
            _SLIDING: {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", 1e4)},
            _FULL: {
                "rope_type": "proportional", "rope_theta": theta,
                "partial_rotary_factor": _turning(keys, facts, full_dim),
            },
        },
        "intermediate_size": widths[0],
        "use_double_wide_mlp": widths[-1] != widths[0],
        "attention_k_eq_v": not has_values,
        "sliding_window": keys.integer("attention.sliding_window"),
        "layer_types": types,
        "num_kv_shared_layers": keys.integer("attention.shared_kv_layers", 0),
        "hidden_size_per_layer_input": keys.integer("embedding_length_per_layer_input", 0),
        "vocab_size_per_layer_input": facts.vocab_size,
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0) or None,
        "enable_moe_block": experts > 0,
        "num_experts": experts or None,
        "top_k_experts": keys.integer("expert_used_count", 0) or None,
        "moe_intermediate_size": keys.integer("expert_feed_forward_length", 0) or None,
    }  # fmt: skip


def _turning(keys: GgufKeys, facts: GgufFacts, head_dim: int) -> float:
    """What part of a head turns: pairs that don't have their frequency divided by as good as infinity."""
    factors = facts.factors(FACTORS[0]) or []
    turning = sum(factor == 1.0 for factor in factors)
    if len(factors) * 2 != head_dim or any(f != 1.0 if n < turning else f < 1e29 for n, f in enumerate(factors)):
        raise keys.fault("rope", f"{FACTORS[0]} of {head_dim // 2} factors, 1 and then 1e30", len(factors))
    return turning * 2 / head_dim


def gguf_notes(keys: GgufKeys, model: d.Model) -> tuple[str, ...]:
    """What was taken for granted, since the file can't say it: nothing."""
    return ()
