"""Which descriptions the engine's kernels can compute: the one place that refuses the others, by the field's name.

A description says more than there are kernels for. A field that isn't named here must have its default, so that one
that is added to the description is refused until the arithmetic knows it. Knows nothing about how anything is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_args

from smallthinker.errors import ConfigError
from smallthinker.models.description import (
    Activation,
    Attention,
    Beside,
    Ffn,
    Growth,
    Head,
    InputGate,
    Layer,
    LayerInputs,
    Model,
    Norm,
    Norms,
    Rope,
    RopeScaling,
    Router,
    SpecialTokens,
)

# What a field may be: any of these values, or of these kinds, whose own fields are looked at in turn.
_Choice = tuple[Any, ...]
_ANY: _Choice = ()

_SUPPORTED: Mapping[type, Mapping[str, _Choice]] = {
    Model: dict.fromkeys(("family", "vocab_size", "hidden_size", "context", "layers", "tokens"), _ANY)
    | {"final_norm": (Norm,), "head": (Head,), "embedding_scale": _ANY, "layer_inputs": (LayerInputs, None)},
    LayerInputs: dict.fromkeys(("size", "embedding_scale", "projection_scale", "scale"), _ANY) | {"norm": (Norm,)},
    Layer: dict.fromkeys(("residual_scale", "output_scale"), _ANY)
    | {"mixer": (Attention,), "ffn": (Ffn,), "norms": (Norms,), "input_gate": (InputGate, None)},
    InputGate: {"activation": (Activation,), "after": (Norm, None)},
    Attention: dict.fromkeys(("heads", "kv_heads", "head_dim", "window", "chunk", "scale", "qk_norm_of"), _ANY)
    | dict.fromkeys(("bias", "out_bias", "clip", "sinks", "softcap", "values", "kv_of"), _ANY)
    | {"rope": (Rope, None), "qk_norm": (Norm, None), "v_norm": (Norm, None), "growth": (Growth, None)},
    Growth: dict.fromkeys(("beta", "every", "offset"), _ANY),
    Rope: dict.fromkeys(("theta", "size", "pairing", "over", "scaling", "turning"), _ANY),
    Norms: dict.fromkeys(("before_mixer", "before_ffn", "after_mixer", "after_ffn"), (Norm, None)) | {"parallel": _ANY},
    Norm: dict.fromkeys(("eps", "kind", "has_weight", "plus_one", "bias"), _ANY),
    Ffn: dict.fromkeys(("width", "gated", "bias", "slices", "shared_gate"), _ANY)
    | {"activation": (Activation,), "router": (Router, None), "shared": (Ffn, None), "beside": (Beside, None)},
    Beside: {"ffn": (Ffn,)} | dict.fromkeys(("before", "after", "after_experts"), (Norm, None)),
    Activation: dict.fromkeys(("kind", "limit", "alpha"), _ANY),
    Router: dict.fromkeys(("experts", "k", "reads", "score", "over", "normalise", "bias"), _ANY)
    | dict.fromkeys(("groups", "kept_groups", "scale", "expert_scale", "applied_to", "logit_scale"), _ANY)
    | {"norm": (Norm, None)},
    Head: dict.fromkeys(("tied", "scale", "softcap", "bias"), _ANY),
    **{scaling: {field.name: _ANY for field in fields(scaling)} for scaling in get_args(RopeScaling)},
    SpecialTokens: dict.fromkeys(("bos", "eos"), _ANY),
}


def check_supported(model: Model) -> None:
    """Raises ConfigError, naming the first field that asks for what no kernel computes, and what is supported."""
    _check_fields("", model)
    for number, layer in enumerate(model.layers):
        _check_source(model, number)
        if layer.ffn is not None:
            _check_network(f"layers[{number}].ffn.", layer.ffn)
        if layer.input_gate is not None:
            _check_plain(f"layers[{number}].input_gate.", layer.input_gate.activation, "an input gate")


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


def _check_source(model: Model, number: int) -> None:
    """Of a layer that reads another one's keys and values: it has them before, and all that this one sees."""
    mixer = model.layers[number].attention
    if mixer.kv_of is None:
        return
    name = f"layers[{number}].mixer.kv_of"
    if not mixer.kv_of < number:
        _refuse(name, f"a layer before {number}", repr(mixer.kv_of))
    source = model.layers[mixer.kv_of].attention
    for field in ("kv_of", "kv_heads", "head_dim", "window"):
        wanted = None if field == "kv_of" else getattr(mixer, field)
        if (found := getattr(source, field)) != wanted:
            _refuse(name, f"a layer whose {field} is {wanted}", f"{mixer.kv_of}, whose is {found}")


def _check_network(at: str, ffn: Ffn) -> None:
    shared, activation = ffn.shared, ffn.activation
    if activation.kind != "clamped_swiglu":
        _expect(at + "activation.limit", activation.limit, 0.0, f"of {activation.kind}")
        _expect(at + "activation.alpha", activation.alpha, 0.0, f"of {activation.kind}")
    if shared is None:
        _expect(at + "shared_gate", ffn.shared_gate, False, "without a shared network")
    else:
        _expect(at + "beside", ffn.beside, None, "with a shared network")
        _check_every_token_s(f"{at}shared", shared)
    if ffn.beside is not None:
        _check_every_token_s(f"{at}beside.ffn", ffn.beside.ffn)


def _check_every_token_s(at: str, ffn: Ffn) -> None:
    alone = {"router": None, "bias": False, "slices": 1, "shared": None, "shared_gate": False, "beside": None}
    for name, expected in alone.items():
        _expect(f"{at}.{name}", getattr(ffn, name), expected, "of a shared network")
    _check_plain(f"{at}.", ffn.activation, "a shared network")


def _check_plain(at: str, activation: Activation, of: str) -> None:
    if activation.kind == "clamped_swiglu":
        _refuse(f"{at}activation.kind", f"another one for {of}", repr(activation.kind))


def _expect(name: str, found: Any, expected: Any, why: str) -> None:
    if found != expected:
        _refuse(name, f"{expected!r} ({why})", repr(found))


def _refuse(name: str, expected: str, found: str) -> None:
    raise ConfigError(f"{name}: expected {expected}, found {found}; this engine has no arithmetic for that")
