"""What tests that read stores share: slots, every keeper of background reading's contract, a plain reader for one of
them, and experts as matrices."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pytest

from smallthinker import _kernels, host
from smallthinker._storage import Device
from smallthinker.errors import StoreReadError
from smallthinker.expert_store.format import Layout
from smallthinker.expert_store.native_queue import NativeQueue
from smallthinker.expert_store.read_queue import ReadQueue
from smallthinker.expert_store.readers import MmapReader
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.threaded_queue import ThreadedQueue

F32 = npt.NDArray[np.float32]
NATIVE = ["direct", "uring", "mmap", "buffered"]
KEEPERS = [*NATIVE, "threads", "paced"]


class PlainReader:
    """Reads records by ordinary reads."""

    name = "plain"

    def __init__(self, store: Store) -> None:
        self._store, self._fd = store, host.open_buffered(store.experts_file.path)
        self.closed = 0

    def read_into(self, index: int, buffer: memoryview) -> None:
        offset = self._store.record_offset(index)
        count = os.preadv(self._fd, [buffer], offset)
        if count < len(buffer):
            raise StoreReadError(f"{self._store.experts_file.path}: byte {offset}: expected more, found {count} bytes")

    def close(self) -> None:
        self.closed += 1
        os.close(self._fd)


def make_slots(store: Store, count: int) -> npt.NDArray[np.uint8]:
    nbytes = count * store.record_bytes
    return np.frombuffer(host.aligned_buffer(nbytes), np.uint8, nbytes).reshape(count, -1)


def open_keeper(
    kind: str,
    store: Store,
    slots: npt.NDArray[np.uint8],
    *,
    chunk_bytes: int = 4096,
    depth: int = 2,
    speculative: int = 1,
) -> ReadQueue:
    if kind == "threads":
        return ThreadedQueue(PlainReader(store), slots, store.num_experts, depth, speculative)
    pace = None
    if kind == "paced":
        kind, pace = "buffered", Device(bytes_per_sec=1e8, requests_per_sec=1e5, latency_sec=1e-4)
    try:
        return NativeQueue(
            store,
            slots,
            kind,  # type: ignore[arg-type]
            chunk_bytes=chunk_bytes,
            depth=depth,
            speculative_depth=speculative,
            pace=pace,
        )
    except StoreReadError as e:
        if kind in ("direct", "uring") and "use the" in str(e):
            pytest.skip(str(e))
        raise


@contextmanager
def opened_keeper(kind: str, store: Store, slots: npt.NDArray[np.uint8], **settings: int) -> Iterator[ReadQueue]:
    queue = open_keeper(kind, store, slots, **settings)
    try:
        yield queue
    finally:
        queue.close()


def unpack_expert(store: Store, layer: int, expert: int) -> tuple[F32, F32, F32]:
    """gate, up and down of a record, in the checkpoint's orientation."""
    buffer = memoryview(host.aligned_buffer(store.record_bytes))
    reader = MmapReader(store)
    reader.read_into(store.expert_index(layer, expert), buffer)
    reader.close()
    record = np.frombuffer(buffer, np.uint8)
    layout, ffn, hidden = store.record_layout, store.config.moe_ffn_hidden_size, store.config.hidden_size

    def part(kind: Layout, start: int) -> F32:
        packed = record[start : start + _kernels.packed_bytes(store.quant, kind, ffn, hidden)].copy()
        return _kernels.unpack(store.quant, kind, packed, ffn, hidden)

    return part("tiles", 0), part("rows", layout.up_offset), part("rows", layout.down_offset).T


def record_bytes(store: Store, record: int) -> bytes:
    with store.experts_file.path.open("rb") as file:
        file.seek(store.record_offset(record))
        return file.read(store.record_bytes)


def make_cold(store: Store) -> None:
    with store.experts_file.path.open("rb") as file:
        os.fsync(file.fileno())
        host.drop_file_cache(file.fileno(), 0, 0)


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
