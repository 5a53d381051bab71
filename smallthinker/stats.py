"""The figures of one answer and of the run that made it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from smallthinker.cache.read_counters import CacheCounters
from smallthinker.lossy_head import HeadCounters

MIB = 1 << 20


@dataclass(frozen=True)
class GenerationStats:
    """What one answer cost. Times in seconds, sizes in bytes; `hit_rate` and bytes per token are of the decode steps.

    TTFT counts from the call to the first token, prefill included, loading the model not (`load_sec`).
    `least_slots`: the fewest that experts had at any step since the model was loaded, for a long context or because the
    machine ran short. `stall_sec` is time in which arithmetic had nothing to do but wait for experts.
    """

    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    ttft_sec: float
    decode_sec: float
    load_sec: float
    prefill_experts: CacheCounters
    decode_experts: CacheCounters
    peak_memory_bytes: int
    slots: int
    least_slots: int
    num_experts: int
    reader: str
    isa: str
    threads: int
    seed: int | None
    lossy_head: HeadCounters | None = None

    @property
    def decode_tok_per_sec(self) -> float:
        """The first token belongs to prefill; the others are one decode step each."""
        return (self.new_tokens - 1) / self.decode_sec if self.new_tokens > 1 and self.decode_sec else 0.0

    @property
    def prefill_tok_per_sec(self) -> float:
        return (self.prompt_tokens - self.reused_tokens) / self.ttft_sec if self.ttft_sec else 0.0

    @property
    def hit_rate(self) -> float:
        requests = self.decode_experts.requests
        return self.decode_experts.hits / requests if requests else 0.0

    @property
    def bytes_read_per_token(self) -> float:
        return self.decode_experts.bytes_read / (self.new_tokens - 1) if self.new_tokens > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For `--stats json`: every field and every derived figure."""
        return asdict(self) | {
            "decode_tok_per_sec": round(self.decode_tok_per_sec, 3),
            "prefill_tok_per_sec": round(self.prefill_tok_per_sec, 3),
            "hit_rate": round(self.hit_rate, 4),
            "bytes_read_per_token": round(self.bytes_read_per_token),
        }

    def line(self) -> str:
        """One line for people."""
        return (
            f"TTFT {self.ttft_sec:.2f} s ({self.prompt_tokens} tokens), {self.decode_tok_per_sec:.1f} tokens/s "
            f"({self.new_tokens} tokens), hit rate {self.hit_rate:.0%}, "
            f"{self.bytes_read_per_token / MIB:.1f} MiB read per token, "
            f"peak memory {self.peak_memory_bytes / MIB:.0f} MiB"
            f"{'' if self.lossy_head is None else '; ' + self.lossy_head.line()}"
        )
