"""Timed reads of what no cache holds: what every measure of a disk is made of.

Owns which places of a file are cold, and the clock. Knows nothing about what is in the file or what a figure is for.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import time
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallthinker import host
from smallthinker.expert_store.native_queue import NativeKind, NativeQueue
from smallthinker.expert_store.read_queue import ReadQueue
from smallthinker.expert_store.records import Records
from smallthinker.expert_store.store import Store

_FOLIO_BYTES = 2 << 20  # the page cache may hold pages in groups of up to this, and drops a group only whole
_MOST_PLACES = 1 << 16  # drawn at once


class ColdFile:
    """A file whose cold places are read. Raises OSError where it can't be opened."""

    def __init__(self, path: Path) -> None:
        self._path, self._fd = path, host.open_buffered(path)

    def close(self) -> None:
        os.close(self._fd)

    def drop(self) -> None:
        """Take all of it out of the page cache, as far as the system lets go of it."""
        host.drop_file_cache(self._fd, 0, 0)

    def places(self, first_offset: int, nbytes: int, count: int) -> Generator[int, None, None]:
        """Random numbers of pieces of `nbytes` that the page cache doesn't hold; ends if there are none. Each as late
        again as can be, for caches that can't be asked."""
        while True:
            found = False
            for place in random.sample(range(count), min(count, _MOST_PLACES)):
                at = first_offset + place * nbytes
                if host.cached_pages(self._fd, at, nbytes) != 0:
                    first = max(0, at - _FOLIO_BYTES)
                    host.drop_file_cache(self._fd, first, at + nbytes + _FOLIO_BYTES - first)
                    if host.cached_pages(self._fd, at, nbytes):
                        continue
                found = True
                yield place
            if not found:
                return

    def latency_sec(self, kind: NativeKind, offsets: Iterable[int], most_sec: float) -> float | None:
        """Of one block on the idle device, without a queue's hand-over; the median. None where there is no offset.
        Raises OSError, also where direct reads can't be had."""
        block, seconds = memoryview(host.aligned_buffer(host.DIRECT_ALIGN)), []
        until = time.perf_counter() + most_sec
        fd = (host.open_direct if kind == "direct" else host.open_buffered)(self._path)
        if fd is None:
            raise OSError("no direct reads")
        try:
            for at in offsets:
                began = time.perf_counter()
                host.read_at(fd, block, at)
                seconds.append(time.perf_counter() - began)
                host.drop_file_cache(fd, at, host.DIRECT_ALIGN)
                if time.perf_counter() > until:
                    break
        finally:
            os.close(fd)
        return statistics.median(seconds) if seconds else None


def bytes_per_sec(
    source: Store | Records,
    slots: npt.NDArray[np.uint8],
    kind: NativeKind,
    chunk_bytes: int,
    depth: int,
    records: Sequence[int],
    most_sec: float = math.inf,
) -> float:
    """Of these records, or of as many as can be read in the time. Raises StoreReadError, as NativeQueue does too."""
    record_bytes: int = slots.shape[1]
    queue = NativeQueue(source, slots, kind, chunk_bytes=chunk_bytes, depth=depth, verify="never")
    try:
        began = time.perf_counter()
        done = read_through(queue, len(slots), records, began + most_sec)
        return done * record_bytes / (time.perf_counter() - began)
    finally:
        queue.close()


def read_through(queue: ReadQueue, slots: int, records: Sequence[int], until: float = math.inf) -> int:
    """Read distinct records in this order, as many at once as the queue has slots, up to the time `until` of
    time.perf_counter. Returns how many have been read. Raises what a read ended with."""
    free, slot_of, waiting = list(range(slots)), dict[int, int](), list(records[::-1])
    done = 0
    while (waiting or slot_of) and time.perf_counter() < until:
        while waiting and free:
            record = waiting.pop()
            slot_of[record] = free.pop()
            queue.submit(record, slot_of[record])
        for record, error in queue.wait():
            if error is not None:
                raise error
            free.append(slot_of.pop(record))
            done += 1
    return done
