"""Opens background reading over a store's experts, the way that suits the disk."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from smallthinker.errors import StoreReadError
from smallthinker.expert_store.device.disk_profile import DiskProfile
from smallthinker.expert_store.device.pacing import random_device
from smallthinker.expert_store.device.storage_profile import StorageProfile
from smallthinker.expert_store.native_queue import NativeKind, NativeQueue
from smallthinker.expert_store.read_queue import ReadQueue
from smallthinker.expert_store.store import Store

QueueKind = Literal["auto", "direct", "uring", "mmap", "buffered"]
_WORKERS = 4  # that read and decompress
_NATIVE: Final[tuple[NativeKind, ...]] = ("direct", "uring", "mmap", "buffered")


def open_queue(
    kind: QueueKind,
    store: Store,
    slots: npt.NDArray[np.uint8],
    profile: DiskProfile | None = None,
    storage: StorageProfile | None = None,
) -> ReadQueue:
    """Open the reader of that kind; auto: the profile's, or buffered where the system refuses that one now.

    slots: uint8 [slots, record_bytes], aligned to 4096 bytes (`host.aligned_buffer`). profile: what `probe` found
    (`disk_profile.DiskProfile`); its sizes of chunks and depths hold for every kind. None takes the assumed one.
    storage: a slower device to emulate, by threads alone. Compressed records are decompressed by the threads that read
    them. Raises StoreReadError, ValueError.
    """
    if storage is not None and kind == "uring":
        raise StoreReadError(f"{store.path}: an emulated disk is read by threads; use another reader than uring")
    profile = profile or DiskProfile()
    if store.is_compressed:
        if kind == "uring":
            raise StoreReadError(f"{store.path}: compressed experts are read by threads; use another reader than uring")
        from smallthinker.expert_store.readers import open_reader  # and zstandard
        from smallthinker.expert_store.threaded_queue import ThreadedQueue

        reader = open_reader("mmap" if kind == "mmap" or kind == "buffered" else kind, store, storage)
        return ThreadedQueue(reader, slots, store.num_experts, _WORKERS)

    def open_kind(kind: NativeKind) -> ReadQueue:
        return NativeQueue(
            store,
            slots,
            kind,
            chunk_bytes=profile.chunk_bytes,
            depth=profile.depth,
            speculative_depth=profile.speculative_depth,
            pace=None if storage is None else random_device(storage),
        )

    if kind in _NATIVE:
        return open_kind(kind)
    if kind != "auto":
        raise ValueError(f"reader: expected one of auto, {', '.join(_NATIVE)}, found {kind!r}")
    try:
        return open_kind(profile.kind)
    except StoreReadError:
        return open_kind("buffered")


def queue_bytes(store: Store, profile: DiskProfile) -> int:
    """The most memory that reading takes beside the slots: pages on their way, and what is decompressed."""
    if not store.is_compressed:
        return profile.depth * profile.chunk_bytes
    from smallthinker.expert_store.readers import reading_bytes

    return _WORKERS * reading_bytes(store)
