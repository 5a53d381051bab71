"""The figures of one answer and of the run that made it, and of all answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from smallthinker.cache.read_counters import CacheCounters
from smallthinker.figures import rounded
from smallthinker.lossy_head import HeadCounters
from smallthinker.lossy_routing import RoutingCounters
from smallthinker.measures.roofline import Phase

MIB = 1 << 20


@dataclass
class SpeculationCounters:
    """batches: steps that verified proposals; proposed, accepted: tokens. Each accepted one is a step less. saved_sec:
    what plain tokens would have taken, as measured beside them, less what batches took; below 0 where trying cost more
    than it gained."""

    batches: int = 0
    proposed: int = 0
    accepted: int = 0
    saved_sec: float = 0.0

    def add(self, other: SpeculationCounters) -> None:
        self.batches += other.batches
        self.proposed += other.proposed
        self.accepted += other.accepted
        self.saved_sec += other.saved_sec

    def line(self) -> str:
        """For people."""
        tokens = f"{self.accepted} of {self.proposed} proposed tokens in {self.batches} steps"
        return f"speculation: {tokens}, {rounded(self.saved_sec)} s saved"


@dataclass(frozen=True)
class GenerationStats:
    """What one answer cost. Times in seconds, sizes in bytes; `hit_rate` and bytes per token are of the decode steps.

    TTFT counts from the call to the first token, waiting for other answers (`queue_sec`) and prefill included, loading
    the model not (`load_sec`). decode_sec, from the first token to the last, has besides `decode.wall_sec` sampling and
    text. Answers that were written at the same time shared their steps: `prefill`, `decode`, the hit rate and the bytes
    per token are of the steps, and their tokens all that were computed in them.
    `least_slots`: the fewest that experts had at any step since the model was loaded, for a long context or because the
    machine ran short. `storage`: the profile of the disk that was emulated; None for the real one.
    """

    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    queue_sec: float
    ttft_sec: float
    decode_sec: float
    load_sec: float
    prefill: Phase
    decode: Phase
    sampling_sec: float
    text_sec: float
    peak_memory_bytes: int
    slots: int
    least_slots: int
    num_experts: int
    reader: str
    isa: str
    threads: int
    seed: int | None
    storage: str | None = None
    lossy_head: HeadCounters | None = None
    lossy_routing: RoutingCounters | None = None
    speculation: SpeculationCounters = field(default_factory=SpeculationCounters)

    @property
    def decode_tok_per_sec(self) -> float:
        """The first token belongs to prefill; the others are one decode step each."""
        return (self.new_tokens - 1) / self.decode_sec if self.new_tokens > 1 and self.decode_sec else 0.0

    @property
    def prefill_tok_per_sec(self) -> float:
        seconds = self.ttft_sec - self.queue_sec
        return (self.prompt_tokens - self.reused_tokens) / seconds if seconds > 0 else 0.0

    @property
    def hit_rate(self) -> float:
        return self.decode_experts.hit_rate

    @property
    def prefill_experts(self) -> CacheCounters:
        return self.prefill.experts

    @property
    def decode_experts(self) -> CacheCounters:
        return self.decode.experts

    @property
    def bytes_read_per_token(self) -> float:
        return self.decode_experts.bytes_read / self.decode.tokens if self.decode.tokens else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For `--stats json`: every field and every derived figure."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {
            "prefill": self.prefill.to_dict(),
            "decode": self.decode.to_dict(),
            "lossy_head": None if self.lossy_head is None else asdict(self.lossy_head),
            "lossy_routing": None if self.lossy_routing is None else asdict(self.lossy_routing),
            "speculation": asdict(self.speculation),
            "decode_tok_per_sec": round(self.decode_tok_per_sec, 3),
            "prefill_tok_per_sec": round(self.prefill_tok_per_sec, 3),
            "hit_rate": round(self.hit_rate, 4),
            "bytes_read_per_token": round(self.bytes_read_per_token),
        }

    def line(self) -> str:
        """One line for people."""
        return (
            f"TTFT {rounded(self.ttft_sec)} s ({self.prompt_tokens} tokens), "
            f"{self._decode()}{self._roofline()}peak memory {self.peak_memory_bytes / MIB:.0f} MiB"
            f"{'' if self.storage is None else f'; the disk is emulated: {self.storage}'}"
            f"{self._repeats()}"
            f"{'; ' + self.speculation.line() if self.speculation.batches else ''}"
            f"{'' if self.lossy_head is None else '; ' + self.lossy_head.line()}"
            f"{'' if self.lossy_routing is None else '; ' + self.lossy_routing.line()}"
        )

    def _decode(self) -> str:
        """The first token comes with the prompt: one that is alone says nothing of a speed."""
        if self.new_tokens < 2:
            return f"{self.new_tokens} new, "
        return (
            f"{rounded(self.decode_tok_per_sec)} tokens/s ({self.new_tokens} tokens), hit rate {self.hit_rate:.0%}, "
            f"{rounded(self.bytes_read_per_token / MIB)} MiB read per token, "
        )

    def _repeats(self) -> str:
        """Of reads, where there were any: a disk or a cable is about to fail."""
        repeats = self.prefill_experts.repeated_reads + self.decode_experts.repeated_reads
        return f"; {repeats} reads failed or were wrong and were repeated" if repeats else ""

    def _roofline(self) -> str:
        """Only where reads happened: in memory, arithmetic is nearly all there is, and the share says nothing."""
        if not self.decode_experts.bytes_read:
            return ""
        return f"{self.decode.roofline.share:.0%} of the roofline ({self.decode.roofline.bound}), "


@dataclass(frozen=True)
class SchedulerStats:
    """What runs now, and totals since the start. Sizes in bytes.

    finished: answers by finish reason, and 'error'. hit_rate: of all experts asked for. kv_bytes of kv_planned_bytes
    are taken by conversations, running and kept. speculation: of all answers.
    """

    running: int
    waiting: int
    most_waiting: int
    finished: Mapping[str, int]
    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    kv_bytes: int
    kv_planned_bytes: int
    memory_bytes: int
    memory_budget_bytes: int
    hit_rate: float
    bytes_read: int
    slots: int
    num_experts: int
    uptime_sec: float
    speculation: SpeculationCounters


@dataclass
class Totals:
    """What a scheduler counts for that."""

    finished: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    answer_sec: float = 0.0  # from the first token computed to the end, of all answers
    speculation: SpeculationCounters = field(default_factory=SpeculationCounters)
