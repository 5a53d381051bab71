"""Weights into huge pages, in the background, once they have come to rest.

Every token reads all dense weights and its experts from memory; with pages of 4 KiB each 64 cache lines cost an address
translation, 8 % of a token of the 4B model in memory. Memory that is huge from its first touch has to be found and
cleared 2 MiB at a time while somebody waits for a read: on a virtual machine that took longer than the disk. So the
move comes later: of the dense weights after some tokens, of the experts after as many tokens without a miss.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from smallthinker.cache.expert_cache import ExpertCache
from smallthinker.expert_store import host

QUIET_STEPS = 16


class HugePages:
    """Told of every decode step; has at most one thread at a time. Nothing that it does changes an output."""

    def __init__(self, dense: npt.NDArray[Any], experts: ExpertCache) -> None:
        self._dense, self._experts = dense, experts
        self._steps = self._last_miss = self._misses = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def step(self) -> None:
        """A token has been decoded."""
        self._steps += 1
        misses = self._experts.counters().misses
        if misses != self._misses:
            self._misses, self._last_miss = misses, self._steps
        if self._steps == QUIET_STEPS:
            self._start(lambda: self._dense, self._stop.is_set)
        if self._steps == self._last_miss + 2 * QUIET_STEPS:
            # slots that were lent meanwhile would be taken back, filled with zeros
            self._start(self._experts.filled, lambda: self._stop.is_set() or not self._experts.filled().size)

    def close(self) -> None:
        """Stop before the memory is freed. May be called twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _start(self, memory: Callable[[], npt.NDArray[Any]], stop: Callable[[], bool]) -> None:
        earlier = self._thread

        def move() -> None:
            if earlier is not None:
                earlier.join()
            array: npt.NDArray[np.uint8] = memory()
            host.collapse(array.ctypes.data, array.nbytes, stop)

        self._thread = threading.Thread(target=move, name="huge pages", daemon=True)
        self._thread.start()
