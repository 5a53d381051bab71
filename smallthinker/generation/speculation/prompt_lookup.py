"""Prompt lookup: what followed the last time that the text so far ended as it does now.

Owns an index of a text's pairs of tokens: where each was last, and for each place, where its pair was before that. So
the longest earlier match of the text's end is a short walk, and a new token costs the same however long the text is.
(Saxena, prompt lookup decoding; the longest match as in suffix decoding, arXiv 2411.04975.) Knows nothing of models.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

FEWEST = 2  # tokens of a match: one alone is followed by anything
LONGEST = 32  # of those that are compared
_CANDIDATES = 16  # earlier places that are looked at, the latest first
_MIX = 0x9E3779B1


class PromptLookup:
    """Of one text, which `extend` makes longer."""

    def __init__(self) -> None:
        self._tokens = array("i")
        self._before = array("i")  # of the pair that ends here: where a pair in the same place of `_last` ended before
        self._last = array("i", [-1]) * 1024

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """These follow."""
        known = len(self._tokens)
        self._tokens.extend(tokens)
        size = len(self._last)
        while size < len(self._tokens):
            size *= 2
        if size > len(self._last):
            self._last, self._before, known = array("i", [-1]) * size, array("i"), 0
        for at in range(known, len(self._tokens)):
            place = self._place(at)
            self._before.append(self._last[place] if at else -1)
            self._last[place] = at

    def match(self) -> tuple[int, int]:
        """How many of the last tokens, at most LONGEST, stood together before, and where the last such place ends;
        fewer than FEWEST count as none."""
        tokens, end = self._tokens, len(self._tokens) - 1
        longest, found = 0, -1
        at = self._before[end] if end > 0 else -1
        for _ in range(_CANDIDATES):
            if at < 0:
                break
            length = 0
            while length < LONGEST and length <= at and tokens[at - length] == tokens[end - length]:
                length += 1
            if length > longest:
                longest, found = length, at
            if length == LONGEST:
                break
            at = self._before[at]
        return (longest, found) if longest >= FEWEST else (0, -1)

    def following(self, at: int, most: int) -> list[int]:
        """The tokens after place `at`; where the text ends, what stands there goes on as it did."""
        period = len(self._tokens) - 1 - at
        return [self._tokens[at + 1 + i % period] for i in range(most)]

    def _place(self, at: int) -> int:
        pair = self._tokens[at] if not at else self._tokens[at] * _MIX ^ self._tokens[at - 1]
        return (pair * _MIX >> 8) & len(self._last) - 1
