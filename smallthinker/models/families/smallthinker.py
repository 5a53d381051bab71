"""SmallThinker (arXiv 2507.20984): what its config.json and its GGUF files describe, and how both name their tensors.

Routers before attention, global layers without positions between sliding-window layers with them, ReLU experts. Knows
nothing about stores, memory or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from smallthinker.errors import ConfigError
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
_ABSENT_ROPE_THETA, _ABSENT_ROPE_THETA_IN_STORES = 1e6, 1.5e6
_ABSENT_BOS, _ABSENT_EOS = 151_643, (151_643, 151_645)
# What they meant to those who wrote stores before, config.json as it came: a store means the same for ever.
_ABSENT_IN_STORES: Mapping[str, Any] = {
    "num_key_value_heads": None, "head_dim": None, "tie_word_embeddings": False, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
# Upper bounds keep a hostile file from asking for absurd allocations; each is over ten times the published models.
_LIMITS = {
    "hidden_size": 65_536, "num_hidden_layers": 1_024, "num_attention_heads": 1_024, "num_key_value_heads": 1_024,
    "head_dim": 1_024, "moe_num_primary_experts": 4_096, "moe_num_active_primary_experts": 256,
    "moe_ffn_hidden_size": 65_536, "vocab_size": 4_194_304, "max_position_embeddings": 16_777_216,
    "sliding_window_size": 16_777_216,
}  # fmt: skip
_IGNORED = {"dense_ffn_hidden_size", "moe_num_secondary_experts", "moe_secondary_expert_size", "profile_sparsity"}

# Keys with one value that this engine implements; absent or null means that value.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,), "attention_bias": (False,), "cross_attention_hidden_size": (None,),
    "hidden_act": ("relu",), "is_encoder_decoder": (False,), "mlp_bias": (False,), "moe_enable_early_router": (True,),
    "moe_enable_secondary_experts": (False,), "moe_shared_primary_experts": (0,), "norm_topk_prob": (True,),
    "partial_rotary_factor": (1.0, 1), "per_layer_config": ({},), "pruned_heads": ({},),
    "quantization_config": (None,), "use_qk_norm": (False,),
}  # fmt: skip

# The checkpoint's names of the description's tensors; an expert's have its number.
CHECKPOINT_NAMES = {
    "embed_tokens": "model.embed_tokens.weight",
    "lm_head": "lm_head.weight",
    "norm": "model.norm.weight",
    "router": "model.layers.{layer}.block_sparse_moe.primary_router.weight",
    "input_layernorm": "model.layers.{layer}.input_layernorm.weight",
    "post_attention_layernorm": "model.layers.{layer}.post_attention_layernorm.weight",
    **{f"{part}_proj": f"model.layers.{{layer}}.self_attn.{part}_proj.weight" for part in "qkvo"},
    **{
        part: f"model.layers.{{layer}}.block_sparse_moe.experts.{{expert}}.{part}.weight"
        for part in ("gate", "up", "down")
    },
}
# Those of llama.cpp's GGUF files, where a layer's experts are one tensor.
GGUF_NAMES = {
    "embed_tokens": "token_embd.weight",
    "lm_head": "output.weight",
    "norm": "output_norm.weight",
    "router": "blk.{layer}.ffn_gate_inp.weight",
    "input_layernorm": "blk.{layer}.attn_norm.weight",
    "post_attention_layernorm": "blk.{layer}.ffn_norm.weight",
    **{f"{part}_proj": f"blk.{{layer}}.attn_{part}.weight" for part in "qkv"},
    "o_proj": "blk.{layer}.attn_output.weight",
    **{part: f"blk.{{layer}}.ffn_{part}_exps.weight" for part in ("gate", "up", "down")},
}


def from_config(raw: Mapping[str, Any], *, in_store: bool = False) -> d.Model:
    """The model of a parsed config.json, a checkpoint's or a store's. Raises ConfigError, naming the key."""
    if in_store:
        raw = {**_ABSENT_IN_STORES, **{key: value for key, value in raw.items() if value is not None}}
    keys = Keys({**_ABSENT, **raw}, _IGNORED, _LIMITS)
    layers, hidden = keys.positive("num_hidden_layers"), keys.positive("hidden_size")
    heads, vocab = keys.positive("num_attention_heads"), keys.positive("vocab_size")
    experts = keys.positive("moe_num_primary_experts")
    active = keys.positive("moe_num_active_primary_experts", most=experts)
    ffn = keys.positive("moe_ffn_hidden_size", multiple_of=d.BLOCK)
    if keys.raw["head_dim"] is None and hidden % heads:
        raise ConfigError(f"head_dim: missing, and hidden_size {hidden} is not a multiple of {heads} heads")
    use_window = keys.layout("sliding_window_layout", layers, absent=False)
    use_rope = keys.layout("rope_layout", layers, absent=True)
    window = keys.positive("sliding_window_size")
    tokens = d.SpecialTokens(
        keys.token("bos_token_id", _ABSENT_BOS, vocab), keys.tokens("eos_token_id", _ABSENT_EOS, vocab)
    )
    kv_heads = keys.positive("num_key_value_heads", null=heads)
    head_dim = keys.positive("head_dim", null=hidden // heads)
    theta = keys.rope_theta(_ABSENT_ROPE_THETA_IN_STORES if in_store else _ABSENT_ROPE_THETA)
    norm = d.Norm(keys.number("rms_norm_eps", 1e-20, 1.0))
    score: Literal["softmax", "sigmoid"] = "softmax" if keys.flag("moe_primary_router_apply_softmax") else "sigmoid"
    context, head = keys.positive("max_position_embeddings"), d.Head(keys.flag("tie_word_embeddings"))
    # said twice: by the published class, for vLLM's sake, or by what transformers makes of it
    keys.agrees("sliding_window", (None, window), "sliding_window_size")
    keys.agrees("sliding_window_pattern", (None, [int(flag) for flag in use_window]), "sliding_window_layout")
    types = ["sliding_attention" if flag else "full_attention" for flag in use_window]
    keys.agrees("layer_types", (None, types), "sliding_window_layout")
    keys.agrees("moe_layer_layout", (None, [1] * layers), "num_hidden_layers")
    keys.agrees("num_experts_per_tok", (None, active), "moe_num_active_primary_experts")
    keys.agrees("num_local_experts", (None, experts), "moe_num_primary_experts")
    keys.agrees("moe_intermediate_size", (None, ffn), "moe_ffn_hidden_size")
    for key, supported in _ONLY.items():
        keys.only(key, supported)
    keys.reject_unknown()
    network = d.Ffn(
        ffn, d.Activation("relu"), router=d.Router(experts, active, "residual", score, over="chosen", normalise=True)
    )
    return d.Model(
        family=MODEL_TYPE,
        vocab_size=vocab,
        hidden_size=hidden,
        context=context,
        layers=tuple(
            d.Layer(
                d.Attention(
                    heads,
                    kv_heads,
                    head_dim,
                    d.Rope(theta, head_dim) if has_rope else None,
                    window if has_window else 0,
                ),
                network,
                d.Norms(norm, norm),
            )
            for has_rope, has_window in zip(use_rope, use_window, strict=True)
        ),
        final_norm=norm,
        head=head,
        tokens=tokens,
    )


def to_config(model: d.Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `from_config` gives back an equal one."""
    attention = [layer.mixer for layer in model.layers if isinstance(layer.mixer, d.Attention)]
    ffn = model.layers[0].ffn
    assert ffn is not None and ffn.router is not None
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": attention[0].heads,
        "num_key_value_heads": attention[0].kv_heads,
        "head_dim": attention[0].head_dim,
        "moe_num_primary_experts": ffn.router.experts,
        "moe_num_active_primary_experts": ffn.router.k,
        "moe_ffn_hidden_size": ffn.width,
        "moe_primary_router_apply_softmax": ffn.router.score == "softmax",
        "norm_topk_prob": True,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.final_norm.eps,
        "rope_theta": next((mixer.rope.theta for mixer in attention if mixer.rope), _ABSENT_ROPE_THETA_IN_STORES),
        "rope_scaling": None,
        "rope_layout": [int(mixer.rope is not None) for mixer in attention],
        "sliding_window_layout": [int(mixer.window > 0) for mixer in attention],
        "sliding_window_size": next((mixer.window for mixer in attention if mixer.window), 4096),
        "tie_word_embeddings": model.head.tied,
        "bos_token_id": model.tokens.bos,
        "eos_token_id": list(model.tokens.eos),
    }


