"""Ends an answer at a stop string, holding back text that may be the beginning of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_FIRST_MARK, _MARKS = 0xD800, 0x800  # half surrogates: no text that was decoded has them


class StopStrings:
    """Feed text in pieces; what comes back never contains a stop string nor any part of the one that ended it."""

    def __init__(
        self, stops: Sequence[str], specials: Iterable[str] = (), thought: tuple[str, str] | None = None
    ) -> None:
        """specials: names of tokens that are no text, but may be a stop string or a part of one. thought: begin and end
        of what may come first, in which stop strings don't count; '' as its begin where it has begun already."""
        stops = [stop for stop in stops if stop]
        named = sorted((name for name in specials if any(name in stop for stop in stops)), key=len, reverse=True)
        # in the held text each such token is one character, that is never shown
        self._marks = {name: chr(_FIRST_MARK + at) for at, name in enumerate(named[:_MARKS])}
        self._stops = [*stops]
        for stop in stops:
            for name, mark in self._marks.items():
                stop = stop.replace(name, mark)
            self._stops.append(stop)
        self._thought = _Thought(*thought) if stops and thought is not None else None
        self._held = ""
        self.stopped = False

    def push(self, text: str, special: str = "") -> str:
        """The text that is safe to show after this piece, and after the special token that follows it, if any."""
        thought = ""
        if self._thought is not None and not self._thought.is_over:
            thought, text = self._thought.split(text)
            if not self._thought.is_over:
                return thought
        self._held += text + self._marks.get(special, "")
        found = [at for stop in self._stops for at in self._places(stop)]
        if found:
            self.stopped = True
            self._held = self._held[: min(found)]
            return thought + self.finish()
        cut = min((self._possible(stop) for stop in self._stops), default=len(self._held))
        shown, self._held = self._held[:cut], self._held[cut:]
        return thought + self._visible(shown)

    def finish(self) -> str:
        """What was held back, once no more text will come."""
        if self._thought is not None and not self._thought.is_over:
            return self.push(self._thought.finish()) + self.finish()
        shown, self._held = self._held, ""
        return self._visible(shown)

    def _places(self, stop: str) -> list[int]:
        """Where it begins in the held text, and in that as it is shown."""
        visible = self._visible(self._held)
        both = [self._held.find(stop)]
        if visible != self._held and (at := visible.find(stop)) >= 0:
            both.append(self._place(at))
        return [at for at in both if at >= 0]

    def _possible(self, stop: str) -> int:
        """Where the longest end of the held text begins that could grow into this stop string."""
        visible = self._visible(self._held)
        first = len(self._held) - _overlap(self._held, stop)
        shown = _overlap(visible, stop) if visible != self._held else 0
        return min(first, self._place(len(visible) - shown)) if shown else first

    def _place(self, at: int) -> int:
        """Of a character of the visible text in the held one."""
        return [place for place, character in enumerate(self._held) if not _is_mark(character)][at]

    def _visible(self, text: str) -> str:
        return "".join(c for c in text if not _is_mark(c)) if self._marks else text


class _Thought:
    """Tells a thought at the very beginning of an answer from what follows, piece by piece."""

    def __init__(self, begin: str, end: str) -> None:
        self._begin, self._end = begin, end
        self._opening = bool(begin)
        self._held = ""  # what may be the begin; then what may be a part of the end, and has been handed on
        self.is_over = False

    def split(self, text: str) -> tuple[str, str]:
        """Of the text so far what belongs to the thought, and what doesn't; neither while that isn't known."""
        if self._opening:
            text, self._held = self._held + text, ""
            begun = text.lstrip()
            if not begun.startswith(self._begin):
                self.is_over = not self._begin.startswith(begun)
                self._held = "" if self.is_over else text
                return "", text if self.is_over else ""
            self._opening = False
        known = self._held + text
        at = known.find(self._end)
        if at < 0:
            self._held = known[max(0, len(known) - len(self._end) + 1) :]
            return text, ""
        self.is_over = True
        cut = at + len(self._end) - len(self._held)
        return text[:cut], text[cut:]

    def finish(self) -> str:
        """What was held back, and is no thought after all."""
        self.is_over = True
        return self._held if self._opening else ""


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that could grow into this stop string."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def _is_mark(character: str) -> bool:
    return _FIRST_MARK <= ord(character) < _FIRST_MARK + _MARKS
