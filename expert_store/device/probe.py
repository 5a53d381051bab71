"""Measures a disk with a store's own records: which way of reading, what size of request and how many at once suit it.

Owns the measuring and the choice. Knows nothing about models. It reads random cold records, as the engine will, and
leaves no page of them in the page cache.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from smallthinker.errors import StoreReadError
from smallthinker.expert_store.device.cold_reads import ColdFile, bytes_per_sec
from smallthinker.expert_store.device.disk_profile import DiskProfile, load_profile, save_profile
from smallthinker.expert_store.device.storage_profile import StorageProfile
from smallthinker.expert_store.native_queue import NativeKind
from smallthinker.expert_store.store import Store
from smallthinker.host import pages

DEPTHS = (1, 2, 4, 8)
CHUNKS = (256 << 10, 512 << 10, 1 << 20)  # and whole records
_MOST_ROUNDS = 5
_TRIAL_SEC = 0.025  # one measurement, on a disk that is fast enough for several records in that time
_LATENCY_READS, _LATENCY_SHARE = 16, 0.1
_GRID_SHARE = 0.75  # of the time; the rest is for the other kinds, at the best point
_CLOSE = 0.95  # as good as the best: a busy disk doesn't give the same figure twice
# Of the best bandwidth, what so few chunks must give that more of them take it from each other: on such a disk a guess
# that is read beside a certain record delays that by its own length.
_NO_ROOM = 0.75
# How much faster another kind must be than direct reads. What goes through the page cache takes half a core
# for each 1.3 GB/s, where direct reads take a tenth, and arithmetic wants both cores.
_HANDICAPS: dict[NativeKind, float] = {"buffered": 1.3, "mmap": 1.3}
_LEAST_BYTES = 64 << 20  # a smaller store is no measure of a disk, and needs none


def profile_of(store: Store) -> DiskProfile:
    """What was kept beside the store, or a probe, kept for the next time. Raises StoreReadError as `probe`."""
    profile = load_profile(store)
    if profile is None:
        profile = probe(store)
        if profile.measured:
            save_profile(store, profile)
    return profile


def probe(store: Store | str | Path, seconds: float = 2.0, least_bytes: int = _LEAST_BYTES) -> DiskProfile:
    """Measure for at most about `seconds`; a little more on a disk of 20 MB/s, never 3 with the default.

    Assumed figures (`measured` is False) for stores below `least_bytes` and where the page cache keeps every record.
    Raises StoreReadError where the file can't be read at all.
    """
    if not isinstance(store, Store):
        with Store.open(store) as opened:
            return probe(opened, seconds, least_bytes)
    if store.is_compressed or store.num_experts * store.record_bytes < least_bytes:
        return DiskProfile()
    with _Disk(store, time.perf_counter() + seconds) as disk:
        latency = disk.latency_sec(seconds * _LATENCY_SHARE)
        base: NativeKind = "direct"
        if disk.bandwidth(_Trial(base, min(CHUNKS[0], store.record_bytes), 1)) is None:
            base = "buffered"  # no direct reads here, or no cold records at all
        grid = [_Trial(base, chunk, depth) for chunk in _chunks(store.record_bytes) for depth in DEPTHS]
        disk.measure(grid, seconds * (1 - _GRID_SHARE))
        best = choose(grid)
        if latency is None or best is None:
            return DiskProfile()
        others: tuple[NativeKind, ...] = ("buffered", "mmap") if base == "direct" else ("mmap",)
        finals = [_Trial(kind, best.chunk_bytes, best.depth) for kind in (base, *others)]
        disk.measure(finals, 0)
    winner = choose_kind(finals) or best
    return DiskProfile(
        kind=winner.kind,
        chunk_bytes=best.chunk_bytes,
        depth=best.depth,
        speculative_depth=_speculative_depth(best, grid),
        bandwidth_bytes_per_sec=winner.bytes_per_sec,
        latency_sec=latency,
        measured=True,
    )


def emulated_profile(storage: StorageProfile, record_bytes: int, real: DiskProfile) -> DiskProfile:
    """How to read records of this size from that device, by the rules of `probe`, from the device's figures alone.

    real: what was found out about the disk that does the reading: where that is the slower one, its bandwidth counts.
    """
    grid = [
        _Trial("direct", chunk, depth, [storage.bytes_per_sec(chunk, depth)])
        for chunk in _chunks(record_bytes)
        for depth in DEPTHS
        if depth <= storage.queue_depth
    ]
    best = choose(grid)
    assert best is not None
    return DiskProfile(
        kind=real.kind,
        chunk_bytes=best.chunk_bytes,
        depth=best.depth,
        speculative_depth=_speculative_depth(best, grid),
        bandwidth_bytes_per_sec=min(best.bytes_per_sec, real.bandwidth_bytes_per_sec if real.measured else math.inf),
        latency_sec=storage.latency_sec,
        measured=True,
    )


def _speculative_depth(best: _Trial, grid: list[_Trial]) -> int:
    """Certain reads share the disk with the speculative chunks under way: no more of them than find room."""
    alike = [trial for trial in grid if trial.chunk_bytes == best.chunk_bytes and trial.samples]
    enough = _NO_ROOM * best.bytes_per_sec
    return min(trial.depth for trial in alike if trial is best or trial.bytes_per_sec >= enough)


@dataclass(eq=False)
class _Trial:
    """One way of reading, and what it gave each time."""

    kind: NativeKind
    chunk_bytes: int
    depth: int
    samples: list[float] = field(default_factory=list)  # bytes per second

    @property
    def bytes_per_sec(self) -> float:
        return statistics.median(self.samples)


def choose(trials: list[_Trial]) -> _Trial | None:
    """The fewest chunks in flight, then the smallest, among those about as fast as the fastest: what is in flight is
    what a certain read has to wait for."""
    measured = [trial for trial in trials if trial.samples]
    if not measured:
        return None
    enough = _CLOSE * max(trial.bytes_per_sec for trial in measured)
    return min((t for t in measured if t.bytes_per_sec >= enough), key=lambda t: (t.depth, t.chunk_bytes))


def choose_kind(trials: list[_Trial]) -> _Trial | None:
    """The first, unless another is faster by more than its handicap. None if the first wasn't measured."""
    if not trials[0].samples:
        return None
    return max(
        (trial for trial in trials if trial.samples),
        key=lambda trial: trial.bytes_per_sec / (1.0 if trial is trials[0] else _HANDICAPS[trial.kind]),
    )


