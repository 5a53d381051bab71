"""Llama 4, text, and MobileLLM-R1: neighbours turn together, attention in chunks, weightless norms of queries and keys.

Layers without positions see everything, by queries that grow with their position. Where there are experts, the sigmoid
of a chosen one's logit weighs what it reads, and a shared one is added. Knows nothing about stores or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from smallthinker.errors import ConfigError, shown
from smallthinker.models import decoder, gguf_decoder, layer_keys
from smallthinker.models import description as d
from smallthinker.models.gguf_keys import GgufFacts, GgufKeys
from smallthinker.models.keys import Keys
from smallthinker.models.places import Stored
from smallthinker.models.rope_keys import rope, rope_keys

ARCHITECTURE = "Llama4ForCausalLM"
MODEL_TYPE, GGUF_ARCHITECTURE = "llama4_text", "llama4"

# What absent keys mean: the defaults of transformers' Llama4TextConfig.
_ABSENT: Mapping[str, Any] = {
    "vocab_size": 202_048, "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16_384,
    "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
    "hidden_act": "silu", "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "attention_bias": False, "num_experts_per_tok": 1, "num_local_experts": 16, "interleave_moe_layer_step": 1,
    "use_qk_norm": True, "no_rope_layer_interval": 4, "attention_chunk_size": 8192, "attn_temperature_tuning": True,
    "floor_scale": 8192, "attn_scale": 0.1,
}  # fmt: skip
_ABSENT_THETA, _ABSENT_BOS, _ABSENT_EOS = 5e5, 1, 2
_IGNORED = {"router_jitter_noise", "for_llm_compressor"}  # in training; for another program
_LIMITS = decoder.LIMITS | {
    "intermediate_size_mlp": 1_048_576, "interleave_moe_layer_step": 1_024, "attention_chunk_size": 1 << 28,
    "floor_scale": 1 << 28,
}  # fmt: skip
_CHUNKED = "chunked_attention"
_EXPERTS_OF_MAVERICK = 128  # the one model without norms of queries and keys

_FFN = "model.layers.{layer}.feed_forward."
_PARTS = ("gate", "up", "down")
CHECKPOINT_NAMES = decoder.ATTENTION_NAMES | {
    "router": f"{_FFN}router.weight",
    **{part: Stored(f"{_FFN}experts.gate_up_proj", joined=("gate", "up"), transposed=True) for part in ("gate", "up")},
    "down": Stored(f"{_FFN}experts.down_proj", transposed=True),
    **{f"shared_{part}": f"{_FFN}shared_expert.{part}_proj.weight" for part in _PARTS},
    **{f"dense_{part}": f"{_FFN}{part}_proj.weight" for part in _PARTS},
}
GGUF_NAMES = gguf_decoder.NAMES


def from_config(raw: Mapping[str, Any], *, in_store: bool = False) -> d.Model:
    """The model of a parsed config.json. Raises ConfigError, naming the key."""
    keys = Keys({**_ABSENT, **raw}, _IGNORED, _LIMITS)
    common = decoder.common(keys, _ABSENT_BOS, _ABSENT_EOS)
    positions = replace(rope(keys, common.head_dim, common.context, _ABSENT_THETA), pairing="interleaved")
    bias, has_rope = keys.flag("attention_bias"), layer_keys.layers_with_rope(keys, common.layers, (None, []))
    chunk = keys.window("attention_chunk_size")
    types = keys.layer_types(
        [_CHUNKED if chunk and one else "full_attention" for one in has_rope], ("full_attention", _CHUNKED)
    )
    if _CHUNKED in types and not chunk:
        raise ConfigError(f"layer_types: '{_CHUNKED}' for a layer, but there is no attention_chunk_size")
    growth = d.Growth(keys.number("attn_scale", 0.0, 1e3), keys.positive("floor_scale"), offset=1)
    grows = keys.flag("attn_temperature_tuning")
    # of a whole head and without weights, so that it is the same before the head turns as after
    norm = d.Norm(common.norm.eps, has_weight=False) if keys.flag("use_qk_norm") else None
    mixer = d.Attention(common.heads, common.kv_heads, common.head_dim, None, bias=bias, out_bias=bias)
    turned, whole = replace(mixer, rope=positions, qk_norm=norm), replace(mixer, growth=growth if grows else None)
    mixers = [
        replace(turned if one else whole, chunk=chunk if kind == _CHUNKED else 0)
        for one, kind in zip(has_rope, types, strict=True)
    ]
    networks = _networks(keys, common.layers, common.hidden)
    keys.reject_unknown()
    norms = d.Norms(common.norm, common.norm)
    return common.model(MODEL_TYPE, [d.Layer(m, ffn, norms) for m, ffn in zip(mixers, networks, strict=True)])


def _networks(keys: Keys, layers: int, hidden: int) -> list[d.Ffn]:
    step, sparse = keys.natural("interleave_moe_layer_step"), keys.get("moe_layers")
    sparse = list(range(step - 1, layers, step)) if sparse is None and step else sparse or []
    if not isinstance(sparse, list) or sparse != [n for n in range(layers) if n in sparse]:
        raise ConfigError(f"moe_layers: expected a list of layers' numbers, ascending, found {shown(sparse)}")
    act, width = decoder.activation(keys), keys.positive("intermediate_size", multiple_of=d.TILE)
    experts = keys.positive("num_local_experts")
    keys.agrees("num_experts", (None, experts), "num_local_experts")
    used = keys.positive("num_experts_per_tok", most=experts)
    router = d.Router(experts, used, "ffn_input", "sigmoid", "chosen", normalise=False, applied_to="input")
    moe = d.Ffn(width, act, router=router, shared=d.Ffn(width, act))
    dense = decoder.dense(keys, hidden, act, expert_width=width if sparse else 0, key="intermediate_size_mlp")
    return [moe if n in sparse else dense for n in range(layers)]


def to_config(model: d.Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `from_config` gives back an equal one."""
    mixers, networks = [layer.attention for layer in model.layers], [layer.ffn for layer in model.layers if layer.ffn]
    positions = next((mixer.rope for mixer in mixers if mixer.rope), None)
    growth = next((mixer.growth for mixer in mixers if mixer.growth), None)
    dense = next((ffn for ffn in networks if ffn.router is None), None)
    sparse = next((ffn for ffn in networks if ffn.router is not None), None)
    found = decoder.common_keys(model, ARCHITECTURE) | rope_keys(positions)
    if dense is not None:
        found |= {"intermediate_size_mlp": dense.width * dense.slices, "num_mlp_slices": dense.slices}
    if sparse is not None and sparse.router is not None:
        found |= {
            "intermediate_size": sparse.width,
            "num_local_experts": sparse.router.experts,
            "num_experts_per_tok": sparse.router.k,
        }
    if growth is not None:
        found |= {"attn_scale": growth.beta, "floor_scale": growth.every}
    return found | {
        "hidden_act": decoder.activation_name(networks[0].activation),
        "attention_bias": mixers[0].bias,
        "use_qk_norm": any(mixer.qk_norm for mixer in mixers),
        "attn_temperature_tuning": growth is not None,
        "no_rope_layers": [int(mixer.rope is not None) for mixer in mixers],
        "attention_chunk_size": next((mixer.chunk for mixer in mixers if mixer.chunk), None),
        "layer_types": [_CHUNKED if mixer.chunk else "full_attention" for mixer in mixers],
        "moe_layers": [n for n, ffn in enumerate(networks) if ffn.router is not None],
    }


def from_gguf(keys: GgufKeys, facts: GgufFacts) -> dict[str, Any]:
    """The config.json of the file's model; of MobileLLM-R1, whose files say that they have no window, every layer has
    positions, as published. Raises ConfigError, naming the metadata's key."""
    raw = gguf_decoder.common(keys, facts, ARCHITECTURE)
    is_whole = keys.has("attention.sliding_window")
    keys.only("attention.sliding_window", (0,))
    keys.only("expert_shared_count", (0, 1))
    if is_whole:
        raw |= {"attention_chunk_size": None, "no_rope_layers": [1] * min(raw["num_hidden_layers"], 1024)}
    experts = keys.integer("expert_count")
    return raw | {
        "intermediate_size_mlp": keys.integer("feed_forward_length"),
        "intermediate_size": keys.integer("expert_feed_forward_length"),
        "interleave_moe_layer_step": keys.integer("interleave_moe_layer_step"),
        "num_local_experts": experts,
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "use_qk_norm": experts != _EXPERTS_OF_MAVERICK,
    }
