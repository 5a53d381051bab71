"""Records that aren't what their checksums say: found where they are read, on the queue's own threads."""

from __future__ import annotations

import re
import zlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading import NATIVE, make_slots, record_bytes

from smallthinker import _storage
from smallthinker.errors import CancelledError, StoreReadError
from smallthinker.expert_store.native_queue import NativeKind, NativeQueue, Verify
from smallthinker.expert_store.records import Records, Stage, Sums
from smallthinker.expert_store.store import Store


@given(
    data=st.binary(max_size=400),
    times=st.sampled_from([1, 1, 7]),
    start=st.integers(0, 9),
    crc=st.integers(0, 2**32 - 1),
)
def test_the_checksum_is_zlibs_on_every_processor(data: bytes, times: int, start: int, crc: int) -> None:
    bytes_ = memoryview(data * times)[start:]
    assert _storage.crc32(bytes_, crc) == _storage.crc32(bytes_, crc, by_tables=True) == zlib.crc32(bytes_, crc)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 16]))


def read(queue: NativeQueue, *records: int) -> dict[int, StoreReadError | CancelledError | None]:
    for slot, record in enumerate(records):
        queue.submit(record, slot)
    told = dict[int, StoreReadError | CancelledError | None]()
    while len(told) < len(records):
        told |= dict(queue.wait())
    return told


def opened(source: Store | Records, slots: np.ndarray, kind: str = "buffered", verify: Verify = "first") -> NativeQueue:
    native: NativeKind = kind  # type: ignore[assignment]
    return NativeQueue(source, slots, native, chunk_bytes=4096, depth=2, verify=verify)


@pytest.mark.parametrize("kind", NATIVE)
def test_a_flipped_bit_is_an_error_that_names_the_expert_and_both_checksums(kind: str, tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    path, offset, crc = store.weight_files[0], store.record_offset(4), store.experts_file.tensors[4].crc32
    flip(path, offset + store.record_bytes - 1)
    found = zlib.crc32(record_bytes(store, 4))
    slots = make_slots(store, 3)
    queue = opened(store, slots, kind)
    told = read(queue, 3, 4, 5)
    assert (told[3], told[5]) == (None, None)
    assert str(told[4]) == (
        f"{path}: byte {offset}: layers.1.experts.1: checksum of what begins here: expected {crc:08x}, "
        f"found {found:08x}, also when read again; check the disk, copy or convert it again"
    )
    assert queue.counters().repeated_reads == 1
    queue.close()
    unchecked = opened(store, slots, kind, "never")
    assert read(unchecked, 4) == {4: None}
    assert slots[0].tobytes() == record_bytes(store, 4)


@pytest.mark.parametrize("verify", ["first", "always"])
def test_a_record_is_looked_at_once_or_each_time(verify: Verify, tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    queue = opened(store, make_slots(store, 1), verify=verify)
    assert read(queue, 2) == {2: None}
    flip(store.weight_files[0], store.record_offset(2))
    assert (read(queue, 2)[2] is None) == (verify == "first")
    assert read(queue, 1) == {1: None}


@pytest.mark.parametrize("staged", [False, True])
def test_a_sum_is_of_several_pieces_and_of_what_the_file_has_of_them(staged: bool, tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    path, size, data = store.weight_files[0], store.experts_file.file_bytes, store.weight_files[0].read_bytes()
    if staged:  # bytes that begin and end anywhere, and become something else
        places, bounds = [(4100, 5001), (9000, 900)], [0, 1, 2]
    else:
        places, bounds = [(8192, 4096), (4096, 4096), (12288, 4096)], [0, 2, 3]
    assert staged or store.record_bytes == 3 * 4096
    stored = [data[at : at + nbytes] for at, nbytes in places]
    joined = [b"".join(stored[a:b]) for a, b in pairwise(bounds)]
    sums = Sums(np.array(bounds), np.array([zlib.crc32(each) for each in joined], np.uint32))
    pieces = np.array([[0, at, nbytes, 4096 * i] for i, (at, nbytes) in enumerate(places)], np.int64)

    def fill(stored: memoryview, slot: memoryview) -> None:
        slot[:] = bytes(len(slot))

    stage = Stage(fill, "fill") if staged else None
    starts = np.array([0, 1, 2] if staged else [0, 3])
    records = Records(((path, size),), store.record_bytes, pieces, starts, stage, sums=sums)
    queue = opened(records, make_slots(store, 2), verify="always")
    all_records = range(records.num_records)
    assert set(read(queue, *all_records).values()) == {None}
    place, nbytes = places[-1]
    flip(path, place + nbytes - 1)
    told = read(queue, *all_records)
    assert re.search(
        rf"byte {place}: checksum.*expected {sums.expected[-1]:08x}, found.*again", str(told.pop(all_records[-1]))
    )
    assert set(told.values()) <= {None}


@pytest.mark.parametrize("starts", [[0, 2, 1, 6], [0, 1, 4, 6], [1, 6], [0, 5], [0, 0, 6]])
def test_sums_that_fit_no_records_are_refused(starts: list[int], tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    sums = Sums(np.array(starts, np.int64), np.zeros(len(starts) - 1, np.uint32))
    with pytest.raises(ValueError, match="sum_starts: expected"):
        opened(replace(store.plain_records(), sums=sums), make_slots(store, 1))
