"""Mixtral (arXiv 2401.04088): Mistral's attention, softmax over the two best of eight experts.

GGUF files of it say that they are Llama, and `llama.py` reads their metadata. Knows nothing about stores or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallthinker.models import decoder, gguf_decoder, layer_keys
from smallthinker.models import description as d
from smallthinker.models.keys import Keys
from smallthinker.models.rope_keys import rope, rope_keys

ARCHITECTURE = "MixtralForCausalLM"
MODEL_TYPE = "mixtral"

# What absent keys mean: the defaults of transformers' MixtralConfig. Every expert is of intermediate_size.
_ABSENT: Mapping[str, Any] = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": None, "hidden_act": "silu",
    "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "sliding_window": None,
    "num_experts_per_tok": 2, "num_local_experts": 8,
}  # fmt: skip
_ABSENT_THETA, _ABSENT_BOS, _ABSENT_EOS = 1e6, 1, 2
_IGNORED = {"router_jitter_noise"}  # in training

_MOE = "model.layers.{layer}.block_sparse_moe."
CHECKPOINT_NAMES = decoder.ATTENTION_NAMES | {
    "router": f"{_MOE}gate.weight",
    **{part: f"{_MOE}experts.{{expert}}.{w}.weight" for part, w in (("gate", "w1"), ("up", "w3"), ("down", "w2"))},
}
GGUF_NAMES = gguf_decoder.NAMES_OF_LLAMA


def from_config(raw: Mapping[str, Any], *, in_store: bool = False) -> d.Model:
    """The model of a parsed config.json. Raises ConfigError, naming the key."""
    keys = Keys({**_ABSENT, **raw}, _IGNORED, decoder.LIMITS)
    common = decoder.common(keys, _ABSENT_BOS, _ABSENT_EOS)
    positions = rope(keys, common.head_dim, common.context, _ABSENT_THETA)
    mixer = d.Attention(common.heads, common.kv_heads, common.head_dim, positions)
    experts = keys.positive("num_local_experts")
    keys.agrees("num_experts", (None, experts), "num_local_experts")
    used = keys.positive("num_experts_per_tok", most=experts)
    router = d.Router(experts, used, "ffn_input", "softmax", over="all", normalise=True)
    width = keys.positive("intermediate_size", multiple_of=d.TILE)
    network, window = d.Ffn(width, decoder.activation(keys), router=router), keys.window("sliding_window")
    keys.reject_unknown()
    norms = d.Norms(common.norm, common.norm)
    return common.model(MODEL_TYPE, layer_keys.in_layers(mixer, [network] * common.layers, norms, window))


def to_config(model: d.Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `from_config` gives back an equal one."""
    mixer, ffn = model.layers[0].attention, model.layers[0].ffn
    assert ffn is not None and ffn.router is not None and mixer.rope is not None
    return {
        **decoder.common_keys(model, ARCHITECTURE),
        **rope_keys(mixer.rope),
        "intermediate_size": ffn.width,
        "hidden_act": decoder.activation_name(ffn.activation),
        "sliding_window": layer_keys.window_of(model),
        "num_local_experts": ffn.router.experts,
        "num_experts_per_tok": ffn.router.k,
    }
