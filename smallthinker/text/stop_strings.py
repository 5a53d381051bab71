"""Ends an answer at a stop string, holding back text that may be the beginning of one."""

from __future__ import annotations

from collections.abc import Sequence

from smallthinker.text.marks import Marks, is_mark, visible


class StopStrings:
    """Feed text in pieces; what comes back never contains a stop string nor any part of the one that ended it."""

    def __init__(self, stops: Sequence[str], marks: Marks | None = None) -> None:
        """marks: of special tokens that are no text, but may be a stop string or a part of one."""
        stops = [stop for stop in stops if stop]
        put = (marks or Marks()).put
        self._stops = list(dict.fromkeys([*stops, *map(put, stops)]))
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is safe to show after this piece. Marks in it are not shown."""
        self._held += text
        found = [at for stop in self._stops for at in self._places(stop)]
        if found:
            self.stopped = True
            self._held = self._held[: min(found)]
            return self.finish()
        cut = min((self._possible(stop) for stop in self._stops), default=len(self._held))
        shown, self._held = self._held[:cut], self._held[cut:]
        return visible(shown)

    def finish(self) -> str:
        """What was held back, once no more text will come, or no more that belongs to it."""
        shown, self._held = self._held, ""
        return visible(shown)

    def _places(self, stop: str) -> list[int]:
        """Where it begins in the held text, and in that as it is shown."""
        seen = visible(self._held)
        both = [self._held.find(stop)]
        if seen != self._held and (at := seen.find(stop)) >= 0:
            both.append(self._place(at))
        return [at for at in both if at >= 0]

    def _possible(self, stop: str) -> int:
        """Where the longest end of the held text begins that could grow into this stop string."""
        seen = visible(self._held)
        first = len(self._held) - _overlap(self._held, stop)
        shown = _overlap(seen, stop) if seen != self._held else 0
        return min(first, self._place(len(seen) - shown)) if shown else first

    def _place(self, at: int) -> int:
        """Of a character of the visible text in the held one."""
        return [place for place, character in enumerate(self._held) if not is_mark(character)][at]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that could grow into this stop string."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
