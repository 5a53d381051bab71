"""Text as it streams, its words wrapped at a terminal's edge.

Pure but for the width, which it asks for. Between fences of code, and in lines that begin like a table, nothing is
wrapped.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Callable
from typing import TextIO

_FENCES = ("```", "~~~")


def cells(text: str) -> int:
    """Columns that a terminal takes for it."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def columns() -> int:
    return shutil.get_terminal_size().columns


def fitted(text: str, stream: TextIO) -> str:
    """A whole text, wrapped if `stream` is a terminal."""
    if not stream.isatty():
        return text
    wrapping = Wrapping(columns)
    return wrapping.push(text) + wrapping.end()


class Wrapping:
    """`push` returns what can be printed now: a word is held back until it is known where it ends. `end` returns the
    rest."""

    def __init__(self, width: Callable[[], int]) -> None:
        """width: columns of the terminal."""
        self._width = width
        self._column = 0
        self._line = ""  # as it came, from its beginning
        self._space = self._word = ""
        self._is_code = False

    def push(self, text: str) -> str:
        out: list[str] = []
        for character in text:
            if character == "\n":
                out += (self._placed(), self._space, "\n")
                if self._line.lstrip().startswith(_FENCES):
                    self._is_code = not self._is_code
                self._space = self._line = ""
                self._column = 0
                continue
            self._line += character
            if not character.isspace():
                self._word += character
                if not self._wraps():  # nothing to wait for
                    out.append(self._placed())
                continue
            out.append(self._placed())
            self._space += character
        return "".join(out)

    def end(self) -> str:
        rest = self._placed() + self._space
        self._space = ""
        return rest

    def _wraps(self) -> bool:
        return not self._is_code and not self._line.lstrip().startswith((*_FENCES, "|"))

    def _placed(self) -> str:
        """The word, and what stands before it: space, or the end of the line."""
        if not self._word:
            return ""
        space, word = self._space, self._word
        self._space = self._word = ""
        taken = cells(space) + cells(word)
        if self._wraps() and self._column > 0 and self._column + taken > self._width():
            self._column = cells(word)
            return f"\n{word}"
        self._column += taken
        return space + word
