"""OLMoE (arXiv 2409.02060): norms over all heads of q and k at once, softmax over all experts, weights as they are.

Knows nothing about stores or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallthinker.models import decoder, gguf_decoder, layer_keys
from smallthinker.models import description as d
from smallthinker.models.gguf_keys import GgufFacts, GgufKeys
from smallthinker.models.keys import Keys
from smallthinker.models.rope_keys import rope, rope_keys

ARCHITECTURE = "OlmoeForCausalLM"
MODEL_TYPE = GGUF_ARCHITECTURE = "olmoe"

# What absent keys mean: the defaults of transformers' OlmoeConfig. Every expert is of intermediate_size.
_ABSENT: Mapping[str, Any] = {
    "vocab_size": 50_304, "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16,
    "num_attention_heads": 16, "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu",
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "attention_bias": False,
    "clip_qkv": None, "num_experts_per_tok": 8, "num_experts": 64, "norm_topk_prob": False,
}  # fmt: skip
_ABSENT_THETA, _ABSENT_EOS = 1e4, 50_279

CHECKPOINT_NAMES = decoder.ATTENTION_NAMES | decoder.EXPERT_NAMES
GGUF_NAMES = gguf_decoder.NAMES


def from_config(raw: Mapping[str, Any], *, in_store: bool = False) -> d.Model:
    """The model of a parsed config.json. Raises ConfigError, naming the key."""
    keys = Keys({**_ABSENT, **raw}, (), decoder.LIMITS)
    common = decoder.common(keys, None, _ABSENT_EOS)
    bias = keys.flag("attention_bias")
    mixer = d.Attention(
        common.heads,
        common.kv_heads,
        common.head_dim,
        rope(keys, common.head_dim, common.context, _ABSENT_THETA),
        qk_norm=common.norm,
        qk_norm_of="projection",
        bias=bias,
        out_bias=bias,
        clip=0.0 if keys.get("clip_qkv") is None else keys.number("clip_qkv", 1e-6, 1e6),
    )
    experts = keys.positive("num_experts")
    keys.agrees("num_local_experts", (None, experts), "num_experts")
    used = keys.positive("num_experts_per_tok", most=experts)
    router = d.Router(experts, used, "ffn_input", "softmax", over="all", normalise=keys.flag("norm_topk_prob"))
    width = keys.positive("intermediate_size", multiple_of=d.TILE)
    network = d.Ffn(width, decoder.activation(keys), router=router)
    keys.reject_unknown()
    norms = d.Norms(common.norm, common.norm)
    return common.model(MODEL_TYPE, layer_keys.in_layers(mixer, [network] * common.layers, norms))


def to_config(model: d.Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `from_config` gives back an equal one."""
    mixer, ffn = model.layers[0].attention, model.layers[0].ffn
    assert ffn is not None and ffn.router is not None and mixer.rope is not None
    return {
        **decoder.common_keys(model, ARCHITECTURE),
        **rope_keys(mixer.rope),
        "intermediate_size": ffn.width,
        "hidden_act": decoder.activation_name(ffn.activation),
        "attention_bias": mixer.bias,
        "clip_qkv": mixer.clip or None,
        "num_experts": ffn.router.experts,
        "num_experts_per_tok": ffn.router.k,
        "norm_topk_prob": ffn.router.normalise,
    }


def from_gguf(keys: GgufKeys, facts: GgufFacts) -> dict[str, Any]:
    """The config.json that says what llama.cpp would compute. Raises ConfigError, naming the metadata's key."""
    raw = gguf_decoder.common(keys, facts, ARCHITECTURE)
    keys.only("expert_weights_norm", (False,))
    return raw | {
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_experts": keys.integer("expert_count"),
        "num_experts_per_tok": keys.integer("expert_used_count"),
    }
