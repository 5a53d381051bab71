from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queues import ShuffledQueue

from smallthinker.cache.expert_cache import ExpertCache, allocate_slots
from smallthinker.cache.policies import LRU
from smallthinker.errors import StoreReadError

RECORD_BYTES = 4096
EXPERTS = 8
LAYERS = 4


class Disk:
    """Fills a record with its number; records in `broken` fail."""

    def __init__(self) -> None:
        self.broken: set[int] = set()
        self.read: list[int] = []

    def __call__(self, record: int, memory: npt.NDArray[np.uint8]) -> None:
        if record in self.broken:
            raise StoreReadError(f"experts.safetensors: byte {record * RECORD_BYTES}: cannot read")
        memory[:] = record
        self.read.append(record)


class Cache(ExpertCache):
    """With its disk and its queue at hand."""

    def __init__(self, slots: int, seed: int = 0) -> None:
        memory = allocate_slots(slots, RECORD_BYTES)
        self.disk = Disk()
        self.queue = ShuffledQueue(memory, self.disk, seed)
        super().__init__(memory, self.queue, LRU([EXPERTS] * LAYERS, [2] * LAYERS), [EXPERTS] * LAYERS)

    def is_resident(self, layer: int, expert: int) -> bool:
        return bool(self.slot_table[layer * EXPERTS + expert] >= 0)


def use(cache: ExpertCache, layer: int, experts: list[int]) -> list[int]:
    """Go through a request and check that every slot holds the record that it should. Returns the order of landing."""
    order = []
    with cache.request(layer, experts) as request:
        for landed in request:
            assert landed
            for position, slot in landed:
                assert (cache.slots[slot] == layer * EXPERTS + experts[position]).all()
                order.append(experts[position])
    assert sorted(order) == sorted(experts)
    return order


def check_books(cache: Cache) -> None:
    """Every slot is in one place, and every resident record is what its slot holds."""
    resident = {record: slot for record, slot in enumerate(cache.slot_table.tolist()) if slot >= 0}
    books, reading = cache._books, dict(cache._books.reading)
    taken = [*resident.values(), *reading.values(), *books.free_slots, *books.released_slots]
    assert sorted(taken) == list(range(len(cache.slots)))
    for record, slot in resident.items():
        assert (cache.slots[slot] == record).all()
    assert set(cache.queue.under_way) <= set(reading)


@given(
    slots=st.integers(1, 12),
    seed=st.integers(0, 1 << 16),
    broken=st.sets(st.integers(0, LAYERS * EXPERTS - 1), max_size=2),
    actions=st.lists(
        st.tuples(
            st.sampled_from(["request", "expect", "resident", "resize", "preload", "abandon"]),
            st.integers(0, LAYERS - 1),
            st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=EXPERTS, unique=True),
        ),
        max_size=30,
    ),
)
@settings(max_examples=300)
def test_whatever_is_asked_guessed_and_given_up_in_any_timing_the_bytes_are_right(
    slots: int, seed: int, broken: set[int], actions: list[tuple[str, int, list[int]]]
) -> None:
    cache = Cache(slots, seed)
    cache.disk.broken = broken
    asked = 0
    for action, layer, experts in actions:
        whole = [layer * EXPERTS + expert not in broken for expert in experts]
        if action == "request":
            asked += len(experts)
            if all(whole):
                use(cache, layer, experts)
            else:
                with pytest.raises(StoreReadError, match="cannot read"):
                    use(cache, layer, experts)
        elif action == "expect":
            cache.prefetch(layer, experts, [random.Random(seed).random()] * len(experts))
        elif action == "resident":
            found = cache.resident_slots(layer, experts)
            if found is not None:
                asked += len(experts)
                assert [int(cache.slots[slot][9]) for slot in found] == [layer * EXPERTS + e for e in experts]
        elif action == "resize":
            cache.resize(len(experts) * 2)
        elif action == "preload":
            cache.preload([layer * EXPERTS + expert for expert in experts])
        else:
            asked += len(experts)
            with cache.request(layer, experts):
                pass
        check_books(cache)
    counters = cache.counters()
    assert counters.requests == asked
    assert min(counters.hits, counters.guessed, counters.late, counters.misses, counters.wasted_bytes) >= 0
    assert counters.preloaded_bytes >= 0
    cache.queue.drain()


