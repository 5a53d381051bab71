"""Mistral 7B (arXiv 2310.06825), Mistral Nemo and Small, text only: Llama's shape, one window for all layers or none.

GGUF files of it say that they are Llama, which `llama.py` reads, or Ministral 3. Knows nothing about stores or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallthinker.models import decoder, gguf_decoder, layer_keys
from smallthinker.models import description as d
from smallthinker.models.keys import Keys
from smallthinker.models.rope_keys import rope, rope_keys

ARCHITECTURE = "MistralForCausalLM"
MODEL_TYPE = "mistral"

# What absent keys mean: the defaults of transformers' MistralConfig. A window of null is none.
_ABSENT: Mapping[str, Any] = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": None, "hidden_act": "silu",
    "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "sliding_window": 4096,
}  # fmt: skip
_ABSENT_THETA, _ABSENT_BOS, _ABSENT_EOS = 1e4, 1, 2

CHECKPOINT_NAMES = decoder.ATTENTION_NAMES | decoder.DENSE_NAMES
UNUSED_TENSORS = decoder.OLD_FREQUENCIES
GGUF_NAMES = gguf_decoder.NAMES_OF_LLAMA


def from_config(raw: Mapping[str, Any], *, in_store: bool = False) -> d.Model:
    """The model of a parsed config.json. Raises ConfigError, naming the key."""
    keys = Keys({**_ABSENT, **raw}, (), decoder.LIMITS)
    common = decoder.common(keys, _ABSENT_BOS, _ABSENT_EOS)
    positions = rope(keys, common.head_dim, common.context, _ABSENT_THETA)
    mixer = d.Attention(common.heads, common.kv_heads, common.head_dim, positions)
    network = decoder.dense(keys, common.hidden, decoder.activation(keys))
    window = keys.window("sliding_window")
    keys.reject_unknown()
    norms = d.Norms(common.norm, common.norm)
    return common.model(MODEL_TYPE, layer_keys.in_layers(mixer, [network] * common.layers, norms, window))


def to_config(model: d.Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `from_config` gives back an equal one."""
    mixer, ffn = model.layers[0].attention, model.layers[0].ffn
    assert ffn is not None and mixer.rope is not None
    return {
        **decoder.common_keys(model, ARCHITECTURE),
        **decoder.dense_keys(ffn),
        **rope_keys(mixer.rope),
        "hidden_act": decoder.activation_name(ffn.activation),
        "sliding_window": layer_keys.window_of(model),
    }
