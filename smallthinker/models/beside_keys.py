"""Experts beside a dense network, each with norms of its own: their keys, tensors and GGUF metadata.

Every token uses the dense network, and a router that reads what attention gave chooses the experts. Knows nothing about
which families have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smallthinker.models import decoder
from smallthinker.models import description as d
from smallthinker.models.gguf_keys import GgufKeys
from smallthinker.models.keys import Keys
from smallthinker.models.places import Stored

_LAYER, _BLOCK = "model.layers.{layer}.", "blk.{layer}."
_GATE_AND_UP = ("gate", "up")
_EXPERT_KEYS = ("num_experts", "top_k_experts", "moe_intermediate_size")
# Norms before a network: one alone, or one of each where there are two.
_DENSE_NORM = f"{_LAYER}pre_feedforward_layernorm.weight"
NAMES = {
    "post_attention_layernorm": f"{_LAYER}pre_feedforward_layernorm_2.weight",
    "dense_post_attention_layernorm": _DENSE_NORM,
    "beside_norm": _DENSE_NORM,
    "beside_out_norm": f"{_LAYER}post_feedforward_layernorm_1.weight",
    "experts_out_norm": f"{_LAYER}post_feedforward_layernorm_2.weight",
    "router": f"{_LAYER}router.proj.weight",
    "router_norm": f"{_LAYER}router.scale",
    "router_expert_scale": f"{_LAYER}router.per_expert_scale",
    **{part: Stored(f"{_LAYER}experts.gate_up_proj", joined=_GATE_AND_UP) for part in _GATE_AND_UP},
    "down": f"{_LAYER}experts.down_proj",
    **{f"{kind}_{part}": decoder.DENSE_NAMES[part] for kind in ("beside", "dense") for part in (*_GATE_AND_UP, "down")},
}
GGUF_NAMES = {
    "post_attention_layernorm": f"{_BLOCK}pre_ffw_norm_2.weight",
    "dense_post_attention_layernorm": f"{_BLOCK}ffn_norm.weight",
    **{part: Stored(f"{_BLOCK}ffn_gate_up_exps.weight", joined=_GATE_AND_UP) for part in _GATE_AND_UP},
}


def networks(keys: Keys, common: decoder.Common, act: d.Activation, dense: Sequence[d.Ffn]) -> list[d.Ffn]:
    """Of each layer: its dense network, or where `enable_moe_block` says so experts beside it, which is one slice then:
    every token uses it, and it stays in memory. Raises ConfigError, naming the key."""
    if not keys.flag("enable_moe_block"):
        for key in _EXPERT_KEYS:
            keys.get(key)
        return list(dense)
    experts, norm, scale = keys.positive("num_experts"), common.norm, common.hidden**-0.5
    used = keys.positive("top_k_experts", most=experts)
    width = keys.positive("moe_intermediate_size", multiple_of=d.TILE)
    keys.agrees("num_local_experts", (None, experts), "num_experts")
    router = d.Router(
        experts, used, "mixed", "softmax", "all", normalise=True, norm=norm, expert_scale=True, logit_scale=scale
    )
    beside = [d.Beside(d.Ffn(one.width * one.slices, act), norm, norm, norm) for one in dense]
    return [d.Ffn(width, act, router=router, beside=one) for one in beside]


def keys_of(ffn: d.Ffn) -> dict[str, Any]:
    """The way back."""
    router = ffn.router
    if router is None:
        return {"enable_moe_block": False}
    of_experts = dict(zip(_EXPERT_KEYS, (router.experts, router.k, ffn.width), strict=True))
    return {"enable_moe_block": True} | of_experts


def from_gguf(keys: GgufKeys) -> dict[str, Any]:
    """The same keys as llama.cpp's metadata says them. Raises ConfigError, naming the metadata's key."""
    metadata = ("expert_count", "expert_used_count", "expert_feed_forward_length")
    found = {key: keys.integer(name, 0) or None for key, name in zip(_EXPERT_KEYS, metadata, strict=True)}
    return {"enable_moe_block": found["num_experts"] is not None} | found