def test_what_is_preloaded_is_found_and_counted_apart() -> None:
    cache = Cache(4)
    cache.preload([1, 2, 9])
    while cache.queue.under_way:
        cache.queue.finish(next(iter(cache.queue.under_way)))
    use(cache, 0, [1, 2])
    counters = cache.counters()
    assert (counters.hits, counters.misses, counters.guessed, counters.wasted_bytes) == (2, 0, 0, 0)
    assert counters.preloaded_bytes == counters.bytes_read == 3 * RECORD_BYTES


def test_preloading_stops_at_the_last_free_slot_and_gives_way_to_what_is_certain() -> None:
    cache = Cache(3)
    cache.preload(range(8))
    assert len(cache.queue.under_way) == 3
    use(cache, 1, [0, 1, 2])
    check_books(cache)
    assert ("cancel", 2) in cache.queue.log


def test_a_preload_that_a_request_meets_is_late_and_becomes_certain() -> None:
    cache = Cache(3)
    cache.preload([5])
    use(cache, 0, [5])
    assert cache.queue.log[:2] == [("guess", 5), ("promote", 5)]
    assert (cache.counters().late, cache.counters().misses, cache.counters().preloaded_bytes) == (1, 0, 0)


def test_a_smaller_limit_takes_slots_from_preloading() -> None:
    for seed in range(8):
        cache = Cache(6, seed)
        cache.preload(range(6))
        cache.resize(2)
        check_books(cache)
        assert cache.limit <= 2 + cache._books.withdrawn


def test_residents_are_given_before_anything_has_landed() -> None:
    cache = Cache(4)
    use(cache, 0, [1, 2])
    with cache.request(0, [5, 1, 2]) as request:
        batches = iter(request)
        assert sorted(position for position, _ in next(batches)) == [1, 2]
        assert 5 in cache.queue.under_way
        assert [position for batch in batches for position, _ in batch] == [0]


def test_reads_start_at_the_request_not_at_the_first_use() -> None:
    cache = Cache(4)
    with cache.request(0, [3]):
        assert cache.queue.log == [("read", 3)]


def test_a_miss_never_evicts_what_the_same_request_hits() -> None:
    cache = Cache(3)
    use(cache, 0, [0, 1, 2])  # 0 is the oldest
    assert use(cache, 0, [0, 5])[0] == 0
    assert cache.is_resident(0, 0)
    assert not cache.is_resident(0, 1)


def test_the_least_recently_used_leaves_first() -> None:
    cache = Cache(3)
    for expert in (0, 1, 2, 0, 3):
        use(cache, 0, [expert])
    assert [cache.is_resident(0, e) for e in range(4)] == [True, False, True, True]


def test_resident_slots_are_all_or_nothing_and_count_as_use() -> None:
    cache = Cache(3)
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


@pytest.mark.parametrize("seed", range(8))
def test_what_is_evicted_does_not_depend_on_the_order_of_landing(seed: int) -> None:
    cache = Cache(4, seed)
    use(cache, 0, [0, 1])
    use(cache, 0, [2, 3])
    use(cache, 0, [4])
    assert not cache.is_resident(0, 0)
    assert cache.is_resident(0, 1)


def test_a_failed_read_surfaces_at_the_caller_and_the_cache_goes_on() -> None:
    cache = Cache(2)
    cache.disk.broken = {3}
    with pytest.raises(StoreReadError, match="byte 12288"):
        use(cache, 0, [3, 4])
    cache.disk.broken = set()
    use(cache, 0, [3, 4])
    use(cache, 0, [5, 6])


def test_leaving_a_request_early_frees_its_slots() -> None:
    cache = Cache(2)
    with cache.request(0, [0, 1, 2, 3]):
        pass
    use(cache, 1, [0, 1])
    use(cache, 1, [2, 3])
    check_books(cache)


