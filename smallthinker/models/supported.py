"""Which descriptions the engine's kernels can compute: the one place that refuses the others, by the field's name.

A description says more than there are kernels for. A field that isn't named here must have its default, so that one
that is added to the description is refused until the arithmetic knows it. Knows nothing about how anything is computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from smallthinker.errors import ConfigError
from smallthinker.models.description import (
    Activation,
    Attention,
    Ffn,
    Head,
    Layer,
    Model,
    Norm,
    Norms,
    Rope,
    Router,
    SpecialTokens,
)

# What a field may be: any of these values, or of these kinds, whose own fields are looked at in turn.
_Choice = tuple[Any, ...]
_ANY: _Choice = ()

_SUPPORTED: Mapping[type, Mapping[str, _Choice]] = {
    Model: dict.fromkeys(("family", "vocab_size", "hidden_size", "context", "layers", "tokens"), _ANY)
    | {"final_norm": (Norm,), "head": (Head,)},
    Layer: {"mixer": (Attention,), "ffn": (Ffn,), "norms": (Norms,)},
    Attention: dict.fromkeys(("heads", "kv_heads", "head_dim", "window", "scale"), _ANY) | {"rope": (Rope, None)},
    Rope: dict.fromkeys(("theta", "size", "over"), _ANY),
    Norms: {"before_mixer": (Norm,), "before_ffn": (Norm,)},
    Norm: {"eps": _ANY},
    Ffn: dict.fromkeys(("width", "gated", "slices"), _ANY) | {"activation": (Activation,), "router": (Router, None)},
    Activation: {"kind": ("relu", "silu", "gelu", "gelu_tanh", "relu2")},
    Router: dict.fromkeys(("experts", "k", "over", "normalise"), _ANY)
    | {"reads": ("residual",), "score": ("softmax", "sigmoid")},
    Head: {"tied": _ANY},
    SpecialTokens: dict.fromkeys(("bos", "eos"), _ANY),
}


def check_supported(model: Model) -> None:
    """Raises ConfigError, naming the first field that asks for what no kernel computes, and what is supported."""
    _check_fields("", model)
    first = model.layers[0].attention
    thetas = [layer.attention.rope.theta for layer in model.layers if layer.attention.rope is not None]
    for number, layer in enumerate(model.layers):
        at, mixer, norms = f"layers[{number}].", layer.attention, layer.norms
        # one table of angles serves all layers
        _expect(at + "mixer.head_dim", mixer.head_dim, first.head_dim, "that of layer 0")
        if mixer.rope is not None:
            _expect(at + "mixer.rope.theta", mixer.rope.theta, thetas[0], "that of the other layers")
            _expect(at + "mixer.rope.size", mixer.rope.size, mixer.head_dim, "head_dim")
            if mixer.rope.over is not None:
                _expect(at + "mixer.rope.over", mixer.rope.over, mixer.rope.size, "size")
        if mixer.scale is not None and not math.isclose(mixer.scale, mixer.head_dim**-0.5, rel_tol=1e-7):
            _expect(at + "mixer.scale", mixer.scale, mixer.head_dim**-0.5, "head_dim ** -0.5")
        assert norms.before_mixer is not None and norms.before_ffn is not None and layer.ffn is not None
        _expect(at + "norms.before_ffn.eps", norms.before_ffn.eps, norms.before_mixer.eps, "that of before_mixer")
        if layer.ffn.router is not None:
            _check_weights(at + "ffn.router.", layer.ffn.router)


def _check_fields(at: str, value: Any) -> None:
    supported = _SUPPORTED[type(value)]
    for field in fields(value):
        found = getattr(value, field.name)
        choice = supported[field.name] if field.name in supported else _default(field)
        if choice and found not in choice and type(found) not in choice:
            expected = " or ".join(item.__name__ if isinstance(item, type) else repr(item) for item in choice)
            _refuse(at + field.name, expected, type(found).__name__ if is_dataclass(found) else repr(found))
        parts = enumerate(found) if isinstance(found, tuple) else [(None, found)]
        for number, part in parts:
            if is_dataclass(part):
                _check_fields(f"{at}{field.name}{'' if number is None else f'[{number}]'}.", part)


def _default(field: Field[Any]) -> _Choice:
    assert field.default is not MISSING, f"{field.name} has no default and must be named in _SUPPORTED"
    return (field.default,)


def _check_weights(at: str, router: Router) -> None:
    """The kernel takes scores of the chosen experts, divided by their sum. Softmax over all of them, divided so, is
    softmax over the chosen, whose sum is one as it is."""
    if not router.normalise and (router.score, router.over) != ("softmax", "chosen"):
        _refuse(at + "normalise", "True, but for a softmax over the chosen", "False")


def _expect(name: str, found: Any, expected: Any, why: str) -> None:
    if found != expected:
        _refuse(name, f"{expected!r} ({why})", repr(found))


def _refuse(name: str, expected: str, found: str) -> None:
    raise ConfigError(f"{name}: expected {expected}, found {found}; this engine has no arithmetic for that")