# Where there is a window, llama.cpp leaves the first of every four layers without one, and without rotated positions.
_WINDOW_PERIOD = 4
_SOFTMAX, _SIGMOID = 1, 2  # PowerInfer's converter writes nothing for the second, as the 4B's config.json does
# What llama.cpp neither writes otherwise for this architecture nor would compute otherwise.
_ONLY_IN_GGUF: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,), "expert_shared_count": (0,), "expert_weights_norm": (True,),
    "expert_weights_scale": (0.0, 1.0), "leading_dense_block_count": (0,), "rope.scaling.factor": (0.0, 1.0),
    "rope.scaling.type": ("none",),
}  # fmt: skip

# Hidden size, layers, experts, whether there are windows: of the 4B and the 21B, which are laid out as GGUF says.
_PUBLISHED_LAYOUTS = {(1536, 32, 32, False), (2560, 52, 64, True)}


def from_gguf(keys: GgufKeys, facts: GgufFacts) -> dict[str, Any]:
    """The config.json that says what llama.cpp would compute. Raises ConfigError, naming the metadata's key."""
    layers = keys.integer("block_count")
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", hidden // max(heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        keys.same(key, keys.integer(key, head_dim), head_dim, "attention.key_length")
    keys.same("vocab_size", keys.integer("vocab_size", facts.vocab_size), facts.vocab_size, "tokens")
    theta = keys.number("rope.freq_base")
    keys.same("rope.freq_base_swa", keys.number("rope.freq_base_swa", theta), theta, "rope.freq_base")
    window = keys.integer("attention.sliding_window", 0)
    # a model with a window is of the 21B's kind, softmax: only a file that lost the key doesn't say so
    gating = keys.integer("expert_gating_func", 0 if window else _SIGMOID)
    if gating not in (_SOFTMAX, _SIGMOID):
        raise keys.fault("expert_gating_func", "1 (softmax) or 2 (sigmoid)", gating or None)
    pattern = [int(window > 0 and layer % _WINDOW_PERIOD > 0) for layer in range(min(layers, 1 << 16))]
    expected = f"{_WINDOW_PERIOD}: no window in the first of every four layers"
    keys.one_of("attention.sliding_window_pattern", (_WINDOW_PERIOD, pattern), expected)
    ffn = keys.integer("feed_forward_length", 0)
    raw = {
        "architectures": [ARCHITECTURE],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "moe_num_primary_experts": keys.integer("expert_count"),
        "moe_num_active_primary_experts": keys.integer("expert_used_count"),
        "moe_ffn_hidden_size": keys.integer("expert_feed_forward_length", ffn),
        "moe_primary_router_apply_softmax": gating == _SOFTMAX,
        "vocab_size": facts.vocab_size,
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_layout": pattern if window else [1] * len(pattern),
        "sliding_window_layout": pattern,
        "tie_word_embeddings": facts.tied,
        "bos_token_id": facts.bos_token_id,
        "eos_token_id": facts.eos_token_ids,
    }
    if window:
        raw["sliding_window_size"] = window
    for key, supported in _ONLY_IN_GGUF.items():
        keys.only(key, supported)
    return raw


def gguf_notes(keys: GgufKeys, model: d.Model) -> tuple[str, ...]:
    """What was taken for granted, since the file can't say it or doesn't; nothing of the published layouts."""
    notes = []
    if not keys.has("expert_gating_func"):
        notes.append(
            f"{GGUF_ARCHITECTURE}.expert_gating_func: missing, taken as sigmoid, which PowerInfer's converter doesn't "
            "write; if the model's config.json has moe_primary_router_apply_softmax, convert from the original weights"
        )
    has_window = any(layer.attention.window for layer in model.layers)
    if (model.hidden_size, model.num_layers, model.experts_per_layer, has_window) not in _PUBLISHED_LAYOUTS:
        windows = (
            "the first of every four layers taken to have neither window nor rotary positions, the others both"
            if has_window
            else "no layer taken to have a window, all of them to have rotary positions"
        )
        notes.append(
            f"{GGUF_ARCHITECTURE}.attention.sliding_window: {windows}: GGUF can't say more; if the model's config.json "
            "has another rope_layout or sliding_window_layout, convert from the original weights"
        )
    return tuple(notes)
