"""Whose turn it is, so that nobody waits for all that another has asked for.

Clients take turns, a client's requests take turns among themselves, and the answers to one request come in order. Pure
policy over what waits: knows nothing about models, threads or HTTP.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


@dataclass(frozen=True)
class Place:
    """Of one answer in the line. batch: the request that it belongs to. arrived: of `Turns.arrive`."""

    client: Hashable
    batch: Hashable
    arrived: int


class Waiting(Protocol):
    @property
    def place(self) -> Place: ...


Entry = TypeVar("Entry", bound=Waiting)


class Turns:
    """Next is who was served longest ago; who comes is as good as just served, so that coming often gains nothing."""

    def __init__(self) -> None:
        self._clock = itertools.count(1)
        self._served: dict[Hashable, int] = {}  # of those of whom something waits

    def arrive(self, client: Hashable, batch: Hashable) -> Place:
        return Place(client, batch, next(self._clock))

    def next(self, waiting: Sequence[Entry]) -> Entry:
        """Of those in line, one at least, in the order in which they came."""

        def since(entry: Entry) -> tuple[int, int]:
            place = entry.place
            return tuple(self._served.get(key, place.arrived) for key in _keys(place))  # type: ignore[return-value]

        chosen = min(waiting, key=since)
        now = next(self._clock)
        self._served |= dict.fromkeys(_keys(chosen.place), now)
        left = {key for entry in waiting if entry is not chosen for key in _keys(entry.place)}
        self._served = {key: at for key, at in self._served.items() if key in left}
        return chosen


def crowded_out(waiting: Sequence[Entry], client: Hashable) -> Entry | None:
    """Of a line that is full: who has to go for one more of this client's, the last of whoever holds the most places.
    None where this client would then hold as many."""
    held = Counter(entry.place.client for entry in waiting)
    largest, count = held.most_common(1)[0]
    if count <= held[client] + 1:
        return None
    return next(entry for entry in reversed(waiting) if entry.place.client == largest)


def _keys(place: Place) -> tuple[Hashable, Hashable]:
    return (place.client,), (place.client, place.batch)
