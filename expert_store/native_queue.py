"""The contract of background reading, kept by native threads that never take the GIL (expert_store/native/).

Owns the words of its errors. Knows nothing about which way of reading suits a disk: see probe.py.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from smallthinker import _storage
from smallthinker.errors import CancelledError, StoreReadError
from smallthinker.expert_store.read_queue import FinishedRead, ReadCounters
from smallthinker.expert_store.records import Records
from smallthinker.expert_store.store import Store

NativeKind = Literal["direct", "mmap", "buffered"]
Verify = Literal["first", "always", "never"]
STAGE_THREADS = 4  # that read, and decompress or repack


class NativeQueue:
    """A ReadQueue over a store's experts, or any other file's records. Chunks of a record are read in order; a
    speculative record gives way between two of them, and goes on later.

    direct: past the page cache (O_DIRECT). mmap: copied out of a map. buffered: ordinary reads; works everywhere. What
    the page cache holds is taken from there; nothing is left there that wasn't there before. Each chunk in flight has a
    thread. What goes through a stage is read in whole pieces: a thread reads one, and decompresses or repacks it into
    its slot while others read. What can't be read, is refused by the stage or isn't what its checksum says is read once
    more, past the page cache.
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
        verify: Verify = "first",
    ) -> None:
        """slots: uint8 [slots, record_bytes], aligned to 4096 bytes; kept alive until the queue is closed or gone.

        chunk_bytes: of one read, a multiple of 4096. depth: chunks in flight, at most 64; speculative_depth: as long as
        only speculative ones wait. pace: a slower device, before which no chunk comes back. verify: when bytes are
        compared with the checksums that the files have. Raises StoreReadError where the file can't be opened, changed
        its size, or the system refuses this kind; ValueError.
        """
        records = source if isinstance(source, Records) else source.records(chunk_bytes)
        self._paths, stage = [path for path, _ in records.files], records.stage
        self._name_at, sums = records.name_at, None if verify == "never" else records.sums
        try:
            raw = _storage.ReadQueue(
                [(os.fsencode(path), nbytes) for path, nbytes in records.files],  # a name need not be UTF-8
                record_bytes=records.record_bytes,
                pieces=records.pieces,
                starts=records.starts,
                slots=slots,
                kind=kind,
                chunk_bytes=chunk_bytes,
                depth=depth,
                speculative_depth=speculative_depth,
                pace=pace,
                stage=None if stage is None else stage.run,
                threads=max(STAGE_THREADS, depth),
                sums=None if sums is None else sums.expected,
                sum_starts=[0] if sums is None else sums.starts,
                sum_always=verify == "always",
            )
        except _storage.ReadError as e:
            raise self._error(*e.args) from None
        self._raw = raw
        self.name = raw.kind if stage is None else f"{raw.kind}+{stage.name}"
        # Threads end before the interpreter does, also where nobody closes.
        self._close = weakref.finalize(self, _close, raw)

    def submit(self, record: int, slot: int, speculative: bool = False) -> None:
        if not self._raw.submit(record, slot, speculative):
            raise StoreReadError(f"{self._paths[0]}: record {record}: the queue is closed")

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

    def lend(self) -> Any:
        """This queue for who asks without Python (`_cache.Books`) and keeps it alive."""
        return self._raw.lend()

    def error_of(self, record: int, fault: tuple[int, str, int] | None) -> StoreReadError | CancelledError:
        """Of a read that is over and isn't whole: what happened at which byte of which file, or that it was stopped."""
        return CancelledError(f"record {record}: read cancelled") if fault is None else self._error(*fault)

    def _finished(self, record: int, is_whole: bool, fault: tuple[int, str, int] | None) -> FinishedRead:
        return FinishedRead(record, None if is_whole else self.error_of(record, fault))

    def _error(self, offset: int, what: str, file: int) -> StoreReadError:
        path = self._paths[file]
        if offset < 0:
            return StoreReadError(f"{path}: {what}")
        name = "" if self._name_at is None else self._name_at(file, offset)
        return StoreReadError(f"{path}: byte {offset}: {name}{what}; check the disk, copy or convert it again")


def _close(raw: _storage.ReadQueue) -> None:
    """The collector may come for a queue on one of its own threads, which can't wait for itself."""
    if raw.is_own_thread:
        threading.Thread(target=raw.close).start()
    else:
        raw.close()
