"""The process's three streams: there, whatever the caller closed, and safe to print anything to.

Owns what becomes of text on its way: control characters are shown, not obeyed, and what an encoding lacks is escaped.
The text of answers goes into files and pipes as it is. Knows nothing about commands.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO, cast

from smallthinker.errors import RequestError
from smallthinker.files import MAX_SMALL_BYTES

# C0 but for tab and line ends, DEL, C1, and what turns the direction of text. Shown as \u001b, which is JSON, too.
_CONTROLS = re.compile("\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


_SHOWN_AFTER_SEC = 2.0


class OutputError(OSError):
    """Standard output can't be written: closed, full, or its reader has gone (errno EPIPE)."""


def visible(text: str) -> str:
    """The text with its control characters written out."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Inside, the descriptors 0 to 2 exist, and `sys.stdout` and `sys.stderr` take any text."""
    _open_missing()
    before = sys.stdin, sys.stdout, sys.stderr
    stdin: Any = before[0] or os.fdopen(0, "r", encoding="utf-8", closefd=False)
    if hasattr(stdin, "reconfigure"):  # what is no text is found where it is used, and told by its place
        is_ascii = codecs.lookup(stdin.encoding).name == "ascii"
        stdin.reconfigure(encoding="utf-8" if is_ascii else None, errors="surrogateescape")
    sys.stdin = stdin
    sys.stdout = cast(TextIO, _Output(before[1] or os.fdopen(1, "w", encoding="utf-8", closefd=False)))
    sys.stderr = cast(TextIO, _Printed(before[2] or os.fdopen(2, "w", encoding="utf-8", closefd=False)))
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def answer_stream() -> TextIO:
    """Where generated text is printed: standard output, exact unless it is a terminal."""
    stdout: Any = sys.stdout
    exact = isinstance(stdout, _Output) and not stdout.isatty()
    return cast(TextIO, _Output(stdout.stream, exact=True)) if exact else sys.stdout


def bar_stream() -> TextIO:
    """Where progress bars are drawn: standard error, with the control characters that do it."""
    stderr: Any = sys.stderr
    return stderr.stream if isinstance(stderr, _Printed) else sys.stderr


class PromptBar:
    """How much of a prompt has been read, and how long the rest will take: on stderr, after two seconds, gone once the
    answer begins. Nothing where stderr is not a terminal, or with `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._bar: Any = None
        self._began = time.monotonic()
        self._is_over = quiet or not bar_stream().isatty()
        self._lock = threading.Lock()  # it is told on the thread that computes

    def __call__(self, done: int, total: int) -> None:
        with self._lock:
            if self._is_over or time.monotonic() - self._began < _SHOWN_AFTER_SEC:
                return
            if self._bar is None:
                from tqdm import tqdm  # which a short prompt does without

                self._bar = tqdm(
                    desc="reading the prompt",
                    total=total,
                    initial=done,
                    bar_format="{desc}: {n_fmt} of {total_fmt} tokens, {remaining} left |{bar}|",
                    leave=False,
                    file=bar_stream(),
                )
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        with self._lock:
            self._is_over = True
            if self._bar is not None:
                self._bar.close()
                self._bar = None


def drop_output() -> None:
    """Once standard output has failed: what it still holds goes nowhere, or the interpreter's last flush complains."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def read_input(line: bool = False) -> str:
    """All of standard input, or its next line. Raises RequestError when it can't be read or is too long."""
    try:
        text = (sys.stdin.readline if line else sys.stdin.read)(MAX_SMALL_BYTES + 1)
    except OSError as e:
        raise RequestError(f"standard input: cannot be read: {e.strerror or e}") from None
    if len(text) > MAX_SMALL_BYTES:
        raise RequestError(f"standard input: expected at most {MAX_SMALL_BYTES} characters, found more")
    return text


def piped_input() -> str:
    """What a pipe or a file brings on standard input; '' where that is a terminal, a device or nothing. Raises
    RequestError."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return ""
    return read_input() if stat.S_ISFIFO(mode) or stat.S_ISREG(mode) else ""


def thought(text: str, stream: TextIO) -> None:
    """Print a piece of a thought, faint on a terminal."""
    inner: Any = getattr(stream, "stream", stream)
    if text and stream.isatty():
        inner.write("\x1b[2m")
        stream.write(text)
        inner.write("\x1b[22m")
    else:
        stream.write(text)
    stream.flush()


def _open_missing() -> None:
    """A file opened later would get the number of a closed stream, and what is printed would go into it.

    Reading or writing what was closed is a fault, not an empty text: each is opened for the opposite. Errors and
    figures that nobody wants to see are none.
    """
    for fd, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # the lowest free number: this one


class _Printed:
    """A stream whose `write` shows what it would obey, escapes what it can't encode, and never fails."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        shown = self._shown(text).encode(encoding, "backslashreplace").decode(encoding)
        try:
            self.stream.write(shown)
        except OSError as e:
            self._failed(e)
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as e:
            self._failed(e)

    def _shown(self, text: str) -> str:
        return visible(text)

    def _failed(self, error: OSError) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _Output(_Printed):
    """The same, but that a fault is an OutputError; exact: control characters are left as they are."""

    def __init__(self, stream: TextIO, *, exact: bool = False) -> None:
        super().__init__(stream)
        self._exact = exact
        self._error: OutputError | None = None

    def _shown(self, text: str) -> str:
        return text if self._exact else super()._shown(text)

    def flush(self) -> None:
        if self._error is not None:  # argparse ignores it when it prints
            raise self._error
        super().flush()

    def _failed(self, error: OSError) -> None:
        self._error = OutputError(error.errno, error.strerror)
        raise self._error from None
