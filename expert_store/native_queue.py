"""The contract of background reading, kept by native threads that never take the GIL (expert_store/native/).

Owns the words of its errors. Knows nothing about which way of reading suits a disk: see probe.py.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from smallthinker import _storage
from smallthinker.errors import CancelledError, StoreReadError
from smallthinker.expert_store.format import COMPRESSION
from smallthinker.expert_store.read_queue import FinishedRead, ReadCounters
from smallthinker.expert_store.store import Store

NativeKind = Literal["direct", "mmap", "buffered"]
STAGE_THREADS = 4  # that read and decompress


class Stage(NamedTuple):
    """What becomes of a record between the disk and its slot.

    run: fills the slot from what lies in the file, or raises ValueError; called by several of the queue's own threads.
    offsets: where each record lies, and the end of the last one.
    """

    run: Callable[[memoryview, memoryview], None]
    offsets: Sequence[int]
    name: str


class Records(NamedTuple):
    """What is read: record i lies at first_offset + i * record_bytes, multiples of 4096, of a file of file_bytes; or
    where its stage says."""

    path: Path
    file_bytes: int
    first_offset: int
    record_bytes: int
    num_records: int
    stage: Stage | None = None


class NativeQueue:
    """A ReadQueue over a store's experts, or any other file's records. Chunks of a record are read in order; a
    speculative record gives way between two of them, and goes on later.

    direct: past the page cache (O_DIRECT). mmap: copied out of a map. buffered: ordinary reads; works everywhere. What
    the page cache holds is taken from there; nothing is left there that wasn't there before. Each chunk in flight has a
    thread. Compressed records are chunks as a whole: a thread reads one and decompresses it into its slot, while others
    read.
    """

    def __init__(
        self,
        source: Store | Records,
        slots: npt.NDArray[np.uint8],
        kind: NativeKind,
        *,
        chunk_bytes: int,
        depth: int,
        speculative_depth: int = 1,
        pace: _storage.Device | None = None,
    ) -> None:
        """slots: uint8 [slots, record_bytes], aligned to 4096 bytes; kept alive until the queue is closed or gone.

        chunk_bytes: of one read, a multiple of 4096. depth: chunks in flight, at most 64; speculative_depth: as long as
        only speculative ones wait. pace: a slower device, before which no chunk comes back. Raises StoreReadError where
        the file can't be opened, changed its size, or the system refuses this kind; ValueError.
        """
        records = source if isinstance(source, Records) else _records_of(source)
        self._path, stage = records.path, records.stage
        try:
            raw = _storage.ReadQueue(
                os.fsencode(records.path),  # a name need not be UTF-8
                file_bytes=records.file_bytes,
                first_offset=records.first_offset,
                record_bytes=records.record_bytes,
                num_records=records.num_records,
                slots=slots,
                kind=kind,
                chunk_bytes=chunk_bytes,
                depth=depth,
                speculative_depth=speculative_depth,
                pace=pace,
                stage=None if stage is None else stage.run,
                offsets=() if stage is None else stage.offsets,
                threads=max(STAGE_THREADS, depth),
            )
        except _storage.ReadError as e:
            raise self._error(*e.args) from None
        self._raw = raw
        self.name = raw.kind if stage is None else f"{raw.kind}+{stage.name}"
        # Threads end before the interpreter does, also where nobody closes.
        self._close = weakref.finalize(self, _close, raw)

    def submit(self, record: int, slot: int, speculative: bool = False) -> None:
        if not self._raw.submit(record, slot, speculative):
            raise StoreReadError(f"{self._path}: record {record}: the queue is closed")

    def promote(self, record: int) -> None:
        self._raw.promote(record)

    def cancel(self, record: int) -> bool:
        return self._raw.cancel(record)

    def poll(self) -> list[FinishedRead]:
        ended = self._raw.poll()
        return [self._finished(*end) for end in ended] if ended else []

    def wait(self) -> list[FinishedRead]:
        return [self._finished(*end) for end in self._raw.wait()]

    def drain(self) -> None:
        self._raw.drain()

    def counters(self) -> ReadCounters:
        return ReadCounters(*self._raw.counters())

    def close(self) -> None:
        self._close()

    def _finished(self, record: int, is_whole: bool, fault: tuple[int, str] | None) -> FinishedRead:
        if is_whole:
            return FinishedRead(record, None)
        if fault is None:
            return FinishedRead(record, CancelledError(f"record {record}: read cancelled"))
        return FinishedRead(record, self._error(*fault))

    def _error(self, offset: int, what: str) -> StoreReadError:
        if offset < 0:
            return StoreReadError(f"{self._path}: {what}")
        return StoreReadError(f"{self._path}: byte {offset}: {what}; check the disk, copy or convert the store again")


def _close(raw: _storage.ReadQueue) -> None:
    """The collector may come for a queue on one of its own threads, which can't wait for itself."""
    if raw.is_own_thread:
        threading.Thread(target=raw.close).start()
    else:
        raw.close()


def _records_of(store: Store) -> Records:
    stage = None
    if store.is_compressed:
        from smallthinker.expert_store.compression import Unpacker  # and zstandard

        offsets = [store.record_offset(index) for index in range(store.num_experts)]
        end = offsets[-1] + store.stored_bytes(store.num_experts - 1)
        stage = Stage(Unpacker(store.quant, store.record_bytes), (*offsets, end), COMPRESSION)
    file = store.experts_file
    return Records(file.path, file.file_bytes, store.record_offset(0), store.record_bytes, store.num_experts, stage)
