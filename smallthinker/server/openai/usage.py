"""What an answer took, as the protocol counts it, and as this engine does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from smallthinker.generation.answer import Completion
from smallthinker.generation.stats import GenerationStats


@dataclass(frozen=True)
class Usage:
    """Tokens. The prompt of several choices counts once; `cached_tokens` of it were held from an earlier turn."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int

    @classmethod
    def of(cls, completions: Sequence[Completion], reasoning_tokens: int = 0) -> Usage:
        """Of answers to one prompt."""
        first = completions[0].stats
        new = sum(len(completion.token_ids) for completion in completions)
        return cls(first.prompt_tokens, new, first.reused_tokens, reasoning_tokens)

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


def timings(stats: GenerationStats) -> dict[str, Any]:
    """An addition of this server's: how the (first) answer was computed; `lossy`: where it need not be the model's."""
    lossy = {
        kind: asdict(counters)
        for kind, counters in (("head", stats.lossy_head), ("routing", stats.lossy_routing))
        if counters is not None
    }
    return {
        "queue_sec": round(stats.queue_sec, 4),
        "ttft_sec": round(stats.ttft_sec, 4),
        "decode_tok_per_sec": round(stats.decode_tok_per_sec, 2),
        "prefill_tok_per_sec": round(stats.prefill_tok_per_sec, 2),
        "hit_rate": round(stats.hit_rate, 4),
        "bytes_read_per_token": round(stats.bytes_read_per_token),
        "seed": stats.seed,
    } | ({"lossy": lossy} if lossy else {})
