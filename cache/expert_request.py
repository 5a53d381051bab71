"""One layer's request to the expert cache: which experts are there, which are being read, which still wait for a slot.

Owns the order in which they are handed out. Whose slot is whose, the cache knows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from smallthinker.cache.expert_cache import ExpertCache

# What the cache answers where it has no slot to name.
READING, ABSENT, LATER, NO_SLOT = -1, -2, -3, -4


class Landed(NamedTuple):
    """An expert that can be computed now: its place in the request, and the slot that holds its record."""

    position: int
    slot: int


class ExpertRequest:
    """The experts of one layer's request. Iterate for lists of `Landed`, each expert exactly once."""

    def __init__(self, cache: ExpertCache, layer: int, records: list[int]) -> None:
        self._cache, self._layer, self._records = cache, layer, records
        self._resident: list[Landed] = []
        self._waiting: deque[int] = deque()  # positions without a slot yet
        self._pending: dict[int, int] = {}  # record under way -> position
        for position, record in enumerate(records):
            found = cache.claim(record)
            if found >= 0:
                self._resident.append(Landed(position, found))
            elif found == READING:
                self._pending[record] = position
            else:
                self._waiting.append(position)
        self._start_reads()  # after every hit is pinned: a miss must not evict what this very request needs

    def __iter__(self) -> Iterator[list[Landed]]:
        landed = self._resident
        while True:
            if landed:
                yield landed
                self._cache.unpin(self._records[position] for position, _ in landed)
            if not self._pending and not self._waiting:
                return
            landed = self._start_reads() or self._collect()

    def _start_reads(self) -> list[Landed]:
        """As many as slots can be had for. Returns what was found to have landed by itself."""
        landed: list[Landed] = []
        for _ in range(len(self._waiting)):
            position = self._waiting.popleft()
            record = self._records[position]
            found = self._cache.read(self._layer, record)
            if found >= 0:
                landed.append(Landed(position, found))
            elif found == READING:
                self._pending[record] = position
            elif found == LATER:
                self._waiting.append(position)
            else:  # no slot: it keeps its place
                self._waiting.appendleft(position)
                break
        return landed

    def _collect(self) -> list[Landed]:
        """Every expert that has landed, after waiting for a read if none has. Raises StoreReadError."""
        landed: list[Landed] = []
        for record, error in self._cache.wait():
            position = self._pending.pop(record, None)
            if position is None:
                continue
            if error is not None:
                raise error
            landed.append(Landed(position, int(self._cache.slot_table[record])))
        return landed

    def __enter__(self) -> ExpertRequest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Withdraw the reads that are not over, unpin everything."""
        interrupted = error is not None and not isinstance(error, Exception)
        self._cache.end_request(self._records, self._pending, interrupted)
