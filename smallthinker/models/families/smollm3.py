"""SmolLM3: Llama's shape, with every fourth layer free of rotary positions.

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

ARCHITECTURE = "SmolLM3ForCausalLM"
MODEL_TYPE = GGUF_ARCHITECTURE = "smollm3"

# What absent keys mean: the defaults of transformers' SmolLM3Config.
_ABSENT: Mapping[str, Any] = {
    "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 11_008, "num_hidden_layers": 36,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": None, "hidden_act": "silu",
    "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "attention_bias": False,
    "mlp_bias": False, "use_sliding_window": False, "sliding_window": None, "no_rope_layer_interval": 4,
}  # fmt: skip
_ABSENT_THETA, _ABSENT_BOS, _ABSENT_EOS = 2e6, 128_000, 128_001
_IGNORED = {"max_window_layers", "pretraining_tp"}

CHECKPOINT_NAMES = decoder.ATTENTION_NAMES | decoder.DENSE_NAMES
GGUF_NAMES = gguf_decoder.NAMES_OF_LLAMA


def from_config(raw: Mapping[str, Any], *, in_store: bool = False) -> d.Model:
    """The model of a parsed config.json. Raises ConfigError, naming the key."""
    keys = Keys({**_ABSENT, **raw}, _IGNORED, decoder.LIMITS)
    common = decoder.common(keys, _ABSENT_BOS, _ABSENT_EOS)
    positions = rope(keys, common.head_dim, common.context, _ABSENT_THETA)
    bias = keys.flag("attention_bias")
    mixer = d.Attention(common.heads, common.kv_heads, common.head_dim, positions, bias=bias, out_bias=bias)
    network = decoder.dense(keys, common.hidden, decoder.activation(keys), keys.flag("mlp_bias"))
    has_rope, window = layer_keys.layers_with_rope(keys, common.layers), keys.window("sliding_window")
    if not keys.flag("use_sliding_window"):
        window = 0
    types = keys.layer_types(["sliding_attention" if window and not one else "full_attention" for one in has_rope])
    window = layer_keys.check_window(window, types)
    keys.reject_unknown()
    norms = d.Norms(common.norm, common.norm)
    layers = layer_keys.in_layers(mixer, [network] * common.layers, norms, window, types, has_rope)
    return common.model(MODEL_TYPE, layers)


def to_config(model: d.Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `from_config` gives back an equal one."""
    mixer, ffn, window = model.layers[0].attention, model.layers[0].ffn, layer_keys.window_of(model)
    assert ffn is not None
    first = next((layer.attention.rope for layer in model.layers if layer.attention.rope), None)
    return {
        **decoder.common_keys(model, ARCHITECTURE),
        **decoder.dense_keys(ffn),
        **rope_keys(first),
        "hidden_act": decoder.activation_name(ffn.activation),
        "attention_bias": mixer.bias,
        "mlp_bias": ffn.bias,
        "no_rope_layers": [int(layer.attention.rope is not None) for layer in model.layers],
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": layer_keys.layer_types(model),
    }


def from_gguf(keys: GgufKeys, facts: GgufFacts) -> dict[str, Any]:
    """The config.json that says what llama.cpp would compute. Raises ConfigError, naming the metadata's key."""
    raw = gguf_decoder.common(keys, facts, ARCHITECTURE)
    return raw | {"intermediate_size": keys.integer("feed_forward_length")}
