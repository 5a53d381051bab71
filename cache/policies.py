"""Which expert to evict. A policy is a pure class over keys: no memory, no files, no clock of its own.

So that the same class serves the running cache and the replay of a trace.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt


class EvictionPolicy(Protocol):
    def insert(self, key: int) -> None: ...
    def remove(self, key: int) -> None: ...
    def use(self, layer: int, keys: Sequence[int], weight: float = 1.0) -> None: ...
    def step(self, tokens: int = 1) -> None: ...
    def victim(self, pinned: Collection[int], layer: int) -> int | None: ...
    def score(self, key: int) -> float: ...
    def clear(self) -> None: ...
    def state(self) -> npt.NDArray[np.float32]: ...


class LRU:
    """Evicts what was used longest ago."""

    def __init__(self) -> None:
        self._order: OrderedDict[int, None] = OrderedDict()

    def insert(self, key: int) -> None:
        self._order[key] = None
        self._order.move_to_end(key)

    def use(self, layer: int, keys: Sequence[int], weight: float = 1.0) -> None:
        for key in keys:
            if key in self._order:
                self._order.move_to_end(key)

    def step(self, tokens: int = 1) -> None:
        pass

    def remove(self, key: int) -> None:
        del self._order[key]

    def clear(self) -> None:
        self._order.clear()

    def score(self, key: int) -> float:
        return 0.1

    def state(self) -> npt.NDArray[np.float32]:
        return np.empty(0, np.float32)

    def victim(self, pinned: Collection[int], layer: int) -> int | None:
        return next((key for key in self._order if key not in pinned), None)
