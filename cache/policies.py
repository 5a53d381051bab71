"""Which expert to evict. A policy is a pure class over keys: no memory, no files, no clock of its own.

So that the same class serves the running cache and the replay of a trace.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol


class EvictionPolicy(Protocol):
    """Told what is used, inserted and removed; asked for a victim among what it holds."""

    def insert(self, key: int) -> None: ...

    def touch(self, key: int) -> None: ...

    def remove(self, key: int) -> None: ...

    def clear(self) -> None: ...

    def victim(self, is_pinned: Callable[[int], bool]) -> int | None:
        """The key to evict, never a pinned one; None when every key is pinned. Does not remove it."""


class LRU:
    """Evicts what was used longest ago."""

    def __init__(self) -> None:
        self._order: OrderedDict[int, None] = OrderedDict()

    def insert(self, key: int) -> None:
        self._order[key] = None
        self._order.move_to_end(key)

    def touch(self, key: int) -> None:
        self._order.move_to_end(key)

    def remove(self, key: int) -> None:
        del self._order[key]

    def clear(self) -> None:
        self._order.clear()

    def victim(self, is_pinned: Callable[[int], bool]) -> int | None:
        return next((key for key in self._order if not is_pinned(key)), None)
