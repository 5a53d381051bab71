"""A place in an answer at which it stops until a test has looked: nobody has to be quick enough."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any


class Gate:
    """A logits processor: the answer, and everything behind it, stops before its token number `at` until `open`."""

    def __init__(self, at: int = 0) -> None:
        self._at, self._reached, self._opened = at, threading.Event(), threading.Event()

    def __call__(self, ids: Sequence[int], logits: Any) -> None:
        if len(ids) >= self._at:
            self._reached.set()
            self._opened.wait()

    def wait(self) -> None:
        """Until the answer has got there."""
        self._reached.wait()

    def open(self) -> None:
        self._opened.set()


def until(condition: Callable[[], object]) -> None:
    """For what nobody announces."""
    while not condition():
        os.sched_yield()
