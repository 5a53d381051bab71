"""Gemma 3, text (arXiv 2503.19786): norms of 1 + w before and after both parts of a layer, two rotary bases.

Five of six layers have a window and positions of their own. Knows nothing about stores or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from smallthinker.models import decoder, gguf_decoder, layer_keys
from smallthinker.models import description as d
from smallthinker.models.gguf_keys import GgufFacts, GgufKeys
from smallthinker.models.keys import Keys
from smallthinker.models.places import Stored
from smallthinker.models.rope_keys import rope

ARCHITECTURE = "Gemma3ForCausalLM"
MODEL_TYPE, GGUF_ARCHITECTURE = "gemma3_text", "gemma3"

# What absent keys mean: the defaults of transformers' Gemma3TextConfig.
_ABSENT: Mapping[str, Any] = {
    "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "attention_bias": False,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "sliding_window_pattern": 6,
}  # fmt: skip
_ABSENT_THETA, _ABSENT_SLIDING_THETA, _ABSENT_BOS, _ABSENT_EOS = 1e6, 1e4, 2, 1
_LAYERS_OF_27B, _PATTERN = 62, 6
_IGNORED = {"cache_implementation", "_sliding_window_pattern"}  # layer_types say what the second says

CHECKPOINT_NAMES = decoder.ATTENTION_NAMES | decoder.DENSE_NAMES | decoder.SANDWICH_NAMES
_NORMS = (
    "norm", "input_layernorm", "post_attention_layernorm", "attention_out_norm", "ffn_out_norm", "q_norm", "k_norm",
)  # fmt: skip
GGUF_NAMES = gguf_decoder.NAMES_OF_SANDWICHES | {role: Stored(gguf_decoder.name_of(role), added=1.0) for role in _NORMS}


def from_config(raw: Mapping[str, Any], *, in_store: bool = False) -> d.Model:
    """The model of a parsed config.json. Raises ConfigError, naming the key."""
    keys = Keys({**_ABSENT, **raw}, _IGNORED, decoder.LIMITS)
    common = decoder.common(keys, _ABSENT_BOS, _ABSENT_EOS)
    norm, bias = replace(common.norm, plus_one=True), keys.flag("attention_bias")
    positions = {
        kind: rope(keys, common.head_dim, common.context, theta, layer_type=kind, theta_key=key)
        for kind, theta, key in (
            ("full_attention", _ABSENT_THETA, "rope_theta"),
            ("sliding_attention", _ABSENT_SLIDING_THETA, "rope_local_base_freq"),
        )
    }
    mixer = d.Attention(
        common.heads,
        common.kv_heads,
        common.head_dim,
        None,
        scale=keys.number("query_pre_attn_scalar", 1e-3, 1e6) ** -0.5,
        qk_norm=norm,
        bias=bias,
        out_bias=bias,
    )
    pattern, window = keys.positive("sliding_window_pattern"), keys.window("sliding_window")
    types = keys.layer_types(layer_keys.types_of_period(common.layers, pattern))
    layer_keys.check_window(window, types)
    mixers = {
        "full_attention": replace(mixer, rope=positions["full_attention"]),
        "sliding_attention": replace(mixer, rope=positions["sliding_attention"], window=window),
    }
    network = decoder.dense(keys, common.hidden, decoder.activation(keys, "hidden_activation"))
    softcap = decoder.softcap(keys)
    keys.only_these({"attn_logit_softcapping": (None,), "use_bidirectional_attention": (False,)})
    keys.reject_unknown()
    return common.model(
        MODEL_TYPE,
        [d.Layer(mixers[kind], network, d.Norms(norm, norm, norm, norm)) for kind in types],
        final_norm=norm,
        head=replace(common.head, softcap=softcap),
        embedding_scale=common.hidden**0.5,
    )


def to_config(model: d.Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `from_config` gives back an equal one."""
    scale = model.layers[0].attention.scale
    assert scale is not None
    return layer_keys.gemma_keys(model, ARCHITECTURE) | {"query_pre_attn_scalar": _scalar(scale)}


def from_gguf(keys: GgufKeys, facts: GgufFacts) -> dict[str, Any]:
    """The config.json that says what llama.cpp would compute. Raises ConfigError, naming the metadata's key."""
    raw = gguf_decoder.common(keys, facts, ARCHITECTURE)
    raw["rope_parameters"] = gguf_decoder.rope_parameters(keys, raw, _ABSENT_SLIDING_THETA)
    window, layers = keys.integer("attention.sliding_window", 0), raw["num_hidden_layers"]
    heads = max(raw["num_attention_heads"], 1)
    return raw | {
        "intermediate_size": keys.integer("feed_forward_length"),
        # llama.cpp knows the one model whose scale isn't a head's by its layers
        "query_pre_attn_scalar": raw["hidden_size"] // heads if layers == _LAYERS_OF_27B else raw["head_dim"],
        "sliding_window": window or None,
        "layer_types": gguf_decoder.layer_types(keys, layers, _PATTERN if window else 1),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0) or None,
    }


def _scalar(scale: float) -> float:
    """The number whose square root the scale is one over; a whole one if there is one."""
    whole = round(scale**-2)
    return whole if whole**-0.5 == scale else scale**-2
