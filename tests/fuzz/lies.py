"""Files that lie: valid ones, changed where a liar would change them, as a fuzzer's bytes or hypothesis draw it.

Knows nothing about what reads them.
"""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

BIG = (0, 1, 2, 31, 32, 33, 255, 256, 4095, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**60, 2**63 - 1)
HUGE = (*BIG, 2**63, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    None, True, False, *BIG, -1, -(2**63), 10**30, 10**300, 0.5, -0.0, 1e-320, 1e308, "", "x", "\ud800", "\0",
    "9" * 5000, "full_attention",
    [], [[]], {}, {"": None}, [0] * 200, ["a", "a"], [1e308, -1], {"a": {"a": {"a": [None]}}},
)  # fmt: skip
RAW = (
    b"NaN",
    b"Infinity",
    b"-1e999",
    b"1e999",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"9" * 5000,
    b'{"a":1,"a":2}',
    b"\xff",
    b"",
)


class Draw(Protocol):
    def integer(self, low: int, high: int) -> int: ...

    def data(self, most: int) -> bytes: ...


def pick(draw: Draw, items: Sequence[Any]) -> Any:
    return items[draw.integer(0, len(items) - 1)]


def edited(draw: Draw, seed: Any, most: int = 4) -> Any:
    """A JSON value with some of its parts replaced, removed, repeated, or moved elsewhere."""
    value = {"": copy.deepcopy(seed)}
    for _ in range(draw.integer(0, most)):
        at: Any = value
        key: Any = ""
        while isinstance(at[key], dict | list) and at[key] and draw.integer(0, 9) < 9:
            at = at[key]
            key = pick(draw, list(at)) if isinstance(at, dict) else draw.integer(0, len(at) - 1)
        kind = draw.integer(0, 5)
        if kind <= 2:
            at[key] = copy.deepcopy(pick(draw, VALUES))
        elif kind == 3 and at is not value:
            del at[key]
        elif kind == 4 and isinstance(at, list):
            at.extend([at[key]] * draw.integer(1, 40))
        elif kind == 5 and isinstance(at[key], int | float) and not isinstance(at[key], bool):
            at[key] = at[key] + draw.integer(-2, 2)
        elif isinstance(at, dict) and at is not value:
            at[draw.data(12).decode("utf-8", "replace")] = copy.deepcopy(pick(draw, VALUES))
    return value[""]


def json_bytes(draw: Draw, seed: Any) -> bytes:
    """The text of an edited value, at times with a part that no JSON has."""
    text = json.dumps(edited(draw, seed)).encode()
    if draw.integer(0, 7) == 7 and text:
        at = draw.integer(0, len(text) - 1)
        return text[:at] + pick(draw, RAW) + text[at + draw.integer(0, 3) :]
    return text


def scattered(draw: Draw, data: bytes, most: int = 3) -> bytes:
    """A few bytes changed, or the end cut off or repeated."""
    changed = bytearray(data)
    for _ in range(draw.integer(0, most)):
        if changed:
            changed[draw.integer(0, len(changed) - 1)] = draw.integer(0, 255)
    kind = draw.integer(0, 15)
    if kind == 15:
        return bytes(changed[: draw.integer(0, len(changed))])
    return bytes(changed) + draw.data(40) if kind == 14 else bytes(changed)


def safetensors_bytes(draw: Draw, header: Mapping[str, Any], data: bytes) -> bytes:
    """A file with an edited header; its length tells the truth but for once in a while."""
    text = json_bytes(draw, header)
    text += b" " * (-(8 + len(text)) % pick(draw, (1, 8, 64, 4096)))
    length = len(text) if draw.integer(0, 9) < 9 else pick(draw, HUGE)
    return struct.pack("<Q", length) + text + scattered(draw, data, 3 if draw.integer(0, 3) == 3 else 0)


_FIELDS = 700  # of the tiny model's header, about

_TYPES = {4: "<I", 7: "<B", 10: "<Q", 11: "<Q"}


def gguf_bytes(
    draw: Draw, metadata: Mapping[str, Any], tensors: Sequence[tuple[str, tuple[int, ...], int, bytes]]
) -> bytes:
    """A GGUF file of these values; some of them, of its counts, types, sizes and offsets lie. tensors: name, sizes as
    the file has them, ggml's type, content."""
    lies = {draw.integer(0, _FIELDS) for _ in range(draw.integer(0, 3))}
    fields = 0

    def lied(value: int, choices: Sequence[int] = HUGE) -> int:
        nonlocal fields
        fields += 1
        return int(pick(draw, choices)) if fields in lies else value

    def number(form: str, value: int) -> bytes:
        return struct.pack(form, value & (1 << 8 * struct.calcsize(form)) - 1)

    def text(value: str) -> bytes:
        raw = value.encode("utf-8", "surrogatepass")
        return number("<Q", lied(len(raw))) + raw

    def scalar(kind: int, value: Any) -> bytes:
        if kind == 8:
            return text(value)
        if kind == 6:
            return struct.pack("<f", float(value) if abs(value) < 1e38 else float("inf"))
        return number(_TYPES[kind], int(value))

    def typed(value: Any) -> bytes:
        if not isinstance(value, list):
            kind = kind_of(value)
            return number("<I", lied(kind, range(16))) + scalar(kind, value)
        kind = kind_of(value[0]) if value else 4
        try:
            body = b"".join(scalar(kind, each) for each in value)
        except (TypeError, ValueError, AttributeError):  # of several types
            body = b""
        return number("<I", lied(9, range(16))) + number("<I", lied(kind, range(16))) + count(len(value)) + body

    def count(of: int) -> bytes:
        return number("<Q", lied(of))

    changed = edited(draw, dict(metadata), 3) if draw.integer(0, 2) == 2 else dict(metadata)
    if not isinstance(changed, dict):
        changed = dict(metadata)
    entries = [(key, value) for key, value in changed.items() if value is not None and not isinstance(value, dict)]
    parts = [
        b"GGUF",
        number("<I", lied(3, range(5))),
        number("<Q", lied(len(tensors))),
        number("<Q", lied(len(entries))),
    ]
    parts += [text(key) + typed(value) for key, value in entries]
    offset, body = 0, b""
    for name, sizes, kind, content in tensors:
        parts.append(text(name) + number("<I", lied(len(sizes), range(9))))
        parts += [number("<Q", lied(size)) for size in sizes]
        parts += [number("<I", lied(kind, range(50))), number("<Q", lied(offset))]
        padded = content + bytes(-len(content) % 32)
        body, offset = body + padded, offset + len(padded)
    head = b"".join(parts)
    return (
        scattered(draw, head, 3 if draw.integer(0, 3) == 3 else 0) + bytes(-len(head) % 32) + scattered(draw, body, 8)
    )


def kind_of(value: Any) -> int:
    """GGUF's type of a value."""
    if isinstance(value, bool):
        return 7
    if isinstance(value, int):
        return 4 if 0 <= value < 2**32 else 11 if value < 2**63 else 10
    return 6 if isinstance(value, float) else 8
