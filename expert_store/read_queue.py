"""What the expert cache asks of background reading: records into slots, certain reads before speculative ones.

Owns the contract alone. `open_queue` (queues.py) chooses what keeps it on this machine. Knows nothing about routing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from smallthinker.errors import CancelledError, StoreReadError


class FinishedRead(NamedTuple):
    """A read that is over: the slot holds the whole record where `error` is None, else anything. Nothing writes into
    the slot any more."""

    record: int
    error: StoreReadError | CancelledError | None


@dataclass(frozen=True)
class ReadCounters:
    """Since the queue was opened. A read counts when `poll` or `wait` tells of it, as what it was by then, if the
    record is whole; `withdrawn_bytes` were read for nothing, by reads that were cancelled or drained half-way.
    `busy_sec`: time with at least one read under way at the disk. `repeated_reads`: of a chunk that couldn't be read,
    or of bytes that weren't what their checksum says."""

    certain_reads: int = 0
    certain_bytes: int = 0
    speculative_reads: int = 0
    speculative_bytes: int = 0
    withdrawn_bytes: int = 0
    busy_sec: float = 0.0
    repeated_reads: int = 0


class ReadQueue(Protocol):
    """Reads records in the background into the slots that it was opened with, uint8 [slots, record_bytes].

    A record, and a slot, is under way at most once: from `submit` until `poll` or `wait` has told its end, or `cancel`
    or `drain` has taken it back. Certain reads start in the order of submission, before every speculative one
    that has not started; a speculative read under way yields to certain ones as soon as its reader can. One caller at
    a time.
    """

    @property
    def name(self) -> str:
        """The reader behind it: direct, uring, mmap, ..."""

    def submit(self, record: int, slot: int, speculative: bool = False) -> None:
        """Start reading record `record` (layer * experts per layer + expert) into `slot`, which nobody else may touch
        until the read is over. Never blocks. Raises IndexError, ValueError when the record or the slot is under way
        already, StoreReadError after `close`."""

    def promote(self, record: int) -> None:
        """Make a speculative read certain, behind the certain ones that wait. Nothing where it is certain or over."""

    def cancel(self, record: int) -> bool:
        """Withdraw a read. True: it had not started and is gone, with no word from `poll` or `wait`. False: it is
        under way, and will be finished soon, with CancelledError if it stopped half-way; or it is over."""

    def poll(self) -> list[FinishedRead]:
        """What has finished since the last `poll` or `wait`, without waiting, in that order; each read exactly once."""

    def wait(self) -> list[FinishedRead]:
        """The same, but at least one: sleeps until a read finishes. Ctrl-C ends it, and nothing is lost. Raises
        ValueError where none is under way."""

    def drain(self) -> None:
        """Withdraw everything and wait for what can't be withdrawn; afterwards nothing writes into a slot, and `poll`
        has nothing to tell."""

    def counters(self) -> ReadCounters:
        """May be called after `close`."""

    def close(self) -> None:
        """Drain, stop, free threads and files. Again, nothing happens."""
