"""The one callback type through which long work reports how far it is. The caller decides what to show."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # (bytes done, bytes in total, what is being worked on)


def silent(done_bytes: int, total_bytes: int, what: str) -> None:
    """The callback of a caller that doesn't want to know."""
