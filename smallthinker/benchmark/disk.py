"""The disk under a store: what it is, how to make a store cold on it, and what it gives right now."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from smallthinker import host
from smallthinker.expert_store.device.cold_reads import bytes_per_sec
from smallthinker.expert_store.device.disk_facts import disk_facts
from smallthinker.expert_store.device.disk_profile import DiskProfile
from smallthinker.expert_store.store import Store
from smallthinker.files import open_regular
from smallthinker.host import pages

_READING_SEC = 0.4  # several slices of a throttle
_LEAST_BYTES = 64 << 20  # a smaller store is no measure of a disk


def make_cold(store: Path) -> None:
    """Take the store's files out of the page cache; needs no rights but to read them."""
    for path in store.glob("*.safetensors"):
        with open_regular(path) as file:
            host.drop_file_cache(file.fileno(), 0, 0)


def describe_disk(path: Path) -> dict[str, Any]:
    """File system, device and its own name, and whether it spins, where the system tells; no paths."""
    facts, model = disk_facts(path), None
    block = Path("/sys/class/block", facts.device or "none").resolve()
    for folder in (block, block.parent):  # a partition's disk is its parent
        with contextlib.suppress(OSError):
            model = model or (folder / "device/model").read_text().strip()[:64]
    return {
        "filesystem": facts.file_system,
        "device": facts.device,
        "model": model or None,
        "rotational": facts.is_rotational,
    }


def random_bytes_per_sec(store: Store, profile: DiskProfile) -> float | None:
    """Of random whole records, read as the engine's queue reads them for 0.4 s; None for a store that is too small."""
    if store.is_compressed or store.num_experts * store.record_bytes < _LEAST_BYTES:
        return None
    count = profile.depth + 2
    slots = np.frombuffer(pages.touched_buffer(count * store.record_bytes), np.uint8).reshape(count, -1)
    records = np.random.default_rng().permutation(store.num_experts).tolist()
    return bytes_per_sec(store, slots, profile.kind, profile.chunk_bytes, profile.depth, records, _READING_SEC)
