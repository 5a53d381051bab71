"""A model whose config.json is its description, as `description.py` has it: of no family, or of one that isn't named.

For whoever makes models of their own, and for tests of any combination. Tensors have the names of `tensors.py`. Knows
nothing about what a value means; the description checks its values itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from smallthinker.errors import ConfigError, printable, shown
from smallthinker.models import description as d

ARCHITECTURE = "DescribedModel"
MODEL_TYPE = "described"
CHECKPOINT_NAMES = None
"""The description's own."""

# Keeps a hostile file from asking for absurd allocations: over ten times what published models have of anything.
_MOST = 1 << 24
_KIND = "is"
_IGNORED = {"architectures", "model_type", "transformers_version", "torch_dtype", "dtype"}


def from_config(raw: Mapping[str, Any], *, in_store: bool = False) -> d.Model:
    """The model that the key `model` describes. Raises ConfigError, naming the key."""
    unknown = sorted(printable(str(key), 80) for key in set(raw) - _IGNORED - {"model"})
    if unknown:
        raise ConfigError(f"{unknown[0]}: unknown key beside the description in 'model'")
    if "model" not in raw:
        raise ConfigError("model: missing; expected a description")
    model = _decoded(d.Model, raw["model"], "model")
    assert isinstance(model, d.Model)
    if model.family != MODEL_TYPE:
        raise ConfigError(f"model.family: expected {MODEL_TYPE!r}, found {shown(model.family)}")
    return model


def to_config(model: d.Model) -> dict[str, Any]:
    """The config.json of a checkpoint of this model; `from_config` gives back an equal one."""
    return {"architectures": [ARCHITECTURE], "model_type": MODEL_TYPE, "model": _encoded(model)}


def _encoded(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        found = {f.name: _encoded(getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) != f.default}
        return {_KIND: type(value).__name__} | found
    return [_encoded(item) for item in value] if isinstance(value, tuple) else value


def _decoded(kind: Any, value: Any, where: str) -> Any:
    origin, choices = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value not in choices:
            raise ConfigError(f"{where}: expected {' or '.join(map(repr, choices))}, found {shown(value)}")
        return value
    if origin in (Union, UnionType):
        if value is None and NoneType in choices:
            return None
        kinds = [choice for choice in choices if choice is not NoneType]
        named = value.get(_KIND) if isinstance(value, Mapping) else None
        chosen = kinds[0] if len(kinds) == 1 else next((kind for kind in kinds if kind.__name__ == named), None)
        if chosen is None:
            names = " or ".join(repr(kind.__name__) for kind in kinds)
            raise ConfigError(f"{where}.{_KIND}: expected {names}, found {shown(named)}")
        return _decoded(chosen, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, found {shown(value)}")
        return tuple(_decoded(choices[0], item, f"{where}[{at}]") for at, item in enumerate(value))
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ConfigError(f"{where}: expected {kind.__name__}, found {shown(value)}")
    if kind is int and not 0 <= value <= _MOST:
        raise ConfigError(f"{where}: expected 0 to {_MOST}, found {value}")
    return value


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping) or value.get(_KIND, kind.__name__) != kind.__name__:
        raise ConfigError(f"{where}: expected an object that describes {kind.__name__}, found {shown(value)}")
    hints = _hints(kind)
    unknown = sorted(printable(str(key), 80) for key in set(value) - set(hints) - {_KIND})
    if unknown:
        raise ConfigError(f"{where}.{unknown[0]}: unknown key; {kind.__name__} has {', '.join(hints)}")
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.name not in value]
    if missing:
        raise ConfigError(f"{where}.{missing[0]}: missing")
    return kind(**{key: _decoded(hints[key], item, f"{where}.{key}") for key, item in value.items() if key != _KIND})


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
