"""GLM-4.5 and 4.6 with experts (arXiv 2508.06471): sigmoid scores, a bias that only chooses, shared experts.

The first layers are dense, and half of each head turns. Layers that predict more than one token aren't used. Knows
nothing about stores or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallthinker.errors import ConfigError
from smallthinker.models import decoder, gguf_decoder, layer_keys
from smallthinker.models import description as d
from smallthinker.models.gguf_keys import GgufFacts, GgufKeys
from smallthinker.models.keys import Keys
from smallthinker.models.rope_keys import rope, rope_keys

ARCHITECTURE = "Glm4MoeForCausalLM"
MODEL_TYPE, GGUF_ARCHITECTURE = "glm4_moe", "glm4moe"

# What absent keys mean: the defaults of transformers' Glm4MoeConfig.
_ABSENT: Mapping[str, Any] = {
    "vocab_size": 151_552, "hidden_size": 4096, "intermediate_size": 10_944, "num_hidden_layers": 46,
    "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": None, "hidden_act": "silu",
    "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "attention_bias": False,
    "use_qk_norm": False, "first_k_dense_replace": 1, "moe_intermediate_size": 1408, "n_routed_experts": 128,
    "num_experts_per_tok": 8, "n_shared_experts": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
_ABSENT_THETA, _ABSENT_PARTIAL = 1e4, 0.5
_IGNORED = {"num_mtp_layers", "num_nextn_predict_layers"}
_ONLY: Mapping[str, tuple[Any, ...]] = {"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)}

_MOE = "model.layers.{layer}.mlp."
CHECKPOINT_NAMES = (
    decoder.ATTENTION_NAMES
    | decoder.EXPERT_NAMES
    | {
        "router_bias": f"{_MOE}gate.e_score_correction_bias",
        **{f"shared_{part}": f"{_MOE}shared_experts.{part}_proj.weight" for part in ("gate", "up", "down")},
    }
)
UNUSED_TENSORS = (r"model\.layers\.{layers}\..*",)  # the layer that predicts the token after the next
GGUF_NAMES = gguf_decoder.NAMES | {
    "post_attention_layernorm": "blk.{layer}.post_attention_norm.weight",
    "router_bias": "blk.{layer}.exp_probs_b.bias",
}
UNUSED_IN_GGUF = (r"blk\.{layers}\..*",)
_SIGMOID = 2


def from_config(raw: Mapping[str, Any], *, in_store: bool = False) -> d.Model:
    """The model of a parsed config.json. Raises ConfigError, naming the key."""
    keys = Keys({**_ABSENT, **raw}, _IGNORED, decoder.LIMITS)
    common = decoder.common(keys)
    mixer = d.Attention(
        common.heads,
        common.kv_heads,
        common.head_dim,
        rope(keys, common.head_dim, common.context, _ABSENT_THETA, partial=_ABSENT_PARTIAL),
        qk_norm=common.norm if keys.flag("use_qk_norm") else None,
        bias=keys.flag("attention_bias"),
    )
    experts = keys.positive("n_routed_experts")
    keys.agrees("num_local_experts", (None, experts), "n_routed_experts")
    groups = keys.positive("n_group", most=experts)
    if experts % groups:
        raise ConfigError(f"n_group: {groups} does not divide the {experts} experts (n_routed_experts)")
    router = d.Router(
        experts,
        keys.positive("num_experts_per_tok", most=experts),
        "ffn_input",
        "sigmoid",
        over="all",
        normalise=keys.flag("norm_topk_prob"),
        bias="choice",
        groups=groups,
        kept_groups=keys.positive("topk_group", most=groups),
        scale=keys.number("routed_scaling_factor", 1e-6, 1e6),
    )
    act, width = decoder.activation(keys), keys.positive("moe_intermediate_size", multiple_of=d.TILE)
    shared = keys.natural("n_shared_experts")
    sparse = d.Ffn(width, act, router=router, shared=d.Ffn(width * shared, act) if shared else None)
    first, dense = keys.natural("first_k_dense_replace"), decoder.dense(keys, common.hidden, act, expert_width=width)
    if first >= common.layers:
        raise ConfigError(f"first_k_dense_replace: expected fewer than the {common.layers} layers, found {first}")
    keys.only_these(_ONLY)
    keys.reject_unknown()
    networks = [dense] * first + [sparse] * (common.layers - first)
    return common.model(MODEL_TYPE, layer_keys.in_layers(mixer, networks, d.Norms(common.norm, common.norm)))


def to_config(model: d.Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `from_config` gives back an equal one."""
    mixer, dense, sparse = model.layers[0].attention, model.layers[0].ffn, model.layers[-1].ffn
    assert mixer.rope is not None and dense is not None and sparse is not None and sparse.router is not None
    router = sparse.router
    return {
        **decoder.common_keys(model, ARCHITECTURE),
        **(decoder.dense_keys(dense) if dense.router is None else {}),
        **rope_keys(mixer.rope, mixer.head_dim),
        "hidden_act": decoder.activation_name(sparse.activation),
        "attention_bias": mixer.bias,
        "use_qk_norm": mixer.qk_norm is not None,
        "first_k_dense_replace": len(model.certain_layers),
        "moe_intermediate_size": sparse.width,
        "n_routed_experts": router.experts,
        "num_experts_per_tok": router.k,
        "n_shared_experts": 0 if sparse.shared is None else sparse.shared.width // sparse.width,
        "norm_topk_prob": router.normalise,
        "routed_scaling_factor": router.scale,
        "n_group": router.groups,
        "topk_group": router.kept_groups,
    }


def from_gguf(keys: GgufKeys, facts: GgufFacts) -> dict[str, Any]:
    """The config.json that says what llama.cpp would compute. Raises ConfigError, naming the metadata's key."""
    raw = gguf_decoder.common(keys, facts, ARCHITECTURE, partial=True)
    keys.only("expert_gating_func", (_SIGMOID, 0))
    return raw | {
        "num_hidden_layers": raw["num_hidden_layers"] - keys.integer("nextn_predict_layers", 0),
        "intermediate_size": keys.integer("feed_forward_length"),
        "attention_bias": facts.has("blk.0.attn_q.bias"),
        "use_qk_norm": facts.has("blk.0.attn_q_norm.weight"),
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "n_routed_experts": keys.integer("expert_count"),
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "n_shared_experts": keys.integer("expert_shared_count", 0),
        "first_k_dense_replace": keys.integer("leading_dense_block_count", 0),
        "norm_topk_prob": keys.flag("expert_weights_norm", False),
        "routed_scaling_factor": keys.number("expert_weights_scale", 1.0) or 1.0,
        "n_group": keys.integer("expert_group_count", 1),
        "topk_group": keys.integer("expert_group_used_count", 1),
    }
