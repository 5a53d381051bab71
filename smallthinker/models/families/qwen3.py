"""Qwen3, dense (arXiv 2505.09388): Llama's shape with a norm of each head of q and k before they are turned.

Some configurations give the upper layers a window. Knows nothing about stores or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallthinker.models import decoder, gguf_decoder, layer_keys
from smallthinker.models import description as d
from smallthinker.models.gguf_keys import GgufFacts, GgufKeys
from smallthinker.models.keys import Keys
from smallthinker.models.rope_keys import rope

ARCHITECTURE = "Qwen3ForCausalLM"
MODEL_TYPE = GGUF_ARCHITECTURE = "qwen3"

# What absent keys mean: the defaults of transformers' Qwen3Config.
_ABSENT: Mapping[str, Any] = {
    "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "hidden_act": "silu",
    "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_bias": False,
    "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip
_ABSENT_THETA = 1e4

CHECKPOINT_NAMES = decoder.ATTENTION_NAMES | decoder.DENSE_NAMES
GGUF_NAMES = gguf_decoder.NAMES


def from_config(raw: Mapping[str, Any], *, in_store: bool = False) -> d.Model:
    """The model of a parsed config.json. Raises ConfigError, naming the key."""
    keys = Keys({**_ABSENT, **raw}, (), decoder.LIMITS)
    common = decoder.common(keys)
    positions, bias = rope(keys, common.head_dim, common.context, _ABSENT_THETA), keys.flag("attention_bias")
    mixer = d.Attention(
        common.heads, common.kv_heads, common.head_dim, positions, qk_norm=common.norm, bias=bias, out_bias=bias
    )
    network = decoder.dense(keys, common.hidden, decoder.activation(keys))
    window, types = layer_keys.qwen_windows(keys, common.layers)
    keys.reject_unknown()
    norms = d.Norms(common.norm, common.norm)
    return common.model(MODEL_TYPE, layer_keys.in_layers(mixer, [network] * common.layers, norms, window, types))


def to_config(model: d.Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `from_config` gives back an equal one."""
    return layer_keys.qwen_keys(model, ARCHITECTURE) | {"attention_bias": model.layers[0].attention.bias}


def from_gguf(keys: GgufKeys, facts: GgufFacts) -> dict[str, Any]:
    """The config.json that says what llama.cpp would compute. Raises ConfigError, naming the metadata's key."""
    raw = gguf_decoder.common(keys, facts, ARCHITECTURE)
    return raw | {"intermediate_size": keys.integer("feed_forward_length")}
