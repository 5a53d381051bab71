"""Weights in huge pages, got ready in the background before they are read.

Every token reads all dense weights and its experts from memory; with pages of 4 KiB each 64 cache lines cost an address
translation, 8 % of a token of the 4B model in memory. A direct read into 4 KiB pages is a list of 512 addresses, which
the disk takes in several requests: 1.45 GB/s where huge pages gave 2.2. But memory that is huge has to be found and
cleared 2 MiB at a time, and where it is scarce that takes longer than the disk. So a thread goes ahead of the reads:
through the dense weights, then through the slots of experts in the order in which they are taken, some way ahead. What
a read reaches first stays in small pages, and is moved once the cache is full or after some tokens without a miss.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from smallthinker.cache.expert_cache import ExpertCache
from smallthinker.expert_store import host

QUIET_STEPS = 16
AHEAD_BYTES = 128 << 20  # of slots: some waits for the disk, but little of a budget that a short answer won't use


class HugePages:
    """Told of every decode step; has one thread. Nothing that it does changes an output."""

    def __init__(self, experts: ExpertCache) -> None:
        self._experts = experts
        self._steps = self._last_miss = self._misses = 0
        self._moved_full = self._must_move = self._stopped = False
        self._awake = experts.took_free
        self._dense: npt.NDArray[Any] | None = None
        self._thread = threading.Thread(target=self._work, name="huge pages", daemon=True)

    def go_ahead(self, dense: npt.NDArray[Any]) -> None:
        """From now on, ahead of whoever fills these dense weights and the slots. Once."""
        self._dense = dense
        self._thread.start()

    def step(self) -> None:
        """A token has been decoded."""
        self._steps += 1
        misses = self._experts.counters().misses
        if misses != self._misses:
            self._misses, self._last_miss = misses, self._steps
        is_quiet = self._steps == self._last_miss + 2 * QUIET_STEPS
        if is_quiet or (not self._moved_full and self._steps >= 2 * QUIET_STEPS and self._experts.is_full):
            self._moved_full = self._experts.is_full
            self._must_move = True
            self._awake.set()

    def close(self) -> None:
        """Stop before the memory is freed. May be called twice, and without `go_ahead`."""
        self._stopped = True
        self._awake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        assert self._dense is not None
        for start in _pages_of(self._dense):
            if self._stopped or not host.populate_huge(start):
                break
        pages = iter(_pages_of(self._experts.slots))
        page: int | None = next(pages, None)
        while not self._stopped:
            if self._must_move:
                self._must_move = False
                self._move()
            elif page is not None and self._is_near(page):
                page = next(pages, None) if self._prepare(page) else None
            else:
                self._awake.wait()
                self._awake.clear()

    def _slots_in(self, page: int) -> range:
        slots = self._experts.slots
        first, record_bytes = page - slots.ctypes.data, slots.shape[1]
        return range(first // record_bytes, min(-(-(first + host.HUGE_PAGE_BYTES) // record_bytes), len(slots)))

    def _is_near(self, page: int) -> bool:
        ahead: int = AHEAD_BYTES // self._experts.slots.shape[1]
        return self._slots_in(page)[0] <= self._experts.taken + ahead

    def _prepare(self, page: int) -> bool:
        """False where the system has no such pages."""
        return any(self._experts.is_lent(slot) for slot in self._slots_in(page)) or host.populate_huge(page)

    def _move(self) -> None:
        assert self._dense is not None
        limit = self._experts.limit

        def stop() -> bool:  # slots that were lent to the system meanwhile would be taken back, filled with zeros
            return self._stopped or self._experts.limit < limit

        for array in (self._dense, *self._experts.filled()):
            host.collapse(array.ctypes.data, array.nbytes, stop)


def _pages_of(array: npt.NDArray[Any]) -> Sequence[int]:
    return host.huge_pages_in(array.ctypes.data, array.nbytes)
