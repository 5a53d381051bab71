"""An emulated disk against the kernel's own throttle. Needs root, block cgroups and a disk that outruns both."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack

import numpy as np
import pytest

from smallthinker import host
from smallthinker.errors import ProfileError
from smallthinker.expert_store.device.cold_reads import read_through
from smallthinker.expert_store.device.disk_profile import DiskProfile
from smallthinker.expert_store.device.pacing import random_device
from smallthinker.expert_store.device.probe import emulated_profile, probe
from smallthinker.expert_store.device.real_throttle import real_throttle
from smallthinker.expert_store.device.storage_profile import StorageProfile, load_profile
from smallthinker.expert_store.native_queue import NativeQueue
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.synth import synth

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(synth("4b", tmp_path_factory.mktemp("emulated") / "4b", "q4_0"))


def speed(store: Store, storage: StorageProfile, profile: DiskProfile, *, real: bool) -> float:
    """Bytes per second of cold random records, for about two seconds."""
    count = profile.depth + 2
    slots = np.frombuffer(host.aligned_buffer(count * store.record_bytes), np.uint8).reshape(count, -1)
    fd = host.open_buffered(store.experts_file.path)
    host.drop_file_cache(fd, 0, 0)
    records = random.Random(0).sample(range(store.num_experts), store.num_experts)
    records = records[: int(2 * profile.bandwidth_bytes_per_sec / store.record_bytes)]
    with ExitStack() as stack:
        if real:
            try:
                stack.enter_context(real_throttle(storage, store.path))
            except ProfileError as e:
                pytest.skip(str(e))
        pace = None if real else random_device(storage)
        queue = NativeQueue(store, slots, "direct", chunk_bytes=profile.chunk_bytes, depth=profile.depth, pace=pace)
        stack.callback(queue.close)
        began = time.perf_counter()
        read_through(queue, count, records)
        return len(records) * store.record_bytes / (time.perf_counter() - began)


@pytest.mark.parametrize("name", ["emmc", "sd-card"])
def test_an_emulated_disk_is_as_fast_as_the_kernels_throttle_makes_one(store: Store, name: str) -> None:
    storage = load_profile(name)
    disk = probe(store)
    profile = emulated_profile(storage, store.record_bytes, disk)
    if disk.bandwidth_bytes_per_sec < 1.5 * storage.random_bytes_per_sec:
        pytest.skip(f"this disk gives {disk.bandwidth_bytes_per_sec / 1e6:.0f} MB/s: too little to emulate {name}")
    emulated, throttled = speed(store, storage, profile, real=False), speed(store, storage, profile, real=True)
    print(f"{name}: emulated {emulated / 1e6:.1f} MB/s, throttled {throttled / 1e6:.1f} MB/s")
    assert emulated == pytest.approx(throttled, rel=0.15)
