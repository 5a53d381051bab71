"""What a native queue takes and what it leaves: sizes and memory that must fit, nothing held or cached afterwards."""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import tiny_config
from reading import NATIVE, make_slots, needs_proc, opened_keeper

from smallthinker import _storage, host
from smallthinker.expert_store.native_queue import NativeQueue
from smallthinker.expert_store.store import Store
from smallthinker.expert_store.synthetic.synth import synth


def fitting(store: Store) -> dict[str, Any]:
    return {
        "file_bytes": store.experts_file.file_bytes,
        "first_offset": store.record_offset(0),
        "record_bytes": store.record_bytes,
        "num_records": store.num_experts,
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
            _storage.ReadQueue(str(store.experts_file.path), **fitting(store) | {"slots": slots})
    with pytest.raises(TypeError):
        _storage.ReadQueue(str(store.experts_file.path), **fitting(store) | {"slots": [[0]]})


@pytest.mark.parametrize(
    "wrong",
    [
        {"record_bytes": 0}, {"record_bytes": 12289}, {"record_bytes": 1 << 40}, {"record_bytes": -4096},
        {"first_offset": -4096}, {"first_offset": 100}, {"first_offset": 1 << 62}, {"num_records": 0},
        {"num_records": 1 << 60}, {"num_records": 49}, {"file_bytes": 0}, {"file_bytes": -1}, {"chunk_bytes": 0},
        {"chunk_bytes": 5000}, {"chunk_bytes": 1 << 40}, {"depth": 0}, {"depth": 65}, {"depth": -1},
        {"speculative_depth": 0}, {"speculative_depth": 3}, {"kind": "tape"}, {"kind": ""},
    ],
    ids=str,
)  # fmt: skip
def test_sizes_that_contradict_each_other_are_refused(store: Store, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected|file_bytes: expected"):
        _storage.ReadQueue(str(store.experts_file.path), **fitting(store) | wrong)


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
        for wrong in ({"file_bytes": store.experts_file.file_bytes + 1}, {"depth": 0}):
            with pytest.raises((_storage.ReadError, ValueError)):
                _storage.ReadQueue(str(store.experts_file.path), **fitting(store) | {"kind": kind} | wrong)
    assert held() == before


def test_a_queue_says_what_it_reads_with(store: Store) -> None:
    for kind in NATIVE:
        with opened_keeper(kind, store, make_slots(store, 1)) as queue:
            assert queue.name == kind


@pytest.mark.parametrize("kind", NATIVE)
def test_reading_leaves_no_page_in_the_cache_that_was_not_there(kind: str, tmp_path: Path) -> None:
    """Some of it is there, and with it the mark of a read-ahead, behind which an ordinary read goes on."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny_config(hidden_size=256, moe_ffn_hidden_size=512).to_dict()))
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
