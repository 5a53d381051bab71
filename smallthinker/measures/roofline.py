"""What prefill or decode cost, and how close it came to what this processor and this disk allow.

Owns the sums: where the time went, what was read for what, and the roofline of this very run. Knows nothing about what
runs, only two differences of counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from smallthinker.cache.read_counters import CacheCounters
from smallthinker.measures.profile import Clocks


@dataclass(frozen=True)
class Roofline:
    """The time that a token can't do without, in seconds: of the two, the larger, as if they overlapped perfectly and
    Python took nothing. `bound` says which. `share` of the steps' wall time: 1 is the roof."""

    arithmetic_sec_per_token: float
    disk_sec_per_token: float
    share: float

    @property
    def bound(self) -> Literal["disk", "arithmetic"]:
        return "disk" if self.disk_sec_per_token > self.arithmetic_sec_per_token else "arithmetic"

    @property
    def sec_per_token(self) -> float:
        return max(self.arithmetic_sec_per_token, self.disk_sec_per_token)

    @property
    def tok_per_sec(self) -> float:
        return 1 / self.sec_per_token if self.sec_per_token else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "bound": self.bound,
            "sec_per_token": self.sec_per_token,
            "arithmetic_sec_per_token": self.arithmetic_sec_per_token,
            "disk_sec_per_token": self.disk_sec_per_token,
            "tok_per_sec": self.tok_per_sec,
            "share": self.share,
        }


@dataclass(frozen=True)
class Phase:
    """Prefill or decode: its steps alone, without sampling and text.

    wall_sec is arithmetic_sec (in kernels) + stall_sec (nothing to compute until a read that was certain by then came
    back) + python_sec (the rest). disk_bytes_per_sec_probed: what a probe of the disk found, at some other time; None
    where none was made. disk_bytes_per_sec_allowed: what the kernel lets this process read; None: it sets no limit.
    """

    tokens: int
    wall_sec: float
    arithmetic_sec: float
    python_sec: float
    experts: CacheCounters
    disk_bytes_per_sec_probed: float | None = None
    disk_bytes_per_sec_allowed: float | None = None

    @classmethod
    def of(
        cls,
        clocks: Clocks,
        experts: CacheCounters,
        disk_bytes_per_sec_probed: float | None,
        disk_bytes_per_sec_allowed: float | None = None,
    ) -> Phase:
        """clocks, experts: what they counted during the phase; their stalls are the same ones."""
        return cls(
            clocks.tokens,
            clocks.wall_sec,
            clocks.arithmetic_sec,
            clocks.python_sec,
            experts,
            disk_bytes_per_sec_probed,
            disk_bytes_per_sec_allowed,
        )

    @property
    def stall_sec(self) -> float:
        return self.experts.stall_sec

    @property
    def needed_bytes(self) -> int:
        """Read, and wanted: not what was guessed wrongly."""
        return self.experts.certain_bytes + self.experts.useful_bytes

    @property
    def disk_bytes_per_sec_seen(self) -> float | None:
        """While at least one read was under way; None where nothing was read. Reads that follow each other one by one
        show less than the disk could give, a page cache that holds the store shows more."""
        experts = self.experts
        return experts.bytes_read / experts.busy_sec if experts.bytes_read and experts.busy_sec > 0 else None

    @property
    def roofline(self) -> Roofline:
        """With the larger bandwidth of the two, the probed and the seen one, which gives the higher roof: a disk shared
        with others changes by the minute, and a bad minute must not flatter the engine. What was seen is also why no
        run beats its roofline: the disk was busy for at least that long. No more counts than the kernel allows: its
        throttle lets through at once what it saved up while nothing was read, which looks faster than it is. What it
        saved up before the phase is the one thing that a share is cut off at 1 for.
        """
        tokens = max(1, self.tokens)
        bandwidth = max(self.disk_bytes_per_sec_probed or 0.0, self.disk_bytes_per_sec_seen or 0.0)
        bandwidth = min(bandwidth, self.disk_bytes_per_sec_allowed or bandwidth)
        disk_sec = self.needed_bytes / bandwidth if bandwidth else 0.0
        least = max(self.arithmetic_sec, disk_sec)
        return Roofline(
            self.arithmetic_sec / tokens,
            disk_sec / tokens,
            min(least / self.wall_sec, 1.0) if self.wall_sec > 0 else 0.0,
        )

    def to_dict(self) -> dict[str, Any]:
        """For `--stats json`; seconds and bytes, of the whole phase."""
        experts = self.experts
        return {
            "tokens": self.tokens,
            "wall_sec": self.wall_sec,
            "arithmetic_sec": self.arithmetic_sec,
            "python_sec": self.python_sec,
            "stall_sec": self.stall_sec,
            "experts": {
                "requests": experts.requests,
                "hits": experts.hits,
                "hit_rate": round(experts.hit_rate, 4),
                "guessed": experts.guessed,
                "late": experts.late,
                "misses": experts.misses,
                "evictions": experts.evictions,
            },
            "bytes_read": experts.bytes_read,
            "needed_bytes": self.needed_bytes,
            "certain_bytes": experts.certain_bytes,
            "useful_bytes": experts.useful_bytes,
            "late_bytes": experts.late_bytes,
            "wasted_bytes": experts.wasted_bytes,
            "reread_bytes": experts.reread_bytes,
            "busy_sec": experts.busy_sec,
            "repeated_reads": experts.repeated_reads,
            "disk_bytes_per_sec_probed": self.disk_bytes_per_sec_probed,
            "disk_bytes_per_sec_seen": self.disk_bytes_per_sec_seen,
            "disk_bytes_per_sec_allowed": self.disk_bytes_per_sec_allowed,
            "roofline": self.roofline.to_dict(),
        }
