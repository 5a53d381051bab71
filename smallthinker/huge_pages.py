"""Memory for weights, got ready in the background before they are read: in huge pages, where the system has some.

Every token reads all dense weights and its experts from memory; with pages of 4 KiB each 64 cache lines cost an address
translation, 8 % of a token of the 4B model in memory. A direct read into 4 KiB pages is a list of 512 addresses, which
the disk takes in several requests: 1.45 GB/s where huge pages gave 2.2. But a page has to be found and cleared, and
where memory is scarce, or a virtual machine's, that takes longer than the read. So a thread goes ahead of the reads:
through the dense weights, then through the slots of experts in the order in which they are taken, some way ahead.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from smallthinker import host
from smallthinker.cache.expert_cache import ExpertCache
from smallthinker.host import pages

AHEAD_BYTES = 128 << 20  # of slots: some waits for the disk, but little of a budget that a short answer won't use


class HugePages:
    """Has one thread until all memory is there. Nothing that it does changes an output."""

    def __init__(self, experts: ExpertCache) -> None:
        self._experts = experts
        self._stopped = False
        self._dense: npt.NDArray[Any] | None = None
        self._thread = threading.Thread(target=self._work, name="huge pages", daemon=True)

    def go_ahead(self, dense: npt.NDArray[Any]) -> None:
        """From now on, ahead of whoever fills these dense weights and the slots. Once."""
        self._dense = dense
        self._thread.start()

    def close(self) -> None:
        """Stop before the memory is freed, and hold none of it. May be called twice, and without `go_ahead`."""
        self._stopped = True
        self._experts.took_free.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._dense = None

    def _work(self) -> None:
        assert self._dense is not None
        host.yield_to_others()
        for page in _pages_of(self._dense):
            if self._stopped or not pages.populate(page, pages.HUGE_PAGE_BYTES):
                return
        for page in _pages_of(self._experts.slots):
            slots = self._slots_in(page)
            while not self._stopped and not self._is_near(slots[0]):
                self._experts.took_free.wait()
                self._experts.took_free.clear()
            if any(self._experts.is_released(slot) for slot in slots):
                continue
            if self._stopped or not pages.populate(page, pages.HUGE_PAGE_BYTES):
                return

    def _slots_in(self, page: int) -> range:
        slots = self._experts.slots
        first, record_bytes = page - slots.ctypes.data, slots.shape[1]
        return range(first // record_bytes, min(-(-(first + pages.HUGE_PAGE_BYTES) // record_bytes), len(slots)))

    def _is_near(self, slot: int) -> bool:
        ahead: int = AHEAD_BYTES // self._experts.slots.shape[1]
        return slot <= self._experts.taken + ahead


def _pages_of(array: npt.NDArray[Any]) -> Sequence[int]:
    return pages.huge_pages_in(array.ctypes.data, array.nbytes)
