"""Opens background reading over a store's experts, the way that suits the disk."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from smallthinker import host
from smallthinker.errors import StoreReadError
from smallthinker.expert_store.device.disk_profile import DiskProfile
from smallthinker.expert_store.device.pacing import random_device
from smallthinker.expert_store.device.storage_profile import StorageProfile
from smallthinker.expert_store.native_queue import STAGE_THREADS, NativeKind, NativeQueue, Verify
from smallthinker.expert_store.records import Records
from smallthinker.expert_store.store import Store
from smallthinker.host import pages

QueueKind = Literal["auto", "direct", "mmap", "buffered"]


def open_queue(
    kind: QueueKind,
    store: Store,
    slots: npt.NDArray[np.uint8],
    profile: DiskProfile | None = None,
    storage: StorageProfile | None = None,
    verify: Verify = "first",
) -> NativeQueue:
    """Open the reader of that kind; auto: the profile's, or buffered where the system refuses that one now.

    slots: uint8 [slots, record_bytes], aligned to 4096 bytes (`host.aligned_buffer`). profile: what `probe` found
    (`disk_profile.DiskProfile`); its sizes of chunks and depths hold for every kind. None takes the assumed one.
    storage: a slower device to emulate. verify: as `NativeQueue`. Raises StoreReadError, ValueError.
    """
    profile = profile or DiskProfile()
    depth = STAGE_THREADS if store.is_compressed else profile.depth

    def open_kind(kind: NativeKind) -> NativeQueue:
        return NativeQueue(
            store,
            slots,
            kind,
            chunk_bytes=profile.chunk_bytes,
            depth=depth if storage is None else min(depth, storage.queue_depth),
            speculative_depth=profile.speculative_depth,
            pace=None if storage is None else random_device(storage),
            verify=verify,
        )

    if kind != "auto":
        if kind not in get_args(NativeKind):
            raise ValueError(f"reader: expected one of {', '.join(get_args(QueueKind))}, found {kind!r}")
        return open_kind(kind)
    try:
        return open_kind(profile.kind)
    except StoreReadError:
        return open_kind("buffered")


def queue_bytes(store: Store, profile: DiskProfile) -> int:
    """As `reading_bytes`, of a store."""
    return reading_bytes(store.records(profile.chunk_bytes), profile)


def reading_bytes(records: Records, profile: DiskProfile) -> int:
    """The most memory that reading takes beside the slots: pages on their way, and what a stage works on."""
    if records.stage is None:
        return profile.depth * profile.chunk_bytes
    piece = host.whole_pages(records.max_piece_bytes) + host.DIRECT_ALIGN
    threads = max(STAGE_THREADS, profile.depth)
    staged = -(-threads * piece // pages.HUGE_PAGE_BYTES) * pages.HUGE_PAGE_BYTES
    return staged + threads * records.stage.nbytes + records.table_bytes
