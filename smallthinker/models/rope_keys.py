"""Rotary positions in a config.json: `rope_theta` and `rope_scaling` of transformers 4, `rope_parameters` of 5.

Owns which keys each kind of scaling has and what absent ones mean. Any other is refused by name. Knows nothing about
families.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from smallthinker.errors import ConfigError, printable, shown
from smallthinker.models.description import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    RopeScaling,
    YarnScaling,
)
from smallthinker.models.keys import LAYER_TYPES, ROPE_KEYS, ROPE_THETA_RANGE, Keys, checked_number

_LONGEST = 1 << 24
_EVERYWHERE = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
_ORIGINAL = "original_max_position_embeddings"
_KEYS: Mapping[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", _ORIGINAL},
    "yarn": {
        "factor", _ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
    },
    "longrope": {"short_factor", "long_factor", "factor", _ORIGINAL, "attention_factor"},
    "proportional": {"factor"},
}  # fmt: skip


def rope(
    keys: Keys,
    head_dim: int,
    context: int,
    theta: float,
    *,
    partial: float | None = None,
    original: int | None = None,
    layer_type: str | None = None,
    theta_key: str = "rope_theta",
) -> Rope:
    """Rotary positions of all layers, or of those of one type. theta, partial: what absent keys mean; without partial,
    whole heads turn. original: the context before scaling where a key of its own says it. Raises ConfigError, naming
    the key."""
    where, settings = _settings(keys, layer_type)
    kind = settings.get("rope_type", settings.get("type", "default"))
    kind = "longrope" if kind == "su" else kind  # its first name, in Phi-3's oldest files
    if not isinstance(kind, str) or kind not in _KEYS:
        name = "rope_type" if "rope_type" in settings else "type"
        raise ConfigError(f"{where}.{name}: expected {', '.join(_KEYS)}, found {shown(kind)}")
    unknown = sorted(printable(str(key), 80) for key in settings.keys() - _EVERYWHERE - _KEYS[kind])
    if unknown:
        raise ConfigError(f"{where}.{unknown[0]}: unknown key for rotary positions of the kind '{kind}'")
    found = {theta_key: keys.get(theta_key), f"{where}.rope_theta": settings.get("rope_theta")}
    theta = _agreed(found, theta, *ROPE_THETA_RANGE)
    key = "partial_rotary_factor"
    part = _agreed({key: keys.get(key), f"{where}.{key}": settings.get(key)}, partial or 1.0, 0.0, 1.0)
    if kind == "proportional":  # frequencies are the whole head's, and the last pairs have none
        if settings.get("factor") is not None:
            checked_number(f"{where}.factor", settings["factor"], 1.0, 1.0)
        return Rope(theta, head_dim, turning=None if part == 1.0 else _turning(part, head_dim))
    if partial is None and part != 1.0:
        raise ConfigError(f"{key}: only 1.0 is supported, found {part:g}")
    size = int(head_dim * part)
    if size < 2 or size % 2:
        raise ConfigError(f"{key}: expected an even number of rotary dimensions of {head_dim}, found {size}")
    return Rope(theta, size, scaling=_scaling(where, kind, settings, size, context, original))


def rope_keys(rope: Rope | None, head_dim: int | None = None) -> dict[str, Any]:
    """The keys for these positions, as both transformers 4 and 5 read them; none without positions. head_dim: of a
    family whose rotary part can be smaller."""
    if rope is None:
        return {}
    found: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": scaling_keys(rope)}
    if head_dim is None:
        return found
    part = rope.size / head_dim if rope.turning is None else turning_part(rope.turning, rope.size)
    return found | {"partial_rotary_factor": part}


def turning_part(turning: int, size: int) -> float:
    """`partial_rotary_factor` of the kind "proportional" for so many pairs of a head of this size."""
    part = 2 * turning / size
    return part if _turning(part, size) == turning else math.nextafter(part, 1.0)


def _turning(part: float, size: int) -> int:
    return int(part * size // 2)


def scaling_keys(rope: Rope) -> dict[str, Any] | None:
    """`rope_scaling` for these positions."""
    scaling = rope.scaling
    if rope.turning is not None:
        return {"rope_type": "proportional", "partial_rotary_factor": turning_part(rope.turning, rope.size)}
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            _ORIGINAL: scaling.original_context,
        }
    if isinstance(scaling, YarnScaling):
        return {
            "rope_type": "yarn",
            "factor": scaling.factor,
            _ORIGINAL: scaling.original_context,
            "attention_factor": scaling.attention_factor,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncate,
        }
    if isinstance(scaling, LongRopeScaling):
        return {
            "rope_type": "longrope",
            "short_factor": list(scaling.short),
            "long_factor": list(scaling.long),
            _ORIGINAL: scaling.original_context,
            "attention_factor": scaling.attention_factor,
        }
    return None


def _settings(keys: Keys, layer_type: str | None) -> tuple[str, Mapping[str, Any]]:
    """The dictionary that counts and its name: transformers writes one or the other, or one a layer type in it."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for key in ROPE_KEYS:
        value = keys.get(key)
        if value is None or value == {}:
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}: expected an object, found {shown(value)}")
        parts = {key: value}
        if set(value) <= set(LAYER_TYPES):
            wanted = value if layer_type is None else [kind for kind in value if kind == layer_type]
            parts = {f"{key}.{kind}": value[kind] for kind in wanted if value[kind] is not None}
        elif layer_type == "sliding_attention":  # what transformers 4 says without a type is of the other layers
            continue
        for name, part in parts.items():
            if not isinstance(part, Mapping):
                raise ConfigError(f"{name}: expected an object, found {shown(part)}")
            found.append((name, part))
    (first, settings), *others = found or [("rope_parameters", {})]
    for name, other in others:
        if other != settings:
            raise ConfigError(f"{name}: expected what {first} says, found {shown(other)}; correct one of them")
    return first, settings


