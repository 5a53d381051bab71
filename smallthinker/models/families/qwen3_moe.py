"""Qwen3 with experts (arXiv 2505.09388): Qwen3's attention, softmax over all experts, the first k of it.

Some layers may be dense. Knows nothing about stores or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallthinker.errors import ConfigError, shown
from smallthinker.models import decoder, gguf_decoder, layer_keys
from smallthinker.models import description as d
from smallthinker.models.gguf_keys import GgufFacts, GgufKeys
from smallthinker.models.keys import Keys
from smallthinker.models.rope_keys import rope, rope_keys

ARCHITECTURE = "Qwen3MoeForCausalLM"
MODEL_TYPE, GGUF_ARCHITECTURE = "qwen3_moe", "qwen3moe"

# What absent keys mean: the defaults of transformers' Qwen3MoeConfig.
_ABSENT: Mapping[str, Any] = {
    "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": None, "hidden_act": "silu",
    "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_bias": False,
    "use_sliding_window": False, "sliding_window": 4096, "decoder_sparse_step": 1, "moe_intermediate_size": 768,
    "num_experts_per_tok": 8, "norm_topk_prob": False, "mlp_only_layers": None,
}  # fmt: skip
_ABSENT_THETA, _ABSENT_EXPERTS = 1e4, 128
_IGNORED = {"max_window_layers"}  # a window is every layer's here

CHECKPOINT_NAMES = decoder.ATTENTION_NAMES | decoder.EXPERT_NAMES
GGUF_NAMES = gguf_decoder.NAMES


def from_config(raw: Mapping[str, Any], *, in_store: bool = False) -> d.Model:
    """The model of a parsed config.json. Raises ConfigError, naming the key."""
    count = "num_local_experts" if "num_local_experts" in raw else "num_experts"  # transformers 5, and 4
    keys = Keys({**_ABSENT, count: _ABSENT_EXPERTS, **raw}, _IGNORED, decoder.LIMITS)
    common = decoder.common(keys)
    positions, bias = rope(keys, common.head_dim, common.context, _ABSENT_THETA), keys.flag("attention_bias")
    mixer = d.Attention(
        common.heads, common.kv_heads, common.head_dim, positions, qk_norm=common.norm, bias=bias, out_bias=bias
    )
    experts = keys.positive(count)
    keys.agrees("num_experts", (None, experts), count)
    router = d.Router(
        experts,
        keys.positive("num_experts_per_tok", most=experts),
        "ffn_input",
        "softmax",
        over="all",
        normalise=keys.flag("norm_topk_prob"),
    )
    act = decoder.activation(keys)
    sparse = d.Ffn(keys.positive("moe_intermediate_size", multiple_of=d.TILE), act, router=router)
    dense = decoder.dense(keys, common.hidden, act, expert_width=sparse.width)
    step, without = keys.positive("decoder_sparse_step"), keys.get("mlp_only_layers") or []
    if not isinstance(without, list) or any(type(number) is not int for number in without):
        raise ConfigError(f"mlp_only_layers: expected a list of layers' numbers, found {shown(without)}")
    window = keys.window("sliding_window")
    window = window if keys.flag("use_sliding_window") else 0
    keys.reject_unknown()
    networks = [dense if n in without or (n + 1) % step else sparse for n in range(common.layers)]
    if all(network.router is None for network in networks):
        raise ConfigError("mlp_only_layers: no layer is left that has experts; Qwen3ForCausalLM is such a model")
    norms = d.Norms(common.norm, common.norm)
    return common.model(MODEL_TYPE, layer_keys.in_layers(mixer, networks, norms, window))


def to_config(model: d.Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `from_config` gives back an equal one."""
    mixer, window = model.layers[0].attention, layer_keys.window_of(model)
    networks = [layer.ffn for layer in model.layers if layer.ffn is not None]
    sparse = next((ffn for ffn in networks if ffn.router is not None), None)
    dense = next((ffn for ffn in networks if ffn.router is None), None)
    assert mixer.rope is not None and sparse is not None and sparse.router is not None
    return {
        **decoder.common_keys(model, ARCHITECTURE),
        **({} if dense is None else decoder.dense_keys(dense)),
        **rope_keys(mixer.rope),
        "hidden_act": decoder.activation_name(sparse.activation),
        "attention_bias": mixer.bias,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [number for number, ffn in enumerate(networks) if ffn.router is None],
        "moe_intermediate_size": sparse.width,
        "num_experts": sparse.router.experts,
        "num_experts_per_tok": sparse.router.k,
        "norm_topk_prob": sparse.router.normalise,
    }


def from_gguf(keys: GgufKeys, facts: GgufFacts) -> dict[str, Any]:
    """The config.json that says what llama.cpp would compute. Raises ConfigError, naming the metadata's key."""
    raw = gguf_decoder.common(keys, facts, ARCHITECTURE)
    keys.only("expert_weights_norm", (True,))
    keys.only("expert_shared_count", (0,))
    keys.integer("feed_forward_length", 0)  # of dense layers, which llama.cpp doesn't know here
    return raw | {
        "num_experts": keys.integer("expert_count"),
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "norm_topk_prob": True,
    }