def test_an_error_in_the_caller_s_arithmetic_is_what_comes_out() -> None:
    cache = Cache(2)
    with pytest.raises(ZeroDivisionError), cache.request(0, [0, 1]) as request:
        for _ in request:
            raise ZeroDivisionError
    use(cache, 0, [2, 3])


def test_a_right_guess_is_no_second_read_and_is_not_called_a_hit() -> None:
    cache = Cache(6)
    cache.prefetch(1, [2, 3, 4], [0.9, 0.9, 0.9])
    cache.queue.finish(EXPERTS + 2)
    use(cache, 1, [2, 3, 7])
    counters = cache.counters()
    assert (counters.hits, counters.guessed + counters.late, counters.misses) == (0, 2, 1)
    assert counters.guessed >= 1
    assert counters.useful_bytes == 2 * RECORD_BYTES
    assert ("read", EXPERTS + 2) not in cache.queue.log
    assert ("cancel", EXPERTS + 4) in cache.queue.log or counters.wasted_bytes == RECORD_BYTES


def test_a_guess_that_came_late_becomes_certain() -> None:
    cache = Cache(6)
    cache.prefetch(1, [2], [0.9])
    with cache.request(1, [2]) as request:
        assert ("promote", EXPERTS + 2) in cache.queue.log or cache.counters().guessed
        assert [position for batch in request for position, _ in batch] == [0]


def test_a_later_guess_for_the_same_layer_withdraws_what_it_no_longer_names() -> None:
    cache = Cache(6)
    cache.prefetch(2, [1, 2, 3], [0.9, 0.9, 0.9])
    cache.queue.finish(2 * EXPERTS + 1)
    cache.prefetch(2, [2, 4], [0.9, 0.9])
    assert set(cache.queue.under_way) | {2 * EXPERTS + 3} == {2 * EXPERTS + 2, 2 * EXPERTS + 3, 2 * EXPERTS + 4}
    assert ("cancel", 2 * EXPERTS + 3) in cache.queue.log
    use(cache, 2, [3, 4])
    assert cache.counters().late + cache.counters().guessed == 1
    check_books(cache)


