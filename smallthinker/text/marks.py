"""Special tokens within a text: each is one character that no text has, so that what a token says and what letters say
stay apart, however the text is cut. Knows nothing about what the tokens mean."""

from __future__ import annotations

from collections.abc import Iterable

_FIRST, _COUNT = 0xD800, 0x800  # half surrogates: no text that was decoded has them


class Marks:
    """Of those special tokens whose names occur in some texts; the others stay invisible."""

    def __init__(self, names: Iterable[str] = (), texts: Iterable[str] = ()) -> None:
        texts = list(texts)
        wanted = sorted((name for name in names if any(name in text for text in texts)), key=len, reverse=True)
        self._marks = {name: chr(_FIRST + at) for at, name in enumerate(wanted[:_COUNT])}

    def of(self, name: str) -> str:
        """The mark of a special token; '' for one without."""
        return self._marks.get(name, "")

    def put(self, text: str) -> str:
        """The text with marks in place of names."""
        for name, mark in self._marks.items():
            text = text.replace(name, mark)
        return text

    def named(self, text: str) -> str:
        """The text with names in place of marks."""
        for name, mark in self._marks.items():
            text = text.replace(mark, name)
        return text


def is_mark(character: str) -> bool:
    return _FIRST <= ord(character) < _FIRST + _COUNT


def visible(text: str) -> str:
    """The text without marks."""
    return "".join(c for c in text if not is_mark(c)) if any(map(is_mark, text)) else text
