"""What the expert cache counts: who was there, who was guessed, and which bytes were read for what."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from smallthinker.expert_store.read_queue import ReadCounters


@dataclass(frozen=True)
class CacheCounters:
    """Since the cache was made. Each expert asked for is one of: a hit (it had been kept), guessed (read ahead and
    there in time), late (read ahead, still under way), a miss. Bytes: `certain_bytes` for misses, `useful_bytes`
    guessed or late, `late_bytes` the latter alone, `wasted_bytes` for guesses that nobody wanted, `preloaded_bytes`
    because an earlier run had used them much, `reread_bytes` of all those for experts that had been evicted.
    `stall_sec` waited with nothing to compute; `busy_sec` had a read under way; `repeated_reads` failed, or brought
    what wasn't what its checksum says, and were done again."""

    hits: int = 0
    guessed: int = 0
    late: int = 0
    misses: int = 0
    evictions: int = 0
    certain_bytes: int = 0
    useful_bytes: int = 0
    late_bytes: int = 0
    wasted_bytes: int = 0
    preloaded_bytes: int = 0
    reread_bytes: int = 0
    stall_sec: float = 0.0
    busy_sec: float = 0.0
    repeated_reads: int = 0

    @property
    def bytes_read(self) -> int:
        return self.certain_bytes + self.useful_bytes + self.wasted_bytes + self.preloaded_bytes

    @property
    def requests(self) -> int:
        return self.hits + self.guessed + self.late + self.misses

    @property
    def hit_rate(self) -> float:
        """The share of requests that found their expert kept; guesses that were right are no hits."""
        return self.hits / self.requests if self.requests else 0.0

    def __sub__(self, earlier: CacheCounters) -> CacheCounters:
        return CacheCounters(*(a - b for a, b in zip(astuple(self), astuple(earlier), strict=True)))


class CacheStats:
    """The cache's own counts, in records."""

    def __init__(self, record_bytes: int) -> None:
        self._record_bytes = record_bytes
        self.hits = self.in_time = self.late = self.misses = self.wasted = self.preloaded = 0
        self._evictions = self._rereads = 0
        self.stall_sec = 0.0
        self._gone: set[int] = set()  # records that were evicted and not read since

    def guessed(self, in_time: bool) -> None:
        """A guess was right. One that came in time is counted among the hits by whoever asks, so not there."""
        if in_time:
            self.in_time += 1
            self.hits -= 1
        else:
            self.late += 1

    def regained(self) -> None:
        """What was counted a miss and, landing, wasted, was one record: a withdrawn guess, wanted after all."""
        self.misses -= 1
        self.wasted -= 1
        self.late += 1

    def evicted(self, record: int) -> None:
        self._evictions += 1
        self._gone.add(record)

    def landed(self, record: int) -> None:
        """A read of it is over, and whole. Reads that are taken back before that don't count."""
        if record in self._gone:
            self._gone.discard(record)
            self._rereads += 1

    def counters(self, reads: ReadCounters) -> CacheCounters:
        each = self._record_bytes
        return CacheCounters(
            hits=self.hits,
            guessed=self.in_time,
            late=self.late,
            misses=self.misses,
            evictions=self._evictions,
            certain_bytes=self.misses * each,
            useful_bytes=(self.in_time + self.late) * each,
            late_bytes=self.late * each,
            wasted_bytes=self.wasted * each + reads.withdrawn_bytes,
            preloaded_bytes=self.preloaded * each,
            reread_bytes=self._rereads * each,
            stall_sec=self.stall_sec,
            busy_sec=reads.busy_sec,
            repeated_reads=reads.repeated_reads,
        )
