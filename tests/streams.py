"""The command in this process, its streams over bytes, and what may be printed at all."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from smallthinker.cli import main
from smallthinker.errors import MAX_MESSAGE_CHARACTERS

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@contextmanager
def streams(
    stdin: bytes = b"", encoding: str = "utf-8", out: type[io.TextIOWrapper] = io.TextIOWrapper
) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """sys.stdin, stdout and stderr over bytes."""
    before = sys.stdin, sys.stdout, sys.stderr
    written = io.BytesIO(), io.BytesIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding=encoding)
    sys.stdout, sys.stderr = (out(each, encoding=encoding, write_through=True) for each in written)
    try:
        yield written
    finally:
        for each in (sys.stdout, sys.stderr):
            each.detach()
        sys.stdin, sys.stdout, sys.stderr = before


def in_process(*arguments: str, stdin: bytes = b"", encoding: str = "utf-8") -> tuple[int, str, str]:
    with streams(stdin, encoding) as (out, err):
        try:
            code = main(arguments)
        except SystemExit as e:
            code = int(e.code or 0)
        return code, out.getvalue().decode(encoding), err.getvalue().decode(encoding)


def assert_one_line(text: str) -> None:
    assert text.endswith("\n") and text.count("\n") == 1, text
    assert "error:" in text
    assert len(text) < MAX_MESSAGE_CHARACTERS + 100
    assert not CONTROL.search(text), ascii(text)
