"""Weights into huge pages, in the background, once they have come to rest.

Every token reads all dense weights and its experts from memory; with pages of 4 KiB each 64 cache lines cost an address
translation, 8 % of a token of the 4B model in memory. Memory that is huge from its first touch has to be found and
cleared 2 MiB at a time while somebody waits for a read: on a virtual machine that took longer than the disk. So the
move comes later: of the dense weights after some tokens, of the experts' slots once all are filled, or after as many
tokens without a miss.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from smallthinker.cache.expert_cache import ExpertCache
from smallthinker.expert_store import host

QUIET_STEPS = 16


class HugePages:
    """Told of every decode step; has at most one thread at a time. Nothing that it does changes an output."""

    def __init__(self, dense: npt.NDArray[Any], experts: ExpertCache) -> None:
        self._dense, self._experts = dense, experts
        self._steps = self._last_miss = self._misses = 0
        self._moved_full = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def step(self) -> None:
        """A token has been decoded."""
        self._steps += 1
        misses = self._experts.counters().misses
        if misses != self._misses:
            self._misses, self._last_miss = misses, self._steps
        if self._steps == QUIET_STEPS:
            self._start(lambda: [self._dense], self._stop.is_set)
        is_quiet = self._steps == self._last_miss + 2 * QUIET_STEPS
        if is_quiet or (not self._moved_full and self._steps >= 2 * QUIET_STEPS and self._experts.is_full):
            self._moved_full = self._experts.is_full
            limit = self._experts.limit
            # slots that were lent to the system meanwhile would be taken back, filled with zeros
            self._start(self._experts.filled, lambda: self._stop.is_set() or self._experts.limit < limit)

    def close(self) -> None:
        """Stop before the memory is freed. May be called twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _start(self, memory: Callable[[], list[npt.NDArray[Any]]], stop: Callable[[], bool]) -> None:
        earlier = self._thread

        def move() -> None:
            if earlier is not None:
                earlier.join()
            for array in memory():
                host.collapse(array.ctypes.data, array.nbytes, stop)

        self._thread = threading.Thread(target=move, name="huge pages", daemon=True)
        self._thread.start()
