"""Watches whether the machine runs short of memory, and says how many experts may stay.

Owns the decision and the thread that looks, off the way of a token. Knows nothing about what the slots hold: the engine
reads `target` before each step and resizes its cache.

Pressure stall information would be a more direct sign, but the machine's also tells of processes that stall at a limit
of their own, which is no reason to give anything back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from smallthinker import host

PERIOD_SEC = 0.5
MIB = 1 << 20
# Kept free of a memory that is shared with others: a part of it, within these bounds.
_RESERVE_SHARE, _LEAST_RESERVE, _MOST_RESERVE = 0.03, 32 * MIB, 512 * MIB
_GROWTH_STEPS = 8  # the way back from nothing to everything takes at least so many periods


class Level(NamedTuple):
    """One memory that this process lives in: the machine's, or an enclosing cgroup's. Bytes.

    others_bytes: what neither this process nor its budget accounts for; 0 where there is nobody else.
    """

    total_bytes: int
    available_bytes: int
    others_bytes: int


def reserve_bytes(total_bytes: int) -> int:
    """What is to stay free of a memory of this size that others use too."""
    return min(max(int(total_bytes * _RESERVE_SHARE), _LEAST_RESERVE), _MOST_RESERVE)


def room_bytes(levels: Sequence[Level]) -> int | None:
    """What may still be taken; below 0: what should be given back. None where nothing is shared with anybody: a cgroup
    that is as large as the budget is full by plan."""
    level = _tightest(levels)
    return None if level is None else level.available_bytes - reserve_bytes(level.total_bytes)


def margin_bytes(levels: Sequence[Level]) -> int:
    """What is to stay free beyond the reserve when growing: as much again of the memory that `room_bytes` is about."""
    level = _tightest(levels)
    return 0 if level is None else reserve_bytes(level.total_bytes)


def _tightest(levels: Sequence[Level]) -> Level | None:
    shared = [level for level in levels if level.others_bytes > 0]
    return min(shared, key=lambda level: level.available_bytes - reserve_bytes(level.total_bytes), default=None)


def next_target(
    target: int, *, held: int, fewest: int, most: int, room: int | None, margin: int, record_bytes: int
) -> int:
    """How many slots may be used from now on; between `fewest` and `most`, which is the target without any pressure.

    held: slots whose memory is taken. Shrinks at once by what is missing; grows back in steps, no further than the room
    that there is less `margin` bytes, so that the target doesn't swing.
    """
    if room is None:
        return most
    if room < 0:
        return max(min(target, held - -(room // record_bytes)), fewest)
    step = min(max(room - margin, 0) // record_bytes, max(most // _GROWTH_STEPS, 1))
    return min(max(target, held + step if step else 0), most)


def levels(own_bytes: int, overhead_bytes: int) -> list[Level]:
    """The machine's memory and that of each enclosing cgroup with a limit.

    own_bytes: held by this process. overhead_bytes: what the budget grants beside that.
    """
    machine = host.machine_memory()
    found = [Level(machine.total_bytes, machine.available_bytes, max(machine.used_bytes - own_bytes, 0))]
    for group in host.cgroup_memory():
        found.append(
            Level(group.total_bytes, group.available_bytes, max(group.used_bytes - own_bytes - overhead_bytes, 0))
        )
    return found


class MemoryWatch:
    """`target` is the number of slots that may be used now. A daemon thread keeps it up to date until `close`."""

    def __init__(
        self, held: Callable[[], int], *, fewest: int, most: int, record_bytes: int, overhead_bytes: int
    ) -> None:
        """held: slots whose memory is taken, asked from the thread. fewest, most: bounds of the target."""
        self.target = most
        self._held, self._fewest, self._most, self._record_bytes = held, fewest, most, record_bytes
        self._overhead_bytes = overhead_bytes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking. May be called twice."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_SEC):
            found = levels(host.held_bytes(), self._overhead_bytes)
            self.target = next_target(
                self.target,
                held=self._held(),
                fewest=self._fewest,
                most=self._most,
                room=room_bytes(found),
                margin=margin_bytes(found),
                record_bytes=self._record_bytes,
            )
