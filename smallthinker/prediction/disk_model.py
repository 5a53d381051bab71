"""A disk that is only computed: when would each read have come back?

Owns the disk's timing and the queue in front of it, which keeps the contract of background reading
(`expert_store.read_queue`) on a clock of its own, so that the engine's expert cache runs over it. The queue serves
chunks as the native one does: certain reads first, in order; speculative ones while no certain one waits and few are
in flight. Knows nothing about experts.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass

from smallthinker._storage import Pace
from smallthinker.errors import CancelledError
from smallthinker.expert_store.device.disk_profile import MOST_CHUNKS, DiskProfile
from smallthinker.expert_store.device.pacing import random_device
from smallthinker.expert_store.device.probe import emulated_profile
from smallthinker.expert_store.device.storage_profile import StorageProfile
from smallthinker.expert_store.read_queue import Finished, ReadCounters


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


@dataclass(eq=False)
class _Read:
    record: int
    speculative: bool
    left_bytes: int  # that nobody has asked the disk for
    in_flight: int = 0
    withdrawn: bool = False
    arrived_bytes: int = 0


class SimulatedQueue:
    """A ReadQueue. `wait` moves the clock on to the next end of a read; slots are ignored."""

    name = "simulated"

    def __init__(self, disk: DiskModel, clock: Clock, record_bytes: int, finish_sec: float = 0.0) -> None:
        """finish_sec: processor time that one record takes between the disk and its slot, one after the other:
        decompression."""
        self.clock, self.withdrawn_bytes = clock, 0
        self._disk, self._record_bytes, self._finish_sec = disk, record_bytes, finish_sec
        self._reads: dict[int, _Read] = {}
        self._certain: deque[_Read] = deque()  # with chunks not asked for
        self._speculative: deque[_Read] = deque()
        self._chunks: list[tuple[float, int, _Read, int]] = []  # a heap: end, order, read, bytes
        self._ended: list[tuple[float, _Read]] = []
        self._order = 0
        self._finished = -math.inf
        self._pace = Pace(random_device(disk.storage))
        self._now = 0.0  # up to where the disk has been simulated

    def submit(self, record: int, slot: int, speculative: bool = False) -> None:
        if record in self._reads:
            raise ValueError(f"record {record} is under way already")
        self._advance(self.clock.sec)
        read = self._reads[record] = _Read(record, speculative, self._record_bytes)
        (self._speculative if speculative else self._certain).append(read)
        self._fill()

    def promote(self, record: int) -> None:
        self._advance(self.clock.sec)
        read = self._reads.get(record)
        if read is None or not read.speculative or read.withdrawn:
            return
        read.speculative = False
        if read in self._speculative:
            self._speculative.remove(read)
            self._certain.append(read)
        self._fill()

    def cancel(self, record: int) -> bool:
        self._advance(self.clock.sec)
        read = self._reads.get(record)
        if read is None or not (read.left_bytes or read.in_flight):
            return False
        for queue in (self._certain, self._speculative):
            if read in queue:
                queue.remove(read)
        if read.left_bytes == self._record_bytes:
            del self._reads[record]
            return True
        read.withdrawn = True
        if not read.in_flight:
            self._end(read, self.clock.sec)
        return False

    def poll(self) -> list[Finished]:
        self._advance(self.clock.sec)
        return self._take(self.clock.sec)

    def wait(self) -> list[Finished]:
        finished = self.poll()
        while not finished:
            times = [end for end, _ in self._ended]
            if self._chunks:
                times.append(self._chunks[0][0])
            if not times:
                raise ValueError("nothing is being read")
            self.clock.sec = max(self.clock.sec, min(times))
            finished = self.poll()
        return finished

    def drain(self) -> None:
        for read in list(self._reads.values()):
            self.cancel(read.record)
        while self._reads:
            self.wait()

    def counters(self) -> ReadCounters:
        return ReadCounters()  # nothing that a prediction asks for

    def close(self) -> None:
        self.drain()

    def _advance(self, until: float) -> None:
        """Let the disk work up to that moment."""
        while self._chunks and self._chunks[0][0] <= until:
            end, _, read, nbytes = heapq.heappop(self._chunks)
            self._now = end
            read.in_flight -= 1
            read.arrived_bytes += nbytes
            if not read.in_flight and (read.withdrawn or not read.left_bytes):
                self._end(read, end)
            self._fill()
        self._now = max(self._now, until)

    def _fill(self) -> None:
        """Ask for chunks, as many as may be in flight."""
        disk = self._disk
        while True:
            if self._certain:
                queue, most = self._certain, disk.depth
            elif self._speculative:
                queue, most = self._speculative, disk.speculative_depth
            else:
                break
            if len(self._chunks) >= min(most, disk.storage.queue_depth):
                break
            read = queue[0]
            nbytes = min(disk.chunk_bytes, read.left_bytes)
            read.left_bytes -= nbytes
            read.in_flight += 1
            if not read.left_bytes:
                queue.popleft()
            self._order += 1
            heapq.heappush(self._chunks, (self._pace.due(self._now, nbytes), self._order, read, nbytes))

    def _end(self, read: _Read, at: float) -> None:
        if not read.withdrawn:
            at = self._finished = max(at, self._finished) + self._finish_sec
        self._ended.append((at, read))

    def _take(self, until: float) -> list[Finished]:
        finished = []
        for end in [end for end in self._ended if end[0] <= until]:
            read = end[1]
            self._ended.remove(end)
            del self._reads[read.record]
            whole = read.arrived_bytes == self._record_bytes
            self.withdrawn_bytes += 0 if whole else read.arrived_bytes
            finished.append(Finished(read.record, None if whole else CancelledError(f"record {read.record}")))
        return finished
