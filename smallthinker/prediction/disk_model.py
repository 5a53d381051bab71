"""A disk that is only computed: when would each read have come back?

Owns the disk's timing and the queue in front of it, which keeps the contract of background reading
(`expert_store.read_queue`) on a clock of its own, so that the engine's expert cache runs over it. Which chunk is next
is the native queue's own choice (expert_store/native/schedule.h). Knows nothing about experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from smallthinker import _storage
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
        self.clock = clock
        depth = min(disk.depth, disk.storage.queue_depth)
        self._raw = _storage.SimulatedQueue(
            random_device(disk.storage),
            record_bytes=record_bytes,
            chunk_bytes=min(disk.chunk_bytes, record_bytes),
            depth=depth,
            speculative_depth=min(disk.speculative_depth, depth),
            finish_sec=finish_sec,
        )

    @property
    def withdrawn_bytes(self) -> int:
        return self._raw.withdrawn_bytes

    def submit(self, record: int, slot: int, speculative: bool = False) -> None:
        self._raw.submit(self.clock.sec, record, slot, speculative)

    def promote(self, record: int) -> None:
        self._raw.promote(self.clock.sec, record)

    def cancel(self, record: int) -> bool:
        return self._raw.cancel(self.clock.sec, record)

    def poll(self) -> list[FinishedRead]:
        ended = self._raw.poll(self.clock.sec)
        return [
            FinishedRead(record, None if is_whole else CancelledError(f"record {record}"))
            for record, is_whole, _ in ended
        ]

    def wait(self) -> list[FinishedRead]:
        at = self._raw.next_end(self.clock.sec)
        if at is None:
            raise ValueError("nothing is being read")
        self.clock.sec = at
        return self.poll()

    def counters(self) -> ReadCounters:
        return ReadCounters(busy_sec=self._raw.busy_sec)  # what the look-ahead's share of idle time asks for

    def drain(self) -> None:
        self.clock.sec = self._raw.drain(self.clock.sec)

    def close(self) -> None:
        self.drain()
