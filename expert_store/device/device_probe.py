"""Measures a device: random cold reads of many sizes and depths, direct and through the page cache, and one long read.

Owns the measuring and the profile that it comes down to. Knows nothing about stores: any large file will do. Which way
of reading suits one store is probe.py's.
"""

from __future__ import annotations

import itertools
import math
import platform
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import numpy as np

from smallthinker import host
from smallthinker.errors import StoreReadError
from smallthinker.expert_store.device.cold_reads import ColdFile, bytes_per_sec
from smallthinker.expert_store.device.disk_facts import file_system
from smallthinker.expert_store.device.probe_file import MIB, ProbeFile
from smallthinker.expert_store.device.storage_profile import StorageProfile
from smallthinker.expert_store.native_queue import NativeKind
from smallthinker.expert_store.progress import Progress, silent
from smallthinker.expert_store.records import Records
from smallthinker.host import pages

REQUESTS: Final = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20)
DEPTHS: Final = (1, 2, 4, 8, 16, 32)
KINDS: Final[tuple[NativeKind, ...]] = ("direct", "buffered")
_LATENCY_READS = 64
_SEQUENTIAL_REQUEST, _SEQUENTIAL_DEPTH = 1 << 20, 2
_LATENCY_SHARE, _SEQUENTIAL_SHARE = 0.05, 0.1  # of the time
_PATIENCE = 2.0  # what is expected to take more than this many shares of the time is left out
_FEWEST = 4  # requests of a measurement
_ROUNDS = 3
_CLOSE = 0.95  # as good as the best: a busy disk doesn't give the same figure twice
_LARGE = 64 << 10  # requests that show bandwidth rather than requests per second
_BANDWIDTH_STEPS = range(60, 301, 2)  # percent of the fastest point


@dataclass(frozen=True)
class Point:
    """Random reads of one size, `depth` of them under way at any time. samples: bytes per second of each run."""

    kind: NativeKind
    request_bytes: int
    depth: int
    samples: tuple[float, ...]

    @property
    def bytes_per_sec(self) -> float:
        return statistics.median(self.samples)

    @property
    def least(self) -> float:
        return min(self.samples)

    @property
    def most(self) -> float:
        return max(self.samples)

    @property
    def runs(self) -> int:
        return len(self.samples)

    def to_dict(self) -> dict[str, Any]:
        """A row of `--csv`, and in `--json`."""
        return {
            "kind": self.kind,
            "request_bytes": self.request_bytes,
            "depth": self.depth,
            "bytes_per_sec": self.bytes_per_sec,
            "least_bytes_per_sec": self.least,
            "most_bytes_per_sec": self.most,
            "runs": self.runs,
            "reads_per_sec": self.reads_per_sec,
        }

    @property
    def reads_per_sec(self) -> float:
        return self.bytes_per_sec / self.request_bytes


@dataclass(frozen=True)
class DeviceReport:
    """points: what could be measured in the time. model_error: how far the profile's prediction is from the points of
    its kind: in the median, by this share too much or too little."""

    points: tuple[Point, ...]
    profile: StorageProfile
    model_error: float
    file_bytes: int
    note: str | None

    def to_dict(self) -> dict[str, Any]:
        """For `--json`; bytes and seconds."""
        return {
            "profile": self.profile.to_dict(),
            "model_error": self.model_error,
            "file_bytes": self.file_bytes,
            "note": self.note,
            "runs": self.runs,
            "spread": self.spread,
            "points": [point.to_dict() for point in self.points],
        }

    @property
    def runs(self) -> int:
        """Of a point, in the median."""
        return round(statistics.median(point.runs for point in self.points))

    @property
    def spread(self) -> float | None:
        """How far a point's runs lie apart, as a share of their median, in the median of all points; None with one run
        each."""
        return _spread(self.points)


def probe_device(
    file: ProbeFile, name: str = "measured", seconds: float = 18.0, progress: Progress = silent
) -> DeviceReport:
    """Measure for about `seconds`, a few more on a slow disk; `name` is the profile's.

    Raises StoreReadError where the file can't be read, or no read of it is cold.
    """
    device = _Device(file, seconds)
    try:
        kind = device.measured_kind()
        latency = device.latency_sec(kind, seconds * _LATENCY_SHARE)
        sequential = device.sequential(kind, seconds * _SEQUENTIAL_SHARE)
        points = device.grid(latency, progress)
    finally:
        device.close()
    of_kind = [point for point in points if point.kind == kind]
    profile = profile_of_points(of_kind, name, latency, sequential, _source(file, kind, of_kind))
    error = math.expm1(statistics.median(_model_errors(profile, of_kind)))
    return DeviceReport(tuple(points), profile, error, file.file_bytes, file.note)


