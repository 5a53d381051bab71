"""Keys by which layers of a model differ: windows, heads and positions by type, keys of others, inputs of their own.

Names of keys are those of transformers 5. Knows nothing about which family has which of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from smallthinker.errors import ConfigError, shown
from smallthinker.models import decoder
from smallthinker.models import description as d
from smallthinker.models.keys import LAYER_TYPES, Keys
from smallthinker.models.rope_keys import rope, rope_keys, scaling_keys

_FULL, _SLIDING = LAYER_TYPES

_LAYER = "model.layers.{layer}."
# Tensors of checkpoints whose layers have inputs of their own.
INPUT_NAMES = {
    "layer_embeddings": "model.embed_tokens_per_layer.weight",
    "layer_inputs_proj": "model.per_layer_model_projection.weight",
    "layer_inputs_norm": "model.per_layer_projection_norm.weight",
    "input_gate": f"{_LAYER}per_layer_input_gate.weight",
    "input_proj": f"{_LAYER}per_layer_projection.weight",
    "input_out_norm": f"{_LAYER}post_per_layer_input_norm.weight",
}


def types_of_period(layers: int, period: int) -> list[str]:
    """All but each so many's last have the window."""
    return [_SLIDING if (n + 1) % period else _FULL for n in range(layers)]


def layer_types(model: d.Model) -> list[str]:
    """As config.json has them."""
    return ["sliding_attention" if layer.attention.window else "full_attention" for layer in model.layers]


def window_of(model: d.Model) -> int | None:
    """The one window of those layers that have one."""
    return next((layer.attention.window for layer in model.layers if layer.attention.window), None)


def check_window(window: int, types: Sequence[str]) -> int:
    """Raises ConfigError where a layer should have a window and there is none."""
    if "sliding_attention" in types and not window:
        raise ConfigError("layer_types: 'sliding_attention' for a layer, but there is no sliding_window")
    return window if "sliding_attention" in types else 0


def in_layers(
    attention: d.Attention,
    ffns: Sequence[d.Ffn],
    norms: d.Norms,
    window: int = 0,
    types: Sequence[str] = (),
    has_rope: Sequence[bool] = (),
) -> list[d.Layer]:
    """Layers that differ in their networks, by their types in whether they have the window, and in whether they have
    positions."""
    types = types or ["sliding_attention" if window else "full_attention"] * len(ffns)
    windowed = {"full_attention": attention, "sliding_attention": replace(attention, window=window)}
    mixers = [
        windowed[kind] if rotary else replace(windowed[kind], rope=None)
        for kind, rotary in zip(types, has_rope or [True] * len(types), strict=True)
    ]
    return [d.Layer(mixer, ffn, norms) for mixer, ffn in zip(mixers, ffns, strict=True)]


def layers_with_rope(keys: Keys, layers: int, unsaid: tuple[Any, ...] = (None,)) -> list[bool]:
    """Which layers have rotary positions: all but every so many's last, or as `no_rope_layers` says, which is 1 where
    there are some, in spite of the name. unsaid: values of it that say nothing."""
    interval = keys.positive("no_rope_layer_interval")
    if keys.get("no_rope_layers") in unsaid:
        return [bool((n + 1) % interval) for n in range(layers)]
    return list(keys.layout("no_rope_layers", layers, absent=True))


def heads_of_full_layers(
    keys: Keys, types: Sequence[str], kv_heads: int, published: tuple[int, int]
) -> tuple[int, int]:
    """Key heads and head_dim of layers without a window, by `per_layer_config`; kv_heads: of the others. published:
    without that key, as a family's first files say it by keys of its own. Raises ConfigError."""
    overrides = keys.get("per_layer_config")
    if overrides is None:
        return published
    numbers = {str(n) for n, kind in enumerate(types) if kind == _FULL}
    # transformers writes "05" where there are more than ten layers
    if not isinstance(overrides, Mapping) or {str(n).lstrip("0") or "0" for n in overrides} != numbers:
        raise ConfigError(f"per_layer_config: expected the layers without a window, found {shown(overrides)}")
    of, *others = {shown(value): value for value in overrides.values()}.values() or [{}]
    if others or not isinstance(of, Mapping) or not set(of) <= {"head_dim", "num_key_value_heads"}:
        raise ConfigError(f"per_layer_config: expected one head_dim and num_key_value_heads, found {shown(overrides)}")
    read = Keys({"head_dim": published[1], "num_key_value_heads": kv_heads, **of}, (), decoder.LIMITS)
    return read.positive("num_key_value_heads"), read.positive("head_dim")


