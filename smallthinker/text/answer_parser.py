"""An answer's text in parts as it comes: what the model thought, what it says, and the functions that it calls.

One state machine for all notations, which `chat_formats` describes. A call is handed on when it is complete and right:
half of one can't be taken back. Knows nothing about HTTP, nor about tokens but their marks.
"""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from smallthinker.text.call_payloads import Scan, Tools
from smallthinker.text.chat_formats import Block, ChatFormat
from smallthinker.text.marks import Marks, is_mark

_MAX_HEADER = 256  # characters
_MAX_BROKEN = 16  # calls without an end, in whose text calls are looked for: each is read to the end of the answer
_ID_CHARACTERS = string.ascii_letters + string.digits


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


class AnswerParser:
    """Feed text in pieces with `push`; `finish` at its end. What looks like a call but is none comes back as text."""

    def __init__(
        self, format: ChatFormat, marks: Marks | None = None, *, tools: Tools | None = None, opened: str = ""
    ) -> None:
        """tools: functions that may be called; None doesn't look for calls. opened: what the prompt ends with, where
        it has opened a block."""
        self._marks = marks or Marks()
        self._tools = tools
        put = self._marks.put
        blocks = [block for block in format.blocks if block.kind != "call" or tools is not None]
        self._begins: dict[str, list[Block]] = {}
        for block in sorted(blocks, key=lambda block: block.kind != "call"):  # a call's header says more than others'
            for begin in block.begin:
                self._begins.setdefault(put(begin), []).append(block)
        # a thought whose mark is letters, and a call without a mark, are such only at the very beginning
        self._bare = self._begins.pop("", [])
        self._openings = [
            begin
            for begin, (first, *_) in self._begins.items()
            if first.kind == "thought" and not first.header_end and not is_mark(begin[0])
        ]
        self._anywhere = [begin for begin in self._begins if begin not in self._openings]
        # what ends a part that has nothing to tell
        self._stray = [put(end) for block in blocks for end in block.end if block.header_end or is_mark(put(end)[0])]
        self._own = {ord(mark): self._marks.named(mark) for mark in put("".join(format.marks)) if is_mark(mark)}
        self._text = ""  # not parsed yet
        self._state = "opening" if self._openings or self._bare else "saying"
        self._block: Block | None = None
        self._opened = ""  # the mark, and the header, of what is being read
        self._scan: Scan | None = None
        self._space = ""  # the end of what has been said, until it is known what follows
        self._fresh = False  # nothing but space since a thought or call, and nothing said before
        self._has_spoken = self._called_last = False
        self.calls = 0
        if opened:
            self.push(put(opened))

    @property
    def is_thinking(self) -> bool:
        return self._state == "thinking"

    def push(self, text: str) -> list[Part]:
        """text: with marks."""
        self._text += text
        parts: list[Part] = []
        while self._advance(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        parts: list[Part] = []
        for _ in range(_MAX_BROKEN):
            if self._state not in ("opened", "calling"):  # without an end: text, with perhaps a call in it
                break
            if self._state == "opened" and any(block.kind != "call" for block in self._begins[self._opened]):
                self._state, self._text = "saying", ""  # half a header has nothing to tell
                break
            self._no_block(parts)
            while self._advance(parts):
                pass
        if self._state in ("opened", "calling"):
            self._no_block(parts)
        if self._state == "thinking":
            self._emit_reasoning(parts, self._text)
        elif self._state != "called" or not any(end.startswith(self._text.strip()) for end in self._after_call()):
            self._say(parts, self._text)
        if self._space and not self._called_last:
            parts.append(Said(self._space))
        self._text = self._space = ""
        return parts

    def _advance(self, parts: list[Part]) -> bool:
        """One step; True if there may be more to do with what is there."""
        if self._state == "opening":
            return self._advance_opening()
        if self._state == "saying":
            return self._advance_saying(parts)
        if self._state == "opened":
            return self._advance_opened(parts)
        if self._state == "thinking":
            return self._advance_thinking(parts)
        return self._advance_called() if self._state == "called" else self._advance_calling(parts)

    def _advance_opening(self) -> bool:
        begun = self._text.lstrip()
        for begin in self._openings:
            if begun.startswith(begin):
                self._open(begin, begun[len(begin) :])
                return True
        if self._bare and begun.startswith("{"):
            self._enter(self._bare[0], "")
            return True
        if any(begin.startswith(begun) for begin in self._openings) or (self._bare and not begun):
            return False
        self._state = "saying"
        return True

    def _advance_saying(self, parts: list[Part]) -> bool:
        marks = [*self._anywhere, *self._stray]
        found = _first(self._text, marks)
        if found is None:
            before, self._text = _split_possible(self._text, marks)
            self._say(parts, before)
            return False
        at, mark = found
        self._say(parts, self._text[:at])
        after = self._text[at + len(mark) :]
        if mark in self._begins:
            self._open(mark, after)
        else:
            self._text = after
        return True

    def _open(self, mark: str, after: str) -> None:
        self._state, self._block, self._opened, self._text = "opened", None, mark, after

    def _advance_opened(self, parts: list[Part]) -> bool:
        blocks = self._begins[self._opened]
        plain = next((block for block in blocks if not block.header_end), None)
        if plain is not None:
            self._enter(plain, "")
            return True
        end = self._marks.put(blocks[0].header_end)
        header, found, after = self._text.partition(end)
        if not found and len(self._text) <= _MAX_HEADER:
            return False
        for block in blocks if found else ():
            match = re.search(block.header, self._marks.named(header), re.DOTALL)
            if match is not None and (block.kind != "call" or match[1] in (self._tools or ())):
                self._opened, self._text = self._opened + header + end, after
                self._enter(block, match[1] if block.kind == "call" else "")
                return True
        self._no_block(parts)
        return True

    def _enter(self, block: Block, name: str) -> None:
        self._block = block
        if block.kind == "said":
            self._state = "saying"
        elif block.kind == "thought":
            self._state, self._fresh = "thinking", True
        else:
            self._state = "calling"
            end = self._marks.put(block.end[0]) if block.end else ""
            self._scan = block.payload.scan(self._tools or {}, name, end, self._marks.put)

    def _no_block(self, parts: list[Part]) -> None:
        self._say(parts, self._opened)
        self._state, self._block, self._opened = "saying", None, ""

    def _advance_thinking(self, parts: list[Part]) -> bool:
        assert self._block is not None
        ends = [self._marks.put(end) for end in self._block.end]
        others = [begin for begin in self._anywhere if is_mark(begin[:1])]  # an end that the model left out
        found = _first(self._text, [*ends, *others])
        if found is None:
            before, self._text = _split_possible(self._text, ends)
            self._emit_reasoning(parts, before)
            return False
        at, mark = found
        self._emit_reasoning(parts, self._text[:at].rstrip())
        self._text = self._text[at + (len(mark) if mark in ends else 0) :]
        self._state, self._fresh = "saying", True
        return True

    def _advance_calling(self, parts: list[Part]) -> bool:
        assert self._block is not None and self._scan is not None
        try:
            end = self._scan.find_end(self._text)
            if end is None:
                return False
            calls = [(name, _json(arguments)) for name, arguments in self._scan.calls(self._text[:end])]
        except (ValueError, RecursionError):
            self._no_block(parts)
            return True
        for name, arguments in calls:
            parts += (
                CallStart(self.calls, _call_id(self._block.id_length), name),
                CallArguments(self.calls, arguments),
            )
            self.calls += 1
        self._fresh, self._called_last = not self._has_spoken, True
        self._state, self._text = "called", self._text[end:]
        return True

    def _after_call(self) -> list[str]:
        """Marks that may follow a call: its end, or another's begin."""
        assert self._block is not None
        begins = [begin for begin, blocks in self._begins.items() if blocks[0].kind == "call"]
        return [*map(self._marks.put, self._block.end), *begins]

    def _advance_called(self) -> bool:
        assert self._block is not None
        after = self._text.lstrip()
        marks = self._after_call()
        mark = next((mark for mark in marks if after.startswith(mark)), None)
        if mark in self._begins:
            self._open(mark, after[len(mark) :])
        elif mark is not None:
            self._state, self._text = "saying", after[len(mark) :]
        elif not after or any(mark.startswith(after) for mark in marks):
            return False
        elif self._bare and (between := re.match(r";\s*(\{|$)", after)) is not None:
            if not between[1]:
                return False
            self._text = after[1:]
        elif after[0] in "{[" and not self._block.header_end:
            self._opened, self._text = "", after
            self._enter(self._block, "")
        else:
            self._state = "saying"
        return True

    def _emit_reasoning(self, parts: list[Part], text: str) -> None:
        text = text.lstrip() if self._fresh else text
        if text:
            self._fresh = False
            parts.append(Reasoning(text.translate(self._own)))

    def _say(self, parts: list[Part], text: str) -> None:
        """Space at the end waits: beside a call, at either end of all that is said, it belongs to the template."""
        text = self._space + text
        if self._fresh:
            text = text.lstrip()
        kept = len(text.rstrip()) if self._anywhere or self._bare else len(text)
        self._space = text[kept:]
        if kept:
            self._fresh, self._has_spoken, self._called_last = False, True, False
            parts.append(Said(text[:kept].translate(self._own)))


def _first(text: str, marks: Sequence[str]) -> tuple[int, str] | None:
    """The place of the first of the marks, and it."""
    return min(((at, mark) for mark in marks if (at := text.find(mark)) >= 0), default=None)


def _split_possible(text: str, marks: Sequence[str]) -> tuple[str, str]:
    """The text, and the longest end of it that may be the beginning of a mark, with the space before that: space before
    a mark belongs to the template."""
    if not marks:
        return text, ""
    longest = max(map(len, marks))
    kept = next(
        (n for n in range(min(longest - 1, len(text)), 0, -1) if any(m.startswith(text[-n:]) for m in marks)), 0
    )
    kept = len(text[: len(text) - kept].rstrip())
    return text[:kept], text[kept:]


def _call_id(length: int) -> str:
    if not length:
        return f"call_{os.urandom(12).hex()}"
    return "".join(_ID_CHARACTERS[byte % len(_ID_CHARACTERS)] for byte in os.urandom(length))


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
