"""One layer's request to the expert cache: which experts are there, which are being read, which still wait for a slot.

The other half of `expert_cache.ExpertCache`, whose books it keeps while its layer is served.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from smallthinker.cache.expert_cache import ExpertCache


class Landed(NamedTuple):
    """An expert that can be computed now: its place in the request, and the slot that holds its record."""

    position: int
    slot: int


class Ticket:
    """The experts of one layer's request. Iterate for lists of `Landed`, each expert exactly once."""

    def __init__(self, cache: ExpertCache, layer: int, records: list[int]) -> None:
        self._cache, self._layer, self._records = cache, layer, records
        self._resident: list[Landed] = []
        self._waiting: deque[int] = deque()  # positions without a slot yet
        self._pending: dict[int, int] = {}  # record under way -> position
        if layer in cache._guesses:
            cache._settle(layer, records)
        for position, record in enumerate(records):
            slot = cache._slot_of.get(record)
            if slot is not None:
                cache._pinned.add(record)
                self._resident.append(Landed(position, slot))
            elif record in cache._reading and record not in cache._withdrawn:  # a guess that came late
                cache._queue.promote(record)
                if record in cache._preloading:
                    cache._preloading.remove(record)
                    cache._tally.guessed(in_time=False)
                cache._pinned.add(record)
                self._pending[record] = position
            else:
                self._waiting.append(position)
        cache._tally.hits += len(self._resident)
        cache._tally.misses += len(self._waiting)
        self._start_reads()  # after every hit is pinned: a miss must not evict what this very request needs

    def __iter__(self) -> Iterator[list[Landed]]:
        landed = self._resident
        while True:
            if landed:
                yield landed
                self._cache._pinned.difference_update(self._records[position] for position, _ in landed)
            if not self._pending and not self._waiting:
                return
            landed = self._start_reads() or self._collect()

    def _start_reads(self) -> list[Landed]:
        """As many as slots can be had for. Returns what was found to have landed by itself."""
        cache = self._cache
        landed: list[Landed] = []
        for _ in range(len(self._waiting)):
            position = self._waiting.popleft()
            record = self._records[position]
            if record in cache._slot_of:  # had been withdrawn, but too late to stop
                cache._pinned.add(record)
                cache._tally.regained()
                landed.append(Landed(position, cache._slot_of[record]))
                continue
            slot = None if record in cache._reading else self._take_slot()
            if slot is None:
                self._waiting.append(position)
                if record not in cache._reading:
                    self._waiting.rotate(1)  # keeps its place
                    break
                continue
            cache._start_read(record, slot, speculative=False)
            self._pending[record] = position
        return landed

    def _take_slot(self) -> int | None:
        slot = self._cache._take_slot(self._layer)
        if slot is None and self._cache._guesses:  # what is certain goes before what is guessed
            self._cache._withdraw_guesses()
            slot = self._cache._take_slot(self._layer)
        return self._cache._take_preloading() if slot is None else slot

    def _collect(self) -> list[Landed]:
        """Every expert that has landed, after waiting for a read if none has. Raises StoreReadError."""
        cache = self._cache
        finished = cache._queue.poll()
        if not finished:
            began = cache._clock()
            finished = cache._queue.wait()
            cache._tally.stall_sec += cache._clock() - began
        cache._absorb(finished)
        landed: list[Landed] = []
        for record, error in finished:
            position = self._pending.pop(record, None)
            if position is None:
                continue
            if error is not None:
                raise error
            landed.append(Landed(position, cache._slot_of[record]))
        return landed

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Withdraw the reads that are not over, unpin everything."""
        cache = self._cache
        if error is not None and not isinstance(error, Exception):
            cache._recover()
            return
        cache._pinned.difference_update(self._records)
        for record in self._pending:
            if record in cache._reading:
                cache._withdraw(record)
        cache._in_use = False