def per_layer_config(types: Sequence[str], kv_heads: int, head_dim: int) -> dict[str, Any]:
    """The way back: key heads and head_dim of layers without a window."""
    of = {"head_dim": head_dim, "num_key_value_heads": kv_heads}
    return {str(n): of for n, kind in enumerate(types) if kind == _FULL}


def ropes(
    keys: Keys, types: Sequence[str], head_dims: Mapping[str, int], context: int, theta: float
) -> dict[str, d.Rope]:
    """Positions of each type of layers, by `rope_parameters`; theta: what an absent base means. Raises ConfigError."""
    found = keys.get("rope_parameters")
    if not isinstance(found, Mapping) or {*found} - {*LAYER_TYPES} or not all(map(found.get, types)):
        raise ConfigError(f"rope_parameters: expected positions of {_FULL} and {_SLIDING}, found {shown(found)}")
    return {kind: rope(keys, size, context, theta, layer_type=kind) for kind, size in head_dims.items()}


def sources(keys: Keys, types: Sequence[str]) -> list[int | None]:
    """Of each layer, the one whose keys and values it reads: the last of its kind that has its own, for the last
    `num_kv_shared_layers`. Raises ConfigError."""
    own = len(types) - keys.natural("num_kv_shared_layers")
    if own < 1 or {*types[own:]} - {*types[:own]}:
        raise ConfigError(
            f"num_kv_shared_layers: expected layers of each kind that keep keys and values, found {own} of {len(types)}"
        )
    last = {kind: n for n, kind in enumerate(types[:own])}
    return [None if n < own else last[kind] for n, kind in enumerate(types)]


def layer_inputs(keys: Keys, common: decoder.Common) -> d.LayerInputs | None:
    """Of a table with a row of all layers' inputs for each token, if there is one. Raises ConfigError."""
    if keys.get("hidden_size_per_layer_input") in (None, 0):
        return None
    size = keys.positive("hidden_size_per_layer_input")
    keys.only("vocab_size_per_layer_input", (common.vocab,))
    return d.LayerInputs(size, common.norm, size**0.5, common.hidden**-0.5, 2**-0.5)


def qwen_windows(keys: Keys, layers: int) -> tuple[int, tuple[str, ...]]:
    """The window and each layer's type where layers from `max_window_layers` on have one, if `use_sliding_window`."""
    window, first = keys.window("sliding_window"), keys.natural("max_window_layers")
    if not keys.flag("use_sliding_window"):
        window = 0
    types = keys.layer_types(
        ["sliding_attention" if window and layer >= first else "full_attention" for layer in range(layers)]
    )
    return check_window(window, types), types


def qwen_keys(model: d.Model, architecture: str) -> dict[str, Any]:
    """The way back of a dense Qwen."""
    mixer, ffn, window = model.layers[0].attention, model.layers[0].ffn, window_of(model)
    assert ffn is not None and mixer.rope is not None
    return {
        **decoder.common_keys(model, architecture),
        **decoder.dense_keys(ffn),
        **rope_keys(mixer.rope),
        "hidden_act": decoder.activation_name(ffn.activation),
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": model.num_layers,
        "layer_types": layer_types(model),
    }


def gemma_keys(model: d.Model, architecture: str) -> dict[str, Any]:
    """The way back of what Gemma 3 and 4 say by the same keys."""
    types, mixers, ffn = layer_types(model), [layer.attention for layer in model.layers], model.layers[0].ffn
    assert ffn is not None
    ropes = {kind: mixer.rope for kind, mixer in zip(types, mixers, strict=True) if mixer.rope}
    return {
        **decoder.common_keys(model, architecture),
        **decoder.dense_keys(ffn),
        "rope_parameters": {
            kind: {"rope_theta": rope.theta} | (scaling_keys(rope) or {"rope_type": "default"})
            for kind, rope in ropes.items()
        },
        "hidden_activation": decoder.activation_name(ffn.activation),
        "attention_bias": mixers[0].bias,
        "sliding_window": window_of(model),
        "layer_types": types,
        "final_logit_softcapping": model.head.softcap or None,
    }
