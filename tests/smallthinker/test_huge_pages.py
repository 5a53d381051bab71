from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from smallthinker import huge_pages
from smallthinker.cache.expert_cache import allocate_slots
from smallthinker.host import pages
from smallthinker.huge_pages import HugePages

PAGE = pages.HUGE_PAGE_BYTES


@dataclass
class FakeExperts:
    """Only what HugePages asks of a cache."""

    slots: npt.NDArray[np.uint8]
    taken: int = 0
    released: set[int] = field(default_factory=set)
    took_free: threading.Event = field(default_factory=threading.Event)

    def is_released(self, slot: int) -> bool:
        return slot in self.released


class System:
    """In place of the system: takes down what it is asked for. `wait` until a thread has asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.populated: list[int] = []
        self.refuses = False
        self._asked = threading.Condition()
        monkeypatch.setattr(pages, "populate", self._populate)

    def _populate(self, start: int, nbytes: int) -> bool:
        assert nbytes == PAGE
        with self._asked:
            self.populated.append(start)
            self._asked.notify_all()
        return not self.refuses

    def wait(self, until: Callable[[], bool]) -> None:
        with self._asked:
            assert self._asked.wait_for(until, 60)


@contextmanager
def at_work(experts: FakeExperts, dense: npt.NDArray[np.uint8]) -> Iterator[HugePages]:
    ahead = HugePages(experts)  # type: ignore[arg-type]
    ahead.go_ahead(dense)
    try:
        yield ahead
    finally:
        ahead.close()
        ahead.close()


def addresses(array: npt.NDArray[np.uint8]) -> list[int]:
    return list(pages.huge_pages_in(array.ctypes.data, array.nbytes))


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    monkeypatch.setattr(huge_pages, "AHEAD_BYTES", 4 * PAGE)
    return System(monkeypatch)


def test_the_thread_goes_through_dense_weights_then_some_way_ahead_of_the_slots_taken(system: System) -> None:
    dense, experts = allocate_slots(1, 4 * PAGE), FakeExperts(allocate_slots(32, PAGE))
    with at_work(experts, dense):
        in_order = addresses(dense) + addresses(experts.slots)
        near = len(addresses(dense)) + 5
        system.wait(lambda: len(system.populated) >= near)
        assert system.populated[:near] == in_order[:near]
        experts.taken = 40  # as after a limit that has grown
        experts.took_free.set()
        system.wait(lambda: len(system.populated) == len(in_order))
    assert system.populated == in_order


def test_nothing_beyond_that_way_is_asked_for(system: System) -> None:
    dense, experts = allocate_slots(1, PAGE // 2), FakeExperts(allocate_slots(32, PAGE))
    with at_work(experts, dense):
        system.wait(lambda: len(system.populated) >= 5)
        first = len(system.populated)
        for experts.taken in range(1, 4):
            experts.took_free.set()
            system.wait(lambda: len(system.populated) >= first + experts.taken - 1)
    assert len(system.populated) <= 5 + 3


def test_memory_that_the_system_was_lent_is_left_to_it(system: System) -> None:
    experts = FakeExperts(allocate_slots(6, PAGE), taken=6, released={2})
    with at_work(experts, allocate_slots(1, PAGE // 2)):
        last = addresses(experts.slots)[-1]
        system.wait(lambda: last in system.populated)
    first, end = (experts.slots[slot].ctypes.data for slot in (2, 3))
    outside = [page for page in addresses(experts.slots) if page + PAGE <= first or page >= end]
    assert system.populated == outside != addresses(experts.slots)


def test_a_system_that_refuses_is_asked_once(system: System) -> None:
    system.refuses = True
    dense, experts = allocate_slots(1, 4 * PAGE), FakeExperts(allocate_slots(8, PAGE), taken=8)
    with at_work(experts, dense):
        system.wait(lambda: len(system.populated) == 1)
    assert system.populated == addresses(dense)[:1]


def test_it_can_be_closed_before_it_has_begun() -> None:
    HugePages(FakeExperts(allocate_slots(1, PAGE))).close()  # type: ignore[arg-type]
