"""The disk under a store: what it is, how to make a store cold on it, and what it gives right now."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from smallthinker.expert_store import host
from smallthinker.expert_store.disk_profile import DiskProfile
from smallthinker.expert_store.native_queue import NativeQueue
from smallthinker.expert_store.probe import read_through
from smallthinker.expert_store.store import Store

_READING_SEC = 0.4  # several slices of a throttle
_LEAST_BYTES = 64 << 20  # a smaller store is no measure of a disk


def make_cold(store: Path) -> None:
    """Take the store's files out of the page cache; needs no rights but to read them."""
    for path in store.glob("*.safetensors"):
        with path.open("rb") as file:
            host.drop_file_cache(file.fileno(), 0, 0)


def describe_disk(path: Path) -> dict[str, Any]:
    """The file system's kind, and the device's own name and whether it spins where the system tells; no paths."""
    found: dict[str, Any] = {"filesystem": _filesystem(path), "model": None, "rotational": None}
    with contextlib.suppress(OSError, ValueError):
        device = path.stat().st_dev
        block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve(strict=True)
        if (block / "partition").exists():
            block = block.parent
        with contextlib.suppress(OSError):
            found["model"] = (block / "device/model").read_text().strip()[:64] or None
        if "/virtio" in str(block):  # which says that it spins, whatever it is
            found["model"] = "virtual disk"
        else:
            found["rotational"] = (block / "queue/rotational").read_text().strip() == "1"
    return found


def _filesystem(path: Path) -> str | None:
    mounts = [p for p in psutil.disk_partitions(all=True) if path.resolve().is_relative_to(p.mountpoint)]
    return max(mounts, key=lambda p: len(p.mountpoint)).fstype[:32] or None if mounts else None


def random_bytes_per_sec(store: Store, profile: DiskProfile) -> float | None:
    """Of random whole records, read as the engine's queue reads them for 0.4 s; None for a store that is too small."""
    if store.is_compressed or store.num_experts * store.record_bytes < _LEAST_BYTES:
        return None
    count = profile.depth + 2
    nbytes = count * store.record_bytes
    slots = np.frombuffer(host.aligned_buffer(nbytes), np.uint8, nbytes).reshape(count, -1)
    slots.fill(0)  # a page's first touch is dear, and not the disk's doing
    records = np.random.default_rng().permutation(store.num_experts).tolist()
    queue = NativeQueue(store, slots, profile.kind, chunk_bytes=profile.chunk_bytes, depth=profile.depth)
    try:
        began = time.perf_counter()
        ended = read_through(queue, count, records, began + _READING_SEC)
        return ended * store.record_bytes / (time.perf_counter() - began)
    finally:
        queue.close()
