"""An emulated disk: never faster than its profile, as fast as predicted, and otherwise a queue like any other."""

from __future__ import annotations

import heapq
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading import make_slots, record_bytes

from smallthinker._storage import Device, Pace
from smallthinker.errors import StoreReadError
from smallthinker.expert_store.convert import convert
from smallthinker.expert_store.device.cold_reads import read_through
from smallthinker.expert_store.device.disk_profile import DiskProfile
from smallthinker.expert_store.device.pacing import SequentialThrottle, random_device
from smallthinker.expert_store.device.probe import CHUNKS, DEPTHS, emulated_profile
from smallthinker.expert_store.device.storage_profile import BUNDLED, StorageProfile, load_profile
from smallthinker.expert_store.native_queue import NativeKind, NativeQueue
from smallthinker.expert_store.queues import open_queue
from smallthinker.expert_store.store import Store

CARD = load_profile("sd-card")


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@given(
    rate=st.floats(1e6, 1e10),
    requests=st.floats(1, 1e6),
    latency=st.floats(0, 0.1),
    reads=st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 1 << 23)), min_size=1, max_size=60),
)
def test_in_no_span_of_time_more_comes_back_than_the_device_gives(
    rate: float, requests: float, latency: float, reads: list[tuple[float, int]]
) -> None:
    """However reads are asked for, in bursts or after pauses: nothing is saved up."""
    pace = Pace(Device(bytes_per_sec=rate, requests_per_sec=requests, latency_sec=latency))
    now, ends = 0.0, []
    for pause, nbytes in reads:
        now += pause
        due = pace.due(now, nbytes)
        assert due >= now + latency + nbytes / rate - 1e-9
        ends.append((due, nbytes))
    assert ends == sorted(ends, key=lambda end: end[0])
    for first in range(len(ends)):
        for last in range(first, len(ends)):
            span = ends[last][0] - ends[first][0]
            assert sum(nbytes for _, nbytes in ends[first + 1 : last + 1]) <= rate * span * (1 + 1e-6) + 1
            assert last - first <= requests * span * (1 + 1e-6) + 1


@given(
    name=st.sampled_from(BUNDLED),
    nbytes=st.sampled_from([4096, 65536, 1 << 20]),
    depth=st.sampled_from([1, 2, 4, 8]),
)
def test_a_busy_emulated_device_gives_what_its_profile_predicts(name: str, nbytes: int, depth: int) -> None:
    profile, reads = load_profile(name), 2000
    pace = Pace(random_device(profile))
    places = [0.0] * min(depth, profile.queue_depth)
    for _ in range(reads):
        heapq.heapreplace(places, pace.due(places[0], nbytes))
    assert reads * nbytes / max(places) == pytest.approx(profile.bytes_per_sec(nbytes, depth), rel=0.02)


def test_a_long_read_takes_its_bytes_at_the_sequential_rate_and_the_latency_once() -> None:
    clock = Clock()
    throttle = SequentialThrottle(CARD, clock, clock.sleep)
    for _ in range(10):
        throttle.arrived(9_000_000)
    assert clock.now - 100 == pytest.approx(1 + CARD.latency_sec)
    clock.now += 60  # the real disk is the slower one
    before = clock.now
    throttle.arrived(9_000_000)
    assert clock.now == before


@pytest.mark.parametrize("kind", ["direct", "mmap", "buffered"])
def test_records_are_whole_and_not_early_by_any_reader_from_the_page_cache_as_well(
    store: Store, kind: NativeKind
) -> None:
    storage = replace(CARD, latency_sec=1e-3, random_bytes_per_sec=20e6, queue_depth=2)
    slots = make_slots(store, 6)
    profile = DiskProfile(kind=kind, chunk_bytes=4096, depth=2)
    store.experts_file.path.read_bytes()
    try:
        queue = open_queue(kind, store, slots, profile, storage)
    except StoreReadError as e:
        pytest.skip(str(e))
    records = [5, 17, 3, 40, 41, 8]
    began = time.perf_counter()
    for slot, record in enumerate(records):
        queue.submit(record, slot)
    told = []
    while len(told) < len(records):
        told += queue.wait()
    seconds = time.perf_counter() - began
    queue.close()
    assert sorted(record for record, error in told if error is None) == sorted(records)
    for slot, record in enumerate(records):
        assert slots[slot].tobytes() == record_bytes(store, record)
    nbytes = len(records) * store.record_bytes
    assert seconds >= nbytes / storage.bytes_per_sec(4096, 2) * 0.99


