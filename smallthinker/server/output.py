"""An answer's text in parts as it comes: what the model thought, what it says, and the functions that it calls.

Thoughts stand between `<think>` and `</think>` at the very beginning; calls are `<tool_call>{"name": ..., "arguments":
...}</tool_call>`, as Qwen's and Hermes' templates teach them. A call is handed on when its JSON is complete and right:
half of one can't be taken back. Knows nothing about HTTP.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from smallthinker.files import parse_json

THINK, THOUGHT = "<think>", "</think>"
CALL, CALLED = "<tool_call>", "</tool_call>"


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
    """The call's arguments: one JSON object."""

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
        self._mark = CALL  # what the calls that are looked for now began with
        self._scan = _JsonScan()  # of their JSON
        self._space = ""  # the end of what has been said, until it is known what follows
        self._fresh = thinking  # nothing but space since a thought or call, and nothing said before
        self._has_spoken = self._called_last = False
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
        while self._state == "calling":  # without an end: text, with perhaps a call in it
            self._no_call(parts)
            while self._advance(parts):
                pass
        if self._state == "thinking":
            self._emit_reasoning(parts, self._text)
        elif self._state != "called" or not CALLED.startswith(self._text.strip()):
            self._say(parts, self._text)
        if self._space and not self._called_last:
            parts.append(Said(self._space))
        self._text = self._space = ""
        return parts

    def _advance(self, parts: list[Part]) -> bool:
        """One step; True if there may be more to do with what is there."""
        if self._state == "opening":
            begun = self._text.lstrip()
            if begun.startswith(THINK):
                self._state, self._text, self._fresh = "thinking", begun[len(THINK) :], True
                return True
            if THINK.startswith(begun):
                return False
            self._state = "saying"
            return True
        if self._state == "thinking":
            before, found, after = self._text.partition(THOUGHT)
            if not found:
                before, after = _split_possible(self._text, THOUGHT)
            self._emit_reasoning(parts, before.rstrip())
            self._text = after
            if found:
                self._state, self._fresh = "saying", True
            return bool(found)
        if self._state == "saying":
            return self._advance_saying(parts)
        return self._advance_called() if self._state == "called" else self._advance_calling(parts)

    def _advance_saying(self, parts: list[Part]) -> bool:
        if self._tools is None:
            self._say(parts, self._text)
            self._text = ""
            return False
        before, found, after = self._text.partition(CALL)
        if not found:
            before, after = _split_possible(self._text, CALL)
        self._say(parts, before)
        self._text = after
        if found:
            self._look_for_calls(CALL)
        return bool(found)

    def _look_for_calls(self, mark: str) -> None:
        self._state, self._mark, self._scan = "calling", mark, _JsonScan()

    def _advance_calling(self, parts: list[Part]) -> bool:
        """An object, or a list of them."""
        begun = self._text.lstrip()
        if begun and begun[0] not in "{[":
            self._no_call(parts)
            return True
        end = self._scan.find_end(self._text)
        if end is None:
            return False
        calls = self._calls_of(self._text[:end])
        if not calls:
            self._no_call(parts)
            return True
        for name, arguments in calls:
            parts += (
                CallStart(self.calls, f"call_{secrets.token_hex(12)}", name),
                CallArguments(self.calls, arguments),
            )
            self.calls += 1
        self._fresh, self._called_last = not self._has_spoken, True
        self._state, self._text = "called", self._text[end:]
        return True

    def _no_call(self, parts: list[Part]) -> None:
        self._say(parts, self._mark)
        self._state = "saying"

    def _advance_called(self) -> bool:
        """What may follow a call: its end, or another call, with a mark of its own or without."""
        after = self._text.lstrip()
        if after.startswith(CALLED):
            self._state, self._text = "saying", after[len(CALLED) :]
        elif after.startswith(CALL):
            self._text = after[len(CALL) :]
            self._look_for_calls(CALL)
        elif CALLED.startswith(after) or CALL.startswith(after):
            return False
        elif after[0] in "{[":
            self._look_for_calls("")
        else:
            self._state = "saying"
        return True

    def _calls_of(self, text: str) -> list[tuple[str, str]]:
        """Names and arguments; empty unless all of it is calls of functions that there are."""
        try:
            found = parse_json(text)
            calls = [self._call_of(call) for call in (found if isinstance(found, list) else [found])]
        except (ValueError, RecursionError):
            return []
        return [call for call in calls if call is not None] if None not in calls else []

    def _call_of(self, call: Any) -> tuple[str, str] | None:
        """Raises ValueError for arguments that are a text but no JSON."""
        name = call.get("name") if isinstance(call, dict) else None
        if not isinstance(name, str) or name not in (self._tools or ()):
            return None
        arguments = call.get("arguments")
        if arguments is None:
            arguments = call.get("parameters")  # as Llama's templates name them
        if isinstance(arguments, str):
            arguments = parse_json(arguments) if arguments.strip() else None
        if arguments is None:
            arguments = {}
        return (name, _json(arguments)) if isinstance(arguments, dict) else None

    def _emit_reasoning(self, parts: list[Part], text: str) -> None:
        text = text.lstrip() if self._fresh else text
        if text:
            self._fresh = False
            parts.append(Reasoning(text))

    def _say(self, parts: list[Part], text: str) -> None:
        """Space at the end waits: beside a call, at either end of all that is said, it belongs to the template."""
        text = self._space + text
        if self._fresh:
            text = text.lstrip()
        kept = len(text.rstrip()) if self._tools is not None else len(text)
        self._space = text[kept:]
        if kept:
            self._fresh, self._has_spoken, self._called_last = False, True, False
            parts.append(Said(text[:kept]))


class _JsonScan:
    """Finds where a JSON object or list ends in a text that grows."""

    def __init__(self) -> None:
        self._at, self._depth, self._quoted, self._escaped = 0, 0, False, False

    def find_end(self, text: str) -> int | None:
        for at in range(self._at, len(text)):
            character = text[at]
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped, self._quoted = character == "\\", character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at + 1
        self._at = len(text)
        return None


def _split_possible(text: str, mark: str) -> tuple[str, str]:
    """The text, and the longest end of it that may be the beginning of the mark, with the space before that: space
    before a mark belongs to the template."""
    longest = next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
    kept = len(text[: len(text) - longest].rstrip())
    return text[:kept], text[kept:]


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if _is_unicode(text) else json.dumps(value)


def _is_unicode(text: str) -> bool:
    """Not with half a surrogate pair, which an escape can write."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