def _agreed(found: Mapping[str, Any], absent: float, least: float, most: float) -> float:
    values = {key: checked_number(key, value, least, most) for key, value in found.items() if value is not None}
    (first, chosen), *others = values.items() if values else [("", absent)]
    for key, other in others:
        if other != chosen:
            raise ConfigError(f"{key}: expected {chosen:g} as {first} says, found {other:g}; correct one of them")
    return chosen


def _scaling(
    where: str, kind: str, settings: Mapping[str, Any], size: int, context: int, original: int | None
) -> RopeScaling | None:
    def number(key: str, least: float, most: float) -> float:
        return checked_number(f"{where}.{key}", settings.get(key), least, most)

    def optional(key: str, absent: float) -> float:
        return absent if not settings.get(key) else number(key, 1e-6, 1e6)

    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(number("factor", 1e-3, 1e6))
    before = original if original is not None else settings.get(_ORIGINAL, context)
    if type(before) is not int or not 1 < before <= _LONGEST:
        raise ConfigError(f"{where}.{_ORIGINAL}: expected an integer from 2 to {_LONGEST}, found {shown(before)}")
    if settings.get(_ORIGINAL) not in (None, before):
        raise ConfigError(
            f"{where}.{_ORIGINAL}: expected {before} as {_ORIGINAL} says, found {shown(settings[_ORIGINAL])}; correct "
            "one of them"
        )
    if kind == "llama3":
        low, high = number("low_freq_factor", 1e-3, 1e6), number("high_freq_factor", 1e-3, 1e6)
        if not low < high:
            raise ConfigError(f"{where}.high_freq_factor: expected more than low_freq_factor {low:g}, found {high:g}")
        return Llama3Scaling(number("factor", 1e-3, 1e6), low, high, before)
    factor = number("factor", 1e-3, 1e6) if settings.get("factor") is not None else context / before
    if kind == "yarn":
        meant = _mscale(factor, 1.0)
        if settings.get("mscale") and settings.get("mscale_all_dim"):
            meant = _mscale(factor, number("mscale", 1e-6, 1e6)) / _mscale(factor, number("mscale_all_dim", 1e-6, 1e6))
        truncate = settings.get("truncate", True)
        if type(truncate) is not bool:
            raise ConfigError(f"{where}.truncate: expected true or false, found {shown(truncate)}")
        attention_factor = optional("attention_factor", meant)
        return YarnScaling(
            factor, before, attention_factor, optional("beta_fast", 32.0), optional("beta_slow", 1.0), truncate
        )
    meant = math.sqrt(1 + math.log(factor) / math.log(before)) if factor > 1 else 1.0
    short, long = (_factors(f"{where}.{key}", settings.get(key), size // 2) for key in ("short_factor", "long_factor"))
    return LongRopeScaling(short, long, before, optional("attention_factor", meant))


def _mscale(factor: float, by: float) -> float:
    return 0.1 * by * math.log(factor) + 1.0 if factor > 1 else 1.0


def _factors(key: str, value: Any, count: int) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != count:
        raise ConfigError(f"{key}: expected a list of {count} numbers, one a rotary pair, found {shown(value)}")
    return tuple(checked_number(key, item, 1e-6, 1e9) for item in value)
