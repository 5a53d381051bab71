"""A read queue whose timing is drawn at random: what lands when, what may still be withdrawn, what stops half-way.

Deterministic for a seed, with no thread and no clock, so that a failure can be had again.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from smallthinker.errors import CancelledError, StoreReadError
from smallthinker.expert_store.read_queue import FinishedRead, ReadCounters

Bytes = npt.NDArray[np.uint8]


class ShuffledQueue:
    """Keeps the ReadQueue contract over `read(record, slot memory)`, which may raise StoreReadError."""

    name = "shuffled"

    def __init__(self, slots: Bytes, read: Callable[[int, Bytes], None], seed: int = 0) -> None:
        self._slots, self._read, self._random = slots, read, random.Random(seed)
        self.under_way: dict[int, tuple[int, bool]] = {}  # record -> slot, speculative
        self._started: set[int] = set()
        self._cancelled: set[int] = set()
        self._finished: list[FinishedRead] = []
        self._certain = self._speculative = self._withdrawn_bytes = 0
        self.log: list[tuple[str, int]] = []

    def submit(self, record: int, slot: int, speculative: bool = False) -> None:
        if record in self.under_way:
            raise ValueError(f"record {record} is under way")
        assert all(slot != other for other, _ in self.under_way.values()), "two reads into one slot"
        self.under_way[record] = slot, speculative
        self.log.append(("guess" if speculative else "read", record))
        if self._random.random() < 0.3:
            self._start(record)

    def _start(self, record: int) -> None:
        self._started.add(record)
        self._slots[self.under_way[record][0], : self._slots.shape[1] // 2] = 0xEE  # half-written

    def promote(self, record: int) -> None:
        if record in self.under_way:
            self.log.append(("promote", record))
            self.under_way[record] = self.under_way[record][0], False

    def cancel(self, record: int) -> bool:
        if record not in self.under_way:
            return False
        self.log.append(("cancel", record))
        if record in self._started:
            self._cancelled.add(record)
            return False
        del self.under_way[record]
        return True

    def finish(self, record: int) -> None:
        """Let this read end now."""
        self._start(record)
        slot, speculative = self.under_way.pop(record)
        self._started.discard(record)
        error: StoreReadError | CancelledError | None = None
        if record in self._cancelled and self._random.random() < 0.7:
            error = CancelledError(f"record {record}: withdrawn")
            self._withdrawn_bytes += self._slots.shape[1] // 2
        else:
            try:
                self._read(record, self._slots[slot])
                self._certain += not speculative
                self._speculative += speculative
            except StoreReadError as e:
                error = e
        self._cancelled.discard(record)
        self._finished.append(FinishedRead(record, error))

    def poll(self) -> list[FinishedRead]:
        for record in list(self.under_way):
            if self._random.random() < 0.2:
                self._start(record)
            elif self._random.random() < 0.2:
                self.finish(record)
        return self._take()

    def wait(self) -> list[FinishedRead]:
        if not self._finished:
            if not self.under_way:
                raise ValueError("nothing is under way")
            certain = [record for record, (_, speculative) in self.under_way.items() if not speculative]
            self.finish(self._random.choice(certain or list(self.under_way)))
        return self._take()

    def _take(self) -> list[FinishedRead]:
        finished, self._finished = self._finished, []
        self._random.shuffle(finished)
        return finished

    def drain(self) -> None:
        for record in list(self.under_way):
            if not self.cancel(record):
                self.finish(record)
        self._finished.clear()

    def counters(self) -> ReadCounters:
        each = self._slots.shape[1]
        return ReadCounters(
            self._certain, self._certain * each, self._speculative, self._speculative * each, self._withdrawn_bytes
        )

    def close(self) -> None:
        self.drain()
