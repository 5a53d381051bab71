"""What stands within a model's call of a function, in each notation: where it ends, which functions it calls, with
which arguments.

A notation is a value of `chat_formats`; `scan` makes what reads one call with it, as its text grows. What isn't a whole
call of a function that there is, with one JSON object of arguments, is none. Knows nothing about what stands around
calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from smallthinker.files import parse_json

Tools = Mapping[str, Mapping[str, Any]]
"""The functions that may be called: names, and JSON schemas of their parameters."""
NAME = r"[a-zA-Z0-9_.-]{1,64}"


_MARKS, _IN_TEXT = re.compile(r'["{}\[\]]'), re.compile(r'["\\]')  # of JSON


class Scan(Protocol):
    """Of one call."""

    def find_end(self, text: str) -> int | None:
        """Where it ends in a text that grows; None where that isn't known yet. Raises ValueError for no call."""

    def calls(self, text: str) -> list[tuple[str, dict[str, Any]]]:
        """Names and arguments, of the text up to its end. Raises ValueError for no call."""


class Payload(Protocol):
    """A notation."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts in it that may be special tokens."""

    def scan(self, tools: Tools, name: str, end: str, put: Callable[[str], str]) -> Scan:
        """name: of the function, where a header had it. end: what stands behind the call. put: see Marks."""


@dataclass(frozen=True)
class Json:
    """One object, or a list of them: {"name": ..., "arguments": {...}}, or `parameters`; in a `function` or not. Behind
    a header that named the function, the object of its arguments alone."""

    marks: tuple[str, ...] = ()

    def scan(self, tools: Tools, name: str, end: str, put: Callable[[str], str]) -> Scan:
        return _JsonScan(tools, name)


@dataclass(frozen=True)
class Tagged:
    """Each argument between tags: GLM's <arg_key> and <arg_value>, Qwen3-Coder's <parameter=...>. A value is its text
    where the function's parameter is one, and else JSON.

    name, key, value: what stands before and after each. end: of the call; '' for what stands behind it. lines: values
    stand on lines of their own.
    """

    name: tuple[str, str]
    key: tuple[str, str]
    value: tuple[str, str]
    end: str = ""
    lines: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        return (*self.name, *self.key, *self.value, self.end)

    def scan(self, tools: Tools, name: str, end: str, put: Callable[[str], str]) -> Scan:
        return _TaggedScan(self, tools, end, put)


@dataclass(frozen=True)
class Bare:
    """call:name{key:value,...} with keys as they are and texts between quotes of their own: Gemma 4's."""

    quote: str

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.quote,)

    def scan(self, tools: Tools, name: str, end: str, put: Callable[[str], str]) -> Scan:
        return _BareScan(put(self.quote), tools)


class _JsonScan:
    def __init__(self, tools: Tools, name: str = "") -> None:
        self._tools, self._name = tools, name
        self._at, self._depth, self._quoted = 0, 0, False

    def find_end(self, text: str) -> int | None:
        begun = text.lstrip()
        if begun and begun[0] not in ("{" if self._name else "{["):
            raise ValueError("no JSON")
        while (found := (_IN_TEXT if self._quoted else _MARKS).search(text, self._at)) is not None:
            self._at = found.end()
            if found[0] == '"':
                self._quoted = not self._quoted
            elif found[0] == "\\":
                self._at += 1
            elif found[0] in "{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 0:
                    return self._at
        self._at = max(self._at, len(text))
        return None

    def calls(self, text: str) -> list[tuple[str, dict[str, Any]]]:
        found = parse_json(text)
        if self._name:
            return [(self._name, _object(found))]
        calls = [self._call_of(call) for call in (found if isinstance(found, list) else [found])]
        if not calls:
            raise ValueError("no calls")
        return calls

    def _call_of(self, call: Any) -> tuple[str, dict[str, Any]]:
        if isinstance(call, dict) and isinstance(call.get("function"), dict):
            call = call["function"]
        name = call.get("name") if isinstance(call, dict) else None
        if not isinstance(name, str) or name not in self._tools:
            raise ValueError("no function")
        arguments = call.get("arguments")
        if arguments is None:
            arguments = call.get("parameters")
        if isinstance(arguments, str):
            arguments = parse_json(arguments) if arguments.strip() else None
        return name, _object({} if arguments is None else arguments)


