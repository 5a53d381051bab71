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


def counted(
    records: tuple[int, int, int, int, int, int, int, int, float], record_bytes: int, reads: ReadCounters
) -> CacheCounters:
    """Of what the books count in records (hits, guessed in time, late, misses, evictions, wasted, preloaded, read
    again) and seconds of waiting, and of what the queue counts."""
    hits, in_time, late, misses, evictions, wasted, preloaded, rereads, stall_sec = records
    return CacheCounters(
        hits=hits,
        guessed=in_time,
        late=late,
        misses=misses,
        evictions=evictions,
        certain_bytes=misses * record_bytes,
        useful_bytes=(in_time + late) * record_bytes,
        late_bytes=late * record_bytes,
        wasted_bytes=wasted * record_bytes + reads.withdrawn_bytes,
        preloaded_bytes=preloaded * record_bytes,
        reread_bytes=rereads * record_bytes,
        stall_sec=stall_sec,
        busy_sec=reads.busy_sec,
        repeated_reads=reads.repeated_reads,
    )