def test_closing_does_not_wait_for_the_emulated_device(store: Store) -> None:
    """The device would take the better part of a day."""
    slow = Device(bytes_per_sec=1e6, requests_per_sec=1e-4, latency_sec=1e4)
    queue = NativeQueue(store, make_slots(store, 2), "buffered", chunk_bytes=4096, depth=2, pace=slow)
    queue.submit(0, 0)
    queue.submit(1, 1, speculative=True)
    queue.close()
    assert queue.counters().certain_reads == 0


def test_a_compressed_store_is_paced_by_what_lies_in_the_file(tmp_path: Path) -> None:
    from tiny_models import make_store, tiny_config

    make_store(tiny_config(hidden_size=64, moe_ffn_hidden_size=96), tmp_path, "f16")
    store = Store.open(convert(tmp_path / "checkpoint", tmp_path / "small", "f16", compress=1))
    assert store.is_compressed
    slots = make_slots(store, 4)
    plain, paced = (
        open_queue("mmap", store, slots, None, storage) for storage in (None, replace(CARD, random_iops=400))
    )
    seconds, found = [], []
    for queue in (plain, paced):
        began = time.perf_counter()
        read_through(queue, 4, [0, 1, 2, 3])
        seconds.append(time.perf_counter() - began)
        queue.close()
        found.append(sorted(slot.tobytes() for slot in slots))
    assert found[0] == found[1]
    assert seconds[1] >= 3 / 400


@pytest.mark.parametrize("wrong", [{"bytes_per_sec": 0.0}, {"requests_per_sec": float("nan")}, {"latency_sec": -1.0}])
def test_a_device_without_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected rates above 0"):
        Device(**{"bytes_per_sec": 1e6, "requests_per_sec": 1.0, "latency_sec": 0.0} | wrong)


@pytest.mark.parametrize("name", BUNDLED)
def test_an_emulated_disk_is_asked_for_chunks_that_suit_it(store: Store, name: str) -> None:
    storage = load_profile(name)
    profile = emulated_profile(storage, store.record_bytes, DiskProfile())
    assert profile.depth in DEPTHS and profile.depth <= storage.queue_depth
    best = max(
        storage.bytes_per_sec(min(c, store.record_bytes), d) for c in (*CHUNKS, store.record_bytes) for d in DEPTHS
    )
    assert 0.95 * best <= profile.bandwidth_bytes_per_sec <= best
    assert profile.measured and profile.latency_sec == storage.latency_sec


@pytest.mark.parametrize(("of_one_chunk", "depth"), [(0.5, 2), (0.74, 2), (0.76, 1), (0.94, 1)])
def test_guesses_share_a_disk_with_certain_reads_only_where_they_find_room(
    store: Store, of_one_chunk: float, depth: int
) -> None:
    """Latency alone keeps this disk from giving one chunk at a time all of its bandwidth."""
    chunk, bandwidth = min(CHUNKS[0], store.record_bytes), 1e9
    latency = chunk / bandwidth * (1 / of_one_chunk - 1)
    disk = replace(
        CARD,
        sequential_bytes_per_sec=bandwidth,
        random_bytes_per_sec=bandwidth,
        random_iops=1e8,
        latency_sec=latency,
        queue_depth=2,
    )
    profile = emulated_profile(disk, store.record_bytes, DiskProfile())
    assert (profile.depth, profile.speculative_depth) == (2, depth)


def test_a_slower_real_disk_caps_the_bandwidth_that_is_counted_on(store: Store) -> None:
    real = DiskProfile(bandwidth_bytes_per_sec=1e6, measured=True)
    assert emulated_profile(CARD, store.record_bytes, real).bandwidth_bytes_per_sec == 1e6
    assumed = replace(real, measured=False)
    assert emulated_profile(CARD, store.record_bytes, assumed).bandwidth_bytes_per_sec > 1e6


def test_dense_weights_come_at_the_sequential_rate_and_are_the_same(
    records_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import smallthinker.expert_store.folder_store as store_module

    clock = Clock()

    def throttle(storage: StorageProfile) -> Any:
        return SequentialThrottle(storage, clock, clock.sleep)

    monkeypatch.setattr(store_module, "SequentialThrottle", throttle)
    memory: list[Any] = []
    with Store.open(records_store) as plain, Store.open(records_store) as paced:
        plain.load_dense(reserved=memory.append)
        assert clock.now == 100
        paced.load_dense(storage=CARD, reserved=memory.append)
        assert clock.now - 100 == pytest.approx(CARD.sequential_sec(paced.dense_bytes))
        assert len(memory) == 2 and memory[0].tobytes() == memory[1].tobytes()
