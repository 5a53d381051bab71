"""Llama 2 and 3 (arXiv 2407.21783), and what has its shape: SmolLM2, TinyLlama, many others.

Dense SwiGLU networks, whole attention, rotary positions with or without scaling. Knows nothing about stores or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallthinker.models import decoder, gguf_decoder, layer_keys
from smallthinker.models import description as d
from smallthinker.models.gguf_keys import GgufFacts, GgufKeys
from smallthinker.models.keys import Keys
from smallthinker.models.rope_keys import rope, rope_keys

ARCHITECTURE = "LlamaForCausalLM"
MODEL_TYPE = GGUF_ARCHITECTURE = "llama"

# What absent keys mean: the defaults of transformers' LlamaConfig.
_ABSENT: Mapping[str, Any] = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu",
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_bias": False,
    "mlp_bias": False,
}  # fmt: skip
_ABSENT_THETA, _ABSENT_BOS, _ABSENT_EOS = 1e4, 1, 2
_IGNORED = {
    "pretraining_tp",  # splits products to add them up again
    "is_llama_config", "transformers.js_config",  # of SmolLM2, for other programs
}  # fmt: skip

CHECKPOINT_NAMES = decoder.ATTENTION_NAMES | decoder.DENSE_NAMES
UNUSED_TENSORS = decoder.OLD_FREQUENCIES
GGUF_NAMES = gguf_decoder.NAMES_OF_LLAMA


def from_config(raw: Mapping[str, Any], *, in_store: bool = False) -> d.Model:
    """The model of a parsed config.json. Raises ConfigError, naming the key."""
    keys = Keys({**_ABSENT, **raw}, _IGNORED, decoder.LIMITS)
    common = decoder.common(keys, _ABSENT_BOS, _ABSENT_EOS)
    positions = rope(keys, common.head_dim, common.context, _ABSENT_THETA)
    bias = keys.flag("attention_bias")
    mixer = d.Attention(common.heads, common.kv_heads, common.head_dim, positions, bias=bias, out_bias=bias)
    network = decoder.dense(keys, common.hidden, decoder.activation(keys), keys.flag("mlp_bias"))
    keys.only("rope_interleaved", (False,))
    keys.reject_unknown()
    norms = d.Norms(common.norm, common.norm)
    return common.model(MODEL_TYPE, layer_keys.in_layers(mixer, [network] * common.layers, norms))


def to_config(model: d.Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `from_config` gives back an equal one."""
    mixer, ffn = model.layers[0].attention, model.layers[0].ffn
    assert ffn is not None and mixer.rope is not None
    return {
        **decoder.common_keys(model, ARCHITECTURE),
        **decoder.dense_keys(ffn),
        **rope_keys(mixer.rope),
        "hidden_act": decoder.activation_name(ffn.activation),
        "attention_bias": mixer.bias,
        "mlp_bias": ffn.bias,
    }


def from_gguf(keys: GgufKeys, facts: GgufFacts) -> dict[str, Any]:
    """The config.json that says what llama.cpp would compute; Mistral's and Mixtral's files say that they are Llama.
    Raises ConfigError, naming the metadata's key."""
    raw = gguf_decoder.common(keys, facts, ARCHITECTURE)
    raw["intermediate_size"] = keys.integer("feed_forward_length")
    experts, used = keys.integer("expert_count", 0), keys.integer("expert_used_count", 0)
    if experts:
        return raw | {
            "architectures": ["MixtralForCausalLM"], "num_local_experts": experts, "num_experts_per_tok": used,
        }  # fmt: skip
    return raw | {"attention_bias": facts.has("blk.0.attn_q.bias"), "mlp_bias": facts.has("blk.0.ffn_up.bias")}
