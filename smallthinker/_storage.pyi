"""Background reading of records by native threads (expert_store/native/). `expert_store.native_queue` keeps the
contract of `read_queue.ReadQueue` with it and makes errors of what it tells. Calls that may take long release the GIL.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

class ReadError(Exception):
    """A file can't be opened or read this way. args: (offset in it or -1, what happened, its number)."""

def crc32(data: Any, crc: int = 0, *, by_tables: bool = False) -> int:
    """As zlib's, several times as fast. by_tables: as on a processor that has no help. Raises ValueError for memory
    with gaps."""

class Device:
    """What a read may cost at least."""

    def __init__(self, *, bytes_per_sec: float, requests_per_sec: float, latency_sec: float) -> None:
        """Raises ValueError for a rate that is not above 0."""

class Pace:
    """When that device would have answered; no clock of its own."""

    def __init__(self, device: Device) -> None: ...
    def due(self, start_sec: float, nbytes: int) -> float:
        """When a read of `nbytes` ends that the device began at `start_sec`, behind those that were asked before."""

class SimulatedQueue:
    """`ReadQueue` over a disk that is only computed, on a clock of the caller's: seconds, which never go back."""

    def __init__(
        self,
        device: Device,
        *,
        record_bytes: int,
        chunk_bytes: int,
        depth: int,
        speculative_depth: int,
        finish_sec: float,
    ) -> None:
        """finish_sec: of processor time that one record takes between the disk and its slot, one after the other."""

    def submit(self, now_sec: float, record: int, slot: int, speculative: bool) -> None:
        """Raises ValueError: record or slot is under way already."""

    def promote(self, now_sec: float, record: int) -> None: ...
    def cancel(self, now_sec: float, record: int) -> bool: ...
    def poll(self, now_sec: float) -> list[tuple[int, bool, tuple[int, str, int] | None]]: ...
    def next_end(self, now_sec: float) -> float | None:
        """When `poll` will have something to tell; None where nothing is being read."""

    def drain(self, now_sec: float) -> float:
        """Withdraw everything. Returns when the disk is idle."""

    @property
    def withdrawn_bytes(self) -> int: ...
    @property
    def busy_sec(self) -> float:
        """With something under way at the disk, so far."""

class ReadQueue:
    def __init__(
        self,
        files: Sequence[tuple[str | bytes, int]],
        *,
        record_bytes: int,
        pieces: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64] | Sequence[int],
        slots: npt.NDArray[np.uint8],
        kind: Literal["direct", "mmap", "buffered"],
        chunk_bytes: int,
        depth: int,
        speculative_depth: int,
        pace: Device | None = None,
        stage: Callable[[memoryview, memoryview], None] | Any | None = None,
        threads: int = 1,
        sums: npt.NDArray[np.uint32] | None = None,
        sum_starts: npt.NDArray[np.int64] | Sequence[int] = (0,),
        sum_always: bool = False,
    ) -> None:
        """files: paths and sizes; pieces, starts: as `expert_store.records.Records` has them.

        slots: [slots, record_bytes], writable, aligned to 4096 bytes; kept alive. chunk_bytes: of one request to the
        system. depth: chunks in flight, 1 to 64; speculative_depth: as long as the next chunk is a speculative one.
        pace: no chunk comes back before this device would have brought it.

        stage: fills a slot, its second argument, from what lies in the file, its first; a ValueError says what is wrong
        with that; then each record is one piece. Or a capsule of `_kernels`, which is called without Python's lock.
        Called by several of as many `threads`, which read whole pieces and hold one each in memory besides. Raises
        ReadError; ValueError for what doesn't fit.

        sums, sum_starts: as `expert_store.records.Sums` has them; each is checked until it was found right once, or
        sum_always. What fails or isn't right is read again, past the page cache.
        """

    @property
    def kind(self) -> Literal["direct", "mmap", "buffered"]: ...
    @property
    def is_own_thread(self) -> bool:
        """Whether a thread of this queue asks, inside its stage. It must not call `close`, which would wait for it."""

    def submit(self, record: int, slot: int, speculative: bool) -> bool:
        """False: the queue is closed. Raises IndexError, ValueError (record or slot is under way already)."""

    def promote(self, record: int) -> None: ...
    def cancel(self, record: int) -> bool: ...
    def poll(self) -> list[tuple[int, bool, tuple[int, str, int] | None]]:
        """(record, is it whole, fault as in ReadError) of each read that has ended, in that order."""

    def wait(self) -> list[tuple[int, bool, tuple[int, str, int] | None]]:
        """The same, at least one; Ctrl-C ends it. Raises ValueError when nothing is under way."""

    def drain(self) -> None: ...
    def lend(self) -> Any:
        """A capsule with this queue for `_cache.Books`, valid as long as this object."""

    def counters(self) -> tuple[int, int, int, int, int, float, int]:
        """The fields of `read_queue.ReadCounters`."""

    def close(self) -> None: ...