def profile_of_points(
    points: list[Point], name: str, latency_sec: float, sequential_bytes_per_sec: float, source: str
) -> StorageProfile:
    """The figures that these points, of one kind, come down to. At least one point must be of the smallest request."""
    small = [point for point in points if point.request_bytes == REQUESTS[0]]
    most = max(point.reads_per_sec for point in small)
    depth = min(point.depth for point in small if point.reads_per_sec >= _CLOSE * most)

    def with_bandwidth(bandwidth: float) -> StorageProfile:
        return StorageProfile(
            name=name,
            summary=f"measured on {platform.system()}",
            scope="device",
            # random reads can do no more
            sequential_bytes_per_sec=round(max(sequential_bytes_per_sec, bandwidth)),
            random_bytes_per_sec=round(bandwidth),
            random_iops=round(max(most, 1.0)),
            latency_sec=float(f"{min(max(latency_sec - REQUESTS[0] / bandwidth, 1e-6), 1.0):.3g}"),
            queue_depth=depth,
            source=source,
        )

    # The bandwidth with which the profile comes closest to the larger requests; the best single figure of a busy disk
    # would flatter it, and a hard disk's never shows behind its seeks.
    best = max(point.bytes_per_sec for point in points)
    large = [point for point in points if point.request_bytes >= _LARGE] or points
    candidates = [with_bandwidth(min(max(best * step / 100, 1e6), 1e12)) for step in _BANDWIDTH_STEPS]
    return min(candidates, key=lambda profile: statistics.mean(_model_errors(profile, large)))


def _spread(points: Sequence[Point]) -> float | None:
    several = [(point.most - point.least) / point.bytes_per_sec for point in points if point.runs > 1]
    return statistics.median(several) if several else None


def _model_errors(profile: StorageProfile, points: list[Point]) -> list[float]:
    """|log(predicted / measured)| of each: too much and too little count alike."""
    return [
        abs(math.log(profile.bytes_per_sec(point.request_bytes, point.depth) / point.bytes_per_sec)) for point in points
    ]


def _source(file: ProbeFile, kind: NativeKind, points: Sequence[Point]) -> str:
    """Without paths, so that a profile can be given away."""
    system = f"{platform.system()} {platform.release()}"
    runs, spread = sorted({point.runs for point in points}), _spread(points)
    counted = f"{runs[0]} to {runs[-1]} runs" if len(runs) > 1 else f"{runs[0]} run{'s' * (runs[0] > 1)}"
    apart = "" if spread is None else f", {spread:.0%} apart in the median".replace("%", " %")
    return (
        f"One device, measured with smallthinker probe on {date.today().isoformat()}: {system}, "
        f"{file_system(file.shown) or 'unknown file system'}, cold {kind} reads of a file of "
        f"{file.file_bytes // MIB} MiB, with processor {host.cpu_name()}; {counted} of each of {len(points)} sizes and "
        f"depths{apart}."
    )


