from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from smallthinker.cache.expert_cache import CacheCounters
from smallthinker.expert_store import host
from smallthinker.huge_pages import QUIET_STEPS, HugePages


@dataclass
class FakeExperts:
    """Only what HugePages asks of a cache: a count of misses, and memory."""

    memory: npt.NDArray[np.uint8]
    misses: int = 0
    is_full: bool = False
    limit: int = 1

    def counters(self) -> CacheCounters:
        return CacheCounters(misses=self.misses)

    def filled(self) -> list[npt.NDArray[np.uint8]]:
        return [self.memory]


def test_dense_weights_move_after_some_steps_and_experts_once_nothing_is_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved: list[int] = []
    monkeypatch.setattr(host, "collapse", lambda start, nbytes, stop: moved.append(start))
    dense, experts = np.zeros(8, np.uint8), FakeExperts(np.zeros(8, np.uint8))
    pages = HugePages(dense, experts)  # type: ignore[arg-type]
    for _ in range(3 * QUIET_STEPS):
        experts.misses += 1
        pages.step()
    for _ in range(2 * QUIET_STEPS - 1):
        pages.step()
    assert experts.memory.ctypes.data not in moved
    for _ in range(5 * QUIET_STEPS):
        pages.step()
    pages.close()
    pages.close()
    assert moved == [dense.ctypes.data, experts.memory.ctypes.data]


def test_the_slots_of_a_full_cache_move_once_though_misses_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    monkeypatch.setattr(host, "collapse", lambda start, nbytes, stop: moved.append(start))
    dense, experts = np.zeros(8, np.uint8), FakeExperts(np.zeros(8, np.uint8), is_full=True)
    pages = HugePages(dense, experts)  # type: ignore[arg-type]
    for _ in range(9 * QUIET_STEPS):
        experts.misses += 1
        pages.step()
    pages.close()
    assert moved == [dense.ctypes.data, experts.memory.ctypes.data]