def test_a_guess_that_was_withdrawn_and_wanted_after_all_is_read_and_counted_once() -> None:
    found = set()
    for seed in range(40):  # some reads are whole before they can be stopped
        cache = Cache(6, seed)
        cache.prefetch(1, [2], [0.9])
        cache.queue._start(EXPERTS + 2)
        cache.prefetch(1, [3], [0.9])
        use(cache, 1, [2, 3])
        counters, reads = cache.counters(), cache.queue.counters()
        wasted = counters.wasted_bytes - reads.withdrawn_bytes
        found.add((counters.misses, counters.late + counters.guessed, wasted // RECORD_BYTES))
        assert counters.bytes_read == reads.certain_bytes + reads.speculative_bytes + reads.withdrawn_bytes
    assert (0, 2, 0) in found  # once whole, it was what the request had waited for
    assert found <= {(0, 2, 0), (1, 1, 0), (0, 1, 1)}  # stopped and read again; whole before it was asked for: a hit


@pytest.mark.parametrize(("score", "refused", "taken"), [(0.5, 0.4, 0.6), (0.9, 0.6, 0.7), (1.0, 0.66, 0.67)])
def test_a_guess_evicts_only_what_is_less_of_a_loss_where_it_is_wrong(
    score: float, refused: float, taken: float
) -> None:
    cache = Cache(2)
    use(cache, 0, [0, 1])
    cache._policy.score = lambda key: score  # type: ignore[method-assign]
    cache.prefetch(1, [0], [refused])
    assert not cache.queue.under_way
    cache.prefetch(1, [0], [taken])
    assert set(cache.queue.under_way) == {EXPERTS}


def test_certain_reads_leave_guesses_their_place_in_the_queue() -> None:
    cache = Cache(8)
    with cache.request(0, [0, 1, 2]) as request:
        cache.prefetch(1, [0, 1, 2], [0.9] * 3, max_under_way=2)
        assert set(cache.queue.under_way) == {0, 1, 2, EXPERTS, EXPERTS + 1}
        cache.prefetch(2, [0], [0.9], max_under_way=2)
        assert 2 * EXPERTS not in cache.queue.under_way
        assert sum(map(len, request)) == 3
    check_books(cache)


def test_what_is_expected_stays_until_its_layer_has_been_served() -> None:
    cache = Cache(3)
    use(cache, 1, [0])  # the oldest
    use(cache, 0, [0, 1])
    cache.prefetch(1, [0, 5], [0.9, 0.0])
    use(cache, 2, [0, 1])
    assert cache.is_resident(1, 0)
    assert cache.resident_slots(1, [0]) is not None
    use(cache, 2, [2, 3, 4])
    assert not cache.is_resident(1, 0)


def test_a_guess_never_takes_the_slots_of_the_layer_that_is_computed() -> None:
    cache = Cache(3)
    use(cache, 0, [0, 1])
    slots = cache.resident_slots(0, [0, 1])
    assert slots is not None
    cache.prefetch(1, [0, 1, 2], [0.9, 0.9, 0.9])
    assert len(cache.queue.under_way) == 1
    assert [int(cache.slots[slot][0]) for slot in slots] == [0, 1]


def test_certain_reads_take_the_slots_of_guesses() -> None:
    cache = Cache(3)
    cache.prefetch(1, [0, 1, 2], [0.9, 0.9, 0.9])
    use(cache, 0, [0, 1, 2])
    check_books(cache)


def test_a_cache_that_shrinks_and_grows_keeps_what_is_worth_most() -> None:
    cache = Cache(4)
    use(cache, 0, [0, 1, 2, 3])
    cache.resize(2)
    assert [cache.is_resident(0, e) for e in range(4)] == [False, False, True, True]
    assert cache.limit == 2
    use(cache, 0, [4, 5, 6])
    check_books(cache)
    cache.resize(100)
    assert cache.limit == 4
    use(cache, 0, [0, 1, 2, 3])
    assert cache.resident_slots(0, [0, 1, 2, 3]) is not None


def test_which_slots_are_taken_and_which_are_released_is_told() -> None:
    cache = Cache(6)
    assert cache.taken == 0 and not cache.took_free.is_set()
    use(cache, 0, [0, 1, 2, 3])
    assert cache.taken == 4 and cache.took_free.is_set()
    cache.resize(4)  # takes the two that were never taken
    assert cache.taken == 4
    assert [cache.is_released(slot) for slot in range(6)] == [False] * 4 + [True] * 2
    cache.resize(3)
    assert cache.taken == 3 and sum(cache.is_released(slot) for slot in range(6)) == 3


def test_bytes_read_again_after_an_eviction_are_counted() -> None:
    cache = Cache(2)
    for expert in (0, 1, 2, 0):
        use(cache, 0, [expert])
    assert cache.counters().reread_bytes == RECORD_BYTES


def test_an_interrupt_anywhere_leaves_a_cache_that_works() -> None:
    """KeyboardInterrupt can strike between any two lines: here at each line of the cache in turn."""
    strike, finished = 0, False
    while not finished:
        strike += 1
        cache = Cache(5, strike)
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
            cache.prefetch(1, [0, 4], [0.9, 0.9])
            with cache.request(1, [3, 1, 4]) as request:
                cache.prefetch(2, [0, 4], [0.9, 0.9])
                for _ in request:
                    pass
            cache.resident_slots(2, [4])
            cache.resize(3)
            finished = True
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        slots = cache.resident_slots(0, [0, 1])
        assert slots is None or [int(cache.slots[slot][0]) for slot in slots] == [0, 1]
        cache.resize(5)
        use(cache, 0, [0, 1, 2])
        use(cache, 0, [5, 6, 7, 0, 1])
        check_books(cache)
    assert strike > 10