class _Device:
    """The file while it is measured."""

    def __init__(self, file: ProbeFile, seconds: float) -> None:
        self._file = file
        self._deadline = time.perf_counter() + seconds
        try:
            self._cold = ColdFile(file.path)
        except OSError as e:
            raise self._error(e) from None
        nbytes = min(max(DEPTHS) * REQUESTS[-1], max(host.available_memory_bytes() // 4, REQUESTS[-1]))
        self._memory = np.frombuffer(pages.touched_buffer(nbytes), np.uint8)
        self._orders = {nbytes: self._cold.places(0, nbytes, file.file_bytes // nbytes) for nbytes in REQUESTS}

    def close(self) -> None:
        self._cold.close()

    def _error(self, e: Exception) -> StoreReadError:
        why = (e.strerror if isinstance(e, OSError) else None) or str(e)
        return StoreReadError(f"{self._file.shown}: cannot read: {why}; check the disk, or give another file")

    def measured_kind(self) -> NativeKind:
        """Direct where direct reads can be had. Raises StoreReadError where nothing can be read."""
        self._cold.drop()
        if next(self._orders[REQUESTS[0]], None) is None:
            raise StoreReadError(
                f"{self._file.shown}: expected cold reads, found all of the file in memory for good; give another file"
            )
        for kind in KINDS:
            try:
                self._read(kind, REQUESTS[0], 1, [0])
            except StoreReadError:
                if kind == KINDS[-1]:
                    raise
                continue
            return kind
        raise AssertionError

    def _read(
        self, kind: NativeKind, nbytes: int, depth: int, places: Sequence[int], most_sec: float = math.inf
    ) -> float:
        """Bytes per second of these places, `depth` of them under way, or of as many as can be read in the time."""
        file = self._file
        records = Records.in_turn(file.path, file.file_bytes, 0, nbytes, file.file_bytes // nbytes)
        slots = self._memory[: depth * nbytes].reshape(depth, nbytes)
        try:
            return bytes_per_sec(records, slots, kind, nbytes, depth, places, most_sec)
        except StoreReadError as e:
            raise StoreReadError(f"{file.shown}: {str(e).removeprefix(f'{file.path}: ')}") from None

    def latency_sec(self, kind: NativeKind, most_sec: float) -> float:
        """Of one small read on the idle device."""
        offsets = (place * REQUESTS[0] for place in itertools.islice(self._orders[REQUESTS[0]], _LATENCY_READS))
        try:
            found = self._cold.latency_sec(kind, offsets, most_sec)
        except OSError as e:
            raise self._error(e) from None
        assert found is not None  # measured_kind has found a cold place
        return found

    def sequential(self, kind: NativeKind, most_sec: float) -> float:
        """Bytes per second of a read through the file, as far as the time goes."""
        places = range(self._file.file_bytes // _SEQUENTIAL_REQUEST)
        self._cold.drop()
        return self._read(kind, _SEQUENTIAL_REQUEST, _SEQUENTIAL_DEPTH, places, most_sec)

    def grid(self, latency_sec: float, progress: Progress) -> list[Point]:
        """Every size with every depth, direct and buffered, but for what would take too long on this disk; all of it
        again as often as there is time, at most _ROUNDS times: a busy disk changes from second to second."""
        wanted = list(itertools.product(REQUESTS, DEPTHS, KINDS))
        share = max(self._deadline - time.perf_counter(), 0.0) / len(wanted)
        found: dict[tuple[int, int, NativeKind], list[float]] = {}
        refused: set[NativeKind] = set()
        total = _ROUNDS * len(wanted)
        for done, key in enumerate(wanted):
            progress(done, total, "measuring")
            nbytes, depth, kind = key
            known = [found[k][0] for k in ((nbytes, depth // 2, kind), (nbytes // 4, depth, kind)) if k in found]
            expected = max(known, default=REQUESTS[0] / latency_sec)
            sec = self._requests(nbytes, depth, expected, share) * nbytes / expected
            is_late = time.perf_counter() + sec > self._deadline
            is_long = sec > max(_PATIENCE * share, 2 * _FEWEST * latency_sec)
            if kind in refused or depth * nbytes > len(self._memory) or (found and (is_late or is_long)):
                continue
            try:
                speed = self._point(*key, expected, share)
            except StoreReadError:
                if kind == KINDS[-1]:
                    raise
                refused.add(kind)  # no direct reads here
                continue
            if speed is not None:
                found[key] = [speed]
        for again in range(1, _ROUNDS):
            for done, (key, speeds) in enumerate(random.sample(list(found.items()), len(found))):
                progress(again * len(wanted) + done, total, "measuring")
                sec = self._requests(*key[:2], speeds[0], share) * key[0] / speeds[0]
                if time.perf_counter() + sec > self._deadline:
                    continue
                speed = self._point(*key, speeds[0], share)
                if speed is not None:
                    speeds.append(speed)
        progress(total, total, "measuring")
        return [Point(kind, nbytes, depth, tuple(speeds)) for (nbytes, depth, kind), speeds in found.items()]

    def _point(self, nbytes: int, depth: int, kind: NativeKind, expected: float, share: float) -> float | None:
        """Bytes per second; None where the page cache keeps the rest. Raises StoreReadError."""
        count = self._requests(nbytes, depth, expected, share)
        places = list(dict.fromkeys(itertools.islice(self._orders[nbytes], count)))
        return None if len(places) < min(_FEWEST, depth) else self._read(kind, nbytes, depth, places)

    @staticmethod
    def _requests(nbytes: int, depth: int, expected: float, share: float) -> int:
        return max(_FEWEST, depth, int(expected * share / _ROUNDS / nbytes))
