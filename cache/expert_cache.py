"""The expert cache: a fixed number of slots in memory, filled by the I/O thread, each holding one expert's record.

Owns the slots, who is in them, and who is pinned. Knows nothing about routing or arithmetic, and nothing about files:
it is handed an I/O thread, and asked by record number.

A layer's request is answered by a Ticket, which yields resident experts first and then the others as they land, and
takes an expert's pin away once the caller comes back for the next ones. So a layer may need more experts than there
are slots: it then goes through them in waves.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from smallthinker.cache.policies import EvictionPolicy
from smallthinker.errors import CancelledError, StoreReadError
from smallthinker.expert_store import host
from smallthinker.expert_store.io_thread import IoThread, ReadTicket

MOST_USED = 4096


class Landed(NamedTuple):
    """An expert that can be computed now: its place in the request, and the slot that holds its record."""

    position: int
    slot: int


@dataclass(frozen=True)
class CacheCounters:
    """Since the cache was made. Each expert asked for is a hit or a miss; stall_sec waited with nothing to compute."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    bytes_read: int = 0
    stall_sec: float = 0.0

    def __sub__(self, earlier: CacheCounters) -> CacheCounters:
        return CacheCounters(
            self.hits - earlier.hits,
            self.misses - earlier.misses,
            self.evictions - earlier.evictions,
            self.bytes_read - earlier.bytes_read,
            self.stall_sec - earlier.stall_sec,
        )


class ExpertCache:
    """`slots` is uint8 [number of slots, record_bytes], page-aligned. Not thread-safe: one caller at a time."""

    def __init__(
        self, io: IoThread, num_slots: int, record_bytes: int, policy: EvictionPolicy, experts_per_layer: int
    ) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots: expected at least 1, found {num_slots}")
        self._io, self._policy, self._experts_per_layer = io, policy, experts_per_layer
        memory = host.aligned_buffer(num_slots * record_bytes)
        self.slots: npt.NDArray[np.uint8] = np.frombuffer(memory, np.uint8, num_slots * record_bytes).reshape(
            num_slots, record_bytes
        )
        whole = memoryview(memory)
        self._buffers = [whole[i * record_bytes : (i + 1) * record_bytes] for i in range(num_slots)]
        self._record_bytes = record_bytes
        self._slot_of: dict[int, int] = {}  # record -> slot, for records that are whole
        self._free = list(range(num_slots - 1, -1, -1))
        self._pins: dict[int, int] = {}  # record -> tickets that still need it
        self._hits = self._misses = self._evictions = self._bytes_read = 0
        self._stall_sec = 0.0
        self._in_use = False
        self._used: list[tuple[int, list[int]]] = []  # what the policy hasn't heard of yet, in order

    def counters(self) -> CacheCounters:
        return CacheCounters(self._hits, self._misses, self._evictions, self._bytes_read, self._stall_sec)

    def filled(self) -> npt.NDArray[np.uint8]:
        """The slots that hold or held a record, or will soon: those that were taken first."""
        return self.slots[: len(self.slots) - len(self._free)]

    def is_resident(self, layer: int, expert: int) -> bool:
        return layer * self._experts_per_layer + expert in self._slot_of

    def resident_slots(self, layer: int, experts: Sequence[int]) -> list[int] | None:
        """The slots of a layer's experts if all are resident, counted as hits; None, and nothing counted, if not.

        They stay until the next `request`. A ticket takes three times as long, which a step that misses nothing feels.
        """
        if self._in_use:  # an interrupt kept the last ticket from being closed: the next request starts over
            return None
        first = layer * self._experts_per_layer
        records = [first + expert for expert in experts]
        try:
            slots = [self._slot_of[record] for record in records]
        except KeyError:
            return None
        self._used.append((layer, records))
        if len(self._used) > MOST_USED:
            self._tell_policy()
        self._hits += len(slots)
        return slots

    def _tell_policy(self) -> None:
        """Hand over what was used since the last request, all at once: one by one, between kernels that sweep the
        processor's caches, each costs ten times as much."""
        for layer, records in self._used:
            self._policy.use(layer, records)
        self._used.clear()

    def request(self, layer: int, experts: Sequence[int]) -> Ticket:
        """Ask for distinct experts of a layer, in the order in which their reads should start.

        Reads start before this returns, as many as slots can be had for. Use the ticket as a context manager: leaving
        it takes back what was not read yet and unpins the rest. One ticket at a time.
        """
        self._tell_policy()
        if self._in_use:  # an interrupt kept the last ticket from being closed
            self._recover()
        self._in_use = True
        return Ticket(self, layer, [layer * self._experts_per_layer + expert for expert in experts])

    def step(self, tokens: int) -> None:
        """A decode step, or a chunk of `tokens` of a prompt, has been computed."""
        self._tell_policy()
        self._policy.step(tokens)

    def free(self) -> None:
        """Give the slots' memory back; the I/O thread is closed by then. Counters stay readable."""
        self.slots = np.empty((0, 0), np.uint8)
        self._buffers = []

    def _recover(self) -> None:
        """Start over with nothing resident. Ctrl-C can strike between any two lines of this file: what the books say
        then is not to be trusted, and reading some experts again is cheaper than guarding each line."""
        self._io.drain()
        self._policy.clear()
        self._used.clear()
        self._slot_of.clear()
        self._pins.clear()
        self._free = list(range(len(self.slots)))
        self._in_use = False

    def _take_slot(self, layer: int) -> int | None:
        """A free slot, or one taken from the policy's victim; None when every record is pinned or being read."""
        if self._free:
            return self._free.pop()
        victim = self._policy.victim(self._pins, layer)
        if victim is None:
            return None
        self._policy.remove(victim)
        self._evictions += 1
        return self._slot_of.pop(victim)

    def _pin(self, record: int) -> None:
        self._pins[record] = self._pins.get(record, 0) + 1

    def _unpin(self, record: int) -> None:
        if self._pins[record] == 1:
            del self._pins[record]
        else:
            self._pins[record] -= 1


