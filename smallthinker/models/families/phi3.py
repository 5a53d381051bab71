"""Phi-3, Phi-3.5-mini and Phi-4-mini (arXiv 2404.14219): Llama's shape, q, k and v in one tensor, gate and up too.

LongRoPE, in Phi-4 on three quarters of a head. Knows nothing about stores or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallthinker.models import decoder, gguf_decoder, layer_keys
from smallthinker.models import description as d
from smallthinker.models.gguf_keys import GgufFacts, GgufKeys
from smallthinker.models.keys import Keys
from smallthinker.models.places import Stored
from smallthinker.models.rope_keys import rope, rope_keys

ARCHITECTURE = "Phi3ForCausalLM"
MODEL_TYPE = GGUF_ARCHITECTURE = "phi3"

# What absent keys mean: the defaults of transformers' Phi3Config.
_ABSENT: Mapping[str, Any] = {
    "vocab_size": 32_064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu",
    "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "sliding_window": None,
}  # fmt: skip
_ABSENT_THETA, _ABSENT_BOS, _ABSENT_EOS = 1e4, 1, 32_000
_IGNORED = {"embd_pdrop", "resid_pdrop"}  # in training
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False,), "full_attn_mod": (1,), "interpolate_factor": (1,), "lm_head_bias": (False,),
    "mlp_bias": (False,),
}  # fmt: skip

_LAYER = "model.layers.{layer}."
CHECKPOINT_NAMES = (
    decoder.ATTENTION_NAMES
    | {
        role: Stored(f"{_LAYER}self_attn.qkv_proj.weight", joined=("q_proj", "k_proj", "v_proj"))
        for role in ("q_proj", "k_proj", "v_proj")
    }
    | {role: Stored(f"{_LAYER}mlp.gate_up_proj.weight", joined=("gate", "up")) for role in ("gate", "up")}
    | {"down": f"{_LAYER}mlp.down_proj.weight"}
)
GGUF_NAMES = (
    gguf_decoder.NAMES
    | {
        role: Stored("blk.{layer}.attn_qkv.weight", joined=("q_proj", "k_proj", "v_proj"))
        for role in ("q_proj", "k_proj", "v_proj")
    }
    | {f"dense_{role}": Stored("blk.{layer}.ffn_up.weight", joined=("gate", "up")) for role in ("gate", "up")}
)


def from_config(raw: Mapping[str, Any], *, in_store: bool = False) -> d.Model:
    """The model of a parsed config.json. Raises ConfigError, naming the key."""
    keys = Keys({**_ABSENT, **raw}, _IGNORED, decoder.LIMITS)
    common = decoder.common(keys, _ABSENT_BOS, _ABSENT_EOS)
    original = keys.positive("original_max_position_embeddings")
    positions = rope(keys, common.head_dim, common.context, _ABSENT_THETA, partial=1.0, original=original)
    mixer = d.Attention(common.heads, common.kv_heads, common.head_dim, positions)
    network, window = decoder.dense(keys, common.hidden, decoder.activation(keys)), keys.window("sliding_window")
    keys.only_these(_ONLY)
    keys.reject_unknown()
    norms = d.Norms(common.norm, common.norm)
    return common.model(MODEL_TYPE, layer_keys.in_layers(mixer, [network] * common.layers, norms, window))


def to_config(model: d.Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `from_config` gives back an equal one."""
    mixer, ffn = model.layers[0].attention, model.layers[0].ffn
    assert ffn is not None and mixer.rope is not None
    scaling = mixer.rope.scaling
    original = scaling.original_context if isinstance(scaling, d.LongRopeScaling) else model.context
    return {
        **decoder.common_keys(model, ARCHITECTURE),
        **decoder.dense_keys(ffn),
        **rope_keys(mixer.rope, mixer.head_dim),
        "original_max_position_embeddings": original,
        "hidden_act": decoder.activation_name(ffn.activation),
        "sliding_window": layer_keys.window_of(model),
    }


def from_gguf(keys: GgufKeys, facts: GgufFacts) -> dict[str, Any]:
    """The config.json of the file's model, its window too, though llama.cpp has none. Raises ConfigError, naming the
    metadata's key."""
    raw = gguf_decoder.common(keys, facts, ARCHITECTURE, partial=True)
    original = (raw["rope_scaling"] or {}).get("original_max_position_embeddings", raw["max_position_embeddings"])
    keys.integer("rope.scaling.original_context_length", 0)  # said without scaling, too
    return raw | {
        "original_max_position_embeddings": original,
        "intermediate_size": keys.integer("feed_forward_length"),
        "sliding_window": keys.integer("attention.sliding_window", 0) or None,
    }