def _chunks(record_bytes: int) -> list[int]:
    return sorted({min(chunk, record_bytes) for chunk in (*CHUNKS, record_bytes)})


class _Disk:
    """The store's file while it is measured."""

    def __init__(self, store: Store, deadline: float) -> None:
        records = store.plain_records()
        self._records, self._deadline = records, deadline
        ((path, _),) = records.files
        try:
            self._file = ColdFile(path)
        except OSError as e:
            raise StoreReadError(f"{path}: cannot open: {e.strerror or e}") from e
        self._cold = self._file.places(int(records.pieces[0, 1]), records.record_bytes, records.num_records)
        # whole records as chunks need one each; two more wait, so that no thread does
        shape = max(DEPTHS) + 2, records.record_bytes
        self._slots = np.frombuffer(pages.touched_buffer(shape[0] * shape[1]), np.uint8).reshape(shape)
        self._slowest = self._fastest = 0.0  # bytes per second, so far

    def __enter__(self) -> _Disk:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def latency_sec(self, most_sec: float) -> float | None:
        """Of one block; None where none can be read, or none is cold."""
        offsets = (int(self._records.pieces[place, 1]) for place in itertools.islice(self._cold, _LATENCY_READS))
        kinds: tuple[NativeKind, ...] = ("direct", "buffered")
        for kind in kinds:
            with contextlib.suppress(OSError):
                return self._file.latency_sec(kind, offsets, most_sec)
        return None

    def measure(self, trials: list[_Trial], leave_sec: float) -> None:
        """Each trial once a round, in random order, until the time is up but for `leave_sec`."""
        for _ in range(_MOST_ROUNDS):
            for trial in random.sample(trials, len(trials)):
                if time.perf_counter() + self._expected_sec(trial) > self._deadline - leave_sec:
                    continue
                bandwidth = self.bandwidth(trial)
                if bandwidth is not None:
                    trial.samples.append(bandwidth)

    def _records_of(self, trial: _Trial) -> int:
        """Long enough for the clock, and for the beginning and the end, where fewer are in flight, to count little."""
        nbytes = max(self._fastest * _TRIAL_SEC, 3 * trial.chunk_bytes * trial.depth)
        return max(1, round(nbytes / self._records.record_bytes))

    def _expected_sec(self, trial: _Trial) -> float:
        return self._records_of(trial) * self._records.record_bytes / max(self._slowest, 1.0)

    def bandwidth(self, trial: _Trial) -> float | None:
        """Bytes per second; None where the system refuses the kind, a read fails or no cold record is left."""
        records = list(dict.fromkeys(itertools.islice(self._cold, self._records_of(trial))))
        if not records:
            return None
        try:
            found = bytes_per_sec(self._records, self._slots, trial.kind, trial.chunk_bytes, trial.depth, records)
        except StoreReadError:
            return None
        self._slowest = min(self._slowest or found, found)
        self._fastest = max(self._fastest, found)
        return found