class Ticket:
    """The experts of one layer's request. Iterate for lists of `Landed`, each expert exactly once."""

    def __init__(self, cache: ExpertCache, layer: int, records: list[int]) -> None:
        self._cache, self._layer, self._records = cache, layer, records
        cache._policy.use(layer, records)
        self._resident: list[Landed] = []
        self._waiting: deque[int] = deque()  # positions without a slot yet
        self._reading: dict[int, tuple[ReadTicket, int, int]] = {}  # id of read -> read, position, slot
        self._completed: SimpleQueue[ReadTicket] = SimpleQueue()
        self._pinned: set[int] = set()
        for position, record in enumerate(records):
            slot = cache._slot_of.get(record)
            if slot is None:
                self._waiting.append(position)
            else:
                self._pin(record)
                self._resident.append(Landed(position, slot))
        cache._hits += len(self._resident)
        cache._misses += len(self._waiting)
        self._start_reads()  # after every hit is pinned: a miss must not evict what this very request needs

    def __iter__(self) -> Iterator[list[Landed]]:
        landed, self._resident = self._resident, []
        if landed:
            yield landed
        while self._reading or self._waiting:
            for position, _ in landed:
                self._unpin(self._records[position])
            self._start_reads()
            landed = self._collect()
            yield landed

    def _start_reads(self) -> None:
        cache = self._cache
        while self._waiting:
            slot = cache._take_slot(self._layer)
            if slot is None:
                return
            position = self._waiting.popleft()
            record = self._records[position]
            read = cache._io.submit(record, cache._buffers[slot], self._completed)
            self._reading[id(read)] = (read, position, slot)
            self._pin(record)
            # The policy hears of it now, not when it lands: what is evicted must not depend on the disk's timing.
            cache._policy.insert(record)

    def _collect(self) -> list[Landed]:
        """At least one landed expert, and every other that has landed by then. Raises StoreReadError."""
        try:
            reads = [self._completed.get_nowait()]
        except Empty:
            began = time.perf_counter()
            reads = [self._completed.get()]
            self._cache._stall_sec += time.perf_counter() - began
        while not self._completed.empty():
            reads.append(self._completed.get())
        return [self._land(read) for read in reads]

    def _land(self, read: ReadTicket) -> Landed:
        _, position, slot = self._reading.pop(id(read))
        cache, record = self._cache, self._records[position]
        if read.error is not None:
            self._abandon(record, slot)
            raise read.error
        cache._bytes_read += cache._record_bytes
        cache._slot_of[record] = slot
        return Landed(position, slot)

    def _abandon(self, record: int, slot: int) -> None:
        """A read that brought nothing."""
        self._cache._policy.remove(record)
        self._unpin(record)
        self._cache._free.append(slot)

    def _pin(self, record: int) -> None:
        self._cache._pin(record)
        self._pinned.add(record)

    def _unpin(self, record: int) -> None:
        self._cache._unpin(record)
        self._pinned.remove(record)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Withdraw reads that have not started, wait for those that have (they write into slots), unpin everything."""
        cache = self._cache
        if error is not None and not isinstance(error, Exception):
            cache._recover()
            return
        for read, _, _ in self._reading.values():
            read.cancel()
        for read, position, slot in self._reading.values():
            with suppress(StoreReadError, CancelledError):
                read.wait()
            self._abandon(self._records[position], slot)
        for record in self._pinned:
            cache._unpin(record)
        cache._in_use = False
