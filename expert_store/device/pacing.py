"""Makes reads take as long as a slower device would: an emulated disk, anywhere, without rights over the real one.

Owns what the long read of the dense weights waits for; background reads are held back by the native queue itself, chunk
by chunk, where a certain read still overtakes a guess (native/pace.h). Knows nothing about what is read. It can only
slow down.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from smallthinker._storage import Device, Pace
from smallthinker.expert_store.device.storage_profile import StorageProfile

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
