"""Ministral 3, text only (arXiv 2601.08584): Mistral's shape, YaRN, and queries that grow with their position.

GGUF files that say they are Mistral 3 may be of Mistral Small 3.1, which has neither. Knows nothing about stores or
kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallthinker.errors import ConfigError, shown
from smallthinker.models import decoder, gguf_decoder, layer_keys
from smallthinker.models import description as d
from smallthinker.models.gguf_keys import GgufFacts, GgufKeys
from smallthinker.models.keys import ROPE_KEYS, Keys, checked_number
from smallthinker.models.rope_keys import rope, rope_keys

ARCHITECTURE = "Ministral3ForCausalLM"
MODEL_TYPE, GGUF_ARCHITECTURE = "ministral3", "mistral3"

# What absent keys mean: the defaults of transformers' Ministral3Config.
_ABSENT: Mapping[str, Any] = {
    "vocab_size": 131_072, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 34,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu",
    "max_position_embeddings": 262_144, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "sliding_window": None,
}  # fmt: skip
_ABSENT_THETA, _ABSENT_BOS, _ABSENT_EOS = 1e4, 1, 2
_ABSENT_POSITIONS = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16_384,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
_GROWTH = "llama_4_scaling_beta"

CHECKPOINT_NAMES = decoder.ATTENTION_NAMES | decoder.DENSE_NAMES
GGUF_NAMES = gguf_decoder.NAMES_OF_LLAMA


def from_config(raw: Mapping[str, Any], *, in_store: bool = False) -> d.Model:
    """The model of a parsed config.json. Raises ConfigError, naming the key."""
    if all(raw.get(key) is None for key in ROPE_KEYS):
        raw = {**raw, "rope_parameters": _ABSENT_POSITIONS}
    plain, beta = dict(raw), None
    for key in ROPE_KEYS:
        if isinstance(settings := raw.get(key), Mapping):  # but for what rope() knows nothing of
            plain[key] = {k: v for k, v in settings.items() if k not in (_GROWTH, "max_position_embeddings")}
            beta = checked_number(f"{key}.{_GROWTH}", settings.get(_GROWTH), 0.0, 1e3)
    keys = Keys({**_ABSENT, **plain}, (), decoder.LIMITS)
    common = decoder.common(keys, _ABSENT_BOS, _ABSENT_EOS)
    positions = rope(keys, common.head_dim, common.context, _ABSENT_THETA)
    if not isinstance(positions.scaling, d.YarnScaling) or beta is None:
        raise ConfigError(f"rope_parameters.rope_type: only 'yarn' is supported, found {shown(positions.scaling)}")
    mixer = d.Attention(
        common.heads,
        common.kv_heads,
        common.head_dim,
        positions,
        growth=d.Growth(beta, positions.scaling.original_context),
    )
    network = decoder.dense(keys, common.hidden, decoder.activation(keys))
    window = keys.window("sliding_window")
    keys.reject_unknown()
    norms = d.Norms(common.norm, common.norm)
    return common.model(MODEL_TYPE, layer_keys.in_layers(mixer, [network] * common.layers, norms, window))


def to_config(model: d.Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `from_config` gives back an equal one."""
    mixer, ffn = model.layers[0].attention, model.layers[0].ffn
    assert ffn is not None and mixer.rope is not None and mixer.growth is not None
    positions = rope_keys(mixer.rope)
    return {
        **decoder.common_keys(model, ARCHITECTURE),
        **decoder.dense_keys(ffn),
        "rope_parameters": {
            "rope_theta": positions["rope_theta"], **positions["rope_scaling"], _GROWTH: mixer.growth.beta,
        },
        "hidden_act": decoder.activation_name(ffn.activation),
        "sliding_window": layer_keys.window_of(model),
    }  # fmt: skip


def from_gguf(keys: GgufKeys, facts: GgufFacts) -> dict[str, Any]:
    """The config.json that says what llama.cpp would compute. Raises ConfigError, naming the metadata's key."""
    raw = gguf_decoder.common(keys, facts, ARCHITECTURE)
    raw |= {"intermediate_size": keys.integer("feed_forward_length"), "sliding_window": None}
    beta = keys.number("attention.temperature_scale", 0.0)
    if not beta:
        return raw | {"architectures": ["MistralForCausalLM"]}
    positions = {"rope_theta": raw.pop("rope_theta"), **(raw.pop("rope_scaling") or {}), _GROWTH: beta}
    return raw | {"rope_parameters": positions}
