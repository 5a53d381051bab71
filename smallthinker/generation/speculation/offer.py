"""What a source of proposals is, and what it says before it makes any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Offer(NamedTuple):
    """What a source could propose now. kind: a name for proposals that are about as often right; first_chance: how
    often that is thought to be, before any was seen; sec_each, sec_first: what each token takes, and what comes first.
    """

    kind: str
    first_chance: float
    sec_each: float = 0.0
    sec_first: float = 0.0


class Source(Protocol):
    """Of one text at a time."""

    def begin(self) -> None:
        """Another text."""

    def offer(self, prompt: Sequence[int], ids: Sequence[int], affords_sec: float) -> Offer | None:
        """The text so far is prompt and ids, which have grown since the last call. affords_sec: what may be lost if all
        is wrong. None: nothing to propose."""

    def propose(self, most: int) -> list[int]:
        """Of what was offered last, at most so many tokens."""