class _TaggedScan:
    def __init__(self, form: Tagged, tools: Tools, end: str, put: Callable[[str], str]) -> None:
        self._form, self._tools = form, tools
        key, value = [put(t) for t in form.key], [put(t) for t in form.value]
        self._opens, self._closes = value[0] or key[0], value[1]
        self._end = put(form.end) or end
        self._keeps_end = bool(form.end)
        self._at, self._inside = 0, False
        before, after = map(re.escape, map(put, form.name))
        self._head = re.compile(rf"\s*{before}\s*({NAME})\s*{after}\s*")
        a, b, c, d = map(re.escape, (*key, *value))
        gap = r"\s*" if c else ""
        self._argument = re.compile(rf"{a}([^<>]{{1,256}}){b}{gap}{c}(.*?){d}\s*", re.DOTALL)
        self._last = re.compile(re.escape(put(form.end)))

    def find_end(self, text: str) -> int | None:
        while True:
            wanted = [self._closes] if self._inside else [self._opens, self._end]
            found = _first(text, wanted, self._at)
            if found is None:
                self._at = max(self._at, len(text) - max(map(len, wanted)) + 1)
                return None
            at, word = found
            if word == self._end and not self._inside:
                return at + len(word) if self._keeps_end else at
            self._at, self._inside = at + len(word), not self._inside

    def calls(self, text: str) -> list[tuple[str, dict[str, Any]]]:
        head = self._head.match(text)
        if head is None or head[1] not in self._tools:
            raise ValueError("no function")
        at, arguments = head.end(), {}
        properties = self._tools[head[1]].get("properties")
        while (found := self._argument.match(text, at)) is not None:
            key = found[1].strip()
            schema = properties.get(key) if isinstance(properties, dict) else None
            value = found[2]
            if self._form.lines:
                value = value.removeprefix("\n").removesuffix("\n")
            arguments[key] = _typed(value, schema)
            at = found.end()
        if self._last.sub("", text[at:], count=1).strip():
            raise ValueError("no argument")
        return [(head[1], arguments)]


class _BareScan:
    def __init__(self, quote: str, tools: Tools) -> None:
        self._quote, self._tools = quote, tools
        self._at, self._depth, self._quoted = 0, 0, False
        self._head = re.compile(rf"\s*call:({NAME})\s*(?=\{{)")

    def find_end(self, text: str) -> int | None:
        while True:
            wanted = [self._quote] if self._quoted else [self._quote, "{", "}"]
            found = _first(text, wanted, self._at)
            if found is None:
                self._at = max(self._at, len(text) - len(self._quote) + 1)
                return None
            at, word = found
            self._at = at + len(word)
            if word == self._quote:
                self._quoted = not self._quoted
                continue
            self._depth += 1 if word == "{" else -1
            if self._depth <= 0:
                return self._at

    def calls(self, text: str) -> list[tuple[str, dict[str, Any]]]:
        head = self._head.match(text)
        if head is None or head[1] not in self._tools:
            raise ValueError("no function")
        parts = text[head.end() :].split(self._quote)
        parts[::2] = [re.sub(r'(?<=[{,])\s*([^\s"{}\[\],:]+)\s*(?=:)', r'"\1"', part) for part in parts[::2]]
        parts[1::2] = map(json.dumps, parts[1::2])
        return [(head[1], _object(parse_json("".join(parts))))]


def _first(text: str, words: list[str], start: int) -> tuple[int, str] | None:
    return min(((at, word) for word in words if (at := text.find(word, start)) >= 0), default=None)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def _typed(text: str, schema: Any) -> Any:
    """What a value is meant to be. A parameter without a type may be anything."""
    kinds = schema.get("type") if isinstance(schema, dict) else None
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "string" in kinds and not ("null" in kinds and text.strip() == "null"):
        return text
    known = {"True": True, "False": False, "None": None}  # as Python's `str` writes them into a prompt
    if text.strip() in known and kinds != [None]:
        return known[text.strip()]
    try:
        return parse_json(text)
    except (ValueError, RecursionError):
        return text
