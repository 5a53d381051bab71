"""An answer's text in parts as it comes: what the model thought, what it says, and the functions that it calls.

Thoughts stand between `<think>` and `</think>` at the very beginning; calls are `<tool_call>{"name": ..., "arguments":
...}</tool_call>`, as Qwen's and Hermes' templates teach them. Knows nothing about HTTP.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass

THINK, THOUGHT = "<think>", "</think>"
CALL, CALLED = "<tool_call>", "</tool_call>"
# The usual order, whose arguments can be handed on before they are complete.
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')


@dataclass(frozen=True)
class Reasoning:
    text: str


@dataclass(frozen=True)
class Said:
    text: str


@dataclass(frozen=True)
class CallStart:
    """The answer's call number `index`; its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of a call's JSON."""

    index: int
    text: str


Part = Reasoning | Said | CallStart | CallArguments


class OutputParser:
    """Feed text in pieces with `push`; `finish` at its end. What looks like a call but is none comes back as text."""

    def __init__(self, *, thinks: bool = False, thinking: bool = False, tools: Collection[str] | None = None) -> None:
        """thinks: the model may open with `<think>`; thinking: the prompt has opened it already. tools: names of
        functions that may be called; None doesn't look for calls."""
        self._tools = tools
        self._text = ""  # not parsed yet
        self._state = "thinking" if thinking else "opening" if thinks else "saying"
        self._fresh = thinking  # nothing but space since the state began, and that isn't part of it
        self._scan: _ObjectScan | None = None  # of the arguments that are being handed on
        self.calls = 0

    @property
    def is_thinking(self) -> bool:
        return self._state == "thinking"

    @property
    def is_calling(self) -> bool:
        return self._state == "calling"

    def push(self, text: str) -> list[Part]:
        self._text += text
        parts: list[Part] = []
        while self._advance(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        parts: list[Part] = []
        if self._state == "thinking":
            self._emit_reasoning(parts, self._text)
        elif self._scan is not None:  # cut off within the arguments: what came of them has been said
            pass
        elif self._state == "calling":
            if not self._whole_call(parts, self._text):
                self._say(parts, CALL + self._text)
        else:
            self._say(parts, self._text)
        self._text = ""
        return parts

    def _advance(self, parts: list[Part]) -> bool:
        """One step; True if there may be more to do with what is there."""
        if self._state == "opening":
            begun = self._text.lstrip()
            if begun.startswith(THINK):
                self._turn("thinking", begun[len(THINK) :])
                return True
            if THINK.startswith(begun):
                return False
            self._turn("saying", self._text)
            return True
        if self._state == "thinking":
            before, found, after = self._text.partition(THOUGHT)
            if not found:
                before, after = _split_possible(self._text, THOUGHT)
            self._emit_reasoning(parts, before.rstrip())
            self._text = after
            if found:
                self._turn("saying", after)
            return bool(found)
        if self._state == "saying":
            return self._advance_saying(parts)
        return self._advance_call(parts)

    def _advance_saying(self, parts: list[Part]) -> bool:
        if self._tools is None:
            self._say(parts, self._text)
            self._text = ""
            return False
        before, found, after = self._text.partition(CALL)
        if not found:
            before, after = _split_possible(self._text, CALL)
        self._say(parts, before.rstrip())
        self._text = after
        if found:
            self._turn("calling", after)
        return bool(found)

    def _advance_call(self, parts: list[Part]) -> bool:
        if self._scan is not None:
            taken = self._scan.push(self._text)
            if taken:
                parts.append(CallArguments(self.calls - 1, self._text[:taken]))
            self._text = self._text[taken:]
            if self._scan.is_whole and CALLED in self._text:
                self._scan = None
                self._turn("saying", self._text.partition(CALLED)[2])
                return True
            return False
        head = _HEAD.match(self._text)
        name = None if head is None else _parsed(head[1])
        if head is not None and isinstance(name, str) and name in (self._tools or ()):
            self._start(parts, name)
            self._scan = _ObjectScan()
            self._text = self._text[head.end() :]
            return True
        body, found, after = self._text.partition(CALLED)
        if not found:
            return False
        if not self._whole_call(parts, body):
            self._say(parts, CALL + body + CALLED)
        self._turn("saying", after)
        return True

    def _whole_call(self, parts: list[Part], body: str) -> bool:
        call = _parsed(body)
        if not isinstance(call, dict) or call.get("name") not in (self._tools or ()):
            return False
        arguments = call.get("arguments", {})
        self._start(parts, call["name"])
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        parts.append(CallArguments(self.calls - 1, text))
        return True

    def _start(self, parts: list[Part], name: str) -> None:
        parts.append(CallStart(self.calls, f"call_{secrets.token_hex(12)}", name))
        self.calls += 1

    def _turn(self, state: str, text: str) -> None:
        # space between a thought or a call and what follows belongs to the template, not to the answer
        self._fresh = state == "thinking" or self._state in ("thinking", "calling")
        self._state, self._text = state, text

    def _emit_reasoning(self, parts: list[Part], text: str) -> None:
        text = text.lstrip() if self._fresh else text
        if text:
            self._fresh = False
            parts.append(Reasoning(text))

    def _say(self, parts: list[Part], text: str) -> None:
        text = text.lstrip() if self._fresh else text
        if text:
            self._fresh = False
            parts.append(Said(text))


class _ObjectScan:
    """Finds where a JSON object ends, piece by piece."""

    def __init__(self) -> None:
        self._depth, self._quoted, self._escaped = 0, False, False
        self.is_whole = False

    def push(self, text: str) -> int:
        """How many characters of the text belong to the object."""
        if self.is_whole:
            return 0
        for at, character in enumerate(text):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._quoted = False
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_whole = True
                    return at + 1
        return len(text)


def _split_possible(text: str, mark: str) -> tuple[str, str]:
    """The text, and the longest end of it that may be the beginning of the mark, with the space before that: space
    before a mark belongs to the template."""
    longest = next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
    kept = len(text[: len(text) - longest].rstrip())
    return text[:kept], text[kept:]


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
