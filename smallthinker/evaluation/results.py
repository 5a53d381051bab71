"""The figures of an evaluation: what they are called, what follows from them, how people and programs read them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

_MOST_NATS = 709  # whose exponential is a float64


@dataclass(frozen=True)
class Perplexity:
    """Of one model over one text. text_bytes: of the scored tokens, in UTF-8. nats: the sum of their negative
    log-likelihoods. missed: tokens to which a lossy head gave no logit; with any, nats is infinite, since the model
    can't say the text. nats_error: the standard error of a token's mean nats, as if tokens were independent."""

    tokens: int
    text_bytes: int
    context: int
    stride: int
    nats: float
    nats_error: float
    missed: int = 0

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Infinite beyond what a float64 can be, too."""
        return math.exp(self.nats_per_token) if self.nats_per_token < _MOST_NATS else math.inf

    @property
    def bits_per_byte(self) -> float:
        return self.nats / self.text_bytes / math.log(2)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`: null stands for infinite."""
        figures = {
            "nats": self.nats,
            "nats_error": self.nats_error,
            "nats_per_token": self.nats_per_token,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
        }
        return asdict(self) | {name: figure if math.isfinite(figure) else None for name, figure in figures.items()}

    def text(self) -> str:
        """For people."""
        if self.missed:
            return (
                f"perplexity infinite: the lossy head gave no logit to {self.missed:,} of {self.tokens:,} tokens "
                f"({self.missed / self.tokens:.2%})"
            )
        return (
            f"perplexity {self.perplexity:.4g} +- {self.perplexity * self.nats_error:.2g}, {self.bits_per_byte:.4f} "
            f"bits per byte, {self.nats_per_token:.4f} nats a token"
        )

    def scope(self) -> str:
        """What was scored, for people."""
        least = self.context - self.stride + 1
        return (
            f"{self.tokens:,} tokens, {self.text_bytes:,} bytes; windows of {self.context} tokens: after the first, "
            f"each token has at least {least} before it"
        )


@dataclass(frozen=True)
class Comparison:
    """A store against a reference over one text. kl_*: KL(reference || store) in nats a token, see
    `scoring.Differences`. top1_agreement: share of places where both expect the same token most. lost: what the
    reference gives, on average, to tokens for which a lossy head has no logit. nats_difference: the store's nats a
    token less the reference's, and its standard error, smaller than that of either; infinite with missed tokens."""

    store: Perplexity
    reference: Perplexity
    kl_mean: float
    kl_median: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    lost: float
    nats_difference: float
    nats_difference_error: float

    def to_dict(self) -> dict[str, Any]:
        """For `--json`: null stands for infinite."""
        figures = asdict(self) | {"store": self.store.to_dict(), "reference": self.reference.to_dict()}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}

    def text(self) -> str:
        """For people."""
        lines = [f"reference  {self.reference.text()}", f"store      {self.store.text()}"]
        if not self.store.missed:
            lines.append(
                f"difference {self.nats_difference:+.5f} +- {self.nats_difference_error:.5f} nats a token "
                f"({self.store.bits_per_byte - self.reference.bits_per_byte:+.5f} bits per byte)"
            )
        lines += [
            f"KL(reference || store)  mean {self.kl_mean:.3g}, median {self.kl_median:.3g}, "
            f"99 % {self.kl_p99:.3g}, largest {self.kl_max:.3g} nats a token",
            f"likeliest token the same  {self.top1_agreement:.2%}",
        ]
        if self.lost:
            lines.append(f"probability that the lossy head loses  {self.lost:.2%}; KL is among the tokens it keeps")
        return "\n".join([*lines, self.store.scope()])
