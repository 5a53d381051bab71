from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallthinker.cache.expert_cache import ExpertCache
from smallthinker.cache.policies import LRU
from smallthinker.errors import StoreReadError
from smallthinker.expert_store.io_thread import IoThread

RECORD_BYTES = 4096
EXPERTS = 8


class MarkingReader:
    """Fills a record with its number. `gate` holds reads back until set; records in `broken` fail."""

    name = "marking"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.broken: set[int] = set()
        self.read: list[int] = []
        self.bytes_read = 0

    def read_into(self, index: int, buffer: memoryview) -> None:
        self.gate.wait()
        if index in self.broken:
            raise StoreReadError(f"experts.safetensors: byte {index * RECORD_BYTES}: cannot read")
        np.frombuffer(buffer, np.uint8)[:] = index
        self.read.append(index)
        self.bytes_read += len(buffer)

    def close(self) -> None:
        pass


@pytest.fixture
def reader() -> MarkingReader:
    return MarkingReader()


@pytest.fixture
def io(reader: MarkingReader) -> Iterator[IoThread]:
    with IoThread(reader, workers=2) as thread:
        yield thread


def use(cache: ExpertCache, layer: int, experts: list[int]) -> list[int]:
    """Go through a request and check that every slot holds the record that it should. Returns the order of landing."""
    order = []
    with cache.request(layer, experts) as ticket:
        for landed in ticket:
            assert landed
            for position, slot in landed:
                assert (cache.slots[slot] == layer * EXPERTS + experts[position]).all()
                order.append(experts[position])
    assert sorted(order) == sorted(experts)
    return order


def cache_of(io: IoThread, slots: int) -> ExpertCache:
    return ExpertCache(io, slots, RECORD_BYTES, LRU(4, EXPERTS, 2), EXPERTS)


@given(
    slots=st.integers(1, 6),
    requests=st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=EXPERTS, unique=True)),
        max_size=12,
    ),
)
@settings(max_examples=60)
def test_any_requests_with_any_number_of_slots_get_the_right_bytes(
    slots: int, requests: list[tuple[int, list[int]]]
) -> None:
    reader = MarkingReader()
    with IoThread(reader, workers=2) as io:
        cache = cache_of(io, slots)
        for layer, experts in requests:
            use(cache, layer, experts)
        counters = cache.counters()
    assert counters.hits + counters.misses == sum(len(experts) for _, experts in requests)
    assert counters.misses == len(reader.read)
    assert counters.bytes_read == reader.bytes_read
    assert counters.evictions == max(0, counters.misses - slots)


def test_residents_are_given_before_anything_has_landed(reader: MarkingReader, io: IoThread) -> None:
    cache = cache_of(io, 4)
    use(cache, 0, [1, 2])
    reader.gate.clear()
    with cache.request(0, [5, 1, 2]) as ticket:
        batches = iter(ticket)
        assert sorted(position for position, _ in next(batches)) == [1, 2]
        reader.gate.set()
        assert [position for position, _ in next(batches)] == [0]


def test_reads_start_at_the_request_not_at_the_first_use(reader: MarkingReader, io: IoThread) -> None:
    cache = cache_of(io, 4)
    landed = threading.Event()
    original = reader.read_into

    def read_into(index: int, buffer: memoryview) -> None:
        original(index, buffer)
        landed.set()

    reader.read_into = read_into  # type: ignore[method-assign]
    with cache.request(0, [3]):
        assert landed.wait(10)


def test_a_miss_never_evicts_what_the_same_request_hits(io: IoThread) -> None:
    cache = cache_of(io, 3)
    use(cache, 0, [0, 1, 2])  # 0 is the oldest
    assert use(cache, 0, [0, 5])[0] == 0
    assert cache.is_resident(0, 0)
    assert not cache.is_resident(0, 1)


