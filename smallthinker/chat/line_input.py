"""What is typed into a chat: lines with editing, a history that outlives the session, completed commands, and texts of
several lines, pasted or between triple quotes.

By the readline of Python's standard library where the system has one: prompt_toolkit would be nicer, and takes 19 MiB,
which are ten experts of a 4B model. Knows nothing about what the lines mean.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smallthinker.chat.kept_messages import HISTORY
from smallthinker.terminal import read_input

_QUOTES = '"""'
_MOST_KEPT = 1000  # lines of history


class LineInput:
    """Lines of a terminal, or of a pipe, where each is a message. Use it as a context manager."""

    def __init__(self, commands: Sequence[str], folder: Path | None) -> None:
        """commands: words that are completed at a line's beginning. folder: of the history; None: none is kept."""
        self.is_terminal = sys.stdin.isatty()
        self._readline: Any = None
        self._history = None if folder is None else folder / HISTORY
        if self.is_terminal:
            with contextlib.suppress(ImportError):  # Windows
                import readline

                self._readline = readline
                self._prepare(commands)

    def _prepare(self, commands: Sequence[str]) -> None:
        readline = self._readline
        if "libedit" in (readline.__doc__ or ""):
            readline.parse_and_bind("bind ^I rl_complete")
        else:
            readline.parse_and_bind("tab: complete")
            readline.parse_and_bind("set enable-bracketed-paste on")  # a paste is one text, its ends of lines included
        readline.set_completer_delims(" \n")
        readline.set_completer(lambda typed, number: self._completed(commands, typed, number))
        readline.set_history_length(_MOST_KEPT)
        if self._history is not None:
            with contextlib.suppress(OSError):
                readline.read_history_file(self._history)

    def _completed(self, commands: Sequence[str], typed: str, number: int) -> str | None:
        if self._readline.get_begidx() > 0:
            return None
        matching = [command for command in commands if command.startswith(typed)] if typed.startswith("/") else []
        return matching[number] + " " if number < len(matching) else None

    def next(self) -> str:
        """The next message. Raises EOFError at the end of the input, RequestError when it can't be read."""
        if not self.is_terminal:
            line = read_input(line=True)
            if not line:
                raise EOFError
            return line
        text = input("> ")
        if not text.lstrip().startswith(_QUOTES):
            return text
        lines = [text.lstrip().removeprefix(_QUOTES)]
        while not lines[-1].rstrip().endswith(_QUOTES):
            lines.append(input("... "))
        lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
        return "\n".join(lines)

    def __enter__(self) -> LineInput:
        return self

    def __exit__(self, *_: object) -> None:
        if self._readline is not None and self._history is not None:
            with contextlib.suppress(OSError):
                self._readline.write_history_file(self._history)
                self._history.chmod(0o600)
