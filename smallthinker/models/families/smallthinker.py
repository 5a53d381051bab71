"""SmallThinker (arXiv 2507.20984): routers before attention, layers without positions between those with windows.

ReLU experts. Knows nothing about stores, memory or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from smallthinker.models import decoder, gguf_decoder, layer_keys
from smallthinker.models import description as d
from smallthinker.models.gguf_keys import GgufFacts, GgufKeys
from smallthinker.models.keys import Keys

ARCHITECTURE = "SmallThinkerForCausalLM"
MODEL_TYPE = GGUF_ARCHITECTURE = "smallthinker"

# What absent keys mean: the defaults of the published configuration class, which are the 4B base model's.
_ABSENT: Mapping[str, Any] = {
    "hidden_size": 1536, "num_hidden_layers": 32, "num_attention_heads": 12, "num_key_value_heads": 2, "head_dim": 128,
    "moe_num_primary_experts": 32, "moe_num_active_primary_experts": 4, "moe_ffn_hidden_size": 768,
    "vocab_size": 151_936, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6, "sliding_window_size": 4096,
    "moe_primary_router_apply_softmax": False, "tie_word_embeddings": True,
}  # fmt: skip
_THETA, _THETA_IN_STORES, _ABSENT_BOS, _ABSENT_EOS = 1e6, 1.5e6, 151_643, (151_643, 151_645)
# What they meant to those who wrote stores before, config.json as it came: a store means the same for ever.
_ABSENT_IN_STORES: Mapping[str, Any] = {
    **dict.fromkeys(("num_key_value_heads", "head_dim", "bos_token_id", "eos_token_id")), "tie_word_embeddings": False,
}  # fmt: skip
_LIMITS = decoder.LIMITS | {
    "moe_num_primary_experts": 4_096, "moe_num_active_primary_experts": 256, "moe_ffn_hidden_size": 65_536,
    "sliding_window_size": 16_777_216, "max_position_embeddings": 16_777_216,
}  # fmt: skip
_IGNORED = {"dense_ffn_hidden_size", "moe_num_secondary_experts", "moe_secondary_expert_size", "profile_sparsity"}
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False,), "hidden_act": ("relu",), "mlp_bias": (False,), "moe_enable_early_router": (True,),
    "moe_enable_secondary_experts": (False,), "moe_shared_primary_experts": (0,), "norm_topk_prob": (True,),
    "partial_rotary_factor": (1.0, 1), "use_qk_norm": (False,),
}  # fmt: skip

_MOE = "model.layers.{layer}.block_sparse_moe."
CHECKPOINT_NAMES = decoder.ATTENTION_NAMES | {
    "router": f"{_MOE}primary_router.weight",
    **{part: f"{_MOE}experts.{{expert}}.{part}.weight" for part in ("gate", "up", "down")},
}
GGUF_NAMES = gguf_decoder.NAMES


def from_config(raw: Mapping[str, Any], *, in_store: bool = False) -> d.Model:
    """The model of a parsed config.json, a checkpoint's or a store's. Raises ConfigError, naming the key."""
    if in_store:
        raw = {**_ABSENT_IN_STORES, **{key: value for key, value in raw.items() if value is not None}}
    keys = Keys({**_ABSENT, **raw}, _IGNORED, _LIMITS)
    common = decoder.common(keys, _ABSENT_BOS, *_ABSENT_EOS)
    layers, experts = common.layers, keys.positive("moe_num_primary_experts")
    active = keys.positive("moe_num_active_primary_experts", most=experts)
    width = keys.positive("moe_ffn_hidden_size", multiple_of=d.TILE)
    has_window, has_rope = keys.layout("sliding_window_layout", layers, False), keys.layout("rope_layout", layers, True)
    window, theta = keys.positive("sliding_window_size"), keys.rope_theta(_THETA_IN_STORES if in_store else _THETA)
    types = ["sliding_attention" if one else "full_attention" for one in has_window]
    score: Literal["softmax", "sigmoid"] = "softmax" if keys.flag("moe_primary_router_apply_softmax") else "sigmoid"
    # said twice: by the published class, for vLLM's sake, or by what transformers makes of it
    keys.agrees("sliding_window", (None, window), "sliding_window_size")
    keys.agrees("sliding_window_pattern", (None, [int(one) for one in has_window]), "sliding_window_layout")
    keys.agrees("layer_types", (None, types), "sliding_window_layout")
    keys.agrees("moe_layer_layout", (None, [1] * layers), "num_hidden_layers")
    keys.agrees("num_experts_per_tok", (None, active), "moe_num_active_primary_experts")
    keys.agrees("num_local_experts", (None, experts), "moe_num_primary_experts")
    keys.agrees("moe_intermediate_size", (None, width), "moe_ffn_hidden_size")
    keys.only_these(_ONLY)
    keys.reject_unknown()
    mixer = d.Attention(common.heads, common.kv_heads, common.head_dim, d.Rope(theta, common.head_dim))
    router = d.Router(experts, active, "residual", score, over="chosen", normalise=True)
    networks, norms = [d.Ffn(width, d.Activation("relu"), router=router)] * layers, d.Norms(common.norm, common.norm)
    return common.model(MODEL_TYPE, layer_keys.in_layers(mixer, networks, norms, window, types, has_rope))


def to_config(model: d.Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `from_config` gives back an equal one."""
    mixers, router = [layer.attention for layer in model.layers], model.layers[0].router
    return {
        **decoder.common_keys(model, ARCHITECTURE),
        "moe_num_primary_experts": router.experts,
        "moe_num_active_primary_experts": router.k,
        "moe_ffn_hidden_size": model.ffn_width,
        "moe_primary_router_apply_softmax": router.score == "softmax",
        "norm_topk_prob": True,
        "rope_theta": next((mixer.rope.theta for mixer in mixers if mixer.rope), _THETA_IN_STORES),
        "rope_scaling": None,
        "rope_layout": [int(mixer.rope is not None) for mixer in mixers],
        "sliding_window_layout": [int(mixer.window > 0) for mixer in mixers],
        "sliding_window_size": layer_keys.window_of(model) or _ABSENT["sliding_window_size"],
    }


