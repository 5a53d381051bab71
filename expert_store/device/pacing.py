"""Makes reads take as long as a slower device would: an emulated disk, anywhere, without rights over the real one.

Owns what Python's own reads wait for; background reads are held back by the native queue itself, chunk by chunk, where
a certain read still overtakes a guess (native/pace.h). Knows nothing about what is read. It can only slow down.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from smallthinker._storage import Device, Pace
from smallthinker.expert_store.device.storage_profile import StorageProfile

if TYPE_CHECKING:
    from smallthinker.expert_store.readers import Reader
    from smallthinker.expert_store.store import Store

_NO_LIMIT = 1e12  # requests per second


def random_device(storage: StorageProfile) -> Device:
    """What holds random reads back."""
    return Device(
        bytes_per_sec=storage.random_bytes_per_sec,
        requests_per_sec=storage.random_iops,
        latency_sec=storage.latency_sec,
    )


class SequentialThrottle:
    """Holds back one long read from front to end, which a device reads ahead for: its pieces wait for bytes alone."""

    def __init__(
        self,
        storage: StorageProfile,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        device = Device(
            bytes_per_sec=storage.sequential_bytes_per_sec, requests_per_sec=_NO_LIMIT, latency_sec=storage.latency_sec
        )
        self._pace = Pace(device)
        self._began = clock()

    def arrived(self, nbytes: int) -> None:
        """Return once the device would have had these bytes, behind all before them."""
        due = self._pace.due(self._began, nbytes)
        now = self._clock()
        if now < due:
            self._sleep(due - now)


class PacedReader:
    """A Reader that is no faster than the profile: at most `queue_depth` reads at once, each after its time.

    Threads that wait for a place don't know which of them was asked first; one of a few, a guess may be before a
    certain read.
    """

    def __init__(
        self,
        reader: Reader,
        store: Store,
        storage: StorageProfile,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reader, self._store, self._clock, self._sleep = reader, store, clock, sleep
        self._pace = Pace(random_device(storage))
        self._places = threading.Semaphore(storage.queue_depth)

    @property
    def name(self) -> str:
        return self._reader.name

    @property
    def bytes_read(self) -> int:
        return self._reader.bytes_read

    def read_into(self, index: int, buffer: memoryview) -> None:
        with self._places:
            due = self._pace.due(self._clock(), self._store.stored_bytes(index))
            self._reader.read_into(index, buffer)
            now = self._clock()
            if now < due:
                self._sleep(due - now)

    def close(self) -> None:
        self._reader.close()
