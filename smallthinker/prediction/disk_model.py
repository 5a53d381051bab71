"""A disk that is only computed: when would each read have come back?

Owns the disk's timing and the queue in front of it, which keeps the contract of background reading
(`expert_store.read_queue`) on a clock of its own, so that the engine's expert cache runs over it. Which chunk is next
is the native queue's own choice (`_storage.Schedule`). Knows nothing about experts.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from smallthinker._storage import Chunk, Pace, Schedule
from smallthinker.errors import CancelledError
from smallthinker.expert_store.device.disk_profile import MOST_CHUNKS, DiskProfile
from smallthinker.expert_store.device.pacing import random_device
from smallthinker.expert_store.device.probe import emulated_profile
from smallthinker.expert_store.device.storage_profile import StorageProfile
from smallthinker.expert_store.read_queue import FinishedRead, ReadCounters


@dataclass(frozen=True)
class DiskModel:
    """A device, and how the engine asks it: chunk_bytes, depth and speculative_depth as in DiskProfile. Reads share
    the latency and then follow each other, as `_storage.Pace` has it, which also emulates slow disks."""

    storage: StorageProfile
    chunk_bytes: int
    depth: int
    speculative_depth: int

    @classmethod
    def of_device(cls, storage: StorageProfile, record_bytes: int) -> DiskModel:
        """Asked as the engine would ask this device for records of that size."""
        asked = emulated_profile(storage, record_bytes, DiskProfile())
        return cls(storage, asked.chunk_bytes, asked.depth, asked.speculative_depth)

    @classmethod
    def of_probe(cls, found: DiskProfile, name: str) -> DiskModel:
        """The disk that a store's probe found: what it gives at that size of chunks and that depth is what it gave."""
        transfer_sec = found.chunk_bytes / found.bandwidth_bytes_per_sec
        if found.depth == 1:  # the latency shows
            transfer_sec = max(transfer_sec - found.latency_sec, transfer_sec / 2)
        bandwidth = found.chunk_bytes / transfer_sec
        storage = StorageProfile(
            name=name,
            summary="a probe beside the store",
            scope="device",
            sequential_bytes_per_sec=bandwidth,
            random_bytes_per_sec=bandwidth,
            random_iops=1e8,
            latency_sec=found.latency_sec,
            queue_depth=MOST_CHUNKS,
            source="random records of a store, read as the engine reads them",
        )
        return cls(storage, found.chunk_bytes, found.depth, found.speculative_depth)

    @property
    def random_bytes_per_sec(self) -> float:
        """Of random records, when there is always one more to read."""
        return self.storage.bytes_per_sec(self.chunk_bytes, self.depth)

    @property
    def io_bytes(self) -> int:
        """Memory of reads in flight, as `queues.queue_bytes` has it."""
        return self.depth * self.chunk_bytes


class Clock:
    """Seconds since a simulated run began."""

    def __init__(self) -> None:
        self.sec = 0.0


class SimulatedQueue:
    """A ReadQueue. `wait` moves the clock on to the next end of a read."""

    name = "simulated"

    def __init__(self, disk: DiskModel, clock: Clock, record_bytes: int, finish_sec: float = 0.0) -> None:
        """finish_sec: processor time that one record takes between the disk and its slot, one after the other:
        decompression."""
        self.clock, self._finish_sec = clock, finish_sec
        depth = min(disk.depth, disk.storage.queue_depth)
        self._schedule = Schedule(
            record_bytes=record_bytes,
            chunk_bytes=min(disk.chunk_bytes, record_bytes),
            depth=depth,
            speculative_depth=min(disk.speculative_depth, depth),
        )
        self._chunks: list[tuple[float, int, Chunk]] = []  # a heap: end, order, chunk
        self._ended: list[tuple[float, FinishedRead]] = []
        self._order = 0
        self._finished = -math.inf
        self._pace = Pace(random_device(disk.storage))
        self._now = 0.0  # up to where the disk has been simulated

    @property
    def withdrawn_bytes(self) -> int:
        return self._schedule.counters()[4]

    def submit(self, record: int, slot: int, speculative: bool = False) -> None:
        self._advance(self.clock.sec)
        self._schedule.submit(record, slot, speculative)
        self._fill()

    def promote(self, record: int) -> None:
        self._advance(self.clock.sec)
        self._schedule.promote(record)
        self._fill()

    def cancel(self, record: int) -> bool:
        self._advance(self.clock.sec)
        is_gone = self._schedule.cancel(record)
        self._hear(self.clock.sec)
        return is_gone

    def poll(self) -> list[FinishedRead]:
        self._advance(self.clock.sec)
        finished = [end for at, end in self._ended if at <= self.clock.sec]
        self._ended = [ended for ended in self._ended if ended[0] > self.clock.sec]
        return finished

    def wait(self) -> list[FinishedRead]:
        finished = self.poll()
        while not finished:
            times = [at for at, _ in self._ended]
            if self._chunks:
                times.append(self._chunks[0][0])
            if not times:
                raise ValueError("nothing is being read")
            self.clock.sec = max(self.clock.sec, min(times))
            finished = self.poll()
        return finished

    def counters(self) -> ReadCounters:
        return ReadCounters()  # nothing that a prediction asks for

    def drain(self) -> None:
        self._schedule.withdraw_all()
        self._ended.clear()
        self._advance(max((at for at, _, _ in self._chunks), default=0.0))
        self.clock.sec = max(self.clock.sec, self._now)

    def close(self) -> None:
        self.drain()

    def _advance(self, until: float) -> None:
        """Let the disk work up to that moment."""
        while self._chunks and self._chunks[0][0] <= until:
            self._now, _, chunk = heapq.heappop(self._chunks)
            self._schedule.give_back(chunk)
            self._hear(self._now)
            self._fill()
        self._now = max(self._now, until)

    def _fill(self) -> None:
        """Ask the disk for chunks, as many as may be in flight."""
        while (chunk := self._schedule.take()) is not None:
            self._order += 1
            heapq.heappush(self._chunks, (self._pace.due(self._now, chunk.nbytes), self._order, chunk))

    def _hear(self, now: float) -> None:
        for record, is_whole, _ in self._schedule.take_ended():
            if not is_whole:
                self._ended.append((now, FinishedRead(record, CancelledError(f"record {record}"))))
                continue
            self._finished = max(now, self._finished) + self._finish_sec
            self._ended.append((self._finished, FinishedRead(record, None)))
