"""One answer's text from its tokens' texts to what is said, thought and called, until a stop string ends it.

Where stop strings and the parts of a chat's answer meet: they count in what is said. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from smallthinker.text.answer_parser import CallArguments, CallStart, Part, Reasoning, Said
from smallthinker.text.chat_prompt import AnswerFormat
from smallthinker.text.marks import Marks
from smallthinker.text.stop_strings import StopStrings


class AnswerReader:
    """`push` each token's text, `finish` at the end; `text`, `reasoning` and `calls` are what has come until now."""

    def __init__(self, specials: Iterable[str], stops: Sequence[str], chat: AnswerFormat | None = None) -> None:
        """specials: names of tokens that are no text. chat: None for text that is only continued."""
        self._marks = Marks(specials, [*stops, *(() if chat is None else chat.format.marks)])
        self._parser = None if chat is None else chat.parser(self._marks)
        self._stops = StopStrings(stops, self._marks)
        self._parts: list[Part] = []

    @property
    def stopped(self) -> bool:
        return self._stops.stopped

    @property
    def is_thinking(self) -> bool:
        return self._parser is not None and self._parser.is_thinking

    @property
    def text(self) -> str:
        return said(self._parts)

    @property
    def reasoning(self) -> str:
        return "".join(part.text for part in self._parts if isinstance(part, Reasoning))

    @property
    def calls(self) -> list[tuple[CallStart, CallArguments]]:
        starts = [part for part in self._parts if isinstance(part, CallStart)]
        return list(zip(starts, [part for part in self._parts if isinstance(part, CallArguments)], strict=True))

    def push(self, text: str, special: str = "") -> list[Part]:
        """What became certain with this text and the special token that follows it, if any."""
        text += self._marks.of(special)
        return self._until_stop([Said(text)] if self._parser is None else self._parser.push(text))

    def finish(self) -> list[Part]:
        """What was held back, once no more text will come."""
        parts = self._until_stop([] if self._parser is None else self._parser.finish())
        return parts if self.stopped else parts + self._taken([Said(self._stops.finish())])

    def _until_stop(self, parts: Sequence[Part]) -> list[Part]:
        shown: list[Part] = []
        for part in parts:
            if isinstance(part, Said):
                shown.append(Said(self._stops.push(part.text)))
            else:
                shown += [Said(self._stops.finish()), part]
            if self.stopped:
                break
        return self._taken(shown)

    def _taken(self, parts: Sequence[Part]) -> list[Part]:
        taken = [part for part in parts if not isinstance(part, Said) or part.text]
        self._parts += taken
        return taken


def said(parts: Iterable[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Said))
