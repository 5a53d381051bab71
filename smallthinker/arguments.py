"""Values that a caller hands over, checked where they come in: what isn't of the right kind is a RequestError that
names the argument, before anything is loaded or computed.

A leaf beside errors.py: knows no argument by name. True is no number, 2.5 no count and "5" neither; numpy's numbers are
numbers.
"""

from __future__ import annotations

import json
import math
import numbers
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn, TypeGuard

from smallthinker.errors import RequestError, shown

MAX_COUNT = 2**31 - 1


def refuse(name: str, expected: str, value: object) -> NoReturn:
    raise RequestError(f"{name}: expected {expected}, found {found(value)}") from None


def found(value: object) -> str:
    """What a caller gave, for a message: others than texts and numbers may be large, and tell little."""
    if value is None or isinstance(value, (str, int, float)):
        return shown(value, 60)
    return f"a value of type {type(value).__name__}"


def whole(name: str, value: object, least: int, most: int = MAX_COUNT, expected: str | None = None) -> int:
    """An int, or what stands for one (`operator.index`: numpy's integers)."""
    expected = expected or f"a whole number from {least} to {most}"
    if _is_bool(value):
        refuse(name, expected, value)
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        refuse(name, expected, value)
    if not least <= number <= most:
        refuse(name, expected, number)
    return number


def number(name: str, value: object, accepts: Callable[[float], bool], expected: str) -> float:
    """A finite number."""
    if not isinstance(value, numbers.Real) or _is_bool(value):
        refuse(name, expected, value)
    try:
        found = float(value)
    except OverflowError:
        refuse(name, expected, value)
    if not math.isfinite(found) or not accepts(found):
        refuse(name, expected, value)
    return found


def flag(name: str, value: object) -> bool:
    if not _is_bool(value):
        refuse(name, "True or False", value)
    return bool(value)


def choice(name: str, value: object, choices: Iterable[str]) -> str:
    known = list(choices)
    if not isinstance(value, str) or value not in known:
        refuse(name, f"{', '.join(known[:-1])} or {known[-1]}", value)
    return value


def text(name: str, value: object, expected: str = "text") -> str:
    if not isinstance(value, str):
        refuse(name, expected, value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as e:  # half of a surrogate pair, as bytes that are no UTF-8 become
        raise RequestError(f"{name}: expected valid Unicode, found {value[e.start]!r} at character {e.start}") from None
    return value


def texts(name: str, value: object) -> tuple[str, ...]:
    """One text, a list of them, or None for none."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = [value]
    if not is_list(value):
        refuse(name, "a text or a list of texts", value)
    return tuple(text(name, one, "a text or a list of texts") for one in value)


def json_value(name: str, value: object, expected: str) -> None:
    """Of what JSON has: objects, lists, valid Unicode, finite numbers."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError as e:
        raise RequestError(f"{name}: expected valid Unicode, found {e.object[e.start]!r} in a text") from None
    except (TypeError, ValueError, RecursionError):
        raise RequestError(f"{name}: expected {expected}, found a value that JSON doesn't have") from None


def token_ids(name: str, value: object) -> list[int]:
    """Of any iterable but text, bytes and mappings; which ids there are, the caller knows."""
    expected = "a list of token ids"
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)) or not isinstance(value, Iterable):
        refuse(name, expected, value)
    return [whole(name, id, 0, MAX_COUNT, expected) for id in value]


def path(name: str, value: object) -> None:
    found = os.fspath(value) if isinstance(value, os.PathLike) else value
    try:
        is_path = isinstance(found, str) and b"\0" not in os.fsencode(found)
    except UnicodeEncodeError:  # half of a surrogate pair that stands for no byte
        is_path = False
    if not is_path:
        refuse(name, "a path", value)


def callback(name: str, value: object) -> None:
    if value is not None and not callable(value):
        refuse(name, "a function or None", value)


def is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def _is_bool(value: object) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # numpy's; this module does without it