# Where there is a window, llama.cpp leaves the first of every four layers without one, and without rotated positions.
_PERIOD = 4
_SOFTMAX, _SIGMOID = 1, 2  # PowerInfer's converter writes nothing for the second, as the 4B's config.json does
# What llama.cpp neither writes otherwise for this architecture nor would compute otherwise.
_ONLY_IN_GGUF: Mapping[str, tuple[Any, ...]] = {
    "expert_shared_count": (0,), "expert_weights_norm": (True,), "expert_weights_scale": (0.0, 1.0),
    "leading_dense_block_count": (0,), "rope.scaling.factor": (0.0, 1.0), "rope.scaling.type": ("none",),
}  # fmt: skip
# Hidden size, layers, experts, whether there are windows: of the 4B and the 21B, which are laid out as GGUF says.
_PUBLISHED_LAYOUTS = {(1536, 32, 32, False), (2560, 52, 64, True)}


def from_gguf(keys: GgufKeys, facts: GgufFacts) -> dict[str, Any]:
    """The config.json that says what llama.cpp would compute. Raises ConfigError, naming the metadata's key."""
    keys.only_these(_ONLY_IN_GGUF)
    theta, window = keys.number("rope.freq_base"), keys.integer("attention.sliding_window", 0)
    keys.same("rope.freq_base_swa", keys.number("rope.freq_base_swa", theta), theta, "rope.freq_base")
    raw = gguf_decoder.common(keys, facts, ARCHITECTURE)
    # a model with a window is of the 21B's kind, softmax: only a file that lost the key doesn't say so
    gating = keys.integer("expert_gating_func", 0 if window else _SIGMOID)
    if gating not in (_SOFTMAX, _SIGMOID):
        raise keys.fault("expert_gating_func", "1 (softmax) or 2 (sigmoid)", gating or None)
    pattern = [int(window > 0 and n % _PERIOD > 0) for n in range(min(raw["num_hidden_layers"], 1 << 16))]
    said = f"{_PERIOD}: no window in the first of every four layers"
    keys.one_of("attention.sliding_window_pattern", (_PERIOD, pattern), said)
    return raw | {
        "moe_num_primary_experts": keys.integer("expert_count"),
        "moe_num_active_primary_experts": keys.integer("expert_used_count"),
        "moe_ffn_hidden_size": keys.integer("expert_feed_forward_length", keys.integer("feed_forward_length", 0)),
        "moe_primary_router_apply_softmax": gating == _SOFTMAX,
        "rope_theta": theta,
        "rope_layout": pattern if window else [1] * len(pattern),
        "sliding_window_layout": pattern,
        **({"sliding_window_size": window} if window else {}),
    }


def gguf_notes(keys: GgufKeys, model: d.Model) -> tuple[str, ...]:
    """What was taken for granted, since the file can't say it or doesn't; nothing of the published layouts."""
    notes, has_window = [], layer_keys.window_of(model) is not None
    if not keys.has("expert_gating_func"):
        notes.append(
            f"{GGUF_ARCHITECTURE}.expert_gating_func: missing, taken as sigmoid, which PowerInfer's converter doesn't "
            "write; if the model's config.json has moe_primary_router_apply_softmax, convert from the original weights"
        )
    windows = "no layer taken to have a window, all of them to have rotary positions"
    if has_window:
        windows = "the first of every four layers taken to have neither window nor rotary positions, the others both"
    if (model.hidden_size, model.num_layers, model.experts_per_layer, has_window) not in _PUBLISHED_LAYOUTS:
        notes.append(
            f"{GGUF_ARCHITECTURE}.attention.sliding_window: {windows}: GGUF can't say more; if the model's config.json "
            "has another rope_layout or sliding_window_layout, convert from the original weights"
        )
    return tuple(notes)
