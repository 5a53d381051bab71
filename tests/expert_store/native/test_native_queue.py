"""What a native queue takes and what it leaves: sizes and memory that must fit, nothing held or cached afterwards."""

from __future__ import annotations

import gc
import json
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reading import NATIVE, make_slots, needs_proc, opened_keeper, record_bytes, staged
from tiny_models import tiny_config

from smallthinker import _storage, host
from smallthinker.expert_store.native_queue import NativeQueue
from smallthinker.expert_store.read_queue import FinishedRead
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.synth import synth
from smallthinker.models.registry import to_config


def fitting(store: Store) -> dict[str, Any]:
    records = store.records(4096)
    return {
        "files": [(str(path), nbytes) for path, nbytes in records.files],
        "record_bytes": store.record_bytes,
        "pieces": records.pieces,
        "starts": records.starts,
        "slots": make_slots(store, 2),
        "kind": "buffered",
        "chunk_bytes": 4096,
        "depth": 2,
        "speculative_depth": 1,
    }


def test_slots_that_records_do_not_fit_are_refused(store: Store) -> None:
    good = make_slots(store, 3)
    memory = np.frombuffer(host.aligned_buffer(3 * store.record_bytes), np.uint8)
    read_only = good.view()
    read_only.flags.writeable = False
    for slots, message in (
        (good.view(np.int8), "expected a C-contiguous uint8 array of two dimensions"),
        (good.view(np.uint32), "expected a C-contiguous uint8 array of two dimensions"),
        (good.reshape(-1), "expected a C-contiguous uint8 array of two dimensions"),
        (good[::2], "expected a C-contiguous uint8 array of two dimensions"),
        (good[:, :4096], "expected a C-contiguous uint8 array of two dimensions"),
        (memory[: 2 * 4096].reshape(2, 4096), f"expected rows of {store.record_bytes} bytes, found 4096"),
        (read_only, "expected memory that can be written"),
        (memory[64 : 64 + store.record_bytes].reshape(1, -1), "aligned to 4096 bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            _storage.ReadQueue(**fitting(store) | {"slots": slots})
    with pytest.raises(TypeError):
        _storage.ReadQueue(**fitting(store) | {"slots": [[0]]})


@pytest.mark.parametrize(
    "wrong",
    [
        {"record_bytes": 0}, {"record_bytes": 12289}, {"record_bytes": 1 << 40}, {"record_bytes": -4096},
        {"chunk_bytes": 0}, {"chunk_bytes": 5000}, {"chunk_bytes": 1 << 40}, {"depth": 0}, {"depth": 65}, {"depth": -1},
        {"speculative_depth": 0}, {"speculative_depth": 3}, {"kind": "tape"}, {"kind": ""},
    ],
    ids=str,
)  # fmt: skip
def test_sizes_that_contradict_each_other_are_refused(store: Store, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
        _storage.ReadQueue(**fitting(store) | wrong)


def test_the_slots_live_until_the_queue_is_closed(store: Store) -> None:
    slots = make_slots(store, 4)
    gone = weakref.ref(slots)
    queue = NativeQueue(store, slots, "buffered", chunk_bytes=4096, depth=2)
    del slots
    for slot in range(4):
        queue.submit(slot, slot)
    assert gone() is not None
    queue.close()
    assert gone() is None


@needs_proc
def test_a_queue_that_could_not_be_opened_leaves_nothing_behind(store: Store) -> None:
    def held() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = held()
    for kind in NATIVE:
        for wrong in ({"files": [(str(store.experts_file.path), store.experts_file.file_bytes + 1)]}, {"depth": 0}):
            with pytest.raises((_storage.ReadError, ValueError)):
                _storage.ReadQueue(**fitting(store) | {"kind": kind} | wrong)
    assert held() == before


def test_a_queue_says_what_it_reads_with(store: Store) -> None:
    for kind in NATIVE:
        with opened_keeper(kind, store, make_slots(store, 1)) as queue:
            assert queue.name == kind


@pytest.mark.parametrize("kind", NATIVE)
def test_reading_leaves_no_page_in_the_cache_that_was_not_there(kind: str, tmp_path: Path) -> None:
    """Some of it is there, and with it the mark of a read-ahead, behind which an ordinary read goes on."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(to_config(tiny_config(hidden_size=256, moe_ffn_hidden_size=512))))
    with Store.open(synth(str(config), tmp_path / "store", "q8_0")) as store:
        fd = host.open_buffered(store.experts_file.path)
        try:
            host.drop_file_cache(fd, 0, 0)
            with store.experts_file.path.open("rb", buffering=0) as file:
                file.seek(store.record_offset(0))
                file.read(store.record_bytes)
            before = cached_records(fd, store)
            if not 0 < len(before) < store.num_experts:
                pytest.skip("this system can't tell what its page cache holds, or doesn't let go of it")
            slots = make_slots(store, 2)
            with opened_keeper(kind, store, slots, chunk_bytes=host.DIRECT_ALIGN * 16) as queue:
                for record in range(store.num_experts):
                    queue.submit(record, record % 2)
                    queue.wait()
            assert cached_records(fd, store) <= before
        finally:
            os.close(fd)


def cached_records(fd: int, store: Store) -> set[int]:
    """Of which records the page cache holds anything, as far as it can be told."""
    pages = range(0, store.record_bytes, host.DIRECT_ALIGN)
    return {
        record
        for record in range(store.num_experts)
        if any(host.is_cached(fd, store.record_offset(record) + at, 1) for at in pages)
    }


def test_the_stage_fills_the_slots_and_what_it_says_is_the_records_error(store: Store) -> None:
    def stage(stored: memoryview, record: memoryview) -> None:
        assert stored.readonly and len(stored) == len(record) == store.record_bytes
        if bytes(stored) == record_bytes(store, 2):
            raise ValueError("expected another record")
        if bytes(stored) == record_bytes(store, 3):
            raise RuntimeError("no such luck")
        record[:] = bytes(reversed(stored))

    slots = make_slots(store, 5)
    queue = NativeQueue(staged(store, stage), slots, "buffered", chunk_bytes=4096, depth=2)
    for record in range(1, 5):
        queue.submit(record, record)
    told: list[FinishedRead] = []
    while len(told) < 4:
        told += queue.wait()
    errors = {record: str(error) for record, error in told if error is not None}
    assert f"byte {store.record_offset(2)}: expected another record; check the disk" in errors.pop(2)
    assert f"byte {store.record_offset(3)}: cannot unpack: RuntimeError('no such luck'); check" in errors.pop(3)
    assert not errors
    assert all(slots[record].tobytes() == record_bytes(store, record)[::-1] for record in (1, 4))
    assert queue.counters().certain_reads == 2
    queue.close()


def test_who_is_in_the_stage_leaves_the_disk_to_others(store: Store) -> None:
    is_first, both = threading.Lock(), threading.Event()

    def stage(stored: memoryview, record: memoryview) -> None:
        if is_first.acquire(blocking=False):
            both.wait()  # for one that is read meanwhile
        else:
            both.set()

    queue = NativeQueue(staged(store, stage), make_slots(store, 2), "buffered", chunk_bytes=4096, depth=1)
    queue.submit(0, 0)
    queue.submit(1, 1)
    told = queue.wait()
    while len(told) < 2:
        told += queue.wait()
    assert sorted(told) == [(0, None), (1, None)]
    queue.close()


def test_the_collector_may_come_for_a_queue_on_one_of_its_own_threads(store: Store) -> None:
    entered, gone = threading.Event(), threading.Event()

    def stage(stored: memoryview, record: memoryview) -> None:
        entered.wait()
        gc.collect()

    slots = make_slots(store, 1)
    weakref.finalize(slots, gone.set)
    queue = NativeQueue(staged(store, stage), slots, "buffered", chunk_bytes=4096, depth=1)
    queue.itself = queue  # type: ignore[attr-defined]
    queue.submit(0, 0)
    gc.disable()
    try:
        del queue, slots
        entered.set()
        gone.wait()
    finally:
        gc.enable()


def moved(column: int, value: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(right: dict[str, Any]) -> dict[str, Any]:
        pieces = right["pieces"].copy()
        pieces[7, column] = value
        return {"pieces": pieces}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved(0, 1), "piece 7: file: expected 0 to 0, found 1"),
        (moved(0, -1), "piece 7: file: expected 0 to 0, found -1"),
        (moved(1, -4096), "piece 7: offset: expected 0 to"),
        (moved(1, 1 << 62), "piece 7: offset: expected 0 to"),
        (moved(1, 100), "piece 7: expected offset and bytes in steps of 4096"),
        (moved(2, 0), "piece 7: bytes: expected 1 to"),
        (moved(2, 1 << 62), "piece 7: bytes: expected 1 to"),
        (moved(2, 4096), "record 7: expected .* bytes, found 4096"),
        (moved(3, 4096), "piece 7: place in the slot: expected 0 to 0, found 4096"),
        (lambda right: {"starts": right["starts"][:-1]}, "starts: expected 0 to the number of pieces"),
        (lambda right: {"starts": right["starts"] + 1}, "starts: expected 0 to the number of pieces"),
        (lambda right: {"starts": [0, 0, len(right["pieces"])]}, "starts: expected at least one piece"),
        (lambda right: {"starts": [0]}, "starts: expected 0 to the number of pieces"),
        (lambda right: {"pieces": right["pieces"][:, :3]}, "pieces: expected four numbers each"),
        (lambda right: {"stage": lambda stored, record: None, "threads": 0}, "threads: expected 1 to 64, found 0"),
        (
            lambda right: {"stage": lambda stored, record: None, "starts": [0, len(right["pieces"])]},
            "pieces: expected 1 to 1, found 48",
        ),
    ],
)
def test_records_that_lie_nowhere_are_refused(
    store: Store, change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    right = fitting(store)
    with pytest.raises(ValueError, match=message):
        _storage.ReadQueue(**right | change(right))


def test_a_process_that_dies_in_the_stage_ends(run_python: Callable[..., Any], store: Store) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from reading import *
store = Store.open({str(store.path)!r})
queue = NativeQueue(staged(store), make_slots(store, 40), "buffered", chunk_bytes=4096, depth=2)
for i in range(40): queue.submit(i, i)
raise SystemExit(3)
"""
    assert run_python(script).returncode == 3
