"""What tests that read stores share: slots, every keeper of background reading's contract, and experts as matrices."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from smallthinker import _kernels, host
from smallthinker._storage import Device
from smallthinker.errors import StoreReadError
from smallthinker.expert_store.compression import Decompressor
from smallthinker.expert_store.native_queue import NativeQueue, Verify
from smallthinker.expert_store.read_queue import ReadQueue
from smallthinker.expert_store.records import Records, Stage
from smallthinker.expert_store.store import Store

F32 = npt.NDArray[np.float32]
NATIVE = ["direct", "mmap", "buffered"]
KEEPERS = [*NATIVE, "staged", "paced"]  # staged: each record goes through a stage, as a compressed one does


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
    verify: Verify = "first",
) -> ReadQueue:
    pace = None
    source: Store | Records = store
    if kind == "staged":
        kind, source = "buffered", staged(store)
    if kind == "paced":
        kind, pace = "buffered", Device(bytes_per_sec=1e8, requests_per_sec=1e5, latency_sec=1e-4)
    try:
        return NativeQueue(
            source,
            slots,
            kind,  # type: ignore[arg-type]
            chunk_bytes=chunk_bytes,
            depth=depth,
            speculative_depth=speculative,
            pace=pace,
            verify=verify,
        )
    except StoreReadError as e:
        if kind == "direct" and "use the" in str(e):
            pytest.skip(str(e))
        raise


def staged(store: Store, run: Callable[[memoryview, memoryview], None] | None = None) -> Records:
    """A store's records by way of a stage, which copies them."""

    def copy(stored: memoryview, record: memoryview) -> None:
        record[:] = stored

    first, each, file = store.record_offset(0), store.record_bytes, store.experts_file
    offsets = [first + each * record for record in range(store.num_experts + 1)]
    return Records.whole(file.path, file.file_bytes, each, offsets, Stage(run or copy, "copy"))


@contextmanager
def opened_keeper(kind: str, store: Store, slots: npt.NDArray[np.uint8], **settings: Any) -> Iterator[ReadQueue]:
    queue = open_keeper(kind, store, slots, **settings)
    try:
        yield queue
    finally:
        queue.close()


def unpack_expert(store: Store, layer: int, expert: int) -> tuple[F32, F32, F32]:
    """gate, up and down of a record, in the checkpoint's orientation."""
    record = np.frombuffer(unpacked_bytes(store, store.expert_index(layer, expert)), np.uint8)
    layout = store.record_layouts[layer]
    assert layout is not None
    gate, up, down = (
        _kernels.unpack(part.quant, part.layout, record[part.offset :][: part.nbytes].copy(), part.rows, part.cols)
        for part in layout.sections[:3]
    )
    return gate, up, down.T if layout.sections[2].is_transposed else down


def record_bytes(store: Store, record: int) -> bytes:
    """As they lie in the file."""
    with store.experts_file.path.open("rb") as file:
        file.seek(store.record_offset(record))
        return file.read(store.stored_bytes(record))


def unpacked_bytes(store: Store, record: int) -> bytes:
    stored, unpacked = record_bytes(store, record), bytearray(store.record_bytes)
    if len(stored) == store.record_bytes:
        return stored
    Decompressor(store.quant, store.record_bytes).decompress(memoryview(stored), memoryview(unpacked))
    return bytes(unpacked)


def read_all(store: Store, kind: str = "buffered") -> list[bytes]:
    """Every record, by the read queue."""
    slots = make_slots(store, store.num_experts)
    with opened_keeper(kind, store, slots, depth=4) as queue:
        for record in range(store.num_experts):
            queue.submit(record, record)
        told = 0
        while told < store.num_experts:
            for _, error in queue.wait():
                if error is not None:
                    raise error
                told += 1
    return [slot.tobytes() for slot in slots]


def make_cold(store: Store) -> None:
    with store.experts_file.path.open("rb") as file:
        os.fsync(file.fileno())
        host.drop_file_cache(file.fileno(), 0, 0)


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