def test_the_least_recently_used_leaves_first(io: IoThread) -> None:
    cache = cache_of(io, 3)
    for expert in (0, 1, 2, 0, 3):
        use(cache, 0, [expert])
    assert [cache.is_resident(0, e) for e in range(4)] == [True, False, True, True]


def test_resident_slots_are_all_or_nothing_and_count_as_use(io: IoThread) -> None:
    cache = ExpertCache(io, 3, RECORD_BYTES, LRU(4, EXPERTS, 2), EXPERTS)
    use(cache, 0, [0, 1, 2])
    before = cache.counters()
    assert cache.resident_slots(0, [0, 3]) is None
    assert cache.counters() == before
    slots = cache.resident_slots(0, [1, 0])
    assert slots is not None
    assert [int(cache.slots[slot][0]) for slot in slots] == [1, 0]
    assert (cache.counters() - before).hits == 2
    use(cache, 0, [4, 5])  # evicts 2, which was used longest ago, then 1, which was used before 0
    assert [cache.is_resident(0, expert) for expert in (0, 1, 2)] == [True, False, False]


def test_what_is_evicted_does_not_depend_on_the_order_of_landing(reader: MarkingReader, io: IoThread) -> None:
    cache = cache_of(io, 4)
    first_landed = threading.Event()
    original = reader.read_into

    def reversed_read(index: int, buffer: memoryview) -> None:
        if index == 0:
            first_landed.wait(10)
        original(index, buffer)
        if index == 1:
            first_landed.set()

    reader.read_into = reversed_read  # type: ignore[method-assign]
    assert use(cache, 0, [0, 1]) == [1, 0]
    use(cache, 0, [2, 3])
    use(cache, 0, [4])
    assert not cache.is_resident(0, 0)
    assert cache.is_resident(0, 1)


def test_a_failed_read_surfaces_at_the_caller_and_the_cache_goes_on(reader: MarkingReader, io: IoThread) -> None:
    cache = cache_of(io, 2)
    reader.broken = {3}
    with pytest.raises(StoreReadError, match="byte 12288"):
        use(cache, 0, [3, 4])
    reader.broken = set()
    use(cache, 0, [3, 4])
    use(cache, 0, [5, 6])


def test_leaving_a_request_early_frees_its_slots(reader: MarkingReader, io: IoThread) -> None:
    cache = cache_of(io, 2)
    reader.gate.clear()
    threading.Timer(0.0, reader.gate.set).start()
    with cache.request(0, [0, 1, 2, 3]):
        pass
    use(cache, 1, [0, 1])
    use(cache, 1, [2, 3])


def test_an_interrupt_anywhere_leaves_a_cache_that_works(io: IoThread) -> None:
    """KeyboardInterrupt can strike between any two lines: here at each line of the cache in turn."""
    strike, finished = 0, False
    while not finished:
        strike += 1
        cache = cache_of(io, 3)
        use(cache, 0, [0, 1, 2])
        lines = 0

        def trace(frame: Any, event: str, _: Any, strike: int = strike) -> Any:
            nonlocal lines
            if not frame.f_code.co_filename.endswith("cache/expert_cache.py"):
                return None
            lines += event == "line"
            if lines == strike:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            cache.resident_slots(0, [2, 1])
            with cache.request(1, [3, 1, 4]) as ticket:
                for _ in ticket:
                    pass
            finished = True
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        slots = cache.resident_slots(0, [0, 1])
        assert slots is None or [int(cache.slots[slot][0]) for slot in slots] == [0, 1]
        use(cache, 0, [0, 1, 2])
        use(cache, 0, [5, 6, 7, 0, 1])
    assert strike > 50


def test_an_error_in_the_caller_s_arithmetic_is_what_comes_out(reader: MarkingReader, io: IoThread) -> None:
    cache = cache_of(io, 2)
    with pytest.raises(ZeroDivisionError), cache.request(0, [0, 1]) as ticket:
        for _ in ticket:
            raise ZeroDivisionError
    use(cache, 0, [2, 3])
